"""Models that give wrong numbers under some of the transformers versions that we take, corrected before they are run.

A correction goes by what the model is and has, not by the version: where none is needed it changes nothing.
"""

from types import MethodType
from typing import Any

import torch

SWITCHING = ("phi3", "phimoe", "phi4_multimodal")  # model_type of those that drop their cache while they generate


def correct(model: Any) -> None:
    """Make the model, a Hugging Face one of any kind, compute what its architecture says; a second time changes nothing.

    - An attention with a soft cap is not computed by sdpa, which has none: before transformers 5.21, which takes eager
      attention itself, Gemma 2 and others of its kind lost their cap in silence.
    - Dynamic RoPE goes back to its first frequencies after a longer sequence (`_remember_longest`).
    - Phi 3 and its kind generate beyond `original_max_position_embeddings` from all tokens (`_recompute_whole`).
    """
    for module in model.modules():
        if getattr(module, "attn_logit_softcapping", None) and module.config._attn_implementation == "sdpa":
            model.set_attn_implementation("eager")
        dynamic = "dynamic" in str(getattr(module, "rope_type", None))
        if dynamic and _remember_longest not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_remember_longest)
    if model.config.model_type in SWITCHING and hasattr(model, "prepare_inputs_for_generation"):
        model.prepare_inputs_for_generation = MethodType(_recompute_whole, model)


def _remember_longest(rope: torch.nn.Module, inputs: Any) -> None:
    """Before transformers 5.13 a dynamic RoPE without kinds of layers writes its longest sequence where it does not read it,
    so that it stays scaled for all that follows."""
    if hasattr(rope, "None_max_seq_len_cached"):
        rope.max_seq_len_cached = rope.None_max_seq_len_cached


def _recompute_whole(model: Any, input_ids: torch.Tensor, past_key_values: Any = None, **kwargs: Any) -> Any:
    """`prepare_inputs_for_generation` of a model that drops its cache where its RoPE takes the long factors. Before
    transformers 5.20, and Phi 4 Multimodal to this day (5.23), it is then given the last token alone, and goes on as if there
    were no other."""
    limit = getattr(model.config, "original_max_position_embeddings", None)
    if limit and past_key_values and input_ids.shape[1] > limit >= past_key_values.get_seq_length():
        kwargs["next_sequence_length"] = None
    return type(model).prepare_inputs_for_generation(model, input_ids, past_key_values=past_key_values, **kwargs)
