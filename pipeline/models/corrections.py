"""Models that give wrong numbers under some of the transformers versions that we take, corrected before they are run.

A correction goes by what the model is and has, not by the version: where none is needed it changes nothing.
"""

from typing import Any

import torch


def correct(model: Any) -> None:
    """Make the model, a Hugging Face one of any kind, compute what its architecture says; a second time changes nothing.

    - An attention with a soft cap is not computed by sdpa, which has none: before transformers 5.21, which takes eager
      attention itself, Gemma 2 and others of its kind lost their cap in silence.
    - Dynamic RoPE goes back to its first frequencies after a longer sequence (`_remember_longest`).
    """
    for module in model.modules():
        if getattr(module, "attn_logit_softcapping", None) and module.config._attn_implementation == "sdpa":
            model.set_attn_implementation("eager")
        dynamic = "dynamic" in str(getattr(module, "rope_type", None))
        if dynamic and _remember_longest not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_remember_longest)


def _remember_longest(rope: torch.nn.Module, inputs: Any) -> None:
    """Before transformers 5.13 a dynamic RoPE without kinds of layers writes its longest sequence where it does not read it,
    so that it stays scaled for all that follows."""
    if hasattr(rope, "None_max_seq_len_cached"):
        rope.max_seq_len_cached = rope.None_max_seq_len_cached
