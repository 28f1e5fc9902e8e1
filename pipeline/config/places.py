"""Local places of a configuration, made absolute: workers have other working directories."""

from typing import Any

from pipeline.config.section import Kind, changed, value_at
from pipeline.storage import absolute

WORDS = {"tokens.template": ("auto", "none"), "held_out.check": ("maths",)}
"""What is no place in fields that may also hold one; in all others the empty text."""


def with_absolute_places(config: Kind, *fields: str) -> Kind:
    """The configuration with these fields absolute, by dotted path: each a place, a list of them, or None."""
    return changed(config, {field: _absolute(value_at(config, field), WORDS.get(field, ("",))) for field in fields})


def _absolute(value: Any, words: tuple[str, ...]) -> Any:
    if isinstance(value, list):
        return [absolute(place) for place in value]
    return value if value is None or value in words else absolute(value)
