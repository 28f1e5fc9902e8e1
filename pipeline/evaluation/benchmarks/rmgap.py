"""RMGAP (arXiv 2605.01831): does a reward follow what a prompt asks for, when the same four responses stand behind each?

The figures are those of src/rmgap/task_runner.py of github.com/nanzhi84/RMGAP. Its authors leave a prompt out of Pair and
BoN in silence where a response has no reward, and count its group as inconsistent; here its row is incomplete, and counted.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.config import InputConfig
from pipeline.corpus import Choice, Shape
from pipeline.corpus.columns import RawRow
from pipeline.evaluation.benchmarks.base import Benchmark, item_name, listed, strata_of
from pipeline.evaluation.benchmarks.figures import Array, Figures
from pipeline.evaluation.benchmarks.items import Item

DOMAINS = ("Chat", "Writing", "Reasoning", "Safety")
RESPONSES, GROUPS, PROMPTS = 4, 4, 3  # of a row: responses, groups of prompts, paraphrases in each group
GROUP = "prompt_groups"
PLACE = re.compile(
    r"(\d+)\.(\d+)\.(.*)", re.DOTALL
)  # group, paraphrase and key, as a response is called that stands behind it
Scores = Mapping[tuple[int, int], Mapping[str, float]]  # by group and paraphrase: the reward of each response, by key


class Rmgap(Benchmark):
    """Of a row, over its 4 groups g of 3 paraphrases p, with the winner w of the group and r by the response's key:

    pair         share of (g, p, response k other than w) with r(w) > r(k)
    bon          share of (g, p) in which r(w) is above all three others
    consistency  share of g whose ranking is the same under the three paraphrases; equal rewards are ranked by key

    Each figure is a mean over a domain's rows, and then over the domains that are there.
    """

    name = "rmgap"
    about = "RMGAP: four responses behind prompts that each ask for another of them; pair, bon, consistency"
    choice = Choice(split="test")
    fields = ("domain", "responses.key", "responses.text", f"{GROUP}.winner", f"{GROUP}.prompts.text")
    knows_preferences = False  # a response is better behind one prompt and worse behind another

    def shape(self, head: Sequence[RawRow], config: InputConfig, file: str) -> Shape:
        self.require_fields(head, file)
        return Shape((("responses", None),), prompt=f"{GROUP}.prompts.text", form="grid")

    def chance(self, figures: Figures) -> float | None:
        return 0.5

    def check(self, item: Item) -> str | None:
        if item.extra.get("domain") not in DOMAINS:
            return f"unknown domain {item.extra.get('domain')!r}; known are {listed(DOMAINS)}"
        scores, winners = _scores(item), _winners(item)
        due = [(group, place) for group in range(GROUPS) for place in range(PROMPTS)]
        if list(scores) != due or any(len(keys) != RESPONSES for keys in scores.values()):
            return f"{GROUPS} groups of {PROMPTS} prompts and {RESPONSES} responses with a key each are due"
        if len(winners) != GROUPS or any(winners[group] not in keys for (group, _), keys in scores.items()):
            return f"a winner of {GROUP} is the key of none of its responses"
        return None

    def figures(self, items: Sequence[Item]) -> Figures:
        domains = [str(item.extra["domain"]) for item in items]
        present = [domain for domain in DOMAINS if domain in domains]
        missing = [domain for domain in DOMAINS if domain not in present]
        margins = np.array([_margins(item) for item in items])  # [n, group, paraphrase, other response]
        scores: dict[str, Array] = {
            "pair": (margins > 0).mean((1, 2, 3)),
            "bon": (margins > 0).all(3).mean((1, 2)),
            "consistency": np.array([_consistency(_scores(item)) for item in items]),
        }
        here = {domain: np.array(domains) == domain for domain in present}
        by_domain = {
            domain: {**{name: float(each[rows].mean()) for name, each in scores.items()}, "items": int(rows.sum())}
            for domain, rows in here.items()
        }
        note = f"no rows of {listed(missing)}: the figures are means over {listed(present)}" if missing else ""
        return Figures(
            values={name: float(np.mean([by_domain[domain][name] for domain in present])) for name in scores},
            items=[item_name(item) for item in items],
            scores=scores,
            strata=strata_of(domains, present),
            strata_names=present,
            weights=np.full(len(present), 1 / len(present)),
            sizes=np.ones(len(items)),
            ties=int((margins == 0).sum()),
            comparisons=margins.size,
            tie_rule="a tie is not right; in consistency responses with the same reward are ranked by key",
            details={"domains": by_domain, "missing_domains": missing},
            notes=[note] if note else [],
        )


def _scores(item: Item) -> Scores:
    """In the order of the prompts."""
    scores: dict[tuple[int, int], dict[str, float]] = defaultdict(dict)
    for answer in item.others:
        if place := PLACE.fullmatch(str(answer.extra.get("response_key"))):
            scores[int(place[1]), int(place[2])][place[3]] = answer.reward
    return scores


def _winners(item: Item) -> list[str]:
    """The key of each group's preferred response."""
    groups = item.extra.get(GROUP)
    return [str(group.get("winner")) for group in groups if isinstance(group, dict)] if isinstance(groups, list) else []


def _margins(item: Item) -> Array:
    """[group, paraphrase, other response]: by how much the winner is above it."""
    winners = _winners(item)
    margins = [
        [keys[winners[group]] - reward for key, reward in keys.items() if key != winners[group]]
        for (group, _), keys in _scores(item).items()
    ]
    return np.array(margins).reshape(GROUPS, PROMPTS, RESPONSES - 1)


def _consistency(scores: Scores) -> float:
    """Share of the groups that are ranked alike under all paraphrases."""
    rankings = [sorted(keys, key=lambda key: (-keys[key], key)) for keys in scores.values()]
    groups = [rankings[start : start + PROMPTS] for start in range(0, len(rankings), PROMPTS)]
    return float(np.mean([all(ranking == group[0] for ranking in group) for group in groups]))
