"""What of a token configuration is text: system prompts, files of rubrics, conversations inside a question."""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING

from pipeline import storage
from pipeline.corpus.samples import Message
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.config import TokensConfig

RUBRIC_NAME = re.compile(r"[\w.-]+")
SPEAKERS = {"user": "Human", "assistant": "Assistant", "system": "System"}


def speaker(role: str) -> str:
    """What a transcript calls a role."""
    return SPEAKERS.get(role, role.title())


def conversation_text(messages: list[Message]) -> str:
    """A conversation as text inside a question about it: a single user message as it is, else a transcript."""
    if len(messages) == 1 and messages[0]["role"] == "user":
        return messages[0]["content"]
    return "\n\n".join(f"{speaker(m['role'])}: {m['content']}" for m in messages)


def read_texts(config: TokensConfig) -> dict[str, str]:
    """The files that the configuration names, by path: rubrics and template, as they are now. Raises ConfigError."""
    named = {"rubrics": config.rubrics, "template": None if config.template in ("auto", "none") else config.template}
    return {path: _read_text(field, path) for field, path in named.items() if path is not None}


def _read_text(field: str, path: str) -> str:
    try:
        return storage.read_bytes(path).decode()
    except (OSError, ValueError) as error:
        raise ConfigError(f"tokens.{field}: cannot read {path}: {error}") from None


def load_rubrics(path: str, text: str | None = None) -> dict[str, str]:
    """A TOML file of `name = "system prompt"`, in its order; `text` is its content where it has been read already.

    Raises ConfigError.
    """
    try:
        rubrics = tomllib.loads(_read_text("rubrics", path) if text is None else text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"tokens.rubrics: {path} is not TOML: {error}") from None
    wrong = [name for name, text in rubrics.items() if not isinstance(text, str) or not text.strip()]
    wrong += [name for name in rubrics if not RUBRIC_NAME.fullmatch(name)]
    if wrong or not rubrics:
        raise ConfigError(
            f'{path}: expected lines of name = "system prompt", names of letters, digits, _ . and -; wrong: {wrong or "empty"}'
        )
    return rubrics
