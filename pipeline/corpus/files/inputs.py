"""Which files an input is, and what each is called in ids.

A name never holds a machine's folders: an explicit file is called by its file name, a file found in a folder by its
path below that folder, a file matched by a glob by its path below the glob's fixed leading part.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from shlex import quote
from typing import Any, Literal, NamedTuple

from pyarrow import fs

from pipeline import storage
from pipeline.corpus.files.folders import ANY, Choice, Folder, Skipped, choose, matches, without_unnamed
from pipeline.errors import InputError

Kind = Literal["json", "jsonl", "csv", "tsv", "parquet", "arrow"]

KINDS: dict[str, Kind] = {
    ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet",
    ".arrow": "arrow",
}  # fmt: skip
COMPRESSIONS: dict[str, Literal["gzip", "zstd"]] = {".gz": "gzip", ".zst": "zstd"}
# What wraps data in a form that is not read, and the command that takes it out.
WRAPPINGS = {
    ".bz2": "bunzip2 -k", ".xz": "unxz -k", ".lzma": "unlzma -k", ".lz4": "lz4 -dk", ".zip": "unzip", ".7z": "7z x",
    ".tar": "tar -xf", ".tgz": "tar -xf", ".rar": "unrar x",
}  # fmt: skip
TABLES = (".xlsx", ".xls", ".ods")
SAY_FORMAT = "say what it is, such as --set input.format=jsonl (or json, csv, tsv, parquet, arrow)"
NAMED = 5  # skipped files named in one note


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


@dataclass(frozen=True)
class InputFiles:
    """What there is to read, sorted by name, and what lies beside it and is not read, each with its reason."""

    files: tuple[InputFile, ...]
    skipped: tuple[Skipped, ...] = ()

    def __iter__(self) -> Iterator[InputFile]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> InputFile:
        return self.files[index]

    def without(self, reasons: dict[str, str]) -> "InputFiles":
        """Less the files of some names, which are then skipped for these reasons."""
        left_out = [Skipped(file.name, reasons[file.name], file.uri) for file in self.files if file.name in reasons]
        return InputFiles(tuple(f for f in self.files if f.name not in reasons), (*self.skipped, *left_out))

    def notes(self) -> list[str]:
        """A sentence for each reason why files are skipped: how many, and which are the first."""
        by_reason: dict[str, list[str]] = {}
        for each in self.skipped:
            by_reason.setdefault(each.reason, []).append(each.name)
        return [_note(reason, names) for reason, names in by_reason.items()]


def _note(reason: str, names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"not read ({reason}): {', '.join(names[:NAMED])}{more}"


def _suffix_format(name: str) -> tuple[Kind | None, Literal["gzip", "zstd"] | None]:
    stem, suffix = os.path.splitext(name.lower())
    compression = COMPRESSIONS.get(suffix)
    kind = KINDS.get(os.path.splitext(stem)[1] if compression else suffix)
    return kind, compression


def _wrapped(name: str) -> str | None:
    """Why a file cannot be read before something is done to it, and what to do; None where it can."""
    stem, suffix = os.path.splitext(name.lower())
    outer = os.path.splitext(stem)[1] if suffix in COMPRESSIONS else suffix
    if suffix in COMPRESSIONS and KINDS.get(outer) in ("parquet", "arrow"):
        return f"{outer} is not read through {suffix}; unpack it with `{'gunzip' if suffix == '.gz' else 'unzstd'} -k`"
    if outer in WRAPPINGS:
        return f"{outer} is not unpacked here; unpack it with `{WRAPPINGS[outer]}`"
    return f"{outer} is not read; export it as CSV" if outer in TABLES else None


def unread(name: str) -> str | None:
    """Why a file in a folder is not read, or None."""
    return _wrapped(name) or (None if _suffix_format(name)[0] else "its suffix is none that is read")


def file_format(name: str, format: str = "auto") -> Format:
    """How a file is read: `format` as configured, or by its name's suffix; compression always by suffix.

    Raises InputError where the suffix says nothing and no format was given, and for what has to be unpacked first.
    """
    if wrapped := _wrapped(name):
        raise InputError(f"{name}: {wrapped} and give what comes out")
    kind, compression = _suffix_format(name)
    if format != "auto":
        kind = format  # type: ignore[assignment]  # InputConfig allows the kinds only
    if kind is None:
        text = '; of plain text make JSON lines, {"text": ...} each' if ".txt" in name.lower() else ""
        raise InputError(
            f"{name}: its suffix does not say how to read it (known: {' '.join(KINDS)}, and .gz or .zst after those of "
            f"text); {SAY_FORMAT}{text}"
        )
    return Format(kind, compression)


def find_files(
    paths: list[str], choice: Choice = ANY, default: Choice = ANY, section: str | None = "input"
) -> InputFiles:
    """The files behind `paths`, sorted by name: files, folders, globs; local, file://, s3://, gs://, hf://datasets/...

    Folders are searched in depth, for recognised suffixes only, passing over names that begin with `.` or `_`; of a saved
    dataset and of a clone, the files of one split are read (`pipeline.corpus.files.folders`). In a glob `**` stands for any
    number of folders. A file reached twice counts once, under its longest name, which does not depend on the order of
    `paths`.

    Args:
        choice: the configuration and split that are configured.
        default: those that are taken of a folder which has them where nothing is configured.
        section: of the configuration, for messages; None where only a path can choose.

    Raises:
        InputError: for a path that leads to no file, for two files of one name, for a folder of several splits or
            configurations of which none is chosen, and for a choice that no folder leaves.
    """
    names: dict[str, InputFile] = {}  # by the file's identity
    skipped: list[Skipped] = []
    chosen: set[str] = set()
    for path in paths:
        below: dict[str, InputFile] = {}
        search = _Search(path, choice, default, section)
        for file in search.files():  # of several links to one file in one folder the shortest counts
            key = os.path.realpath(file.uri) if storage.is_local(file.uri) else file.uri
            below[key] = min(below.get(key, file), file, key=_length)
        for key, file in below.items():
            names[key] = max(names.get(key, file), file, key=_length)
        skipped += search.skipped
        chosen |= search.chosen
    for kind, value in (("config", choice.config), ("split", choice.split)):
        if value and kind not in chosen:
            raise InputError(
                f"input.{kind} = {value!r} chooses among those of a folder, and there are none in {', '.join(paths)}; "
                "leave it out"
            )
    owners: dict[str, InputFile] = {}
    for file in sorted(names.values(), key=lambda file: (file.name, file.uri)):
        other = owners.setdefault(file.name, file)
        if other is not file:
            raise InputError(
                f"{other.uri} and {file.uri} would both be called {file.name!r}, and ids are made of that name; give "
                "their common folder as one input, or rename one"
            )
    read = {file.uri for file in owners.values()}
    return InputFiles(tuple(owners.values()), tuple(each for each in dict.fromkeys(skipped) if each.uri not in read))


def _length(file: InputFile) -> tuple[int, str]:
    return len(file.name), file.name


class _Search:
    """What one given path leads to, and after `files` what it passed over."""

    def __init__(self, path: str, choice: Choice, default: Choice, section: str | None):
        self.path, self.choice, self.default, self.section = path, choice, default, section
        self.skipped: list[Skipped] = []
        self.chosen: set[str] = set()
        self.local = storage.is_local(path)
        self.base, self.mark, self.query = (path, "", "") if self.local else path.partition("?")

    def files(self) -> list[InputFile]:
        try:
            filesystem, root = storage.locate(self.path)
            top = filesystem.get_file_info(root)
            if top.type == fs.FileType.File:
                entries = [(top.base_name, top)]
            elif top.type == fs.FileType.Directory:
                entries = self._of_folder(filesystem, root)
            elif any(sign in self.base for sign in "*?["):
                entries = self._of_glob()
            else:
                raise InputError(f"{self.path}: there is no such file or folder")
        except InputError:
            raise
        except Exception as error:  # whatever a filesystem raises: no network, no rights, no such scheme
            raise InputError(f"{self.path}: cannot be listed: {error or type(error).__name__}") from error
        return [InputFile(name, self._uri(info.path), info.size or 0, info.mtime_ns or 0) for name, info in entries]

    def _of_folder(self, filesystem: fs.FileSystem, root: str) -> list[tuple[str, Any]]:
        entries = dict(sorted(_below(filesystem, root), key=lambda entry: entry[0]))
        folder = self._folder(filesystem, root, entries)
        names, self.chosen = choose(folder, self.choice, self.default)
        folder.skip(folder.hidden, "names that begin with . or _")
        folder.skip(_dangling(root) if self.local else [], "links to nothing")
        self._pass_over(folder, root)
        if not names:
            notes = InputFiles((), tuple(self.skipped)).notes()
            glob = storage.join(self.path, "*")
            raise InputError(
                f"{self.path}: no file to read in this folder (looked for {' '.join(KINDS)}, .gz, .zst)"
                + "".join(f"; {note}" for note in notes)
                + (f". Of files without a suffix {SAY_FORMAT}, and give the glob {quote(glob)}" if notes else "")
            )
        return [(name, entries[name]) for name in names]

    def _of_glob(self) -> list[tuple[str, Any]]:
        fixed, pattern = _split_glob(self.base)
        filesystem, root = storage.locate(fixed + self.mark + self.query)
        entries = dict(sorted(_below(filesystem, root), key=lambda entry: entry[0]))
        folder = self._folder(filesystem, root, entries)
        matched = [name for name in entries if matches(name.split("/"), pattern)]
        names = without_unnamed(folder, [name for name in matched if not unread(name)] or matched)
        if not names:
            raise InputError(f"{self.path}: matches no file (`**` stands for any number of folders)")
        folder.skip((name for name in matched if name not in names and unread(name)), "its suffix is none that is read")
        self._pass_over(folder, root)
        return [(name, entries[name]) for name in names]

    def _folder(self, filesystem: fs.FileSystem, root: str, entries: dict[str, Any]) -> Folder:
        shown = [name for name in entries if not _hidden(name)]

        def read(name: str) -> bytes:
            with filesystem.open_input_stream(entries[name].path) as stream:
                return bytes(stream.read())

        hidden = dict.fromkeys(h for name in entries if (h := _hidden(name)))
        return Folder(self.path, shown, list(hidden), unread, read, self.section)

    def _pass_over(self, folder: Folder, root: str) -> None:
        self.skipped = [each._replace(uri=self._uri(f"{root}/{each.name}")) for each in folder.skipped]

    def _uri(self, path: str) -> str:
        scheme = "" if self.local else self.path.partition("://")[0] + "://"
        return f"{scheme}{path}{self.mark}{self.query}"


def _hidden(name: str) -> str | None:
    """The file, or the outermost folder of it, whose name begins with `.` or `_`; a folder ends in /."""
    parts = name.split("/")
    depth = next((depth for depth, part in enumerate(parts) if part[0] in "._"), None)
    return None if depth is None else "/".join(parts[: depth + 1]) + ("/" if depth < len(parts) - 1 else "")


def _below(filesystem: fs.FileSystem, root: str) -> Iterator[tuple[str, Any]]:
    selector = fs.FileSelector(root, recursive=True, allow_not_found=True)
    for info in filesystem.get_file_info(selector):
        if info.type == fs.FileType.File:
            yield info.path[len(root) :].lstrip("/"), info


def _dangling(root: str) -> list[str]:
    """Links below a local folder whose targets are not there, which Arrow does not list."""
    links = (os.path.join(top, name) for top, _, names in os.walk(root) for name in names)
    return sorted(os.path.relpath(link, root) for link in links if os.path.islink(link) and not os.path.exists(link))


def _split_glob(path: str) -> tuple[str, list[str]]:
    """`a/b/*/c.json` -> (`a/b`, [`*`, `c.json`])."""
    parts = path.split("/")
    first = next(i for i, part in enumerate(parts) if any(sign in part for sign in "*?["))
    fixed = "/".join(parts[:first])
    return fixed or ("/" if path.startswith("/") else "."), parts[first:]
