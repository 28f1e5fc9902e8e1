"""Models and engines of these tests: one engine a model a session, since opening one takes a minute."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SIBLING = ROOT / "examples/addition/model-3-heads"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vllm)


@pytest.fixture(scope="session")
def smollm2(shared: Path) -> str:
    """SmolLM2-135M-Instruct, made once."""
    folder = Path(os.environ.get("SMOLLM2", ROOT / "build/smollm2"))
    if not folder.is_dir():
        subprocess.run([sys.executable, shared / "models/get_smollm2.py", folder], check=True, timeout=600)
    return str(folder)


def opened(model: str, engine: str, **drawing: Any) -> Any:
    from pipeline.config import ModelConfig
    from pipeline.models.engines import Drawing, EngineSpec, open_engine

    options = {"max_new_tokens": 24, "temperature": 1.0, "logprobs": True, "budget_tokens": 8192, **drawing}
    return open_engine(EngineSpec(ModelConfig(name=model, dtype="float32"), "cpu", Drawing(**options), engine=engine))


@pytest.fixture(scope="session")
def both(smollm2: str) -> Iterator[tuple[Any, Any]]:
    """The reference and vLLM, of SmolLM2."""
    yield opened(smollm2, "transformers"), opened(smollm2, "vllm")


@pytest.fixture(scope="session")
def adders() -> Iterator[tuple[Any, Any]]:
    """The reference and vLLM, of the sibling of the addition model."""
    yield opened(str(SIBLING), "transformers"), opened(str(SIBLING), "vllm")
