"""Which gamma, and what a wrong one costs: chosen on one set, reported on the others. Of rewards.py's stores, in a minute.

    python benchmarks/evidence/gamma.py MODEL

Every reward here is of the stored log-probabilities of a response's H tokens at temperature 1, l_h = log pi(a_h | s_h), so
that no V(s_1) and no level of the logits is in it:

    gamma g            sum_h g^(h-1) l_h; 1 is the paper's sum less V(s_1), which cancels between responses to one prompt
    mean               sum_h l_h / H
    horizon c          gamma = 1 - 1 / (c * median H of the set): the part of a typical response that counts; needs the
                       lengths of the set, c the preferences of others
    length-neutral     the gamma at which the longer response wins as often as the shorter; needs no preferences at all
    fit                u * sum_h l_h + v * H, u and v by logistic regression: a price for each token

A figure is the share of pairs in which the chosen response has the larger reward; its interval is 95% over resampled items.
What is chosen by the preferences of the set it is reported on is an upper bound, and marked so.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path[:0] = [str(Path(__file__).resolve().parent)]

from rewards import RESULTS, ROOT, SEED, SETS, provenance  # noqa: E402  needs the line above

from pipeline.store import LabelStore  # noqa: E402

GAMMAS = (1.0, 0.995, 0.99, 0.98, 0.97, 0.96, 0.95, 0.94, 0.93, 0.92, 0.9, 0.875, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5, 0.0)
HORIZONS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.5, 2.0, 4.0)
FLOORS = (0.0, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
FLOORED = (0.99, 0.97, 0.93, 0.8)
RESAMPLES = 1000
RMGAP = 0.93  # its published gamma (arXiv 2605.01831)
RIDGE = 1e-3  # of the fit

Array = NDArray[np.float64]
Json = dict[str, Any]


@dataclass(frozen=True)
class Pairs:
    """A set's pairs, and what each response is made of."""

    name: str
    logprobs: list[Array]  # of each response, [H]
    rewards: list[Array]  # r_h at alpha = gamma = 1, [H]
    sides: NDArray[np.int64]  # [pairs, 2], the chosen response and the rejected one
    items: NDArray[np.int64]  # [pairs], numbers of items, from 0
    kinds: list[str]  # of each pair: hard, normal or easy in RM-Bench, else nothing

    @property
    def lengths(self) -> Array:
        return np.array([len(each) for each in self.logprobs], np.float64)

    def margins(self, reward: Array) -> Array:
        """[pairs] of a reward of each response."""
        return reward[self.sides[:, 0]] - reward[self.sides[:, 1]]

    def right(self, reward: Array) -> Array:
        return (self.margins(reward) > 0).astype(np.float64)

    def of(self, function: Callable[[Array], float]) -> Array:
        return np.array([function(each) for each in self.logprobs])

    def discounted(self, gamma: float, floor: float = 0.0) -> Array:
        return self.of(lambda each: float((np.maximum(gamma ** np.arange(len(each)), floor) * each).sum()))


def read(name: str, store: LabelStore) -> Pairs:
    """Pairs of a label store; of DSP under each rubric that domain's answer against every other."""
    labels = [label for _, part in store.read("labels", store.survey().shards) for label in part.to_pylist()]
    groups: dict[tuple[str, str | None], list[int]] = {}
    for number, label in enumerate(labels):
        groups.setdefault((label["prompt_id"], label["rubric"]), []).append(number)
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompt for prompt, _ in groups))}
    sides, items, kinds = [], [], []
    for (prompt, rubric), members in groups.items():
        for one in members:
            for other in members:
                if better(labels[one], labels[other], rubric):
                    sides.append((one, other))
                    items.append(numbers[prompt])
                    places = labels[one]["response_index"], labels[other]["response_index"]
                    kinds.append(kind(*places) if name.startswith("rm-bench") else "")
    logprobs = [np.array(label["token_logprobs"], np.float64) for label in labels]
    rewards = [np.array(label["token_rewards"], np.float64) for label in labels]
    return Pairs(name, logprobs, rewards, np.array(sides), np.array(items), kinds)


def better(one: Json, other: Json, rubric: str | None) -> bool:
    if rubric is None:
        return (one["preference"], other["preference"]) == ("chosen", "rejected")
    keys = [json.loads(label["extra_info"]).get("response_key", "").rpartition(".")[2] for label in (one, other)]
    return keys[0] == rubric != keys[1]


def kind(chosen: int, rejected: int) -> str:
    """RM-Bench's three styles go from plain to fancy."""
    return "normal" if chosen == rejected else "hard" if chosen < rejected else "easy"


# Figures


def interval(scores: Array, items: NDArray[np.int64]) -> list[float]:
    """95% of the mean of pairs [pairs], over resampled items."""
    return [float(end) for end in np.quantile(resampled(scores, items), (0.025, 0.975))]


def resampled(scores: Array, items: NDArray[np.int64], seed: int = SEED) -> Array:
    """[resamples] means; the same seed draws the same items."""
    draws = np.random.default_rng(seed)
    count = int(items.max()) + 1
    sums, sizes = np.bincount(items, scores, count), np.bincount(items, minlength=count).astype(np.float64)
    weights = draws.multinomial(count, np.full(count, 1 / count), size=RESAMPLES).astype(np.float64)
    means: Array = (weights @ sums) / (weights @ sizes)
    return means


def over_sets(differences: Sequence[tuple[Array, NDArray[np.int64]]]) -> Json:
    """The mean over sets of the mean over pairs, [pairs] and their items each, and its interval: each set's items drawn on
    their own."""
    means = [resampled(scores, items, SEED + number) for number, (scores, items) in enumerate(differences)]
    ends = np.quantile(np.mean(means, axis=0), (0.025, 0.975))
    return {
        "points": float(np.mean([scores.mean() for scores, _ in differences])),
        "interval": [float(e) for e in ends],
    }


def share(pairs: Pairs, reward: Array) -> Json:
    right = pairs.right(reward)
    return {"accuracy": float(right.mean()), "interval": interval(right, pairs.items)}


def curve(pairs: Pairs) -> list[Json]:
    """Of each gamma what it gives, and how often the longer response wins."""
    points = []
    for gamma in GAMMAS:
        reward = pairs.discounted(gamma)
        right, longer = pairs.right(reward), pairs.margins(pairs.lengths)
        unequal = longer != 0
        wins = np.sign(pairs.margins(reward)[unequal]) == np.sign(longer[unequal])
        kinds = {
            each: float(right[np.array(pairs.kinds) == each].mean()) for each in dict.fromkeys(pairs.kinds) if each
        }
        points.append({"gamma": gamma, **share(pairs, reward), "longer_wins": float(wins.mean()), "kinds": kinds})
    return points


def best(accuracies: Sequence[float], values: Sequence[float]) -> float:
    """The value of the largest accuracy; of equal ones the first, which is the least change from the paper's sum."""
    return values[int(np.argmax(accuracies))]


def horizon_gamma(part: float, pairs: Pairs) -> float:
    return max(0.0, 1 - 1 / (part * float(np.median(pairs.lengths))))


def neutral_gamma(points: Sequence[Json]) -> float:
    """At which the longer response wins most nearly half of the pairs of unequal length."""
    return best([-abs(point["longer_wins"] - 0.5) for point in points], GAMMAS)


def fit(sets: Sequence[Pairs]) -> tuple[float, float]:
    """u and v by Newton's method, every set with the same weight and in units of its own spread of lengths' root."""
    terms = np.concatenate([_terms(each) for each in sets])
    weights = np.concatenate([np.full(len(each.sides), 1 / len(each.sides)) for each in sets])
    w = np.zeros(2)
    scale = np.abs(terms).mean(0)
    terms = terms / scale
    for _ in range(50):
        chance = 1 / (1 + np.exp(np.clip(terms @ w, -500, 500)))  # that the pair is wrong
        gradient = terms.T @ (weights * chance) - RIDGE * w
        curvature = (terms * (weights * chance * (1 - chance))[:, None]).T @ terms + RIDGE * np.eye(2)
        w = w + np.linalg.solve(curvature, gradient)
    u, v = w / scale
    return float(u), float(v)


def _terms(pairs: Pairs) -> Array:
    return np.column_stack((pairs.margins(pairs.of(np.sum)), pairs.margins(pairs.lengths)))


def fitted(pairs: Pairs, coefficients: tuple[float, float]) -> Array:
    reward: Array = coefficients[0] * pairs.of(np.sum) + coefficients[1] * pairs.lengths
    return reward


# The rules


def rules(sets: Sequence[Pairs], curves: dict[str, list[Json]]) -> list[Json]:
    """Each rule with its figure on every set: `chosen_on` names the sets whose preferences it saw."""
    made: list[Json] = []
    held_against = {each.name: each.right(each.discounted(RMGAP)) for each in sets}

    def add(name: str, chosen_on: Callable[[Pairs], list[str]], reward: Callable[[Pairs], tuple[str, Array]]) -> None:
        cells, differences = {}, []
        for each in sets:
            said, values = reward(each)
            seen = chosen_on(each)
            cells[each.name] = {**share(each, values), "choice": said, "upper_bound": each.name in seen, "saw": seen}
            differences.append((each.right(values) - held_against[each.name], each.items))
        made.append({"rule": name, "sets": cells, "less_rmgap": over_sets(differences)})

    nobody: Callable[[Pairs], list[str]] = lambda each: []  # noqa: E731
    add("sum (gamma 1)", nobody, lambda each: ("gamma 1", each.discounted(1.0)))
    add("mean", nobody, lambda each: ("", each.of(np.mean)))
    add("gamma 0.93 (RMGAP's)", nobody, lambda each: ("gamma 0.93", each.discounted(RMGAP)))
    for source in sets:
        gamma = best([point["accuracy"] for point in curves[source.name]], GAMMAS)
        add(
            f"gamma chosen on {source.name}",
            lambda each, source=source: [source.name],  # type: ignore[misc]
            lambda each, gamma=gamma: (f"gamma {gamma:g}", each.discounted(gamma)),  # type: ignore[misc]
        )

    def others(each: Pairs) -> list[Pairs]:
        return [other for other in sets if other.name != each.name]

    def names(each: Pairs) -> list[str]:
        return [other.name for other in others(each)]

    def of_all(each: Pairs) -> tuple[str, Array]:
        means = np.mean([[point["accuracy"] for point in curves[name]] for name in names(each)], axis=0)
        gamma = best(means.tolist(), GAMMAS)
        return f"gamma {gamma:g}", each.discounted(gamma)

    def by_horizon(each: Pairs) -> tuple[str, Array]:
        rows = [
            [float(o.right(o.discounted(horizon_gamma(part, o))).mean()) for part in HORIZONS] for o in others(each)
        ]
        part = best(np.mean(rows, axis=0).tolist(), HORIZONS)
        gamma = horizon_gamma(part, each)
        return f"c {part:g}, gamma {gamma:.3f}", each.discounted(gamma)

    def by_length(each: Pairs) -> tuple[str, Array]:
        gamma = neutral_gamma(curves[each.name])
        return f"gamma {gamma:g}", each.discounted(gamma)

    def by_fit(each: Pairs) -> tuple[str, Array]:
        u, v = fit(others(each))
        return f"{v / u:+.2f} nats a token" if u > 0 else f"u {u:+.3g}, v {v:+.3g}", fitted(each, (u, v))

    def own_fit(each: Pairs) -> tuple[str, Array]:
        u, v = fit([each])
        return f"{v / u:+.2f} nats a token" if u > 0 else f"u {u:+.3g}, v {v:+.3g}", fitted(each, (u, v))

    def own_best(each: Pairs) -> tuple[str, Array]:
        gamma = best([point["accuracy"] for point in curves[each.name]], GAMMAS)
        return f"gamma {gamma:g}", each.discounted(gamma)

    add("gamma chosen on all other sets", names, of_all)
    add("horizon chosen on all other sets", names, by_horizon)
    add("length-neutral gamma, no preferences", nobody, by_length)
    add("length-controlled fit on all other sets", names, by_fit)
    add("gamma chosen on the set itself", lambda each: [each.name], own_best)
    add("length-controlled fit on the set itself", lambda each: [each.name], own_fit)
    return made


def prices(sets: Sequence[Pairs], curves: dict[str, list[Json]]) -> list[Json]:
    """What choosing gamma on a set costs on another: accuracy of that one's best gamma less that of the choice; and which
    gammas are chosen where the items of the set chosen on are drawn anew, 95% of them."""
    made = []
    for source in sets:
        rights = np.array([source.right(source.discounted(gamma)) for gamma in GAMMAS])
        means = np.array([resampled(right, source.items) for right in rights])  # [gammas, resamples]
        picks = np.array(GAMMAS)[means.argmax(0)]
        chosen = best(rights.mean(1).tolist(), GAMMAS)
        row: Json = {"chosen_on": source.name, "gamma": chosen, "resampled": _ends(picks), "price": {}}
        for each in sets:
            top = best([point["accuracy"] for point in curves[each.name]], GAMMAS)
            lost = each.right(each.discounted(top)) - each.right(each.discounted(chosen))
            row["price"][each.name] = {"points": float(lost.mean()), "interval": interval(lost, each.items)}
        made.append(row)
    return made


def _ends(values: Array) -> list[float]:
    low, high = np.quantile(values, (0.025, 0.975), method="nearest")
    return [float(low), float(high)]


def floors(pairs: Pairs) -> list[Json]:
    """Accuracy where the weights gamma^(h-1) have a floor, of log pi and of r_h."""
    made = []
    for gamma in FLOORED:
        for floor in FLOORS:
            weighted = [
                np.array([float((np.maximum(gamma ** np.arange(len(each)), floor) * each).sum()) for each in kept])
                for kept in (pairs.logprobs, _discounted_rewards(pairs, gamma))
            ]
            shares = {name: share(pairs, values) for name, values in zip(("log pi", "r_h"), weighted, strict=True)}
            made.append({"gamma": gamma, "floor": floor, **shares})
    return made


def _discounted_rewards(pairs: Pairs, gamma: float) -> list[Array]:
    """r_h at this gamma: Q(s_h, a_h) - gamma V(s_{h+1}), of what is stored at gamma = 1, where r = log pi + V - V'."""
    made = []
    for rewards, logprobs in zip(pairs.rewards, pairs.logprobs, strict=True):
        values = np.cumsum((rewards - logprobs)[::-1])[::-1]  # V(s_h), since what follows the last is 0
        made.append(logprobs + values - gamma * np.append(values[1:], 0.0))
    return made


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="as rewards.py was given it")
    parser.add_argument("--output", type=Path, default=ROOT / "out" / "evidence", help="where rewards.py labelled")
    parser.add_argument("--results", type=Path, default=RESULTS, help="tables (default: benchmarks/results/evidence)")
    arguments = parser.parse_args(given)
    place = arguments.output / Path(arguments.model).resolve().name
    sets, rows = [], {}
    for each in SETS:
        folder = place / each.name / "run" / "rewards" / "endogenous"
        if (
            not each.name.startswith("dsp-")
            and folder.exists()
            and (store := LabelStore(str(folder))).progress().labels
        ):
            sets.append(read(each.name, store))
            rows[each.name] = {"items": int(sets[-1].items.max()) + 1, "pairs": len(sets[-1].sides)}
    curves = {each.name: curve(each) for each in sets}
    made = {
        **provenance(arguments.model, f"python benchmarks/evidence/gamma.py {Path(arguments.model).name}"),
        "seed": SEED,
        "resamples": RESAMPLES,
        "sets": rows,
        "median_length": {each.name: float(np.median(each.lengths)) for each in sets},
        "curves": curves,
        "rules": rules(sets, curves),
        "prices": prices(sets, curves),
        "floors": {each.name: floors(each) for each in sets},
    }
    arguments.results.mkdir(parents=True, exist_ok=True)
    (arguments.results / "gamma.json").write_text(json.dumps(made, indent=1) + "\n")
    for rule in made["rules"]:
        cells = ", ".join(f"{name} {cell['accuracy']:.1%} ({cell['choice']})" for name, cell in rule["sets"].items())
        print(f"{rule['rule']}: {cells}")


if __name__ == "__main__":
    main()
