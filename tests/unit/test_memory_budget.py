"""What a generator holds where nothing is configured: on a GPU, what its memory has room for."""

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig

from pipeline.models import memory

SMALL = LlamaConfig(
    vocab_size=50,
    hidden_size=48,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_of_a_cache_is_as_large_as_a_real_one(dtype: torch.dtype) -> None:
    model = AutoModelForCausalLM.from_config(SMALL, dtype=dtype)
    cache = DynamicCache(config=SMALL)
    model(torch.arange(7)[None], past_key_values=cache)
    held = sum(tensor.nbytes for layer in cache.layers for tensor in (layer.keys, layer.values))
    assert held == 7 * memory.cache_token_bytes(SMALL, dtype.itemsize)


def test_half_of_what_is_free_is_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    token = memory.cache_token_bytes(SMALL, 2)
    assert memory.held_tokens(SMALL, 2, 200_000 * token) == 100_000
    assert memory.held_tokens(SMALL, 2, 100 * token) == memory.BUDGET_TOKENS  # halved where it does not fit
    model = AutoModelForCausalLM.from_config(SMALL)
    assert memory.sampling_budget(model) == memory.BUDGET_TOKENS  # on a CPU
