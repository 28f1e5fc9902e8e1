"""RM-Bench (Liu et al. 2024, arXiv 2410.16184): are small differences of content seen through differences of style?

The figures of a data set are those of `compute_accuracy` in scripts/utils.py of github.com/THU-KEG/RM-Bench. Safety is the
mean of its two sets, safety-refuse and safety-response, as in the published table, whose figures are no multiples of one
over the items of both; `compute_accuracy` itself pools them, so each set's own figures are in the details.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.config import InputConfig
from pipeline.corpus import Shape
from pipeline.corpus.columns import RawRow
from pipeline.errors import InputError
from pipeline.evaluation.benchmarks.base import Benchmark, count_ties, item_name, listed, strata_of
from pipeline.evaluation.benchmarks.figures import Array, Figures
from pipeline.evaluation.benchmarks.items import Item
from pipeline.evaluation.documents import Matrix

PARTS = {
    "chat": "chat", "math": "math", "code": "code", "safety-refuse": "safety", "safety-response": "safety",
}  # `domain` in the data: the domain it belongs to; in the authors' order  # fmt: skip
DOMAINS = tuple(dict.fromkeys(PARTS.values()))
TOTAL = "total_dataset"  # the file that holds all domains
STYLES = ("concise", "detailed, plain", "detailed, markdown")


class RMBench(Benchmark):
    """m[i, j] = share of a domain's items whose chosen response in style i is above the rejected one in style j.

    hard = mean of m above the diagonal (the rejected response has the fancier style), normal = mean of the diagonal,
    easy = mean below it, a domain's accuracy = mean of the three; each figure = mean over the domains that are there.
    """

    name = "rm-bench"
    about = "RM-Bench: chosen and rejected in three styles each; overall, hard, normal, easy"
    source = "hf://datasets/THU-KEG/RM-Bench/total_dataset.json"
    fields = ("prompt", "chosen", "rejected")

    def left_out(self, names: Sequence[str]) -> dict[str, str]:
        if not any(_part_of_file(name) == TOTAL for name in names):
            return {}
        return {name: f"{TOTAL} has its items" for name in names if _part_of_file(name) in PARTS}

    def shape(self, head: Sequence[RawRow], config: InputConfig, file: str) -> Shape:
        unnamed = next((row for row in head if "domain" not in row), None)
        if unnamed is not None and _part_of_file(file) not in PARTS and all(name in unnamed for name in self.fields):
            raise InputError(
                f"{file}: not the layout of rm-bench: a row has no field 'domain', and the file's name is not one that "
                f"says it, such as chat_filtered.json; known are {listed(PARTS)}"
            )
        return super().shape(head, config, file)

    def check(self, item: Item) -> str | None:
        if _part(item) not in PARTS:
            return f"unknown domain {_part(item)!r}; known are {listed(PARTS)}"
        if (len(item.chosen), len(item.rejected)) != (3, 3):
            return f"{len(item.chosen)} chosen and {len(item.rejected)} rejected responses; three of each are due"
        return None

    def figures(self, items: Sequence[Item]) -> Figures:
        wins = (np.array([item.margins() for item in items]) > 0).astype(float)  # [n, chosen style, rejected style]
        parts = np.array([_part(item) for item in items])
        here = [part for part in PARTS if part in parts]
        present = [domain for domain in DOMAINS if any(PARTS[part] == domain for part in here)]
        missing = [domain for domain in DOMAINS if domain not in present]
        missing += [part for part in PARTS if part not in here and PARTS[part] in present]
        sets = {part: _accuracies(wins[parts == part]) for part in here}
        found = {domain: _mean({part: sets[part] for part in here if PARTS[part] == domain}) for domain in present}
        sharing = [sum(PARTS[other] == PARTS[part] for other in here) for part in here]  # sets of the same domain
        names = ("overall", "hard", "normal", "easy")
        ties, comparisons = count_ties(items)
        values = {name: float(np.mean([found[domain][name] for domain in present])) for name in names}
        return Figures(
            values=values,
            items=[item_name(item) for item in items],
            scores={
                "overall": wins.mean((1, 2)),
                "hard": np.triu(wins, 1).sum((1, 2)) / 3,
                "normal": np.einsum("nii->n", wins) / 3,
                "easy": np.tril(wins, -1).sum((1, 2)) / 3,
            },
            strata=strata_of(parts.tolist(), here),
            strata_names=here,
            weights=1 / (np.array(sharing) * len(present)),
            sizes=np.ones(len(items)),
            ties=ties,
            comparisons=comparisons,
            details={"domains": found, "missing_domains": missing, "style_gap": values["easy"] - values["hard"]},
            matrices=[_matrix(np.mean([found[domain]["matrix"] for domain in present], axis=0))],
            notes=[*_notes(items, present, missing), _style(values)],
        )


def _accuracies(wins: Array) -> dict[str, Any]:
    """[n, 3, 3] -> `compute_accuracy` of these items, in its own operations so that the last digit agrees."""
    matrix = wins.sum(0) / len(wins)
    parts = {
        "hard": np.sum(np.triu(matrix, 1)) / 3,
        "normal": np.mean(np.diag(matrix)),
        "easy": np.sum(np.tril(matrix, -1)) / 3,
    }
    figures = {name: float(value) for name, value in parts.items()}
    overall = float(np.mean(list(parts.values())))
    return {"overall": overall, **figures, "items": len(wins), "matrix": matrix.tolist()}


def _mean(sets: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A domain's figures from those of its sets; a domain of one set has that set's."""
    if len(sets) == 1:
        [(part, only)] = sets.items()
        return only if part in DOMAINS else {**only, "parts": sets}
    names = ("overall", "hard", "normal", "easy")
    return {
        **{name: float(np.mean([each[name] for each in sets.values()])) for name in names},
        "items": sum(each["items"] for each in sets.values()),
        "matrix": np.mean([each["matrix"] for each in sets.values()], axis=0).tolist(),
        "parts": sets,
    }


def _part(item: Item) -> str:
    """What the row says of its domain; in the files of one domain each it is the file's name."""
    return str(item.extra.get("domain") or _part_of_file(item.file))


def _part_of_file(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[0].removesuffix("_filtered")


def _style(values: dict[str, float]) -> str:
    gap = 100 * (values["easy"] - values["hard"])
    liked = "fancier style, whatever is said" if gap > 0 else "plainer and shorter style, whatever is said"
    return f"style gap: easy less hard is {gap:+.1f} points; a gap far from 0 is a liking for the {liked}"


def _matrix(values: Array) -> Matrix:
    return Matrix(
        title="Styles",
        said="Share of items whose chosen response in the row's style is above the rejected one in the column's, mean "
        "over domains. Above the diagonal the rejected response has the fancier style: there a love of style costs.",
        row_name="chosen",
        column_name="rejected",
        rows=list(STYLES),
        columns=list(STYLES),
        values=values.tolist(),
    )


def _notes(items: Sequence[Item], present: Sequence[str], missing: Sequence[str]) -> list[str]:
    notes = []
    if missing:
        notes.append(
            f"no items of {listed(missing)}: the figures are means over {listed(present)} and not comparable with "
            "published ones"
        )
    if len({"domain" in item.extra for item in items}) == 2:
        notes.append(
            "total_dataset.json was given together with the files of one domain each, which hold the same items: those "
            "count twice, and the intervals are too narrow"
        )
    return notes
