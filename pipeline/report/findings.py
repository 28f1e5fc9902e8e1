"""What results.json says, in the words and figures that both the page and results.md have."""

import math
from collections.abc import Callable, Iterable
from typing import Any

from pipeline.evaluation.documents import Bias, Comparison, Judgements, Results, RewardEntry
from pipeline.report.markup import minus
from pipeline.report.page import listed
from pipeline.report.shares import figure_text, interval_text
from pipeline.store.manifest import BatchCheckEntry
from pipeline.store.summary import signed

SHOWN = {"given": "the row's picture", "grey": "a grey picture", "other": "another row's picture"}
PICTURE_HEAD = ["prompts show", "accuracy", "95%", "explained", "95%", "mean margin"]
SIGNIFICANT = 0.05
MUCH_TRUNCATED = 0.05  # of the responses; above it the page says so at its top


def about(results: Results) -> str:
    """What the benchmark asks, as the beginning of a sentence."""
    return results.about[:1].upper() + results.about[1:]


def verdict(results: Results) -> str:
    """What the main figure of the first reward means, in one sentence or two."""
    rewards, chance, name = results.rewards, results.chance, main_figure(results)
    intervals = {reward.name: reward.intervals.get(name) for reward in rewards}
    first, interval = rewards[0].name, intervals[rewards[0].name]
    if interval is None or chance is None:
        return ""
    guess = figure_text(chance, name in share_figures(results))
    above = [reward for reward, ends in intervals.items() if ends and ends[0] > chance]
    below = [reward for reward, ends in intervals.items() if ends and ends[1] < chance]
    if not above and not below and len(rewards) == 1:
        return (
            f"The interval includes chance ({guess}): an accuracy near chance says nothing about the reward, "
            "which cannot be told from a guess."
        )
    if not above and not below:
        return (
            f"Every interval includes chance ({guess}): accuracies near chance say nothing about the rewards, none of "
            "which can be told from a guess."
        )
    best = max(rewards, key=lambda reward: reward.values.get(name) or -math.inf)
    highest = figure_text(best.values[name], name in share_figures(results))
    also = "" if best is rewards[0] else f" The highest is {best.name}, {highest}."
    if interval[0] > chance:
        return f"{first} is right more often than chance ({guess}).{also}"
    if interval[1] < chance:
        value, ties, comparisons = rewards[0].values[name], rewards[0].ties, rewards[0].comparisons
        if value is not None and comparisons and value + ties / comparisons >= chance:
            tied = f"{ties:,} of {comparisons:,} comparisons are ties, which are not right"
            return f"{first} tells little apart: {tied}.{also}"
        return (
            f"{first} is right less often than chance ({guess}): it prefers what the benchmark counts as wrong.{also}"
        )
    others = [
        f"{listed(names)} {'is' if len(names) == 1 else 'are'} right {often} often"
        for names, often in ((above, "more"), (below, "less"))
        if names
    ]
    return f"{first} cannot be told from chance ({guess}); {listed(others)}."


def cut_short(rewards: list[RewardEntry]) -> list[str]:
    """Which rewards are of responses of which many were truncated, in a sentence each, or in one for all."""
    sentences = []
    for reward in rewards:
        share = reward.truncated / (reward.responses or 1)
        if share > MUCH_TRUNCATED:
            read = "length and style are those of what was read"
            sentences.append((reward.name, f"{share:.0%} of responses were cut to fit: {read}."))
    return same_for_all(sentences, rewards)


def tie_rules(rewards: list[RewardEntry]) -> list[str]:
    """How ties count, a sentence for each rule."""
    return same_for_all([(r.name, f"ties: {r.tie_rule}.") for r in rewards if r.tie_rule], rewards)


def cost_columns(rewards: list[RewardEntry]) -> dict[str, Callable[[RewardEntry], str]]:
    """Columns of counts by name: how to read each from a reward. Time is left out where none was taken."""
    columns: dict[str, Callable[[RewardEntry], str]] = {
        "items": lambda r: f"{r.items:,}",
        "incomplete": lambda r: f"{r.incomplete.items:,}",
        "comparisons": lambda r: f"{r.comparisons:,}",
        "ties": lambda r: f"{r.ties:,}",
        "responses": lambda r: f"{r.responses:,}",
        "truncated": lambda r: f"{r.truncated:,}",
        "response tokens": lambda r: f"{r.tokens:,}",
    }
    if any(r.forwarded_tokens is not None for r in rewards):
        columns["tokens forwarded"] = lambda r: _count_text(r.forwarded_tokens)
    if any(r.seconds_per_thousand_pairs is not None for r in rewards):
        columns["s per 1,000 pairs"] = lambda r: seconds_text(r.seconds_per_thousand_pairs)
    return columns


def meaning_of_p(results: Results) -> str:
    """How to read the paired comparisons."""
    count = len(results.comparisons)
    adjusted = f", and Holm's p is adjusted for the {count} comparisons made here" if count > 1 else ""
    return (
        "Each difference is of the same items under both rewards, so that hard items do not count against either. p is how "
        f"often swapping the two at random would differ as much{adjusted}; below {SIGNIFICANT:g} is taken for a difference. "
        "In a small sample p and the interval can disagree: p decides."
    )


def difference(comparison: Comparison, shares: set[str]) -> tuple[str, str]:
    """A difference and its interval, in points of a percent where the figure is a share."""
    size, digits = (100, 1) if comparison.figure in shares else (1, 3)
    value, *ends = (minus(f"{size * v:+.{digits}f}") for v in (comparison.difference, *comparison.interval))
    return value + (" points" if size == 100 else ""), " to ".join(ends)


def set_rows(results: Results) -> tuple[list[str], list[list[Any]]]:
    """Heading, and a row for each set: its name, its items, and for each reward (figure, interval)."""
    rewards, as_share = results.rewards, main_figure(results) in share_figures(results)
    names = list(dict.fromkeys(name for reward in rewards for name in reward.sets))
    rows = []
    for name in names:
        figures = [reward.sets.get(name) for reward in rewards]
        items = next(f"{each.items:,}" for each in figures if each)
        cells = [
            (figure_text(f.value, as_share), interval_text(f.interval, as_share)) if f else ("", "") for f in figures
        ]
        rows.append([name, (items, ""), *cells])
    return ["set", "items", *(reward.name for reward in rewards)], rows


def biases(results: Results) -> list[tuple[str, Bias]]:
    """(reward, its bias) of those that have one."""
    return [(reward.name, reward.bias) for reward in results.rewards if reward.bias]


def notes(results: Results) -> list[str]:
    """Notes, what the batch checks found and how judges did; what is the same for all rewards is said once."""
    rewards, own = results.rewards, []
    for reward in rewards:
        check, judged = reward.batch_check, reward.judgements
        lines = list(reward.notes)
        if check and check.responses:
            lines.append(_checked(check))
        if judged and judged.asked:
            lines.append(_judged(judged))
        own += [(reward.name, line) for line in lines]
    return [as_sentence(note) for note in (*results.notes, *same_for_all(own, rewards))]


def _checked(check: BatchCheckEntry) -> str:
    count = f"{check.responses:,} request{'' if check.responses == 1 else 's'} asked once more alone"
    if check.moved:
        apart = f"rewards up to {_power(check.worst)} apart"
        return f"of {count}, {check.moved:,} gave another answer than in a batch ({apart})."
    within = f" within {_power(check.worst)}" if check.worst else ""
    return f"{count} gave the same answer as in a batch{within}."


def _judged(judged: Judgements) -> str:
    asked, lost, torn = judged.asked, judged.unparsable, judged.disagree
    what = "responses" if torn is None else "pairs"
    note = f"of {asked:,} {what} {lost:,} could not be judged in the format asked for ({lost / asked:.1%})"
    return f"{note}." if torn is None else f"{note}; in {torn:,} the two orders named no common winner."


def incomplete_sentences(rewards: list[RewardEntry]) -> list[str]:
    """How many items count nowhere, and why, of the rewards that have such."""
    sentences = []
    for reward in rewards:
        if lost := reward.incomplete.items:
            counts = ", ".join(f"{reason} {count:,}" for reason, count in reward.incomplete.reasons.items())
            within = f" ({counts})" if counts else ""
            items = "1 item is" if lost == 1 else f"{lost:,} items are"
            sentences.append((reward.name, f"{items} incomplete{within}."))
    return same_for_all(sentences, rewards)


def main_figure(results: Results) -> str:
    """The name of the first reward's first figure."""
    return next(iter(results.rewards[0].values))


def figure_names(results: Results) -> list[str]:
    """Every figure that any reward has, in their order."""
    return list(dict.fromkeys(name for reward in results.rewards for name in reward.values))


def share_figures(results: Results) -> set[str]:
    """The figures all of whose values and intervals lie in [-1, 1], shares and their differences: read as percentages."""
    shares = set()
    for name in figure_names(results):
        values = [reward.values.get(name) for reward in results.rewards]
        ends = [end for reward in results.rewards for end in reward.intervals.get(name, [])]
        if all_shares([*values, *ends]):
            shares.add(name)
    return shares


def all_shares(values: Iterable[Any]) -> bool:
    """Whether all lie in [-1, 1]; a whole number counts something, and None is no figure."""
    return all(value is None or isinstance(value, int) or -1 <= value <= 1 for value in values)


def same_for_all(lines: list[tuple[str, str]], rewards: list[RewardEntry]) -> list[str]:
    """Lines of (reward, text) as `reward: text`; what several rewards say is said once, and without names if all do."""
    speakers: dict[str, list[str]] = {}
    for name, text in lines:
        speakers.setdefault(text, []).append(name)
    return [
        f"{text[:1].upper()}{text[1:]}" if len(names) == len(rewards) else f"{listed(names)}: {text}"
        for text, names in speakers.items()
    ]


def as_sentence(text: str) -> str:
    """A note as a sentence that ends."""
    text = text.rstrip()
    return text if text.endswith((".", "!", "?", "\N{HORIZONTAL ELLIPSIS}")) else f"{text}."


def words(name: str) -> str:
    return name.replace("_", " ")


def _count_text(value: int | None) -> str:
    return "\N{EN DASH}" if value is None else f"{value:,}"


def seconds_text(value: float | None) -> str:
    return "\N{EN DASH}" if value is None else f"{value:,.1f}" if value >= 1 else f"{value:.2g}"


def _power(value: float) -> str:
    return f"{value:.1e}".replace("e-0", "e-") if value else "0"


def p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def picture_rows(results: Results) -> list[list[str]]:
    """Of the control of pictures a row for each that is shown: accuracy, what the picture explains over it, mean margin."""
    control = results.pictures
    if control is None:
        return []
    rows = []
    for kind, title in SHOWN.items():
        gap = control.explained.get(kind)
        explained = "" if gap is None else f"{minus(f'{100 * gap.difference:+.1f}')} points"
        within = "" if gap is None else minus(f"{100 * gap.interval[0]:+.1f} to {100 * gap.interval[1]:+.1f}")
        accuracy = figure_text(control.accuracy[kind], True)
        interval, margin = interval_text(control.intervals[kind], True), minus(signed(control.margin[kind]))
        rows.append([title, accuracy, interval, explained, within, margin])
    return rows


def picture_sentences(results: Results) -> list[str]:
    """What the control of pictures says."""
    control = results.pictures
    if control is None:
        return []
    gap = control.explained["grey"]
    points = f"{abs(100 * gap.difference):.1f} points"
    told = gap.interval[0] > 0 or gap.interval[1] < 0
    said = (
        f"The picture explains {points} of accuracy"
        if gap.difference >= 0
        else f"The picture costs {points} of accuracy"
    )
    own, grey = control.margin["given"], control.margin["grey"]
    share = f" Of the mean margin, {100 * (own - grey) / own:.0f}% is gone with a grey picture." if own > 0 else ""
    return [
        f"{results.rewards[0].name}, over the same {control.pairs:,} pairs: with the row's picture, with a grey one of the "
        "same size, and with another row's. What is right without the picture is right by the text alone.",
        f"{said}, over a grey one{'' if told else ', which may be none: the interval holds zero'}.{share}",
    ]
