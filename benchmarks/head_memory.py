"""Peak memory of scoring with a large vocabulary, over the loaded model.

A tiny Llama with 152,000 tokens in its vocabulary scores 4,096 response tokens, as one response and as eight, each time
in a fresh process. Its resident memory after loading is compared with the peak of building a `Scorer` and scoring; then, in
the same process, with that of the padded loop: batches of 8, full logits, log_softmax. Takes 9 GB.

`--hidden 896 --layers 24` is about a 0.5B model. Left out: GPUs, where the peak is the allocator's, and the model's own
memory.
"""

import argparse
import contextlib
import ctypes
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import CONSOLE, table, verdict

MB = 1e6
LIMIT_MB = 400
SHAPES = {"one response of 4,096": (1, 4096), "8 responses of 512": (8, 512)}


def raise_of_peak(
    responses: int, length: int, *, vocabulary: int = 152_000, hidden: int = 64, layers: int = 2, loop: bool = False
) -> dict[str, float]:
    """Measure in a fresh process, with `loop` the padded loop too. Needs Linux.

    Returns:
        `loaded_mb`, resident memory with the model loaded; `peak_mb`, the highest while scoring; `raised_mb`, the
        difference; `tokens`, the number that was scored; of the loop `loop_mb`, what it raises, and `apart`, how far its
        log-probabilities are from the scorer's.
    """
    arguments = [str(n) for n in (responses, length, vocabulary, hidden, layers, int(loop))]
    command = [sys.executable, str(Path(__file__).resolve()), "--child", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def _child(responses: int, length: int, vocabulary: int, hidden: int, layers: int, loop: int) -> dict[str, float]:
    import torch
    import transformers

    from pipeline.models.scoring import Scorer
    from pipeline.tokens import TokenizedTurn

    heads = max(1, hidden // 64)
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=length + 64,
        tie_word_embeddings=True,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    ids = torch.randint(3, vocabulary, (responses, length + 16)).tolist()
    turns = [TokenizedTurn(row[:16], row[16:], []) for row in ids]
    scores, loaded, peak = _peak_of(lambda: Scorer(model).score(turns))
    tokens = sum(len(s.q) for s in scores)
    measured = {"loaded_mb": loaded / MB, "peak_mb": peak / MB, "raised_mb": (peak - loaded) / MB, "tokens": tokens}
    if not loop:
        return measured
    logprobs, before, highest = _peak_of(lambda: _padded_loop(model, torch.tensor(ids)))
    apart = [
        float((torch.from_numpy(s.logprobs) - own[15:]).abs().max()) for s, own in zip(scores, logprobs, strict=True)
    ]
    return {**measured, "loop_mb": (highest - before) / MB, "apart": max(apart)}


def _peak_of(work: Callable[[], Any]) -> tuple[Any, int, int]:
    """What it gives, the resident bytes before, and the most there were."""
    _trim()
    _reset_peak()
    before = _status_bytes("VmRSS")
    return work(), before, _status_bytes("VmHWM")


def _padded_loop(model: Any, ids: Any) -> list[Any]:
    """log pi of all tokens but the first, [L - 1] each. All rows are of one length, so that nothing is padding."""
    import torch

    rows: list[Any] = []
    with torch.inference_mode():
        for batch in ids.split(8):
            logprobs = torch.log_softmax(model(batch).logits[:, :-1], dim=-1)
            rows += logprobs.gather(2, batch[:, 1:, None])[..., 0]
    return rows


def _trim() -> None:
    """Give freed memory back, so that reusing it counts as a raise."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc
        libc.malloc_trim(0)


def _reset_peak() -> None:
    """Make the peak start at what is resident now. Where that is not allowed it includes loading, which is stricter."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _status_bytes(field: str) -> int:
    """A field of /proc/self/status: VmRSS is what is resident now, VmHWM the most that was."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=152_000)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    options = parser.parse_args()
    if not Path("/proc/self/status").exists():
        CONSOLE.print("skipped: peak memory is read from /proc, which this system does not have")
        return

    model = {"vocabulary": options.vocabulary, "hidden": options.hidden, "layers": options.layers}
    found = {name: raise_of_peak(*shape, **model, loop=True) for name, shape in SHAPES.items()}
    shown = table(
        f"Llama of {options.layers} layers, hidden size {options.hidden}, vocabulary {options.vocabulary:,}, float32",
        "", "loaded MB", "peak MB", "raised by MB", "full logits MB", "padded loop MB", "loop / raise",
    )  # fmt: skip
    for name, (responses, length) in SHAPES.items():
        one, full = found[name], responses * length * options.vocabulary * 4 / MB
        shown.add_row(
            name, f"{one['loaded_mb']:,.0f}", f"{one['peak_mb']:,.0f}", f"{one['raised_mb']:,.0f}", f"{full:,.0f}",
            f"{one['loop_mb']:,.0f}", f"{one['loop_mb'] / one['raised_mb']:.1f}",
        )  # fmt: skip
    CONSOLE.print(shown)
    claims = {}
    for name in SHAPES:
        raised, loop = found[name]["raised_mb"], found[name]["loop_mb"]
        claims[f"{name} raise the peak by less than {LIMIT_MB} MB ({raised:.0f})"] = raised < LIMIT_MB
        claims[f"{name}: at most a quarter of the padded loop's peak, {loop:,.0f} MB"] = raised <= loop / 4
        claims[f"{name}: the loop's log-probabilities ({found[name]['apart']:.0e} apart)"] = found[name]["apart"] < 1e-3
    verdict(claims)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(_child(*map(int, sys.argv[2:]))))
    else:
        main()
