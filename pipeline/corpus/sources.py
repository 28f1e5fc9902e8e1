"""Where a row's pictures are: what one value of a column may hold, and how its bytes are read, also a second time.

    value                                 picture
    bytes; {"bytes": ..., "path": ...}    these bytes (a struct without bytes: its path)
    "data:image/png;base64,..."; base64   as it says
    "images/7.png"                        a file below the folder of the corpus file, or below `input.picture_root`
    "https://..."                         fetched, where `input.picture_urls` asks for it
    a list of these; a list as JSON       several

A content part (`{"type": "image", "image": ...}`, `{"type": "image_url", "image_url": {"url": ...}}`) holds one of them, or
none: then a picture column has it.

The place of a picture is the address of its own file, or `ADDRESS#ROW/COLUMN/INDEX[/FORMAT]` for the INDEX-th picture within
a column of a file of rows.
"""

import base64
import binascii
import contextlib
import hashlib
import json
import posixpath
import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Literal, cast
from urllib.parse import quote, unquote

import pyarrow as pa

from pipeline import storage
from pipeline.corpus.columns import RawRow, lookup
from pipeline.corpus.files import text
from pipeline.corpus.files.columnar import UNREADABLE
from pipeline.corpus.files.inputs import InputFile, file_format
from pipeline.corpus.files.rows import open_rows
from pipeline.corpus.pictures import GREY_PLACE, MAX_BYTES, MAX_PIXELS, MOST_PIXELS, Picture, grey_picture
from pipeline.errors import EndorewardError, RowError

if TYPE_CHECKING:
    from pipeline.config import InputConfig

COLUMNS = ("image", "images")  # that hold pictures by their names
PARTS = ("image", "image_url", "input_image")  # types of content parts
INLINE = (
    "image",
    "image_url",
    "url",
    "path",
    "base64",
    "bytes",
    "source",
)  # keys of such a part that may hold the picture
URL = re.compile(r"https?://", re.IGNORECASE)
DATA = re.compile(r"data:[^,]{0,100},")
BASE64 = re.compile(r"[A-Za-z0-9+/\s]+={0,2}\s*")
# How PNG, JPEG, GIF, WEBP, TIFF (twice) and BMP begin; and in base64, as no path does that has no dot.
HEADS = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"II*\0", b"MM\0*", b"BM")
BASE64_HEADS = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR", "SUkq", "TU0A", "Qk")
SHORTEST_BASE64 = 64
ROW_PLACE = re.compile(r"(?P<uri>.*)#(?P<row>\d+)/(?P<column>[^/#]+)/(?P<index>\d+)(/(?P<format>\w+))?", re.DOTALL)
FETCH_S = 30
MOST_BYTES = 1 << 30  # of one that is read again


@dataclass(frozen=True)
class Origin:
    """The corpus file that rows are of, and what its pictures may be. Without `uri` they are counted and not read.

    `rows` is the number behind that of its last row, which the control by another row's picture needs.
    """

    uri: str
    format: str = "auto"
    root: str | None = None  # the folder that paths are below; default: that of the file
    urls: bool = False
    max_pixels: int = MAX_PIXELS
    max_bytes: int = MAX_BYTES
    shown: Literal["given", "grey", "other"] = "given"  # in their places (`pipeline.corpus.controls`)
    rows: int = 0

    def picture(self, value: Any, row: int, column: str, index: int) -> Picture:
        """What a value says, read and held against the bounds. Raises RowError."""
        place = row_place(self.uri, row, column, index, self.format)
        data = embedded(value, f"picture {index} of column {column!r}")
        if data is None:
            place = self.address(path_of(value))
            data = self._fetched(place)
        if len(data) > self.max_bytes:
            raise _too_large(place, len(data), self.max_bytes)
        picture = Picture(data, place, self.max_pixels)
        picture.open()
        return picture

    def address(self, path: str) -> str:
        """Of the file or page that a path or a URL names. Raises `picture_place`."""
        if URL.match(path):
            if not self.urls:
                raise RowError(
                    "picture_place",
                    f"{path[:200]!r} is a URL, and nothing is fetched unless asked for; say --set input.picture_urls=true, or "
                    "put the picture beside the corpus",
                )
            return path
        path = path.removeprefix("file://")
        folder = (self.root or _folder(self.uri)).rstrip("/")
        if self.root and posixpath.normpath(path).startswith(f"{folder.partition('?')[0]}/"):
            path = posixpath.relpath(path, folder.partition("?")[0])
        if "://" in path or path.startswith("/") or re.match(r"[A-Za-z]:[\\/]", path):
            raise RowError(
                "picture_place",
                f"{path[:200]!r} is no path below {folder}; write it relative to that, or name the folder that it is below "
                "with --set input.picture_root=FOLDER",
            )
        if ".." in re.split(r"[\\/]", path) or "\0" in path:
            raise RowError(
                "picture_place", f"{path[:200]!r} leaves the folder {folder}; put the picture below it and name it so"
            )
        return storage.join(folder, posixpath.normpath(path))

    def _fetched(self, place: str) -> bytes:
        return _from_web(place, self.max_bytes) if URL.match(place) else _from_file(place, self.max_bytes)


COUNTING = Origin("")


def origin_of(file: InputFile, format: str, config: "InputConfig") -> Origin:
    """Of a file's rows, as the configuration has it."""
    return Origin(
        file.uri,
        format,
        config.picture_root and storage.absolute(config.picture_root),
        config.picture_urls,
        config.max_picture_pixels,
        config.max_picture_bytes,
        config.pictures,
    )


def picture_names(config: "InputConfig") -> tuple[str, ...]:
    """The columns that are stated to hold pictures, else those that may by their names."""
    return (*COLUMNS, "image_path", "Image") if config.image_keys is None else config.image_keys


def beside_of(file: InputFile, config: "InputConfig") -> "PicturesBeside":
    """What weighs the pictures beside the rows of a file."""
    return PicturesBeside(origin_of(file, config.format, config), picture_names(config))


def _folder(uri: str) -> str:
    base, mark, query = (uri, "", "") if storage.is_local(uri) else uri.partition("?")
    return posixpath.dirname(base) + mark + query


def pictures_in(value: Any) -> Iterator[Any]:
    """The pictures that a column's value holds, as they stand there, in order: of messages those of their parts."""
    value = _from_json(value)
    if isinstance(value, list | tuple):
        for each in value:
            yield from pictures_in(each)
    elif isinstance(value, bytes) or (isinstance(value, str) and value):
        yield value
    else:
        yield from _in_parts(value)


def _in_parts(value: Any) -> Iterator[Any]:
    """Those of objects, at any depth; text within one is no picture."""
    if isinstance(value, list | tuple):
        for each in value:
            yield from _in_parts(each)
    elif isinstance(value, Mapping):
        if value.get("type") in PARTS:
            if (inline := inline_of(value)) is not None:
                yield inline
        elif is_struct(value):
            if value.get("bytes") is not None or value.get("path"):
                yield value
        else:
            for each in value.values():
                yield from _in_parts(each)


def parts_in(value: Any) -> Iterator[Any]:
    """The pictures of content parts within a value, be it as JSON text."""
    return _in_parts(_from_json(value))


def _from_json(value: Any) -> Any:
    """A list that came as JSON text; anything else as it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def is_struct(value: Any) -> bool:
    """Whether a value is a picture as `datasets` stores it."""
    return isinstance(value, Mapping) and bool(value) and value.keys() <= {"bytes", "path"}


def inline_of(part: Mapping[str, Any]) -> Any:
    """The picture that a content part holds itself, None where a column has it."""
    value = next((part[key] for key in INLINE if part.get(key)), None)
    if isinstance(value, Mapping) and value.get("data"):  # as Anthropic's interface has it
        return f"data:{value.get('media_type') or ''};base64,{value['data']}"
    if isinstance(value, Mapping) and "url" in value:
        return value["url"] or None
    return value


def holds_pixels(value: Any) -> bool:
    """Whether a value holds a picture itself, at any depth."""
    if isinstance(value, Mapping | list | tuple):
        return any(map(holds_pixels, value.values() if isinstance(value, Mapping) else value))
    return _pixels(value) is not None


def without_pixels(value: Any) -> Any:
    """A value with the digest of each picture that it holds itself, at any depth, in the picture's place."""
    if isinstance(value, Mapping):
        return {key: without_pixels(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_pixels(each) for each in value]
    data = _pixels(value)
    return value if data is None else f"sha256:{hashlib.sha256(data).hexdigest()}"


def _pixels(value: Any) -> bytes | None:
    """The bytes of a value that is a picture."""
    data = value if isinstance(value, bytes) else None
    if isinstance(value, str) and value.startswith(("data:image/", *BASE64_HEADS)):
        with contextlib.suppress(RowError):
            data = embedded(value, "")
    return data if data is not None and data.startswith(HEADS) and b"\0" in data else None


def embedded(value: Any, where: str) -> bytes | None:
    """The bytes that a value holds itself; None for a path or a URL. Raises RowError."""
    if isinstance(value, Mapping):
        inner = value.get("bytes")
        return None if inner is None and value.get("path") else embedded(inner, where)
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or not value:
        raise RowError(
            "missing_picture", f"{where} is {type(value).__name__} and no picture; give its bytes or its path"
        )
    if DATA.match(value):
        header, _, body = value.partition(",")
        if not header.endswith(";base64"):
            raise RowError("bad_picture", f"{where} is a data: URI that is not in base64; write it so")
        return _decoded(body, where)
    start = value[:SHORTEST_BASE64].lstrip()
    if (
        len(value) >= SHORTEST_BASE64
        and "." not in value
        and start.startswith(BASE64_HEADS)
        and BASE64.fullmatch(value)
    ):
        return _decoded(value, where)
    return None


def _decoded(value: str, where: str) -> bytes:
    try:
        return base64.b64decode("".join(value.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RowError("bad_picture", f"{where} is not base64 ({error}); write its bytes anew") from None


def path_of(value: Any) -> str:
    """The path or URL of a picture that is not embedded."""
    return str(value["path"] if isinstance(value, Mapping) else value)


def _too_large(place: str, size: int, most: int) -> RowError:
    return RowError(
        "picture_too_large",
        f"{place}: {size:,} bytes, and at most {most:,} are read; make it smaller, or raise input.max_picture_bytes",
    )


def _from_file(uri: str, most: int) -> bytes:
    try:
        filesystem, path = storage.locate(uri)
        with filesystem.open_input_file(path) as stream:
            if stream.size() > most:
                raise _too_large(uri, stream.size(), most)
            return bytes(stream.read())
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise RowError("missing_picture", f"{uri}: there is no such picture; put it there, or drop the row") from None
    except EndorewardError:
        raise
    except OSError as error:
        raise RowError("missing_picture", f"{uri} cannot be read: {error}; mend that, or drop the row") from None


def _from_web(url: str, most: int) -> bytes:
    from urllib.request import Request, urlopen

    try:
        with urlopen(Request(url, headers={"User-Agent": "endoreward"}), timeout=FETCH_S) as answer:
            data = bytes(answer.read(most + 1))
    except (OSError, ValueError) as error:  # URLError is an OSError
        raise RowError(
            "missing_picture", f"{url[:200]}: cannot be fetched ({error}); mend that, or drop the row"
        ) from None
    if len(data) > most:
        raise _too_large(url, len(data), most)
    return data


# Counting


@dataclass(frozen=True)
class PicturesBeside:
    """How many bytes of pictures rows have in files of their own (`pipeline.corpus.files.readers.Beside`); what is fetched
    from the web counts nothing.

    Args:
        images: the columns of pictures, by their own names.
    """

    origin: Origin
    images: tuple[str, ...] = COLUMNS

    def of_text(self, row: int, raw: bytes) -> int:
        if not any(sign in raw for sign in self._signs):
            return 0
        try:
            return self._of_row(text.parse(row, raw))
        except (RowError, RecursionError):
            return 0

    def of_batch(self, batch: pa.RecordBatch) -> int:
        columns = self.columns(batch.schema, {name for name in batch.schema.names if _is_filled(batch.column(name))})
        try:
            return sum(map(self._of_row, batch.select(columns).to_pylist())) if columns else 0
        except UNREADABLE:  # of such a row, which becomes an error
            return 0

    def columns(self, schema: pa.Schema, filled: Container[str]) -> list[str]:
        return [field.name for field in schema if self._may_name_files(field, field.name in filled)]

    @cached_property
    def _signs(self) -> tuple[bytes, ...]:
        names = (*PARTS, *(name for column in self.images for name in column.split(".")))
        return tuple(f'"{name}"'.encode() for name in dict.fromkeys(names))

    def _may_name_files(self, field: pa.Field, filled: bool) -> bool:
        if not any(name == field.name or name.startswith(f"{field.name}.") for name in self.images):
            return pa.types.is_nested(field.type) and any(f"{key}:" in str(field.type) for key in INLINE)
        kind = _within_lists(field.type)
        if pa.types.is_struct(kind) and "bytes" in kind.names:
            return not filled
        return not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    def _of_row(self, row: RawRow) -> int:
        named = {column.partition(".")[0] for column in self.images} | set(self.images)
        values = (pictures_in(value) if name in named else parts_in(value) for name, value in row.items())
        return sum(self._size(value) for found in values for value in found)

    def _size(self, value: Any) -> int:
        try:
            if embedded(value, "") is not None:
                return 0
            address = self.origin.address(path_of(value))
            return 0 if URL.match(address) else min(_size_of(address), self.origin.max_bytes)
        except (RowError, OSError):
            return 0


def _within_lists(kind: pa.DataType) -> pa.DataType:
    while pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    return kind


def _is_filled(column: pa.Array) -> bool:
    """Whether it is of structs, and none of their `bytes` is null."""
    while pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        column = column.flatten()
    struct = pa.types.is_struct(column.type) and "bytes" in column.type.names
    return struct and not column.field("bytes").null_count


def _size_of(uri: str) -> int:
    filesystem, path = storage.locate(uri)
    return filesystem.get_file_info(path).size or 0


# Reading again


def row_place(uri: str, row: int, column: str, index: int, format: str = "auto") -> str:
    return f"{uri}#{row}/{quote(column, safe='')}/{index}" + ("" if format == "auto" else f"/{format}")


def has_own_file(place: str) -> bool:
    """Whether a picture's place is a file that holds nothing else."""
    return not any(each.fullmatch(place) for each in (ROW_PLACE, GREY_PLACE)) and not URL.match(place)


def read_place(place: str) -> Picture:
    """The picture at a place, whose bounds were those of the run that labelled it. Raises `missing_picture`."""
    if grey := GREY_PLACE.fullmatch(place):
        return grey_picture(int(grey[1]), int(grey[2]))
    match = None if URL.match(place) else ROW_PLACE.fullmatch(place)
    if match is None:
        return Picture((_from_web if URL.match(place) else _from_file)(place, MOST_BYTES), place, MOST_PIXELS)
    column, index = unquote(match["column"]), int(match["index"])
    try:
        row = row_of(match["uri"], match["format"] or "auto", int(match["row"]))
        data = embedded(list(pictures_in(lookup(row, column)))[index], f"picture {index} of column {column!r}")
    except (IndexError, OSError, RowError) as error:
        raise RowError(
            "missing_picture", f"{place}: there is no such picture any more ({error}); put the corpus back where it was"
        ) from None
    if data is None:
        raise RowError("missing_picture", f"{place}: a path stands there now, and a picture did; restore the corpus")
    return Picture(data, place, MOST_PIXELS)


def row_of(uri: str, format: str, number: int) -> RawRow:
    """One row of a file. Raises IndexError, OSError, RowError."""
    filesystem, path = storage.locate(uri)
    info = filesystem.get_file_info(path)
    file = InputFile(posixpath.basename(path), uri, info.size or 0, info.mtime_ns or 0)
    row = _looked_up(file, format).row(number)
    if isinstance(row, RowError):
        raise row
    return cast(RawRow, row)


@lru_cache(maxsize=8)
def _looked_up(file: InputFile, format: str) -> Any:
    return open_rows(file, file_format(file.name, format))
