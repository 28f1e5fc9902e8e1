"""Shared by all tests: where the real models and corpora lie, and three ways to run a command.

    cli          a process of its own, as a user starts it
    here         in the process of the tests: a refusal, say, which starts nothing
    on_one_ray   in the process of the tests, on a Ray that stays until its last test

Most of a short run is that Python starts, and torch and Ray in each of its workers. What does not hang on how a command is
started is therefore tested in the second and the third way. Files of tests are begun in the order of LONGEST, so that no
process of pytest-xdist is left with a long one at the end.
"""

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faulty_s3
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests share cores; spinning threads would starve each other
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

ROOT = Path(__file__).parent.parent
LONGEST = (
    "test_rl", "test_evaluate", "test_label", "test_cluster", "test_zero", "test_train", "test_killers", "test_exactly_once",
    "test_derived_stores", "test_sampling", "test_notebook", "test_uploads",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real models and corpora beside the repository."""
    if not SHARED.is_dir():
        pytest.skip("the folder of real models and corpora, ../shared, is not here")
    return SHARED


@pytest.fixture(scope="session")
def cli() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `python -m jobs ARGUMENTS` as a user would; keyword `env` adds variables."""

    def run(
        *arguments: Any, env: dict[str, str] | None = None, timeout: float = 240
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "jobs", *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


@pytest.fixture(scope="session")
def here() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `main(ARGUMENTS)` in this process, and give what `cli` gives. An exception that a user would see as a traceback
    ends the test. A Ray that is started is stopped with the command; one that is there (`on_one_ray`) is used."""
    from jobs.__main__ import main

    def run(*arguments: Any) -> subprocess.CompletedProcess[str]:
        words = list(map(str, arguments))
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main(words)
            except SystemExit as stop:  # argparse's
                code = stop.code if isinstance(stop.code, int) else 1
        return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture(scope="session")
def on_one_ray(
    here: Callable[..., subprocess.CompletedProcess[str]],
) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """As `here`, but the first run's Ray, a real local one, stays until the last test, or until one that wants `no_ray`.
    Not for what kills workers, nor for workers that need another environment."""
    import ray

    def run(*arguments: Any) -> subprocess.CompletedProcess[str]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ray, "shutdown", lambda: None)  # a Ray that is there already is used
            return here(*arguments)

    yield run
    ray.shutdown()


@pytest.fixture
def no_ray() -> None:
    """This process has none when the test begins."""
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


@pytest.fixture
def s3(no_ray: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A real S3 endpoint on loopback with one bucket, whose name is new since clients are kept by name; gives its uri."""
    with faulty_s3.serve(monkeypatch) as server:
        yield server.uri
