"""What a worker of a training run does beside its loop, inside Ray Train: record errors, write and load checkpoints, export.

A worker that dies takes the others with it; Ray Train starts them all again and they go on from the last checkpoint. What
was learned after it is learned once more, from the same data in the same order, and comes out the same to the last bit.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray.train
import torch

from actors.learner import Diverged, Learner
from pipeline import storage
from pipeline.errors import ConfigError, EndorewardError
from pipeline.store import documents
from pipeline.training.documents import CheckpointState, Stopped
from pipeline.training.run import STOPPED, RunFolder, keep_snapshot

SCRATCH = "endoreward-"  # begins the names of folders for what is to be uploaded
LOCK = "lock"  # in one of these
STATE = "endoreward.json"  # in a checkpoint, beside DeepSpeed's files

State = dict[str, Any]
"""What a run goes on from: `step`, how many are done, and what else its loop keeps."""


def guarded(output: str, loop: Callable[[], None]) -> None:
    """Run a worker's loop; on an unrecoverable error, record the reason for the driver."""
    if storage.exists(storage.join(output, STOPPED)):
        return  # another worker has met an unrecoverable error
    try:
        loop()
    except torch.OutOfMemoryError as error:
        _stop(
            output,
            f"out of memory: {str(error).splitlines()[0]}; lower learner.budget_tokens, set learner.gradient_checkpointing, a "
            "higher learner.zero_stage or learner.offload; once there is a checkpoint, in another --output",
        )
        if _waited_for():
            raise
    except Diverged as error:  # on all workers at once: they end together, and nothing is started again
        _stop(output, str(error))
    except EndorewardError as error:
        _stop(output, str(error))
        if _waited_for():
            raise


def _waited_for() -> bool:
    """Whether others may wait for this worker in a collective: with its death they all end, and are started once more to find
    out why."""
    return place_of()[1] > 1


def _stop(output: str, sentence: str) -> None:
    """Record why the run cannot go on, for the driver and for workers that are started again."""
    Stopped(sentence=sentence).create(storage.join(output, STOPPED))


def place_of() -> tuple[int, int]:
    """This worker's rank, and how many there are."""
    context = ray.train.get_context()
    return context.get_world_rank(), context.get_world_size()


def leaving_nodes() -> set[str]:
    """Nodes of these workers that are taken back soon: preempted, or drained by a person. All workers call it, and hear the
    same."""
    info = ray.train.get_preemption_info()
    return set(info.preempted_node_ids) if info else set()


def restore(learner: Learner, fresh: State) -> State:
    """Load the last checkpoint, where there is one, else begin as `fresh`.

    Raises ConfigError where another number of workers wrote it and learner.min_workers is not set.
    """
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return {"step": 0, "num_tokens": 0, **fresh}
    with checkpoint.as_directory() as folder:
        saved = CheckpointState.read(os.path.join(folder, STATE))
        if saved.workers != learner.world and not learner.config.learner.min_workers:
            raise ConfigError(
                f"the checkpoint was written by {saved.workers} workers and these are {learner.world}; set "
                f"learner.workers={saved.workers}, or begin anew in another --output"
            )
        learner.restore(folder)
    return saved.state()


def read_kept(name: str) -> bytes | None:
    """A file of the last checkpoint, None where that is none of its."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None
    try:
        with checkpoint.filesystem.open_input_file(f"{checkpoint.path}/{name}") as file:
            content: bytes = file.read()
    except FileNotFoundError:
        return None
    return content


def keep(
    learner: Learner, output: str, state: State, row: dict[str, Any], save: Callable[[str], None] = lambda folder: None
) -> None:
    """Write a checkpoint: every worker hands its own part to Ray Train, which merges them where they are kept.

    Args:
        save: writes what else belongs to this worker's part into its folder.
    """
    with scratch(output) as folder:
        learner.save(folder, state["step"])
        save(folder)
        if learner.rank == 0:
            saved = CheckpointState.model_validate({**state, "workers": learner.world})
            saved.create(os.path.join(folder, STATE))
            keep_snapshot(output)
        shown = {name: row[name] for name in ("step", "loss")}
        ray.train.report(shown, checkpoint=ray.train.Checkpoint.from_directory(folder))


def export(learner: Learner, output: str, name: str) -> None:
    """Write the policy as it is now, whole, to the folder `name` of a run; which files it is of is on record before."""
    place = storage.join(output, name)
    with scratch(place) as folder:
        learner.export(folder)
        if learner.rank == 0:
            RunFolder(output).record_policy(name, folder)
            documents.put_folder(folder, place)


@contextlib.contextmanager
def scratch(place: str) -> Iterator[str]:
    """A folder of this process's for what goes to `place`, as long as the block runs.

    What killed workers left of theirs is deleted: it may be as large as the optimizer. A folder is one of theirs when its
    owner is this user and its lock says whose it is and is free, which it is not while its worker lives, in whichever
    container.
    """
    ours = f"{SCRATCH}{hashlib.sha256(place.encode()).hexdigest()[:12]}-"
    for left in Path(tempfile.gettempdir()).glob(f"{ours}*"):
        if _is_left(left, place):
            shutil.rmtree(left, ignore_errors=True)
    folder = tempfile.mkdtemp(prefix=ours)
    try:
        with open(os.path.join(folder, LOCK), "w") as lock:
            with contextlib.suppress(OSError):  # without locks nobody may take it for one that was left
                fcntl.flock(lock, fcntl.LOCK_EX)
                lock.write(place)
                lock.flush()
            content = os.path.join(folder, "content")
            os.mkdir(content)
            yield content
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_left(folder: Path, place: str) -> bool:
    """Whether a scratch folder was left by a worker that is gone."""
    try:
        if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
            return False
        with open(folder / LOCK) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock.read() == place
    except (OSError, ValueError):
        return False
