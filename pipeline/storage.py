"""Locations are strings (`out/x`, `s3://bucket/x`, `hf://datasets/org/name`); this module opens them.

`pathlib` is avoided on purpose: it turns `s3://b/k` into `s3:/b/k`. A local path has no scheme.
"""

import contextlib
import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from pyarrow import PythonFile, fs

from pipeline import objects
from pipeline.errors import ConfigError
from pipeline.objects import Version, is_objects

__all__ = ["Version", "is_objects"]

COPIED = 32 << 20  # bytes of a file that are copied at once
READ_AHEAD = 4 << 20  # bytes that a stream over the network asks for at once
BY_ARROW = ("hdfs", "viewfs", "abfs", "abfss")  # schemes that pyarrow opens: it also knows some that are no storage
ONE_PUT = 256 << 20  # bytes of a file that is put in one request where it is not to replace another


def is_local(uri: str) -> bool:
    return "://" not in uri or uri.startswith("file://")


def absolute(uri: str) -> str:
    """A local place by its whole path, `~` by the home folder that it stands for; another as it is."""
    return os.path.abspath(os.path.expanduser(uri.removeprefix("file://"))) if is_local(uri) else uri


def absolute_folder(name: str) -> str:
    """A local folder by its whole path; what is none, such as a hub's name of a model, as it is."""
    return os.path.abspath(name) if os.path.isdir(name) else name


def join(uri: str, *names: str) -> str:
    """`uri/name/name`, keeping a query string (`s3://b/k?endpoint_override=...`) at the end."""
    base, mark, query = uri.partition("?")
    return "/".join([base.rstrip("/"), *names]) + mark + query


def _split(uri: str) -> tuple[str, str]:
    """The bucket as `scheme://name?options`, and the path within the scheme, which begins with the bucket's name."""
    base, mark, query = uri.partition("?")
    scheme, _, path = base.partition("://")
    path = path.rstrip("/")
    return f"{scheme}://{path.partition('/')[0]}{mark}{query}", path


def _object(uri: str) -> tuple[objects.Bucket, str]:
    root, path = _split(uri)
    if not is_objects(uri):
        raise ConfigError(
            f"{uri} is not written to: of what has an address, only s3:// and gs:// can create a file where there is none, "
            "which two runs cannot both do; give another --output, or mount that storage and give its folder"
        )
    return objects.bucket(root), path.partition("/")[2]


@lru_cache(maxsize=32)
def _filesystem(root: str) -> fs.FileSystem:
    if root.startswith("hf://"):
        from huggingface_hub import HfFileSystem

        return fs.PyFileSystem(fs.FSSpecHandler(HfFileSystem()))
    if is_objects(root):
        return fs.PyFileSystem(_Objects(root))
    if root.partition("://")[0] not in BY_ARROW:
        raise ConfigError(
            f"{root}: no storage can be opened under this address; known are s3://, gs://, hf://, "
            f"{', '.join(f'{scheme}://' for scheme in BY_ARROW)}, and places on this machine, which have no scheme"
        )
    try:
        return fs.FileSystem.from_uri(root)[0]
    except (ValueError, OSError) as error:
        raise ConfigError(f"{root}: no storage can be opened under this address: {error}") from None


def locate(uri: str) -> tuple[fs.FileSystem, str]:
    """The filesystem that holds `uri` and the path within it."""
    if is_local(uri):
        return fs.LocalFileSystem(), absolute(uri)
    root, path = _split(uri)
    return _filesystem("hf://" if root.startswith("hf://") else root), path


def read_bytes(uri: str) -> bytes:
    """The whole object. Raises FileNotFoundError where there is none."""
    if is_objects(uri):
        bucket, key = _object(uri)
        return bucket.read(key)[0]
    filesystem, path = locate(uri)
    with filesystem.open_input_stream(path) as stream:
        return bytes(stream.read())


def exists(uri: str) -> bool:
    filesystem, path = locate(uri)
    return bool(filesystem.get_file_info(path).type != fs.FileType.NotFound)


def list_names(uri: str) -> list[str]:
    """Names of the files directly under a folder, sorted; empty where the folder does not exist."""
    return sorted(each_name(uri))


def each_name(uri: str) -> Iterator[str]:
    """As `list_names`, in no order, and of a local folder without all of them in memory."""
    filesystem, path = locate(uri)
    if is_local(uri):
        with contextlib.suppress(FileNotFoundError), os.scandir(path) as entries:
            yield from (entry.name for entry in entries if entry.is_file())
        return
    entries = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    yield from (info.base_name for info in entries if info.type == fs.FileType.File)


def list_entries(uri: str) -> list[tuple[str, bool]]:
    """Name of everything directly under a folder, hidden or not, and whether it is a folder itself, sorted; empty where
    the folder does not exist."""
    filesystem, path = locate(uri)
    if is_local(uri):
        if not os.path.isdir(path):
            return []
        with os.scandir(path) as entries:
            return sorted((entry.name, entry.is_dir()) for entry in entries)
    entries = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    return sorted((info.base_name, info.type == fs.FileType.Directory) for info in entries)


def is_file(uri: str) -> bool:
    filesystem, path = locate(uri)
    return bool(filesystem.get_file_info(path).type == fs.FileType.File)


def remove_if_empty(uri: str) -> None:
    """Delete a local folder that holds nothing; an object store has no empty ones."""
    if is_local(uri):
        with contextlib.suppress(OSError):
            os.rmdir(locate(uri)[1])


def local_copy(uri: str) -> str:
    """A local folder with all files below one in an object store: fetched once for each content, and shown when it is whole.

    Raises:
        FileNotFoundError: where there is no such folder.
    """
    bucket, key = _object(uri)
    files = sorted((entry for entry in bucket.below(key) if entry.size is not None), key=lambda entry: entry.key)
    names = [entry.key.removeprefix(f"{key}/") for entry in files]
    if not files:
        raise FileNotFoundError(f"{uri} is no folder")
    if strange := next((name for name in names if ".." in name.split("/") or name.startswith("/")), None):
        raise ConfigError(f"{uri} holds a file {strange!r}, which has no place in a local copy of it; take it away")
    content = hashlib.sha256(repr([bucket.root, *files]).encode()).hexdigest()
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = os.path.join(cache, "endoreward", "folders", content)
    if os.path.isdir(folder):
        return folder
    os.makedirs(os.path.dirname(folder), exist_ok=True)
    with tempfile.TemporaryDirectory(dir=os.path.dirname(folder), prefix=".") as begun:
        for entry, name in zip(files, names, strict=True):
            path = os.path.join(begun, "folder", *name.split("/"))
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                for start in range(0, entry.size or 0, COPIED):
                    stop = min(start + COPIED, entry.size or 0)
                    file.write(bucket.read_range(entry.key, start, stop, Version(entry.e_tag)))
        with contextlib.suppress(OSError):  # another process was faster
            os.rename(os.path.join(begun, "folder"), folder)
    return folder


# Object stores: what is not there can be created, and what was looked at replaced, whoever else tries the same.


def read_version(uri: str) -> tuple[bytes, Version]:
    """The whole object, and which version of it that is. Raises FileNotFoundError where there is none."""
    bucket, key = _object(uri)
    return bucket.read(key)


def create(uri: str, data: bytes, within: float | None = None) -> Version | None:
    """Put an object where there is none; None where there is one. `within` bounds the seconds of trying."""
    bucket, key = _object(uri)
    return bucket.create(key, data, within)


def replace(uri: str, data: bytes, version: Version, within: float | None = None) -> Version | None:
    """Put an object in place of this version of it; None where it is another by now, or gone."""
    bucket, key = _object(uri)
    return bucket.replace(key, data, version, within)


def upload(uri: str, data: bytes, *, replace: bool = True) -> bool:
    """Put an object, whole; False where there is one that is not to be replaced.

    Every put is on a condition that was looked at before the right to write was (`guarding`), so one that is late, of this
    process or of one that has lost its store, changes nothing that somebody wrote in the meantime.
    """
    bucket, key = _object(uri)
    while True:
        version = bucket.version(key) if replace else None
        check_right(uri)
        done = bucket.create(key, data) if version is None else bucket.replace(key, data, version)
        if done or not replace:
            return done is not None


def upload_file(uri: str, path: str, *, replace: bool = True) -> bool:
    """Put a local file: nothing shows before it is whole, and nothing where this raises. In parts, which no condition goes
    with: where `replace` is false, a file too large for one put is created after looking whether there is one."""
    if not replace and os.path.getsize(path) <= ONE_PUT:
        return upload(uri, Path(path).read_bytes(), replace=False)
    bucket, key = _object(uri)
    if not replace and bucket.version(key):
        return False
    check_right(uri)
    bucket.upload(key, Path(path))
    return True


def remove(uri: str) -> None:
    """Delete a file if it is there."""
    check_right(uri)
    if is_local(uri):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(locate(uri)[1])
        return
    bucket, key = _object(uri)
    bucket.remove(key)


# The right to write

_guards: dict[str, list[tuple[Callable[[], None], str]]] = {}


@contextlib.contextmanager
def guarding(folder: str, check: Callable[[], None], proof: str) -> Iterator[None]:
    """For the block, and in all of this process: whatever is written or deleted below the folder, `check` is called first,
    and raises where the right to do that is lost. Not for `proof`, the file that says whose it is."""
    guard = check, proof
    _guards.setdefault(folder, []).append(guard)
    try:
        yield
    finally:  # not the last one in any case: blocks of two threads may overlap
        _guards[folder].remove(guard)


def check_right(uri: str) -> None:
    """Raises what the guard of a folder around `uri` raises."""
    for folder, guards in list(_guards.items()):
        if uri.startswith(folder.partition("?")[0].rstrip("/") + "/"):
            for check, proof in guards[-1:]:
                if uri != proof:
                    check()


# What reads files through pyarrow reads an object store through the same client.


class _Objects(fs.FileSystemHandler):  # type: ignore[misc]
    """A pyarrow filesystem over one bucket; its paths begin with the bucket's name."""

    def __init__(self, root: str):
        self.root = root

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Objects) and self.root == other.root

    __hash__ = None  # type: ignore[assignment]

    def _key(self, path: str) -> str:
        return path.strip("/").partition("/")[2]

    @property
    def _bucket(self) -> objects.Bucket:
        return objects.bucket(self.root)

    def _info(self, entry: objects.Entry, path: str) -> fs.FileInfo:
        if entry.size is None:
            return fs.FileInfo(path, fs.FileType.Directory)
        return fs.FileInfo(path, fs.FileType.File, size=entry.size, mtime_ns=round(entry.modified * 1e6) * 1000)

    def get_type_name(self) -> str:
        return self.root.partition("://")[0]

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        return [self._look(path) for path in paths]

    def _look(self, path: str) -> fs.FileInfo:
        key = self._key(path)
        if key:
            with contextlib.suppress(FileNotFoundError):
                size, version = self._bucket.look(key)
                return self._info(objects.Entry(key, size, version.modified or 0.0), path)
        if self._bucket.has_folder(key):
            return fs.FileInfo(path, fs.FileType.Directory)
        return fs.FileInfo(path, fs.FileType.NotFound)

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        key, name = self._key(selector.base_dir), selector.base_dir.strip("/").partition("/")[0]
        entries = self._bucket.below(key) if selector.recursive else self._bucket.folder(key)
        if not entries and not selector.allow_not_found and self._look(selector.base_dir).type != fs.FileType.Directory:
            raise FileNotFoundError(selector.base_dir)
        return [self._info(entry, f"{name}/{entry.key}") for entry in entries]

    def create_dir(self, path: str, recursive: bool) -> None:
        """An object store has folders as soon as it has objects in them."""

    def delete_dir(self, path: str) -> None:
        self.delete_dir_contents(path, True)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        key = self._key(path)
        if not key:
            raise ValueError(f"{self.root}: a bucket is not emptied")
        entries = self._bucket.below(key)
        if not entries and not missing_dir_ok:
            raise FileNotFoundError(path)
        for entry in entries:
            if (
                entry.size is not None
            ):  # an empty object that stands for a folder cannot be named to the client, and stays
                self._bucket.remove(entry.key)

    def delete_root_dir_contents(self) -> None:
        raise ValueError(f"{self.root}: a bucket is not emptied")

    def delete_file(self, path: str) -> None:
        self._bucket.remove(self._key(path))

    def move(self, src: str, dest: str) -> None:
        self.copy_file(src, dest)
        self.delete_file(src)

    def copy_file(self, src: str, dest: str) -> None:
        self._bucket.upload(self._key(dest), self._bucket.read(self._key(src))[0])

    def open_input_stream(self, path: str) -> PythonFile:
        return PythonFile(_Reader(self._bucket, self._key(path), READ_AHEAD), mode="r")

    def open_input_file(self, path: str) -> PythonFile:
        return PythonFile(_Reader(self._bucket, self._key(path), 0), mode="r")

    def open_output_stream(self, path: str, metadata: Any) -> PythonFile:
        return PythonFile(self._bucket.writer(self._key(path)), mode="w")

    def open_append_stream(self, path: str, metadata: Any) -> PythonFile:
        raise NotImplementedError("an object cannot be appended to")


class _Reader(io.RawIOBase):
    """An object for reading anywhere in it, `ahead` bytes at once; all of one version."""

    def __init__(self, bucket: objects.Bucket, key: str, ahead: int):
        self._bucket, self._key, self._ahead = bucket, key, ahead
        self._size, self._version = bucket.look(key)
        self._place, self._start, self._block = 0, 0, b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._place = max(0, offset + (0, self._place, self._size)[whence])
        return self._place

    def read(self, size: int | None = -1) -> bytes:
        start = min(self._place, self._size)
        stop = self._size if size is None or size < 0 else min(start + size, self._size)
        if stop == start:
            return b""
        if not (self._start <= start and stop <= self._start + len(self._block)):
            ahead = min(max(stop, start + self._ahead), self._size)
            data = self._bucket.read_range(self._key, start, ahead, self._version)
            if not self._ahead:
                self._place = stop
                return data
            self._start, self._block = start, data
        self._place = stop
        return self._block[start - self._start : stop - self._start]

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
