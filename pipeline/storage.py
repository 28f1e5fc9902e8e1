"""Locations are strings (`out/x`, `s3://bucket/x`, `hf://datasets/org/name`); this module opens them.

`pathlib` is avoided on purpose: it turns `s3://b/k` into `s3:/b/k`. A local path has no scheme.
"""

import os
from functools import lru_cache

from pyarrow import fs

from pipeline.errors import ConfigError


def is_local(uri: str) -> bool:
    return "://" not in uri or uri.startswith("file://")


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
        return fs.LocalFileSystem(), os.path.abspath(uri.removeprefix("file://"))
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
        return stream.read()


def exists(uri: str) -> bool:
    filesystem, path = locate(uri)
    return filesystem.get_file_info(path).type != fs.FileType.NotFound


def list_names(uri: str) -> list[str]:
    """Names of the files directly under a folder, sorted; empty where the folder does not exist."""
    filesystem, path = locate(uri)
    found = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    return sorted(info.base_name for info in found if info.type == fs.FileType.File)


def put_folder(folder: str, uri: str) -> None:
    """Copy a local folder to `uri`; files of the same names are replaced."""
    filesystem, path = locate(uri)
    filesystem.create_dir(path, recursive=True)
    fs.copy_files(folder, path, source_filesystem=fs.LocalFileSystem(), destination_filesystem=filesystem)
