"""The interface of an engine, and what one is opened from: plain data, no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import RowError
from pipeline.models.loading import ModelSource
from pipeline.models.questions import Completion, Question

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Drawing:
    """How completions are drawn, and how long they may be.

    Attributes:
        max_new_tokens: longest completion; less where the context ends before.
        max_length: of prompt and completion together; None for the model's context.
        temperature: 0 is greedy.
        top_p: the smallest set of tokens whose probability, at the temperature, reaches this; 1 is all.
        budget_tokens: tokens held at once, prompts and longest completions; None: as the engine has room for them.
        end_tokens: that end a completion, beside those of model and tokenizer.
        logprobs: whether completions get the log-probabilities of their tokens.
        certainty: whether they get the entropies and self-certainties of what their tokens are drawn from; of the reference
            engine alone.
    """

    max_new_tokens: int
    max_length: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    budget_tokens: int | None = None
    end_tokens: tuple[int, ...] = ()
    logprobs: bool = False
    certainty: bool = False

    @property
    def wants_raw(self) -> bool:
        """Whether log-probabilities are wanted and those of the model's own logits are right: greedy, or of all tokens at
        temperature 1."""
        return self.logprobs and (self.temperature == 0 or self.temperature == self.top_p == 1)


@dataclass(frozen=True)
class Endpoint:
    """A server, and how it is asked: the fields of the configuration's section, each documented there. Its key is not here:
    it stays in the environment."""

    url: str
    model: str
    api: str  # "chat" or "completions"
    key_variable: str = "OPENAI_API_KEY"
    concurrency: int = 16
    requests_per_minute: int | None = None
    timeout_s: float = 300.0
    retries: int = 5
    max_tokens: int | None = None


@dataclass(frozen=True)
class Adapters:
    """Low-rank adapters, as a learner has them: `shapes` is the complete set, by name."""

    rank: int
    alpha: float
    shapes: Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class EngineSpec:
    """Which engine holds which model, and how it draws; it pickles."""

    model: ModelSource  # of an endpoint the tokenizer alone
    device: str  # "cpu" or "cuda"
    drawing: Drawing
    gpus: int = 0  # the model is spread over these where they are several
    engine: str = "transformers"
    endpoint: Endpoint | None = None  # where the engine is one
    adapters: Adapters | None = None  # whose weights are all that come from a learner
    gpu_share: float = 1.0  # less where a learner has its memory between the engine's turns

    @property
    def shares_gpu(self) -> bool:
        return self.gpu_share < 1


@dataclass(frozen=True)
class Abilities:
    """What an engine can do beside giving texts."""

    tokens: bool  # completions have the ids of their tokens
    logprobs: bool  # and log-probabilities of these
    weights: bool  # it takes the weights of a learner
    repeatable: bool  # a completion follows from its question, but where rounding decides between two tokens


class Engine(Protocol):
    """A model that completes prompts.

    Attributes:
        name: what the configuration calls it, and the fingerprint where it is not the reference.
        layout: how prompts are laid out, for people.
        notes: what a person should know of how the model is run, as it comes up; drained by the caller.
        version: of the weights; None for the model's own.
    """

    name: str
    layout: str
    can: Abilities
    notes: list[str]

    @property
    def version(self) -> int | None: ...

    @property
    def forwarded_tokens(self) -> int:
        """Tokens given to the model so far."""
        ...

    def generate(self, questions: Sequence[Question]) -> list[list[Completion] | RowError]:
        """The samples of each question, in the order given, or why there are none."""
        ...

    def logprobs(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """log pi of every token of a text but the first, given those before it: [L - 1], nats, at temperature 1."""
        ...

    def load(self, version: int, weights: Mapping[str, "torch.Tensor"]) -> None:
        """Complete with these weights from now on.

        Args:
            weights: by the names that transformers' model has for them, on the CPU; of a model with adapters only theirs.

        Raises:
            RunError: where they are not the model's.
        """
        ...

    def rest(self) -> None:
        """The end of a turn: give back what others may need until the next `load`."""
        ...
