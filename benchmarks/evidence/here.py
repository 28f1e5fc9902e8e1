"""`endoreward evaluate` in one process, without Ray: the same labellers, stores and figures, a shard after the other.

    [EVIDENCE_ROWS=N] python benchmarks/evidence/here.py evaluate --benchmark ... (as `endoreward evaluate`)

For long measurements on a machine that others use as well: one process with OMP_NUM_THREADS threads. With EVIDENCE_ROWS only
the shards that begin among the first N rows of the input are labelled; the same command with a larger N, or without, goes on.
What a run here and one on Ray make of the same rows is the same but for rounding. Leaves out judges' endpoints.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from actors.actor import Actor, ActorSpec  # noqa: E402  needs the line above
from jobs import __main__ as command  # noqa: E402
from jobs.cluster import Pool  # noqa: E402
from jobs.label import flow, label_run, plan  # noqa: E402
from jobs.label.backlog import Backlog  # noqa: E402
from jobs.label.work import Done, PoolState, Target  # noqa: E402
from pipeline.corpus import read_shards  # noqa: E402
from pipeline.rewards.labellers import Labeller  # noqa: E402
from pipeline.store import LabelStore, StoredInput, commit  # noqa: E402

ROWS = int(os.environ.get("EVIDENCE_ROWS") or sys.maxsize)


def label_shards(
    backlog: Backlog,
    labeller: Labeller,
    target: Target,
    spec: ActorSpec,
    pool: Pool,
    watch: Callable[[PoolState], None] = lambda state: None,
    preparations: object = (),
) -> Iterator[Done]:
    """As the flow on Ray, here."""
    actor = Actor(spec)
    for each in backlog:
        generations = dict(zip((shard.index for shard in each.shards), each.generations, strict=True))
        for shard, rows in read_shards(each.file, each.format, each.shards):
            prepared = labeller.prepare(shard, generations[shard.index], rows, each.shape)
            answered = actor.answer(prepared.requests)
            labels, failures = labeller.finish(prepared, answered.answers)
            record = commit(
                target.store, shard, target.fingerprint, prepared.generation, labels, failures, target.lease
            )
            notes = prepared.notes + answered.notes
            yield Done(
                record,
                answered.forwarded_tokens,
                answered.seconds,
                answered.layout,
                answered.check,
                notes,
                prepared.counts,
            )


def pending(
    store: LabelStore, inputs: Iterable[StoredInput], retry_errors: bool, later: Iterator[StoredInput] | None = None
) -> Backlog:
    """As a run's, of the first rows."""
    backlog = plan.pending(store, inputs, retry_errors, later)
    planned, backlog.rows, backlog.shards = backlog._planned, 0, 0
    backlog._planned = []
    for stored, left in planned:
        starts, rows = stored.plan.shards.column("start"), stored.plan.shards.column("rows")
        first = [at for at in left if starts[at] < ROWS]
        backlog._planned.append((stored, first))
        backlog.shards += len(first)
        backlog.rows += sum(rows[at] for at in first)
    return backlog


def main(words: list[str] | None = None) -> int:
    threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    flow.label_shards = label_shards
    label_run.pending = pending
    label_run.pick_pool = lambda config, device: Pool(1, 1, threads, 0)
    label_run.LateCluster.open = lambda self: None  # type: ignore[method-assign]
    return command.main(sys.argv[1:] if words is None else words)


if __name__ == "__main__":
    sys.exit(main())
