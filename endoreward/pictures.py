"""Rows with pictures as a notebook has them: a PIL image, bytes or a path, where a row of a file has text."""

import base64
import io
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

COLUMNS = ("image", "images", "Image", "bytes")  # keys of rows, of content parts and of the datasets library
OF_PNG = ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA")  # modes of PIL


def row_as_json(row: Mapping[str, Any], columns: Collection[str] = COLUMNS) -> str:
    """A row as a line of JSON, its pictures within: those in `columns`, at any depth. Raises TypeError, ValueError or
    RecursionError for what JSON cannot hold, and OSError for a path that cannot be read."""
    try:
        return json.dumps(dict(row))
    except TypeError:
        return json.dumps(_embedded(dict(row), False, columns))


def _embedded(value: Any, pictured: bool, columns: Collection[str]) -> Any:
    """The value with its pictures as data URLs.

    Args:
        pictured: whether it stands where a picture is due.
    """
    if isinstance(value, Mapping):
        return {key: _embedded(each, key in columns, columns) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_embedded(each, pictured, columns) for each in value]
    data = _bytes(value) if pictured else None
    return value if data is None else f"data:;base64,{base64.b64encode(data).decode()}"


def _bytes(value: Any) -> bytes | None:
    """Of a picture; None for anything else."""
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    if isinstance(value, os.PathLike):
        return Path(value).read_bytes()
    if hasattr(value, "getbands") and hasattr(value, "save"):  # a PIL image
        form = "PNG" if value.mode in OF_PNG else "TIFF"  # which holds CMYK, to be refused as what it is
        value.save(file := io.BytesIO(), form)
        return file.getvalue()
    return None
