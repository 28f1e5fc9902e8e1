"""Whether a store is whole: everything that its records say is held against what is there."""

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.corpus import Shard, find_files, plan_file
from pipeline.errors import EndorewardError, InputError, StoreError
from pipeline.store import fingerprint
from pipeline.store.commit import Part, Record, part_name, part_uri, shard_name
from pipeline.store.reading import READERS, column_digest, in_parallel, whole_groups
from pipeline.store.schema import ERRORS, FORMER_LABELS, LABELS, WIDE_LABELS
from pipeline.store.segments import (
    REMEDY,
    DamagedSegment,
    Segment,
    merged_name,
    merged_segment,
    segment_uri,
)
from pipeline.store.standing import Standing, own_uri
from pipeline.store.store import LabelStore, StoredInput
from pipeline.store.survey import Survey

SCHEMAS = {"labels": (LABELS, WIDE_LABELS, FORMER_LABELS), "errors": (ERRORS,)}
MEND = "delete its record in records/ and run label again"


def problems(
    store: LabelStore, workers: int = READERS, survey: Survey | None = None, *, inputs: bool = True
) -> Iterator[str]:
    """What is wrong with a store, a sentence each; nothing where it is whole. Reads every byte of it once.

    Checked: every document's checksum, the fingerprint, a record for every planned shard and none besides, every part's
    checksum, schema and row count, every id once and inside its own shard's rows, the rows of each shard against the
    input's, files that nobody recorded, and the present state of the input files and of the pictures beside them where they
    can be reached.

    Args:
        workers: threads that read and check parts.
        survey: takes every record that is intact.
        inputs: hold the store against its input files too, where they can be reached.
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
            if plan.shards.rows != plan.rows:
                yield f"{uri}: its shards do not add up to the {plan.rows} rows of {plan.file}"
        elif not name.endswith((".json", ".tmp")):
            yield f"{uri}: not a file of a label store"
    if unplanned := store.unplanned():
        yield f"{len(unplanned)} input files are not planned yet ({unplanned[0]} ...); run label again"
    survey = Survey() if survey is None else survey
    whole = True
    for wrong in _check_shards(store, planned, run.fingerprint, workers, survey):
        whole = False
        yield wrong
    if inputs:
        yield from _check_input_files(store)
        if whole and survey.stats.pictured:
            yield from (f"{place}: the picture changed since it was labelled" for place in store.changed_pictures())


def _check_shards(
    store: LabelStore, planned: dict[str, Shard], run_fingerprint: str, workers: int, survey: Survey
) -> Iterator[str]:
    look = store.look()
    yield from map(str, look.damage)
    done = look.files | look.merged.keys()
    missing = sorted(planned.keys() - done)
    if missing:
        yield f"{len(missing)} of {len(planned)} shards are not labelled yet ({missing[0]} ...); run label again"
    own: dict[str, bytes] = {}
    known: dict[str, set[str]] = {"labels": set(), "errors": set()}
    pieces: list[str | Segment] = [*sorted(look.files - look.merged.keys()), *(s for s in look.segments if s.merged)]
    for _, (checks, wrong) in in_parallel(lambda piece: _check_piece(store, look, piece), pieces, workers):
        yield from wrong
        for check in checks:
            for kind, name in check.files:
                known[kind].add(name)
            if check.record is None:
                continue
            survey.add(check.record)
            if check.name in look.indexed:
                own[check.name] = _digest_of(check.record)
            if check.record.shard != planned.get(check.name):
                yield f"{check.uri}: records a shard that no input file of the store has"
            if check.record.fingerprint != run_fingerprint:
                yield f"{check.uri}: was made under another fingerprint"
            if check.rows is not None and check.rows != check.record.shard.rows:
                yield f"{check.uri}: {check.record.shard.rows} input rows, but labels and errors speak of {check.rows}"
            if check.wrong:
                yield check.wrong
    yield from _left_over(store, look)
    yield from _check_index(store, look, own)
    damaged = {error.segment for error in look.damage if isinstance(error, DamagedSegment)}
    for kind, names in known.items():
        for name in storage.list_names(store.at(kind)):
            if name.endswith(".parquet") and name not in names and merged_segment(name) not in damaged:
                yield f"{store.at(kind, name)}: no record knows this file; run label again, or delete it"


def _digest_of(record: Record) -> bytes:
    return hashlib.sha256(json.dumps(record.to_json(), sort_keys=True).encode()).digest()[:8]


def _check_index(store: LabelStore, look: Standing, own: dict[str, bytes]) -> Iterator[str]:
    """Segments that copy other records than those that stand in files of their own, by a part of their digests."""
    try:
        wrong = {
            segment.name for segment, record in look.indexed_records() if own.get(record.name) != _digest_of(record)
        }
    except StoreError as error:
        yield str(error)
        return
    for name in sorted(wrong):
        yield f"{segment_uri(store.uri, name)}: says something else than the records that it copies; delete it"


def _left_over(store: LabelStore, look: Standing) -> Iterator[str]:
    """Files that do not count, and would go as the next writer opens the store."""
    after = "it does not count; run endoreward compact, or label again, which removes it"
    for name in sorted(look.files & look.merged.keys()):
        yield f"{own_uri(store.uri, name)}: left by a run or a compact that was stopped; {after}"
    for segment in look.segments:
        moved = sum(look.merged.get(name) is not segment for name in segment.generations)
        if segment.merged and moved:
            yield (
                f"{segment_uri(store.uri, segment.name)}: the rows of {moved} of its {len(segment.generations)} shards were "
                "labelled or merged again since, and lie there still; run label or endoreward compact again"
            )


@dataclass
class _Check:
    """What is known of one shard after its rows were read: its record where that is intact, the input rows that its parts
    speak of, and files that are accounted for."""

    name: str
    uri: str
    record: Record | None = None
    rows: int | None = None
    wrong: str | None = None
    files: list[tuple[str, str]] = field(default_factory=list)


def _check_piece(store: LabelStore, look: Standing, piece: str | Segment) -> tuple[list[_Check], list[str]]:
    """The checks of one shard with files of its own, or of all that count in a segment; and what is wrong besides."""
    return _check_segment(store, look, piece) if isinstance(piece, Segment) else _check_own(store, look, piece)


def _check_own(store: LabelStore, look: Standing, name: str) -> tuple[list[_Check], list[str]]:
    check = _Check(name, own_uri(store.uri, name))
    try:
        record = check.record = Record.read(check.uri)
    except StoreError as error:
        # its parts can be held against no record; do not call them foreign too
        check.files = [(kind, part_name(name)) for kind in SCHEMAS]
        return [check], [str(error)]
    tables = {}
    check.files = [(kind, part_name(name)) for kind in SCHEMAS if getattr(record, kind).rows]
    try:
        for kind in SCHEMAS:
            part: Part = getattr(record, kind)
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
            tables[kind] = _checked(uri, kind, record, table)
        check.rows = _count_rows(check.uri, tables)
    except StoreError as error:
        check.wrong = str(error)
    return [check], []


def _check_segment(store: LabelStore, look: Standing, segment: Segment) -> tuple[list[_Check], list[str]]:
    uri = segment_uri(store.uri, segment.name)
    try:
        records = {record.name: record for record in segment.records(store.uri)}
    except StoreError as error:
        return [], [str(error)]
    counting = [name for name in segment.generations if look.merged.get(name) is segment]
    checks = {name: _Check(name, f"{uri}, {name}", records[name]) for name in counting}
    files = [(kind, merged_name(segment.name)) for kind in segment.parts]
    owners = {
        kind: {part.merged: name for name, record in records.items() if (part := getattr(record, kind)).merged}
        for kind in SCHEMAS
    }
    tables: dict[str, dict[str, pa.Table]] = {name: {} for name in records}
    wrong = []
    for kind in ("errors", "labels"):  # those of errors are few: they wait for the labels of their shard
        if kind not in segment.parts:
            continue
        place = store.at(kind, merged_name(segment.name))
        try:
            for group, table in whole_groups(place, segment.parts[kind]):
                name = owners[kind].get(f"{merged_name(segment.name)}#{group}")
                if name is None:
                    raise StoreError(f"{place}: row group {group} is of no shard; {_mend(segment)}")
                tables[name][kind] = _checked(place, kind, records[name], table, _mend(segment))
                if kind == "labels" and name in checks:
                    checks[name].rows = _count_rows(place, tables.pop(name))
        except StoreError as error:
            wrong.append(str(error))
    for name, rest in tables.items():
        if name in checks and not records[name].labels.rows:
            checks[name].rows = _count_rows(uri, rest)
    result = list(checks.values()) or [_Check("", uri)]
    result[0].files += files
    return result, wrong


def _mend(segment: Segment) -> str:
    return REMEDY.format(name=segment.name)


def _checked(uri: str, kind: str, record: Record, table: pa.Table, mend: str = MEND) -> pa.Table:
    """Ids and input rows of one kind of a shard. Raises StoreError for the first thing that is wrong with them."""
    part: Part = getattr(record, kind)
    if not any(table.schema.equals(schema) for schema in SCHEMAS[kind]):
        raise StoreError(f"{uri}: its columns are not those of {kind}/")
    if table.num_rows != part.rows or column_digest(table["id"]) != part.ids_sha256:
        raise StoreError(f"{uri}: its ids are not the recorded ones; {mend}")
    prompts, file = table["prompt_id"].combine_chunks(), record.shard.file
    numbers = pc.if_else(
        pc.starts_with(prompts, f"{file}:"), pc.utf8_slice_codeunits(prompts, len(file) + 1), pa.scalar("")
    )
    digits = pc.match_substring_regex(numbers, r"^\d{1,18}$")
    rows = pc.if_else(digits, numbers, pa.scalar("-1")).cast(pa.int64())
    inside = pc.and_(pc.greater_equal(rows, record.shard.start), pc.less(rows, record.shard.stop))
    if not pc.all(inside).as_py():
        stranger = prompts.filter(pc.invert(inside))[0].as_py()
        raise StoreError(f"{uri}: {stranger} is not a row of this shard")
    return pa.table({"id": table["id"], "row": rows})


def _count_rows(uri: str, tables: dict[str, pa.Table]) -> int:
    """How many input rows labels and errors of a shard speak of. Raises StoreError for an id that stands there twice."""
    if not tables:
        return 0
    both = pa.concat_tables(tables.values())
    if pc.count_distinct(both["id"]).as_py() != both.num_rows:
        raise StoreError(f"{uri}: an id of this shard stands in the store twice")
    return int(pc.count_distinct(both["row"]).as_py())


def _check_input_files(store: LabelStore) -> Iterator[str]:
    """Input files that can be reached and are not what was labelled; read again only where they were touched."""
    for name in storage.list_names(store.at("records")):
        if not name.startswith("input-"):
            continue
        try:
            stored = StoredInput.read(store.at("records", name))
            if storage.absolute(stored.file.uri) != stored.file.uri.removeprefix("file://"):
                continue  # a name alone, of a store that was published: a file of that name here is another
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
