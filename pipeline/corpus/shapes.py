"""A shape says which columns of a row hold what; by it a row becomes a sample, and a sample the turns to score.

One function reads each arrangement of columns:

    prompted      a prompt column, and responses to it, which may repeat it
    threads       a column of user turns, and columns of assistant turns to put between them
    carried       the two halves of a pair, each with the prompt in front: messages or transcripts
    conversation  messages, of which the leading turns are the prompt
    grid          several prompts, and responses of which each stands behind every one of them
    steps         a prompt column, and one response in steps
    plain         text without a prompt

Its column says which response is better, or the shape's label rule does (`pipeline.corpus.labels.rules`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import takewhile
from typing import Any, Literal, NamedTuple

from pipeline.corpus import columns
from pipeline.corpus import messages as read
from pipeline.corpus.columns import RawRow
from pipeline.corpus.labels.layouts import Form
from pipeline.corpus.labels.rules import ByScores, Decision, Guessed, LabelRule, rule_from_json, rule_to_json
from pipeline.corpus.labels.words import word
from pipeline.corpus.placing import picture_columns, refuse_media, with_pictures
from pipeline.corpus.samples import (
    BESIDE,
    STEP_STARTS,
    FailedResponse,
    Message,
    Preference,
    Response,
    Sample,
    Turn,
    turn_id,
)
from pipeline.corpus.sources import Origin, without_pixels
from pipeline.errors import RowError

Column = tuple[str, Preference | None]
PLURAL = {"responses", "completions", "answers", "outputs", "solutions", "generations"}  # of which JSON lists are lists
WHOLE = ("threads", "grid", "steps")  # forms of which a column's value is read as it stands
SAMPLED = ("prompt_token_ids", "response_token_ids", "rendering")  # columns that `sample` writes


class Draft(NamedTuple):
    """A response as it stands in its row."""

    name: str  # of its column, or its place in the column's list
    where: str  # for messages
    preference: Preference | None
    value: Any  # or the RowError that reading it gave
    extra: dict[str, Any]


class Arranged(NamedTuple):
    """A row's conversation, before system messages, tools and other columns."""

    prompt: list[Message]
    conversational: bool
    responses: list[Response]
    failed: list[FailedResponse]
    used: tuple[str, ...] = ()  # columns of which the prompt was made


@dataclass(frozen=True)
class Shape:
    """Columns by what they hold; `a.b` is `b` within column `a`. Without `prompt` the responses carry it, or, where
    `plain`, they are text that has none."""

    responses: tuple[Column, ...]
    prompt: str | None = None
    context: str | None = None
    system: str | None = None
    plain: bool = False
    turns: Literal["last", "all"] = "last"
    label: LabelRule | None = None  # says which of the responses is better
    tools: str | None = None  # which the conversation may call; stays in `extra` as well
    history: str | None = None  # turns before the prompt
    form: Form = ""
    desirable: str | None = None  # says of the response alone whether it is good; stays in `extra`
    parses: bool = True  # whether text may be messages as JSON, or a transcript
    layout: str | None = None  # a published one, by name
    sampled: bool = False  # the columns SAMPLED hold the tokens that a policy was asked with and wrote
    images: tuple[str, ...] = ()  # hold the prompt's pictures; where none is named, those that are called so
    pictured: bool = False  # whether the prompts of its first rows have pictures
    origin: Origin | None = field(
        default=None, compare=False
    )  # of this run: where pictures are read; None: they are not
    note: str = field(default="", compare=False)  # what the first rows hold, for people

    def describe(self) -> str:
        """One line for people: `prompt + chosen + rejected (text, 3 each)`."""
        labels = self.label.columns if self.label else (self.desirable,)
        responses = (column for column, _ in self.responses)
        named = [*self.images, self.system, self.history, self.prompt, self.context, *responses, *labels]
        tokens = ", with the tokens that were sampled" if self.sampled else ""
        return " + ".join(filter(None, named)) + (f" ({self.note})" if self.note else "") + tokens

    def to_json(self) -> dict[str, Any]:
        data = {**asdict(self), "label": rule_to_json(self.label)}
        del data["origin"]
        if not self.pictured:  # as stores from before there were pictures have it
            del data["images"], data["pictured"]
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Shape":
        """Of older stores too: fields that they lack have the meaning that they had then."""
        data = {"parses": False, **data, "responses": tuple((column, kind) for column, kind in data["responses"])}
        data["images"] = tuple(data.get("images", ()))
        first_label = data.pop("first_label", 1)
        label = data.get("label")
        data["label"] = Guessed(label, first_label) if isinstance(label, str) else rule_from_json(label)
        return cls(**data)

    @property
    def arrangement(self) -> Literal["prompted", "threads", "carried", "conversation", "plain", "grid", "steps"]:
        if self.form == "grid" or self.form == "steps":
            return self.form
        if self.plain:
            return "plain"
        if self.prompt is not None:
            return "threads" if self.form == "threads" else "prompted"
        paired = self.label is not None or any(preference for _, preference in self.responses)
        return "carried" if paired else "conversation"

    def normalise(self, file_name: str, row_number: int, row: RawRow) -> Sample:
        """One row as a sample. Responses that cannot be scored are in its `failed`; a row without a usable prompt
        raises RowError. Columns that are not consumed become `extra`, with values that JSON can hold."""
        try:
            return self._normalise(file_name, row_number, row)
        except RecursionError:
            raise RowError("too_deep", "the row nests lists or objects too deeply to be handled") from None

    def _normalise(self, file_name: str, row_number: int, row: RawRow) -> Sample:
        refuse_media(row)
        drafts, decision = self._judged(row)
        arranged = ARRANGEMENTS[self.arrangement](self, row, drafts)
        history = read.to_history(columns.lookup(row, self.history), f"column {self.history!r}") if self.history else []
        system = self._system(row, [*history, *arranged.prompt])
        responses, empty = self._scorable(row, arranged.responses)
        images = picture_columns(row, self.images)
        prompt = [*system, *history, *arranged.prompt]
        prompt, responses = with_pictures(row, row_number, images, prompt, responses, self.origin)
        extra = self._extra(row, [*arranged.used, *images, self.history, self.system if system else None])
        prompt_token_ids, _, rendering = [row.get(column) if self.sampled else None for column in SAMPLED]
        return Sample(
            file=file_name,
            row=row_number,
            prompt=prompt,
            responses=responses,
            conversational=arranged.conversational or bool(history),
            extra={**decision.extra, **extra},
            failed=[*arranged.failed, *empty],
            tools=read.to_tools(row.get(self.tools), f"column {self.tools!r}") if self.tools else None,
            prompt_token_ids=prompt_token_ids,
            rendering=rendering,
        )

    def _scorable(self, row: RawRow, responses: Sequence[Response]) -> tuple[list[Response], list[FailedResponse]]:
        """Responses with the tokens that a policy wrote, where it did; those without a text to score apart."""
        scorable, empty = [], []
        for response in responses:
            if self._can_be_scored(response):
                written = self._written(row, response.index)
                scorable.append(response if written is None else replace(response, token_ids=written))
            else:
                error = RowError("empty_response", "the assistant's text is empty, so there is no token to score")
                empty.append(FailedResponse(response.preference, response.index, error))
        return scorable, empty

    def _extra(self, row: RawRow, used: Sequence[str | None]) -> dict[str, Any]:
        """The columns that became no part of the conversation, as JSON can hold them."""
        extra = row
        sampled = SAMPLED if self.sampled else ()
        for column in filter(None, (*used, *sampled, *(column for column, _ in self.responses))):
            extra = columns.without(extra, column)
        if self.desirable and (answer := word(row.get(self.desirable))) in ("true", "false"):
            extra = {**extra, self.desirable: answer == "true"}
        left: dict[str, Any] = columns.jsonable(without_pixels(extra))
        return left

    def _written(self, row: RawRow, index: int) -> Any:
        """The tokens of a response as its row has them, None for none. Whether they are its own is seen where it is scored."""
        column = row.get(SAMPLED[1]) if self.sampled else None
        return column[index] if isinstance(column, list) and index < len(column) else None

    def judge(self, row: RawRow) -> Decision:
        """Which responses of a row are chosen and rejected, and why. Raises RowError."""
        return self._judged(row)[1]

    def _judged(self, row: RawRow) -> tuple[list[Draft], Decision]:
        """The row's responses, and what its label says of them. Raises RowError."""
        drafts = list(self._drafts(row))
        if self.label is None:
            kinds = {preference: column for column, preference in self.responses if preference}
            because = "; ".join(f"column {column!r} holds the {kind} one" for kind, column in kinds.items())
            return drafts, Decision({}, because)
        names = list(dict.fromkeys(draft.name for draft in drafts))
        decision = self.label.decide(row, names)
        return [
            draft._replace(
                preference=decision.preferences.get(draft.name),
                extra={**draft.extra, **decision.of_response.get(draft.name, {})},
            )
            for draft in drafts
        ], decision

    def _drafts(self, row: RawRow) -> Iterator[Draft]:
        several = sum(preference is None for _, preference in self.responses) > 1
        keyed = several and not (self.label and not isinstance(self.label, ByScores))
        for column, preference in self.responses:
            where = f"column {column!r}"
            key = column if keyed and preference is None else ""
            try:
                value = columns.lookup(row, column)
                if self.form in WHOLE:
                    yield Draft(column, where, preference, value, {})
                    continue
                if self.parses and column.rpartition(".")[2] in PLURAL:
                    value = read.several(value)
                values = list(read.alternatives(self.decoded(value, where)))
                if not values:
                    raise RowError("empty_response", f"{where} is empty: it holds no response")
            except RowError as error:
                yield Draft(column, where, preference, error, {})
                continue
            for i, (name, value) in enumerate(values):
                full = ".".join(filter(None, (key, name)))
                place = where if len(values) == 1 and name is None else f"response {name or i!r} of {where}"
                own = column if len(self.responses) > 1 else name or str(i)
                yield Draft(own, place, preference, value, {"response_key": full} if full else {})

    def decoded(self, value: Any, where: str) -> Any:
        return read.decoded(value, where) if self.parses else value

    def _system(self, row: RawRow, conversation: Sequence[Message]) -> list[Message]:
        """The system message of a column of its own, unless it is empty or the conversation has one already."""
        if not self.system or not row.get(self.system) or (conversation and conversation[0]["role"] == "system"):
            return []
        return [Message(role="system", content=read.to_text(row[self.system], f"column {self.system!r}"))]

    def _can_be_scored(self, response: Response) -> bool:
        scored = [
            message["content"] or message.get("reasoning_content") or message.get("tool_calls")
            for message in response.messages
            if message["role"] == "assistant"
        ]
        return all(scored if self.turns == "all" else scored[-1:])


def _prompted(shape: Shape, row: RawRow, drafts: Sequence[Draft]) -> Arranged:
    """A prompt column. Responses that are conversations repeat it, and must begin with it."""
    assert shape.prompt is not None
    value = columns.lookup(row, shape.prompt)
    prompt, conversational, used = _prompt(shape, row, value)
    transcript = value if shape.parses and read.is_transcript_prompt(value) else None

    def messages(draft: Draft) -> list[Message]:
        if shape.parses and read.is_transcript(draft.value):
            return read.to_transcript(draft.value, draft.where)
        if transcript is not None and isinstance(draft.value, str):
            return read.continued(transcript, draft.value, draft.where)
        return read.to_response(draft.value, draft.where)[0]

    responses, failed = _each(shape, drafts, messages)
    conversational = conversational or any(len(response.messages) > 1 for response in responses)
    if any(response.messages[0]["role"] != "assistant" for response in responses):
        prompt, responses = _split(shape, prompt, responses)
    return Arranged(prompt, conversational, responses, failed, used)


def _prompt(shape: Shape, row: RawRow, value: Any) -> tuple[list[Message], bool, tuple[str, ...]]:
    """The prompt column as messages, whether it is a conversation, and the columns that went into it. Raises RowError."""
    assert shape.prompt is not None
    where = f"column {shape.prompt!r}"
    if shape.form == "tldr":
        return [Message(role="user", content=read.summary_question(value, where))], False, (shape.prompt,)
    if shape.parses and read.is_transcript_prompt(value):
        return read.to_transcript_prompt(value, where), True, (shape.prompt,)
    prompt, conversational = read.to_prompt(shape.decoded(value, where), where)
    if not shape.context or not prompt or conversational:
        return prompt, conversational, (shape.prompt,)
    if row.get(shape.context):
        about = read.to_text(row[shape.context], f"column {shape.context!r}")
        prompt = [Message(role="user", content=f"{prompt[0]['content']}\n\n{about}")]
    return prompt, False, (shape.prompt, shape.context)


def _threads(shape: Shape, row: RawRow, drafts: Sequence[Draft]) -> Arranged:
    """User turns in one column, assistant turns in another: conversations that share their first turns."""
    assert shape.prompt is not None
    asked = columns.lookup(row, shape.prompt)
    responses, failed = _each(shape, drafts, lambda draft: read.interleaved(asked, draft.value, draft.where))
    prompt, responses = _split(shape, [], responses) if responses else ([], [])
    return Arranged(prompt, True, responses, failed, (shape.prompt,))


def _carried(shape: Shape, row: RawRow, drafts: Sequence[Draft]) -> Arranged:
    """A pair without a prompt column: each half begins with the prompt, as messages or as a transcript."""

    def messages(draft: Draft) -> list[Message]:
        if isinstance(draft.value, str):
            return read.to_transcript(draft.value, draft.where)
        turns = read.to_response(draft.value, draft.where)[0]
        if shape.form == "turn" and row.get("turn") is not None:
            turns = read.up_to_turn(turns, row["turn"], draft.where)
        if turns[0]["role"] == "assistant":
            raise RowError("no_prompt", f"{draft.where} begins with the assistant's turn and no column holds a prompt")
        return turns

    responses, failed = _each(shape, drafts, messages)
    prompt, responses = _split(shape, [], responses) if responses else ([], [])
    return Arranged(prompt, True, responses, failed)


def _conversation(shape: Shape, row: RawRow, drafts: Sequence[Draft]) -> Arranged:
    """Whole conversations, whose leading turns are the prompt."""

    def messages(draft: Draft) -> list[Message]:
        if isinstance(draft.value, str):
            raise RowError("bad_message", f"{draft.where} is text; a list of messages is due")
        return read.to_response(draft.value, draft.where)[0]

    responses, failed = _each(shape, drafts, messages)
    prompt, responses = _split(shape, [], responses) if responses else ([], [])
    return Arranged(prompt, bool(responses), responses, failed)


def _plain(shape: Shape, row: RawRow, drafts: Sequence[Draft]) -> Arranged:
    """Text that answers nothing."""
    responses, failed = _each(shape, drafts, lambda draft: read.to_response(draft.value, draft.where)[0])
    return Arranged([], any(len(response.messages) > 1 for response in responses), responses, failed)


def _grid(shape: Shape, row: RawRow, drafts: Sequence[Draft]) -> Arranged:
    """Every response behind every prompt: as many responses, each of which carries its prompt."""
    assert shape.prompt is not None
    asked = columns.lookup(row, shape.prompt)
    cells = read.crossed(asked, _whole(drafts), f"column {shape.prompt!r}", drafts[0].where)
    responses = [Response(cell, None, i, {"response_key": name}) for i, (name, cell) in enumerate(cells)]
    return Arranged([], False, responses, [], (shape.prompt,))


def _steps(shape: Shape, row: RawRow, drafts: Sequence[Draft]) -> Arranged:
    """A prompt column, and one response that is a list of steps."""
    assert shape.prompt is not None
    prompt, conversational, used = _prompt(shape, row, columns.lookup(row, shape.prompt))
    text, starts = read.joined(_whole(drafts), drafts[0].where)
    response = Response([Message(role="assistant", content=text)], extra={STEP_STARTS: starts})
    return Arranged(prompt, conversational, [response], [], used)


def _whole(drafts: Sequence[Draft]) -> Any:
    """The value of the only column with responses. Raises RowError."""
    [draft] = drafts
    if isinstance(draft.value, RowError):
        raise draft.value
    return draft.value


ARRANGEMENTS: dict[str, Callable[[Shape, RawRow, Sequence[Draft]], Arranged]] = {
    "prompted": _prompted,
    "threads": _threads,
    "carried": _carried,
    "conversation": _conversation,
    "plain": _plain,
    "grid": _grid,
    "steps": _steps,
}


def _each(
    shape: Shape, drafts: Sequence[Draft], messages: Callable[[Draft], list[Message]]
) -> tuple[list[Response], list[FailedResponse]]:
    """The responses, each with its index among those of its preference; and those that cannot be read."""
    responses: list[Response] = []
    failed: list[FailedResponse] = []
    counts: dict[Preference | None, int] = {}
    for draft in drafts:
        index = counts.setdefault(draft.preference, 0)
        counts[draft.preference] += 1
        try:
            if isinstance(draft.value, RowError):
                raise draft.value
            value = draft.value if shape.form in WHOLE else shape.decoded(draft.value, draft.where)
            responses.append(Response(messages(draft._replace(value=value)), draft.preference, index, draft.extra))
        except RowError as error:
            failed.append(FailedResponse(draft.preference, index, error))
    return responses, failed


def _split(shape: Shape, prompt: list[Message], whole: list[Response]) -> tuple[list[Message], list[Response]]:
    """Conversations that carry their prompt, as that prompt and the responses to it. Raises `prompt_mismatch`."""
    shared = _shared(shape, [response.messages for response in whole])
    carried = whole[0].messages[:shared]
    if any(message not in carried for message in prompt):
        raise RowError("prompt_mismatch", f"the responses begin with turns that are not those of {shape.prompt!r}")
    return carried, [
        Response(each.messages[shared:], each.preference, each.index, each.extra, each.token_ids) for each in whole
    ]


def _shared(shape: Shape, conversations: list[list[Message]]) -> int:
    """How many leading turns are the prompt: those that all share, leaving each its last. A conversation that is no
    half of a pair leaves, with turns = "all", all from its first assistant turn on."""
    longest = min(len(messages) for messages in conversations) - 1
    if shape.turns == "all" and shape.label is None and all(preference is None for _, preference in shape.responses):
        first = next(i for i, message in enumerate(conversations[0]) if message["role"] == "assistant")
        longest = min(longest, first)
    same = takewhile(lambda turn: turn.count(turn[0]) == len(turn), zip(*conversations, strict=False))
    return min(longest, sum(1 for _ in same))


def turns(sample: Sample, which: Literal["last", "all"] = "last") -> Iterator[Turn]:
    """The assistant turns of a sample that are to be scored, each with everything before it as its prompt: the last of
    each response, or every one of it. `rubric` is None: rubrics are applied later."""
    for response in sample.responses:
        conversation = [*sample.prompt, *response.messages]
        spots = [i for i, message in enumerate(conversation) if message["role"] == "assistant"]
        for turn, spot in list(enumerate(spots))[-1 if which == "last" else 0 :]:
            if spot >= len(sample.prompt):
                yield Turn(
                    id=turn_id(sample.prompt_id, response.preference, response.index, turn),
                    prompt_id=sample.prompt_id,
                    preference=response.preference,
                    response_index=response.index,
                    turn=turn,
                    prompt=conversation[:spot],
                    response=conversation[spot]["content"],
                    conversational=sample.conversational,
                    rubric=None,
                    extra={**sample.extra, **response.extra} if response.extra else sample.extra,
                    beside={key: conversation[spot][key] for key in BESIDE if key in conversation[spot]},  # type: ignore[literal-required]
                    tools=sample.tools,
                    prompt_token_ids=sample.prompt_token_ids,
                    response_token_ids=response.token_ids,
                )
