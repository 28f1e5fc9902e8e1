"""From a model's name to its tokenizer, weights and identity. Local folders, those of an object store, which are copied to
this machine first, and the Hugging Face hub alike.

Code that a model folder brings and pickled weights are refused unless asked for.
"""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, Protocol

from pipeline import storage
from pipeline.errors import ConfigError
from pipeline.models.pictures.families import FAMILIES
from pipeline.tokens import UNBOUNDED

WEIGHED = (".safetensors", ".json", ".model", ".bin", ".jinja", ".py", ".txt", ".tiktoken")


class ModelSource(Protocol):
    """Which model to load, and what it may do: a `ModelConfig`, or any object with these attributes, each documented there.
    So this module needs no pydantic, which a machine that only runs models may lack."""

    @property
    def name(self) -> str: ...
    @property
    def revision(self) -> str | None: ...
    @property
    def dtype(self) -> str: ...
    @property
    def trust_remote_code(self) -> bool: ...
    @property
    def allow_pickle(self) -> bool: ...


def load_tokenizer(config: ModelSource) -> Any:
    """Raises ConfigError where there is none to load."""
    from transformers import AutoTokenizer

    with _explained(config) as name:
        tokenizer = AutoTokenizer.from_pretrained(name, **_source(config))
        template = processor_settings(config).get("chat_template") if _sees(name, config) else None
        if template is not None:  # of those that keep it with their processor
            tokenizer.chat_template = template
        return tokenizer


def processor_settings(config: ModelSource) -> dict[str, Any]:
    """What the files of the model's processor say beside its image processor: `processor_config.json` and the chat template.
    Empty where there are none. Raises ConfigError."""
    from transformers.processing_utils import ProcessorMixin

    with _explained(config) as name:
        settings: dict[str, Any] = ProcessorMixin.get_processor_dict(name, revision=config.revision)[0]
        return settings


def load_image_processor(config: ModelSource, pillows: str) -> Any:
    """The model's image processor: of torchvision where that is installed, else of Pillow. Raises ConfigError.

    Args:
        pillows: the class of Pillow's, for versions of transformers that choose none without torchvision.
    """
    try:
        import PIL  # noqa: F401
    except ImportError:
        raise ConfigError('pictures need Pillow: pip install "endoreward[pictures]"') from None
    import transformers

    with _explained(config) as name:
        try:
            return transformers.AutoImageProcessor.from_pretrained(name, **_source(config))
        except ImportError:
            return getattr(transformers, pillows).from_pretrained(name, revision=config.revision)


def _sees(name: str, config: ModelSource) -> bool:
    """Whether it is a model of a family whose pictures are read."""
    from transformers import PretrainedConfig

    stated = PretrainedConfig.get_config_dict(name, revision=config.revision)[0]
    return stated.get("model_type") in FAMILIES


def load_settings(config: ModelSource) -> Any:
    """The model's own configuration. Raises ConfigError where there is none to load."""
    from transformers import AutoConfig

    with _explained(config) as name:
        settings = AutoConfig.from_pretrained(name, **_source(config))
        if os.path.isdir(name):
            _check_weights(name, config.allow_pickle)
        return settings


def load_model(config: ModelSource, device: str, gpus: int = 1) -> Any:
    """The causal LM on its device, in evaluation mode; over `gpus` GPUs of this process when that is more than one. A
    vision-language model whole, where transformers has no class for its language model alone.

    Args:
        device: "cpu" or "cuda".
    """
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
    )

    kind = type(load_settings(config))
    sees = kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and kind not in MODEL_FOR_CAUSAL_LM_MAPPING
    loader = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    return _load(loader, config, device, gpus, "causal LM", "an encoder, a classifier")


def load_classifier(config: ModelSource, device: str, gpus: int = 1) -> Any:
    """The sequence-classification model, such as a trained scalar reward model; otherwise as `load_model`.

    Another checkpoint is refused, a causal LM too: transformers would give it a head of random numbers.
    """
    from transformers import AutoModelForSequenceClassification

    kind = "sequence classifier"
    return _load(AutoModelForSequenceClassification, config, device, gpus, kind, "a causal LM, an encoder")


def _load(loader: Any, config: ModelSource, device: str, gpus: int, kind: str, others: str) -> Any:
    """Raises ConfigError where the weights are not those of `loader`'s `kind` of model; `others` is what they may be."""
    import torch

    options: dict[str, Any] = {"dtype": getattr(torch, resolve_dtype(config.dtype, device))}
    if gpus > 1:
        options["device_map"] = "auto"  # needs accelerate
    elif device != "cpu" and _places_weights():
        options["device_map"] = {"": device}  # no second copy on the host
    if not config.allow_pickle:
        options["use_safetensors"] = True
    with _explained(config) as name:
        model, loading = loader.from_pretrained(name, **_source(config), **options, output_loading_info=True)
        lacking = sorted(loading["missing_keys"]) + sorted(str(key) for key in loading["mismatched_keys"])
        if lacking:
            shown = ", ".join(lacking[:3]) + (" ..." if len(lacking) > 3 else "")
            raise ConfigError(
                f"the weights of {config.name} are not those of its {kind}: {len(lacking)} "
                f"{'tensor' if len(lacking) == 1 else 'tensors'} would be made up ({shown}); "
                f"is it {others}, or an incomplete download?"
            )
        return (model if "device_map" in options else model.to(device)).eval()


def _places_weights() -> bool:
    """Whether transformers can read weights straight to a device: with accelerate, and where ZeRO-3 does not part them."""
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
    from transformers.utils.import_utils import is_accelerate_available

    return bool(is_accelerate_available()) and not is_deepspeed_zero3_enabled()


def resolve_dtype(dtype: str, device: str) -> str:
    if dtype != "auto":
        return dtype
    return "bfloat16" if device == "cuda" else "float32"


def context_length(settings: Any, tokenizer: Any) -> int:
    """The most tokens the model takes, prompt and response together: as its configuration states, else as its
    tokenizer does."""
    text = settings.get_text_config()
    stated = [getattr(text, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len")]
    for limits in (stated, [getattr(tokenizer, "model_max_length", None)]):
        known = [n for n in limits if isinstance(n, int) and 0 < n < UNBOUNDED]
        if known:
            return min(known)
    return UNBOUNDED


def identify_model(config: ModelSource, dtype: str) -> dict[str, Any]:
    """What the fingerprint says of the weights: the content of a folder, name and commit of a hub model.

    The folder's own name is left out: the same weights at another place are the same model.
    """
    name = on_this_machine(config.name)
    if os.path.isdir(name):
        return {"content": folder_digest(name), "dtype": dtype}
    return {"name": config.name, "revision": config.revision, "dtype": dtype}


def on_this_machine(name: str) -> str:
    """A folder in an object store by its copy; another name as it is."""
    if not storage.is_objects(name):
        return name
    try:
        return storage.local_copy(name)
    except FileNotFoundError:
        raise ConfigError(f"there is no model folder {name}") from None


def _check_weights(folder: str, allow_pickle: bool) -> None:
    """Raises where a folder's weights cannot be loaded: before any actor tries. Reads only the files' headers."""
    from safetensors import safe_open

    names = [name for name in os.listdir(folder) if name.endswith(".safetensors")]
    for name in names:
        with safe_open(os.path.join(folder, name), "numpy"):
            pass
    if not names and not allow_pickle:
        raise OSError("it has no *.safetensors")


def _source(config: ModelSource) -> dict[str, Any]:
    return {"revision": config.revision, "trust_remote_code": config.trust_remote_code}


class _explained:
    """Turns whatever loading raises into one sentence that names the model and the remedy."""

    def __init__(self, config: ModelSource):
        self.config = config

    def __enter__(self) -> str:
        """The name to load by: on this machine where it is a folder."""
        if not self.config.name:
            raise ConfigError("no model: give --model, a local folder or a model hub's name")
        name = on_this_machine(self.config.name)
        if os.path.exists(name) and not os.path.isdir(name):
            raise ConfigError(
                f"model.name = {name} is a file; give the folder that holds config.json and *.safetensors"
            )
        if os.path.isdir(name) and not os.access(os.path.join(name, "config.json"), os.R_OK):
            raise ConfigError(
                f"the model folder {self.config.name} has no config.json that can be read; is it a Hugging Face model?"
            )
        looks_local = name.startswith(("/", "./", "../", "~")) or name.count("/") > 1
        if looks_local and not os.path.isdir(name):
            raise ConfigError(f"there is no model folder {name}")
        return name

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or not isinstance(error, Exception) or isinstance(error, ConfigError):
            return
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        remedy = (
            "is it a folder with config.json, tokenizer and *.safetensors, or a model hub's name that can be reached?"
        )
        if "trust_remote_code" in str(error):
            remedy = "it brings code of its own; read it, then allow it with --set model.trust_remote_code=true"
        elif "accelerate" in str(error).lower():
            remedy = "a model over several GPUs needs accelerate: pip install 'endoreward[multi-gpu]'"
        elif "safetensors" in str(error) and not self.config.allow_pickle:
            remedy = "pickled weights can run code; convert them, or allow them with --set model.allow_pickle=true"
        raise ConfigError(f"cannot load the model {self.config.name}: {first}; {remedy}") from error


def folder_digest(path: str) -> str:
    """sha256 over the files of a model folder that decide its numbers: weights, configuration, tokenizer."""
    names = sorted(n for n in os.listdir(path) if n.endswith(WEIGHED))
    stats = [os.stat(os.path.join(path, name)) for name in names]
    return _folder_digest(path, tuple(names), tuple((each.st_size, each.st_mtime_ns) for each in stats))


@lru_cache(maxsize=8)
def _folder_digest(path: str, names: tuple[str, ...], stamps: tuple[tuple[int, int], ...]) -> str:
    """Of these files as they are at these stamps; read once where several stores ask."""
    with ThreadPoolExecutor() as pool:
        digests = pool.map(lambda name: _file_digest(os.path.join(path, name)), names)
    return hashlib.sha256("\n".join(f"{n} {d}" for n, d in zip(names, digests, strict=True)).encode()).hexdigest()


def _file_digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
