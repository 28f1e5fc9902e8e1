"""Small copies of pictures, to be embedded in a page: re-encoded, so that nothing of the file but what it shows gets there."""

import base64
import io
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from pipeline.corpus.pictures import PLACEHOLDER, read_picture
from pipeline.corpus.samples import Message
from pipeline.corpus.sources import URL
from pipeline.errors import ConfigError, RowError

SIDE = 160  # pixels of the longer side, at most
MOST = 4  # pictures of a prompt that are shown
LARGEST = 12 << 10  # bytes of one copy
QUALITIES = (80, 50, 20)  # of JPEG, the first whose copy is small enough


class Thumbnail(NamedTuple):
    """A picture as a page shows it; `data` is empty where it cannot be shown, and `note` says why."""

    name: str
    data: str = ""  # a data: URI
    width: int = 0
    height: int = 0
    note: str = ""


def named(message: Message, text: str, numbers: Iterator[int]) -> str:
    """A message's text with `[picture 1]` where a picture stands."""
    if not message.get("pictures"):
        return text
    first, *others = text.split(PLACEHOLDER)
    return first + "".join(f"[picture {next(numbers)}] {other.removeprefix(' ')}" for other in others)


def thumbnails(prompt: Sequence[Message]) -> list[Thumbnail]:
    """Of the first pictures of a prompt as a store has it; how many more there are stands in the last."""
    stored: list[Any] = [picture for message in prompt for picture in message.get("pictures", [])]
    shown = [_thumbnail(f"picture {number}", **picture) for number, picture in enumerate(stored[:MOST], 1)]
    if len(stored) > MOST:
        shown.append(Thumbnail(f"{len(stored) - MOST:,} more pictures", note="not shown"))
    return shown


def _thumbnail(name: str, digest: str, place: str) -> Thumbnail:
    if URL.match(place):
        return Thumbnail(name, note="on the web, and a page fetches nothing")
    try:
        image = read_picture(place, digest).open()
    except RowError as error:
        return Thumbnail(name, note=error.reason.replace("_", " "))
    except ConfigError as error:
        return Thumbnail(name, note=str(error))
    width, height = image.size
    image.thumbnail((SIDE, SIDE))
    for quality in QUALITIES:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        if buffer.tell() <= LARGEST:
            break
    data = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Thumbnail(name, data, *image.size, note=f"{width:,} x {height:,}")
