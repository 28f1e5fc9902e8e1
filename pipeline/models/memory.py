"""How many tokens a device has room for, where the configuration leaves that open. On a CPU always `BUDGET_TOKENS`; on a GPU
by what is free once the model is loaded, over the bytes that a token costs: estimates, of transformers with gated layers."""

from typing import Any

import torch

BUDGET_TOKENS = 16384
"""Tokens forwarded at once: with as many, products of matrices are as fast as a GPU makes them."""
MOST_TOKENS = 65536
"""Forwarded at once however large the memory is: more saves little, in launches and in prompts of families that a budget
parts."""
LEAST_TOKENS = 1024
"""Of a micro-batch: a learner that runs out of memory ends, and one that forwards less is slower."""
SHARE = 0.5
"""Of what is free once a model is loaded: the rest is for activations, for the cache while it grows, for others on the GPU."""


def cache_token_bytes(settings: Any, itemsize: int) -> int:
    """Of one token's keys and values in all layers.

    Args:
        settings: a Hugging Face configuration.
        itemsize: bytes of one number.
    """
    text = settings.get_text_config()
    return int(2 * text.num_hidden_layers * _heads(text)[1] * itemsize)


def scoring_token_bytes(settings: Any, itemsize: int) -> int:
    """Of what is alive of one token while a layer is computed without gradients: norms in float32, queries, keys, values and
    what attention gives, both halves of a gated layer and their product."""
    text = settings.get_text_config()
    queries, keys = _heads(text)
    hidden = int(text.hidden_size)
    return itemsize * (4 * hidden + 3 * _inner(text) + 3 * (queries + 2 * keys)) + 4 * 2 * hidden


def training_token_bytes(settings: Any, itemsize: int, checkpoints: bool = False) -> int:
    """Of what one token leaves for the backward pass: of every layer all that a gradient needs, or with `checkpoints` its
    input, and one layer whole."""
    text = settings.get_text_config()
    queries, keys = _heads(text)
    hidden, layers = int(text.hidden_size), int(text.num_hidden_layers)
    layer = itemsize * (6 * hidden + 4 * _inner(text) + 4 * (queries + 2 * keys)) + 4 * 6 * hidden
    return layers * hidden * itemsize + layer if checkpoints else layers * layer


def held_tokens(settings: Any, itemsize: int, free: int) -> int:
    """Tokens whose keys and values fill `SHARE` of `free` bytes; `BUDGET_TOKENS` at least: a budget that is too large is
    halved when memory runs out, one that is too small stays."""
    return max(BUDGET_TOKENS, int(SHARE * free) // cache_token_bytes(settings, itemsize))


def sampling_budget(model: Any, share: float = 1.0) -> int:
    """Tokens that a generator holds at once, for a model that lies on its device.

    Args:
        share: of what is free, for one that shares its GPU.
    """
    free = _free(model, share)
    return BUDGET_TOKENS if free is None else held_tokens(model.config, _itemsize(model), free)


def paged_budget(settings: Any, itemsize: int, device: str, share: float = 1.0) -> int:
    """Tokens that an engine holds at once which loads the model itself, and has not yet."""
    if device != "cuda":
        return BUDGET_TOKENS
    from transformers import AutoModelForCausalLM  # late: others need the configuration alone

    with torch.device("meta"):
        weights = sum(each.numel() for each in AutoModelForCausalLM.from_config(settings).parameters()) * itemsize
    free, _ = torch.cuda.mem_get_info()
    return held_tokens(settings, itemsize, max(0, int(share * free) - weights))


def scoring_budget(model: Any, share: float = 1.0) -> int:
    """Tokens that are forwarded at once without gradients; at least `BUDGET_TOKENS`, as of `held_tokens`."""
    free = _free(model, share)
    if free is None:
        return BUDGET_TOKENS
    room = int(SHARE * free) // scoring_token_bytes(model.config, _itemsize(model))
    return min(MOST_TOKENS, max(BUDGET_TOKENS, room))


def training_budget(model: Any, checkpoints: bool) -> int:
    """Tokens of a micro-batch on this worker, once its optimizer is there too.

    Args:
        checkpoints: whether activations are computed twice rather than kept.
    """
    free = _free(model, 1.0)
    if free is None:
        return BUDGET_TOKENS
    room = int(SHARE * free) // training_token_bytes(model.config, _itemsize(model), checkpoints)
    return min(MOST_TOKENS, max(LEAST_TOKENS, room))


def _free(model: Any, share: float) -> int | None:
    """Bytes of the GPU that a model's input lies on; None on a CPU."""
    device = model.get_input_embeddings().weight.device
    return int(share * torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else None


def _itemsize(model: Any) -> int:
    return int(model.get_input_embeddings().weight.element_size())


def _heads(text: Any) -> tuple[int, int]:
    """Numbers of a token's queries, and of its keys, in one layer."""
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    keys = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    return int(text.num_attention_heads * size), int(keys * size)


def _inner(text: Any) -> int:
    """The width of a gated layer; of experts that of those that a token goes to."""
    experts = (getattr(text, "moe_intermediate_size", None) or 0) * (getattr(text, "num_experts_per_tok", None) or 1)
    return int(max(getattr(text, "intermediate_size", None) or 4 * text.hidden_size, experts))
