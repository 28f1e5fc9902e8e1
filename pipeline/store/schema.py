"""The columns of the label store: the names are a contract with everyone who reads it."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.corpus.pictures import Picture
from pipeline.corpus.samples import BESIDE, Message, Preference

MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string()), ("other", pa.string())])
LABELS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("preference", pa.string()),
        pa.field("response_index", pa.int32(), nullable=False),
        pa.field("prompt", pa.list_(MESSAGE), nullable=False),
        pa.field("response", pa.string(), nullable=False),
        pa.field("reward", pa.float64(), nullable=False),
        pa.field("num_tokens", pa.int32(), nullable=False),
        pa.field("num_prompt_tokens", pa.int32(), nullable=False),
        pa.field("truncated", pa.bool_(), nullable=False),
        pa.field("token_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("turn", pa.int32(), nullable=False),
        pa.field("token_logprobs", pa.list_(pa.float32()), nullable=False),
        pa.field("token_values", pa.list_(pa.float32()), nullable=False),
        pa.field("token_rewards", pa.list_(pa.float32()), nullable=False),
        pa.field("rubric", pa.string()),
        pa.field("extra_info", pa.string(), nullable=False),
        pa.field("prompt_token_ids", pa.list_(pa.int32())),  # null where the store follows from one without
        pa.field("response_other", pa.string()),
    ]
)
CERTAINTY = pa.schema(
    [
        pa.field("token_entropies", pa.list_(pa.float32()), nullable=False),
        pa.field("token_self_certainty", pa.list_(pa.float32()), nullable=False),
    ]
)
WIDE_LABELS = pa.schema([*LABELS, *CERTAINTY])  # of stores with reward.token_certainty
LATER = ("prompt_token_ids", "response_other")  # columns that stores of format 1 lack
_FORMER_PROMPT = pa.field(
    "prompt", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])), nullable=False
)
FORMER_LABELS = pa.schema([_FORMER_PROMPT if f.name == "prompt" else f for f in LABELS if f.name not in LATER])

ERRORS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),  # of a label that could not be made, or of the whole input row
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Label:
    """One row of `labels/`; see docs/store.md for what each field means."""

    id: str
    prompt_id: str
    preference: Preference | None
    response_index: int
    prompt: list[Message]
    response: str
    reward: float
    num_tokens: int
    num_prompt_tokens: int
    truncated: bool
    token_ids: Sequence[int] | NDArray[np.int32]
    turn: int
    token_logprobs: NDArray[np.float32]
    token_values: NDArray[np.float32]
    token_rewards: NDArray[np.float32]
    rubric: str | None
    extra_info: str
    prompt_token_ids: Sequence[int] | NDArray[np.int32] | None = None
    response_other: str | None = None
    token_entropies: NDArray[np.floating[Any]] | None = None
    token_self_certainty: NDArray[np.floating[Any]] | None = None


@dataclass(frozen=True)
class Failure:
    """One row of `errors/`."""

    id: str
    prompt_id: str
    file: str
    row: int
    reason: str
    detail: str


def labels_table(labels: Sequence[Label]) -> pa.Table:
    schema = WIDE_LABELS if any(label.token_entropies is not None for label in labels) else LABELS
    fields = attrgetter(*schema.names)
    values = map(list, zip(*map(fields, labels), strict=True)) if labels else [[] for _ in schema.names]
    columns: dict[str, list[Any]] = dict(zip(schema.names, values, strict=True))
    columns["prompt"] = _each_once(columns["prompt"], stored_messages)
    return pa.table({name: _column(values, schema.field(name).type) for name, values in columns.items()}, schema=schema)


def _each_once(values: Sequence[Any], make: Callable[[Any], Any]) -> list[Any]:
    """`make` of each; of one that stands there several times, as a prompt does for its responses, once."""
    made = {id(value): make(value) for value in {id(value): value for value in values}.values()}
    return [made[id(value)] for value in values]


def _column(values: list[Any], type: pa.DataType) -> list[Any] | pa.Array:
    """Lists of numbers as one array behind their lengths; anything else as it is."""
    if not (pa.types.is_list(type) and pa.types.is_primitive(type.value_type)):
        return values
    lengths = [0 if value is None else len(value) for value in values]
    dtype = type.value_type.to_pandas_dtype()
    flat = np.concatenate([np.zeros(0, dtype), *(np.asarray(v, dtype) for v in values if v is not None)])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    missing = pa.array([value is None for value in values], pa.bool_())
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat), type, mask=missing)


def errors_table(failures: Sequence[Failure]) -> pa.Table:
    return pa.table({name: [getattr(failure, name) for failure in failures] for name in ERRORS.names}, schema=ERRORS)


def stored_messages(messages: Sequence[Message]) -> list[Any]:
    """Messages as the columns hold them: `other` is JSON of what a message has beside role and content, else null."""
    return [{"role": m["role"], "content": m["content"], "other": other_json(m)} for m in messages]


def read_messages(stored: Sequence[Mapping[str, Any]]) -> list[Message]:
    """The inverse of `stored_messages`, also of a store of format 1, whose messages have no `other`. Of a picture the message
    has what the store has, `digest` and `place`: `pipeline.corpus.pictures.read_picture` takes both."""
    return [read_message(m["role"], m["content"], m.get("other")) for m in stored]


def read_message(role: str, content: str, other: str | None) -> Message:
    return cast(Message, {"role": role, "content": content, **json.loads(other or "{}")})


def other_json(message: Mapping[str, Any]) -> str | None:
    """JSON of what a message has beside role and content, None for nothing. Of a picture that is its digest and place."""
    beside = {name: message[name] for name in BESIDE if name in message}
    if message.get("pictures"):
        beside["pictures"] = [stored_picture(picture) for picture in message["pictures"]]
    return json.dumps(beside, ensure_ascii=True, sort_keys=True) if beside else None


def stored_picture(picture: Picture | Mapping[str, str]) -> dict[str, str]:
    """What a store has of a picture, whether it comes from a corpus or from a store."""
    if isinstance(picture, Picture):
        return {"digest": picture.digest, "place": picture.place}
    return {"digest": picture["digest"], "place": picture["place"]}


def message_text(message: Mapping[str, Any]) -> str:
    """A message as a person reads it: before its text what it has beside, as JSON."""
    other = {name: message[name] for name in BESIDE if name in message}
    beside = json.dumps(other, ensure_ascii=False, sort_keys=True).encode(errors="backslashreplace").decode()
    return "\n".join(filter(None, (beside if other else "", message["content"])))


def extra_json(extra: dict[str, Any]) -> str:
    """Deterministic JSON of the input columns that have no column of their own."""
    return _EXTRA.encode(_finite(extra)) if extra else "{}"


_EXTRA = json.JSONEncoder(ensure_ascii=True, sort_keys=True, default=str, allow_nan=False)


def _finite(value: Any) -> Any:
    """JSON has no word for NaN and infinities: they become null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
