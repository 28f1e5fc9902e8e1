"""Share of held-out additions that a policy answers right at temperature 1, one answer each, with a 95% interval.

    python examples/addition/accuracy.py --problems 2000 examples/addition/model out/demo-policy/hf

The interval is Wilson's, and covers chance in the problems and in the samples, not in the training. Every policy gets the
same problems, and the same random numbers for each.
"""

import argparse
from collections.abc import Sequence

import torch
from problems import distinct_problems, is_correct
from rich.console import Console
from rich.table import Table

from pipeline.config import ModelConfig
from pipeline.errors import RowError
from pipeline.models.generation import Generator
from pipeline.models.loading import load_model, load_tokenizer
from pipeline.models.questions import Question
from pipeline.store.summary import wilson_interval

SEED = 3  # of the held-out problems; those that are labelled come from the training problems
LONGEST = 48  # tokens of an answer


def right_answers(model: str, count: int) -> int:
    """How many of `count` held-out problems the policy gets right."""
    config = ModelConfig(name=model)
    tokenizer = load_tokenizer(config)
    generator = Generator(load_model(config, "cpu"), tokenizer, max_new_tokens=LONGEST, temperature=1.0)
    problems = distinct_problems(count, SEED)
    questions = [Question(tokenizer(p.prompt)["input_ids"], 1, seed) for seed, p in enumerate(problems)]
    right = 0
    for problem, answer in zip(problems, generator.generate(questions), strict=True):
        if isinstance(answer, RowError):
            raise answer
        right += is_correct(problem, answer[0].text)
    return right


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Accuracy of policies on held-out additions, at temperature 1.")
    parser.add_argument("models", nargs="+", metavar="MODEL", help="model folders")
    parser.add_argument("--problems", type=int, default=2000, help="how many; default: %(default)s")
    args = parser.parse_args(words)
    torch.set_num_threads(1)  # models this small are slower on more
    table = Table("policy", "accuracy", "95% interval", title=f"{args.problems:,} held-out additions", box=None)
    for model in args.models:
        right = right_answers(model, args.problems)
        low, high = wilson_interval(right, args.problems)
        table.add_row(model, f"{right / args.problems:.1%}", f"{low:.1%} to {high:.1%}")
    Console().print(table)


if __name__ == "__main__":
    main()
