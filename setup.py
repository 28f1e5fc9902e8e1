"""What a wheel is made of; all else is in pyproject.toml (docs/decisions/0013-the-front-door.md).

In a checkout `pipeline`, `actors` and `jobs` are top-level packages. In a wheel they lie within `endoreward`, so that nothing
else of ours is on anybody's import path, and their imports say so. An editable installation is the checkout itself.
"""

import re
import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

FOLDERS = ("pipeline", "actors", "jobs")
IMPORT = re.compile(rf"\bfrom ({'|'.join(FOLDERS)})\b(?=[.\w]* import )")


def relocated(source: str) -> str:
    """A module's text with its imports from FOLDERS below `endoreward`, those in strings and docstrings too.

    >>> relocated("from pipeline.store import commit")
    'from endoreward.pipeline.store import commit'
    """
    return IMPORT.sub(r"from endoreward.\1", source)


class BuildRelocated(build_py):
    def build_module(self, module: str, module_file: str, package: str) -> tuple[str, bool]:
        target, copied = super().build_module(module, module_file, package)
        Path(target).write_text(relocated(Path(module_file).read_text("utf-8")), "utf-8")
        return target, copied


if __name__ == "__main__":
    ours = find_packages(include=[pattern for folder in FOLDERS for pattern in (folder, f"{folder}.*")])
    if "editable_wheel" in sys.argv:
        setup(packages=["endoreward", *ours])
    else:
        setup(
            packages=["endoreward", *(f"endoreward.{package}" for package in ours)],
            package_dir={f"endoreward.{folder}": folder for folder in FOLDERS},
            cmdclass={"build_py": BuildRelocated},
        )
