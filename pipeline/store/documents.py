"""Small JSON files that check themselves: the last field is the sha256 of the rest, and the bytes are canonical.

A flipped bit anywhere in such a file is found on reading. They are written whole or not at all.
"""

import contextlib
import errno
import hashlib
import json
import os
import uuid
from typing import Any

from pyarrow import fs

from pipeline import storage
from pipeline.errors import RunError, StoreError


def encode(content: dict[str, Any]) -> bytes:
    body = _canonical(content)
    return _canonical({**content, "sha256": hashlib.sha256(body).hexdigest()})


def decode(data: bytes, uri: str) -> dict[str, Any]:
    """Raises StoreError where the bytes are not what `encode` wrote."""
    try:
        content = json.loads(data)
        content.pop("sha256")
        intact = encode(content) == data
    except (ValueError, KeyError, AttributeError):
        intact = False
    if not intact:
        raise StoreError(f"{uri} is damaged: its checksum does not match; delete it and label again to mend the store")
    return content


def readable(content: dict[str, Any]) -> bytes:
    """JSON for people, its keys in the order given."""
    return json.dumps(content, ensure_ascii=False, indent=2, allow_nan=False).encode()


def read(uri: str) -> dict[str, Any]:
    """Raises FileNotFoundError, or StoreError for a damaged one."""
    return decode(storage.read_bytes(uri), uri)


def write(uri: str, content: dict[str, Any]) -> None:
    write_bytes(uri, encode(content))


def create(uri: str, content: dict[str, Any]) -> bool:
    """Write a file that is not there yet; False when it is. Atomic on a local disk, best effort on an object store."""
    return write_bytes(uri, encode(content), replace=False)


def write_bytes(uri: str, data: bytes, *, replace: bool = True) -> bool:
    """Put `data` at `uri`, all or nothing: a reader sees the old file or the whole new one, also after a power cut.

    Local: a hidden temporary file, flushed to disk, renamed. Object store: one upload, which shows when it is complete.

    Raises:
        RunError: when the disk is full or cannot be written.
    """
    filesystem, path = storage.locate(uri)
    if not storage.is_local(uri):
        if not replace and storage.exists(uri):
            return False
        with filesystem.open_output_stream(path) as stream:
            stream.write(data)
        return True
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex}.tmp")
    try:
        os.makedirs(folder, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(temporary, path)
        else:
            os.link(temporary, path)
            os.unlink(temporary)
    except FileExistsError:
        _remove(temporary)
        return False
    except OSError as error:
        _remove(temporary)
        raise _sentence(error, path) from error
    _flush_folder(folder)
    return True


def remove(uri: str) -> None:
    """Delete a file if it is there."""
    if storage.is_local(uri):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(storage.locate(uri)[1])
        return
    filesystem, path = storage.locate(uri)
    if filesystem.get_file_info(path).type == fs.FileType.File:
        filesystem.delete_file(path)


def remove_temporaries(uri: str) -> None:
    """Delete what killed writers left under a folder."""
    for name in storage.list_names(uri):
        if name.startswith(".") and name.endswith(".tmp"):
            remove(storage.join(uri, name))


def _canonical(content: dict[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=True, sort_keys=True, indent=1, allow_nan=False).encode()


def _remove(path: str) -> None:
    if os.path.exists(path):
        os.unlink(path)


def _flush_folder(folder: str) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sentence(error: OSError, path: str) -> RunError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError(f"the disk that holds {path} is full; nothing is lost: free some space and run the same again")
    return RunError(f"cannot write {path}: {error.strerror or error}")
