"""The documents of an evaluation's directory: whose it is, and its results."""

from typing import Any

from pydantic import Field

from pipeline.store import typed
from pipeline.store.manifest import InputEntry


class EvaluationRun(typed.Document):
    """`evaluation.json`: what makes the directory this evaluation's, and the one date of all its rewards."""

    benchmark: str
    inputs: list[str]  # names of files
    labels: str | None = None  # the store of --labels
    date: str | None = None

    def differences(self, other: "EvaluationRun") -> list[str]:
        """A line for each thing that makes `other` another evaluation."""
        names = ("benchmark", "inputs", "labels")
        pairs = [(name, getattr(self, name), getattr(other, name)) for name in names]
        return [f"{name}: {standing!r}, now {wanted!r}" for name, standing, wanted in pairs if standing != wanted]


class Incomplete(typed.Entry):
    """Items that lost a response, by reason, and some of them."""

    items: int
    reasons: dict[str, int]
    examples: list[Any]


class RewardEntry(typed.Entry):
    """The figures of one reward; docs/evaluation.md says how each is made."""

    name: str
    reward: str
    about: str
    model: str
    values: dict[str, float | None]
    intervals: dict[str, list[float]]
    sets: Any
    items: int
    incomplete: Incomplete
    ties: int
    comparisons: int
    tie_rule: str
    responses: int
    truncated: int
    tokens: int
    seconds: float | None
    forwarded_tokens: int | None
    seconds_per_thousand_pairs: float | None
    details: dict[str, Any]
    matrices: list[dict[str, Any]]
    notes: list[str]
    bias: dict[str, Any] | None
    batch_check: dict[str, Any] | None
    judgements: dict[str, Any] | None


class Comparison(typed.Entry):
    """Two rewards on the same items: `difference` of the figure, first less second, with its 95% interval."""

    first: str
    second: str
    figure: str
    difference: float
    interval: list[float]
    p_value: float
    p_holm: float
    items: int


class Results(typed.Document):
    """`results.json`. Beside these fields it holds the figures and details of the first reward, by the benchmark's names."""

    benchmark: str
    about: str
    chance: Any = None
    rewards: list[RewardEntry]
    failed: dict[str, str] = Field(default_factory=dict)
    comparisons: list[Comparison] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    config: dict[str, Any]
    fingerprints: dict[str, str] = Field(default_factory=dict)
    inputs: list[InputEntry] = Field(default_factory=list)
    versions: dict[str, str] = Field(default_factory=dict)
    created: str
    command: str = ""

    def content(self) -> dict[str, Any]:
        """The figures stand before what they rest on."""
        content = super().content()
        first = {name: content.pop(name) for name in ("version", "benchmark", "about")}
        figures = {name: content.pop(name) for name in self.model_extra or {}}
        return {**first, **figures, **content}
