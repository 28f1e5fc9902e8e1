"""A picture of a corpus, as encoded there. Its pixels are decoded where a model needs them and stored nowhere."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

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
