"""File systems that cannot do everything: no hard links, no locks, no flushing of folders, as mounted object stores and
network shares. The kernel itself refuses the calls here, by a seccomp filter in a process of its own; what such a file system
does otherwise than refuse is not shown."""

import errno
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

NUMBERS = {
    "x86_64": {"link": 86, "linkat": 265, "flock": 73, "renameat2": 316, "fsync": 74},
    "aarch64": {"linkat": 37, "flock": 32, "renameat2": 276, "fsync": 82},
}
REFUSE = """
import ctypes, errno, json, os, struct, sys

def refuse(calls):
    program = [(0x20, 0, 0, 0)]
    for number, error in calls:
        program += [(0x15, 0, 1, number), (0x06, 0, 0, 0x00050000 | error)]
    program.append((0x06, 0, 0, 0x7FFF0000))
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    whole = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, whole, 0, 0):
        sys.exit(77)

refuse(json.loads(sys.argv[1]))
place = sys.argv[2]
"""


def run_refused(code: str, place: Path, **calls: int) -> subprocess.CompletedProcess[str]:
    """Run Python in which the kernel answers these calls with an errno; `place` is at hand there."""
    numbers = NUMBERS.get(platform.machine())
    if sys.platform != "linux" or numbers is None:
        pytest.skip("needs the system calls of Linux on a machine that the test knows")
    if "link" in calls:
        calls["linkat"] = calls["link"]
    refused = [[numbers[name], number] for name, number in calls.items() if name in numbers]
    ran = subprocess.run(
        [sys.executable, "-c", REFUSE + code, repr(refused), str(place)], capture_output=True, text=True, timeout=60
    )
    if ran.returncode == 77:
        pytest.skip("this process may set no seccomp filter")
    return ran


CREATE = """
from pipeline.store import documents
try:
    os.link(sys.executable, place + "/linked")
    sys.exit("links are not refused")
except OSError as error:
    assert error.errno not in (errno.EXDEV, errno.ENOENT), error
print(documents.create(place + "/a/record.json", {"n": 1}), documents.create(place + "/a/record.json", {"n": 2}))
print(documents.read(place + "/a/record.json")["n"])
with documents.whole_file(place + "/pairs.jsonl", replace=False) as path:
    open(path, "w").write("pairs")
try:
    with documents.whole_file(place + "/pairs.jsonl", replace=False) as path:
        open(path, "w").write("others")
except FileExistsError:
    print("taken")
"""


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK])
@pytest.mark.parametrize("renames", [True, False])
def test_records_are_created_once_without_hard_links(tmp_path: Path, number: int, renames: bool) -> None:
    """By a rename that replaces nothing, and without that by looking first."""
    ran = run_refused(CREATE, tmp_path, link=number, **({} if renames else {"renameat2": errno.EINVAL}))
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["True", "False", "1", "taken"]
    assert (tmp_path / "pairs.jsonl").read_text() == "pairs"
    assert sorted(os.listdir(tmp_path)) == ["a", "pairs.jsonl"] and os.listdir(tmp_path / "a") == ["record.json"]


def test_what_cannot_be_flushed_is_written_all_the_same(tmp_path: Path) -> None:
    code = 'from pipeline.store import documents\nprint(documents.write_bytes(place + "/x", b"1"))'
    assert run_refused(code, tmp_path, fsync=errno.EINVAL).stdout == "True\n"
    ran = run_refused(code, tmp_path, fsync=errno.EIO)
    assert "RunError: cannot write" in ran.stderr, "a disk that fails is no disk that cannot"


LOCK = """
import subprocess
from pipeline.errors import StoreError
from pipeline.store import WriterLock
from pipeline.store.lock import holder_of
other = "from pipeline.store import WriterLock; import sys; WriterLock(sys.argv[1]).__enter__()"
with WriterLock(place):
    print(holder_of(place))
    print(subprocess.run([sys.executable, "-c", other, place], capture_output=True, text=True).stderr.splitlines()[-1])
print(holder_of(place))
"""


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_has_a_lease(tmp_path: Path, number: int) -> None:
    ran = run_refused(LOCK, tmp_path, flock=number)
    assert ran.returncode == 0, ran.stderr
    mine, refused, after = ran.stdout.splitlines()
    assert mine.startswith("process ") and "is being written by another driver" in refused and mine in refused
    assert after == "None"


def test_a_file_where_a_folder_is_due_is_said(tmp_path: Path) -> None:
    """It was taken for a record that is there already."""
    from pipeline.errors import RunError
    from pipeline.store import documents

    (tmp_path / "labels").write_text("a file")
    for replace in (True, False):
        with pytest.raises(RunError, match=r"cannot write .*labels: "):
            documents.write_bytes(str(tmp_path / "labels" / "part.parquet"), b"x", replace=replace)
