"""Columns that look like a known arrangement and are another: refused, with the keys that settle it.

Whatever is stated by keys is taken as stated; only what would be recognised by its names is looked at.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from shlex import quote
from typing import TYPE_CHECKING, Any

from pipeline.corpus import columns
from pipeline.corpus.columns import RawRow
from pipeline.corpus.labels.advice import ANSWERING, opposites
from pipeline.corpus.labels.meaning import label_column, siblings
from pipeline.errors import InputError

if TYPE_CHECKING:
    from pipeline.config import InputConfig

STATED = ("response_key", "chosen_key", "rejected_key", "messages_key", "prompt_key")
QUESTIONS = ("prompt", "question", "query", "instruction", "problem")
RESPONSES = ("response", "responses", "completion", "completions", "answer", "answers", "output", "solution")
OF_A_TREE = {"role", "parent_id"}  # columns beside a text that is one message of a conversation


def refuse_misread(rows: Sequence[RawRow], config: InputConfig, name: str) -> None:
    """Raises InputError where the first rows would be recognised as what they are not.

    Args:
        config: with what a layout adds to it.
    """
    if any(getattr(config, key) for key in STATED if key != "prompt_key"):
        return
    misreading = None if config.prompt_key else _names(rows) or _steps(rows) or _plain(rows)
    misreading = misreading or _several(rows) or _half_a_label(rows)
    if misreading:
        raise InputError(f"{name}: {misreading}")


def _values(rows: Sequence[RawRow], column: str) -> list[Any]:
    return [row[column] for row in rows if row.get(column) is not None]


def _names(rows: Sequence[RawRow]) -> str | None:
    """`chosen` and `rejected` that hold other columns' names in place of their texts."""
    others = {column for row in rows for column in row} - {"chosen", "rejected"}
    values = [*_values(rows, "chosen"), *_values(rows, "rejected")]
    named = list(dict.fromkeys(value for value in values if isinstance(value, str)))
    if not named or len(named) > 2 or len(values) < 2 or not all(value in others for value in values):
        return None
    if not _values(rows, "rejected"):
        return None
    keys = assignment("response_key", sorted(named))
    return (
        f"columns 'chosen' and 'rejected' hold the names of columns ({', '.join(named)}) and no responses; say --set {keys} "
        "--set input.label_key=chosen"
    )


def _several(rows: Sequence[RawRow]) -> str | None:
    """Several columns whose names say a response, beside a prompt: a corpus of answers with the right one, or of solutions
    and their last line. What `sample` writes has responses of its own beside whatever its input had."""
    names = list(dict.fromkeys(column for row in rows for column in row))
    if {"chosen", "rejected"} <= set(names) or {"responses", "truncated"} <= set(names):
        return None
    texts = [
        name
        for name in RESPONSES
        if name in names and any(isinstance(value, str | list) and value for value in _values(rows, name))
    ]
    if len(texts) < 2:
        return None
    listed = ", ".join(texts[:-1]) + f" and {texts[-1]}"
    return (
        f"columns {listed} may each hold the response; say which does, for example --set input.response_key={quote(texts[0])}"
        f", or that all do: --set {assignment('response_key', texts)}"
    )


def _half_a_label(rows: Sequence[RawRow]) -> str | None:
    """`chosen` without `rejected` beside responses: the number or the name of one, which nothing else says."""
    names = {column for row in rows for column in row}
    responses = next((name for name in RESPONSES if name in names), None)
    values = [value for value in _values(rows, "chosen") if not isinstance(value, list | dict)]
    if responses is None or "rejected" in names or not values:
        return None
    return (
        f"column 'chosen' says {values[0]!r:.40} beside {responses!r}, and no column holds a rejected response; if it says "
        f"which of them is better, say so with input.label_key and input.label_values (docs/corpus.md); to read the responses "
        f"without it: --set {assignment('response_key', responses)}"
    )


def _steps(rows: Sequence[RawRow]) -> str | None:
    """Steps of one answer, each with whether it is right (TRL's stepwise supervision)."""
    pairs = [(row.get("completions"), row.get("labels")) for row in rows if "completions" in row and "labels" in row]
    steps = [
        isinstance(texts, list)
        and isinstance(labels, list)
        and len(texts) == len(labels)
        and not isinstance(texts[0], dict)
        for texts, labels in pairs
        if texts
    ]
    if not steps or not all(steps):
        return None
    return (
        "'completions' beside 'labels' are the steps of one answer, each with whether it is right "
        "(huggingface.co/docs/trl/dataset_formats), and no alternatives; join the steps into one text in a column "
        "'completion', or, where each is a response of its own, say --set input.response_key=completions"
    )


def _plain(rows: Sequence[RawRow]) -> str | None:
    """A `text` that is a prompt of other columns, or one message of a conversation, and no plain text."""
    names = {column for row in rows for column in row}
    if not _values(rows, "text") or {"chosen", "rejected"} <= names:
        return None
    alone = "or --set input.response_key=text where each stands for itself"
    if names >= OF_A_TREE:
        return (
            "'text' beside 'role' and 'parent_id' is one message of a conversation; write the messages of each conversation "
            f"into one row, as a list in a column 'messages', {alone}"
        )
    asked = next((column for column in QUESTIONS if column in names), None)
    if asked:
        alone = f"or, where each text stands for itself, take column {asked!r} out of the rows"
    if asked and names & (ANSWERING - {"text"}):
        return None  # prompt and response, and the text beside them
    texts = [path for path in columns.paths(rows, (str, list)) if path not in ("text", asked)]
    sides, pair = opposites(texts), siblings(texts)
    label = label_column(rows, pair) if pair else None
    keys: dict[str, Any] = {"prompt_key": asked or "text"}
    if sides:
        keys |= {"chosen_key": sides[0], "rejected_key": sides[1]}
    elif pair and label:
        keys |= {"response_key": list(pair), "label_key": label}
    elif asked:
        keys["response_key"] = "text"
    else:
        return None
    typed = " ".join(f"--set {assignment(key, value)}" for key, value in keys.items())
    others = " and ".join(repr(each) for each in (sides or pair or (asked,)) if each)
    whose = "the response to" if keys.get("response_key") == "text" else "the prompt of"
    if asked and whose == "the prompt of":
        return f"there are 'text', {asked!r} and {others}, and any may be meant; say {typed}, {alone}"
    return f"'text' may be plain text, or {whose} {others}; say {typed}, {alone}"


def assignment(key: str, value: Any) -> str:
    """What follows `--set`, as a shell takes it."""
    return quote(f"input.{key}={value if isinstance(value, str) else json.dumps(value)}")
