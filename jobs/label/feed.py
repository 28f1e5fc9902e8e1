"""What feeds the pool of actors: work becomes prepared blocks, by tasks on Ray, no more of them than the pool has room for.

It works in threads of its own, since the next work may still be planned and the next rows still be read: one asks for blocks
whose shards can be read anywhere, one for each file that is being read from its front follows that file's task.
"""

import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import ray
from ray.exceptions import TaskCancelledError

from jobs.cluster import READ_CPUS, Pool
from jobs.label.backlog import Backlog
from jobs.label.work import BLOCK, Work
from pipeline.rewards.labellers import Labeller
from pipeline.rewards.labellers.beside import Preparation

BLOCK_BYTES = 8 << 20  # of its shards' rows, where they are known
GROWS_AFTER = 4  # blocks of one size before they are of twice as many shards: first labels should not wait
SHARE = 8  # blocks that each actor gets at least, where there are so many shards
READ_AHEAD = 4  # blocks that a reading task is ahead of those who prepare


class Taker(Protocol):
    """The pool, as whoever feeds it sees it."""

    def wait_for_room(self) -> bool:
        """Until one block more may be prepared; False where none is wanted any more."""
        ...

    def take(self, block: Any, meta: Any) -> None:
        """References to a block that is being prepared, and to what is said of it."""
        ...

    def cancelled_at_end(self, task: Any) -> None:
        """A task that is not to outlive the pool."""
        ...


class Feed:
    """Called in a thread, with the pool; returns when everything is asked for, or nothing is wanted any more.

    Args:
        read, prepare: the steps.
        preparation: where all is prepared by this process.
    """

    def __init__(
        self,
        backlog: Backlog,
        labeller: Labeller,
        size: Pool,
        read: Callable[..., Any],
        prepare: Callable[..., Any],
        preparation: Preparation | None,
    ):
        tries = labeller.config.scorer.max_task_retries
        self.backlog, self.size, self.preparation = backlog, size, preparation
        self.labeller, self.own_code = pickle.dumps(labeller), labeller.model.trust_remote_code
        self.here = prepare
        remote: Any = ray.remote  # whose type knows no back-pressure
        self.read = remote(
            num_cpus=READ_CPUS,
            max_retries=tries,
            num_returns="streaming",
            _generator_backpressure_num_objects=READ_AHEAD,
        )(read)
        self.prepare = remote(num_cpus=size.prepare_cpus, max_retries=tries, num_returns=2)(prepare)
        self.asked = 0  # blocks
        self.readers = threading.Semaphore(size.reads)
        self.trouble: list[BaseException] = []

    def __call__(self, pool: Taker) -> None:
        reading: list[threading.Thread] = []
        argument = ray.put(self.labeller)
        for work in self.backlog:
            if self.trouble:
                break
            if self.preparation is not None or work.apart or len(work.shards) <= self._size():
                for block in self._blocks(work):
                    if not pool.wait_for_room():
                        return
                    self._ask(pool, block, argument)
                continue
            self.readers.acquire()
            reading = [thread for thread in reading if thread.is_alive()]
            reading.append(threading.Thread(target=self._follow, args=(pool, work, argument), daemon=True))
            reading[-1].start()
        for thread in reading:
            thread.join()
        if self.trouble:
            raise self.trouble[0]

    def _ask(self, pool: Taker, block: Any, argument: Any) -> None:
        self.asked += 1
        if self.preparation is not None:
            meta, prepared = self.here(block, self.labeller, self.own_code, self.preparation)
            pool.take(ray.put(prepared), ray.put(meta))
            return
        meta, prepared = self.prepare.remote(block, argument, self.own_code)
        pool.take(prepared, meta)

    def _follow(self, pool: Taker, work: Work, argument: Any) -> None:
        """Ask for what a task reads of a file, as it comes."""
        try:
            task = self.read.remote(work, self._sizes())
            pool.cancelled_at_end(task)
            for raw in task:
                if not pool.wait_for_room():
                    return
                self._ask(pool, raw, argument)
        except TaskCancelledError:
            pass
        except BaseException as error:
            self.trouble.append(error)
        finally:
            self.readers.release()

    def _size(self, asked: int | None = None) -> int:
        """Shards of the next block, or of the one before which so many are asked for."""
        grown = min(BLOCK, 1 << min(8, (self.asked if asked is None else asked) // GROWS_AFTER))
        fair = self.backlog.shards // (SHARE * self.size.max_actors) if self.backlog.whole else BLOCK
        return max(1, min(grown, fair))

    def _sizes(self) -> list[int]:
        """Of the blocks of a task that reads, the last for all that follow."""
        return [self._size(self.asked + more) for more in range(4 * GROWS_AFTER)]

    def _blocks(self, work: Work) -> Iterator[Work]:
        """Work as blocks that any task can read."""
        begin = 0
        while begin < len(work.shards) and work.apart:
            end = begin + 1
            size, most = work.shards[begin].length or 0, min(begin + self._size(), len(work.shards))
            while end < most and (size := size + (work.shards[end].length or 0)) <= BLOCK_BYTES:
                end += 1
            yield work.part(begin, end)
            begin = end
        if begin == 0:
            yield work
