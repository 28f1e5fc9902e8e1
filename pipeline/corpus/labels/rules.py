"""How a corpus says which response is better: a rule is part of a file's shape, and is stored with it.

    ByValue   a column names the better response, or the one column of several that holds 1 does
    ByGrade   a number on a scale: above a threshold one response is better, below it the other
    ByScores  a score or a rank of each response; pairs of them only where that is asked for

What a value means is stated by the configuration, proven by the names of the columns, or known of a published layout;
`pipeline.corpus.labels.meaning` makes rules and refuses what is none of these. A value that a rule does not know makes its row
an error, never a preference.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pipeline.corpus import columns
from pipeline.corpus.columns import RawRow
from pipeline.corpus.labels.words import TIE, TIES, as_number, squash, tokens, word
from pipeline.corpus.ranking import MARGIN, RANK, SCORE
from pipeline.corpus.samples import Preference
from pipeline.errors import RowError

PairsFrom = Literal["best_worst", "best_rest", "threshold", "all"]


@dataclass(frozen=True)
class Decision:
    """What one row's label says. A response that is not in `preferences` is neither chosen nor rejected."""

    preferences: Mapping[str, Preference]  # by the response's name
    because: str = ""  # in words, for people
    extra: dict[str, Any] = field(default_factory=dict)  # of the row
    of_response: Mapping[str, dict[str, Any]] = field(default_factory=dict)  # of each response


@dataclass(frozen=True)
class ByValue:
    """The value of a column names the better response: the one it names is chosen, all others are rejected."""

    columns: tuple[str, ...]  # several: one of them holds 1, the others 0
    meanings: tuple[tuple[str, str], ...]  # word -> a response's name, or TIE
    why: str = ""  # what proves it, for people
    closed: str = ""  # values that disprove the reading wherever they stand: "digits" all, "letters" other letters

    def decide(self, row: RawRow, names: Sequence[str]) -> Decision:
        """Raises RowError `no_preference`, `bad_label`."""
        spelling = self.value(row)
        better = self.meaning(spelling)
        if better == TIE:
            raise RowError("no_preference", f"{self._says} {spelling!r}: neither response is the better one")
        if better is None or better not in names:
            known = ", ".join(value for value, _ in self.meanings[:12])
            raise RowError(
                "bad_label",
                f"{self._says} {self._shown(row)}, which names none of the responses {', '.join(names)}; "
                f"understood are {known} ({self.why})",
            )
        preferences: dict[str, Preference] = {name: "chosen" if name == better else "rejected" for name in names}
        return Decision(preferences, f"{self._says} {spelling}, which names {better} ({self.why})")

    def meaning(self, spelling: str) -> str | None:
        stands = dict(self.meanings).get(spelling)
        return TIE if stands is None and spelling in TIES else stands

    def value(self, row: RawRow) -> str:
        """The row's label as a word; "" where it has none. Raises `bad_label` where several columns do not name one."""
        if len(self.columns) == 1:
            return word(columns.lookup(row, self.columns[0]))
        values = {column: word(columns.lookup(row, column)) for column in self.columns}
        ones = [column for column, value in values.items() if value in ("1", "true")]
        if len(ones) != 1 or any(value not in ("1", "true", "0", "false") for value in values.values()):
            raise RowError("bad_label", f"{self._says} {self._shown(row)}; one must be 1 and the others 0")
        whole = squash(ones[0])
        return whole if whole in dict(self.meanings) else short_name(ones[0], self.columns)

    def disproof(self, row: RawRow) -> str | None:
        """The value of a row that shows this reading to be wrong for the whole corpus, or None."""
        if not self.closed or len(self.columns) > 1 or not columns.has(row, self.columns[0]):
            return None
        spelling = self.value(row)
        if spelling == "" or self.meaning(spelling) is not None:
            return None
        return spelling if self.closed == "digits" or (len(spelling) == 1 and spelling.isalpha()) else None

    @property
    def _says(self) -> str:
        one = len(self.columns) == 1
        return f"column {self.columns[0]!r} says" if one else f"columns {', '.join(self.columns)} say"

    def _shown(self, row: RawRow) -> str:
        return ", ".join(f"{columns.lookup(row, column)!r:.60}" for column in self.columns)


@dataclass(frozen=True)
class ByGrade:
    """A graded preference: `above` is better where the column is above the threshold, `below` where it is below. Within
    `tie` of the threshold neither is. The margin goes to `label_margin` in extra_info."""

    column: str
    threshold: float
    above: str
    below: str
    tie: float = 0.0

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    def decide(self, row: RawRow, names: Sequence[str]) -> Decision:
        """Raises RowError `no_preference`, `bad_label`."""
        value = columns.lookup(row, self.column)
        grade = as_number(value)
        if grade is None:
            raise RowError("bad_label", f"column {self.column!r} says {value!r:.60}; a number is due")
        margin = grade - self.threshold
        if abs(margin) <= self.tie:
            raise RowError(
                "no_preference", f"column {self.column!r} says {grade:g}: neither response is the better one"
            )
        better = self.above if margin > 0 else self.below
        preferences: dict[str, Preference] = {name: "chosen" if name == better else "rejected" for name in names}
        side = "above" if margin > 0 else "below"
        because = f"column {self.column!r} says {grade:g}, {side} {self.threshold:g} (input.label_threshold)"
        return Decision(preferences, because, {"label_margin": abs(margin)})


@dataclass(frozen=True)
class ByScores:
    """A number for each response, a higher score or a lower rank being better. It goes to `response_score` or
    `response_rank` in extra_info; without `pairs` no response is preferred.

        best_worst  the best is chosen, the worst rejected, of equals the first
        best_rest   the best are chosen, all that are lower rejected
        threshold   those from `threshold` on are chosen, those below it rejected
        all         every response against every lower one: see `pipeline.corpus.ranking`

    Where no two differ by more than `min_margin`, nothing is preferred.
    """

    columns: tuple[str, ...]  # one for each response column, or one that holds a number for each response
    ranks: bool = False
    pairs: PairsFrom | None = None
    min_margin: float = 0.0
    threshold: float | None = None

    def decide(self, row: RawRow, names: Sequence[str]) -> Decision:
        """Raises RowError `no_score`."""
        numbers = self._scores(row, names)
        key = RANK if self.ranks else SCORE
        scores = {name: score for name, score in numbers.items() if score is not None}
        sign = -1 if self.ranks else 1
        preferences = self._pairs({name: sign * score for name, score in scores.items()})
        kind = "rank" if self.ranks else "score"
        because = "; ".join(
            f"{preference}: {kind} {scores[name]:g}"
            for name, preference in sorted(preferences.items(), key=lambda each: each[1])
        )
        if self.pairs == "all":
            because = f"{kind}s " + ", ".join("none" if n is None else f"{n:g}" for n in numbers.values())
        margin = {MARGIN: self.min_margin} if self.pairs == "all" else {}
        of_response = {name: {key: score, **margin} for name, score in numbers.items()}
        return Decision(
            preferences, f"{because} ({', '.join(self.columns)}; input.pairs_from = {self.pairs})", {}, of_response
        )

    def _pairs(self, scores: Mapping[str, float]) -> dict[str, Preference]:
        """[better is larger]"""
        if self.pairs in (None, "all") or len(scores) < 2:
            return {}
        high, low = max(scores.values()), min(scores.values())
        if self.pairs == "threshold":
            assert self.threshold is not None
            level = -self.threshold if self.ranks else self.threshold
            chosen = [name for name, score in scores.items() if score >= level]
            rejected = [name for name, score in scores.items() if score < level]
        elif self.pairs == "best_rest":
            chosen = [name for name, score in scores.items() if score == high]
            rejected = [name for name, score in scores.items() if high - score > self.min_margin]
        else:
            chosen = [next(name for name, score in scores.items() if score == high)]
            rejected = [next(name for name, score in scores.items() if score == low)]
        if not chosen or not rejected:
            return {}
        margin = min(scores[name] for name in chosen) - max(scores[name] for name in rejected)
        if margin <= self.min_margin:
            return {}
        sides: dict[str, Preference] = dict.fromkeys(chosen, "chosen")
        return sides | dict.fromkeys(rejected, "rejected")

    def _scores(self, row: RawRow, names: Sequence[str]) -> dict[str, float | None]:
        values: list[Any] = []
        for column in self.columns:
            value = columns.lookup(row, column)
            if isinstance(value, dict) and set(value) == set(names):
                value = [value[name] for name in names]
            values += value if isinstance(value, list) else [value]
        where = ", ".join(self.columns)
        if len(values) != len(names):
            raise RowError(
                "no_score", f"{where}: {len(values)} numbers for {len(names)} responses; one for each is due"
            )
        scores = [_score(value) for value in values]
        wrong = next((v for v, score in zip(values, scores, strict=True) if score is None and word(v) != ""), None)
        if wrong is not None:
            raise RowError("no_score", f"{where}: a response has {wrong!r:.60}; a number is due, or null for none")
        return dict(zip(names, scores, strict=True))


def _score(value: Any) -> float | None:
    spelling = word(value)
    return float(spelling == "true") if spelling in ("true", "false") else as_number(value)


@dataclass(frozen=True)
class Guessed:
    """A label of a store from before meanings were proven: 0 or 1 was taken for the first response."""

    column: str
    first_label: int

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    def decide(self, row: RawRow, names: Sequence[str]) -> Decision:
        raise RowError(
            "bad_label", f"what column {self.column!r} means was guessed by an earlier version of this program"
        )

    def agrees(self, rule: "LabelRule | None", names: Sequence[str]) -> bool:
        """Whether a rule gives every value that both understand the same meaning."""
        if not isinstance(rule, ByValue) or rule.columns != self.columns:
            return False
        shared = [(self._named(spelling, names), better) for spelling, better in rule.meanings if better != TIE]
        return all(mine in (None, better) for mine, better in shared)

    def _named(self, spelling: str, names: Sequence[str]) -> str | None:
        if spelling in map(squash, names):
            return next(name for name in names if squash(name) == spelling)
        for index, name in enumerate(names):
            letter, other = ("a", "b") if index == 0 else ("b", "a")
            order = ("first", "second")[index]
            if spelling in (
                letter,
                f"{letter}>{other}",
                f"{letter}>>{other}",
                f"model_{letter}",
                order,
                str(self.first_label + index),
            ):
                return name
        return None


LabelRule = ByValue | ByGrade | ByScores | Guessed


def disagree(one: LabelRule, other: LabelRule) -> bool:
    """Whether two rules read any row differently; a value that only one of them knows is no difference."""
    if isinstance(one, ByValue) and isinstance(other, ByValue):
        known = dict(one.meanings)
        return one.columns != other.columns or any(
            known.get(spelling, better) != better for spelling, better in other.meanings
        )
    return one != other


KINDS: dict[str, type[LabelRule]] = {"value": ByValue, "grade": ByGrade, "scores": ByScores, "guessed": Guessed}


def rule_to_json(rule: LabelRule | None) -> dict[str, Any] | None:
    if rule is None:
        return None
    kind = next(name for name, each in KINDS.items() if type(rule) is each)
    return {"kind": kind, **asdict(rule)}


def rule_from_json(data: dict[str, Any] | None) -> LabelRule | None:
    if data is None:
        return None
    values = {name: _tuples(value) for name, value in data.items() if name != "kind"}
    return KINDS[data["kind"]](**values)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def short_name(column: str, among: Sequence[str]) -> str:
    """A column's name less the words that all of `among` begin with: of `winner_model_a`, `winner_tie` it is `model_a`."""
    names = [tokens(each) for each in among]
    shared = 0
    while all(len(each) > shared + 1 and each[shared] == names[0][shared] for each in names):
        shared += 1
    return "_".join(tokens(column)[shared:])
