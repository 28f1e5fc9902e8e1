"""Rows with pictures as a notebook has them: a PIL image, bytes or a path, where a row of a file has text."""

import base64
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

COLUMNS = ("image", "images", "bytes")  # keys of rows, of content parts and of the datasets library that hold a picture


def row_as_json(row: Mapping[str, Any]) -> str:
    """A row as a line of JSON, its pictures within. Raises TypeError, ValueError or RecursionError for what JSON cannot hold,
    and OSError for a path that cannot be read."""
    try:
        return json.dumps(dict(row))
    except TypeError:
        return json.dumps(_embedded(dict(row), False))


def _embedded(value: Any, pictured: bool) -> Any:
    """The value with its pictures as data URLs.

    Args:
        pictured: whether it stands where a picture is due.
    """
    if isinstance(value, Mapping):
        return {key: _embedded(each, key in COLUMNS) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_embedded(each, pictured) for each in value]
    data = _bytes(value) if pictured else None
    return value if data is None else f"data:;base64,{base64.b64encode(data).decode()}"


def _bytes(value: Any) -> bytes | None:
    """Of a picture; None for anything else."""
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    if isinstance(value, os.PathLike):
        return Path(value).read_bytes()
    if hasattr(value, "getbands") and hasattr(value, "save"):  # a PIL image
        value.save(file := io.BytesIO(), "PNG")
        return file.getvalue()
    return None
