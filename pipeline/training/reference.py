"""The reference's log-probabilities, where the labels do not hold them: computed once, a part at a time, and kept.

    PLACE/part-00007.parquet     row: number within the labels' part; token_logprobs: [H] float32

PLACE bears a fingerprint of all that decides them, so that what is there is never of another model or store.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.errors import RowError, RunError
from pipeline.store import documents, read_part
from pipeline.tokens import TokenizedTurn
from pipeline.training.batch import Tokens
from pipeline.training.examples import Examples, Integers
from pipeline.training.rows import RowReader

if TYPE_CHECKING:
    from pipeline.models.scoring import Scorer

SCHEMA = pa.schema({"row": pa.int32(), "token_logprobs": pa.list_(pa.float32())})


def part_place(place: str, part: int) -> str:
    return storage.join(place, f"part-{part:05d}.parquet")


def missing_parts(place: str, examples: Examples) -> list[int]:
    """Parts of the labels that examples are of, and whose log-probabilities are not there yet."""
    there = set(storage.list_names(place))
    return [part for part in np.unique(examples.part).tolist() if part_place("", part).lstrip("/") not in there]


def score_part(place: str, examples: Examples, part: int, reader: RowReader, scorer: "Scorer") -> None:
    """Compute and keep those of one part. Raises RunError where a response cannot be scored."""
    positions = examples.positions(np.flatnonzero(examples.part == part))
    positions = positions[np.unique(examples.rows[positions], return_index=True)[1]]
    rows = reader.read(examples, positions)
    scored = scorer.score(
        [TokenizedTurn(row.prompt_ids, row.response_ids, [], pictures=reader.pictures(row)) for row in rows]
    )
    for row, scores in zip(rows, scored, strict=True):
        if isinstance(scores, RowError):
            raise RunError(f"the reference cannot score {row.id}: {scores.detail}")
    columns = {
        "row": examples.rows[positions],
        "token_logprobs": [each.logprobs for each in scored if not isinstance(each, RowError)],
    }
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, schema=SCHEMA), sink, compression="zstd", write_page_checksum=True)
    documents.write_bytes(part_place(place, part), sink.getvalue().to_pybytes())


class References:
    """Reads them back; keeps the last used `hold` parts."""

    def __init__(self, place: str, hold: int):
        self.place, self.hold = place, hold
        self._held: OrderedDict[int, dict[int, Tokens]] = OrderedDict()

    def read(self, examples: Examples, positions: Sequence[int] | Integers) -> dict[int, Tokens]:
        """By position: [H] each."""
        parts, rows = examples.places(np.asarray(positions, np.int64))
        return {
            int(position): self._part(int(part))[int(row)]
            for position, part, row in zip(positions, parts, rows, strict=True)
        }

    def _part(self, number: int) -> dict[int, Tokens]:
        if number not in self._held:
            while len(self._held) >= self.hold:
                self._held.popitem(last=False)
            table = read_part(part_place(self.place, number), SCHEMA.names)
            lists = (each.values.to_numpy(zero_copy_only=False) for each in table["token_logprobs"])
            self._held[number] = dict(zip(table["row"].to_pylist(), lists, strict=True))
        self._held.move_to_end(number)
        return self._held[number]
