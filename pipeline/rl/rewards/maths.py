"""The right answer: 1 for a response whose final answer equals the one that its prompt's row holds, else 0."""

from collections.abc import Sequence

from pipeline.answers import extract_and_check
from pipeline.corpus.columns import lookup, paths
from pipeline.errors import InputError, RowError
from pipeline.labellers.base import open_renderer
from pipeline.rl.config import RlConfig
from pipeline.rl.rewards.base import Earned, Sampled, Source
from pipeline.rl.rewards.models import Models
from pipeline.rl.rollouts import Prompt
from pipeline.thoughts import opens_thoughts


class Maths(Source):
    def __init__(self, name: str, config: RlConfig):
        super().__init__(name, config)
        self.thinking = thinks(config)

    def earned(self, sampled: Sequence[Sampled], models: Models) -> list[Earned | None]:
        key = self.section.answer_key
        return [
            Earned.whole(float(right(self.who, prompt, rollout.text, key, self.thinking)), len(rollout.ids))
            for prompt, rollout in sampled
        ]


def right(who: str, prompt: Prompt, text: str, key: str, thinking: bool = False) -> bool:
    """Whether a text's final answer is that of the prompt's column `key`. Raises InputError where it has none.

    `thinking`: the prompt opens thoughts, behind which the answer is looked for."""
    return extract_and_check(text, right_answer(who, prompt, key), thinking).correct


def thinks(config: RlConfig) -> bool:
    """Whether the policy is asked behind thoughts that its template opens."""
    return opens_thoughts(open_renderer(config.policy, config.tokens))


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
