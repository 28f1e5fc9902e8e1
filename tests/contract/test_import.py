"""`import endoreward`, in a process of its own: quick, and refused where another package hides ours."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from endoreward.origin import FOLDERS, refuse_foreign

ROOT = Path(__file__).parents[2]


def test_the_import_is_quick_and_light() -> None:
    code = (
        "import time; begun = time.process_time(); import endoreward; took = time.process_time() - begun; import sys, json; "
        "heavy = sorted({'torch', 'ray', 'pydantic', 'numpy', 'pyarrow', 'transformers', 'pipeline'} & sys.modules.keys()); "
        "endoreward.read_labels; later = sorted({'torch', 'ray'} & sys.modules.keys()); "
        "print(json.dumps([took, heavy, later]))"
    )
    runs = [json.loads(_python("-c", code).stdout) for _ in range(2)]
    assert min(took for took, _, _ in runs) < 0.1
    assert runs[0][1:] == [[], []]


@pytest.mark.parametrize("name", FOLDERS)
def test_a_foreign_package_that_hides_ours_is_named(name: str, tmp_path: Path) -> None:
    refuse_foreign()  # ours are
    foreign = tmp_path / name
    foreign.mkdir()
    (foreign / "__init__.py").touch()
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    sentence = (
        f"`import {name}` gives {foreign}, which hides endoreward's own {ROOT / name}: rename that one, or install"
    )
    command = _python("-m", "endoreward", "label", "--help", cwd=tmp_path, env={"PYTHONPATH": path})
    assert (command.returncode, command.stdout) == (2, "") and command.stderr.startswith(f"endoreward: {sentence}")
    notebook = _python("-c", "from endoreward import Scorer", cwd=tmp_path, env={"PYTHONPATH": path})
    assert notebook.returncode == 1 and sentence in notebook.stderr.splitlines()[-1]


def test_a_foreign_module_or_folder_hides_ours_likewise(tmp_path: Path) -> None:
    (tmp_path / "pipeline.py").touch()
    run = _python("-c", "import endoreward; endoreward.Scorer", cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
    assert f"`import pipeline` gives {tmp_path / 'pipeline.py'}, which hides" in run.stderr
    (tmp_path / "pipeline.py").unlink()
    (tmp_path / "jobs").mkdir()  # a folder without __init__.py hides nothing
    run = _python("-c", "import endoreward; endoreward.Scorer", cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
    assert run.returncode == 0, run.stderr


def _python(*arguments: str, cwd: Path = ROOT, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=60
    )  # fmt: skip
