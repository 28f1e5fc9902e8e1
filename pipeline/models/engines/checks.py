"""What an engine cannot run, in a sentence, before anything starts."""

import importlib.util
import os
from typing import Any

from pipeline.apart import Apart, Died
from pipeline.errors import ConfigError
from pipeline.models.loading import ModelSource, load_settings, load_tokenizer

CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Of vLLM 0.30's attention on a CPU, which fails at its first forward with others."""

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""That vLLM 0.30 makes room for."""


def check_vllm(model: ModelSource, device: str, key: str, takes_weights: bool = False, lora_rank: int = 0) -> None:
    """Raises ConfigError where vLLM is not installed or cannot run the model.

    Args:
        key: of the configuration, that asks for it.
        takes_weights: whether a learner's weights are to go into it.
        lora_rank: of the adapters that are all of these; 0 for none.
    """
    other = f"take {key} = transformers"
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:  # a folder of this name is no package
        raise ConfigError(f"{key} = vllm: it is not installed; pip install 'endoreward[vllm]', or {other}")
    if lora_rank > LORA_RANKS[-1]:
        raise ConfigError(
            f"lora.rank = {lora_rank}: vLLM has adapters of a rank up to {LORA_RANKS[-1]}; lower it, or {other}"
        )
    settings = load_settings(model)
    size = head_size(settings)
    if device == "cpu" and size not in CPU_HEAD_SIZES:
        raise ConfigError(
            f"{key} = vllm: the attention heads of {model.name} are of size {size}, and vLLM has "
            f"{', '.join(map(str, CPU_HEAD_SIZES))} on a CPU; {other}"
        )
    check_vocabulary(model, settings, key)
    named = list(getattr(settings, "architectures", None) or [])
    known = _known_architectures()
    if known is not None and not set(named) & known:
        raise ConfigError(f"{key} = vllm: it has no architecture {' or '.join(named) or 'of no name'}; {other}")
    if takes_weights and (strange := _strange_names(model, settings)):
        raise ConfigError(
            f"{key} = vllm: {model.name} stores its weights under other names than transformers holds them under "
            f"({', '.join(strange[:3])}), so a learner's would not arrive; {other}"
        )


def check_vocabulary(model: ModelSource, settings: Any, key: str) -> None:
    """Raises ConfigError where the tokenizer has tokens that the model does not know."""
    largest = max(load_tokenizer(model).get_vocab().values())
    known = settings.get_text_config().vocab_size
    if largest >= known:
        raise ConfigError(
            f"{key} = vllm: the tokenizer of {model.name} has tokens up to {largest} and the model knows {known}; resize its "
            f"embeddings, or take {key} = transformers"
        )


def head_size(settings: Any) -> int:
    text = settings.get_text_config()
    size: int = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return size


def _known_architectures() -> set[str] | None:
    """vLLM's, asked in a process of its own: it changes what it is imported into. None where it does not say."""
    beside = Apart()
    try:
        return beside.call(_architectures, timeout_s=120.0)
    except (Died, Exception):
        return None  # what it cannot load it says itself, later
    finally:
        beside.stop()


def _architectures() -> set[str]:
    from vllm.model_executor.models.registry import ModelRegistry

    return set(ModelRegistry.get_supported_archs())


def _strange_names(model: ModelSource, settings: Any) -> list[str]:
    """Weights of transformers' model that its checkpoint, a local folder, does not have under the same name."""
    from safetensors import safe_open

    from pipeline.models.engines.weights import Held

    if not os.path.isdir(model.name):
        return []
    stored: set[str] = set()
    for name in os.listdir(model.name):
        if name.endswith(".safetensors"):
            with safe_open(os.path.join(model.name, name), "numpy") as file:
                stored.update(file.keys())
    held = Held.of(settings)
    if not stored:
        return []
    alike = stored | {f"{prefix}.{name}" for name in stored for prefix in ("model", "transformer", "gpt_neox")}
    return [name for name in held.shapes if name not in alike and not any(held.tied.get(n) == name for n in alike)]
