"""A wheel, built and installed for real: one package on the import path, and all of it imports from there."""

import os
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
# Refuses the checkout's names, which an editable installation in this environment would find.
IMPORT_ALL = """
import importlib, pkgutil, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("pipeline", "actors", "jobs"):
            raise AssertionError(f"{name} is imported as in a checkout")

sys.meta_path.insert(0, Refuse())
import endoreward
names = [module.name for module in pkgutil.walk_packages(endoreward.__path__, "endoreward.")]
for name in names:
    importlib.import_module(name)
assert endoreward.pipeline.apart.Apart().call(abs, -3) == 3  # in a process that a sentence of code starts
[model] = sys.argv[1:]
print(len(names), endoreward.__file__, endoreward.Scorer.from_pretrained(model, device="cpu").score("345+678=", "1023").reward)
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
    modules = {path.relative_to(site / "endoreward") for path in (site / "endoreward").rglob("*.py")}
    folders = [path.relative_to(ROOT) for top in SOURCES[-3:] for path in (ROOT / top).rglob("*.py")]
    assert modules == {
        *folders,
        *(path.relative_to(ROOT / "endoreward") for path in (ROOT / "endoreward").glob("*.py")),
    }


@pytest.mark.timeout(300)
def test_an_installed_wheel_imports_nothing_as_in_a_checkout(site: Path, tmp_path: Path) -> None:
    """Every module; beside modules of a user's that have the names which the checkout's packages have."""
    for name in SOURCES[-3:]:
        (tmp_path / f"{name}.py").write_text("raise RuntimeError")
    model = ROOT / "examples/addition/model"
    command = _python(site, tmp_path, "-m", "endoreward", "label", "--help")
    assert command.startswith("usage: endoreward label")
    count, file, reward = _python(site, tmp_path, "-c", IMPORT_ALL, str(model)).split()[-3:]
    assert int(count) > 200 and Path(file) == site / "endoreward/__init__.py"
    assert float(reward) == Scorer.from_pretrained(model, device="cpu").score("345+678=", "1023").reward


def _python(path: Path, folder: Path, *arguments: str) -> str:
    places = os.pathsep.join([str(path), sysconfig.get_paths()["purelib"]])
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env={**os.environ, "PYTHONPATH": places},
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
