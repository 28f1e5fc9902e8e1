"""A configuration as TOML, for people to copy and run again."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def to_toml(config: Mapping[str, Any]) -> str:
    """A configuration of sections as TOML; fields that are None are left out, because TOML has no word for them."""
    return "\n\n".join(_sections(config, ""))


def _sections(config: Mapping[str, Any], within: str) -> Iterator[str]:
    for name, fields in config.items():
        if isinstance(fields, dict):
            path = within + _key(name)
            own = {key: value for key, value in fields.items() if value is not None and not isinstance(value, dict)}
            lines = [f"{_key(key)} = {_value(value)}" for key, value in own.items()]
            if lines:
                yield "\n".join([f"[{path}]", *lines])
            yield from _sections(fields, f"{path}.")


def _key(name: str) -> str:
    return name if BARE_KEY.fullmatch(name) else _value(name)


def _value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
