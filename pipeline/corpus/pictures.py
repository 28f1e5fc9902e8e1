"""A picture of a corpus, as encoded there. Its pixels are decoded where a model needs them and stored nowhere."""

import hashlib
import io
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipeline.errors import RowError

PLACEHOLDER = "\ufffc"  # Unicode's object replacement character: stands in a message's text where a picture is


@dataclass(frozen=True)
class Picture:
    """Bytes of a PNG, JPEG or other picture file, and where they are to be read again.

    `place` names a file of its own, or a file of rows with the row and the column in it.
    """

    data: bytes
    place: str

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the bytes, in hex."""
        return hashlib.sha256(self.data).hexdigest()

    def size(self) -> tuple[int, int]:
        """Width and height in pixels. Raises RowError `bad_picture`."""
        size: tuple[int, int] = self.open().size
        return size

    def open(self) -> Any:
        """A PIL image in RGB. Raises RowError `bad_picture`."""
        from PIL import Image

        try:
            return Image.open(io.BytesIO(self.data)).convert("RGB")
        except Exception as error:  # of a broken file Pillow's decoders raise whatever they meet
            raise RowError("bad_picture", f"{self.place}: no whole picture ({error})") from None
