"""Layers under `torch.compile` give the labels that they give without: traced here, and not fused, which takes a compiler."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.models.scoring import Scorer
from pipeline.tokens import TokenizedTurn

VOCABULARY = 60


@pytest.fixture(scope="module")
def scorers() -> tuple[Scorer, Scorer]:
    """The same model, as it is and compiled."""
    with pytest.MonkeyPatch.context() as path:
        path.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        from compiled import compile_layers

    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, num_attention_heads=4, num_key_value_heads=2, **shape))
    return Scorer(model), Scorer(compile_layers(copy.deepcopy(model), "eager"))


def turns() -> list[TokenizedTurn]:
    rng = np.random.default_rng(0)

    def draw(length: int) -> np.ndarray:
        return rng.integers(1, VOCABULARY, length)

    prompts = [draw(length) for length in (1, 7, 20)]
    return [TokenizedTurn(prompt, draw(length), []) for prompt in prompts for length in (1, 9, 14)]


@pytest.mark.slow
def test_compiled_layers_give_the_labels_whatever_is_in_the_batch(scorers: tuple[Scorer, Scorer]) -> None:
    plain, compiled = scorers
    assert compiled.layout == "packed" and not compiled.notes
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"], "something was compiled"
    due, together = plain.score(turns()), compiled.score(turns())
    compiled.budget_tokens = 1
    alone = compiled.score(turns())
    for one, both, single in zip(due, together, alone, strict=True):
        for name in ("q", "values", "logprobs"):
            ours = getattr(both, name)
            np.testing.assert_allclose(ours, getattr(one, name), atol=1e-5)
            np.testing.assert_allclose(ours, getattr(single, name), atol=1e-5)
