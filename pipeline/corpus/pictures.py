"""A picture of a corpus, as encoded there. Its pixels are decoded where a model needs them and stored nowhere.

Pillow is needed here alone, and only where there is a picture: `pip install "endoreward[pictures]"`.
"""

from __future__ import annotations

import hashlib
import io
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError, RowError

if TYPE_CHECKING:
    from PIL import Image

PLACEHOLDER = "\ufffc"  # Unicode's object replacement character: stands in a message's text where a picture is
MAX_PIXELS, MAX_BYTES = 50_000_000, 20 << 20  # of one picture; defaults of input.max_picture_pixels and ..._bytes
MOST_PIXELS = 178_956_970  # beyond which Pillow refuses a picture, whatever is asked for
MIN_SIDE = 2  # pixels
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
ORIENTATION = 0x0112  # its EXIF tag
Size = tuple[int, int]  # width and height in pixels
GREY, GREY_PLACE = b"\x80\x80\x80\0", re.compile(r"grey:(\d+)x(\d+)")  # of `grey_picture`


@dataclass(frozen=True)
class Picture:
    """Bytes of a PNG, JPEG or other picture file, and where they are to be read again.

    `place` names a file of its own, or a file of rows with the row and the column in it (`pipeline.corpus.sources`). One of
    more than `max_pixels` is not decoded.
    """

    data: bytes
    place: str
    max_pixels: int = field(default=MAX_PIXELS, compare=False)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the bytes, in hex."""
        return hashlib.sha256(self.data).hexdigest()

    def size(self) -> Size:
        """Width and height, turned as EXIF says; of the header alone. Raises RowError as `open` does, but for what
        only decoding shows."""
        with self._opened() as image:
            width, height = image.size
            return (height, width) if image.getexif().get(ORIENTATION) in TURNED else (width, height)

    def open(self) -> Image.Image:
        """The picture decoded, in RGB: turned as its EXIF orientation says, then converted, which drops transparency; as
        `transformers.image_utils.load_image` and `datasets` load it.

        Raises RowError: `bad_picture` for bytes that are no whole picture, `picture_too_large` for one of more pixels than
        its `max_pixels` (by its header: nothing is decoded), `picture_too_small`, `animated_picture`, `cmyk_picture`.
        """
        with self._opened() as image:
            from PIL import ImageOps

            image.load()
            return ImageOps.exif_transpose(image).convert("RGB")

    @contextmanager
    def _opened(self) -> Iterator[Image.Image]:
        Image = pillow()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a large picture, which is bounded below; of odd EXIF
                with Image.open(io.BytesIO(self.data), formats=FORMATS) as image:
                    self._check(image)
                    yield image
        except RowError:
            raise
        except Image.DecompressionBombError:
            raise self._too_large(f"more than {MOST_PIXELS:,} pixels") from None
        except Exception as error:  # of a broken file Pillow's decoders raise whatever they meet
            what = "no picture" if isinstance(error, Image.UnidentifiedImageError) else "no whole picture"
            said = "" if isinstance(error, Image.UnidentifiedImageError) else f" ({error})"
            raise RowError(
                "bad_picture",
                f"{self.place}: these {len(self.data):,} bytes are {what}{said}; {', '.join(FORMATS)} are read: put the "
                "picture there anew, or drop the row",
            ) from None

    def _check(self, image: Image.Image) -> None:
        width, height = image.size
        if width * height > self.max_pixels:
            raise self._too_large(f"{width} x {height} pixels")
        if min(width, height) < MIN_SIDE:
            raise RowError(
                "picture_too_small",
                f"{self.place}: a picture of {width} x {height} pixels shows nothing; put a larger one there, or drop the row",
            )
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format != "MPO":  # a photograph with its preview is one picture
            raise RowError(
                "animated_picture",
                f"{self.place}: {frames} pictures in one file ({image.format}); write the one that is meant as PNG, or drop "
                "the row",
            )
        if image.mode == "CMYK":
            raise RowError(
                "cmyk_picture",
                f"{self.place}: its colours are CMYK, which are RGB only by a printer's profile; convert it to RGB, or drop "
                "the row",
            )

    def _too_large(self, size: str) -> RowError:
        return RowError(
            "picture_too_large",
            f"{self.place}: {size}, and at most {self.max_pixels:,} are decoded; make it smaller"
            + (", or raise input.max_picture_pixels" if self.max_pixels < MOST_PIXELS else ""),
        )


def grey_picture(width: int, height: int) -> Picture:
    """A picture of this size that is grey all over: a BMP of one bit a pixel, the same bytes everywhere."""
    row = -(-width // 32) * 4
    header = struct.pack("<2sIHHI", b"BM", 62 + row * height, 0, 0, 62)
    header += struct.pack("<IiiHHIIiiII", 40, width, height, 1, 1, 0, row * height, 0, 0, 2, 2)
    return Picture(header + GREY * 2 + bytes(row * height), f"grey:{width}x{height}")


def pillow() -> Any:
    """Pillow's `Image`. Raises ConfigError where it is not installed."""
    try:
        from PIL import Image
    except ImportError:
        raise ConfigError('pictures need Pillow: pip install "endoreward[pictures]"') from None
    return Image


def read_picture(place: str, digest: str) -> Picture:
    """A picture of a label store read again, from where its row says that it was: `pictures` of a message of its prompt.

    Raises RowError: `missing_picture` where it is not there any more, `changed_picture` where its bytes are others now.
    """
    from pipeline.corpus.sources import read_place  # late: it reads files of rows

    picture = read_place(place)
    if picture.digest != digest:
        raise RowError(
            "changed_picture",
            f"{place}: the picture is another than the one that was labelled (SHA-256 {picture.digest[:12]}, and "
            f"{digest[:12]} was labelled); restore it, or label the corpus again into another --output",
        )
    return picture
