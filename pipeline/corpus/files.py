"""Which files an input is, and what each is called in ids.

A name never holds a machine's folders: an explicit file is called by its file name, a file found in a folder by its
path below that folder, a file matched by a glob by its path below the glob's fixed leading part.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple

from pyarrow import fs

from pipeline import storage
from pipeline.errors import InputError

Kind = Literal["json", "jsonl", "parquet", "arrow"]

KINDS: dict[str, Kind] = {
    ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".arrow": "arrow",
}  # fmt: skip
COMPRESSIONS: dict[str, Literal["gzip", "zstd"]] = {".gz": "gzip", ".zst": "zstd"}
# What `datasets.save_to_disk` writes beside its .arrow files.
ARROW_COMPANIONS = {"dataset_info.json", "dataset_dict.json", "state.json"}


@dataclass(frozen=True)
class InputFile:
    """One file to read. `stamp` is its modification time in ns, 0 where the filesystem keeps none."""

    name: str  # as in ids
    uri: str  # absolute: a worker has another working directory
    size: int
    stamp: int


class Format(NamedTuple):
    kind: Kind
    compression: Literal["gzip", "zstd"] | None


def _suffix_format(name: str) -> tuple[Kind | None, Literal["gzip", "zstd"] | None]:
    stem, suffix = os.path.splitext(name.lower())
    compression = COMPRESSIONS.get(suffix)
    kind = KINDS.get(os.path.splitext(stem)[1] if compression else suffix)
    return (None if compression and kind in ("parquet", "arrow") else kind), compression


def file_format(name: str, format: str = "auto") -> Format:
    """How a file is read: `format` as configured, or by its name's suffix; compression always by suffix.

    Raises InputError where the suffix says nothing and no format was given.
    """
    kind, compression = _suffix_format(name)
    if format != "auto":
        kind = format  # type: ignore[assignment]  # InputConfig allows the four kinds only
    if kind is None:
        raise InputError(
            f"{name}: its suffix does not say how to read it (known: {' '.join(KINDS)}, and .gz or .zst after the JSON "
            "ones); say it with --set input.format=jsonl, or json, parquet, arrow"
        )
    return Format(kind, compression)


def find_files(paths: list[str]) -> list[InputFile]:
    """The files behind `paths`, sorted by name: files, folders, globs; local, file://, s3://, gs://, hf://datasets/...

    Folders are searched in depth, for recognised suffixes only, passing over names that begin with `.` or `_`. In a
    glob `**` stands for any number of folders. A file reached twice counts once, under its longest name, which does
    not depend on the order of `paths`. Raises InputError for a path that leads to no file, and for two files of one
    name.
    """
    names: dict[str, InputFile] = {}  # by the file's identity
    for path in paths:
        below: dict[str, InputFile] = {}
        for file in _search(path):  # of several links to one file in one folder the shortest counts
            key = os.path.realpath(file.uri) if storage.is_local(file.uri) else file.uri
            below[key] = min(below.get(key, file), file, key=_length)
        for key, file in below.items():
            names[key] = max(names.get(key, file), file, key=_length)
    owners: dict[str, InputFile] = {}
    for file in sorted(names.values(), key=lambda file: (file.name, file.uri)):
        other = owners.setdefault(file.name, file)
        if other is not file:
            raise InputError(
                f"{other.uri} and {file.uri} would both be called {file.name!r}, and ids are made of that name; give "
                "their common folder as one input, or rename one"
            )
    return list(owners.values())


def _length(file: InputFile) -> tuple[int, str]:
    return len(file.name), file.name


def _search(path: str) -> list[InputFile]:
    """What one given path leads to."""
    local = storage.is_local(path)
    base, mark, query = (path, "", "") if local else path.partition("?")
    try:
        filesystem, root = storage.locate(path)
        top = filesystem.get_file_info(root)
        if top.type == fs.FileType.File:
            found = [(top.base_name, top)]
        elif top.type == fs.FileType.Directory:
            found = [
                (name, info)
                for name, info in _below(filesystem, root)
                if not any(p[0] in "._" for p in name.split("/"))
            ]
            found = _recognised(found)
            if not found:
                raise InputError(f"{path}: no file to read in this folder (looked for {' '.join(KINDS)}, .gz, .zst)")
        elif any(sign in base for sign in "*?["):
            fixed, pattern = _split_glob(base)
            filesystem, root = storage.locate(fixed + mark + query)
            entries = _below(filesystem, root)
            found = [(name, info) for name, info in entries if _matches(name.split("/"), pattern)]
            found = _recognised(found) or found
            if not found:
                raise InputError(f"{path}: matches no file (`**` stands for any number of folders)")
        else:
            raise InputError(f"{path}: there is no such file or folder")
    except InputError:
        raise
    except (
        Exception
    ) as error:  # whatever the filesystem behind the scheme raises: no network, no rights, no such scheme
        raise InputError(f"{path}: cannot be listed: {error or type(error).__name__}") from error
    scheme = "" if local else path.partition("://")[0] + "://"
    return [
        InputFile(name, f"{scheme}{info.path}{mark}{query}", info.size or 0, info.mtime_ns or 0) for name, info in found
    ]


def _below(filesystem: fs.FileSystem, root: str) -> Iterator[tuple[str, Any]]:
    selector = fs.FileSelector(root, recursive=True, allow_not_found=True)
    for info in filesystem.get_file_info(selector):
        if info.type == fs.FileType.File:
            yield info.path[len(root) :].lstrip("/"), info


def _recognised(found: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Those with a suffix we read, without the notes that lie beside a saved Arrow dataset."""
    known = [(name, info) for name, info in found if _suffix_format(name)[0]]
    if any(name.lower().endswith(".arrow") for name, _ in known):
        known = [(name, info) for name, info in known if info.base_name not in ARROW_COMPANIONS]
    return known


def _split_glob(path: str) -> tuple[str, list[str]]:
    """`a/b/*/c.json` -> (`a/b`, [`*`, `c.json`])."""
    parts = path.split("/")
    first = next(i for i, part in enumerate(parts) if any(sign in part for sign in "*?["))
    fixed = "/".join(parts[:first])
    return fixed or ("/" if path.startswith("/") else "."), parts[first:]


def _matches(names: list[str], pattern: list[str]) -> bool:
    """Whether a path fits a glob, part by part. A name that begins with `.` or `_` fits only a part that begins so."""
    if not pattern:
        return not names
    if pattern[0] == "**" and _matches(names, pattern[1:]):
        return True
    if not names or (names[0][0] in "._" and pattern[0][0] != names[0][0]):
        return False
    if pattern[0] == "**":
        return _matches(names[1:], pattern)
    return fnmatchcase(names[0], pattern[0]) and _matches(names[1:], pattern[1:])
