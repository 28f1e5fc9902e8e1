"""What requests of the native route hold, and what they get back, as JSON and as Arrow."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.responses import Response

from pipeline.errors import RowError
from pipeline.store.schema import Label

ARROW = "application/vnd.apache.arrow.stream"
Include = Literal["token_ids", "prompt_token_ids", "token_rewards", "token_logprobs", "token_values", "response"]
COLUMNS = {
    "token_ids": pa.list_(pa.int32()),
    "prompt_token_ids": pa.list_(pa.int32()),
    "token_rewards": pa.list_(pa.float32()),
    "token_logprobs": pa.list_(pa.float32()),
    "token_values": pa.list_(pa.float32()),
    "response": pa.string(),
}
Ids = list[int]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Input(Body):
    """One prompt and the responses to it. Give `messages`; or `prompt` with `responses`, and `response_token_ids` where a
    policy wrote them; or `prompt_token_ids` with `response_token_ids`."""

    messages: list[dict[str, Any]] | None = Field(default=None, description="a conversation, whose last turn is scored")
    prompt: str | list[dict[str, Any]] | None = None
    responses: list[str | list[dict[str, Any]]] | None = None
    prompt_token_ids: Ids | None = None
    response_token_ids: list[Ids] | None = None
    as_written: bool = Field(default=False, description="text that is final: no template is applied")

    @model_validator(mode="after")
    def _of_one_kind(self) -> Self:
        given = {name for name in type(self).model_fields if name != "as_written" and getattr(self, name) is not None}
        kinds = (
            {"messages"},
            {"prompt", "responses"},
            {"prompt", "responses", "response_token_ids"},
            {"prompt_token_ids", "response_token_ids"},
        )
        if given not in kinds:
            raise ValueError(
                "give messages; or prompt and responses, with response_token_ids where a policy wrote them; or "
                "prompt_token_ids and response_token_ids"
            )
        if self.as_written and not isinstance(self.prompt, str):
            raise ValueError("as_written is for a prompt that is text; leave it out")
        return self


class RewardsRequest(Body):
    model: str | None = Field(default=None, description="as /v1/models names it; default: the one that is served")
    inputs: list[Input] = Field(min_length=1)
    reward: dict[str, Any] = Field(default={}, description="fields of the section reward; others are the server's")
    include: list[Include] = Field(default=[], description="what to return beside the rewards")


@dataclass(frozen=True)
class Row:
    """A response's answer; `place` is its input's number and its own within that."""

    place: tuple[int, int]
    answer: Label | RowError


def as_json(rows: Sequence[Row], include: Sequence[Include]) -> list[dict[str, Any]]:
    return [{"input": row.place[0], "response_index": row.place[1], **_fields(row.answer, include)} for row in rows]


def _fields(answer: Label | RowError, include: Sequence[Include]) -> dict[str, Any]:
    if isinstance(answer, RowError):
        return {"error": {"reason": answer.reason, "detail": answer.detail}}
    known: dict[str, Any] = {
        "reward": answer.reward,
        "num_tokens": answer.num_tokens,
        "num_prompt_tokens": answer.num_prompt_tokens,
        "truncated": answer.truncated,
    }
    for name in include:
        value = getattr(answer, name)
        known[name] = value if isinstance(value, str | list) else value.tolist()
    return known


def as_arrow(rows: Sequence[Row], include: Sequence[Include]) -> bytes:
    """The same as a table in Arrow's streaming format, a row a response; `reason` and `detail` are null where it is scored."""
    labels = [None if isinstance(row.answer, RowError) else row.answer for row in rows]
    errors = [row.answer if isinstance(row.answer, RowError) else None for row in rows]
    columns: dict[str, Any] = {
        "input": pa.array([row.place[0] for row in rows], pa.int32()),
        "response_index": pa.array([row.place[1] for row in rows], pa.int32()),
        "reward": pa.array([each and each.reward for each in labels], pa.float64()),
        "num_tokens": pa.array([each and each.num_tokens for each in labels], pa.int32()),
        "num_prompt_tokens": pa.array([each and each.num_prompt_tokens for each in labels], pa.int32()),
        "truncated": pa.array([each and each.truncated for each in labels], pa.bool_()),
    }
    for name in include:
        columns[name] = pa.array([each and getattr(each, name) for each in labels], COLUMNS[name])
    for field in ("reason", "detail"):
        columns[field] = pa.array([each and getattr(each, field) for each in errors], pa.string())
    table = pa.table(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def json_response(value: Any, status: int = 200) -> Response:
    return Response(json.dumps(value, allow_nan=False), status, media_type="application/json")
