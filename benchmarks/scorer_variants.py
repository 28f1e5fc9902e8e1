"""Other ways to run the scorer on a CPU, beside the one that it takes: CPU seconds of the same responses, in turns.

    python benchmarks/scorer_variants.py [--model FOLDER] [--shape rm-bench] [--prompts 4] [--repeats 3]

bfloat16 (`model.dtype`), which processors with avx512_bf16 or AMX multiply faster, and the decoder's layers under
`torch.compile`, warm: what it takes to make each and pass once is a column, by the clock. Beside the seconds stands what each
moves: nats a token against float32, and the share of responses of one prompt, two by two, whose order under `sum` is another.
Without a model the weights are random, of SmolLM2-135M's shape, and what moves says little. Needs a C++ compiler for
`torch.compile`.
"""

import argparse
import copy
import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from compiled import compile_layers
from machine import CONSOLE, table
from scorer_speed import MODELS, build
from shapes import SHAPES, Group

from pipeline.models.scoring import Scorer
from pipeline.tokens import TokenizedTurn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", type=Path, help="a folder; for SmolLM2-135M-Instruct see ../shared/models/get_smollm2.py"
    )
    parser.add_argument("--shape", choices=SHAPES, default="rm-bench")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    model = (
        transformers.AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
        if arguments.model
        else build(*next(iter(MODELS.values())))
    )
    groups = SHAPES[arguments.shape].draw(arguments.prompts, model.config.vocab_size)
    if arguments.model:  # what a model may have to say, rather than noise
        groups = written(model, groups)
    turns = [TokenizedTurn(group.prompt, each, []) for group in groups for each in group.responses]  # type: ignore[arg-type]
    models = {
        "float32": lambda: model,
        "bfloat16": lambda: copy.deepcopy(model).to(torch.bfloat16),
        "float32, layers compiled": lambda: compile_layers(copy.deepcopy(model)),
    }
    scorers, first, rewards = {}, {}, {}
    for name, make in models.items():
        begun = time.perf_counter()
        scorers[name] = Scorer(make())  # a compiled one's probe compiles it
        rewards[name] = timed(scorers[name], turns)[1]
        first[name] = time.perf_counter() - begun
    seconds: dict[str, list[float]] = {name: [] for name in scorers}
    for _ in range(arguments.repeats):
        for name, scorer in scorers.items():
            seconds[name].append(timed(scorer, turns)[0])
    tokens = sum(len(turn.response_ids) for turn in turns)
    shown = table(
        f"{len(turns)} responses of {tokens / len(turns):.0f} tokens ({arguments.shape}), {arguments.model or 'random'}",
        "variant", "CPU s", "of float32", "first, by the clock", "nats a token", "other order",
    )  # fmt: skip
    for name in scorers:
        own = min(seconds[name])
        moved = np.concatenate([a - b for a, b in zip(rewards[name], rewards["float32"], strict=True)])
        shown.add_row(
            name, f"{own:.1f}", f"{own / min(seconds['float32']):.2f}", f"{first[name]:.1f}",
            f"{np.sqrt(np.mean(moved**2)):.1e}", f"{reordered(groups, rewards[name], rewards['float32']):.1%}",
        )  # fmt: skip
    CONSOLE.print(shown)


def written(model: Any, groups: list[Group]) -> list[Group]:
    """The same lengths, as the model continues the prompts at temperature 1."""
    torch.manual_seed(0)
    drawn = []
    for group in groups:
        longest = max(map(len, group.responses))
        prompt = torch.tensor([group.prompt] * len(group.responses))
        with torch.inference_mode():
            ids = model.generate(prompt, max_new_tokens=longest, min_new_tokens=longest, do_sample=True, top_k=0)
        rows = ids[:, len(group.prompt) :].tolist()
        drawn.append(Group(group.prompt, [row[: len(each)] for row, each in zip(rows, group.responses, strict=True)]))
    return drawn


def timed(scorer: Scorer, turns: list[TokenizedTurn]) -> tuple[float, list[Any]]:
    """CPU seconds, and the log-probabilities of each response's tokens."""
    begun = time.process_time()
    scores = scorer.score(turns)
    return time.process_time() - begun, [each.logprobs for each in scores]  # type: ignore[union-attr]


def reordered(groups: list[Group], rewards: list[Any], others: list[Any]) -> float:
    """The share of pairs of one prompt's responses whose sums are ordered otherwise."""
    numbers = itertools.count()
    pairs = [pair for group in groups for pair in itertools.combinations([next(numbers) for _ in group.responses], 2)]
    one, other = ([values[i].sum() > values[j].sum() for i, j in pairs] for values in (rewards, others))
    return float(np.mean(np.array(one) != np.array(other)))


if __name__ == "__main__":
    main()
