"""`endoreward status` and `endoreward validate`: what a label store (or a training run) says of itself. Neither needs Ray or
a model."""

from collections import Counter

from jobs import terminal
from jobs.stores.inspect_run import run_status
from pipeline.errors import ConfigError
from pipeline.store import READERS, LabelStore, Status, Survey, problems
from pipeline.store.status import status_rows
from pipeline.training.run import RunFolder

SHOWN_PROBLEMS = 50


def status(uri: str) -> int:
    """Print how far a store, or a training run, is. Returns 0; raises StoreError where there is none."""
    folder = RunFolder(uri)
    if folder.is_run and (run := folder.run()) is not None:
        return run_status(folder, run)
    store = LabelStore(uri)
    progress = store.progress()
    last = Status.find(uri)
    warn_of_guesses(store)
    state = "complete" if progress.complete else "incomplete: run the same label command again to go on"
    rows = [
        ("State", f"being written by {progress.writer}" if progress.writer else state),
        (
            "done",
            f"{progress.done_rows:,} of {progress.rows:,} rows, {progress.done_shards:,} of {progress.shards:,} shards",
        ),
        ("Remaining", f"{progress.rows - progress.done_rows:,} rows"),
        ("Labels", f"{progress.labels:,}"),
        *error_rows(progress.errors),
        *(status_rows(last, progress.writer is not None) if last is not None else []),
    ]
    terminal.print_table(uri, rows)
    return 0


def validate(uri: str, workers: int = READERS) -> int:
    """Print what is wrong with a store, which `workers` threads read. Returns 0 where nothing is, else 1; raises StoreError
    where there is none, ConfigError for no worker at all."""
    if workers < 1:
        raise ConfigError(f"--workers {workers}: at least 1 thread has to read")
    store, survey = LabelStore(uri), Survey()
    count = 0
    for problem in problems(store, workers, survey):
        count += 1
        if count <= SHOWN_PROBLEMS:
            terminal.say(f"- {problem}")
    if count:
        terminal.say(f"{uri}: {count:,} problems")
        return 1
    progress = store.progress(survey)
    terminal.say(
        f"{uri}: whole; {progress.shards:,} shards, {progress.labels:,} labels and {progress.errors.total():,} errors of "
        f"{progress.rows:,} input rows, every id once, every checksum right"
    )
    return 0


def warn_of_guesses(store: LabelStore) -> None:
    """Say of which input files an earlier version guessed the better response: whatever is made of the store has it so."""
    for guess in store.guesses():
        terminal.warn(guess)


def error_rows(errors: Counter[str]) -> list[tuple[str, str]]:
    """Rows of a table: how many errors, and how many by reason."""
    return [
        ("Errors", f"{errors.total():,}"),
        *((f"  {reason}", f"{count:,}") for reason, count in errors.most_common()),
    ]
