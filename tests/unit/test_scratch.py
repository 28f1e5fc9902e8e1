"""Folders of workers: gone with the block, or with the next worker where theirs was killed; nobody else's ever."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from jobs.learning.worker import scratch

KILLED = """
import os, signal, sys, tempfile
tempfile.tempdir = sys.argv[1]
from jobs.learning.worker import scratch
held = [scratch(place) for place in sys.argv[2:]]
for each in held:
    each.__enter__()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_worker_left_goes_with_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    subprocess.run([sys.executable, "-c", KILLED, tmp_path, "s3://b/run", "s3://b/another"], check=False)
    killed = set(tmp_path.iterdir())
    assert len(killed) == 2
    with scratch("s3://b/another") as another:
        assert Path(another).is_dir()
    [left] = tmp_path.iterdir()
    assert left in killed, "only its own, and of the dead"
    with scratch("s3://b/run") as other, scratch("s3://b/run") as mine:
        assert set(tmp_path.iterdir()) == {Path(other).parent, Path(mine).parent}, "a living worker keeps its own"
        assert not list(Path(mine).iterdir())
    assert not list(tmp_path.iterdir())


def test_a_folder_that_only_has_the_name_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with scratch("out/run") as folder:
        prefix = Path(folder).parent.name.rpartition("-")[0]
    mine = tmp_path / f"{prefix}-99999999-mine"  # what versions before took for the folder of a dead process
    mine.mkdir()
    (mine / "thesis.tex").write_text("x")
    (tmp_path / "elsewhere").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / f"{prefix}-99999998-link")
    with scratch("out/run"):
        pass
    assert (mine / "thesis.tex").read_text() == "x" and (tmp_path / f"{prefix}-99999998-link").is_symlink()
