"""The right answer: 1 for a response whose final answer equals the one that its prompt's row holds, else 0."""

from collections.abc import Sequence

from pipeline.corpus.columns import lookup, paths
from pipeline.errors import InputError, RowError
from pipeline.rewards.answers import extract_and_check, unchecked_note
from pipeline.rewards.labellers.base import open_renderer
from pipeline.rl.config import RlConfig
from pipeline.rl.rollouts import Prompt
from pipeline.rl.sources.base import Earned, Sampled, Source
from pipeline.rl.sources.models import Models


class Maths(Source):
    def __init__(self, name: str, config: RlConfig):
        super().__init__(name, config)
        self.right = RightAnswer(self.who, self.section.answer_key, thinks(config))

    def earned(self, sampled: Sequence[Sampled], models: Models) -> list[Earned | None]:
        return [Earned.whole(float(self.right(prompt, rollout.text)), len(rollout.ids)) for prompt, rollout in sampled]

    @property
    def notes(self) -> list[str]:
        return self.right.notes


class RightAnswer:
    """Says whether a text's final answer is that of its prompt's column `key`, and counts those that it cannot tell.

    `thinking`: the prompt opens thoughts, behind which the answer is looked for.
    Raises InputError, when it is called, where the prompt's row has none.
    """

    def __init__(self, who: str, key: str, thinking: bool = False):
        self.who, self.key, self.thinking = who, key, thinking
        self.asked = self.unchecked = 0

    def __call__(self, prompt: Prompt, text: str) -> bool:
        verdict = extract_and_check(text, right_answer(self.who, prompt, self.key), self.thinking)
        self.asked += 1
        self.unchecked += verdict.unchecked
        return verdict.correct

    @property
    def notes(self) -> list[str]:
        """What a person should know of all that it was asked so far."""
        return [f"{self.who}: {unchecked_note(self.unchecked, self.asked)}"] if self.unchecked else []


def thinks(config: RlConfig) -> bool:
    """Whether the policy is asked behind thoughts that its template opens."""
    return open_renderer(config.policy, config.tokens).opens_thoughts


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
