"""What one input row becomes: a prompt and the responses to it. Plain data, no behaviour beyond naming.

The words used everywhere:

- **row**: one record of an input file, counted from 0.
- **sample**: one row, normalised: a prompt and its responses.
- **turn**: one assistant message that is to be scored, with everything before it as its prompt. A response has one
  scored turn (its last) unless `input.turns = "all"`.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, NotRequired, TypedDict

from pipeline.corpus.pictures import Picture
from pipeline.errors import RowError

Preference = Literal["chosen", "rejected"]


class Message(TypedDict):
    """One turn of a conversation, as chat templates take it. A key that a message does not need is absent, never None.

    Where it has pictures, its content holds `pictures.PLACEHOLDER` once for each, in their order.
    """

    role: str
    content: str
    reasoning_content: NotRequired[str]  # thoughts that the corpus keeps beside the text
    tool_calls: NotRequired[list[dict[str, Any]]]  # as the corpus has them
    tool_call_id: NotRequired[str]
    name: NotRequired[str]
    pictures: NotRequired[list[Picture]]


OPENS_THOUGHTS = "opens_thoughts"  # a column of samples: true where their prompt ends inside thoughts
STEP_STARTS = "step_starts"  # of a response in steps: the character at which each begins
BESIDE = ("reasoning_content", "tool_calls", "tool_call_id", "name")  # what a message may have beside role and content


@dataclass(frozen=True)
class Response:
    """One response to a prompt: the messages that follow it, the last of which the assistant wrote."""

    messages: list[Message]
    preference: Preference | None = None
    index: int = 0  # position among the responses of this prompt and preference
    extra: dict[str, Any] = field(default_factory=dict)  # what the input says of this response alone (a domain, a key)
    token_ids: list[int] | None = None  # where a policy wrote it: its very tokens


@dataclass(frozen=True)
class FailedResponse:
    """A response that cannot be scored, though its siblings may be."""

    preference: Preference | None
    index: int
    error: RowError


@dataclass(frozen=True)
class Sample:
    """One input row, normalised. Each of its responses is in `responses` or in `failed`.

    `conversational` is False where the input gave the prompt as bare text: a base model then sees that text as it is,
    not a transcript of turns.
    """

    file: str  # the input's name, as in ids
    row: int
    prompt: list[Message]  # may be empty: a corpus of plain text
    responses: list[Response]
    conversational: bool
    extra: dict[str, Any] = field(default_factory=dict)  # input columns that have no other place
    failed: list[FailedResponse] = field(default_factory=list)
    tools: list[dict[str, Any]] | None = None  # that the conversation may call, as chat templates take them
    prompt_token_ids: list[int] | None = None  # where a policy was asked: the very tokens that it answered
    rendering: str | None = None  # and what had made them of the prompt: see `pipeline.tokens.sampled`

    @property
    def prompt_id(self) -> str:
        return f"{self.file}:{self.row}"


@dataclass(frozen=True)
class Turn:
    """One assistant turn to score. `turn` counts the assistant messages before it in the conversation."""

    id: str
    prompt_id: str
    preference: Preference | None
    response_index: int
    turn: int
    prompt: list[Message]
    response: str
    conversational: bool
    rubric: str | None
    extra: dict[str, Any]
    beside: dict[str, Any] = field(default_factory=dict)  # of the scored message: thoughts, tool calls (see `Message`)
    tools: list[dict[str, Any]] | None = None
    prompt_token_ids: list[int] | None = None  # where a policy wrote the response: what it was asked with,
    response_token_ids: list[int] | None = None  # and what it wrote

    @property
    def answer(self) -> Message:
        """The scored message whole."""
        return {"role": "assistant", "content": self.response, **self.beside}  # type: ignore[typeddict-item]


def response_id(prompt_id: str, preference: Preference | None, index: int) -> str:
    return f"{prompt_id}:{preference or 'response'}:{index}"


def turn_id(prompt_id: str, preference: Preference | None, index: int, turn: int, rubric: str | None = None) -> str:
    """The id of a label: the same on every run over the same input.

    >>> turn_id("a.jsonl:7", "chosen", 0, 2, "safety")
    'a.jsonl:7:chosen:0:2@safety'
    """
    name = f"{response_id(prompt_id, preference, index)}:{turn}"
    return f"{name}@{rubric}" if rubric else name


@dataclass(frozen=True)
class TurnName:
    """What an id says beside its prompt. `turn` is None where a response failed before its turns were told apart."""

    preference: Preference | None
    index: int
    turn: int | None
    rubric: str | None


def parse_turn_id(prompt_id: str, identity: str) -> TurnName | None:
    """The inverse of `turn_id` and `response_id`; None for the prompt's own id, which speaks of a whole row.

    >>> parse_turn_id("a.jsonl:7", "a.jsonl:7:chosen:0:2@safety")
    TurnName(preference='chosen', index=0, turn=2, rubric='safety')
    """
    if identity == prompt_id:
        return None
    name, _, rubric = identity[len(prompt_id) + 1 :].partition("@")
    kind, index, *turn = name.split(":")
    preference: Preference | None = None if kind == "response" else kind  # type: ignore[assignment]
    return TurnName(preference, int(index), int(turn[0]) if turn else None, rubric or None)
