"""Puts a row's pictures where its prompt speaks of them.

A place for a picture is a content part without one (`{"type": "image"}`), or, where no message has parts, `<image>` in the
text of a message that is not the assistant's. They are filled in order from the picture columns. A prompt without a place
has its pictures before the text of its first user message, as TRL has it. Another count is an error.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, cast

from pipeline.corpus import columns
from pipeline.corpus.columns import RawRow
from pipeline.corpus.controls import instead, pictures_of
from pipeline.corpus.pictures import PLACEHOLDER, Picture
from pipeline.corpus.samples import Message, Response
from pipeline.corpus.sources import COLUMNS, Origin, holds_pixels, is_struct, pictures_in
from pipeline.errors import RowError

MEDIA = ("video", "videos", "audio", "audios")  # what a prompt may speak of and no model here sees
SIGN = "<image>"
ALIKE = (
    "Image",
    "image_path",
    "image_paths",
    "image_url",
    "image_urls",
    "img",
    "picture",
    "pictures",
)  # often of pictures


def refuse_media(row: RawRow) -> None:
    """Raises RowError for a row whose prompt speaks of moving pictures or of sound."""
    if media := next((column for column in MEDIA if column in row and holds_any(row[column])), None):
        raise RowError(
            "not_text",
            f"column {media!r} belongs to the prompt and is neither text nor a picture, so that nothing sees it; drop the row",
        )


def holds_any(value: Any) -> bool:
    """Whether a column of pictures or sound has one in a row: null, NaN, empty text and empty lists are none."""
    if is_struct(value):
        return any(map(holds_any, value.values()))
    if isinstance(value, list):
        return any(map(holds_any, value))
    return value is not None and value != "" and not (isinstance(value, float) and math.isnan(value))


def picture_columns(row: RawRow, named: Sequence[str]) -> tuple[str, ...]:
    """The columns of a row that hold pictures, as they are named, else by their names. Raises RowError where two such both
    do."""
    if named:
        return tuple(column for column in named if columns.has(row, column))
    there = tuple(column for column in COLUMNS if column in row)
    if len(there) > 1 and all(holds_any(row[column]) for column in there):
        raise RowError(
            "picture_count", f"columns {' and '.join(there)} both hold pictures; say which does with input.image_key"
        )
    return there


def unseen(rows: Iterable[RawRow], images: Sequence[str]) -> list[str]:
    """Columns that hold pictures and that `images` leaves out: by what is in them, and where it is empty by their names
    too."""
    found = [
        column
        for row in rows
        for column, value in row.items()
        if column not in (images or COLUMNS)
        and (holds_pixels(value) or (not images and column in ALIKE and holds_any(value)))
    ]
    return list(dict.fromkeys(found))


def with_pictures(
    row: RawRow,
    number: int,
    images: Sequence[str],
    prompt: list[Message],
    responses: Sequence[Response],
    origin: Origin | None,
) -> tuple[list[Message], list[Response]]:
    """A row's prompt and responses with its pictures in their places.

    Args:
        images: the columns that hold pictures.
        origin: of the row's file; None where nothing but text is scored.

    Raises RowError: `picture_count`, `not_text` without an origin, and what reading a picture raises.
    """
    given = [
        value for column in images if holds_any(at := columns.lookup(row, column)) for value in _listed(at, column)
    ]
    conversations = [prompt, *(response.messages for response in responses)]
    inline = any("pictures" in message for messages in conversations for message in messages)
    if not given and not inline and images and any(map(_asks_for_one, prompt)):
        raise RowError(
            "picture_count",
            f"the row has no picture in {' and '.join(map(repr, images))}, and a line of its text begins with {SIGN}, where "
            "one is shown; put it there, or drop the row",
        )
    if not given and not inline:
        return prompt, list(responses)
    if origin is None:
        raise RowError("not_text", "the row's prompt holds a picture, and here only text is scored; drop the row")
    if given and not inline:
        conversations = [[_signed(message) for message in messages] for messages in conversations]
        if not any("pictures" in message for messages in conversations for message in messages):
            conversations[0] = _before_text(conversations[0], len(given))
    needed = [sum(map(_places, messages)) for messages in conversations]
    for own in needed[1:] or [0]:
        if needed[0] + own != len(given):
            raise RowError(
                "picture_count",
                f"the row has {len(given)} pictures in {' and '.join(map(repr, images)) or 'its columns'}, and its text "
                f"{needed[0] + own} places for them; give as many of the one as of the other",
            )
    pictures = _read(row, number, images, _values(given, needed, conversations), origin)
    filled = [[_filled(message, pictures) for message in messages] for messages in conversations]
    return filled[0], [
        replace(response, messages=messages) for response, messages in zip(responses, filled[1:], strict=True)
    ]


def _asks_for_one(message: Message) -> bool:
    """Whether a message of a file with pictures speaks of one as published corpora do; within a line it may be any text."""
    return message["role"] == "user" and any(line.startswith(SIGN) for line in message["content"].splitlines())


def _listed(value: Any, column: str) -> list[Any]:
    """A column's pictures. Raises RowError for what is none."""
    values = list(pictures_in(value))
    if not values:
        raise RowError("missing_picture", f"column {column!r} holds {type(value).__name__} and no picture, path or URL")
    return values


def _signed(message: Message) -> Message:
    """A message whose text says where pictures are, with places for them."""
    signs = message["content"].count(SIGN) if message["role"] != "assistant" else 0
    if not signs:
        return message
    _refuse_placeholder(message)
    places = [None] * signs
    return cast(Message, {**message, "content": message["content"].replace(SIGN, PLACEHOLDER), "pictures": places})


def _before_text(prompt: list[Message], count: int) -> list[Message]:
    """Places before the text of the first user message. Raises RowError where there is none."""
    first = next((i for i, message in enumerate(prompt) if message["role"] == "user"), None)
    if first is None:
        raise RowError(
            "picture_count", "the row has pictures, and its prompt no message of the user that they could stand in"
        )
    message = prompt[first]
    _refuse_placeholder(message)
    asked = {**message, "content": PLACEHOLDER * count + message["content"], "pictures": [None] * count}
    return [*prompt[:first], cast(Message, asked), *prompt[first + 1 :]]


def _refuse_placeholder(message: Message) -> None:
    if PLACEHOLDER in message["content"]:
        raise RowError(
            "bad_message", "a message with a picture holds U+FFFC in its text, which stands for one; drop that sign"
        )


def _places(message: Message) -> int:
    """How many pictures a message still wants."""
    return sum(value is None for value in message.get("pictures", ()))


def _values(given: list[Any], needed: list[int], conversations: list[list[Message]]) -> Iterator[Any]:
    """Of every place of the prompt and then of each response what it shows: a response's follow those of the prompt."""
    for position, messages in enumerate(conversations):
        columns = iter(given[needed[0] :] if position else given)
        for message in messages:
            yield from (next(columns) if value is None else value for value in message.get("pictures", ()))


def _read(row: RawRow, number: int, images: Sequence[str], values: Iterable[Any], origin: Origin) -> Iterator[Picture]:
    """The picture of each value, each read once. Raises RowError."""
    if not origin.uri:
        return (Picture(b"", "") for _ in values)
    there = list(pictures_of(row, images))
    known: list[tuple[Any, Picture]] = []
    shown: list[Picture] = []
    for value in values:
        picture = next((picture for other, picture in known if other is value or other == value), None)
        if picture is None:
            column, index = next((c, i) for other, c, i in there if other is value or other == value)
            picture = origin.picture(value, number, column, index)
            known.append((value, picture))
        shown.append(picture)
    return iter(shown if origin.shown == "given" else instead(shown, number, images, origin))


def _filled(message: Message, pictures: Iterator[Picture]) -> Message:
    """A message with as many of the pictures as it has places."""
    if "pictures" not in message:
        return message
    return cast(Message, {**message, "pictures": list(islice(pictures, len(message["pictures"])))})
