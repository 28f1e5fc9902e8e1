"""How fast is a policy sampled from? `Generator` against transformers' own `generate`, side by side in one run.

    python benchmarks/sampling.py [--model FOLDER]      # SmolLM2-135M by ../shared/models/get_smollm2.py; else a random model

The same prompts, batch and lengths, at temperature 1 in float32. CASES says of what shape: nothing ends before its limit,
groups that share a prompt, and lengths spread as answers' are. Writes benchmarks/results/sampling.json. Minutes on two cores;
exits with 1 where a bound is missed.
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from machine import CONSOLE, ROOT, describe, table, verdict

from pipeline.models.generation import Generator
from pipeline.models.questions import Question

RESULT = ROOT / "benchmarks/results/sampling.json"


@dataclass(frozen=True)
class Case:
    """`prompts` x `samples` sequences: prompts of `prompt_tokens`, answers of `new_tokens` at most."""

    prompts: int
    samples: int
    prompt_tokens: int
    new_tokens: int
    ending: float = 0.0  # chance that a token ends its answer
    bound: float = 1.0  # least ratio of tokens per CPU-second, with room for what else the machine does


CASES = {
    "64 prompts, 1 answer each": Case(64, 1, 40, 64, bound=1.0),
    "8 prompts of 160, 8 answers each": Case(8, 8, 160, 32, bound=2.0),
    "answers that end by chance": Case(8, 8, 40, 96, ending=1 / 24, bound=2.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a folder with a causal LM; a random one of SmolLM2's shape without")
    parser.add_argument("--rounds", type=int, default=2, help="the best of so many is taken")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = _model(arguments.model)
    shown = table("Tokens a CPU-second", "", "generate", "Generator", "ratio", "wall ratio")
    figures: dict[str, dict[str, float]] = {}
    for name, case in CASES.items():
        figures[name] = _compare(model, case, arguments.rounds)
        row = figures[name]
        shown.add_row(
            name, f"{row['transformers']:.0f}", f"{row['generator']:.0f}", f"{row['ratio']:.2f}", f"{row['wall']:.2f}"
        )
    CONSOLE.print(shown)
    RESULT.parent.mkdir(exist_ok=True)
    document = {"machine": describe(), "model": arguments.model.name if arguments.model else "random", "cases": figures}
    RESULT.write_text(json.dumps(document, indent=2) + "\n")
    verdict({f"{name}: at least {case.bound}": figures[name]["ratio"] >= case.bound for name, case in CASES.items()})


def _model(folder: Path | None) -> torch.nn.Module:
    if folder is not None:
        return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    shape = transformers.LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=2048, tie_word_embeddings=True,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(shape).eval()


def _compare(model: torch.nn.Module, case: Case, rounds: int) -> dict[str, float]:
    numbers = np.random.default_rng(0)
    prompts = numbers.integers(100, 40_000, (case.prompts, case.prompt_tokens)).tolist()
    ends = _ends(case, model.config.vocab_size)
    sides = {
        "transformers": lambda: _transformers(model, case, prompts, ends),
        "generator": lambda: _generator(model, case, prompts, ends),
    }
    cpu, wall = dict.fromkeys(sides, 0.0), dict.fromkeys(sides, 0.0)
    for _, (name, side) in itertools.product(range(rounds), sides.items()):
        tokens, cpu_s, wall_s = _timed(side)
        cpu[name], wall[name] = max(cpu[name], tokens / cpu_s), max(wall[name], tokens / wall_s)
    ratios = {"ratio": cpu["generator"] / cpu["transformers"], "wall": wall["generator"] / wall["transformers"]}
    return {name: round(value, 3) for name, value in (cpu | ratios).items()}


def _ends(case: Case, vocabulary: int) -> list[int]:
    """Tokens that end an answer. A model of random weights takes each of all tokens with about equal chance."""
    return list(range(100, 100 + round(vocabulary * case.ending)))


def _timed(side: Callable[[], int]) -> tuple[int, float, float]:
    started, began = time.process_time(), time.perf_counter()
    tokens = side()
    return tokens, time.process_time() - started, time.perf_counter() - began


def _generator(model: torch.nn.Module, case: Case, prompts: list[list[int]], ends: list[int]) -> int:
    generator = Generator(
        model, _Tokenizer(), max_new_tokens=case.new_tokens, temperature=1.0, budget_tokens=2**40, logprobs=True
    )
    generator.end_tokens = ends
    questions = [Question(prompt, case.samples, seed) for seed, prompt in enumerate(prompts)]
    return sum(len(each.token_ids) for answers in generator.generate(questions) for each in answers)


@torch.inference_mode()
def _transformers(model: torch.nn.Module, case: Case, prompts: list[list[int]], ends: list[int]) -> int:
    """Tokens until an answer's end. The log-probabilities that `Generator` gives are not asked for."""
    ids = torch.tensor(prompts).repeat_interleave(case.samples, 0)
    settings = transformers.GenerationConfig(
        max_new_tokens=case.new_tokens, do_sample=True, top_k=0, top_p=1.0, eos_token_id=ends or None, pad_token_id=0
    )
    out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)[:, ids.shape[1] :]
    ended = torch.isin(out, torch.tensor(ends or [-1])).cumsum(1)
    return int((ended - torch.isin(out, torch.tensor(ends or [-1])).long() == 0).sum())


class _Tokenizer:
    """Texts are not asked for."""

    eos_token_id = None
    model_max_length = 2**30

    def decode(self, ids: list[int], **_: object) -> str:
        return ""


if __name__ == "__main__":
    main()
