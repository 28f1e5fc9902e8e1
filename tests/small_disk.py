"""A disk that is full: a real file system of its own, a tmpfs, whose free space a test decides. Mounting one needs root."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

FILLER = "filler"


@contextlib.contextmanager
def small_disk(folder: Path, kilobytes: int = 4096) -> Iterator[Path]:
    """Skips the test where nothing may be mounted."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"a disk that is full is a small tmpfs, which cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def leave(disk: Path, kilobytes: int) -> None:
    """Fill the disk up to so much free space."""
    free = os.statvfs(disk)
    (disk / FILLER).write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - kilobytes * 1024)))


def make_room(disk: Path) -> None:
    (disk / FILLER).unlink()
