"""Locations are strings (`out/x`, `s3://bucket/x`, `hf://datasets/org/name`); this module opens them.

`pathlib` is avoided on purpose: it turns `s3://b/k` into `s3:/b/k`. A local path has no scheme.
"""

import contextlib
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

from pyarrow import fs

from pipeline.errors import ConfigError


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


@lru_cache(maxsize=32)
def _filesystem(root: str) -> fs.FileSystem:
    if root.startswith("hf://"):
        from huggingface_hub import HfFileSystem

        return fs.PyFileSystem(fs.FSSpecHandler(HfFileSystem()))
    try:
        return fs.FileSystem.from_uri(root)[0]
    except (ValueError, OSError) as error:
        raise ConfigError(f"{root}: no storage can be opened under this address: {error}") from None


def locate(uri: str) -> tuple[fs.FileSystem, str]:
    """The filesystem that holds `uri` and the path within it."""
    if is_local(uri):
        return fs.LocalFileSystem(), absolute(uri)
    base, mark, query = uri.partition("?")
    scheme, _, path = base.partition("://")
    path = path.rstrip("/")
    bucket = path.partition("/")[0]
    if scheme == "hf":
        return _filesystem("hf://"), path
    return _filesystem(f"{scheme}://{bucket}{mark}{query}"), path


def read_bytes(uri: str) -> bytes:
    """The whole object. Raises FileNotFoundError where there is none."""
    filesystem, path = locate(uri)
    with filesystem.open_input_stream(path) as stream:
        return bytes(stream.read())


def exists(uri: str) -> bool:
    filesystem, path = locate(uri)
    return bool(filesystem.get_file_info(path).type != fs.FileType.NotFound)


def list_names(uri: str) -> list[str]:
    """Names of the files directly under a folder, sorted; empty where the folder does not exist."""
    filesystem, path = locate(uri)
    entries = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    return sorted(info.base_name for info in entries if info.type == fs.FileType.File)


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


def upload(uri: str, data: bytes | mmap.mmap) -> None:
    """Put an object on an object store: nothing shows at `uri` before it is whole, and nothing where this raises.

    An upload cannot be given up: closing its stream, which its destruction does too, publishes what was written so far. So
    all is one write, in a thread of its own, where no signal comes between opening and writing; where a part of it fails,
    closing publishes nothing. An interrupt is raised once the upload is done.
    """
    filesystem, path = locate(uri)

    def put() -> None:
        with filesystem.open_output_stream(path) as stream:
            stream.write(data)

    with ThreadPoolExecutor(1) as apart:
        apart.submit(put).result()


def upload_file(uri: str, path: str) -> None:
    """`upload` of a local file, which is not read into memory."""
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            upload(uri, b"")
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            upload(uri, data)
