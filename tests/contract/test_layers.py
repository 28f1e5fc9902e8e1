"""The layers hold, the command line answers before torch and Ray are imported, and what crosses a process pickles."""

import ast
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from actors.actor import Answered, BatchCheck
from actors.scorer import ScorerSpec
from pipeline import errors
from pipeline.config import LabelConfig, ModelConfig
from pipeline.corpus import InputFile, Shape, Shard
from pipeline.rewards.labelling import Prepared
from pipeline.tokens import TokenizedTurn

ROOT = Path(__file__).parents[2]
PACKAGES = ("actors", "endoreward", "jobs", "pipeline")
HELP = """
import sys
import tomllib
from jobs.__main__ import main
try:
    main(sys.argv[1:])
except SystemExit as stop:
    assert stop.code == 0, stop.code
print("HEAVY", *sorted({"torch", "ray", "transformers", "pyarrow", "numpy"} & sys.modules.keys()))
"""


def test_imports_point_right() -> None:
    from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == EXIT_STATUS_SUCCESS


def test_no_package_for_leftovers() -> None:
    parts = {part for top in PACKAGES for p in (ROOT / top).glob("**/*.py") for part in p.parts}
    assert not {"utils", "utils.py", "common", "common.py", "helpers", "helpers.py"} & parts


@pytest.mark.parametrize("arguments", [["--help"], ["label", "--help"]], ids=" ".join)
def test_help_imports_nothing_heavy_and_is_quick(arguments: list[str]) -> None:
    took = []
    for _ in range(3):  # the best of three, in seconds of the processor: the machine may be busy
        started = _spent()
        done = subprocess.run(
            [sys.executable, "-c", HELP, *arguments], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
        )
        took.append(_spent() - started)
        assert "usage: endoreward" in done.stdout
        assert done.stdout.splitlines()[-1] == "HEAVY"
    assert min(took) < 1


def _spent() -> float:
    """Seconds of the processor that processes started here took, of those that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_a_wrong_description_is_refused_without_torch_and_ray() -> None:
    code = HELP.replace("    main(sys.argv[1:])", "    assert main(sys.argv[1:]) == 2")
    done = subprocess.run(
        [sys.executable, "-c", code, "label", "--set", "reward.alpa=1", "--set", "reward.gamma=7"],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.split() == ["HEAVY"]
    assert "reward.alpa" in done.stderr and "reward.gamma" in done.stderr  # every mistake at once


def test_a_server_is_asked_by_a_command_without_torch() -> None:
    """As `sample` and `evaluate` are, in a process of their own."""
    code = "import sys; sys.modules['torch'] = None; import jobs.label.writers, pipeline.models.engines.endpoint"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_what_crosses_a_process_pickles() -> None:
    from jobs.label.work import Work

    shard = Shard("a.jsonl", 0, 0, 2, 2, "0" * 64, 0, 10)
    shape = Shape((("chosen", "chosen"), ("rejected", "rejected")), prompt="prompt")
    tokens = TokenizedTurn([1], [2, 3], [{"role": "user", "content": "x"}])
    for thing in (
        LabelConfig(),
        ScorerSpec(ModelConfig(name="m"), "cpu", 0, 1, 16384, 8),
        Work(InputFile("a.jsonl", "/a.jsonl", 10, 1), "auto", shape, [shard], [0], True),
        Prepared(shard, 0, tokens=[tokens]),
        Answered([errors.RowError("out_of_memory", "too long")], 3, 0.1, "packed", [], BatchCheck()),
    ):
        again = pickle.loads(pickle.dumps(thing))
        assert type(again) is type(thing)
        assert repr(again) == repr(thing)


@pytest.mark.parametrize("kind", [k for k in vars(errors).values() if isinstance(k, type)], ids=lambda k: k.__name__)
def test_errors_pickle_with_their_sentence(kind: type[Exception]) -> None:
    error = kind("empty_response", "give it one") if kind is errors.RowError else kind("what to do")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error)
    assert again.exit_code == error.exit_code  # type: ignore[attr-defined]


MODULES = sorted(path for top in PACKAGES for path in (ROOT / top).glob("**/*.py"))
MOST_PACKAGES = 18  # directly in pipeline/ and jobs/ together
MOST_MODULES = 8  # likewise, their __init__ aside
MOST_LINES = 450  # of a module
MOST_LINES_OF_A_FUNCTION = 60


def test_the_house_has_few_rooms_and_short_modules() -> None:
    tops = [ROOT / "jobs", ROOT / "pipeline"]
    packages = [path.parent for path in MODULES if path.name == "__init__.py" and path.parent.parent in tops]
    loose = [path for path in MODULES if path.parent in tops and path.name != "__init__.py"]
    assert len(packages) <= MOST_PACKAGES, packages
    assert len(loose) <= MOST_MODULES, loose
    assert {path.parent for path in MODULES} == {path.parent for path in MODULES if path.name == "__init__.py"}
    lines = {path: len(path.read_text().splitlines()) for path in MODULES}
    assert not {path: count for path, count in lines.items() if count > MOST_LINES}


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_are_short(module: Path) -> None:
    functions = [n for n in ast.walk(ast.parse(module.read_text())) if isinstance(n, ast.FunctionDef)]
    lengths = {
        function.name: function.end_lineno - function.lineno + 1 for function in functions if function.end_lineno
    }
    assert not {name: length for name, length in lengths.items() if length > MOST_LINES_OF_A_FUNCTION}
