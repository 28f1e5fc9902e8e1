"""benchmarks/gpu.py goes on after a case that fails, a process that dies and a time that is up, and says so by name."""

import sys
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_a_case_that_fails_is_one_row(device: None, tmp_path: Path) -> None:
    from device.cases import Case, Runner, Skip, read

    def fails() -> dict:
        raise RuntimeError("a\nb")

    def skips() -> dict:
        raise Skip("not here")

    cases = [
        Case("fails", fails),
        Case("skips", skips),
        Case("wrong", lambda: {"ok": False, "error": float("nan")}),
        Case("right", lambda: {"ok": True, "error": 0.5}),
        Case("late", lambda: {}, seconds=1e6),
    ]
    Runner(tmp_path / "rows", time.time() + 60).run(cases)
    rows = {row["case"]: row for row in read(tmp_path / "rows") if row["kind"] == "row"}
    assert {name: row["ok"] for name, row in rows.items()} == {
        "fails": False, "skips": None, "wrong": False, "right": True, "late": None,
    }  # fmt: skip
    assert rows["fails"]["note"] == "RuntimeError: a b"
    assert rows["right"]["figures"] == {"error": 0.5}


def test_a_case_in_which_the_process_died_is_not_begun_again(device: None, tmp_path: Path) -> None:
    from device.cases import Case, Runner, read

    (tmp_path / "rows").write_text(
        '{"kind": "plan", "cases": ["a", "b"]}\n{"kind": "begin", "case": "a"}\n{"kind": "ro'
    )
    assert [row["kind"] for row in read(tmp_path / "rows")] == ["plan", "begin"]
    (tmp_path / "rows").write_text('{"kind": "plan", "cases": ["a", "b"]}\n{"kind": "begin", "case": "a"}\n')
    ran = []
    Runner(tmp_path / "rows", time.time() + 60).run([Case(n, lambda n=n: ran.append(n) or {}) for n in ("a", "b")])  # type: ignore[misc]
    assert ran == ["b"]


DIES = """
import os, sys, time
sys.path.insert(0, {benchmarks!r})
from pathlib import Path
from device.cases import Case, Runner
word = sys.argv[sys.argv.index("--section") + 2]
rows = Path(sys.argv[sys.argv.index("--rows") + 1])
dies = (lambda: os._exit(9)) if word == "dies" else (lambda: time.sleep(60))
Runner(rows, time.time() + 60).run([Case("first", dict), Case("dies", dies), Case("last", dict)])
"""


@pytest.mark.slow  # it starts torch three times
@pytest.mark.parametrize("what, code, outcome", [("dies", 1, [True, False, True]), ("hangs", 0, [True, None, None])])
def test_sections_that_die_and_hang(
    what: str, code: int, outcome: list, device: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gpu

    script = tmp_path / "section.py"
    script.write_text(DIES.format(benchmarks=str(BENCHMARKS)))
    monkeypatch.setattr(gpu, "__file__", str(script))
    section = gpu.Section("memory", what, 60)
    process = gpu.Process(section, tmp_path, time.time() + (40 if what == "dies" else 15), 1)
    gpu.follow([process], lambda: None)
    rows = {row["case"]: row["ok"] for row in section.rows}
    assert [rows[name] for name in ("first", "dies", "last")] == outcome
    assert gpu.verdict([section], [], "out.json") == code
    assert process.starts == (2 if what == "dies" else 1)
    assert sys.path[0]  # the script's own folders come first there
