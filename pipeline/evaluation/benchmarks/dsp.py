"""Domain-specific preference (Cheng et al. 2023, arXiv 2309.03126): does a domain's rubric make that domain's answers best?

Each query has one answer per domain, each in that domain's voice; the data is in github.com/Linear95/DSP. The reward is
asked under one rubric per domain, which must have the domain's name. The set has no figure of its own for rubrics: these
follow the heat map of the paper on endogenous rewards (arXiv 2506.23235), whose diagonal is bright.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from pipeline.config import EvaluateConfig
from pipeline.corpus import Choice
from pipeline.errors import ConfigError, InputError
from pipeline.evaluation.benchmarks.base import Benchmark, listed
from pipeline.evaluation.benchmarks.figures import Array, Figures
from pipeline.evaluation.benchmarks.items import Item
from pipeline.evaluation.documents import Matrix

FILE = "domain_specific_preference"
RUBRICS = "examples/dsp-rubrics.toml"


class DomainPreference(Benchmark):
    """m[r, e] = share of (query, other domain f) in which, under rubric r, domain e's answer is above f's.

    A row of m averages 1/2 without ties, so its brightness means nothing by itself.

    diagonal  mean of m[d, d]
    lift      mean over d of m[d, d] - mean over rubrics r other than d of m[r, d]
    brightest share of domains d whose own rubric gives the largest m[r, d]; a tie is not the largest
    """

    name = "dsp"
    about = "Domain-specific preference: what each domain's rubric does to that domain's answers"
    choice = Choice(split="test")
    fields = ("query", "responses")
    knows_preferences = False

    def requires(self, config: EvaluateConfig) -> None:
        super().requires(config)
        if config.tokens.rubrics is None and config.evaluate.labels is None:
            raise ConfigError(f"dsp compares rewards under one rubric per domain: give --rubrics {RUBRICS}")

    def left_out(self, names: Sequence[str]) -> dict[str, str]:
        if not any(FILE in name for name in names):
            return {}
        return {name: "another data set of its repository" for name in names if FILE not in name}

    def chance(self, figures: Figures) -> float | None:
        return 0.5

    def check(self, item: Item) -> str | None:
        if len(_rewards(item)) < 2:
            return "fewer than two answers with a domain's name"
        return None

    def figures(self, items: Sequence[Item]) -> Figures:
        domains = list(dict.fromkeys(domain for item in items for domain in _rewards(item)))
        named = list(dict.fromkeys(item.rubric for item in items if item.rubric))
        rubrics = [domain for domain in domains if domain in named]
        foreign = [rubric for rubric in named if rubric not in domains]
        if not rubrics:
            raise InputError(
                f"dsp needs rubrics with the names of its domains, {listed(domains)}; there are "
                f"{listed(named) if named else 'none'}: score with --rubrics {RUBRICS}"
            )
        queries: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
        for item in items:
            queries[item.id][item.rubric or ""] = _rewards(item)
        whole = [
            q for q, by_rubric in queries.items() if all(len(by_rubric.get(r, ())) == len(domains) for r in rubrics)
        ]
        if not whole:
            raise InputError(f"dsp: no query has all of {listed(domains)} under all of {listed(rubrics)}")
        rewards = np.array([[[queries[q][r][d] for d in domains] for r in rubrics] for q in whole])
        cells, ties, comparisons = _cells(rewards)
        values, scores = _own_domains(cells, [domains.index(rubric) for rubric in rubrics])
        full = cells.mean(0).tolist()
        return Figures(
            values=values,
            items=whole,
            scores=scores,
            strata=np.zeros(len(whole), np.int64),
            weights=np.ones(1),
            sizes=np.ones(len(whole)),
            ties=ties,
            comparisons=comparisons,
            details={
                "matrix": {
                    rubric: dict(zip(domains, row, strict=True)) for rubric, row in zip(rubrics, full, strict=True)
                },
                "queries": len(whole),
                "dropped_queries": len(queries) - len(whole),
                "domains_without_rubric": [domain for domain in domains if domain not in rubrics],
                "unknown_rubrics": foreign,
            },
            matrices=[_matrix(rubrics, domains, full)],
            notes=_notes(domains, rubrics, foreign, len(queries) - len(whole)),
        )


def _rewards(item: Item) -> dict[str, float]:
    """Rewards by domain; where columns were named as keys, `responses.academy` is `academy`."""
    named = ((str(answer.extra.get("response_key", "")), answer.reward) for answer in item.others)
    return {key.rpartition(".")[2]: reward for key, reward in named if key}


def _cells(rewards: Array) -> tuple[Array, int, int]:
    """[n, R, D] rewards -> [n, R, D] share of the other domains that each answer is above; ties and comparisons."""
    above = rewards[..., :, None] > rewards[..., None, :]
    equal = rewards[..., :, None] == rewards[..., None, :]
    number, rubrics, domains = rewards.shape
    ties = (int(equal.sum()) - rewards.size) // 2
    return above.sum(-1) / (domains - 1), ties, number * rubrics * domains * (domains - 1) // 2


def _own_domains(cells: Array, own: Sequence[int]) -> tuple[dict[str, float], dict[str, Array]]:
    """cells: [n, R, D], own: [R], each rubric's own domain -> the figures and, of those that have them, their scores, [n]."""
    column = cells[:, :, own]  # [n, rubric, the rubric's domain]
    scores = {"diagonal": np.einsum("nrr->nr", column).mean(1)}
    matrix = column.mean(0)
    values = {"diagonal": float(np.diag(matrix).mean())}
    if len(own) > 1:
        others = (column.sum(1) - np.einsum("nrr->nr", column)) / (len(own) - 1)  # [n, domain]
        scores["lift"] = scores["diagonal"] - others.mean(1)
        values["lift"] = float(scores["lift"].mean())
        off = np.where(np.eye(len(own), dtype=bool), -np.inf, matrix)
        values["brightest"] = float((np.diag(matrix) > off.max(0)).mean())
    return values, scores


def _matrix(rubrics: Sequence[str], domains: Sequence[str], values: list[list[float | None]]) -> Matrix:
    return Matrix(
        title="Rubrics and domains",
        said="Under the row's rubric, the share of comparisons with another domain's answer to the same query that the "
        "column's domain wins. What a rubric does shows down a column: bright on the diagonal means that a domain's own "
        "rubric favours it.",
        row_name="rubric",
        column_name="domain of the answer",
        rows=list(rubrics),
        columns=list(domains),
        values=values,
    )


def _notes(domains: Sequence[str], rubrics: Sequence[str], foreign: Sequence[str], dropped: int) -> list[str]:
    notes = []
    without = [domain for domain in domains if domain not in rubrics]
    if without:
        notes.append(f"no rubric is named {listed(without)}: the figures are over the other domains")
    if len(rubrics) == 1:
        notes.append("there is one rubric only, so there is nothing for it to be brighter than: no lift")
    if foreign:
        notes.append(f"no domain is named {listed(foreign)}: these rubrics are left out")
    if dropped:
        notes.append(
            f"queries left out under all rubrics, because an answer has no reward under one of them: {dropped}"
        )
    return notes
