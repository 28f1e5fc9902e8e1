"""The DeepSpeed configuration, derived from ours; a user's own JSON is merged into it. Imports no DeepSpeed."""

import json
from typing import Any

from pipeline import storage
from pipeline.errors import ConfigError
from pipeline.training.config import LearningConfig

OURS = {
    "optimizer": "{section}.*, which describes AdamW",
    "scheduler": "{section}.schedule and {section}.warmup",
    "fp16": "learner.dtype; float16 is not offered, because rewards of long responses overflow it",
    "train_batch_size": "{section}.batch_size and learner.budget_tokens",
    "amp": "learner.dtype",
    "torch_autocast": "learner.dtype",
    "sequence_parallel_size": "learner.workers; sequences are not split",
    "gradient_allreduce_op": "{section}.learning_rate; a step's loss is a mean over all workers",
    "tensor_parallel": "learner.zero_stage; matrices are not split otherwise",
}
"""What a user's JSON must not hold, and what says it instead; the section is the command's own."""
FIELDS = {
    "train_micro_batch_size_per_gpu": "learner.budget_tokens",
    "gradient_accumulation_steps": "learner.budget_tokens",
    "gradient_clipping": "{section}.max_grad_norm",
    "bf16.enabled": "learner.dtype",
    "zero_optimization.stage": "learner.zero_stage",
    "zero_optimization.compute_grad_norm": "{section}.max_grad_norm; metrics have the norm in any case",
    "zero_optimization.offload_optimizer.device": "learner.offload",
    "zero_optimization.offload_param.device": "learner.offload",
}
"""Our fields behind DeepSpeed's."""


def deepspeed_config(config: LearningConfig, dtype: str, text: str | None = None) -> dict[str, Any]:
    """What `deepspeed.initialize` is told.

    Micro-batches differ in number from step to step, so accumulation is the learner's: DeepSpeed sees one at a time and is
    told which is the last. Losses are divided by the step's own counts. Gradients are added up in float32.

    Args:
        dtype: resolved, "float32" or "bfloat16".
        text: the content of `learner.deepspeed`, None without one.

    Raises:
        ConfigError: where the user's JSON is none, or contradicts ours; every conflict is named.
    """
    zero: dict[str, Any] = {"stage": config.learner.zero_stage}
    if config.learner.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu"}
    if config.learner.offload == "all":
        zero["offload_param"] = {"device": "cpu"}
    ours: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.optimizer.max_grad_norm,
        # updates are immediate, or stage 1 would hold gradients in both dtypes
        "bf16": {"enabled": dtype == "bfloat16", "immediate_grad_update": True},
        "data_types": {},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # its own would be compiled on the spot
        "steps_per_print": 2**31,
    }
    if text is None:
        return _accumulating(ours)
    theirs = _read(config.learner.deepspeed or "", text)
    conflicts = [f"{key}: say it with {field}" for key, field in OURS.items() if not _left_open(theirs.get(key))]
    _merge(ours, theirs, "", conflicts)
    conflicts = [conflict.replace("{section}", config.section) for conflict in conflicts]
    if conflicts:
        raise ConfigError(
            f"learner.deepspeed = {config.learner.deepspeed} contradicts this configuration:\n  "
            + "\n  ".join(conflicts)
        )
    return _accumulating(ours)


def read_deepspeed(config: LearningConfig) -> str | None:
    """The content of `learner.deepspeed`. Raises ConfigError where it cannot be read."""
    place = config.learner.deepspeed
    if place is None:
        return None
    try:
        return storage.read_bytes(place).decode()
    except (OSError, ValueError) as error:
        raise ConfigError(f"learner.deepspeed: cannot read {place}: {error}") from None


def _accumulating(settings: dict[str, Any]) -> dict[str, Any]:
    """With the dtype in which gradients of micro-batches are added up, where a user leaves it open: float32, because in
    bfloat16 each one rounds away some of what is there; bfloat16 where even the optimiser's gradients are to be in it."""
    low = settings["bf16"].get("bf16_master_weights_and_grads") is True
    settings["data_types"].setdefault("grad_accum_dtype", "bf16" if low else "fp32")
    return settings


def _left_open(value: Any) -> bool:
    """None, "auto", switched off, or nothing but values that are left open."""
    if isinstance(value, dict):
        return value.get("enabled") is False or all(_left_open(each) for each in value.values())
    return value is None or value == "auto"


def _read(place: str, text: str) -> dict[str, Any]:
    try:
        settings = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"learner.deepspeed: {place} is not JSON: {error}") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"learner.deepspeed: {place} holds no JSON object")
    return settings


def _merge(ours: dict[str, Any], theirs: dict[str, Any], above: str, conflicts: list[str]) -> None:
    """Put `theirs` into `ours`; "auto" gives way. A value that differs from ours is a conflict."""
    for key, value in theirs.items():
        path = f"{above}{key}"
        if path in OURS or value is None or value == "auto":
            continue
        if isinstance(value, dict) and isinstance(ours.setdefault(key, {}), dict):
            _merge(ours[key], value, f"{path}.", conflicts)
        elif path in FIELDS and (key not in ours or ours[key] != value):
            mine = f"is {ours[key]!r} here" if key in ours else "is not set here"
            conflicts.append(f"{path}: {value!r} there, {mine}; say it with {FIELDS[path]}")
        elif isinstance(ours.get(key), dict):
            conflicts.append(f"{path}: {value!r} there, which DeepSpeed has a section for; write {{...}}")
        else:
            ours[key] = value
