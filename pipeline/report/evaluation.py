"""What a person looks at after an evaluation: results.json as one HTML page.

It shows what results.json holds and computes nothing of its own. What that does not hold is not shown.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from pipeline.report import findings
from pipeline.report.bias import bias_section
from pipeline.report.findings import SIGNIFICANT, Results, Reward, main_figure, share_figures, words
from pipeline.report.markup import compact
from pipeline.report.page import Cell, Keys, Reproduction, Tile, facts, page
from pipeline.report.shares import (
    curve_axis,
    curve_values,
    draw_curve,
    draw_intervals,
    draw_matrices,
    figure_text,
    interval_text,
)

MOST_LINES = 60  # of a table that is not folded
ELSEWHERE = ("curve", "matrix", "missing_domains", "style_gap")  # parts of `details` that are drawn or said in notes
LINES = {"score": "the reward's choice", "oracle": "the best of the n", "random": "one taken at random"}

TableRow = list[Cell]


def draw_evaluation(results: Results) -> str:
    """The page of results.json as text (write it as UTF-8). It has at least one reward with at least one figure."""
    rewards, main = results["rewards"], main_figure(results)
    fingerprints = results.get("fingerprints") or {}
    columns = findings.cost_columns(rewards)
    set_head, sets = findings.set_rows(results)
    return page(
        "evaluation",
        f"{results['benchmark']}: {words(main)}",
        benchmark=results["benchmark"],
        facts=facts(
            results.get("created") or "", next(iter(fingerprints.values())) if len(fingerprints) == 1 else None
        ),
        about=findings.about(results),
        tiles=_tiles(results),
        verdict=[findings.verdict(results), " ".join(findings.cut_short(rewards))],
        failed=[(name, findings.as_sentence(why)) for name, why in (results.get("failed") or {}).items()],
        main=words(main),
        intervals=_intervals(results),
        chance=results.get("chance") is not None,
        many=len(rewards) > 1,
        figure_head=["reward", *map(words, findings.figure_names(results))],
        figures=[_figure_row(reward, results) for reward in rewards],
        tie_rules=" ".join(findings.tie_rules(rewards)),
        how_compared=findings.meaning_of_p(results) if results.get("comparisons") else "",
        comparisons=[_comparison(each, results) for each in results.get("comparisons") or []],
        matrices=_matrices(results),
        set_head=set_head,
        sets=sets,
        groups=list(_groups(results)),
        best_of_n=_best_of_n(results),
        bias=bias_section(findings.biases(results), []),
        cost_head=["reward", *columns],
        cost=[[r["name"], *(read(r) for read in columns.values())] for r in rewards],
        notes=findings.notes(results),
        incomplete=_incomplete(rewards),
        inputs=[_input_row(file) for file in results.get("inputs") or []],
        reproduction=Reproduction.of(
            results.get("command") or "endoreward evaluate run.toml",
            results.get("config") or {},
            results.get("versions") or {},
            "The same fingerprints give the same rewards, and the same seed the same intervals.",
            [f"Fingerprint of {name}: {fingerprint}" for name, fingerprint in fingerprints.items()],
        ),
    )


def _tiles(results: Results) -> list[Tile]:
    first, name, chance = results["rewards"][0], main_figure(results), results.get("chance")
    as_share = name in share_figures(results)
    interval = first.get("intervals", {}).get(name)
    within = f"95%: {interval_text(interval, as_share)}" if interval else ""
    guess = f"chance {figure_text(chance, as_share)}" if chance is not None else ""
    missing = findings.incomplete_items(first)
    tiles = [(figure_text(first["values"][name], as_share), f"{words(name)}, {first['name']}", within)]
    tiles.append((f"{first['items']:,}", "items", f"{missing:,} incomplete" if missing else ""))
    if first.get("comparisons"):
        tiles.append((compact(first["comparisons"]), "comparisons", guess))
    if first.get("tokens"):
        speed = first.get("seconds_per_thousand_pairs")
        pace = f"{findings.seconds_text(speed)} s per 1,000 pairs" if speed else ""
        tiles.append((compact(first["tokens"]), "response tokens", pace))
    return tiles


def _intervals(results: Results) -> Markup | None:
    """The main figure of every reward that has it, drawn."""
    name = main_figure(results)
    rows = [(r["name"], r["values"].get(name), r.get("intervals", {}).get(name)) for r in results["rewards"]]
    rows = [row for row in rows if row[1] is not None]
    return draw_intervals(rows, results.get("chance"), words(name), name in share_figures(results)) if rows else None


def _figure_row(reward: Reward, results: Results) -> TableRow:
    shares, cells = share_figures(results), list[Cell]()
    for name in findings.figure_names(results):
        within = interval_text(reward.get("intervals", {}).get(name), name in shares)
        cells.append((figure_text(reward["values"].get(name), name in shares), within))
    model = str(reward.get("model") or "").rstrip("/").rpartition("/")[2]
    return [(reward["name"], " · ".join(filter(None, (reward.get("about"), model)))), *cells]


def _comparison(comparison: dict[str, Any], results: Results) -> dict[str, Any]:
    difference, within = findings.difference(comparison, share_figures(results))
    winner, verdict = _winner(comparison, results)
    figures = [words(comparison["figure"]), difference, within]
    figures += [*map(findings.p_value, (comparison["p_value"], comparison["p_holm"])), f"{comparison['items']:,}"]
    return {
        "first": comparison["first"],
        "second": comparison["second"],
        "winner": winner,
        "verdict": verdict,
        "cells": figures,
    }


def _winner(comparison: dict[str, Any], results: Results) -> tuple[str, str]:
    """Who is higher (empty: neither), and what is said of it.

    Where guessing would do as well as either, a difference makes neither the better.
    """
    if comparison["p_holm"] >= SIGNIFICANT:
        return "", "no difference can be told"
    first, second, chance = comparison["first"], comparison["second"], results.get("chance")
    name = comparison["figure"]
    ends = [r.get("intervals", {}).get(name) for r in results["rewards"] if r["name"] in (first, second)]
    if name == main_figure(results) and chance is not None and all(e and e[0] <= chance <= e[1] for e in ends):
        return "", "differ, both near chance"
    return (first if comparison["difference"] > 0 else second), " is higher"


def _matrices(results: Results) -> list[tuple[str, str, Markup]]:
    """Title, sentence and drawing for each title; rewards with the same one stand side by side."""
    by_title: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for reward in results["rewards"]:
        for matrix in reward.get("matrices") or []:
            by_title.setdefault(matrix["title"], []).append((reward["name"], matrix))
    return [(title, matrices[0][1]["said"], draw_matrices(matrices)) for title, matrices in by_title.items()]


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
    rewards = results["rewards"]
    parts = [
        (r, key, _figures_of(value))
        for r in rewards
        for key, value in (r.get("details") or {}).items()
        if key not in ELSEWHERE
    ]
    new = [(r["name"], key, value) for r, key, value in parts if value and not _repeats(value, r["values"])]
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


def _best_of_n(results: Results) -> dict[str, Any] | None:
    curves = [(r["name"], curve) for r in results["rewards"] if (curve := (r.get("details") or {}).get("curve"))]
    if not curves:
        return None
    axis = curve_axis([curve for _, curve in curves])
    marks: Keys = [
        (Markup('<path class="line {}" d="M0 5H14"/>').format(kind), name)
        for kind, name in LINES.items()
        if any(curve_values(curve, kind) for _, curve in curves)
    ]
    return {"marks": marks, "figures": [(name, draw_curve(curve, name, axis), None) for name, curve in curves]}


def _incomplete(rewards: list[Reward]) -> dict[str, Any] | None:
    """By reward how many items have no reward for which reason, and some of them."""
    rewards = [r for r in rewards if findings.incomplete_items(r)]
    if not rewards:
        return None
    reasons = Counter[str]()
    for reward in rewards:
        reasons.update(reward["incomplete"].get("reasons") or {})
    rows = [
        [reason, *(f"{(r['incomplete'].get('reasons') or {}).get(reason, 0):,}" for r in rewards)]
        for reason, _ in reasons.most_common()
    ]
    examples = list(dict.fromkeys(e for r in rewards for e in r["incomplete"].get("examples") or []))[:6]
    return {"head": ["reason", *(r["name"] for r in rewards)], "rows": rows, "examples": ", ".join(examples)}


def _input_row(file: dict[str, Any]) -> TableRow:
    rows = f"{file['rows']:,}" if file.get("rows") is not None else ""
    return [file["name"], rows, str(file.get("sha256") or "")[:16]]


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
