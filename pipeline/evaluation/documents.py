"""The documents of an evaluation's directory: whose it is, and its results."""

from typing import Any

from pydantic import Field, field_validator

from pipeline.store import typed
from pipeline.store.manifest import BatchCheckEntry, InputEntry

Interval = list[float]  # 95%: its two ends


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
    examples: list[str]


class SetFigure(typed.Entry):
    """The main figure of one set of a benchmark alone."""

    items: int
    value: float
    interval: Interval


class Curve(typed.Entry):
    """Best-of-n: the mean score of the response that is picked out of `n`, for each of some n."""

    n: list[int]
    score: list[float]  # of the reward's pick
    oracle: list[float] | None = None  # of the best
    random: float | list[float] | None = None

    def line(self, kind: str) -> list[float]:
        """`score`, `oracle` or `random`, a value for each n; empty where it is not known."""
        values: float | list[float] | None = getattr(self, kind)
        if values is None:
            return []
        return values if isinstance(values, list) else [values] * len(self.n)


class Matrix(typed.Entry):
    """A table of shares in [0, 1] to be drawn as a heat map; `values[row][column]`, None where there is none."""

    title: str
    said: str  # a sentence: what a row, a column and a bright cell mean
    row_name: str
    column_name: str
    rows: list[str]
    columns: list[str]
    values: list[list[float | None]]


class PairAccuracy(typed.Entry):
    """Over some pairs; without any, the accuracy and its interval are None."""

    pairs: int
    accuracy: float | None
    interval: Interval | None


class Lengths(typed.Entry):
    """From `low` to `high` tokens of the chosen response more than of the rejected."""

    low: int
    high: int


class LengthGroup(PairAccuracy, Lengths):  # a document has the fields of the last class first
    """Pairs of a like difference in length."""


class ControlledAccuracy(typed.Entry):
    """At equal length: `pipeline.evaluation.bias.controlled_accuracy`."""

    accuracy: float
    interval: Interval


class Gap(typed.Entry):
    """One accuracy less another."""

    difference: float
    interval: Interval


class MarkdownBias(typed.Entry):
    """What Markdown marks have to do with the reward; over the pairs that differ in them."""

    chosen_mean: float  # marks of a chosen response, over all pairs
    rejected_mean: float
    pairs: int
    more_marks_win: float | None
    more_marks_is_chosen: float | None
    accuracy_chosen_more: float | None
    accuracy_chosen_fewer: float | None
    gap: Gap | None
    reward_marks_correlation: float | None


class Bias(typed.Entry):
    """What length and Markdown have to do with the reward (`pipeline.evaluation.bias.bias`)."""

    pairs: int
    items: int
    ties: int
    accuracy: float | None
    interval: Interval | None
    reward_length_correlation: float | None
    margin_length_correlation: float | None
    unequal_pairs: int
    unequal_ties: int
    longer_wins: float | None
    longer_is_chosen: float | None
    chosen_longer: PairAccuracy
    chosen_shorter: PairAccuracy
    same_length: PairAccuracy
    length_gap: Gap | None
    deciles: list[LengthGroup]
    length_controlled: ControlledAccuracy | None
    markdown: MarkdownBias | None
    summary: list[str]


class Judgements(typed.Entry):
    """How a judge did: responses, or for a pairwise judge pairs, that it was asked about, could not be read on, and
    disagreed with itself on (or saw a tie in; None of a judge of single responses)."""

    asked: int
    unparsable: int
    disagree: int | None


class RewardEntry(typed.Entry):
    """The figures of one reward; docs/evaluation.md says how each is made."""

    name: str
    reward: str
    about: str
    model: str
    values: dict[str, float | None]
    intervals: dict[str, Interval]
    sets: dict[str, SetFigure]
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
    details: dict[str, Any]  # the benchmark's own
    matrices: list[Matrix]
    notes: list[str]
    bias: Bias | None
    batch_check: BatchCheckEntry | None
    judgements: Judgements | None

    @field_validator("details")
    @classmethod
    def _with_a_curve(cls, details: dict[str, Any]) -> dict[str, Any]:
        if "curve" in details:
            Curve.model_validate(details["curve"])
        return details

    @property
    def curve(self) -> Curve | None:
        """Of the details of best-of-n."""
        drawn = self.details.get("curve")
        return None if drawn is None else Curve.model_validate(drawn)


class Comparison(typed.Entry):
    """Two rewards on the same items: `difference` of the figure, first less second, with its 95% interval."""

    first: str
    second: str
    figure: str
    difference: float
    interval: Interval
    p_value: float
    p_holm: float
    items: int


class PictureControl(typed.Entry):
    """The first reward with the picture (`given`), with a grey one of the same size and with another row's
    (`pipeline.evaluation.pictures`)."""

    items: int
    pairs: int
    accuracy: dict[str, float]
    intervals: dict[str, Interval]
    explained: dict[str, Gap]  # accuracy with the picture less that with `grey` and with `other`
    margin: dict[str, float]  # mean over the pairs


class Results(typed.Document):
    """`results.json`. Beside these fields it holds the figures and details of the first reward, by the benchmark's names."""

    benchmark: str
    about: str
    chance: float | None = None  # the main figure of a reward that knows nothing
    rewards: list[RewardEntry]
    failed: dict[str, str] = Field(default_factory=dict)
    comparisons: list[Comparison] = Field(default_factory=list)
    pictures: PictureControl | None = None  # where the control was asked for
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
        if self.pictures is None:
            content.pop("pictures", None)
        figures = {name: content.pop(name) for name in self.model_extra or {}}
        return {**first, **figures, **content}
