"""The label store: commits that survive a kill at any step, records that find a flipped bit, one driver at a time."""

import errno
import glob
import itertools
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.config import InputConfig
from pipeline.corpus import Shard, detect, find_files, plan_file
from pipeline.errors import RunError, StoreError
from pipeline.store import (
    ERRORS,
    LABELS,
    Failure,
    Label,
    LabelStore,
    StoredInput,
    WriterLock,
    commit,
    documents,
    find_record,
    fingerprint,
    part_uri,
    problems,
    read_part,
)

ROWS = 6


def make_label(row: int, preference: str) -> Label:
    rewards = np.array([0.5, -1.5 - row], dtype=np.float32)
    return Label(
        id=f"rows.jsonl:{row}:{preference}:0:0",
        prompt_id=f"rows.jsonl:{row}",
        preference=preference,  # type: ignore[arg-type]
        response_index=0,
        prompt=[{"role": "user", "content": f"question {row}"}],
        response="answer",
        reward=float(rewards.sum()),
        num_tokens=2,
        num_prompt_tokens=3,
        truncated=False,
        token_ids=[1, 2],
        turn=0,
        token_logprobs=-np.ones(2, dtype=np.float32),
        token_values=np.ones(2, dtype=np.float32),
        token_rewards=rewards,
        rubric=None,
        extra_info="{}",
    )


def rows_of(shard: Shard) -> tuple[list[Label], list[Failure]]:
    """Even rows become two labels, odd rows one label and one error."""
    labels = [make_label(row, "chosen") for row in range(shard.start, shard.stop)]
    labels += [make_label(row, "rejected") for row in range(shard.start, shard.stop) if row % 2 == 0]
    failures = [
        Failure(f"rows.jsonl:{row}:rejected:0", f"rows.jsonl:{row}", "rows.jsonl", row, "empty_response", "no text")
        for row in range(shard.start, shard.stop)
        if row % 2
    ]
    return labels, failures


DESCRIPTION = {"reward.alpha": 1.0, "model.content": "abc"}


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    """A store of three planned shards, none committed."""
    source = tmp_path / "rows.jsonl"
    row = {"prompt": "q", "chosen": "a", "rejected": "b"}
    source.write_text("".join(json.dumps({**row, "n": i}) + "\n" for i in range(ROWS)))
    [file] = find_files([str(source)])
    plan = plan_file(file, shard_rows=2)
    store = LabelStore(str(tmp_path / "store"))
    store.open_for_writing(DESCRIPTION)
    store.add_input(StoredInput(file, "auto", detect(list(plan.head), InputConfig()), plan))
    return store


def shards_of(store: LabelStore) -> list[Shard]:
    return list(store.inputs()[0].plan.shards)


def commit_all(store: LabelStore) -> None:
    for shard in shards_of(store):
        commit(store.uri, shard, fingerprint.digest(DESCRIPTION), 0, *rows_of(shard))


def contents(store: LabelStore) -> dict[str, bytes]:
    """Every file that counts, by its path below the store."""
    names = glob.glob("**", root_dir=store.uri, recursive=True, include_hidden=True)
    return {n: Path(store.uri, n).read_bytes() for n in sorted(names) if Path(store.uri, n).is_file() and n != ".lock"}


def test_a_committed_store_is_whole_and_says_what_it_holds(store: LabelStore) -> None:
    commit_all(store)
    assert list(problems(store)) == []
    progress = store.progress()
    assert progress.complete and (progress.rows, progress.done_rows, progress.labels) == (6, 6, 9)
    assert progress.errors == {"empty_response": 3}
    labels = pq.read_table(os.path.join(store.uri, "labels"))
    assert labels.schema.equals(LABELS) and labels.num_rows == 9
    assert pq.read_table(os.path.join(store.uri, "errors")).schema.equals(ERRORS)
    table = read_part(part_uri(store.uri, "labels", shards_of(store)[0]))
    assert table["token_rewards"].to_pylist()[0] == [0.5, -1.5]


def test_a_commit_is_the_same_bytes_and_counts_once(store: LabelStore) -> None:
    commit_all(store)
    before = contents(store)
    commit_all(store)  # an orphan of a killed driver, say
    assert contents(store) == before


def test_an_unfinished_store_is_reported(store: LabelStore) -> None:
    first = shards_of(store)[0]
    commit(store.uri, first, fingerprint.digest(DESCRIPTION), 0, *rows_of(first))
    assert not store.progress().complete
    [problem] = problems(store)
    assert "2 of 3 shards are not labelled yet" in problem


def test_a_retry_replaces_a_shard_under_a_new_generation(store: LabelStore) -> None:
    commit_all(store)
    shard = shards_of(store)[0]
    labels = [make_label(r, p) for r in (0, 1) for p in ("chosen", "rejected")]
    record = commit(store.uri, shard, fingerprint.digest(DESCRIPTION), 1, labels, [])
    assert record.generation == 1 and find_record(store.uri, shard) == record
    assert not os.path.exists(part_uri(store.uri, "errors", shard))
    assert list(problems(store)) == []
    stale = commit(store.uri, shard, fingerprint.digest(DESCRIPTION), 0, *rows_of(shard))
    assert stale == record, "an older generation must not undo a retry"


# Killed in between. The child kills itself before its n-th change of the file system, so that every step is met.


def changes_until_killed(work: Callable[[], object], kill_at: int | None) -> int:
    """Run `work` in a forked child that dies before change number `kill_at`; returns the changes made by one that lives."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        count = 0

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal count
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if writes or event in ("os.rename", "os.link", "os.remove", "os.mkdir"):
                if count == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1

        try:
            sys.addaudithook(hook)
            work()
            os.write(write, str(count).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with os.fdopen(read) as said:
        return int(said.read() or -1)


def kill_at_every_step(store: LabelStore, work: Callable[[], object]) -> int:
    """Kill `work` before each of its changes in turn, check the store, finish it, check again. Returns the kills."""
    before = contents(store)
    work()
    wanted = contents(store)
    for step in itertools.count():
        for name in contents(store):
            os.unlink(os.path.join(store.uri, name))
        for name, data in before.items():
            documents.write_bytes(os.path.join(store.uri, name), data)
        if changes_until_killed(work, step) >= 0:
            return step
        for path in glob.glob(f"{store.uri}/*/*.parquet"):
            pq.read_table(path)  # nothing visible by halves
        for problem in problems(store):
            assert "not labelled yet" in problem or "no record knows" in problem, problem
        store.open_for_writing(DESCRIPTION)
        work()
        assert contents(store) == wanted, f"killed before change {step}"
        assert list(problems(store)) == []
    raise AssertionError


def test_a_kill_at_every_step_of_a_commit_loses_nothing(store: LabelStore) -> None:
    assert kill_at_every_step(store, lambda: commit_all(store)) >= 3 * 3 * 2


def test_a_kill_at_every_step_of_a_retry_loses_nothing(store: LabelStore) -> None:
    shard = shards_of(store)[0]
    commit_all(store)
    labels = [make_label(r, p) for r in (0, 1) for p in ("chosen", "rejected")]

    def retry() -> None:
        commit(store.uri, shard, fingerprint.digest(DESCRIPTION), 1, labels, [])

    assert kill_at_every_step(store, retry) >= 4


@pytest.mark.slow
def test_a_thousand_kills_of_the_committer(store: LabelStore) -> None:
    kills = 0
    while kills < 1000:
        for name in contents(store):
            if "part-" in name or (name.count("-") == 1 and "input" not in name):
                os.unlink(os.path.join(store.uri, name))
        kills += kill_at_every_step(store, lambda: commit_all(store))
    assert kills >= 1000


# Damage


def test_every_flipped_bit_is_found(store: LabelStore) -> None:
    commit_all(store)
    documents.write_bytes(store.at("manifest.json"), b"{}")
    files = [n for n in contents(store) if n.startswith(("labels/", "errors/", "records/"))]
    chance = random.Random(1)
    for flip in range(200):
        path = os.path.join(store.uri, files[flip % len(files)] if flip < len(files) else chance.choice(files))
        data = bytearray(Path(path).read_bytes())
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        intact = Path(path).read_bytes()
        Path(path).write_bytes(data)
        try:
            assert list(problems(store)), f"a flipped bit in {path} went unseen"
        finally:
            Path(path).write_bytes(intact)
    assert list(problems(store)) == []


def test_missing_and_foreign_files_are_found(store: LabelStore) -> None:
    commit_all(store)
    part = part_uri(store.uri, "labels", shards_of(store)[0])
    data = Path(part).read_bytes()
    os.unlink(part)
    assert ["missing" in p for p in problems(store)] == [True]
    Path(part).write_bytes(data)
    Path(store.at("labels", "part-other.parquet")).write_bytes(data)
    assert ["no record knows this file" in p for p in problems(store)] == [True]


def test_a_record_under_another_fingerprint_is_found(store: LabelStore) -> None:
    commit_all(store)
    record = find_record(store.uri, shards_of(store)[0])
    assert record is not None
    documents.write(
        store.at("records", f"{os.path.basename(part_uri('', 'labels', record.shard))[5:-8]}.json"),
        replace(record, fingerprint="0" * 64).to_json(),
    )
    assert ["another fingerprint" in p for p in problems(store)] == [True]


def test_a_store_is_discarded_and_what_lies_beside_stays(store: LabelStore) -> None:
    commit_all(store)
    documents.write_bytes(store.at("manifest.json"), b"{}")
    mine = {"notes.txt": b"n", "labels/part-other.parquet": b"p", "records/notes.txt": b"r"}
    for name, data in mine.items():
        Path(store.at(name)).write_bytes(data)
    store.discard()
    assert contents(store) == mine


# Opening


def test_another_description_is_refused_and_says_what_differs(store: LabelStore) -> None:
    commit_all(store)
    before = contents(store)
    with pytest.raises(StoreError, match=r"reward\.alpha: the store has 1\.0, this run 0\.5") as refused:
        store.open_for_writing({**DESCRIPTION, "reward.alpha": 0.5})
    assert refused.value.exit_code == 2 and contents(store) == before


def test_a_directory_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(StoreError, match=r"holds something else \(thesis\.tex\)"):
        LabelStore(str(tmp_path)).check_place()
    with pytest.raises(StoreError, match="is a file"):
        LabelStore(str(tmp_path / "thesis.tex")).check_place()
    with pytest.raises(StoreError, match="not a label store"):
        LabelStore(str(tmp_path)).progress()


def test_a_second_driver_is_refused_while_the_first_lives(store: LabelStore) -> None:
    code = f"""
import sys
from pipeline.store import WriterLock
with WriterLock({store.uri!r}):
    print("locked", flush=True)
    sys.stdin.read()
"""
    first = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None and first.stdout.readline() == "locked\n"
    with pytest.raises(StoreError, match=f"process {first.pid}"), WriterLock(store.uri):
        pass
    assert f"process {first.pid}" in (store.progress().writer or "")
    first.kill()
    first.wait()
    with WriterLock(store.uri):
        pass
    assert store.progress().writer is None


def test_a_full_disk_says_so_and_leaves_nothing_by_halves(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    shard = shards_of(store)[0]
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match="full"):
            commit(store.uri, shard, fingerprint.digest(DESCRIPTION), 0, *rows_of(shard))
    assert not [n for n in contents(store) if "part-" in n]
    commit_all(store)
    assert list(problems(store)) == []
