"""What feeds the pool of actors: work becomes prepared blocks, no more of them than the pool has room for.

On a cluster by Ray Data: a dataset is the work that is planned by then, and what is planned while its blocks are labelled is
the next one. On one machine by processes beside the driver, which costs no workers and no copies between them.
"""

import contextlib
import pickle
import queue
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa
import ray

from jobs.cluster import READ_CPUS, Pool
from jobs.label.ahead import Ahead
from jobs.label.backlog import Backlog
from jobs.label.work import BLOCK, Work
from pipeline.rewards.labellers import Labeller
from pipeline.rewards.labellers.beside import Preparation
from pipeline.store.reading import in_parallel

if TYPE_CHECKING:
    import ray.data

BLOCK_BYTES = 8 << 20  # of its shards' rows, where they are known
GROWS_AFTER = 4  # blocks of one size before they are of twice as many shards: first labels should not wait
SHARE = 8  # blocks that each actor gets at least, where there are so many shards
DATASET = 4096  # blocks of one dataset at most: the driver holds what Ray Data knows of each
ROW = "value"  # the column of what goes from step to step, pickled


class Taker(Protocol):
    """The pool, as whoever feeds it sees it."""

    def wait_for_room(self) -> bool:
        """Until one block more is wanted; False where none is any more."""
        ...

    def take(self, block: Any, size: int) -> None:
        """A reference to a prepared block of `size` shards."""
        ...


class Feed:
    """Called in a thread, with the pool; returns when everything is prepared, nothing is wanted any more, or it is closed.

    Args:
        read: makes of a work rows of `ROW`, each a shard with its rows.
        prepare: makes of a table of such rows, or of works whose shards can be read anywhere, one of prepared shards.
        preparations: processes beside this one that prepare; none where Ray Data does.
    """

    def __init__(
        self,
        backlog: Backlog,
        labeller: Labeller,
        size: Pool,
        read: Callable[..., Any],
        prepare: Callable[..., pa.Table],
        preparations: Sequence[Preparation],
    ):
        self.backlog, self.size, self.preparations = backlog, size, preparations
        self.read, self.prepare = read, prepare
        self.tries, self.verbose = labeller.config.scorer.max_task_retries, labeller.config.run.verbose
        self.arguments = (pickle.dumps(labeller), labeller.model.trust_remote_code)
        self.blocks = 0  # that work was cut into
        self.later = Ahead(backlog.planned_later(), DATASET)
        self.ended = False

    def __call__(self, pool: Taker) -> None:
        prepared = self._prepared_here if self.preparations else self._prepared
        with contextlib.suppress(CancelledError):
            for block, size in (each for group in self._groups() for each in prepared(group)):
                if not pool.wait_for_room():
                    return
                pool.take(block, size)
            self.ended = True

    def close(self) -> None:
        """End what the feed waits for where it has not come to its end: planning, and processes that prepare, for good."""
        if not self.ended:
            for each in self.preparations:
                each.beside.close()
        self.backlog.close()
        self.later.close()

    def _prepared_here(self, group: list[Work]) -> Iterator[tuple[Any, int]]:
        free: queue.SimpleQueue[Preparation] = queue.SimpleQueue()
        for preparation in self.preparations:
            free.put(preparation)

        def prepare(block: pa.Table) -> pa.Table:
            preparation = free.get()
            try:
                return self.prepare(block, *self.arguments, preparation)
            finally:
                free.put(preparation)

        for _, prepared in in_parallel(prepare, self._raw_blocks(group), len(self.preparations)):
            yield ray.put(prepared), prepared.num_rows

    def _raw_blocks(self, group: list[Work]) -> Iterator[pa.Table]:
        for work in group:
            if work.apart:
                yield table([row(work)[ROW]])
            else:
                yield from (table([raw[ROW]]) for raw in self.read(row(work)))

    def _prepared(self, group: list[Work]) -> Iterator[tuple[Any, int]]:
        """References to blocks and the number of their shards, which themselves never come to the driver."""
        for apart in (True, False):
            if works := [work for work in group if work.apart is apart]:
                with self._settings(apart):  # a dataset keeps those that it was made under
                    dataset = self._dataset(works, apart)
                for bundle in dataset.iter_internal_ref_bundles():
                    yield from ((each.ref, each.metadata.num_rows) for each in bundle.blocks if each.metadata.num_rows)

    def _dataset(self, works: Sequence[Work], apart: bool) -> "ray.data.Dataset":
        import ray.data  # late, as below: half a second that one machine does without

        reads = ray.data.TaskPoolStrategy(size=self.size.reads)
        prepares = ray.data.TaskPoolStrategy(size=self.size.prepares)
        options: dict[str, Any] = {"max_retries": self.tries}
        dataset: ray.data.Dataset = ray.data.from_items(list(map(row, works)), override_num_blocks=len(works))
        if not apart:
            dataset = dataset.flat_map(self.read, compute=reads, num_cpus=READ_CPUS, **options)
        return dataset.map_batches(
            self.prepare, batch_size=None, batch_format="pyarrow", zero_copy_batch=True, fn_args=self.arguments,
            compute=prepares, num_cpus=self.size.prepare_cpus, **options,
        )  # fmt: skip

    @contextlib.contextmanager
    def _settings(self, apart: bool) -> Iterator[None]:
        """Ray Data's settings for a dataset; those of the process are what they were afterwards."""
        import ray.data
        from ray.util.annotations import RayDeprecationWarning

        context = ray.data.DataContext.get_current()
        settings = {
            "enable_progress_bars": self.verbose,
            "target_max_block_size": None if apart else 1,  # what a task makes; what it reads, row by row
            "memory_usage_poll_interval_s": None,  # it looks through all pages of a process each second
        }
        before = {name: getattr(context, name) for name in settings}
        detectors = context.issue_detectors_config.detectors
        with warnings.catch_warnings():
            # Ray's defaults try a call that kills its process for ever. It has no named parameters for this yet.
            warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated", category=RayDeprecationWarning)
            try:
                for name, value in settings.items():
                    setattr(context, name, value)
                context.issue_detectors_config.detectors = []  # of memory, which we watch
                yield
            finally:
                for name, value in before.items():
                    setattr(context, name, value)
                context.issue_detectors_config.detectors = detectors

    def _groups(self) -> Iterator[list[Work]]:
        """Work in blocks, as datasets: what is planned, then whatever has been planned meanwhile."""
        yield from _chunks(block for work in self.backlog.planned() for block in self._blocks(work))
        for works in self.later:
            yield from _chunks(block for work in works for block in self._blocks(work))

    def _blocks(self, work: Work) -> Iterator[Work]:
        """Work as blocks that any task can read; whole where it has to be read from its front."""
        begin = 0
        while begin < len(work.shards) and work.apart:
            end = begin + 1
            size, most = work.shards[begin].length or 0, min(begin + self._size(), len(work.shards))
            while end < most and (size := size + (work.shards[end].length or 0)) <= BLOCK_BYTES:
                end += 1
            self.blocks += 1
            yield work.part(begin, end)
            begin = end
        if begin == 0:
            yield work

    def _size(self) -> int:
        """Shards of the next block."""
        grown = min(BLOCK, 1 << min(8, self.blocks // GROWS_AFTER))
        fair = self.backlog.shards // (SHARE * self.size.max_actors) if self.backlog.whole else BLOCK
        return max(1, min(grown, fair))


def _chunks(works: Iterable[Work]) -> Iterator[list[Work]]:
    chunk: list[Work] = []
    for work in works:
        chunk.append(work)
        if len(chunk) >= DATASET:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def row(value: Any) -> dict[str, bytes]:
    return {ROW: pickle.dumps(value, pickle.HIGHEST_PROTOCOL)}


def table(pickled: Iterable[bytes]) -> pa.Table:
    """As Ray Data has rows of `row`."""
    return pa.table({ROW: pa.array(pickled, pa.large_binary())})
