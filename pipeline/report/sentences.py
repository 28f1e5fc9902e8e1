"""What the figures mean, in sentences that depend on them."""

from pipeline.config import DISCOUNTED, SUMS, RewardConfig
from pipeline.report.markup import minus
from pipeline.store.summary import Summary, plain, signed, wilson_interval

WEAK, STRONG = 0.1, 0.5  # |r| that is no trend to speak of, and one that governs the reward


def reward_sentence(summary: Summary) -> str:
    """What the reward's agreement with the preferences amounts to; without pairs, where the rewards lie.

    Needs a label.
    """
    pairs = summary.pairs
    if not pairs:
        mean, std, _, _ = summary.reward.known()
        return f"The mean reward is {minus(signed(mean))}, with a standard deviation of {plain(std)}."
    low, high = wilson_interval(pairs.right, pairs.pairs)
    text = f"The reward prefers the chosen response in {pairs.right:,} of {pairs.pairs:,} pairs"
    if low > 0.5:
        text += ", more often than chance would"
    elif high < 0.5:
        text += ", less often than chance would: look for swapped columns, or at what length does below"
    else:
        text += ", which chance alone might do"
    ties = f" {pairs.ties:,} pairs are ties and count as not right." if pairs.ties else ""
    margin = minus(signed(pairs.margin.mean))
    return f"{text}.{ties} The mean margin is {margin}, with a standard deviation of {plain(pairs.margin.std)}."


def length_sentence(summary: Summary, reward: RewardConfig | None) -> str:
    """How far the reward follows the length of the response, and why.

    Args:
        summary: of the whole store.
        reward: that the store was made with; None for a reward of another kind, whose reasons are its own.
    """
    r, count = summary.length.reward_length_correlation, summary.labels
    if r is None:
        return "Length and reward do not vary together here: at least one of them is the same for every label."
    figure = minus(f"(r\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{r:+.2f})")
    if abs(r) * count**0.5 < 2:
        return f"No relation of length and reward can be told from {count:,} labels {figure}."
    if abs(r) < WEAK:
        return f"Length hardly matters {figure}: the reward follows something else."
    strength = "" if abs(r) >= STRONG else "somewhat "
    why = "." if reward is None else f": {_reason(r, reward)}"
    return f"Longer answers get {strength}{'lower' if r < 0 else 'higher'} rewards {figure}{why}"


def pairs_by_length_sentence(summary: Summary) -> str:
    """Whether length decides the pairs. Empty where no pair has responses of unequal length."""
    length = summary.length
    wins, chosen = length.longer_wins, length.chosen_longer
    if wins is None or chosen is None:
        return ""
    text = f"Of two responses to one prompt the longer gets the higher reward in {wins:.0%} of the pairs"
    text += f"; it is the chosen one in {chosen:.0%}."
    longer, shorter = length.accuracy_chosen_longer, length.accuracy_chosen_shorter
    if longer is None or shorter is None:
        return text
    joint = "but" if abs(longer - shorter) >= 0.1 else "and"
    return (
        f"{text} The reward is right on {longer:.0%} of the pairs whose chosen response is the longer, "
        f"{joint} on {shorter:.0%} of those whose chosen response is the shorter."
    )


def _reason(r: float, reward: RewardConfig) -> str:
    aggregation, gamma = reward.aggregation, reward.gamma
    if aggregation == "mean":
        if r < 0:
            return "mean does not count tokens, so the later tokens of long answers are the less likely ones."
        return "mean does not count tokens, but later tokens are easier to predict and lift the mean of long answers."
    if aggregation not in (*SUMS, *DISCOUNTED):
        return f"what {aggregation} does with length is its own."
    if aggregation == "sum" and gamma != 1:
        return (
            f"with sum and gamma = {gamma:g} every token adds (1 - gamma)V, whose level is arbitrary; "
            "use discounted_sum, or gamma = 1."
        )
    if r > 0:
        return "no sum of log-probabilities favours length by itself, so this comes from the prompts or the corpus."
    if aggregation in DISCOUNTED and gamma != 1:
        return (
            f"with gamma = {gamma:g} a token weighs little after about {1 / (1 - gamma):,.0f}, but each still costs; "
            "see a smaller gamma, or mean."
        )
    return (
        f"with aggregation {aggregation} the reward is a sequence log-probability, which favours short answers; "
        "see mean, or discounted_sum with gamma below 1."
    )
