"""What an engine and a lag change: of the accuracy that online RL reaches, of a step's seconds, of the rate of sampling.

    python benchmarks/engines.py --parts lag                                  # nine runs of rl: an hour on two cores
    python benchmarks/engines.py --parts engine --vllm PYTHON                 # six, three of them with vLLM
    python benchmarks/engines.py --parts sample --vllm PYTHON --model FOLDER  # SmolLM2 by ../shared/models/get_smollm2.py
    python benchmarks/engines.py --parts lag engine sample --show             # the tables of what is there; runs nothing

Made of pieces, each a command of its own that ends within minutes. What a piece came to is put into
benchmarks/results/engines.json as it ends and not run again, so that the whole can be had in any number of goes, and
`--at-most N` ends after so many. PYTHON is that of an environment with vLLM (`make test-vllm` makes one), in which the pieces
of vLLM run; all others run where this runs.

lag, engine: examples/addition/rl.toml with the sibling model of three heads, which vLLM has a kernel for, one sampler of one
thread and a learner of one, for `--steps` steps and as many seeds. Accuracy is of one answer at temperature 1 to each of
`--held-out` problems, the same for all; the interval is Wilson's, of all seeds together. A step's seconds are a median, those
of measurements left out. Shown beside: the effective sample size of the correction's weights, and of each step how much the
learner waits. Claims, of what is there: the accuracy of lag 1 and of vLLM is within the interval of lag 0 under transformers,
or above it.

`two threads for each` is lag 0 with two samplers, which is what the command does with two cores by itself, and a learner of
two threads: they take turns, so each has both cores.

sample: the same 64 prompts of 32 tokens, 96 new tokens each and none that ends before, temperature 1, float32, with
log-probabilities, in a process for each engine, after a warm-up; tokens a second of the clock and of the CPU. On one thread
each; then ours on two beside vLLM on as many as it takes, which of two cores is one: the claim is of these. `generate` is
transformers' own, which is TRL's engine where vLLM is not, as on a CPU (the README says why). Their steps stand side by side
in online_throughput.py. `floor` is nothing but the products of that work with the model's weights, prompts once and then 64
rows for each token, by the fastest of PyTorch's kernels: what no engine that asks these can pass.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from machine import CONSOLE, ROOT, describe, table, verdict

from pipeline.store import documents
from pipeline.store.summary import wilson_interval
from pipeline.training.metrics import read_metrics

ADDITION = ROOT / "examples" / "addition"
RESULT = ROOT / "benchmarks/results/engines.json"
LAST = 10  # steps that make the end of a run
LAGS: dict[str, dict[str, object]] = {
    "lag 0": {},
    "lag 0, two threads for each": {"sampler.actors": 2, "learner.cpus_per_worker": 2},
    "lag 1": {"rl.lag": 1},
    "lag 1, uncorrected": {"rl.lag": 1, "rl.correction": "none"},
}
ENGINES: dict[str, dict[str, object]] = {"lag 0": {}, "vllm": {"sampler.engine": "vllm"}}
SAMPLED: dict[str, tuple[str, str | None]] = {
    **{name: (name, "1") for name in ("transformers", "vllm", "generate", "floor")},
    "transformers, two threads": ("transformers", "2"),
    "vllm, as many as it takes": ("vllm", None),
}  # engine, and threads
SEQUENCES, PROMPT_TOKENS, NEW_TOKENS = 64, 32, 96


@dataclass(frozen=True)
class Piece:
    """What is run by itself and has a figure of its own."""

    key: str
    make: Callable[[], dict[str, Any]]


def rl(name: str, settings: dict[str, object], seed: int, arguments: argparse.Namespace) -> Piece:
    def make() -> dict[str, Any]:
        python = arguments.vllm if settings.get("sampler.engine") == "vllm" else sys.executable
        with tempfile.TemporaryDirectory() as scratch:
            problems = Path(scratch, "held-out.jsonl")
            lines = (ADDITION / "held-out.jsonl").read_text().splitlines(keepends=True)[: arguments.held_out]
            problems.write_text("".join(lines))
            told = {
                "sampler.actors": 1, "run.num_cpus": 2, **settings, "rl.seed": seed, "rl.max_steps": arguments.steps,
                "held_out.prompts": f'["{problems}"]', "held_out.every_steps": 10**6, "tracking.tensorboard": "false",
            }  # fmt: skip
            words = ["-m", "jobs", "rl", ADDITION / "rl.toml", "--policy", ADDITION / "model-3-heads"]
            words += ["--output", f"{scratch}/run", *(w for n, v in told.items() for w in ("--set", f"{n}={v}"))]
            started = time.perf_counter()
            _run(python, *words)
            seconds = time.perf_counter() - started
            results = json.loads(Path(scratch, "run", "results.json").read_text())
            rows = [row for row in read_metrics(f"{scratch}/run/metrics.jsonl") if row["step"]]
        return {
            "before": results["accuracy_before"], "after": results["accuracy_after"], "held_out": results["held_out"],
            "kl": fmean(row["kl"] for row in rows[-LAST:]), "seconds": round(seconds, 1),
            "step": median(row["step_time"] for row in rows), "waiting": median(row["time/waiting"] for row in rows),
            "sample_size": fmean(row.get("sampling/effective_sample_size", 1.0) for row in rows),
        }  # fmt: skip

    return Piece(f"rl, {arguments.steps} steps: {name}, seed {seed}", make)


def sample(name: str, arguments: argparse.Namespace) -> Piece:
    engine, threads = SAMPLED[name]

    def make() -> dict[str, Any]:
        python = arguments.vllm if engine == "vllm" else sys.executable
        said = _run(python, __file__, "--child", engine, "--model", arguments.model, threads=threads)
        figures: dict[str, Any] = json.loads(said.splitlines()[-1])
        return figures

    return Piece(f"sample: {name}", make)


def pieces(arguments: argparse.Namespace) -> Iterator[Piece]:
    """Of the parts that are asked for, seeds outermost, so that a part of them compares all."""
    for seed in range(arguments.seeds):
        cases = {
            n: c for p, each in (("lag", LAGS), ("engine", ENGINES)) if p in arguments.parts for n, c in each.items()
        }
        yield from (rl(name, settings, seed, arguments) for name, settings in cases.items())
    if "sample" in arguments.parts:
        yield from (sample(name, arguments) for name in SAMPLED)


def rate(engine: str, model: str) -> dict[str, float]:
    """Tokens a second, by the clock and of the CPU; in a process of its own."""
    import numpy as np
    import torch

    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    prompts = np.random.default_rng(0).integers(100, 20_000, (SEQUENCES, PROMPT_TOKENS)).tolist()
    ask = {"generate": _generate, "floor": _floor}.get(engine, functools.partial(_engine, engine))(model)
    ask(prompts[:4])
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = ask(prompts)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"tokens": tokens, "per_second": round(tokens / wall, 2), "per_cpu_second": round(tokens / cpu, 2)}


def _engine(name: str, model: str) -> Callable[[list[list[int]]], int]:
    from pipeline.config import ModelConfig
    from pipeline.models.engines import Drawing, EngineSpec, open_engine
    from pipeline.models.questions import Question

    held = SEQUENCES * (PROMPT_TOKENS + NEW_TOKENS)
    drawing = Drawing(max_new_tokens=NEW_TOKENS, temperature=1.0, logprobs=True, budget_tokens=held)
    engine = open_engine(EngineSpec(ModelConfig(name=model, dtype="float32"), "cpu", drawing, engine=name))

    def ask(prompts: list[list[int]]) -> int:
        answers = engine.generate([Question(prompt, 1, seed) for seed, prompt in enumerate(prompts)])
        return sum(len(each.token_ids) for samples in answers if isinstance(samples, list) for each in samples)

    return ask


def _generate(model: str) -> Callable[[list[list[int]]], int]:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    end = loaded.generation_config.eos_token_id
    settings = GenerationConfig(
        max_new_tokens=NEW_TOKENS, do_sample=True, top_k=0, top_p=1.0, eos_token_id=end, pad_token_id=0
    )

    @torch.inference_mode()
    def ask(prompts: list[list[int]]) -> int:
        ids = torch.tensor(prompts)
        out = loaded.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)[:, ids.shape[1] :]
        ends = torch.isin(out, torch.tensor(end))
        return int((ends.cumsum(1) - ends.long() == 0).sum())

    return ask


def _floor(model: str) -> Callable[[list[list[int]]], int]:
    import torch
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    layers = [each for each in loaded.modules() if isinstance(each, torch.nn.Linear)]
    inner = [each for each in layers if each is not loaded.get_output_embeddings()]
    inputs = {each.in_features: torch.rand(SEQUENCES * PROMPT_TOKENS, each.in_features) for each in layers}
    onednn = torch.ops.mkldnn
    packed = {each: onednn._reorder_linear_weight(each.weight.detach(), SEQUENCES) for each in layers}
    kernels: list[Callable[[torch.Tensor, torch.nn.Linear], object]] = [
        lambda rows, each: torch.nn.functional.linear(rows, each.weight, each.bias),
        lambda rows, each: onednn._linear_pointwise(rows, each.weight, each.bias, "none", [], ""),  # our scorer's
        lambda rows, each: onednn._linear_pointwise(rows, packed[each], each.bias, "none", [], ""),
    ]

    @torch.inference_mode()
    def seconds(number: int, of: list[torch.nn.Linear], rows: int) -> float:
        began = time.perf_counter()
        for each in of:
            kernels[number](inputs[each.in_features][:rows], each)
        return time.perf_counter() - began

    best = min(range(len(kernels)), key=lambda number: min(seconds(number, layers, SEQUENCES) for _ in range(3)))

    def ask(prompts: list[list[int]]) -> int:
        seconds(best, inner, sum(map(len, prompts)))
        for _ in range(NEW_TOKENS):
            seconds(best, layers, len(prompts))
        return len(prompts) * NEW_TOKENS

    return ask


def _run(python: str, *words: object, threads: str | None = "1") -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment |= {"OMP_NUM_THREADS": threads} if threads else {}
    if not threads:
        environment.pop("OMP_NUM_THREADS", None)
    done = subprocess.run(
        [python, *map(str, words)], cwd=ROOT, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words))}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout


def known() -> dict[str, dict[str, Any]]:
    """What pieces came to, by their keys."""
    return json.loads(RESULT.read_text())["pieces"] if RESULT.exists() else {}


def show(arguments: argparse.Namespace) -> dict[str, bool]:
    """The tables, and which claims hold of what is there."""
    there = known()
    rows = {}
    for name in dict.fromkeys([*LAGS, *ENGINES]):
        keys = [f"rl, {arguments.steps} steps: {name}, seed {seed}" for seed in range(arguments.seeds)]
        rows[name] = [there[key] for key in keys if key in there]
    made = table(
        f"Accuracy on held-out additions after {arguments.steps} steps, the sibling of three heads",
        "", "seeds", "before", "after", "95% interval", "KL", "sample size", "s a step", "of it waiting",
    )  # fmt: skip
    ended, intervals = {}, {}
    for name, runs in rows.items():
        if not runs:
            continue
        count = sum(each["held_out"] for each in runs)
        right = round(sum(each["after"] * each["held_out"] for each in runs))
        ended[name] = right / count
        low, high = intervals[name] = wilson_interval(right, count)
        shares = [median(each[what] for each in runs) for what in ("kl", "sample_size", "step", "waiting")]
        made.add_row(
            name, str(len(runs)), f"{fmean(each['before'] for each in runs):.1%}", f"{ended[name]:.1%}",
            f"{low:.1%} to {high:.1%}", f"{shares[0]:.3f}", f"{shares[1]:.3f}", f"{shares[2]:.2f}", f"{shares[3]:.2f}",
        )  # fmt: skip
    CONSOLE.print(made)
    rates = table("Sampling, SmolLM2", "", "tokens/s", "tokens a CPU-second")
    for engine in SAMPLED:
        if each := there.get(f"sample: {engine}"):
            rates.add_row(engine, f"{each['per_second']:.0f}", f"{each['per_cpu_second']:.0f}")
    CONSOLE.print(rates)
    claims = {
        f"{name} ends within the interval of lag 0 under transformers, or above it": ended[name]
        >= intervals["lag 0"][0]
        for name in ("lag 1", "vllm")
        if name in ended and "lag 0" in intervals
    }
    ours, other = (there.get(f"sample: {each}") for each in ("transformers, two threads", "vllm, as many as it takes"))
    if ours and other:
        ratio = ours["per_second"] / other["per_second"]
        claims[f"ours on two threads writes at least what vLLM does on as many as it takes: {ratio:.2f} times"] = (
            ratio >= 1
        )
    return claims


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=["lag", "engine", "sample"], default=["lag"])
    parser.add_argument("--vllm", metavar="PYTHON", help="of an environment with vLLM; its pieces are left out without")
    parser.add_argument("--model", default="build/smollm2", help="of `sample`, a folder; default: %(default)s")
    parser.add_argument("--seeds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=100, help="of a run; default: %(default)s")
    parser.add_argument("--held-out", type=int, default=1000, help="problems; default: %(default)s")
    parser.add_argument("--at-most", type=int, default=10**6, help="pieces to run now")
    parser.add_argument("--show", action="store_true", help="run nothing")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(rate(arguments.child, arguments.model)))
        return
    wanted = [] if arguments.show else [each for each in pieces(arguments) if each.key not in known()]
    wanted = [each for each in wanted if arguments.vllm or "vllm" not in each.key]
    for piece in wanted[: arguments.at_most]:
        figures = piece.make()
        CONSOLE.print(f"{piece.key}: {figures}")
        content = {"machine": describe(), "pieces": known() | {piece.key: figures}}
        documents.write_bytes(str(RESULT), (json.dumps(content, indent=2) + "\n").encode())
    verdict(show(arguments))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
