"""A large file of JSON lines planned in parts, by as many processes; and put together again."""

import hashlib
import io
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from pipeline.corpus.files import columnar, readers, text
from pipeline.corpus.files.inputs import Format, InputFile, file_format
from pipeline.corpus.files.readers import (
    BROKEN,
    HEAD_ROWS,
    SHARD_BYTES,
    Beside,
    Draft,
    cut_records,
    open_file,
    require_kind,
    require_rows,
    require_text,
)
from pipeline.corpus.files.shards import FilePlan, Shards
from pipeline.errors import InputError


class Section(NamedTuple):
    """A part of a file of JSON lines, planned; its lines are counted from its first one on."""

    shards: Shards
    lines: int
    head: tuple[dict[str, Any], ...]
    trouble: str | None


def sections(file: InputFile, format: str = "auto") -> int:
    """In how many parts a file may be planned, by as many processes: 1 of all but large files of JSON lines."""
    how = file_format(file.name, format)
    return max(1, -(-file.size // readers.SECTION)) if how.kind == "jsonl" and how.compression is None else 1


def plan_section(
    file: InputFile,
    number: int,
    shard_rows: int = 128,
    shard_bytes: int = SHARD_BYTES,
    beside: Beside | None = None,
) -> Section:
    """The lines that begin in a section. Raises InputError where it cannot be read."""
    draft, first = (
        Draft(file, beside),
        min(number, 1),
    )  # only the first line of a file may begin with a mark, and has number 0
    draft.seen, draft.total = first, _Unread()
    try:
        with io.BufferedReader(open_file(file), 1 << 20) as stream:
            begin, end = number * readers.SECTION, (number + 1) * readers.SECTION
            if number:  # what is left of a line that begins before
                stream.seek(begin - 1)
                begin += len(stream.readline()) - 1
            else:
                require_kind(file, Format("jsonl", None))  # as all that have sections
                require_text(file, stream)
            for _ in cut_records(draft, _lines(stream, begin, end, first), begin, shard_rows, shard_bytes):
                pass
    except BROKEN as error:
        raise InputError(f"{file.uri}: cannot be read from byte {number * readers.SECTION} on: {error}") from error
    return Section(draft.shards, draft.seen - first, tuple(draft.head), draft.trouble)


def digest_of(file: InputFile) -> str:
    """sha256 of the bytes of a file. Raises InputError."""
    total = hashlib.sha256()
    try:
        with open_file(file) as source:
            columnar.digest_range(source, 0, source.size(), total)
    except BROKEN as error:
        raise InputError(f"{file.uri}: cannot be read: {error}") from error
    return total.hexdigest()


def joined(file: InputFile, format: str, parts: Iterable[Section], digest: str) -> FilePlan:
    """The plan of a file by its sections, as `plan_file` gives it. Raises InputError as that does."""
    draft = Draft(file)
    for part in parts:
        draft.shards.extend(part.shards, draft.seen - min(draft.seen, 1) if len(part.shards) else 0)
        draft.seen += part.lines
        if len(draft.head) < HEAD_ROWS:
            draft.trouble = draft.trouble or part.trouble
            draft.head += part.head[: HEAD_ROWS - len(draft.head)]
    require_rows(draft, file_format(file.name, format))
    return replace(draft.done(), digest=digest)


class _Unread:
    """In the place of a digest that nobody asks for."""

    def update(self, data: bytes) -> None: ...

    def hexdigest(self) -> str:
        return ""


def _lines(stream: io.BufferedReader, begin: int, end: int, row: int) -> Iterator[text.Record]:
    """Numbered lines that begin at bytes [begin, end)."""
    while begin < end and (line := stream.readline()):
        begin += len(line)
        yield row, line
        row += 1
