"""Whose an OUTPUT is: what each command leaves there as proof, and what else may lie in a folder that is free.

    label, aggregate    records/run.json
    train, rl           run.json
    evaluate            evaluation.json
    sample              _store/records/run.json

A folder that holds its command's own document is that command's. One that holds nothing is free, whatever a file system
or a desktop puts into empty folders, and what a run leaves that was killed before its document was there. Anything else is
somebody else's: it is refused before anything is written. Names prove nothing: a document counts when its checksum is right
and it has the fields of its kind.
"""

import json
import re
from dataclasses import dataclass

from pyarrow import fs

from pipeline import storage
from pipeline.errors import StoreError
from pipeline.store import documents

LOCK = ".lock"
DESKTOP = {".DS_Store", ".directory", ".localized", "desktop.ini", "Thumbs.db"}
"""Files that a desktop puts into folders that people only look at."""
RESERVED = {"lost+found"}
"""Folders that belong to a file system."""
SHOWN = 5


@dataclass(frozen=True)
class Kind:
    """What a command makes of its OUTPUT."""

    name: str  # for messages
    document: tuple[str, ...]  # its own, below OUTPUT
    fields: frozenset[str]  # that this has


STORE = Kind("a label store", ("records", "run.json"), frozenset({"fingerprint", "description"}))
RUN = Kind("a training run", ("run.json",), frozenset({"description"}))
EVALUATION = Kind("an evaluation", ("evaluation.json",), frozenset({"benchmark", "inputs"}))
SAMPLES = Kind("samples", ("_store", "records", "run.json"), STORE.fields)
KINDS = (STORE, RUN, EVALUATION, SAMPLES)


def is_ours(uri: str, kind: Kind) -> bool:
    """Whether the folder holds the document of this kind. Raises StoreError for one that is not ours, or damaged."""
    place = storage.join(uri, *kind.document)
    if not storage.is_file(place):
        return False
    try:
        content = documents.read(place)
    except StoreError:
        content = {}
    if not kind.fields <= content.keys():
        raise StoreError(
            f"{place} is damaged, or was not written by this program: if {uri} was {kind.name}, put that file back from a copy"
        )
    return True


def check(uri: str, kind: Kind) -> bool:
    """Whether the folder is of this kind already; False where it is free or not there. Writes nothing.

    Raises:
        StoreError: where it is somebody else's, a file, or cannot be reached.
    """
    filesystem, path = storage.locate(uri)
    try:
        info = filesystem.get_file_info(path)
        if info.type in (fs.FileType.File, fs.FileType.Unknown):
            raise StoreError(f"{uri} is a file, and {kind.name} is a folder; give another --output")
        if info.type == fs.FileType.NotFound:
            return False
        if _is_ours_or_free(uri, kind):
            return True
        foreign = _foreign(uri, kind)
    except OSError as error:
        raise StoreError(f"{uri} cannot be reached: {error}; give another --output") from error
    if foreign:
        raise StoreError(
            f"{uri} holds something else ({_listed(foreign)}){_known(uri)}, which is left as it is; give --output an empty "
            "folder, or one that is not there yet"
        )
    return False


def _is_ours_or_free(uri: str, kind: Kind) -> bool:
    try:
        return is_ours(uri, kind)
    except StoreError as error:
        raise StoreError(f"{error}; {uri} is left as it is, else give another --output") from None


def _foreign(uri: str, kind: Kind) -> list[str]:
    """Names below a folder without a document that neither an empty folder has nor a run that was killed as it began."""
    begun, *below = kind.document
    names = []
    for name, is_folder in storage.list_entries(uri):
        if is_folder:
            ours = bool(below) and name == begun and _only_begun(storage.join(uri, name), tuple(below))
            ours = ours or name in RESERVED
        else:
            ours = name in DESKTOP or (name == LOCK and is_lock(storage.join(uri, name)))
            ours = ours or documents.is_temporary(name, LOCK) or (not below and documents.is_temporary(name, begun))
        if not ours:
            names.append(name + "/" * is_folder)
    return names


def _only_begun(uri: str, document: tuple[str, ...]) -> bool:
    return not _foreign(uri, Kind("", document, frozenset()))


def is_lock(uri: str) -> bool:
    """Whether a file is a writer's lock (`pipeline.store.lock`): empty as it is taken, else who holds it."""
    if not storage.is_file(uri):
        return False
    data = storage.read_bytes(uri)
    try:
        return not data or {"host", "pid", "since"} <= json.loads(data).keys()
    except (ValueError, AttributeError):
        return False


def _listed(names: list[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def _known(uri: str) -> str:
    """What else a person should know of it."""
    for other in KINDS:
        try:
            if is_ours(uri, other):
                return f": it is {other.name}"
        except (StoreError, OSError):
            continue
    names = {name for name, _ in storage.list_entries(uri)}
    if ".git" in names:
        return ": it is a git repository"
    if any(re.fullmatch(r"\.(bashrc|profile|zshrc|ssh|config)", name) for name in names):
        return ": it looks like a home directory"
    return ""
