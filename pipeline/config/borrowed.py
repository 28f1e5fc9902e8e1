"""What a configuration that lies in object storage may say. Whoever can write to the bucket has written it: it names data and
models in object storage or on a hub, and nothing of the machine that reads it. What runs code, takes a key along or lies on
this machine is the operator's to say, on the command line.
"""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, get_args, get_origin

from pydantic import AfterValidator
from pydantic.fields import FieldInfo

from pipeline.config.section import OPERATORS, Section, refuse_secrets

REMOTE = ("s3", "gs", "gcs", "hf", "abfs", "abfss", "http", "https")
"""Schemes of what is no place on this machine, whatever its settings are: Hadoop's (hdfs, viewfs) may be its disk."""
WORDS = {"template": ("auto", "none"), "check": ("maths",)}  # that stand in the place of a place, by field
CODE = ("function", "check")  # fields of a place that is imported
OF_A_HUB = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
MODELS = ("model", "models", "name", "reference")  # fields of a hub's name


def overreach(kind: type[Section], tree: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Fields by dotted path that such a configuration may not set as it does, and what is wrong with that.

    Args:
        tree: what it holds, not validated; what is no field of `kind` is passed over.
    """
    for name, value in tree.items():
        field = kind.model_fields.get(name)
        if field is None:
            continue
        section = next((each for each in _parts(field.annotation) if _is_section(each)), None)
        named = get_origin(field.annotation) is dict
        if section is None or not isinstance(value, dict):
            if OPERATORS in field.metadata and value != field.default:
                yield name, "runs code, or takes a key of this machine along"
            elif _is_place(field) and (own := _first_local(name, value, field.default)) is not None:
                yield name, f"{own!r} is a place on this machine, or of none of the schemes {', '.join(REMOTE)}"
            continue
        for below, each in value.items() if named else [("", value)]:
            if isinstance(each, dict):
                above = f"{name}.{below}." if named else f"{name}."
                yield from ((f"{above}{path}", why) for path, why in overreach(section, each))


def _first_local(name: str, value: Any, default: Any) -> str | None:
    """Of the places that a field holds the first that is none of an object store, a hub or a server."""
    if value == default or value in WORDS.get(name, ()):
        return None
    return next((each for each in _list(value) if isinstance(each, str) and _is_local(name, each)), None)


def _is_local(name: str, place: str) -> bool:
    scheme, marked, _ = place.partition("://")
    if marked:
        return scheme not in REMOTE or name in CODE
    return name not in MODELS or os.path.lexists(place) or not OF_A_HUB.fullmatch(place)


def _is_place(field: FieldInfo) -> bool:
    return any(_refuses_secrets(each) for each in field.metadata) or any(
        get_origin(part) is Annotated and any(map(_refuses_secrets, get_args(part)[1:]))
        for part in _parts(field.annotation)
    )


def _refuses_secrets(mark: Any) -> bool:
    return isinstance(mark, AfterValidator) and mark.func is refuse_secrets


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def _parts(annotation: Any) -> Iterator[Any]:
    """An annotation, and what it is made of."""
    yield annotation
    if get_origin(annotation) is not Annotated:
        for each in get_args(annotation):
            yield from _parts(each)


def _list(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else [value]
