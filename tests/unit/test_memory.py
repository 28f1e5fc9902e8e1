"""The scorer never holds [tokens, vocabulary]: measured in a process of its own."""

import sys

import pytest
from conftest import ROOT


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize(("responses", "length"), [pytest.param(1, 4096, marks=pytest.mark.slow), (8, 512)])
def test_a_large_vocabulary_raises_the_peak_by_under_400_mb(
    responses: int, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import head_memory

    measured = head_memory.raise_of_peak(responses, length)
    assert measured["tokens"] == 4096
    assert measured["raised_mb"] < 400
