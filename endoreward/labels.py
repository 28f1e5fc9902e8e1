"""A label store as Arrow tables: the rows that are committed, and no others."""

import os
import warnings
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pipeline.config.section import refuse_secrets
from pipeline.errors import ConfigError, StoreError
from pipeline.store import ERRORS, LABELS, Committed, LabelStore, in_parallel
from pipeline.store.commit import rows_uri
from pipeline.store.schema import WIDE_LABELS


def read_labels(store: str | os.PathLike[str], columns: Sequence[str] | None = None) -> pa.Table:
    """The labels of a store, in the order of its input's files and rows.

    Only rows of committed shards count: what a killed run left besides is not read. Warns where shards are still missing.

    Args:
        store: the `--output` of `label` or `aggregate`, local or s3://, gs://.
        columns: by name (docs/store.md); default: all of them.

    Raises:
        ConfigError: for a column that a store does not have.
        StoreError: where there is no label store, or a part of it is damaged.
    """
    return _read(store, "labels", LABELS, columns)


def read_errors(store: str | os.PathLike[str], columns: Sequence[str] | None = None) -> pa.Table:
    """The responses and rows of a store that could not be scored, with their reasons; otherwise as `read_labels`."""
    return _read(store, "errors", ERRORS, columns)


def _read(place: str | os.PathLike[str], kind: str, schema: pa.Schema, columns: Sequence[str] | None) -> pa.Table:
    store = LabelStore(_uri(place))
    store.require()
    if kind == "labels" and store.description().get("reward.token_certainty"):
        schema = WIDE_LABELS
    names = list(schema.names if columns is None else columns)
    unknown = [name for name in names if name not in schema.names]
    if unknown:
        raise ConfigError(f"{kind} of a store have no column {', '.join(unknown)}; there are {', '.join(schema.names)}")
    survey = store.survey()
    progress = store.progress(survey)
    if not progress.complete:
        missing = progress.shards - progress.done_shards
        warnings.warn(
            f"{store.uri} is not finished: {missing:,} of {progress.shards:,} shards are missing; run the same `endoreward "
            "label` again to complete it",
            stacklevel=3,
        )
    for sentence in store.guesses():
        warnings.warn(sentence, stacklevel=3)
    shards = [shard for shard in survey.shards if getattr(shard, kind).rows]
    shards.sort(key=lambda shard: (shard.file, shard.index))
    tables = [table for _, table in in_parallel(lambda shard: _part(store, kind, shard, names), shards)]
    return pa.concat_tables(tables) if tables else pa.schema([schema.field(name) for name in names]).empty_table()


def _part(store: LabelStore, kind: str, shard: Committed, names: list[str]) -> Any:
    """One part with the columns in the order asked for. Raises StoreError where it is not what its record says."""
    uri, rows = rows_uri(store.uri, kind, shard), getattr(shard, kind).rows
    try:
        table = store.read_rows(kind, shard, names)
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{uri} cannot be read: {error}; `endoreward validate` says what else is damaged") from error
    if table.num_rows != rows:
        raise StoreError(
            f"{uri} has {table.num_rows:,} rows and its record {rows:,}; `endoreward validate` says what else is damaged"
        )
    return table.select(names)


def _uri(place: str | os.PathLike[str]) -> str:
    try:
        return refuse_secrets(os.fspath(place))
    except ValueError as error:
        raise ConfigError(f"the place of the store {error}") from None
