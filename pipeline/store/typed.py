"""What a document of ours holds, as a type: a pydantic model for each kind of JSON file, with a version.

The rules are the same for all of them:

    version    the form that a document was written in; 0 where it has none, as those of 0.2.0. A newer one than this
               program knows is refused: its fields may mean something else
    missing    a field that earlier versions did not write has a default; any other is due
    unknown    kept, and written again where the document is; of records, which are never written again, left out
    wrong      a value of another type is refused, and the sentence names the file and the key

Records are read by the thousand and are made, compared, merged and sent between processes: they are plain dataclasses,
which pydantic checks as it reads them (`parse`).
"""

import json
from collections.abc import Callable
from typing import Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline import storage
from pipeline.errors import StoreError
from pipeline.store import documents

Content = TypeVar("Content")


class Entry(BaseModel):
    """A section of a document."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)


class Document(Entry):
    """A kind of document; a subclass gives its fields, in the order in which people read them."""

    REMEDY: ClassVar[str] = "put it back from a copy, or run the command that wrote it again, into another --output"

    version: int = 1  # its default is the newest that this program knows

    @classmethod
    def parse(cls, content: Any, uri: str) -> Self:
        """Raises StoreError where `content` of the file `uri` is not of this kind, or of a newer version."""
        check_version(content, cls.model_fields["version"].default, uri, cls.REMEDY)
        return parse(cls.model_validate, {"version": 0, **content}, uri, cls.REMEDY)

    @classmethod
    def read(cls, uri: str) -> Self:
        """One that checks itself. Raises FileNotFoundError, and StoreError as `parse` does or where it is damaged."""
        return cls.parse(documents.read(uri), uri)

    @classmethod
    def read_plain(cls, uri: str) -> Self:
        """One that is written for people. Raises FileNotFoundError, and StoreError as `parse` does or where it is no JSON."""
        try:
            content = json.loads(storage.read_bytes(uri))
        except ValueError as error:
            raise StoreError(f"{uri} is damaged: {error}; {cls.REMEDY}") from None
        return cls.parse(content, uri)

    def content(self) -> dict[str, Any]:
        """The document as plain JSON: what was set, and the newest version, in whose form it is."""
        newest = type(self).model_fields["version"].default
        return {"version": newest, **self.model_dump(exclude_unset=True, exclude={"version"})}

    def write(self, uri: str) -> None:
        """With a checksum, in the form that `read` takes."""
        documents.write(uri, self.content())

    def create(self, uri: str) -> bool:
        """`write` where the file is not there yet; False where it is."""
        return documents.create(uri, self.content())

    def write_plain(self, uri: str) -> None:
        """For people, in the form that `read_plain` takes."""
        documents.write_bytes(uri, documents.readable(self.content()))


def check_version(content: Any, newest: int, uri: str, remedy: str) -> None:
    """Raises StoreError where a document's version is not one that this program knows."""
    if not isinstance(content, dict):
        raise StoreError(f"{uri} is no document of this program: it holds no fields; {remedy}")
    version = content.get("version", 0)
    if not isinstance(version, int) or version < 0:
        raise StoreError(f"{uri}: version: {version!r} is no version of a document; {remedy}")
    if version > newest:
        raise StoreError(
            f"{uri} was written by a newer version of endoreward (version {version} of this document, and this one knows "
            f"up to {newest}); update endoreward, or give another --output"
        )


def parse(of: Callable[[Any], Content], content: Any, uri: str, remedy: str) -> Content:
    """`of(content)`: what it makes of a document's content. Raises StoreError for a key that is missing or holds another
    type, in place of pydantic's own error."""
    try:
        return of(content)
    except ValidationError as error:
        first, more = error.errors()[0], error.error_count() - 1
        key = ".".join(str(part) for part in first["loc"])
        what = "is missing" if first["type"] == "missing" else f"{repr(first['input'])[:60]}: {first['msg']}"
        rest = f" (and {more} more)" if more else ""
        raise StoreError(f"{uri}: {key}: {what}{rest}; {remedy}") from None
