"""Whether `pipeline`, `actors` and `jobs` are ours: common words, which a folder beside a notebook may have for a name.

A wheel has them within `endoreward`, where nothing hides them (docs/decisions/0013-the-front-door.md). Beside a checkout, and
after an editable installation of one, they are top-level names.
"""

import os
import sys
from importlib.util import find_spec

FOLDERS = ("pipeline", "actors", "jobs")


def refuse_foreign() -> None:
    """Raises ImportError where another module of such a name hides ours: it names both and the remedy."""
    inside = os.path.dirname(os.path.abspath(__file__))
    if os.path.isdir(os.path.join(inside, FOLDERS[0])):
        return
    checkout = os.path.dirname(inside)
    for name in FOLDERS:
        ours, place = os.path.join(checkout, name), _place(name)
        if place is not None and os.path.realpath(place) != os.path.realpath(ours):
            raise ImportError(
                f"`import {name}` gives {place}, which hides endoreward's own {ours}: rename that one, or install endoreward "
                f"into this environment by `pip install {checkout}` (not editable), which keeps its packages within its own"
            )


def _place(name: str) -> str | None:
    """The file or the package's folder that a top-level name stands for; None where there is none."""
    module = sys.modules.get(name)
    file: str | None = getattr(module, "__file__", None) if module else None
    if module is None:
        spec = find_spec(name)
        if spec is None:
            return None
        file = spec.origin if spec.has_location else next(iter(spec.submodule_search_locations or []), None)
        if not spec.has_location:
            return file
    if file is None:
        return None
    return os.path.dirname(file) if os.path.basename(file) == "__init__.py" else file
