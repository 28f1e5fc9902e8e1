"""Three-digit column addition with its steps written out: problems, right and wrong worked answers, and a checker.

A worked answer takes the columns from the right, each as digit + digit + carry = two-digit total (the next carry, then
the digit to write down), and ends with the sum. There is nothing in it but digits and `+`, `=`, `;`:

    prompt   345+678=
    right    5+8+0=13;4+7+1=12;3+6+1=10;1023
    wrong    5+8+0=13;4+7+1=02;3+6+0=09;923      one total is wrong, and what follows is consistent with it

Everything is a function of a seed. Whether a problem is held out depends on nothing but its two numbers, in either
order, so no seed can put a training problem among the held-out ones.

Left out: other lengths, other operations, and other kinds of error, such as a digit copied wrongly.
"""

import argparse
import json
import random
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

COLUMNS = 3
TOTALS = range(20)  # a column adds two digits and a carry: 0 to 19
ERROR_RATE = 1 / 3
MOST_DISTINCT = 50_000  # of about 81,000 held-out problems; drawing distinct ones gets slow only near the end


class Problem(NamedTuple):
    a: int
    b: int

    @property
    def prompt(self) -> str:
        return f"{self.a}+{self.b}="

    @property
    def answer(self) -> str:
        return str(self.a + self.b)

    @property
    def held_out(self) -> bool:
        """True for a tenth of all problems, and for b+a whenever for a+b."""
        return zlib.crc32(f"{min(self)}+{max(self)}".encode()) % 10 == 0


def parse(prompt: str) -> Problem:
    """The problem of a prompt: `parse(problem.prompt) == problem`."""
    a, b = prompt.removesuffix("=").split("+")
    return Problem(int(a), int(b))


def problem_stream(seed: int, held_out: bool) -> Iterator[Problem]:
    """Endless problems of one of the two sets, with repetitions."""
    rng = random.Random(f"problems {seed}")
    while True:
        problem = Problem(rng.randint(100, 999), rng.randint(100, 999))
        if problem.held_out == held_out:
            yield problem


def distinct_problems(count: int, seed: int, held_out: bool = True) -> list[Problem]:
    """The first `count` different problems of the stream."""
    if not 0 <= count <= MOST_DISTINCT:
        raise ValueError(f"count must be from 0 to {MOST_DISTINCT}, not {count}")
    found: dict[Problem, None] = {}
    stream = problem_stream(seed, held_out)
    while len(found) < count:
        found[next(stream)] = None
    return list(found)


def work(problem: Problem, wrong_column: int | None = None, wrong_total: int = 0) -> str:
    """The worked answer; with `wrong_column` (0 is the rightmost) that column comes to `wrong_total`."""
    steps, carry, result = [], 0, 0
    for column in range(COLUMNS):
        x, y = problem.a // 10**column % 10, problem.b // 10**column % 10
        total = wrong_total if column == wrong_column else x + y + carry
        steps.append(f"{x}+{y}+{carry}={total:02d}")
        carry, digit = divmod(total, 10)
        result += digit * 10**column
    return ";".join([*steps, str(result + carry * 10**COLUMNS)])


def right_answer(problem: Problem) -> str:
    return work(problem)


def wrong_answer(problem: Problem, rng: random.Random) -> str:
    """One wrong step: a random column with a random other total. The sum is then off by the error times 10**column."""
    column = rng.randrange(COLUMNS)
    below = 10**column
    right_total = problem.a // below % 10 + problem.b // below % 10 + (problem.a % below + problem.b % below) // below
    return work(problem, column, rng.choice([total for total in TOTALS if total != right_total]))


def demonstration(problem: Problem, rng: random.Random, error_rate: float = ERROR_RATE) -> str:
    """What an expert who errs in a share `error_rate` of the answers writes."""
    return wrong_answer(problem, rng) if rng.random() < error_rate else right_answer(problem)


def is_correct(problem: Problem, text: str) -> bool:
    """Whether the final answer, what follows the last `;`, is the sum; the steps are not looked at."""
    return text.rpartition(";")[2].strip() == problem.answer


def right(prompts: Sequence[str], completions: Sequence[str], **columns: object) -> list[float]:
    """`is_correct` as a reward of `endoreward rl`: 1 or 0 for each answer."""
    return [float(is_correct(parse(p), answer)) for p, answer in zip(prompts, completions, strict=True)]


def pair_rows(count: int, seed: int, held_out: bool = True) -> Iterator[dict[str, str]]:
    rng = random.Random(f"errors {seed}")
    for problem in distinct_problems(count, seed, held_out):
        yield {"prompt": problem.prompt, "chosen": right_answer(problem), "rejected": wrong_answer(problem, rng)}


def problem_rows(count: int, seed: int, held_out: bool = True) -> Iterator[dict[str, str]]:
    for problem in distinct_problems(count, seed, held_out):
        yield {"prompt": problem.prompt, "answer": problem.answer}


def main() -> None:
    parser = argparse.ArgumentParser(description="Write rows of three-digit column addition as JSON lines.")
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--pairs", type=int, metavar="N", help="N rows of prompt, chosen, rejected")
    kind.add_argument("--problems", type=int, metavar="N", help="N rows of prompt, answer (the sum)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--split", choices=["held-out", "train"], default="held-out", help="default: %(default)s")
    parser.add_argument("--output", required=True, help="the JSON Lines file to write")
    args = parser.parse_args()
    count, make_rows = (args.problems, problem_rows) if args.pairs is None else (args.pairs, pair_rows)
    if not 0 <= count <= MOST_DISTINCT:
        parser.error(f"N must be from 0 to {MOST_DISTINCT}")
    with open(args.output, "w", encoding="utf-8") as file:
        for row in make_rows(count, args.seed, args.split == "held-out"):
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
