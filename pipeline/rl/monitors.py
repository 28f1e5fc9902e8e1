"""What is measured of a batch of responses, warnings that follow from it, and the responses that people read.

Names are TRL's (GRPOTrainer) where TRL has one. Left out: `kl` and `entropy`, which the learner measures, and any
judgement of the text itself: a warning says what to look at, and only a person or held-out prompts can tell.
"""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.corpus.samples import Message
from pipeline.rl.rollouts import Array, Group
from pipeline.store.schema import message_text
from pipeline.training.advantages import alike
from pipeline.training.divergence import k3
from pipeline.training.metrics import MetricRow

NGRAM = 4  # tokens
WINDOW = 10  # steps of a beginning, of what it is held against, and without a cause before it is warned of once more
SEVERAL = 5  # steps in a row that something has to last
NOISE = 3.0  # standard errors that a rise has to be larger than

LONGER = 1.5  # times the length of the beginning
CUT_OFF = 0.3  # share of responses cut off that is worth a word where it rises
REPEATING = 0.2  # repetition above that of the beginning
ENDLESS = 0.9  # share of responses cut off at which hardly any ends
ALIKE = 0.95  # share of groups whose rewards are all the same
COLLAPSED = 0.1  # of the entropy of the beginning

LENGTH, CLIPPED = "completions/mean_length", "completions/clipped_ratio"
EQUAL = "frac_reward_zero_std"
DIFFERENCE = "sampling/sampling_logp_difference/max"


# Measures


def rollout_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """What a batch of at least one response comes to. What has no value in it is left out.

    - `reward`, `reward_std`: mean and standard deviation (n - 1) over all responses, not within groups;
    - `frac_reward_zero_std`: share of the groups whose rewards are all the same; of groups of two or more;
    - `distinct`: share of different texts among the responses to a prompt, mean over groups of two or more;
    - `rewards/NAME/mean`, `rewards/NAME/std`: of one source before its weight, over the responses that it applies to;
    - `completions/...`: lengths in tokens, end token included; `clipped_ratio` is the share that was cut off, and
      `mean_terminated_length` is over the others (0 without any, as in TRL);
    - `repetition`: `repetition` of a response, mean over responses.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    rewarded = [each for group in groups for each in group.rewarded]
    lengths = np.array([len(rollout.ids) for rollout in rollouts], np.float64)
    finished = np.array([rollout.finished for rollout in rollouts])
    several = [group for group in groups if len(group.rollouts) > 1]
    metrics = _mean_and_std([each.reward for each in rewarded], "reward", "reward_std")
    if several:
        metrics[EQUAL] = float(
            np.mean([alike(np.array([each.reward for each in group.rewarded])) for group in several])
        )
        metrics["distinct"] = float(np.mean([len({r.text for r in g.rollouts}) / len(g.rollouts) for g in several]))
    for name in dict.fromkeys(name for each in rewarded for name in each.parts):
        parts = [each.parts[name] for each in rewarded if name in each.parts]
        metrics |= _mean_and_std(parts, f"rewards/{name}/mean", f"rewards/{name}/std")
    return metrics | {
        LENGTH: float(lengths.mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        CLIPPED: float((~finished).mean()),
        "completions/mean_terminated_length": float(lengths[finished].mean()) if finished.any() else 0.0,
        "repetition": float(np.mean([repetition(rollout.ids) for rollout in rollouts])),
    }


def estimates(groups: Sequence[Group]) -> dict[str, float]:
    """What the learner would measure of a batch that it does not see, from the log-probabilities of its samplers; means over
    the tokens of all responses.

    - `kl`: k3 to the reference, where a reference is held;
    - `entropy`: -log pi of the sampled token, nats, whose expectation is the entropy.
    """
    logprobs = np.concatenate([r.logprobs for g in groups for r in g.rollouts]).astype(np.float64)
    measures = {"entropy": -float(logprobs.mean())}
    references = [each.reference for g in groups for each in g.rewarded if each.reference is not None]
    if references:
        measures["kl"] = float(k3(np.concatenate(references).astype(np.float64) - logprobs).mean())
    return measures


def repetition(ids: Sequence[int], n: int = NGRAM) -> float:
    """Share of a response's n-grams of tokens that occurred before in it: seq-rep-n of Welleck et al. 2019
    (arXiv 1908.04319), which is 1 less the share of different ones. 0 for fewer than n tokens.

    >>> repetition([1, 2, 1, 2, 1, 2], n=2)
    0.6
    """
    grams = list(zip(*(ids[i:] for i in range(n)), strict=False))
    return (len(grams) - len(set(grams))) / len(grams) if grams else 0.0


def _mean_and_std(values: list[float], mean: str, std: str) -> dict[str, float]:
    metrics = {mean: float(np.mean(values))}
    return metrics | ({std: float(np.std(values, ddof=1))} if len(values) > 1 else {})


# Warnings


@dataclass
class _Course:
    """One measure over the steps: its first and its last `WINDOW` values."""

    first: list[float] = field(default_factory=list)
    last: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    count: int = 0

    def add(self, value: float) -> None:
        self.count += 1
        self.last.append(value)
        if len(self.first) < WINDOW:
            self.first.append(value)

    @property
    def start(self) -> float:
        return float(np.mean(self.first))

    @property
    def now(self) -> float:
        return float(np.mean(self.last))

    @property
    def comparable(self) -> bool:
        """Whether the last values are others than the first."""
        return self.count >= 2 * WINDOW

    @property
    def risen(self) -> bool:
        """By more than `NOISE` standard errors of the difference of the two means (Welch 1947), steps as independent."""
        if not self.comparable:
            return False
        error = math.sqrt((np.var(self.first, ddof=1) + np.var(self.last, ddof=1)) / WINDOW)
        return self.now - self.start > NOISE * error

    def lasting(self) -> Array:
        """The values of the last `SEVERAL` steps; none where there were not as many."""
        return np.array(list(self.last)[-SEVERAL:] if self.count >= SEVERAL else [])


class Monitors:
    """Reads the rows of a run, one after the other, and warns of what looks wrong.

    Each kind of warning comes once, and again only after its cause was away for `WINDOW` steps. All that it knows comes
    from the rows, so that a run that goes on is watched as if it had not stopped: `Monitors(read_metrics(...))`.

    Args:
        rows: of metrics.jsonl so far, without those that will be done again.
        rounding: nats by which the log-probability of a token may differ between sampler and learner.
    """

    def __init__(self, rows: Iterable[MetricRow] = (), rounding: float = math.inf):
        self.rounding = rounding
        self._courses = {name: _Course() for name in ("reward", LENGTH, CLIPPED, "repetition", EQUAL, "entropy")}
        self._steps = 0
        self._seen: dict[str, int] = {}  # kind -> when its cause was last there
        for row in rows:
            self.warnings(row)

    def warnings(self, row: MetricRow) -> list[str]:
        """Take in the next row; sentences on what it shows, most often none. What a row does not hold is not judged."""
        self._steps += 1
        for name, course in self._courses.items():
            value = row.get(name)
            if value is not None and math.isfinite(value):
                course.add(float(value))
        causes = {kind: sentence for kind, sentence in self._causes(row).items() if sentence}
        new = [sentence for kind, sentence in causes.items() if self._steps - self._seen.get(kind, -WINDOW) > WINDOW]
        self._seen |= dict.fromkeys(causes, self._steps)
        return new

    def _causes(self, row: MetricRow) -> dict[str, str | None]:
        return {
            "difference": self._differing(row),
            "length": self._longer(),
            "repetition": self._repeating(),
            "endless": self._endless(),
            "equal": self._equal(),
            "entropy": self._collapsed(),
        }

    def _differing(self, row: MetricRow) -> str | None:
        worst = row.get(DIFFERENCE) or 0.0
        if worst <= self.rounding:
            return None
        return (
            f"Samplers and learner differ by up to {worst:.2g} nats in the log-probability of a token: importance ratios are "
            "off by that. In bfloat16 it is rounding, and with learner.dtype = float32 they agree; in float32 report it, with "
            "the model's name."
        )

    def _longer(self) -> str | None:
        reward, length, clipped = (self._courses[name] for name in ("reward", LENGTH, CLIPPED))
        longer = length.risen and length.now >= LONGER * length.start
        towards_limit = clipped.risen and clipped.now > CUT_OFF
        if not reward.risen or not (longer or towards_limit):
            return None
        growth = f"the mean length of a response went from {length.start:,.0f} to {length.now:,.0f} tokens"
        if clipped.count:
            growth += f" and the share that is cut off from {clipped.start:.0%} to {clipped.now:.0%}"
        return (
            f"The reward rose from {reward.start:.3g} to {reward.now:.3g} while {growth}: the policy may be paid for length "
            "and not for better answers. Read the samples and the accuracy on held_out.prompts; if so, add a reward of "
            "rewards.NAME.kind = length or raise rl.kl_coefficient."
        )

    def _repeating(self) -> str | None:
        reward, repeated = self._courses["reward"], self._courses["repetition"]
        if not (reward.risen and repeated.risen and repeated.now >= repeated.start + REPEATING):
            return None
        return (
            f"The reward rose from {reward.start:.3g} to {reward.now:.3g} while the share of a response's {NGRAM}-grams that "
            f"repeat earlier ones went from {repeated.start:.0%} to {repeated.now:.0%}: the policy may have found text that "
            "the reward likes and nobody reads. Read the samples; if so, raise rl.kl_coefficient or lower rl.learning_rate."
        )

    def _endless(self) -> str | None:
        lasting = self._courses[CLIPPED].lasting()
        if not len(lasting) or lasting.min() < ENDLESS:
            return None
        return (
            f"{lasting.mean():.0%} of the responses of the last {SEVERAL} steps were cut off: the policy hardly ends an "
            "answer, and a reward of whole answers judges unfinished ones. Raise rl.max_new_tokens if answers need more; "
            "else set rewarding.missing_eos_penalty, or add a reward of rewards.NAME.kind = length."
        )

    def _equal(self) -> str | None:
        lasting = self._courses[EQUAL].lasting()
        if not len(lasting) or lasting.min() < ALIKE:
            return None
        return (
            f"In {lasting.mean():.0%} of the groups of the last {SEVERAL} steps all responses had the same reward: where "
            "rewards are compared within a group, nothing is learnt from these, a KL at most. Take prompts that are neither "
            "always nor never solved, raise rl.group_size, or add a source to rewards that tells such responses apart."
        )

    def _collapsed(self) -> str | None:
        entropy = self._courses["entropy"]
        lasting = entropy.lasting()
        if entropy.count < WINDOW + SEVERAL or lasting.max() >= COLLAPSED * entropy.start:
            return None
        return (
            f"The entropy of the next token fell from {entropy.start:.3g} to {lasting.mean():.3g} nats: the policy gives "
            "nearly the same answer each time, and has little left to choose from. Lower rl.learning_rate, or "
            "raise rl.kl_coefficient or rl.entropy_coefficient."
        )


# Samples


def pick_samples(groups: Sequence[Group], count: int, right: Sequence[bool] | None = None) -> list[dict[str, Any]]:
    """The first prompts with their responses of highest and lowest reward, as JSON has it, for a line of samples.jsonl.

    Measurements begin with the same prompts, so that what is picked of each can be laid side by side. One response where
    a group has no second, or all rewards are the same.

    Args:
        right: whether each response is right, one group after another; None where that is not known.
    """
    known, samples = iter(right or ()), []
    for group in groups[:count]:
        samples.append(_sample(group, [next(known, None) for _ in group.rollouts]))
    return samples


def _sample(group: Group, right: Sequence[bool | None]) -> dict[str, Any]:
    rewards = [each.reward for each in group.rewarded]
    best, worst = int(np.argmax(rewards)), int(np.argmin(rewards))
    responses = [
        {
            "text": group.rollouts[i].text,
            "reward": float(rewards[i]),
            "parts": {name: float(value) for name, value in group.rewarded[i].parts.items()},
            "tokens": len(group.rollouts[i].ids),
            "finished": bool(group.rollouts[i].finished),
            "right": right[i],
        }
        for i in dict.fromkeys((best, worst))
    ]
    return {"prompt": _text(group.prompt.messages), "responses": responses}


def _text(messages: Sequence[Message]) -> str:
    """A lone message as it is; of a conversation each message under its role."""
    if len(messages) == 1:
        return message_text(messages[0])
    return "\n\n".join(f"{message['role']}: {message_text(message)}" for message in messages)
