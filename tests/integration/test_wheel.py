"""A wheel, built and installed for real: one package on the import path, and all that it holds imports from there."""

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

from endoreward import Scorer

SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "endoreward", "pipeline", "actors", "jobs")
FOLDERS = SOURCES[-3:]
# Also in a process that a line of code in a string starts.
IMPORTED = """
import sys
import endoreward
from endoreward.pipeline.apart import Apart

assert Apart().call(abs, -3) == 3
reward = endoreward.Scorer.from_pretrained(sys.argv[1], device="cpu").score("345+678=", "1023").reward
assert not {"pipeline", "actors", "jobs"} & sys.modules.keys()
print(endoreward.__file__, reward)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages with nothing but a wheel of this checkout in it."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    for name in SOURCES:
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, folder / "source" / name)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", str(folder / "source"), "--no-deps", "--no-build-isolation", "-w", folder],
        check=True, capture_output=True, timeout=200,
    )  # fmt: skip
    [wheel] = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")  # all that installing one without scripts does
    return folder / "site"


def test_a_wheel_puts_one_package_on_the_import_path(site: Path) -> None:
    names = {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")}
    assert names == {"endoreward"}
    [information] = site.glob("*.dist-info")
    assert (information / "top_level.txt").read_text().split() == ["endoreward"]
    assert {"py.typed", "pipeline", "actors", "jobs"} <= {path.name for path in (site / "endoreward").iterdir()}
    assert (site / "endoreward/pipeline/report/report.css").is_file()
    assert (site / "endoreward/jobs/serve/shims/slime.sh").is_file()
    modules = {path.relative_to(site / "endoreward") for path in (site / "endoreward").rglob("*.py")}
    folders = [path.relative_to(ROOT) for top in FOLDERS for path in (ROOT / top).rglob("*.py")]
    assert modules == {
        *folders,
        *(path.relative_to(ROOT / "endoreward") for path in (ROOT / "endoreward").glob("*.py")),
    }


def test_its_modules_import_each_other_within_the_package(site: Path) -> None:
    for module in site.rglob("*.py"):
        text = module.read_text()
        for node in ast.walk(ast.parse(text)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in names:
                assert name.partition(".")[0] not in FOLDERS, f"{module} imports {name}"
                place = site / name.replace(".", "/")
                ours = name.partition(".")[0] == "endoreward"
                assert not ours or place.is_dir() or place.with_suffix(".py").is_file(), f"{module} imports {name}"
        assert not re.search(rf"\b(from|import) ({'|'.join(FOLDERS)})(\.\w+)*( import |;)", text), module  # in a string


def test_it_works_beside_modules_that_have_the_names_of_the_checkout(site: Path, tmp_path: Path) -> None:
    for name in FOLDERS:
        (tmp_path / f"{name}.py").write_text("raise RuntimeError")
    assert _python(site, tmp_path, "-m", "endoreward", "label", "--help").startswith("usage: endoreward label")
    model = ROOT / "examples/addition/model"
    file, reward = _python(site, tmp_path, "-c", IMPORTED, str(model)).split()[-2:]
    assert Path(file) == site / "endoreward/__init__.py"
    assert float(reward) == Scorer.from_pretrained(model, device="cpu").score("345+678=", "1023").reward


def _python(path: Path, folder: Path, *arguments: str) -> str:
    places = os.pathsep.join([str(path), sysconfig.get_paths()["purelib"]])
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env={**os.environ, "PYTHONPATH": places},
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
