"""A policy's own answers to questions, checked by a rule: each sample is a label whose reward is 1 if it is right, else 0."""

from dataclasses import dataclass, field
from typing import Any, Protocol

from pipeline.config import AnswersConfig, EvaluateConfig
from pipeline.corpus import Shape
from pipeline.corpus.columns import jsonable
from pipeline.corpus.samples import Message, Turn
from pipeline.models.questions import Completion
from pipeline.rewards.answers import extract_and_check
from pipeline.rewards.labellers.sampling import Asked, Sampling


class Questions(Protocol):
    """A benchmark of questions with a right answer each."""

    @property
    def name(self) -> str: ...

    def question(self, row: dict[str, Any]) -> str:
        """Raises RowError."""

    def gold(self, row: dict[str, Any]) -> str:
        """The right answer. Raises RowError."""


@dataclass(frozen=True)
class MathsAnswerer(Sampling):
    """`answers.samples` answers to every question of a maths benchmark."""

    config: EvaluateConfig
    benchmark: Questions = field(kw_only=True)

    name = "policy"

    @property
    def drawn(self) -> AnswersConfig:
        return self.config.answers

    @property
    def answers(self) -> int:
        return self.config.answers.samples

    def settings(self) -> dict[str, Any]:
        answers = {f"answers.{name}": value for name, value in self.config.answers.model_dump().items()}
        return {"benchmark": self.benchmark.name, **answers}

    def asked(self, file: str, number: int, row: dict[str, Any], shape: Shape) -> Asked:
        question, gold = self.benchmark.question(row), self.benchmark.gold(row)
        text = "\n\n".join(filter(None, [question, self.config.answers.instruction]))
        conversational = self.renderer.template is not None
        return Asked([Message(role="user", content=text)], conversational, {**jsonable(row), "gold": gold})

    def judged(self, turn: Turn, completion: Completion) -> tuple[float, dict[str, Any]]:
        checked = extract_and_check(completion.text, turn.extra["gold"], self.rendering.opens_thoughts)
        unchecked = {"unchecked": True} if checked.unchecked else {}
        return float(checked.correct), {"extracted": checked.extracted, **unchecked}
