"""Rows of label stores as tokens for a policy: what a step computes on.

A store keeps the tokens of prompt and response, and its description which tokenizer made them. Where that is the policy's
they are what it learns from, and nothing is rendered. Under another tokenizer each row that is read is rendered by it,
with the settings that the store records, and has to come to the stored tokens. A policy that would see other tokens than
those that were labelled is refused at the first such row, never trained.

A store of format 1 keeps of a prompt the messages and the number of its tokens, and is held against that number and the
response's own tokens.

Without a template a store does not say whether a prompt was bare text or a conversation. Both are rendered; the one
that has the stored tokens is it. So are the prompt of an answer that is scored and that of one that is written.

Of a picture the store has the place and the digest. Its bytes are read again for each step that learns from it, and have to be
those that were labelled.

Parts are read whole and kept, the last used ones, with the rows that were read of them: a window of `order.Order` is read,
rendered and checked once.
"""

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config import ModelConfig, TokensConfig
from pipeline.corpus.pictures import Picture, read_picture
from pipeline.corpus.samples import Message, Turn
from pipeline.errors import ConfigError, RowError, StoreError
from pipeline.models.loading import (
    context_length,
    identify_model,
    load_settings,
    load_tokenizer,
)
from pipeline.models.pictures import PictureProcessor, picture_processor, require_pictures
from pipeline.rewards.derive import TOKEN_COLUMNS
from pipeline.rewards.labellers import (
    Classified,
    Endogenous,
    Labeller,
    MathsAnswerer,
    PairwiseJudge,
    PointwiseJudge,
    PromptSampler,
    Sampling,
    Verifier,
)
from pipeline.store.schema import read_messages
from pipeline.tokens import NO_IDS, STAND_IN, UNBOUNDED, Ids, PlainRenderer, Renderer, TokenizedTurn, tokenizer_digest
from pipeline.tokens.pictures import pictures_of
from pipeline.training.examples import Examples, Integers, LabelPart, Source, read_columns

LIGHT = ["id", "prompt", "response", "reward", "num_prompt_tokens", "truncated", "response_other"]
IDS = ["token_ids", "prompt_token_ids"]
COLUMNS = [*LIGHT, *IDS, *TOKEN_COLUMNS]
STORED = "stored"  # stands for the file of the template, whose text is in the store
KINDS: dict[str, type[Labeller]] = {
    kind.name: kind
    for kind in (Endogenous, Classified, PointwiseJudge, PairwiseJudge, PromptSampler, MathsAnswerer, Verifier)
}
PLAIN = (PointwiseJudge, PairwiseJudge, Verifier)  # they ask about a response, whose own tokens are of its plain text
REMEDY = (
    "label with the policy's own tokenizer (endoreward label --model with the policy), or train a policy that has the "
    "tokenizer of the labels"
)


Column = NDArray[np.float32]


@dataclass(frozen=True, eq=False, slots=True)
class TrainingRow:
    """One response as the policy sees it. The columns of tokens are None where rewards are of whole responses."""

    id: str
    prompt_ids: Ids  # at least one
    response_ids: Ids  # [H], as labelled
    reward: float
    logprobs: Column | None  # [H], log pi of the model that labelled, nats
    values: Column | None  # [H], V(s_h)
    token_rewards: Column | None  # [H], r_h
    pictures: tuple[tuple[str, str], ...] = ()  # place and digest of each of the prompt's, in order


class RowReader:
    """Reads rows of some stores' parts.

    Args:
        sources, parts: those of the examples.
        policy: whose tokenizer renders, and whose vocabulary and context the rows have to fit.
        hold: how many parts are kept in memory, `train.shuffle_parts`.

    Raises:
        ConfigError: where the policy's tokenizer or configuration cannot be loaded, or prompts have pictures and it sees none.
    """

    def __init__(self, sources: Sequence[Source], parts: Sequence[LabelPart], policy: ModelConfig, hold: int):
        self.sources, self.parts, self.policy, self.hold = sources, parts, policy, hold
        self.tokenizer, settings = load_tokenizer(policy), load_settings(policy)
        self.context = context_length(settings, self.tokenizer)
        self.vocabulary: int = settings.get_text_config().vocab_size
        own = tokenizer_digest(self.tokenizer)
        self.same = [source.description.get("model.tokenizer") == own for source in sources]
        self.processor: PictureProcessor | None = None
        if any(source.pictured for source in sources):
            require_pictures(policy, settings, self.tokenizer)
            self.processor = picture_processor(policy, settings, self.tokenizer)
        self.renderers = [stored_renderer(self.tokenizer, source.description, self.processor) for source in sources]
        self._held: OrderedDict[int, tuple[pa.Table, dict[int, TrainingRow]]] = OrderedDict()
        self._last: tuple[tuple[tuple[str, str], ...], tuple[Picture, ...]] = ((), ())

    def read(self, examples: Examples, positions: Sequence[int] | Integers) -> list[TrainingRow]:
        """The rows at these positions of the examples' arrays of [R], in this order. Each part is read once at most.

        Raises:
            StoreError: where a part is gone or damaged.
            ConfigError: where the policy would see other tokens than those that were labelled.
        """
        numbers, rows = examples.places(np.asarray(positions, np.int64))
        read: dict[int, TrainingRow] = {}
        for position in np.argsort(numbers, kind="stable").tolist():
            number = int(numbers[position])
            labels, known = self._part(number)
            row = int(rows[position])
            if row not in known:
                known[row] = self._row(number, labels, row)
            read[position] = known[row]
        return [read[position] for position in range(len(read))]

    def pictures(self, row: TrainingRow) -> tuple[Picture, ...]:
        """Those of a row's prompt, read again; those of the row before where they are the same.

        Raises:
            StoreError: where one is gone, or another than the one that was labelled.
            ConfigError: where the policy takes it for another number of tokens.
        """
        if row.pictures != self._last[0]:
            self._last = row.pictures, self._pictures(row)
        return self._last[1]

    def _pictures(self, row: TrainingRow) -> tuple[Picture, ...]:
        if self.processor is None or not row.pictures:
            return ()
        try:
            read = tuple(read_picture(place, digest) for place, digest in row.pictures)
            shown = self.processor.expanded([picture.size() for picture in read])
        except RowError as error:
            raise StoreError(f"{row.id}: a picture of its prompt cannot be learnt from: {error.detail}") from None
        due = sum(text.count(self.processor.token) for text in shown)
        count = int((row.prompt_ids == self.processor.token_id).sum())
        if count != due:
            raise ConfigError(
                f"{row.id}: its pictures have {count} tokens in the labels and {due} under the processor of "
                f"{self.policy.name}, which is not the one that the labels were made with; label with the policy"
            )
        return read

    def _part(self, number: int) -> tuple[pa.Table, dict[int, TrainingRow]]:
        if number not in self._held:
            while len(self._held) >= self.hold:
                self._held.popitem(last=False)
            self._held[number] = read_columns(self.parts[number].uri, COLUMNS).combine_chunks(), {}
        self._held.move_to_end(number)
        return self._held[number]

    def _row(self, number: int, labels: pa.Table, row: int) -> TrainingRow:
        [stored] = labels.slice(row, 1).select(LIGHT).to_pylist()
        source = self.parts[number].source
        ids, asked = (_tokens(labels[name], row) for name in IDS)
        ids = NO_IDS if ids is None else ids
        where = f"{self.sources[source].uri}, row {stored['id']}"
        largest = max(int(each.max(initial=0)) for each in (ids, asked) if each is not None)
        if largest >= self.vocabulary:
            raise ConfigError(
                f"{where}: token {largest} is outside the vocabulary of {self.policy.name}, which has {self.vocabulary:,} "
                f"tokens: a policy whose vocabulary differs from the stored token ids; {REMEDY}"
            )
        if asked is None or not self.same[source]:
            prompt_ids = self._prompt(self.renderers[source], stored, ids, asked, where)
        else:
            prompt_ids = asked
        if len(prompt_ids) + len(ids) > self.context:
            raise ConfigError(
                f"{where}: {len(prompt_ids)} prompt and {len(ids)} response tokens, and {self.policy.name} takes "
                f"{self.context}; label with tokens.max_length = {self.context}, or train a policy with a longer context"
            )
        logprobs, values, rewards = (_tokens(labels[name], row) for name in TOKEN_COLUMNS)
        pictures = _pictures_of(read_messages(stored["prompt"])) if self.sources[source].pictured else ()
        return TrainingRow(stored["id"], prompt_ids, ids, stored["reward"], logprobs, values, rewards, pictures)

    def _prompt(self, renderer: Renderer, stored: Mapping[str, Any], ids: Ids, asked: Ids | None, where: str) -> Ids:
        """The prompt's tokens, which are those that were labelled. Raises ConfigError where none are."""
        length = stored["num_prompt_tokens"]
        rendered = [
            each
            for talk in _readings(renderer)
            for each in self._rendered(renderer, stored, talk, asked is not None, where)
        ]
        fitting = [each for each in rendered if len(each.prompt_ids) == length]
        if asked is not None and fitting:
            fitting = [each for each in fitting if np.array_equal(each.prompt_ids, asked)]
            if not fitting:
                raise ConfigError(
                    f"{where}: its prompt's tokens read {self._decoded(asked)[-60:]!r} under the tokenizer of "
                    f"{self.policy.name}, which makes others of the prompt: a policy whose vocabulary differs from the stored "
                    f"token ids, or that is asked another way; {REMEDY}"
                )
        for each in fitting:
            if np.array_equal(each.response_ids, ids):
                return each.prompt_ids
        if not fitting:
            lengths = " or ".join(dict.fromkeys(str(len(each.prompt_ids)) for each in rendered))
            raise ConfigError(
                f"{where}: its prompt has {length} tokens in the labels and {lengths} under the tokenizer of "
                f"{self.policy.name}, which is not the one that the labels were made with; {REMEDY}"
            )
        if not self._says(ids, stored["response"], stored["truncated"]):
            raise ConfigError(
                f"{where}: its tokens read {self._decoded(ids)[:60]!r} under the tokenizer of {self.policy.name}, and its "
                f"text is {stored['response'][:60]!r}: a policy whose vocabulary differs from the stored token ids; {REMEDY}"
            )
        return fitting[0].prompt_ids

    def _rendered(
        self, renderer: Renderer, stored: Mapping[str, Any], talk: bool, asked: bool, where: str
    ) -> list[TokenizedTurn]:
        """As an answer that is scored and, where the stored tokens can tell, as a prompt that the policy answers itself."""
        prompt, beside = (
            _with_pictures(read_messages(stored["prompt"]), where),
            json.loads(stored["response_other"] or "{}"),
        )
        response = (
            stored["response"] if stored["response"].strip() or beside else STAND_IN
        )  # a sampled one may be empty
        turn = Turn(stored["id"], "", None, 0, 0, prompt, response, talk, None, {}, beside)
        try:
            tokenized = [renderer.tokenize(turn)]
            if asked and not pictures_of(prompt):  # whose prompts no policy is asked
                tokenized.append(TokenizedTurn(np.array(renderer.prompt_ids(prompt, talk)), NO_IDS, prompt))
        except RowError as error:
            raise ConfigError(
                f"{where}: cannot be rendered for {self.policy.name} as it was labelled: {error.detail}; {REMEDY}"
            ) from None
        return tokenized

    def _says(self, ids: Ids, response: str, truncated: bool) -> bool:
        """Whether tokens that another cut gave (a sampled answer) spell the response."""
        decoded, text = self._decoded(ids), response.strip()
        return text.startswith(decoded.rstrip("\ufffd")) if truncated else text == decoded

    def _decoded(self, ids: Ids) -> str:
        text: str = self.tokenizer.decode(ids.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text.strip()


def check_rows(reader: RowReader, examples: Examples, count: int = 64) -> None:
    """Reads about `count` rows, spread over all, and holds the longest against the context: so a run that cannot go
    on fails before it starts. Raises what `RowReader.read` raises."""
    total = len(examples.rows)
    longest = int(np.argmax(examples.prompt_tokens.astype(np.int64) + examples.tokens))
    rows = np.unique([*np.linspace(0, total - 1, min(count, total)).astype(np.int64), longest])
    for row in reader.read(examples, rows):
        reader.pictures(row)


def stored_renderer(
    tokenizer: Any, description: Mapping[str, Any], pictures: PictureProcessor | None = None
) -> Renderer:
    """Renders what a store's rows hold as they were rendered: a rubric is in their prompts already."""
    kind = KINDS[description.get("labeller", Endogenous.name)]
    template = description["tokens.template"]
    first = description["format"] == 1  # of before there were these choices
    config = TokensConfig(
        template=STORED if template is not None else "none",
        over_length=description["tokens.over_length"],
        append_eos=description["tokens.append_eos"],
        template_kwargs=description.get("tokens.template_kwargs", {}),
        date=description.get("tokens.date"),
        thoughts=description.get("tokens.thoughts", "score"),
        control=description.get("tokens.control", "keep" if first else "text"),
        trailing_space=description.get("tokens.trailing_space", "keep" if first else "move"),
    )
    if issubclass(kind, PLAIN):
        plain = config.model_copy(update={"template": "none", "append_eos": False})
        return PlainRenderer(tokenizer, plain, UNBOUNDED, {}, "none")
    texts = {} if template is None else {STORED: template}
    if issubclass(kind, Sampling):  # its answers were generated, to any length
        return Renderer(tokenizer, config, UNBOUNDED, texts)
    return Renderer(tokenizer, config, description["model.max_length"], texts, kind.ending, pictures)


def stored_reference(sources: Sequence[Source], policy: ModelConfig, dtype: str) -> tuple[bool, list[str]]:
    """Whether the stored log-probabilities are those of the policy before training, and so its reference's.

    They are where the same weights labelled: the content of a local folder, name and revision of a hub model.

    Args:
        dtype: that the policy computes in.

    Returns:
        And what a person should know: where labels were made in another dtype, they differ from the policy's own by
        rounding.
    """
    own = {name: value for name, value in identify_model(policy, dtype).items() if name != "dtype"}
    notes = []
    for source in sources:
        model = {name: source.description.get(f"model.{name}") for name in own}
        if model != own or not source.of_tokens:
            return False, []
        made = source.description["model.dtype"]
        if made != dtype:
            notes.append(
                f"the reference is the log-probabilities of {source.uri}, made in {made}; the policy computes in {dtype}, so "
                "they differ by rounding before the first step"
            )
    return True, notes


def _readings(renderer: Renderer) -> tuple[bool, ...]:
    """What a prompt may have been: a conversation or not. With a template there is no difference."""
    return (True,) if renderer.template is not None else (False, True)


def _pictures_of(prompt: Sequence[Message]) -> tuple[tuple[str, str], ...]:
    """Place and digest of each picture, as a store's messages have them."""
    stored: Any = [picture for message in prompt for picture in message.get("pictures", ())]
    return tuple((picture["place"], picture["digest"]) for picture in stored)


def _with_pictures(prompt: list[Message], where: str) -> list[Message]:
    """A store's messages with their pictures read again. Raises StoreError."""
    try:
        return [
            {**message, "pictures": [read_picture(*each) for each in _pictures_of([message])]}
            if "pictures" in message
            else message
            for message in prompt
        ]
    except RowError as error:
        raise StoreError(f"{where}: a picture of its prompt cannot be read: {error.detail}") from None


def _tokens(column: pa.ChunkedArray, row: int) -> Any:
    """One value of a list column as an array of its own type; None for null and where it is empty."""
    values = column[row].values
    return values.to_numpy(zero_copy_only=False) if values is not None and len(values) else None
