"""What a person looks at after an evaluation: results.json as one HTML page.

It shows what results.json holds and computes nothing of its own. What that does not hold is not shown.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from pipeline.evaluation.documents import Comparison, Matrix, Results, RewardEntry
from pipeline.report import findings
from pipeline.report.bias import bias_section
from pipeline.report.findings import SIGNIFICANT, main_figure, share_figures, words
from pipeline.report.markup import compact
from pipeline.report.page import Cell, Keys, Reproduction, Tile, facts, page
from pipeline.report.shares import (
    curve_axis,
    draw_curve,
    draw_intervals,
    draw_matrices,
    figure_text,
    interval_text,
)
from pipeline.store.manifest import InputEntry

MOST_LINES = 60  # of a table that is not folded
ELSEWHERE = ("curve", "matrix", "missing_domains", "style_gap")  # parts of `details` that are drawn or said in notes
LINES = {"score": "the reward's choice", "oracle": "the best of the n", "random": "one taken at random"}

TableRow = list[Cell]


def draw_evaluation(results: Results) -> str:
    """The page of results.json as text (write it as UTF-8). It has at least one reward with at least one figure."""
    rewards, main, fingerprints = results.rewards, main_figure(results), results.fingerprints
    columns = findings.cost_columns(rewards)
    set_head, sets = findings.set_rows(results)
    return page(
        "evaluation",
        f"{results.benchmark}: {words(main)}",
        benchmark=results.benchmark,
        facts=facts(results.created, next(iter(fingerprints.values())) if len(fingerprints) == 1 else None),
        about=findings.about(results),
        tiles=_tiles(results),
        verdict=[findings.verdict(results), " ".join(findings.cut_short(rewards))],
        failed=[(name, findings.as_sentence(why)) for name, why in results.failed.items()],
        main=words(main),
        intervals=_intervals(results),
        chance=results.chance is not None,
        many=len(rewards) > 1,
        figure_head=["reward", *map(words, findings.figure_names(results))],
        figures=[_figure_row(reward, results) for reward in rewards],
        tie_rules=" ".join(findings.tie_rules(rewards)),
        how_compared=findings.meaning_of_p(results) if results.comparisons else "",
        comparisons=[_comparison(each, results) for each in results.comparisons],
        picture_head=findings.PICTURE_HEAD,
        picture_rows=findings.picture_rows(results),
        picture_sentences=findings.picture_sentences(results),
        matrices=_matrices(results),
        set_head=set_head,
        sets=sets,
        groups=list(_groups(results)),
        best_of_n=_best_of_n(results),
        bias=bias_section(findings.biases(results), []),
        cost_head=["reward", *columns],
        cost=[[reward.name, *(read(reward) for read in columns.values())] for reward in rewards],
        notes=findings.notes(results),
        incomplete=_incomplete(rewards),
        inputs=[_input_row(file) for file in results.inputs],
        reproduction=Reproduction.of(
            results.command or "endoreward evaluate run.toml",
            results.config,
            results.versions,
            "The same fingerprints give the same rewards, and the same seed the same intervals.",
            [f"Fingerprint of {name}: {fingerprint}" for name, fingerprint in fingerprints.items()],
        ),
    )


def _tiles(results: Results) -> list[Tile]:
    first, name, chance = results.rewards[0], main_figure(results), results.chance
    as_share = name in share_figures(results)
    interval = first.intervals.get(name)
    within = f"95%: {interval_text(interval, as_share)}" if interval else ""
    guess = f"chance {figure_text(chance, as_share)}" if chance is not None else ""
    missing = first.incomplete.items
    tiles = [(figure_text(first.values[name], as_share), f"{words(name)}, {first.name}", within)]
    tiles.append((f"{first.items:,}", "items", f"{missing:,} incomplete" if missing else ""))
    if first.comparisons:
        tiles.append((compact(first.comparisons), "comparisons", guess))
    if first.tokens:
        speed = first.seconds_per_thousand_pairs
        pace = f"{findings.seconds_text(speed)} s per 1,000 pairs" if speed else ""
        tiles.append((compact(first.tokens), "response tokens", pace))
    return tiles


def _intervals(results: Results) -> Markup | None:
    """The main figure of every reward that has it, drawn."""
    name = main_figure(results)
    rows = [
        (reward.name, value, reward.intervals.get(name))
        for reward in results.rewards
        if (value := reward.values.get(name)) is not None
    ]
    return draw_intervals(rows, results.chance, words(name), name in share_figures(results)) if rows else None


def _figure_row(reward: RewardEntry, results: Results) -> TableRow:
    shares, cells = share_figures(results), list[Cell]()
    for name in findings.figure_names(results):
        within = interval_text(reward.intervals.get(name), name in shares)
        cells.append((figure_text(reward.values.get(name), name in shares), within))
    model = reward.model.rstrip("/").rpartition("/")[2]
    return [(reward.name, " · ".join(filter(None, (reward.about, model)))), *cells]


class Compared(NamedTuple):
    """A comparison as it is read: who is higher (empty: neither), what is said of it, and its figures."""

    first: str
    second: str
    winner: str
    verdict: str
    cells: Sequence[str]


def _comparison(comparison: Comparison, results: Results) -> Compared:
    difference, within = findings.difference(comparison, share_figures(results))
    figures = [words(comparison.figure), difference, within]
    figures += [*map(findings.p_value, (comparison.p_value, comparison.p_holm)), f"{comparison.items:,}"]
    return Compared(comparison.first, comparison.second, *_winner(comparison, results), figures)


def _winner(comparison: Comparison, results: Results) -> tuple[str, str]:
    """Who is higher (empty: neither), and what is said of it.

    Where guessing would do as well as either, a difference makes neither the better.
    """
    if comparison.p_holm >= SIGNIFICANT:
        return "", "no difference can be told"
    first, second, name, chance = comparison.first, comparison.second, comparison.figure, results.chance
    ends = [reward.intervals.get(name) for reward in results.rewards if reward.name in (first, second)]
    if name == main_figure(results) and chance is not None and all(e and e[0] <= chance <= e[1] for e in ends):
        return "", "differ, both near chance"
    return (first if comparison.difference > 0 else second), " is higher"


def _matrices(results: Results) -> list[tuple[str, str, Markup]]:
    """Title, sentence and drawing for each title; rewards with the same one stand side by side."""
    by_title: dict[str, list[tuple[str, Matrix]]] = {}
    for reward in results.rewards:
        for matrix in reward.matrices:
            by_title.setdefault(matrix.title, []).append((reward.name, matrix))
    return [(title, matrices[0][1].said, draw_matrices(matrices)) for title, matrices in by_title.items()]


class Group(NamedTuple):
    """A section of figures by group: `kind` is how its `rows` are laid out under `head`."""

    title: str
    kind: str  # "flat": rows of a table; "nested": (group, rows of it) each; "lines": sentences
    head: Sequence[str]
    rows: Sequence[Any]
    wide: bool
    lines: int = 0  # of a nested table that is folded, else 0


def _groups(results: Results) -> Iterator[Group]:
    """A table for each part of `details` that has figures by group; lists and single values of it become a line.

    What is drawn, said in notes, or repeats the figures is left out: it stands elsewhere. So is what lies deeper.
    """
    rewards = results.rewards
    parts = [
        (reward, key, _figures_of(value))
        for reward in rewards
        for key, value in reward.details.items()
        if key not in ELSEWHERE
    ]
    new = [(r.name, key, value) for r, key, value in parts if value and not _repeats(value, r.values)]
    lines = []
    for key in dict.fromkeys(key for _, key, _ in new):
        having = [(name, value) for name, each, value in new if each == key]
        if all(_is_flat(value) for _, value in having):
            yield _flat_group(words(key).capitalize(), having)
        elif all(_is_nested(value) for _, value in having):
            yield _nested_group(words(key).capitalize(), having)
        else:
            plain = [(name, value) for name, value in having if not isinstance(value, dict)]
            lines += [(name, f"{words(key)}: {_plainly(value)}") for name, value in plain]
    if lines:
        yield Group("Details", "lines", [], findings.same_for_all(lines, rewards), wide=False)


def _flat_group(title: str, having: list[tuple[str, dict[str, float | None]]]) -> Group:
    """Groups down, rewards across."""
    rows = []
    for group in dict.fromkeys(group for _, values in having for group in values):
        figures = [values.get(group) for _, values in having]
        as_share = findings.all_shares(figures)
        rows.append([words(group), *(_cell(value, as_share) for value in figures)])
    return Group(title, "flat", ["", *(name for name, _ in having)], rows, wide=len(having) >= 3)


def _nested_group(title: str, having: list[tuple[str, dict[str, dict[str, float]]]]) -> Group:
    """Groups down, in each a line for each reward, and measures across."""
    measures = list(dict.fromkeys(m for _, groups in having for values in groups.values() for m in values))
    shares = {m: findings.all_shares(v.get(m) for _, groups in having for v in groups.values()) for m in measures}
    names = dict.fromkeys(group for _, groups in having for group in groups)
    rows_of = [
        (words(name), [(r, [_cell(g[name].get(m), shares[m]) for m in measures]) for r, g in having if name in g])
        for name in names
    ]
    lines = sum(len(rows) for _, rows in rows_of)
    folded = lines if lines > MOST_LINES else 0
    return Group(title, "nested", list(map(words, measures)), rows_of, wide=True, lines=folded)


class BestOfN(NamedTuple):
    """A best-of-n curve for each reward: what the lines are, and (name, chart, no sentences) each."""

    marks: Keys
    figures: Sequence[tuple[str, Markup, None]]


def _best_of_n(results: Results) -> BestOfN | None:
    curves = [(reward.name, curve) for reward in results.rewards if (curve := reward.curve)]
    if not curves:
        return None
    axis = curve_axis([curve for _, curve in curves])
    marks: Keys = [
        (Markup('<path class="line {}" d="M0 5H14"/>').format(kind), name)
        for kind, name in LINES.items()
        if any(curve.line(kind) for _, curve in curves)
    ]
    return BestOfN(marks, [(name, draw_curve(curve, name, axis), None) for name, curve in curves])


class IncompleteTable(NamedTuple):
    """How many items have no reward for which reason, by reward, and some of them."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    examples: str


def _incomplete(rewards: list[RewardEntry]) -> IncompleteTable | None:
    lost = [(reward.name, reward.incomplete) for reward in rewards if reward.incomplete.items]
    if not lost:
        return None
    reasons = Counter[str]()
    for _, each in lost:
        reasons.update(each.reasons)
    rows = [[reason, *(f"{each.reasons.get(reason, 0):,}" for _, each in lost)] for reason, _ in reasons.most_common()]
    examples = list(dict.fromkeys(example for _, each in lost for example in each.examples))[:6]
    return IncompleteTable(["reason", *(name for name, _ in lost)], rows, ", ".join(examples))


def _input_row(file: InputEntry) -> TableRow:
    return [file.name, f"{file.rows:,}", file.sha256[:16]]


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _repeats(value: Any, figures: dict[str, float | None]) -> bool:
    return _is_flat(value) and value.items() <= figures.items()


def _figures_of(value: Any) -> Any:
    """A dict of groups with the numbers of each group alone; anything else as it is."""
    if not isinstance(value, dict) or not value or not all(isinstance(group, dict) for group in value.values()):
        return value
    return {name: {m: v for m, v in group.items() if _is_number(v)} for name, group in value.items()}


def _is_flat(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_number, value.values()))


def _is_nested(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_flat, value.values()))


def _cell(value: float | None, as_share: bool) -> str:
    """A whole number counts something; the others are figures."""
    return f"{value:,}" if isinstance(value, int) else figure_text(value, as_share)


def _plainly(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
