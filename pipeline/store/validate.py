"""Whether a store is whole: everything that its records say is held against what is there."""

import hashlib
import io
from collections.abc import Iterator
from dataclasses import replace

import pyarrow.parquet as pq

from pipeline import storage
from pipeline.corpus import Shard, find_files, plan_file
from pipeline.errors import EndorewardError, InputError, StoreError
from pipeline.store import fingerprint
from pipeline.store.commit import Record, ids_digest, part_uri, shard_name
from pipeline.store.schema import ERRORS, FORMER_LABELS, LABELS
from pipeline.store.store import LabelStore, StoredInput

SCHEMAS = {"labels": (LABELS, FORMER_LABELS), "errors": (ERRORS,)}
MEND = "delete its record in records/ and run label again"


def problems(store: LabelStore) -> Iterator[str]:
    """What is wrong with a store, a sentence each; nothing where it is whole.

    Checked: every document's checksum, the fingerprint, a record for every planned shard and none besides, every part's
    checksum, schema and row count, every id once and inside its own shard's rows, the rows of each shard against the
    input's, files that nobody recorded, and the input files' present state where they can be reached.
    """
    store.require()
    try:
        run = store.run()
    except StoreError as error:
        yield str(error)
        return
    if fingerprint.digest(run.description) != run.fingerprint:
        yield f"{store.at('records', 'run.json')}: the fingerprint is not that of the description"
    planned: dict[str, Shard] = {}
    for name in storage.list_names(store.at("records")):
        uri = store.at("records", name)
        if name.startswith("input-"):
            try:
                plan = StoredInput.read(uri).plan
            except StoreError as error:
                yield str(error)
                continue
            planned.update((shard_name(shard), shard) for shard in plan.shards)
            if sum(shard.rows for shard in plan.shards) != plan.rows:
                yield f"{uri}: its shards do not add up to the {plan.rows} rows of {plan.file}"
        elif not name.endswith((".json", ".tmp")):
            yield f"{uri}: not a file of a label store"
    yield from _check_shards(store, planned, run.fingerprint)
    yield from _check_input_files(store)


def _check_shards(store: LabelStore, planned: dict[str, Shard], run_fingerprint: str) -> Iterator[str]:
    done = store.done()
    missing = sorted(planned.keys() - done)
    if missing:
        yield f"{len(missing)} of {len(planned)} shards are not labelled yet ({missing[0]} ...); run label again"
    expected: dict[str, set[str]] = {"labels": set(), "errors": set()}
    for name in sorted(done):
        uri = store.at("records", f"{name}.json")
        try:
            record = Record.read(uri)
        except StoreError as error:
            yield str(error)
            for kind in expected:  # its parts can be held against no record; do not call them foreign too
                expected[kind].add(f"part-{name}.parquet")
            continue
        if record.shard != planned.get(name):
            yield f"{uri}: records a shard that no input file of the store has"
        if record.fingerprint != run_fingerprint:
            yield f"{uri}: was made under another fingerprint"
        for kind, part in (("labels", record.labels), ("errors", record.errors)):
            if part.rows:
                expected[kind].add(f"part-{name}.parquet")
        try:
            rows = _rows_of(store, record)
        except StoreError as error:
            yield str(error)
            continue
        if len(rows) != record.shard.rows:
            yield f"{uri}: {record.shard.rows} input rows, but labels and errors speak of {len(rows)}"
    for kind, names in expected.items():
        for name in storage.list_names(store.at(kind)):
            if name.endswith(".parquet") and name not in names:
                yield f"{store.at(kind, name)}: no record knows this file; run label again, or delete it"


def _rows_of(store: LabelStore, record: Record) -> set[int]:
    """The input rows that a shard's parts speak of. Raises StoreError for the first thing that is wrong with a part."""
    rows: set[int] = set()
    seen: set[str] = set()
    for kind, part in (("labels", record.labels), ("errors", record.errors)):
        if not part.rows:
            continue
        uri = part_uri(store.uri, kind, record.shard)
        try:
            data = storage.read_bytes(uri)
        except FileNotFoundError:
            raise StoreError(f"{uri}: missing; {MEND}") from None
        if hashlib.sha256(data).hexdigest() != part.sha256:
            raise StoreError(f"{uri}: damaged, its checksum is not the recorded one; {MEND}")
        table = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True).read(use_threads=False)
        if not any(table.schema.equals(schema) for schema in SCHEMAS[kind]):
            raise StoreError(f"{uri}: its columns are not those of {kind}/")
        ids = table["id"].to_pylist()
        if len(ids) != part.rows or ids_digest(ids) != part.ids_sha256:
            raise StoreError(f"{uri}: its ids are not the recorded ones")
        if len(seen | set(ids)) != len(seen) + len(ids):
            raise StoreError(f"{uri}: an id of this shard stands in the store twice")
        seen.update(ids)
        for prompt_id in table["prompt_id"].to_pylist():
            file, _, row = prompt_id.rpartition(":")
            if file != record.shard.file or not record.shard.start <= int(row) < record.shard.stop:
                raise StoreError(f"{uri}: {prompt_id} is not a row of this shard")
            rows.add(int(row))
    return rows


def _check_input_files(store: LabelStore) -> Iterator[str]:
    """Input files that can be reached and are not what was labelled; read again only where they were touched."""
    for name in storage.list_names(store.at("records")):
        if not name.startswith("input-"):
            continue
        try:
            stored = StoredInput.read(store.at("records", name))
            [file] = find_files([stored.file.uri])
        except (EndorewardError, OSError):
            continue  # damaged, and reported already; or out of reach from here
        if file.stamp and (file.size, file.stamp) == (stored.file.size, stored.file.stamp):
            continue
        try:
            unchanged = plan_file(replace(file, name=stored.file.name), stored.format).digest == stored.plan.digest
        except InputError:
            unchanged = False
        if not unchanged:
            yield f"{file.uri}: its content changed since it was labelled"
