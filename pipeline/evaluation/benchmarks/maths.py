r"""Maths questions that a policy answers itself: the share of its samples whose final answer is the right one.

With n samples of which c are right, the unbiased estimate of the chance that one of k is right (Chen et al. 2021,
arXiv 2107.03374, section 2.1) is

    pass@k = mean over questions of 1 - C(n-c, k) / C(n, k)

and pass@1 is the mean of c/n. majority@n takes the answer that most samples gave (Wang et al. 2022, arXiv 2203.11171);
answers as often given share it equally, samples without an answer have no vote. Answers are told apart by their
spelling, so 1/2 and 2^{-1} may be two.
"""

from collections import defaultdict
from collections.abc import Sequence
from math import comb
from typing import Any, ClassVar

import numpy as np

from pipeline.config import EvaluateConfig, InputConfig
from pipeline.corpus import Choice, Shape
from pipeline.corpus.columns import RawRow, has, lookup
from pipeline.corpus.messages import to_text
from pipeline.errors import ConfigError, InputError, RowError
from pipeline.evaluation.benchmarks.base import Benchmark, item_name
from pipeline.evaluation.benchmarks.figures import Array, Figures
from pipeline.evaluation.benchmarks.items import Item
from pipeline.rewards.answers import final_answer, unchecked_note

GROUPS = ("level", "subject", "type")  # columns by which the figures are also told


class Maths(Benchmark):
    """A subclass names the columns of a published layout: the first of `questions` and of `answers` that a row has."""

    knows_preferences = False
    questions: ClassVar[tuple[str, ...]]
    answers: ClassVar[tuple[str, ...]]

    def requires(self, config: EvaluateConfig) -> None:
        if config.evaluate.labels or "rewards" in config.evaluate.model_fields_set:
            raise ConfigError(f"{self.name} asks a policy for answers: give --model, and neither --reward nor --labels")
        if not config.model.name:
            raise ConfigError(f"{self.name} asks a policy for answers: give --model")

    def shape(self, head: Sequence[RawRow], config: InputConfig, file: str) -> Shape:
        """The question alone: responses are made, not read. Raises InputError that names file and missing field."""
        self.check_layout(head, file)
        return Shape((), prompt=next((name for name in self.questions if head and name in head[0]), self.questions[0]))

    def check_layout(self, head: Sequence[RawRow], file: str) -> None:
        """Raises InputError, naming file and missing field, unless each of a file's first rows has what is needed."""
        if not head:
            raise InputError(
                f"{file}: not one row is a JSON object; if the file is one array, say --set input.format=json"
            )
        for row in head:
            for names in (self.questions, self.answers):
                if not any(has(row, name) for name in names):
                    raise InputError(
                        f"{file}: not the layout of {self.name}: a row has no field {' or '.join(map(repr, names))} "
                        f"(it has {', '.join(sorted(map(str, row)))}); give the file that its authors publish"
                    )

    def question(self, row: RawRow) -> str:
        """Raises RowError: missing_column, null, not_text, lone_surrogate, empty_prompt."""
        name, value = _first(row, self.questions)
        text = to_text(value, f"column {name!r}")
        if not text.strip():
            raise RowError("empty_prompt", f"column {name!r} is empty; a question is due")
        return text

    def gold(self, row: RawRow) -> str:
        r"""The right answer: of a solution, what it boxes or puts behind `####`. Raises RowError: missing_column, null,
        no_gold."""
        name, value = _first(row, self.answers)
        if isinstance(value, list) and value:
            return ", ".join(_answer(each, name) for each in value)
        return _answer(value, name)

    def check(self, item: Item) -> str | None:
        wrong = next((answer.reward for answer in item.others if answer.reward not in (0.0, 1.0)), None)
        if wrong is not None:
            return f"a sample has the reward {wrong:g}; 1 for a right answer and 0 for a wrong one are due"
        return None if item.others else "it has no samples"

    def figures(self, items: Sequence[Item]) -> Figures:
        counts = [len(item.others) for item in items]
        rights = [sum(answer.reward == 1.0 for answer in item.others) for item in items]
        sizes = [2**power for power in range(min(counts).bit_length())]
        scores = {f"pass@{k}": np.array([pass_at(k, n, c) for n, c in zip(counts, rights, strict=True)]) for k in sizes}
        if min(counts) == max(counts) > 1 and all("extracted" in a.extra for item in items for a in item.others):
            scores[f"majority@{counts[0]}"] = np.array([_majority(item) for item in items])
        unfinished = sum(answer.truncated for item in items for answer in item.others)
        notes = []
        if unfinished:
            notes.append(
                f"{unfinished} of {sum(counts)} answers were cut off at their longest length, most of them before their "
                "final answer; raise answers.max_new_tokens"
            )
        unchecked = sum(bool(answer.extra.get("unchecked")) for item in items for answer in item.others)
        if unchecked:
            notes.append(unchecked_note(unchecked, sum(counts)))
        return Figures(
            values={name: float(each.mean()) for name, each in scores.items()},
            items=[item_name(item) for item in items],
            scores=scores,
            strata=np.zeros(len(items), np.int64),
            weights=np.ones(1),
            sizes=np.ones(len(items)),
            details={
                "samples": {"fewest": min(counts), "most": max(counts)},
                "unfinished": unfinished / sum(counts),
                **{f"by_{group}": found for group in GROUPS if (found := _by(group, items, scores["pass@1"]))},
            },
            notes=notes,
        )


def pass_at(k: int, n: int, c: int) -> float:
    """The chance that k of n samples, drawn without replacement, hold one of the c right ones; k <= n."""
    return 1 - comb(n - c, k) / comb(n, k)


def _majority(item: Item) -> float:
    votes: dict[str, list[float]] = defaultdict(list)
    for answer in item.others:
        if answer.extra["extracted"] is not None:
            votes[answer.extra["extracted"]].append(answer.reward)
    most = max(map(len, votes.values()), default=0)
    return float(np.mean([np.mean(group) for group in votes.values() if len(group) == most])) if votes else 0.0


def _by(group: str, items: Sequence[Item], scores: Array) -> dict[str, Any]:
    names = [item.extra.get(group) for item in items]
    if any(name is None for name in names):
        return {}
    values = np.array([str(name) for name in names])
    return {
        str(name): {"pass@1": float(scores[values == name].mean()), "items": int((values == name).sum())}
        for name in np.unique(values)
    }


def _first(row: RawRow, names: Sequence[str]) -> tuple[str, Any]:
    name = next((name for name in names if has(row, name)), names[0])
    return name, lookup(row, name)


def _answer(value: Any, name: str) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    text = to_text(str(value) if isinstance(value, float) else value, f"column {name!r}")
    answer = final_answer(text)
    if answer is None and name != "solution":
        answer = text.strip()
    if not answer:
        raise RowError("no_gold", rf"column {name!r} shows no right answer: no \boxed{{}}, no ####, or nothing in it")
    return answer


class Gsm8k(Maths):
    name = "gsm8k"
    about = "GSM8K: grade-school word problems answered by the policy; pass@1"
    source = "hf://datasets/openai/gsm8k/main/test-00000-of-00001.parquet"
    choice = Choice(config="main", split="test")
    questions = ("question",)
    answers = ("answer",)


class Hendrycks(Maths):
    name = "math"
    about = "MATH (Hendrycks et al. 2021): competition problems answered by the policy; pass@1, by level and type"
    source = "hf://datasets/EleutherAI/hendrycks_math/*/test-*.parquet"
    choice = Choice(config="*", split="test")
    questions = ("problem",)
    answers = ("solution",)


class Math500(Maths):
    name = "math-500"
    about = "MATH-500: 500 problems of MATH answered by the policy; pass@1, by level and subject"
    source = "hf://datasets/HuggingFaceH4/MATH-500/test.jsonl"
    choice = Choice(split="test")
    questions = ("problem",)
    answers = ("answer", "solution")


class Aime2024(Maths):
    name = "aime-2024"
    about = "AIME 2024: 30 problems with whole numbers as answers, by the policy; pass@1"
    source = "hf://datasets/HuggingFaceH4/aime_2024/data/train-00000-of-00001.parquet"
    questions = ("problem", "Problem")
    answers = ("answer", "Answer")


class Amc(Maths):
    name = "amc"
    about = "AMC: competition problems with numbers as answers, by the policy; pass@1"
    source = "hf://datasets/math-ai/amc23"
    choice = Choice(split="test")
    questions = ("problem", "question")
    answers = ("answer",)


class Minerva(Maths):
    name = "minerva"
    about = "Minerva Math (Lewkowycz et al. 2022): undergraduate problems in science, by the policy; pass@1"
    source = "hf://datasets/math-ai/minervamath"
    choice = Choice(split="test")
    questions = ("question", "problem")
    answers = ("answer", "solution")


class OlympiadBench(Maths):
    name = "olympiadbench"
    about = "OlympiadBench: problems of olympiads, by the policy; pass@1"
    source = "hf://datasets/math-ai/olympiadbench"
    choice = Choice(split="test")
    questions = ("question", "problem")
    answers = ("final_answer", "answer")


MATHS: dict[str, Maths] = {
    benchmark.name: benchmark
    for benchmark in (Gsm8k(), Hendrycks(), Math500(), Aime2024(), Amc(), Minerva(), OlympiadBench())
}
