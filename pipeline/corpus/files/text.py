"""Records of JSON text: lines, or the values of one array (or objects one after another).

A record is `(row, raw)`: its number and its own bytes, not yet parsed, so that planning costs little and a digest of
the bytes is a digest of the content.
"""

import io
import json
from collections.abc import Iterator
from typing import Any, Literal

from pipeline.errors import RowError

BOM = b"\xef\xbb\xbf"
CHUNK = 1 << 16  # characters read at once from an array
LONGEST_TOKEN = 16  # no JSON token is longer, but for strings and numbers

NESTS = {"data", "rows", "examples", "instances", "items", "records", "samples", "train", "validation", "test", "dev"}
ABOUT = {"version", "name", "title", "description", "license", "source", "author", "date", "url", "split", "citation"}
_ROLES = {"role", "from"}

Record = tuple[int, bytes]
_decoder = json.JSONDecoder()


def lines(stream: io.BufferedIOBase, row: int = 0) -> Iterator[Record]:
    r"""Records of JSON lines: row number = line number, from 0. Blank lines are records too, so that numbers hold and
    all records put together are the file. Lines end in `\n` or `\r\n`."""
    for line in stream:
        yield row, line
        row += 1


def values(stream: io.BufferedIOBase, chunk: int = CHUNK) -> Iterator[Record]:
    """Records of one JSON array, or of JSON values one after another (so a single object is one row).

    Holds one value and a chunk. Raises ValueError where the text stops being JSON.
    """
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")  # type: ignore[type-var]
    for row, value in enumerate(_Values(text, chunk)):
        yield row, value.encode("utf-8", "surrogateescape")


class _Values:
    """Cuts a growing text into JSON values. What cannot be decoded yet is tried again with twice as much text, so that
    a long value costs linear time; what can never be decoded is an error at once, not after reading the rest."""

    def __init__(self, text: io.TextIOBase, chunk: int):
        self.text, self.chunk = text, chunk
        self.buffer, self.position, self.ended = "", 0, False

    def __iter__(self) -> Iterator[str]:
        array = self._peek() == "["
        self.position += array
        more = self._peek() != ("]" if array else "")
        while more:
            yield self._value()
            sign = self._peek()
            if array and sign not in (",", "]"):
                raise ValueError(f"a comma or ] is due at {self._here(self.position)}")
            more = sign == "," if array else sign != ""
            self.position += array and more
        self.position += array
        if self._peek():
            raise ValueError(f"the array is closed, yet there follows {self._here(self.position)}")

    def _fill(self) -> None:
        unread = self.buffer[self.position :]
        more = self.text.read(max(self.chunk, len(unread)))
        self.buffer, self.position, self.ended = unread + more, 0, not more

    def _peek(self) -> str:
        """The next character that is not white space; empty at the end of the file."""
        while True:
            while self.position < len(self.buffer) and self.buffer[self.position] in " \t\r\n":
                self.position += 1
            if self.position < len(self.buffer) or self.ended:
                return self.buffer[self.position : self.position + 1]
            self._fill()

    def _value(self) -> str:
        while True:
            self._peek()
            try:
                value, end = _decoder.raw_decode(self.buffer, self.position)
            except RecursionError:
                raise ValueError("values are nested too deeply") from None
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos > len(self.buffer) - LONGEST_TOKEN
                if self.ended or not cut:
                    end_is_near = ", near the end of the file" if cut else ""
                    raise ValueError(f"{error.msg} at {self._here(error.pos)}{end_is_near}") from None
            else:
                # A number at the end of what was read may go on.
                if self.ended or not isinstance(value, int | float) or end <= len(self.buffer) - LONGEST_TOKEN:
                    record, self.position = self.buffer[self.position : end], end
                    return record
            self._fill()

    def _here(self, position: int) -> str:
        return excerpt(self.buffer[position : position + 80]) if position < len(self.buffer) else "the end of the file"


def layout(stream: io.BufferedReader) -> Literal["lines", "values"]:
    """How a .json file is laid out in truth: `lines` if its first line is a whole object. Reads on from the front."""
    if not stream.peek(1).removeprefix(BOM).lstrip().startswith(b"{"):
        return "values"
    first = next(line for line in stream if line.removeprefix(BOM).strip())
    try:
        parse(0, first)
    except RowError as error:
        return "lines" if error.reason == "duplicate_key" else "values"
    return "lines"


def is_blank(row: int, raw: bytes) -> bool:
    return not (raw.removeprefix(BOM) if row == 0 else raw).strip()


def parse(row: int, raw: bytes) -> dict[str, Any]:
    """One record as a dict. Raises RowError `not_utf8`, `not_json` or `duplicate_key`."""
    try:
        text = (raw.removeprefix(BOM) if row == 0 else raw).decode("utf-8")
    except UnicodeDecodeError as error:
        near = raw[max(error.start - 20, 0) : error.end + 20]
        raise RowError("not_utf8", f"byte {error.start} of the row is not UTF-8: {near!r}; convert the file") from None
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except RowError:
        raise
    except (ValueError, RecursionError) as error:
        raise RowError("not_json", f"the row is not JSON ({error}): {excerpt(text)}") from None
    if not isinstance(value, dict):
        raise RowError("not_json", f"the row is not a JSON object but {excerpt(text)}")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RowError("duplicate_key", f"an object of the row has {excerpt(twice)} twice, and only one can be meant")
    return record


def nested_rows(row: dict[str, Any]) -> str | None:
    """What the single object of a file holds where it is no row: columns, or rows under names. None where it is a row.

    A row may hold lists too, of messages or of responses. Columns are nothing but lists of one length, none of messages, or
    nothing but objects of row numbers (as pandas writes them). Rows are lists of objects that are no messages: nothing but
    those, or one under a name that says so beside what only describes a data set; or more than two objects of the same keys.
    """
    values = list(row.values())
    if values and all(isinstance(value, dict) and value for value in values):
        if all(all(map(str.isdigit, value)) for value in values):
            return "columns, each an object of row numbers"
        keys = values[0].keys()
        same = len(values) > 2 and len(keys) > 1 and all(value.keys() == keys for value in values)
        return "rows under keys of their own" if same and not _ROLES & keys else None
    lists = {name: value for name, value in row.items() if isinstance(value, list) and value}
    rows = [name for name, value in lists.items() if all(isinstance(v, dict) and not _ROLES & v.keys() for v in value)]
    texts = {name.lower() for name, value in row.items() if isinstance(value, str)}
    if rows and (len(rows) == len(row) or (texts <= ABOUT and any(name.lower() in NESTS for name in rows))):
        return f"rows under {' and '.join(map(repr, rows))}"
    lengths = {len(value) for value in lists.values()}
    messages = any(isinstance(v, dict) for value in lists.values() for v in value)
    if len(lists) == len(row) and len(lengths) == 1 and lengths != {1} and not messages:
        return "columns, each a list"
    return None


def excerpt(text: str, width: int = 60) -> str:
    """A short quotation of `text` for a message, printable whatever it holds."""
    text = " ".join(text[: 4 * width].split())
    return ascii(text if len(text) <= width else text[: width - 3] + "...")
