"""A shard's rows become requests in a process beside this one, since tokenizers and templates may end theirs."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.apart import Apart
from pipeline.corpus import RawRow, Shape, Shard
from pipeline.killers import Bisection, killed
from pipeline.labellers.base import Labeller
from pipeline.labelling import Prepared

DOING = "tokenising"


@dataclass
class Preparation:
    """One process that prepares shards, one after the other."""

    beside: Apart = field(default_factory=Apart)
    lived: bool = False

    def prepare(
        self, labeller: Labeller, shard: Shard, generation: int, rows: Sequence[RawRow], shape: Shape
    ) -> Prepared:
        """As `labeller.prepare`; a row that ends its process is a failure as a whole. Raises RunError."""

        def work(positions: Sequence[int]) -> Prepared:
            wanted = {*positions, *search.killers}
            given = [
                (number, killed(search.killers[i], DOING) if i in search.killers else row)
                for i, (number, row) in enumerate(rows)
                if i in wanted
            ]
            return self.beside.call(labeller.prepare, shard, generation, given, shape)

        search = Bisection(
            work, self.beside.stop, f"rows {shard.start} to {shard.stop - 1} of {shard.file}", self.lived
        )
        prepared = search.run(len(rows))
        self.lived = search.lived
        prepared.notes = [*prepared.notes, *search.notes(DOING)]
        return prepared
