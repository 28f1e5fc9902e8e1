"""What one model sees of a response to a prompt.

A model with the policy's tokenizer sees the sampled tokens as they are (`TokenReader`), after the prompt's own tokens or,
under a system prompt of the source, after those that it renders itself. A model with another tokenizer sees the text,
rendered and tokenised its own way (`TextReader`); of that only the whole reward has a meaning for the policy's tokens.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np

from pipeline.config import ModelConfig
from pipeline.corpus.samples import Turn
from pipeline.errors import ConfigError, RowError, RunError
from pipeline.models.scores import Scores
from pipeline.rewards.labellers.base import open_renderer
from pipeline.rl.config import RlConfig
from pipeline.rl.rollouts import Prompt, Rollout
from pipeline.rl.sources.models import Models
from pipeline.tokens import PROBE, Renderer, TokenizedTurn

BLANK = ("empty_response", "only_special_tokens")  # no text for a renderer, and yet what a policy may well answer
REMEDIES = {
    "too_long": "take a model with a longer context, shorter prompts or a lower rl.max_new_tokens",
    "prompt_too_long": "take a model with a longer context, or shorter prompts",
    "not_finite": "set reward_model.dtype = float32, or take another model",
    "out_of_memory": "lower rl.max_new_tokens, or give a rewarder a larger share of a GPU (rewarder.gpus_per_actor)",
}  # in place of those that speak of labelling


def open_reader(who: str, model: ModelConfig, config: RlConfig, system_prompt: str | None = None) -> "Reader":
    """The reader for a model, by its tokenizer.

    Args:
        who: what messages call the source.
        system_prompt: in place of `tokens.system_prompt`; None: what the policy saw.

    Raises:
        ConfigError: where tokenizer or configuration of the model or of the policy cannot be read.
    """
    if not model.name:
        raise ConfigError(f"{who}: no model; give it one, or all of them with reward_model.name")
    policy = open_renderer(config.policy, config.tokens)
    tokens = config.tokens.model_copy(update={"max_length": None})  # is of the policy; the model has its context
    if system_prompt is not None:
        tokens = tokens.model_copy(update={"system_prompt": system_prompt})
    renderer = open_renderer(model, tokens)
    if same_tokenizer(policy.tokenizer, renderer.tokenizer):
        return TokenReader(who, model, renderer, renders=system_prompt is not None)
    if tokens.template != "none":  # a file is written for the policy's special tokens
        tokens = tokens.model_copy(update={"template": "auto"})
        renderer = open_renderer(model, tokens)
    return TextReader(who, model, renderer, open_renderer(model, tokens, "none"))


def same_tokenizer(first: Any, second: Any) -> bool:
    """Whether both make the same ids of a text and end it with the same one."""
    return (
        first.get_vocab() == second.get_vocab()
        and first.eos_token_id == second.eos_token_id
        and _ids(first, PROBE) == _ids(second, PROBE)
    )


class Reader(ABC):
    """Base of both.

    Attributes:
        same: whether the model's tokenizer is the policy's.
        context: tokens of prompt and response that the model takes.
        remarks: what came up of itself; the rest of `notes` is its renderers'.
    """

    same: ClassVar[bool]

    def __init__(self, who: str, model: ModelConfig, renderer: Renderer):
        self.who, self.model, self.renderer = who, model, renderer
        self.context = renderer.max_length
        self.remarks: list[str] = []

    @property
    def notes(self) -> list[str]:
        """What a person should know of what it sees, as it comes up."""
        return [*self.remarks, *(f"{self.who}: {note}" for note in dict.fromkeys(self._rendering_notes()))]

    def shown(self, prompt: Prompt) -> int:
        """How many tokens of the prompt the model sees. Raises RunError where they leave no room for a response."""
        try:
            return len(self._fitting_prompt(prompt))
        except RowError as error:
            raise self._failed(prompt, error) from error

    def scores(self, sampled: Sequence[tuple[Prompt, Rollout]], models: Models) -> list[Scores]:
        """The model's scores of each response, of the policy's tokens or of its own. Raises RunError."""
        prompts: dict[str, list[int]] = {}
        turns = []
        for prompt, rollout in sampled:
            try:
                if prompt.id not in prompts:
                    prompts[prompt.id] = self._fitting_prompt(prompt)
                turns.append(self._turn(prompt, prompts[prompt.id], rollout))
            except RowError as error:
                raise self._failed(prompt, error) from error
        scores = []
        for (prompt, _), answer in zip(sampled, models.score(self.model, turns), strict=True):
            if isinstance(answer, RowError):
                raise self._failed(prompt, answer) from answer
            scores.append(answer)
        return scores

    @abstractmethod
    def _rendering_notes(self) -> Iterable[str]: ...

    @abstractmethod
    def _prompt_ids(self, prompt: Prompt) -> list[int]:
        """What the policy is asked with, in this model's tokens. Raises RowError."""

    @abstractmethod
    def _turn(self, prompt: Prompt, prompt_ids: list[int], rollout: Rollout) -> TokenizedTurn:
        """Raises RowError."""

    def _render_prompt(self, prompt: Prompt) -> list[int]:
        return self.renderer.prompt_ids(prompt.messages, prompt.conversational, prompt.tools)

    def _fitting_prompt(self, prompt: Prompt) -> list[int]:
        """Raises RowError where the prompt leaves no room for a response."""
        ids = self._prompt_ids(prompt)
        if len(ids) >= self.context:
            raise RowError("prompt_too_long", f"{len(ids)} tokens of the prompt, and {self.context} fit")
        return ids

    def _fitting_turn(self, prompt: Prompt, prompt_ids: list[int], response_ids: list[int]) -> TokenizedTurn:
        """Raises RowError where both together do not fit."""
        size = len(prompt_ids) + len(response_ids)
        if size > self.context:
            raise RowError("too_long", f"{size} tokens of prompt and response, at most {self.context} fit")
        return TokenizedTurn(np.array(prompt_ids), np.array(response_ids), prompt.messages)

    def _failed(self, prompt: Prompt, error: RowError) -> RunError:
        what, _, remedy = error.detail.partition("; ")
        remedy = REMEDIES.get(error.reason, remedy or "take another model")
        return RunError(
            f"{self.who}: {self.model.name} cannot score a response to prompt {prompt.id}: {what} ({error.reason}); {remedy}"
        )


class TokenReader(Reader):
    """For a model with the policy's tokenizer.

    Args:
        renders: whether the prompt is rendered anew, under a system prompt of the source.
    """

    same = True

    def __init__(self, who: str, model: ModelConfig, renderer: Renderer, renders: bool):
        super().__init__(who, model, renderer)
        self.renders = renders

    def _rendering_notes(self) -> Iterable[str]:
        return self.renderer.notes if self.renders else ()

    def _prompt_ids(self, prompt: Prompt) -> list[int]:
        return self._render_prompt(prompt) if self.renders else prompt.ids

    def _turn(self, prompt: Prompt, prompt_ids: list[int], rollout: Rollout) -> TokenizedTurn:
        return self._fitting_turn(prompt, prompt_ids, rollout.ids)


class TextReader(Reader):
    """For a model with another tokenizer.

    Args:
        cut_off: renders responses that were cut off, without a template that would end them.
    """

    same = False

    def __init__(self, who: str, model: ModelConfig, renderer: Renderer, cut_off: Renderer):
        super().__init__(who, model, renderer)
        self.cut_off = cut_off

    def _rendering_notes(self) -> Iterable[str]:
        return [*self.renderer.notes, *self.cut_off.notes]

    def _prompt_ids(self, prompt: Prompt) -> list[int]:
        return self._render_prompt(prompt)

    def _turn(self, prompt: Prompt, prompt_ids: list[int], rollout: Rollout) -> TokenizedTurn:
        talk, tools = prompt.conversational, prompt.tools
        response = Turn(prompt.id, prompt.id, None, 0, 0, prompt.messages, rollout.text, talk, None, {}, tools=tools)
        try:
            turn = (self.renderer if rollout.finished else self.cut_off).tokenize(response)
        except RowError as error:
            if error.reason not in BLANK:
                raise
            return self._fitting_turn(prompt, prompt_ids, self._blank(rollout))
        note = f"{self.who}: {self.model.name} rewards of a long text what fits into its {self.context} tokens"
        if turn.truncated and note not in self.remarks:
            self.remarks.append(note)
        return turn

    def _blank(self, rollout: Rollout) -> list[int]:
        """Tokens of a response that holds no text: its blanks, if any, and the end that the model itself would write: its
        template's end of turn, else its end token. An end alone is also what nothing at all is scored as."""
        tokenizer = self.renderer.tokenizer
        ids = _ids(tokenizer, rollout.text)
        if ids and not rollout.finished:
            return ids
        end = next((i for i in (*self.renderer.end_tokens(), tokenizer.eos_token_id) if i is not None), None)
        if end is None:
            raise RowError("empty_response", "it is empty, and the tokenizer has no end token that could be scored")
        return [*ids, end]


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
