"""Scorer, attention, head, learner, sampler, loading and weights handed over on a CUDA device, against float32 on the CPU: the
cases of `make gpu`, each a test."""

import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from device import cases, correctness, memory  # noqa: E402

CASES = [each for family in ("llama", "qwen3", "gemma2", "moe") for each in correctness.cases(family, "cuda", False)]
CASES += memory.cases("cuda")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case: cases.Case) -> None:
    try:
        figures = case.work()
    except cases.Skip as reason:
        pytest.skip(str(reason))
    finally:
        cases.free()
    assert figures.get("ok", True), figures
