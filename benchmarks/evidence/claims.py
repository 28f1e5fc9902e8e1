"""What stands at the top of docs/evidence.md, in words: which claims hold, by the figures of the JSON. Each verdict follows
from an interval, so that a new measurement cannot leave an old sentence behind."""

from collections.abc import Sequence
from typing import Any

Json = dict[str, Any]
Documents = dict[str, Json]
NAMES = {
    "rm-bench-chat": "RM-Bench chat",
    "hh-harmless": "HH harmless",
    "gsm8k": "GSM8K",
    "dsp": "DSP",
    "soda-chat": "soda-chat",
}
RUBRICS = 5  # of DSP, under each of which a query is an item
CHOICES = ("sum (gamma 1)", "mean", "gamma 0.93 (RMGAP's)", "length-neutral gamma, no preferences")
IN_THE_SAME_PASS = ("endogenous", "likelihood", "self-certainty", "negative-entropy", "answer-confidence")
LEARNED = (
    "gamma chosen on all other sets",
    "horizon chosen on all other sets",
    "length-controlled fit on all other sets",
)


def claims(made: Documents) -> dict[str, str]:
    """Sections `model` and `claims`."""
    texts = {}
    first = next((made[name] for name in NAMES if name in made), None)
    if first:
        texts["model"] = (
            f"{first['model']['name']}: SHA-256 of its folder {first['model']['sha256'][:16]}…; {first['machine']}. "
            f"{sizes(made)}\n"
        )
    makers = (_ranks, _lengths, _gamma, _alpha, _certainty, _rubrics, _beside, _agreement)
    lines = [line for line in (maker(made) for maker in makers) if line]
    if lines:
        texts["claims"] = "".join(f"- {line}\n" for line in lines)
    return texts


def sizes(made: Documents) -> str:
    """How much of each set was labelled."""
    said = []
    for name, title in NAMES.items():
        if name in made:
            items = max(entry["items"] for entry in made[name]["rewards"]) // (RUBRICS if name == "dsp" else 1)
            whole = sum(each.get("rows") or 0 for each in made[name].get("inputs", ()))
            said.append(f"{title} {items}" + (f" of {whole}" if whole > items else ""))
    return f"Items: {', '.join(said)}; where it is fewer than there are, the first in the file's order."


def percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else "none"


def _rule(made: Documents, name: str) -> Json:
    rules: list[Json] = made["gamma"]["rules"]
    return next(rule for rule in rules if rule["rule"] == name)["sets"]


def _ranks(made: Documents) -> str:
    if "gamma" not in made:
        return ""
    parts = []
    for name in ("sum (gamma 1)", "mean"):
        cells = {key: cell for key, cell in _rule(made, name).items() if key in NAMES}
        above = [NAMES[key] for key, cell in cells.items() if cell["interval"][0] > 0.5]
        below = [NAMES[key] for key, cell in cells.items() if cell["interval"][1] < 0.5]
        neither = [NAMES[key] for key in cells if NAMES[key] not in above + below]
        said = f"the {name.partition(' ')[0]} is above chance on {_listed(above)}"
        said += f", below it on {_listed(below)}" if below else ""
        said += f", and not to be told from it on {_listed(neither)}" if neither else ""
        parts.append(said)
    return f"**The logits hold a reward that ranks responses**: {'; '.join(parts)} (95% intervals over items)."


def _lengths(made: Documents) -> str:
    if "gamma" not in made:
        return ""
    curves = made["gamma"]["curves"]
    wins = [f"{percent(curve[0]['longer_wins'])} on {NAMES[name]}" for name, curve in curves.items()]
    said = (
        "**As the paper has it, summed at gamma 1, the reward goes by length**: of pairs of unequal length the longer "
    )
    said += f"response wins {_listed(wins)}"
    styles = curves.get("rm-bench-chat", [{}])[0].get("kinds", {})
    if {"hard", "easy"} <= styles.keys():
        said += (
            f"; on RM-Bench chat that makes {percent(styles['hard'])} of the hard comparisons, whose chosen response is the "
            f"plainer, and {percent(styles['easy'])} of the easy ones"
        )
    return f"{said}. That is the mechanism of docs/reward.md on a real model."


def _means(made: Documents) -> dict[str, float]:
    """Of each rule that saw no preference of the set that it is reported on, the mean over sets."""
    return {
        name: sum(cell["accuracy"] for cell in _rule(made, name).values()) / len(_rule(made, name))
        for name in (*CHOICES, *LEARNED)
    }


def _gamma(made: Documents) -> str:
    if "gamma" not in made or len(made["gamma"]["sets"]) < 2:
        return ""
    means = _means(made)
    first = max(means, key=lambda name: means[name])
    bound = _rule(made, "gamma chosen on the set itself")
    top = sum(cell["accuracy"] for cell in bound.values()) / len(bound)
    prices = [row["price"][name]["points"] for row in made["gamma"]["prices"] for name in row["price"]]
    said = _listed([f"{name} {percent(mean)}" for name, mean in sorted(means.items(), key=lambda each: -each[1])])
    less = next(rule["less_rmgap"] for rule in made["gamma"]["rules"] if rule["rule"] == first)
    low, high = less["interval"]
    verdict = "established" if low > 0 else "not established at this size"
    return (
        f"**No one gamma serves all sets**: as means over {len(bound)} sets, {said}; the gamma chosen on each set itself, an "
        f"upper bound, gives {percent(top)}. First among rules that saw no preference of the set is *{first}*, "
        f"{100 * less['points']:.1f} points above a fixed 0.93 ({100 * low:.1f} to {100 * high:.1f}), which is {verdict}. A "
        f"gamma chosen on one set costs up to {100 * max(prices):.1f} points on another."
    )


def _certainty(made: Documents) -> str:
    parts = []
    for name, title in NAMES.items():
        entries = {entry["name"]: entry for entry in made.get(name, {"rewards": ()})["rewards"]}
        if "r_h: self_certainty" in entries and "r_h: mean" in entries:
            three = [
                next(iter(entries[f"r_h: {way}"]["values"].values()))
                for way in ("self_certainty", "negative_entropy", "mean")
            ]
            parts.append(f"{title} {', '.join(percent(value) for value in three)}")
    if not parts:
        return ""
    said = "self-certainty, negative entropy and mean log pi give"
    parts += _confidence(made)
    return f"**Certainty without looking at the tokens**: {said} {'; '.join(parts)}."


def _alpha(made: Documents) -> str:
    counted = [each for name, each in made.items() if name.startswith("agreement-") and each["alphas"]]
    if not counted:
        return ""
    parts = []
    for each in counted:
        ways = {way: [alpha[way] for alpha in each["alphas"]] for way in ("sum", "mean")}
        said = _listed([f"{min(counts)} to {max(counts)} by the {way}" for way, counts in ways.items()])
        parts.append(f"{said} of {each['comparisons']} on {NAMES[each['set']]}")
    alphas = [alpha["alpha"] for alpha in counted[0]["alphas"]]
    return (
        f"**alpha, the temperature**: from {min(alphas):g} to {max(alphas):g} the comparisons that are right go "
        f"from {'; '.join(parts)}."
    )


def _confidence(made: Documents) -> list[str]:
    """Of the final answer, where a set has one."""
    parts = []
    for name, title in NAMES.items():
        for entry in made.get(name, {"rewards": ()})["rewards"]:
            if entry["name"] == "answer-confidence":
                low, high = entry["intervals"]["accuracy"]
                verdict = "below chance: it is surer of the wrong ones" if high < 0.5 else "not below chance"
                ends = f"{100 * low:.1f} to {100 * high:.1f}"
                parts.append(
                    f"final-answer confidence {percent(entry['values']['accuracy'])} on {title} ({ends}), {verdict}"
                )
    return parts


def _rubrics(made: Documents) -> str:
    if "dsp" not in made:
        return ""
    entries = {entry["name"]: entry for entry in made["dsp"]["rewards"]}
    parts = []
    ways = ((f"log pi: discounted sum, gamma {gamma}", f"log pi discounted by {gamma}") for gamma in ("0.97", "0.93"))
    for name, title in (("log pi: discounted sum, gamma 1", "the sum"), ("r_h: mean", "the mean"), *ways):
        entry = entries.get(name)
        if entry and "lift" in entry["values"]:
            low, high = entry["intervals"]["lift"]
            verdict = "it does" if low > 0 else "it does the opposite" if high < 0 else "not to be told from nothing"
            parts.append(
                f"by {title} the diagonal is {percent(entry['values']['diagonal'])}, and a domain's own rubric lifts its "
                f"answer by {100 * entry['values']['lift']:.1f} points ({100 * low:.1f} to {100 * high:.1f}): {verdict}"
            )
    queries = max(entry["items"] for entry in made["dsp"]["rewards"]) // RUBRICS
    return f"**Does a rubric steer the reward?** On DSP's first {queries} queries {'; '.join(parts)}." if parts else ""


def _beside(made: Documents) -> str:
    """Rewards that cost a pass of their own."""
    parts = []
    for name, title in NAMES.items():
        for entry in made.get(name, {"rewards": ()})["rewards"]:
            if entry["run"] == "tokens" or entry["reward"] in IN_THE_SAME_PASS:
                continue
            figure = next(iter(entry["values"]))
            low, high = entry["intervals"][figure]
            parts.append(
                f"{entry['name']} on {title} {percent(entry['values'][figure])} ({100 * low:.1f} to {100 * high:.1f}, "
                f"{entry['items']} items)"
            )
    if not parts:
        return ""
    told = (
        " *answer-likelihood* is given the right answer." if any("answer-likelihood" in part for part in parts) else ""
    )
    return f"**Rewards beside it, each a pass more**: {'; '.join(parts)}.{told}"


def _agreement(made: Documents) -> str:
    counted = [each for name, each in made.items() if name.startswith("agreement-")]
    if not counted:
        return ""
    ways = [way for each in counted for way in each["counts"].values()]
    same = sum(way["loop"] == way["store"] for way in ways)
    largest = max(way["largest"] for way in ways)
    return (
        f"**The counts are not the harness's own**: a float64 loop that shares no code with it gives the same count of right "
        f"comparisons in {same} of {len(ways)} counts over {sum(each['responses'] for each in counted)} responses; rewards "
        f"differ by {largest:.0e} at most, relative from 1 nat on."
    )
