"""The models of a mixture: each in memory once, whoever names it, and what it sees of a response.

A model with the policy's tokenizer sees the sampled tokens as they are, after the prompt's own tokens or, under a system
prompt of the source, after those that it renders itself. A model with another tokenizer sees the text, rendered and
tokenised its own way; of that only the whole reward has a meaning for the policy's tokens.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.config import ModelConfig
from pipeline.corpus.samples import Turn
from pipeline.errors import ConfigError, RowError, RunError
from pipeline.models.loading import identify_model, load_model
from pipeline.models.scores import Scores
from pipeline.rewards.labellers.base import open_renderer
from pipeline.rl.config import RewardSource, RlConfig
from pipeline.rl.rollouts import Prompt, Rollout
from pipeline.tokens import PROBE, TokenizedTurn

if TYPE_CHECKING:
    from pipeline.models.scoring import Scorer

BLANK = ("empty_response", "only_special_tokens")  # no text for a renderer, and yet what a policy may well answer
REMEDIES = {
    "too_long": "take a model with a longer context, shorter prompts or a lower rl.max_new_tokens",
    "prompt_too_long": "take a model with a longer context, or shorter prompts",
    "not_finite": "set reward_model.dtype = float32, or take another model",
    "out_of_memory": "lower rl.max_new_tokens, or give a rewarder a larger share of a GPU (rewarder.gpus_per_actor)",
}  # in place of those that speak of labelling


def reward_model(config: RlConfig, source: RewardSource) -> ModelConfig:
    """The model that a source names, or that of all sources."""
    base = config.reward_model
    return base.named(source.model or base.name, source.revision or (None if source.model else base.revision))


def same_tokenizer(first: Any, second: Any) -> bool:
    """Whether both make the same ids of a text and end it with the same one."""
    return (
        first.get_vocab() == second.get_vocab()
        and first.eos_token_id == second.eos_token_id
        and _ids(first, PROBE) == _ids(second, PROBE)
    )


class Reader:
    """What one model sees of a response to a prompt.

    Args:
        who: what messages call the source.
        system_prompt: in place of `tokens.system_prompt`; None: what the policy saw.

    Attributes:
        same: whether its tokenizer is the policy's.
        said: what came up of itself; the rest of `notes` is its renderers'.

    Raises:
        ConfigError: where tokenizer or configuration of the model or of the policy cannot be read.
    """

    def __init__(self, who: str, model: ModelConfig, config: RlConfig, system_prompt: str | None = None):
        self.who, self.model, self.system_prompt = who, model, system_prompt
        if not model.name:
            raise ConfigError(f"{who}: no model; give it one, or all of them with reward_model.name")
        policy = open_renderer(config.policy, config.tokens)
        tokens = config.tokens.model_copy(update={"max_length": None})  # is of the policy; the model has its context
        if system_prompt is not None:
            tokens = tokens.model_copy(update={"system_prompt": system_prompt})
        self.whole = open_renderer(model, tokens)
        self.same = same_tokenizer(policy.tokenizer, self.whole.tokenizer)
        if not self.same and tokens.template != "none":  # a file is written for the policy's special tokens
            tokens = tokens.model_copy(update={"template": "auto"})
            self.whole = open_renderer(model, tokens)
        self.cut_off = self.whole if self.same else open_renderer(model, tokens, "none")
        self.context = self.whole.max_length
        self.said: list[str] = []

    @property
    def notes(self) -> list[str]:
        """What a person should know of what it sees, as it comes up."""
        renders = not self.same or self.system_prompt is not None
        noted = dict.fromkeys([*self.whole.notes, *self.cut_off.notes]) if renders else {}
        return [*self.said, *(f"{self.who}: {note}" for note in noted)]

    def shown(self, prompt: Prompt) -> int:
        """How many tokens of the prompt the model sees. Raises RunError where they leave no room for a response."""
        try:
            return len(self._prompt_ids(prompt))
        except RowError as error:
            raise self._failed(prompt, error) from error

    def scores(self, sampled: Sequence[tuple[Prompt, Rollout]], models: "Models") -> list[Scores]:
        """The model's scores of each response, of the policy's tokens or of its own. Raises RunError."""
        prompts: dict[str, list[int]] = {}
        turns = []
        for prompt, rollout in sampled:
            try:
                if prompt.id not in prompts:
                    prompts[prompt.id] = self._prompt_ids(prompt)
                turns.append(self._turn(prompt, prompts[prompt.id], rollout))
            except RowError as error:
                raise self._failed(prompt, error) from error
        found = []
        for (prompt, _), answer in zip(sampled, models.score(self.model, turns), strict=True):
            if isinstance(answer, RowError):
                raise self._failed(prompt, answer) from answer
            found.append(answer)
        return found

    def _prompt_ids(self, prompt: Prompt) -> list[int]:
        """What the policy is asked with, in this model's tokens. Raises RowError where it leaves no room for a response."""
        found = prompt.ids
        if not self.same or self.system_prompt is not None:
            found = self.whole.prompt_ids(prompt.messages, prompt.conversational, prompt.tools)
        if len(found) >= self.context:
            raise RowError("prompt_too_long", f"{len(found)} tokens of the prompt, and {self.context} fit")
        return found

    def _turn(self, prompt: Prompt, prompt_ids: list[int], rollout: Rollout) -> TokenizedTurn:
        """Raises RowError."""
        if self.same:
            return self._fitted(prompt, prompt_ids, rollout.ids)
        try:
            turn = (self.whole if rollout.finished else self.cut_off).tokenize(_turn(prompt, rollout.text))
        except RowError as error:
            if error.reason not in BLANK:
                raise
            return self._fitted(prompt, prompt_ids, self._blank(rollout))
        note = f"{self.who}: {self.model.name} rewards of a long text what fits into its {self.context} tokens"
        if turn.truncated and note not in self.said:
            self.said.append(note)
        return turn

    def _blank(self, rollout: Rollout) -> list[int]:
        """Tokens of a response that holds no text: its blanks, if any, and the end that the model itself would write: its
        template's end of turn, else its end token. An end alone is also what nothing at all is scored as."""
        ids = _ids(self.whole.tokenizer, rollout.text)
        if ids and not rollout.finished:
            return ids
        end = next((i for i in (*self.whole.end_tokens(), self.whole.tokenizer.eos_token_id) if i is not None), None)
        if end is None:
            raise RowError("empty_response", "it is empty, and the tokenizer has no end token that could be scored")
        return [*ids, end]

    def _fitted(self, prompt: Prompt, prompt_ids: list[int], response_ids: list[int]) -> TokenizedTurn:
        size = len(prompt_ids) + len(response_ids)
        if size > self.context:
            raise RowError("too_long", f"{size} tokens of prompt and response, at most {self.context} fit")
        return TokenizedTurn(prompt_ids, response_ids, prompt.messages)

    def _failed(self, prompt: Prompt, error: RowError) -> RunError:
        what, _, remedy = error.detail.partition("; ")
        remedy = REMEDIES.get(error.reason, remedy or "take another model")
        return RunError(
            f"{self.who}: {self.model.name} cannot score a response to prompt {prompt.id}: {what} ({error.reason}); {remedy}"
        )


class Models:
    """The models in memory. Those of equal content and dtype are one.

    Args:
        device: "cpu" or "cuda".
        dtype: of a model whose own is auto.
        gpus: as for `load_model`.
        alpha: temperature of V.
        budget_tokens: tokens forwarded at once.
    """

    def __init__(self, device: str, dtype: str, gpus: int, alpha: float, budget_tokens: int):
        self.device, self.dtype, self.gpus = device, dtype, gpus
        self.alpha, self.budget_tokens = alpha, budget_tokens
        self.identities: dict[ModelConfig, str] = {}
        self.scorers: dict[str, Scorer] = {}
        self.known: dict[tuple[str, tuple[int, ...], tuple[int, ...]], Scores | RowError] = {}

    @property
    def notes(self) -> list[str]:
        return [note for scorer in self.scorers.values() for note in scorer.notes]

    def open(self, model: ModelConfig) -> None:
        """Load a model unless it is here. Raises ConfigError."""
        from pipeline.models.scoring import Scorer

        dtype = self.dtype if model.dtype == "auto" else model.dtype
        identity = json.dumps(identify_model(model, dtype), sort_keys=True)
        self.identities[model] = identity
        if identity not in self.scorers:
            weights = load_model(model.model_copy(update={"dtype": dtype}), self.device, self.gpus)
            self.scorers[identity] = Scorer(weights, alpha=self.alpha, budget_tokens=self.budget_tokens)

    def score(self, model: ModelConfig, turns: Sequence[TokenizedTurn]) -> list[Scores | RowError]:
        """The model's scores of each turn. What it has scored since `forget` it does not score again."""
        identity = self.identities[model]
        keys = [(identity, tuple(turn.prompt_ids), tuple(turn.response_ids)) for turn in turns]
        new = {key: turn for key, turn in zip(keys, turns, strict=True) if key not in self.known}
        self.known.update(zip(new, self.scorers[identity].score(list(new.values())), strict=True))
        return [self.known[key] for key in keys]

    def forget(self) -> None:
        self.known.clear()


def _turn(prompt: Prompt, response: str) -> Turn:
    talk, tools = prompt.conversational, prompt.tools
    return Turn(prompt.id, prompt.id, None, 0, 0, prompt.messages, response, talk, None, {}, tools=tools)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
