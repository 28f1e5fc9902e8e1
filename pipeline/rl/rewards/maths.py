"""The right answer: 1 for a response whose final answer equals the one that its prompt's row holds, else 0."""

from collections.abc import Sequence

from pipeline.answers import extract_and_check
from pipeline.corpus.columns import lookup, paths
from pipeline.errors import InputError, RowError
from pipeline.rl.rewards.base import Earned, Sampled, Source
from pipeline.rl.rewards.models import Models
from pipeline.rl.rollouts import Prompt


class Maths(Source):
    def earned(self, sampled: Sequence[Sampled], models: Models) -> list[Earned | None]:
        key = self.section.answer_key
        return [
            Earned.whole(float(right(self.who, prompt, rollout.text, key)), len(rollout.ids))
            for prompt, rollout in sampled
        ]


def right(who: str, prompt: Prompt, text: str, key: str) -> bool:
    """Whether a text's final answer is that of the prompt's column `key`. Raises InputError where it has none."""
    return extract_and_check(text, right_answer(who, prompt, key)).correct


def right_answer(who: str, prompt: Prompt, key: str) -> str:
    """What the prompt's row gives as the answer. Raises InputError where that is nothing."""
    try:
        gold = lookup(prompt.columns, key)
    except RowError:
        gold = None
    if gold is None or not str(gold).strip():
        there = ", ".join(paths([prompt.columns])) or "none"
        raise InputError(
            f"{who}: prompt {prompt.id} has no right answer in column {key!r}; columns: {there}; set answer_key, or remove "
            "the row"
        )
    return str(gold)
