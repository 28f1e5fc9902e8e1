"""The columns of the label store: the names are a contract with everyone who reads it."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.samples import Message, Preference

LABELS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("preference", pa.string()),
        pa.field("response_index", pa.int32(), nullable=False),
        pa.field("prompt", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])), nullable=False),
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
    ]
)

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
    token_ids: Sequence[int]
    turn: int
    token_logprobs: NDArray[np.float32]
    token_values: NDArray[np.float32]
    token_rewards: NDArray[np.float32]
    rubric: str | None
    extra_info: str


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
    return _table(labels, LABELS)


def errors_table(failures: Sequence[Failure]) -> pa.Table:
    return _table(failures, ERRORS)


def _table(rows: Sequence[Any], schema: pa.Schema) -> pa.Table:
    return pa.table({name: [getattr(row, name) for row in rows] for name in schema.names}, schema=schema)


def extra_json(extra: dict[str, Any]) -> str:
    """Deterministic JSON of the input columns that have no column of their own."""
    return json.dumps(_finite(extra), ensure_ascii=True, sort_keys=True, default=str, allow_nan=False)


def _finite(value: Any) -> Any:
    """JSON has no word for NaN and infinities: they become null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
