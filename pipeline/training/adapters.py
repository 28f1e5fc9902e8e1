"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685), by peft: where a model gets them, and what it is with them merged.

Learner and samplers put the same adapters into the same model, so that what one has learnt the other can take by name. They
stay apart from the weights on both sides: a small change added to a weight in bfloat16 is rounded away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM

from pipeline.errors import ConfigError
from pipeline.models.loading import load_model

if TYPE_CHECKING:
    from pipeline.config import ModelConfig
    from pipeline.training.config import LoraSection


def with_adapters(model: Any, lora: LoraSection, seed: int) -> Any:
    """Put adapters, which change nothing yet, into the causal LM, in its dtype; its other weights are then frozen.

    Args:
        seed: of their first weights.

    Returns:
        peft's wrapper of the model, which itself has the adapters in it.

    Raises:
        ConfigError: where `lora.targets` names nothing in the model.
    """
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha or 2 * lora.rank,  # type: ignore[arg-type]
        target_modules=lora.targets,
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, settings, autocast_adapter_dtype=False)
    except ValueError as error:
        raise ConfigError(f"lora.targets = {lora.targets!r} does not fit {type(model).__name__}: {error}") from None


def adapter_shapes(settings: Any, lora: LoraSection) -> dict[str, list[int]]:
    """Of the adapters that `with_adapters` puts into a model of this configuration, by name; no weights are made."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(settings)
        with_adapters(model, lora, seed=0)
    return {name: list(each.shape) for name, each in model.named_parameters() if each.requires_grad}


def merged(policy: ModelConfig, adapter: str) -> Any:
    """The policy with the adapters of a folder added to its weights, rounded to their dtype."""
    from peft import PeftModel

    return PeftModel.from_pretrained(load_model(policy, "cpu"), adapter).merge_and_unload()
