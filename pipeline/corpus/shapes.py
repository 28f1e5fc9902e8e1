"""A shape says which columns of a row hold what; by it a row becomes a sample, and a sample the turns to score.

A corpus of two outputs and a label has its preferences in the label. What a label may say, white space, case and
`[[ ]]` aside:

    the first output is better    A, A>B, A>>B, model_a, first, the first column's name, 1 (0 where labels count from 0)
    the second output is better   B, B>A, B>>A, model_b, second, the second column's name, 2 (1 where they count from 0)
    neither                       C, A=B, B=A, tie, tie (bothbad): the row is an error, `no_preference`
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import takewhile
from typing import Any, Literal

from pipeline.corpus import columns
from pipeline.corpus import messages as read
from pipeline.corpus.columns import Row
from pipeline.errors import RowError
from pipeline.samples import BESIDE, FailedResponse, Message, Preference, Response, Sample, Turn, turn_id

Column = tuple[str, Preference | None]

SAMPLED = ("prompt_token_ids", "response_token_ids", "rendering")
BETTER = (("a", "a>b", "a>>b", "model_a", "first"), ("b", "b>a", "b>>a", "model_b", "second"))
NEITHER = ("c", "a=b", "b=a", "tie", "tie(bothbad)")


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
    label: str | None = None  # says which of the two responses is better
    first_label: int = 1  # a label that is this number names the first
    tools: str | None = None  # which the conversation may call; stays in `extra` as well
    sampled: bool = False  # the columns SAMPLED hold the tokens that a policy was asked with and wrote
    note: str = field(default="", compare=False)  # what the first rows hold, for people

    def describe(self) -> str:
        """One line for people: `prompt + chosen + rejected (text, 3 each)`."""
        named = [self.system, self.prompt, self.context, *(column for column, _ in self.responses), self.label]
        tokens = ", with the tokens that were sampled" if self.sampled else ""
        return " + ".join(filter(None, named)) + (f" ({self.note})" if self.note else "") + tokens

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Shape":
        """Of a store from before there were labels too: fields that it lacks have their defaults."""
        return cls(**{**data, "responses": tuple((column, preference) for column, preference in data["responses"])})

    def normalise(self, file_name: str, row_number: int, row: Row) -> Sample:
        """One row as a sample. Responses that cannot be scored are in its `failed`; a row without a usable prompt
        raises RowError. Columns that are not consumed become `extra`, with values that JSON can hold."""
        try:
            return self._normalise(file_name, row_number, row)
        except RecursionError:
            raise RowError("too_deep", "the row nests lists or objects too deeply to be handled") from None

    def _normalise(self, file_name: str, row_number: int, row: Row) -> Sample:
        if self.label is not None:
            return self._labelled(row, self.label)._normalise(file_name, row_number, row)
        used = [column for column, _ in self.responses]
        prompt, conversational = self._prompt(row, used)
        drafts: list[Response] = []
        failed: list[FailedResponse] = []
        counts: dict[Preference | None, int] = {}
        for where, preference, value, extra in self._values(row):
            index = counts.setdefault(preference, 0)
            counts[preference] += 1
            try:
                if isinstance(value, RowError):
                    raise value
                messages, as_messages = self._response(value, where, preference)
                drafts.append(Response(messages, preference, index, extra, self._written(row, index)))
                conversational = conversational or len(messages) > 1 or (as_messages and self.prompt is None)
            except RowError as error:
                failed.append(FailedResponse(preference, index, error))
        if any(self.prompt is None or response.messages[0]["role"] != "assistant" for response in drafts):
            prompt, drafts = self._split(prompt, drafts)
        prompt = self._instructed(prompt, row, used)
        responses = []
        for response in drafts:
            scored = [
                message["content"] or message.get("reasoning_content") or message.get("tool_calls")
                for message in response.messages
                if message["role"] == "assistant"
            ]
            if all(scored if self.turns == "all" else scored[-1:]):
                responses.append(response)
            else:
                empty = RowError("empty_response", "the assistant's text is empty, so there is no token to score")
                failed.append(FailedResponse(response.preference, response.index, empty))
        extra = row
        for column in used:
            extra = columns.without(extra, column)
        asked, _, rendering = [row.get(column) if self.sampled else None for column in SAMPLED]
        for column in SAMPLED if self.sampled else ():
            extra = columns.without(extra, column)
        tools = read.to_tools(row.get(self.tools), f"column {self.tools!r}") if self.tools else None
        extra = columns.jsonable(extra)
        return Sample(file_name, row_number, prompt, responses, conversational, extra, failed, tools, asked, rendering)

    def _written(self, row: Row, index: int) -> Any:
        """The tokens of a response as its row has them, None for none. Whether they are its own is seen where it is scored."""
        column = row.get(SAMPLED[1]) if self.sampled else None
        return column[index] if isinstance(column, list) and index < len(column) else None

    def _labelled(self, row: Row, label: str) -> "Shape":
        """The shape of this one row: its better response chosen, the other rejected."""
        (first, _), (second, _) = self.responses
        better = self._better(columns.lookup(row, label), first, second)
        named: tuple[Column, ...] = ((first, "chosen" if better == 0 else "rejected"),)
        named += ((second, "rejected" if better == 0 else "chosen"),)
        return replace(self, responses=named, label=None)

    def _better(self, value: Any, first: str, second: str) -> int:
        """0 or 1: which response a label names. Raises `no_preference` and `bad_label`."""
        said = _plain(value).removeprefix("[[").removesuffix("]]") if isinstance(value, str) else ""
        if said in NEITHER:
            raise RowError("no_preference", f"column {self.label!r} says {value!r}: neither response is the better one")
        if said in (_plain(first), _plain(second)):  # before the letters: columns may be named B and A
            return int(said != _plain(first))
        for index, names in enumerate(BETTER):
            if said in names or label_number(value) == self.first_label + index:
                return index
        raise RowError(
            "bad_label",
            f"column {self.label!r} says {value!r:.60}, which names none of the two responses; understood are A and B, "
            f"A>B and B>A, first and second, {first} and {second}, {self.first_label} and {self.first_label + 1}",
        )

    def _prompt(self, row: Row, used: list[str]) -> tuple[list[Message], bool]:
        if self.prompt is None:
            return [], False
        used.append(self.prompt)
        prompt, conversational = read.to_prompt(columns.lookup(row, self.prompt), f"column {self.prompt!r}")
        if self.context and prompt and not conversational:
            used.append(self.context)
            if row.get(self.context):
                about = read.to_text(row[self.context], f"column {self.context!r}")
                prompt = [Message(role="user", content=f"{prompt[0]['content']}\n\n{about}")]
        return prompt, conversational

    def _instructed(self, prompt: list[Message], row: Row, used: list[str]) -> list[Message]:
        """The prompt after the system message of a column of its own, unless it has one already."""
        if not self.system or not row.get(self.system) or (prompt and prompt[0]["role"] == "system"):
            return prompt
        used.append(self.system)
        return [Message(role="system", content=read.to_text(row[self.system], f"column {self.system!r}")), *prompt]

    def _values(self, row: Row) -> Iterator[tuple[str, Preference | None, Any, dict[str, Any]]]:
        """Every response as it stands: where, preference, value or RowError, and its own extra."""
        several = sum(preference is None for _, preference in self.responses) > 1
        for column, preference in self.responses:
            where = f"column {column!r}"
            key = column if several and preference is None else ""
            try:
                found = list(read.alternatives(columns.lookup(row, column)))
                if not found:
                    raise RowError("empty_response", f"{where} is empty: it holds no response")
            except RowError as error:
                yield where, preference, error, {}
                continue
            for i, (name, value) in enumerate(found):
                full = ".".join(filter(None, (key, name)))
                place = where if len(found) == 1 and name is None else f"response {name or i!r} of {where}"
                yield place, preference, value, {"response_key": full} if full else {}

    def _response(self, value: Any, where: str, preference: Preference | None) -> tuple[list[Message], bool]:
        if self.prompt is not None or self.plain:
            return read.to_response(value, where)
        if isinstance(value, str):
            if preference is None:
                raise RowError("bad_message", f"{where} is text; a list of messages is due")
            return read.to_transcript(value, where), True
        messages, as_messages = read.to_response(value, where)
        if preference and messages[0]["role"] == "assistant":
            raise RowError("no_prompt", f"{where} begins with the assistant's turn and no column holds a prompt")
        return messages, as_messages

    def _split(self, prompt: list[Message], whole: list[Response]) -> tuple[list[Message], list[Response]]:
        """Conversations that carry their prompt, as that prompt and the responses to it."""
        shared = self._shared([response.messages for response in whole])
        carried = whole[0].messages[:shared]
        if any(message not in carried for message in prompt):
            raise RowError("prompt_mismatch", f"the responses begin with turns that are not those of {self.prompt!r}")
        return carried, [replace(response, messages=response.messages[shared:]) for response in whole]

    def _shared(self, conversations: list[list[Message]]) -> int:
        """How many leading turns are the prompt: those that all share, leaving each its last. A conversation that is no
        half of a pair leaves, with turns = "all", all from its first assistant turn on."""
        longest = min(len(messages) for messages in conversations) - 1
        if self.turns == "all" and all(preference is None for _, preference in self.responses):
            first = next(i for i, message in enumerate(conversations[0]) if message["role"] == "assistant")
            longest = min(longest, first)
        same = takewhile(lambda turn: all(other == turn[0] for other in turn), zip(*conversations, strict=False))
        return min(longest, sum(1 for _ in same))


def _plain(name: str) -> str:
    return "".join(name.split()).lower()


def label_number(value: Any) -> int | None:
    """A label that is a whole number, as a number or in text: its value, else None."""
    if isinstance(value, str) and value.strip() in ("0", "1", "2"):
        return int(value)
    whole = isinstance(value, int | float) and not isinstance(value, bool) and value in (0, 1, 2)
    return int(value) if whole else None


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
                    extra={**sample.extra, **response.extra},
                    beside={key: conversation[spot][key] for key in BESIDE if key in conversation[spot]},  # type: ignore[literal-required]
                    tools=sample.tools,
                    prompt_token_ids=sample.prompt_token_ids,
                    response_token_ids=response.token_ids,
                )
