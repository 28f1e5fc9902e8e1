"""Controls of what a picture does: prompts that show a grey one of the same size in its place, or another row's.

Another row's is looked for from a part of the file (0.382 of its rows) behind the row on, since neighbours are often about one
picture, and goes on from the front after the last: the first that is none of the row's own by its bytes; of several pictures
each has another. It depends on the file alone, not on how its rows are cut into shards.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.corpus import columns
from pipeline.corpus.columns import RawRow
from pipeline.corpus.pictures import Picture, grey_picture
from pipeline.corpus.sources import COLUMNS, Origin, parts_in, pictures_in, row_of
from pipeline.errors import RowError

AWAY = 0.382  # of the rows: how far behind a row its other picture is looked for; no simple part, as halves of a file may be
MOST = 1000  # rows that are looked at


def pictures_of(row: RawRow, images: Sequence[str]) -> Iterator[tuple[Any, str, int]]:
    """Every picture of a row as it stands there, with its column and its index in that: of the columns that hold pictures,
    and of content parts in the others."""
    for column in images:
        if columns.has(row, column):
            yield from ((value, column, index) for index, value in enumerate(pictures_in(columns.lookup(row, column))))
    for column in row:
        if column not in images:
            yield from ((value, column, index) for index, value in enumerate(parts_in(row[column])))


def instead(own: Sequence[Picture], number: int, images: Sequence[str], origin: Origin) -> list[Picture]:
    """What a row shows in place of its own pictures; the same picture twice is replaced by the same one.

    Raises RowError `no_other_picture`.
    """
    if origin.shown == "grey":
        return [grey_picture(*picture.size()) for picture in own]
    mine = {picture.digest for picture in own}
    others = (picture for picture in _others(number, images, origin) if picture.digest not in mine)
    chosen: dict[str, Picture] = {}
    for picture in own:
        if picture.digest not in chosen:
            other = next(others, None)
            if other is None:
                raise RowError(
                    "no_other_picture",
                    f"none of {MOST:,} other rows has another picture to show in place of the row's own; mix the rows, "
                    "or leave the control out",
                )
            mine.add(other.digest)
            chosen[picture.digest] = other
    return [chosen[picture.digest] for picture in own]


def _others(number: int, images: Sequence[str], origin: Origin) -> Iterator[Picture]:
    """The good pictures of other rows, in their order."""
    rows = max(origin.rows, 1)
    for step in range(min(MOST, rows)):
        row = (number + 1 + int(AWAY * rows) + step) % rows
        if row == number:
            continue
        try:
            values = list(pictures_of(row_of(origin.uri, origin.format, row), images or COLUMNS))
        except (IndexError, RowError):
            continue
        for value, column, index in values:
            try:
                yield origin.picture(value, row, column, index)
            except RowError:
                continue
