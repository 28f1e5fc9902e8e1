"""Small JSON files that check themselves: the last field is the sha256 of the rest, and the bytes are canonical.

A flipped bit anywhere in such a file is found on reading. They are written whole or not at all, as is everything else that
this module puts into an OUTPUT.

Some file systems have no hard links (mounted object stores, SMB, FAT). A file that is not to replace another is then renamed
without replacing, which is as atomic; where the file system has not got that either, it is looked for first, which two
writers in the same moment could both do.
"""

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from typing import Any

from pipeline import storage
from pipeline.errors import RunError, StoreError

AT_FDCWD, RENAME_NOREPLACE = -100, 1  # of Linux: linux/fcntl.h, linux/fs.h
FULL = (errno.ENOSPC, errno.EDQUOT)
UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF)


def encode(content: dict[str, Any]) -> bytes:
    body = _canonical(content)
    return _canonical({**content, "sha256": hashlib.sha256(body).hexdigest()})


def decode(data: bytes, uri: str) -> dict[str, Any]:
    """Raises StoreError where the bytes are not what `encode` wrote."""
    try:
        content: dict[str, Any] = json.loads(data)
        content.pop("sha256")
        intact = encode(content) == data
    except (ValueError, KeyError, AttributeError, TypeError):
        intact = False
    if not intact:
        raise StoreError(
            f"{uri} is damaged: its checksum does not match; put it back from a copy, or, where it is the "
            "record of a shard, delete it and run the same again"
        )
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
    """Write a file that is not there yet; False when it is. Atomic on an object store and on a local disk that has hard links
    or can rename without replacing, best effort elsewhere."""
    return write_bytes(uri, encode(content), replace=False)


def write_bytes(uri: str, data: bytes, *, replace: bool = True) -> bool:
    """Put `data` at `uri`, all or nothing: a reader sees the old file or the whole new one, also after a power cut.

    Local: a hidden temporary file, flushed to disk, renamed. Object store: one put, on a condition. Where a guard of the
    folder says that the right to write is lost (`storage.guarding`), nothing is.

    Returns:
        False where there is a file that is not to be replaced.

    Raises:
        RunError: when the disk is full or cannot be written.
    """
    if not storage.is_local(uri):
        return storage.upload(uri, data, replace=replace)
    path = storage.locate(uri)[1]
    with _temporary(path) as temporary:
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                _flush(file.fileno())
            storage.check_right(uri)
            return _put(temporary, path, replace)
        except OSError as error:
            raise _sentence(error, path) from error


@contextlib.contextmanager
def whole_file(uri: str, *, replace: bool = True) -> Iterator[str]:
    """A local path to write a large file to; it shows at `uri` when the block ends well, else nothing does.

    Raises:
        FileExistsError: where there is a file that is not to be replaced.
        RunError: when the disk is full or cannot be written.
    """
    local = storage.is_local(uri)
    path = storage.locate(uri)[1]
    beside = path if local else os.path.join(tempfile.gettempdir(), os.path.basename(path))
    with _temporary(beside) as temporary:
        try:
            yield temporary
            if local:
                with open(temporary, "rb") as file:
                    _flush(file.fileno())
                written = _put(temporary, path, replace)
        except OSError as error:  # of what was read, whoever reads has to say
            if error.errno in FULL or temporary in (error.filename, error.filename2):
                raise _sentence(error, beside) from error
            raise
        if not local:
            written = storage.upload_file(uri, temporary, replace=replace)
        if not written:
            raise FileExistsError(uri)


def put_folder(folder: str, uri: str) -> None:
    """Copy a local folder to `uri`; files of the same names are replaced, each whole."""
    for root, _, names in os.walk(folder):
        below = os.path.relpath(root, folder)
        place = uri if below == "." else storage.join(uri, *below.split(os.sep))
        for name in sorted(names):
            source, target = os.path.join(root, name), storage.join(place, name)
            if not storage.is_local(uri):
                storage.upload_file(target, source)
                continue
            with whole_file(target) as path:
                shutil.copyfile(source, path)


def remove(uri: str) -> None:
    """Delete a file if it is there."""
    storage.remove(uri)


def remove_temporaries(uri: str) -> None:
    """Delete what killed writers left under a folder of ours."""
    for name in sorted(filter(is_temporary, storage.each_name(uri))):
        remove(storage.join(uri, name))


def is_temporary(name: str, of: str | None = None) -> bool:
    """Whether a file's name is one that this module gives while it writes; of the file `of`, where that is given."""
    match = re.fullmatch(r"\.(.+)\.[0-9a-f]{32}\.tmp", name)
    return match is not None and of in (None, match[1])


def _canonical(content: dict[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=True, sort_keys=True, indent=1, allow_nan=False).encode()


@contextlib.contextmanager
def _temporary(path: str) -> Iterator[str]:
    """A hidden name beside `path`, whose folder is made; gone when the block ends."""
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex}.tmp")
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise _sentence(error, folder) from error
    try:
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def _put(temporary: str, path: str, replace: bool) -> bool:
    """Give a whole file its name; False where the name is taken and not to be."""
    if replace:
        os.replace(temporary, path)
    else:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links; one that cannot be written refuses what follows too
            if not _rename_new(temporary, path):
                return False
    _flush_folder(os.path.dirname(path))
    return True


def _rename_new(temporary: str, path: str) -> bool:
    """Rename to a name that is free; False where it is not."""
    try:
        done = ctypes.CDLL(None, use_errno=True).renameat2(
            AT_FDCWD, os.fsencode(temporary), AT_FDCWD, os.fsencode(path), RENAME_NOREPLACE
        )
    except AttributeError:  # a C library without it
        done = -1
        ctypes.set_errno(errno.ENOSYS)
    if done == 0:
        return True
    if ctypes.get_errno() == errno.EEXIST or os.path.lexists(path):
        return False
    os.replace(temporary, path)
    return True


def _flush(handle: int) -> None:
    """To the disk; a file system that knows no such order, as those over a network, keeps its own promises."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def _flush_folder(folder: str) -> None:
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # one that may be written and not be read
        return
    try:
        _flush(handle)
    finally:
        os.close(handle)


def _sentence(error: OSError, path: str) -> RunError:
    if error.errno in FULL:
        return RunError(f"the disk that holds {path} is full; nothing is lost: free some space and run the same again")
    return RunError(f"cannot write {path}: {error.strerror or error}; mend that and run the same again")
