"""How many tokens a device has room for, where the configuration leaves that open."""

from typing import Any

import torch

BUDGET_TOKENS = 16384
"""Tokens forwarded at once: with as many, products of matrices are as fast as a GPU makes them."""
SHARE = 0.5
"""Of what is free once a model is loaded: the rest is for activations, for the cache while it grows, for others on the GPU."""


def cache_token_bytes(settings: Any, itemsize: int) -> int:
    """Of one token's keys and values in all layers.

    Args:
        settings: a Hugging Face configuration.
        itemsize: bytes of one number.
    """
    text = settings.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(2 * text.num_hidden_layers * heads * size * itemsize)


def held_tokens(settings: Any, itemsize: int, free: int) -> int:
    """Tokens whose keys and values fill `SHARE` of `free` bytes; `BUDGET_TOKENS` at least: a budget that is too large is
    halved when memory runs out, one that is too small stays."""
    return max(BUDGET_TOKENS, int(SHARE * free) // cache_token_bytes(settings, itemsize))


def sampling_budget(model: Any) -> int:
    """Tokens that a generator holds at once, for a model that lies on its device."""
    weight = model.get_input_embeddings().weight
    if weight.device.type != "cuda":
        return BUDGET_TOKENS
    free, _ = torch.cuda.mem_get_info(weight.device)
    return held_tokens(model.config, weight.element_size(), free)
