"""`endoreward compact`: the parts and records of a label store, merged into few large files. Needs no model and no Ray."""

import time

from jobs import terminal
from pipeline.errors import ConfigError, StoreError
from pipeline.store import LabelStore, WriterLock
from pipeline.store.compaction import Compaction
from pipeline.store.compaction import compact as merge


def compact(uri: str, file_mb: float = 256) -> int:
    """Merge what is small in the store at `uri`, finished or not; nothing that it says changes.

    Args:
        file_mb: a file of labels is closed when it holds so many MiB.

    Returns 0. Raises ConfigError for a size that is none; StoreError where there is no store, another driver writes it, it
    is kept rollouts, or a part is damaged.
    """
    if not file_mb > 0:
        raise ConfigError(f"--file-mb {file_mb:g}: the size of a file is more than 0 MiB")
    store = LabelStore(uri)
    store.require()
    if any(name.startswith("run.") for name in store.description()):
        raise StoreError(f"{uri} holds kept rollouts, which rl reads a step at a time; they are left as they are")
    with WriterLock(store.uri):
        store.open_for_writing(store.description())
        done, logged = Compaction(), time.perf_counter()
        for done in merge(store.uri, round(file_mb * 2**20)):
            if time.perf_counter() - logged > terminal.LOG_EVERY_S:
                logged = time.perf_counter()
                terminal.errors.print(f"compact: {done.shards:,} of {done.of_shards:,} shards")
    if not done.shards:
        terminal.say(f"{uri}: nothing to merge; its files are as large as asked for, or there is only one")
        return 0
    terminal.say(f"{uri}: the rows and records of {done.shards:,} shards are in {done.files:,} files now")
    return 0
