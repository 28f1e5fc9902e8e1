"""Columns of a row by dotted path: `a.b` is `b` within column `a`, unless a column is itself called `a.b`. Where `a` is a
list of objects, `a.b` is the list of their `b`."""

import base64
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.errors import RowError

RawRow = dict[str, Any]  # a record of an input file, as it was read


def lookup(row: RawRow, path: str) -> Any:
    """The value at a dotted path; a column whose own name has dots goes first. An object of a list that lacks it gives
    None there. Raises RowError `missing_column`."""
    value: Any = row
    rest = path
    while isinstance(value, dict):
        if rest in value:
            return value[rest]
        name, dot, rest = rest.partition(".")
        if not dot or name not in value:
            break
        value = value[name]
        if _is_objects(value) and (not value or any(has(each, rest) for each in value)):
            return [lookup(each, rest) if has(each, rest) else None for each in value]
    raise RowError("missing_column", f"the row has no column {path!r}, only {', '.join(list(row)[:40]) or 'nothing'}")


def _is_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, dict) for each in value)


def has(row: RawRow, path: str) -> bool:
    try:
        lookup(row, path)
    except RowError:
        return False
    return True


def without(row: RawRow, path: str) -> RawRow:
    """The row without what is at a dotted path, and without a column that this leaves empty; siblings stay."""
    name, _, rest = (path, "", "") if path in row else path.partition(".")
    inner = row.get(name)
    if not rest:
        return {column: value for column, value in row.items() if column != name}
    left: Any
    if isinstance(inner, dict):
        left = without(inner, rest)
    elif isinstance(inner, list):
        left = [without(each, rest) if isinstance(each, dict) else each for each in inner]
    else:
        return row
    return {**row, name: left} if left and any(each != {} for each in left) else without(row, name)


def jsonable(value: Any) -> Any:
    """What JSON can hold: bytes as text or, where they are none, base64; dates in ISO form; other things by `str`."""
    if isinstance(value, dict):
        return {str(key): jsonable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(each) for each in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return base64.b64encode(value).decode()
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def paths(rows: Sequence[RawRow], types: tuple[type, ...] = (object,)) -> list[str]:
    """Dotted paths of all values of these types; a message is a value, a list of other objects is not."""
    return list(dict.fromkeys(path for row in rows for path, value in _leaves(row) if isinstance(value, types)))


def _leaves(row: RawRow, above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        objects = value[:1] if isinstance(value, list) else [value]
        if objects and isinstance(objects[0], dict) and objects[0] and not {"role", "from"} & objects[0].keys():
            yield from _leaves(objects[0], f"{above}{name}.")
        else:
            yield f"{above}{name}", value
