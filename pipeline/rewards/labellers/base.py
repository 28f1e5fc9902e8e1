"""What all labellers share."""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal, Self

from pipeline.config import EvaluateConfig, LabelConfig, ModelConfig, SampleConfig, TokensConfig
from pipeline.corpus import NumberedRow, Shape, Shard
from pipeline.corpus.samples import Message, Turn
from pipeline.errors import ConfigError, RowError
from pipeline.models.engines.base import Endpoint
from pipeline.models.loading import (
    context_length,
    identify_model,
    load_settings,
    load_tokenizer,
)
from pipeline.models.pictures import picture_processor, require_pictures
from pipeline.rewards.labelling import Prepared, failure, make_label, prepare
from pipeline.store import fingerprint
from pipeline.store.schema import Failure, Label
from pipeline.tokens import UNBOUNDED, Ending, PlainRenderer, Renderer, TokenizedTurn, tokenizer_digest

Engine = Literal["scorer", "classifier", "generator"]
Writer = Literal["transformers", "vllm", "endpoint"]


Texts = tuple[tuple[str, str], ...]  # files that the configuration names: path and content


@lru_cache(maxsize=4)
def open_renderer(
    model: ModelConfig,
    tokens: TokensConfig,
    ending: Ending = "turn",
    counts: bool = False,
    texts: Texts | None = None,
    sees: bool = False,
) -> Renderer:
    """Tokenizer, template, rubrics and context length of a run; one in a process. Raises ConfigError.

    Where it only counts, texts are plain, and nothing is too long. `sees`: what is asked shows the model pictures, too.
    """
    tokenizer = load_tokenizer(model)
    known = None if texts is None else dict(texts)
    if counts:
        return PlainRenderer(tokenizer, tokens, UNBOUNDED, known, ending)
    settings = load_settings(model)
    pictures = picture_processor(model, settings, tokenizer) if sees else None
    return Renderer(tokenizer, tokens, context_length(settings, tokenizer), known, ending, pictures)


@dataclass(frozen=True)
class Rendering:
    """What of a renderer is needed to read answers."""

    identity: str
    opens_thoughts: bool
    templated: bool

    @classmethod
    def of(cls, renderer: Renderer) -> Self:
        return cls(renderer.identity, renderer.opens_thoughts, renderer.template is not None)


@dataclass(frozen=True)
class Labeller:
    """Base of all kinds. It pickles: workers get it as it is."""

    config: LabelConfig
    model: ModelConfig  # the one that it asks, which need not be `config.model`
    tokenizer: ModelConfig | None = None  # whose tokenizer, template and context are used; default: the model's
    texts: Texts | None = None  # as the driver read them, so that workers need not
    known: Rendering | None = None  # as the driver has it, so that actors load no tokenizer

    name: ClassVar[str] = ""  # what the label store's description calls it
    engine: ClassVar[Engine] = "scorer"  # what answers the requests
    ending: ClassVar[Ending] = "turn"
    sees: ClassVar[bool] = False  # whether it shows the model pictures

    @property
    def tokens(self) -> TokensConfig:
        return self.config.tokens

    @property
    def renderer(self) -> Renderer:
        """Makes what the model sees."""
        return open_renderer(self.tokenizer or self.model, self.tokens, self.ending, False, self.texts, self.sees)

    @property
    def rendering(self) -> Rendering:
        return self.known or Rendering.of(self.renderer)

    @property
    def counter(self) -> Renderer:
        """Says how many tokens a response has; the same renderer where the model sees the response as its own."""
        return self.renderer

    @property
    def writer(self) -> Writer:
        """Which engine writes, where one does (`pipeline.models.engines`)."""
        return "transformers"

    @property
    def address(self) -> str:
        """Of the server, where that writes."""
        return ""

    def settings(self) -> dict[str, Any]:
        """What else changes a number, by the configuration's names."""
        raise NotImplementedError

    def require_pictures(self) -> None:
        """What a corpus with pictures asks, before anything is begun. Raises ConfigError."""
        if not self.sees:
            raise ConfigError(
                f"the corpus has pictures, and the reward or command {self.name} reads text alone; leave it out here, or give "
                "a corpus without pictures (docs/pictures.md)"
            )
        for model in filter(None, (self.model, self.tokenizer)):
            require_pictures(model, load_settings(model), load_tokenizer(model))

    def describe(self, dtype: str) -> dict[str, Any]:
        """All that changes a number: what the fingerprint of its label store is made of. Raises ConfigError."""
        model = {
            **identify_model(self.model, dtype),
            "max_length": self.renderer.max_length,
            "tokenizer": tokenizer_digest(self.renderer.tokenizer),
        }
        kind = {} if self.name == "endogenous" else {"labeller": self.name}
        config = self.config.model_copy(update={"tokens": self.tokens})
        settings = {**kind, **self.settings(), **self._written()}
        return fingerprint.describe(config, model, self.renderer.template, self.renderer.rubrics, settings)

    def _written(self) -> dict[str, Any]:
        """What of the writer changes a text; nothing where it is the reference, as in stores from before there were others."""
        if self.writer == "endpoint":
            endpoint = self.endpoint()
            return {"engine": "endpoint", "endpoint.model": endpoint.model, "endpoint.api": endpoint.api}
        return {} if self.writer == "transformers" else {"engine": self.writer}

    def endpoint(self) -> Endpoint:
        """The server that writes."""
        config = self.config
        assert isinstance(config, SampleConfig | EvaluateConfig)
        chats = config.endpoint.api == "chat" or (config.endpoint.api == "auto" and isinstance(config, EvaluateConfig))
        fields = {field.name for field in dataclasses.fields(Endpoint)} - {"url", "api"}
        api = "chat" if chats else "completions"
        return Endpoint(url=self.address, api=api, **config.endpoint.model_dump(include=fields))

    def prepare(self, shard: Shard, generation: int, rows: Iterable[NumberedRow], shape: Shape) -> Prepared:
        """A shard's rows as requests. Every response ends in a turn or a failure; nothing raises RowError."""
        raise NotImplementedError

    def finish(self, prepared: Prepared, answers: Sequence[Any]) -> tuple[list[Label], list[Failure]]:
        """Labels and failures from the engine's answers, one for each request."""
        raise NotImplementedError


class Asking(Labeller):
    """Base of the kinds that ask a question about responses. A question is not cut: where it does not fit, the response
    is an error row. The response itself is no turn of the model's, and is only counted, as plain text."""

    ending = "none"

    @property
    def tokens(self) -> TokensConfig:
        return self.config.tokens.model_copy(update={"over_length": "reject"})

    @property
    def counter(self) -> Renderer:
        plain = {"template": "none", "append_eos": False, "max_length": None, "sampled": "render"}
        return open_renderer(self.model, self.config.tokens.model_copy(update=plain), "none", True, self.texts)

    @property
    def chats(self) -> bool:
        """Whether a server renders the messages itself; tokens are then only counted."""
        return self.writer == "endpoint" and self.endpoint().api == "chat"

    def prompt_ids(
        self, prompt: list[Message], conversational: bool, rubric: str | None, tools: list[dict[str, Any]] | None = None
    ) -> list[int]:
        """The tokens of a prompt that the model is to answer itself, under a rubric: the template's own generation prompt.
        Raises `no_room` where they leave none for an answer, and other RowErrors."""
        ids = self.renderer.prompt_ids(prompt, conversational, tools, rubric)
        if len(ids) >= self.renderer.max_length and not self.chats:
            raise self.no_room(len(ids), self.renderer.max_length)
        return ids

    def no_room(self, tokens: int, most: int) -> RowError:
        """What becomes of a prompt of so many tokens where `most` fit, an answer included."""
        return RowError(
            "question_too_long",
            f"{tokens} tokens of the question leave no room for an answer, {most} fit; shorten the question, or take a model "
            "with a longer context",
        )

    def fitted(self, turn: Turn) -> TokenizedTurn:
        """A question with its answer as tokens, to be scored. Raises RowError."""
        try:
            return self.renderer.tokenize(turn)
        except RowError as error:
            if error.reason != "too_long":
                raise
            size = error.detail.partition(";")[0]
            raise RowError(
                "question_too_long", f"{size}; shorten the question, or take a model with a longer context"
            ) from None


@dataclass(frozen=True)
class OfResponses(Labeller):
    """Base of the kinds that ask one thing of each response, and read one number from the answer."""

    config: EvaluateConfig

    def request(self, turn: Turn, tokens: TokenizedTurn) -> Any:
        """What the engine is asked about a response. Raises RowError."""
        raise NotImplementedError

    def reward(self, answer: Any) -> tuple[float, dict[str, Any]]:
        """The reward and what else is worth keeping, from an answer. Raises RowError."""
        raise NotImplementedError

    def prepare(self, shard: Shard, generation: int, rows: Iterable[NumberedRow], shape: Shape) -> Prepared:
        out = prepare(shard, generation, rows, shape, self.counter, self.config.input.turns)
        asked: list[tuple[Turn, TokenizedTurn]] = []
        out.requests = []
        for turn, tokens in zip(out.turns, out.tokens, strict=True):
            try:
                out.requests.append(self.request(turn, tokens))
                asked.append((turn, tokens))
            except RowError as error:
                out.failures.append(failure(turn.id, turn.prompt_id, error))
        out.turns, out.tokens = [turn for turn, _ in asked], [tokens for _, tokens in asked]
        out.notes, out.counts = list(self.renderer.notes), self.renderer.take_counts()
        return out

    def finish(self, prepared: Prepared, answers: Sequence[Any]) -> tuple[list[Label], list[Failure]]:
        labels, failures = [], list(prepared.failures)
        for turn, tokens, answer in zip(prepared.turns, prepared.tokens, answers, strict=True):
            try:
                if isinstance(answer, RowError):
                    raise answer
                reward, kept = self.reward(answer)
                labels.append(make_label(turn, tokens, reward, kept=kept))
            except RowError as error:
                failures.append(failure(turn.id, turn.prompt_id, error))
        return labels, failures


def filled(template: str, **texts: str) -> str:
    """A question with its places filled in. Text that holds braces itself stays as it is.

    >>> filled("Q: {prompt} A: {response}", prompt="{response}?", response="Yes.")
    'Q: {response}? A: Yes.'
    """
    pieces: list[str] = []
    rest = template
    while rest:
        first = min(((rest.find(f"{{{n}}}"), n) for n in texts if f"{{{n}}}" in rest), default=None)
        if first is None:
            break
        at, name = first
        pieces += [rest[:at], texts[name]]
        rest = rest[at + len(name) + 2 :]
    return "".join([*pieces, rest])
