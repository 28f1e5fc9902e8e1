"""constraints-lowest.txt has every lower bound of pyproject.toml, and constraints.txt a version inside each range."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]


def _ranges() -> dict[str, Requirement]:
    """What a user's environment has of ours, by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["multi-gpu"]]
    return {canonicalize_name(each.name): each for each in map(Requirement, lines)}


def _pins(file: str) -> dict[str, Version]:
    lines = [line.partition("#")[0].strip() for line in (ROOT / file).read_text().splitlines()]
    pairs = [line.split("==") for line in lines if line]
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def test_lowest_versions_are_the_lower_bounds() -> None:
    bounds = {
        name: [Version(part.version) for part in each.specifier if part.operator == ">="]
        for name, each in _ranges().items()
    }
    assert bounds == {name: [pin] for name, pin in _pins("constraints-lowest.txt").items()}


def test_pins_are_in_the_ranges() -> None:
    pins = _pins("constraints.txt")
    outside = {name: str(pins[name]) for name, each in _ranges().items() if pins[name] not in each.specifier}
    assert not outside
    assert {"torch", "transformers", "ray", "pyarrow"} <= _ranges().keys()
