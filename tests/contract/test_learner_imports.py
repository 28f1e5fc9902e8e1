"""The learner's log pi and its losses run where there is torch, transformers and numpy, and no configuration is read: their
modules import none, but for types."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
TRAINING = ROOT / "pipeline/training"
MODULES = [
    *(TRAINING / f"{name}.py" for name in ("batch", "divergence", "logprobs", "policy")),
    *sorted((TRAINING / "objectives").glob("*.py")),
]


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(TRAINING)))
def test_no_configuration_is_imported(module: Path) -> None:
    imported = set()
    for statement in ast.parse(module.read_text()).body:  # at run time; types are below `if TYPE_CHECKING`
        if isinstance(statement, ast.ImportFrom):
            imported.add(statement.module or "")
        elif isinstance(statement, ast.Import):
            imported |= {each.name for each in statement.names}
    assert not {name for name in imported if "config" in name.split(".") or name.startswith("pydantic")}
