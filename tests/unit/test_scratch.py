"""Folders of workers: gone with the block, or with the next worker where theirs was killed."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from jobs.worker import scratch


def test_what_a_killed_worker_left_goes_with_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    with scratch("s3://b/run") as other, scratch("s3://b/another") as another:
        assert Path(other).is_dir() and Path(another).is_dir()
        killed = [tmp_path / Path(each).name.replace(f"-{_pid(each)}-", f"-{dead.pid}-") for each in (other, another)]
        for folder in killed:
            (folder / "state").mkdir(parents=True)
        with scratch("s3://b/run") as mine:
            there = {place.name for place in tmp_path.iterdir()}
            assert there == {Path(each).name for each in (other, another, mine, killed[1])}, (
                "only its own, and of the dead"
            )
    assert list(tmp_path.iterdir()) == [killed[1]]


def _pid(folder: str) -> str:
    return Path(folder).name.split("-")[2]
