"""The weighted sum of all rewards of a run, with the reference's log-probabilities of the same tokens."""

import heapq
from collections.abc import Callable, Mapping, Sequence
from itertools import chain

import numpy as np

from pipeline.config import ModelConfig
from pipeline.errors import ConfigError, RunError
from pipeline.rewards.labellers.base import open_renderer
from pipeline.rl.config import RlConfig
from pipeline.rl.rollouts import Array, Prompt, Rewarded, Rollout, Tokens
from pipeline.rl.sources.base import Earned, Sampled, Source
from pipeline.rl.sources.certainty import OF_THE_POLICY, Certainty
from pipeline.rl.sources.endogenous import Endogenous
from pipeline.rl.sources.function import Function, call, load_function
from pipeline.rl.sources.length import Length
from pipeline.rl.sources.maths import Maths, RightAnswer, right_answer, thinks
from pipeline.rl.sources.models import Models
from pipeline.rl.sources.readers import Reader, open_reader
from pipeline.rl.sources.relative import Relative
from pipeline.rl.sources.teacher import Teacher

KINDS: dict[str, type[Source]] = {
    "endogenous": Endogenous,
    "relative": Relative,
    "teacher": Teacher,
    **dict.fromkeys(OF_THE_POLICY, Certainty),
    "maths": Maths,
    "function": Function,
    "length": Length,
}
LOOKED_AT = 32  # of the prompts, the longest


class RewardMixture:
    """Holds the reward models, and the reference where asked, and rewards responses.

    Args:
        device: "cpu" or "cuda".
        dtype: of the reference, and of reward models whose own is auto, so that where they are one model they are loaded
            once.
        gpus: a model is spread over these when they are more than one.
        hold_reference: whether `Rewarded.reference` is wanted.
        gpu_share: of the GPU's memory, for the budget where none is configured.

    Attributes:
        notes: what a person should know, once each, as it comes up; the caller empties it.

    Raises:
        ConfigError: where something cannot be loaded, or does not fit together.
    """

    def __init__(
        self,
        config: RlConfig,
        device: str,
        dtype: str,
        gpus: int = 0,
        *,
        hold_reference: bool,
        gpu_share: float = 1.0,
    ):
        self.config = config
        self.sources = _sources(config)
        self.reference = _reference(config) if hold_reference else None
        self.readers = _readers(self.sources, self.reference)
        reward = config.reward
        self.models = Models(
            device,
            dtype,
            gpus,
            reward.alpha,
            config.rewarder.budget_tokens,
            certainty=reward.token_certainty,
            gpu_share=gpu_share,
        )
        for reader in self.readers:
            self.models.open(reader.model)
        self.notes: list[str] = []
        self.noted: set[str] = set()
        self._note()

    def reward(self, groups: Sequence[tuple[Prompt, Sequence[Rollout]]]) -> list[list[Rewarded]]:
        """What each response to each prompt earned. Raises RunError where one cannot be rewarded."""
        sampled = [(prompt, rollout) for prompt, rollouts in groups for rollout in rollouts]
        earned: list[dict[str, Earned]] = [{} for _ in sampled]
        for source in self.sources:
            chosen = [i for i, (prompt, _) in enumerate(sampled) if source.applies(prompt)]
            answers = source.earned([sampled[i] for i in chosen], self.models)
            for i, each in zip(chosen, answers, strict=True):
                if each is not None:
                    earned[i][source.name] = each
        references = self._reference_logprobs(sampled)
        self.models.forget()
        self._note()
        rewarded = (
            self._mixed(rollout, each, reference)
            for (_, rollout), each, reference in zip(sampled, earned, references, strict=True)
        )
        return [[next(rewarded) for _ in rollouts] for _, rollouts in groups]

    def _mixed(self, rollout: Rollout, earned: Mapping[str, Earned], reference: Tokens | None) -> Rewarded:
        reward, tokens = 0.0, np.zeros(len(rollout.ids))
        values: Array | None = None
        for name, each in earned.items():
            weight = self.config.rewards[name].weight
            reward += weight * each.reward
            tokens += weight * each.tokens
            if each.values is not None:
                values = weight * each.values + (0.0 if values is None else values)
        if not rollout.finished:
            reward -= self.config.rewarding.missing_eos_penalty
            tokens[-1] -= self.config.rewarding.missing_eos_penalty
        parts = {name: each.reward for name, each in earned.items()}
        return Rewarded(reward, parts, tokens, values, reference)

    def _reference_logprobs(self, sampled: Sequence[Sampled]) -> Sequence[Tokens | None]:
        if self.reference is None:
            return [None] * len(sampled)
        return [scores.logprobs.astype(np.float32) for scores in self.reference.scores(sampled, self.models)]

    def _note(self) -> None:
        for note in chain(_notes(self.readers), self.models.notes, *(source.notes for source in self.sources)):
            if note not in self.noted:
                self.noted.add(note)
                self.notes.append(note)


def check_rewards(config: RlConfig) -> list[str]:
    """What can be known of a run's rewards before anything starts, no weights loaded.

    Returns:
        What a person should know of them.

    Raises:
        ConfigError: for a file, function, model or tokenizer that cannot be used, or rewards that do not fit the algorithm.
    """
    sources = _sources(config)
    readers = _readers(sources, _reference(config) if config.rl.kl_coefficient else None)
    checker(config)
    endogenous = any(source.section.kind == "endogenous" for source in sources)
    by_model = config.rl.algorithm == "ppo" and config.ppo.value == "reward-model"
    if by_model and not any(source.forecasts and source.section.share == 1 for source in sources):
        raise ConfigError(
            "ppo.value = reward-model needs an endogenous reward that forecasts every response: share = 1, the policy's "
            "tokenizer, and reward.aggregation = sum or discounted_sum; else set ppo.value = critic"
        )
    if by_model:
        _check_discount(config, "ppo.value = reward-model: V(s_h) is", "ppo.value = critic")
    if endogenous and config.credit == "tokens" and config.reward.aggregation == "discounted_sum":
        _check_discount(config, "reward.aggregation = discounted_sum: the reward is", "rl.credit = response")
    uncovered = [
        "no reward has share = 1: prompts that none of them applies to earn nothing and teach nothing; if the endogenous one "
        "was meant too, name it, as rewards.endogenous.kind = endogenous"
    ]
    partial = all(source.section.share < 1 for source in sources)
    return [*(uncovered if partial else []), *(config.reward.warnings() if endogenous else []), *_notes(readers)]


def check_prompts(config: RlConfig, practice: Sequence[Prompt], held_out: Sequence[Prompt]) -> list[str]:
    """What can be known of the prompts before anything starts, no weights loaded.

    Returns:
        A note for each model in which the longest responses to the longest prompts would not fit.

    Raises:
        InputError: where a prompt lacks the right answer that a reward, or what is measured, compares with.
        ConfigError: where a prompt alone, of the longest, fills the context of a model that rewards.
    """
    for source in (Maths(name, config) for name, section in config.rewards.items() if section.kind == "maths"):
        for prompt in filter(source.applies, (*practice, *held_out)):
            right_answer(source.who, prompt, source.section.answer_key)
    if config.held_out.check == "maths":
        for prompt in held_out:
            right_answer("held_out.check", prompt, config.held_out.answer_key)
    if config.rl.replay:
        return []
    every = [*practice, *held_out]
    asked = [(reader, list(filter(source.applies, every))) for source in _sources(config) for reader in source.readers]
    asked += [(_reference(config), every)] if config.rl.kl_coefficient else []
    found = [_overflow(config, reader, prompts) for reader, prompts in asked]
    return list(dict.fromkeys(note for note in found if note is not None))


def _overflow(config: RlConfig, reader: Reader, prompts: Sequence[Prompt]) -> str | None:
    """What a person should know where the policy may write more than the reader's model takes. Prompts are rendered for it
    anew where they have to be, and so only the longest are looked at. Raises ConfigError."""
    longest = heapq.nlargest(LOOKED_AT, prompts, key=lambda prompt: len(prompt.ids))
    try:
        shown = [reader.shown(prompt) for prompt in longest]
    except RunError as error:
        raise ConfigError(str(error)) from error
    if not longest or not reader.same:  # a text is cut to what fits
        return None
    room, most = open_renderer(config.policy, config.tokens).max_length, config.rl.max_new_tokens
    needed = [n + min(most, room - len(prompt.ids)) for n, prompt in zip(shown, longest, strict=True)]
    if max(needed) <= reader.context:
        return None
    further = max(n - len(prompt.ids) for n, prompt in zip(shown, longest, strict=True))
    return (
        f"{reader.who}: {reader.model.name} takes {reader.context} tokens, and prompt {longest[np.argmax(needed)].id} with "
        f"its longest response would have {max(needed)}, which ends the run once the policy writes one: set "
        f"tokens.max_length = {reader.context - further} or rl.max_new_tokens = {reader.context - max(shown)} at most, or "
        "take a model with a longer context"
    )


def checker(config: RlConfig) -> Callable[[Prompt, str], bool] | None:
    """What says whether a response's text is right, by `held_out.check`; None without it. It raises RunError.

    Raises ConfigError where the check cannot be used.
    """
    check, key = config.held_out.check, config.held_out.answer_key
    if check is None:
        return None
    if check == "maths":
        return RightAnswer("held_out.check", key, thinks(config))
    if not check.rpartition(":")[0].endswith(".py"):
        raise ConfigError(f"held_out.check = {check!r} is neither maths nor path.py:name")
    function, named = load_function("held_out.check", check), f"held_out.check: {check}"

    def by_function(prompt: Prompt, text: str) -> bool:
        [value] = call(named, function, [(prompt, text)])
        if value is None:
            raise RunError(f"{named} gave None for a response to prompt {prompt.id}; let it return a number for each")
        return value > 0.5

    return by_function


def _sources(config: RlConfig) -> list[Source]:
    return [KINDS[section.kind](name, config) for name, section in config.rewards.items()]


def _reference(config: RlConfig) -> Reader:
    """Of the model that the KL is taken to. Raises ConfigError."""
    model: ModelConfig = config.reference if config.reference.name else config.policy
    reader = open_reader("reference", model, config)
    if not reader.same:
        raise ConfigError(
            f"reference.name = {model.name} has another tokenizer than the policy {config.policy.name}, and the KL is of the "
            "same tokens; take an earlier checkpoint of the policy, or leave it out"
        )
    return reader


def _check_discount(config: RlConfig, what: str, instead: str) -> None:
    """What is discounted by reward.gamma is compared with rewards to go, which rl.gamma discounts. Raises ConfigError."""
    if config.reward.gamma != config.rl.gamma:
        raise ConfigError(
            f"{what} discounted by reward.gamma = {config.reward.gamma:g}, and rewards to go by rl.gamma = "
            f"{config.rl.gamma:g}; set both alike, or {instead}"
        )
    if config.reward.min_weight:
        raise ConfigError(
            f"reward.min_weight = {config.reward.min_weight:g}: rewards to go have no floor of the discount; leave it out, or "
            f"set {instead}"
        )


def _readers(sources: Sequence[Source], reference: Reader | None) -> list[Reader]:
    found = [reader for source in sources for reader in source.readers]
    return found if reference is None else [*found, reference]


def _notes(readers: Sequence[Reader]) -> list[str]:
    return [note for reader in readers for note in reader.notes]
