"""An online run's directory, beside what every training run has (`pipeline.training.run`), and what the run is.

OUTPUT/results.json      accuracy before and after, with 95% intervals
OUTPUT/samples.jsonl     a few samples of each measurement
OUTPUT/repeated.json     what was done twice after a kill
OUTPUT/rollouts/         every batch as a label store, where rl.keep_rollouts
"""

import hashlib
from collections.abc import Mapping
from typing import Any

from pipeline import storage
from pipeline.config import TokensConfig
from pipeline.models.loading import identify_model
from pipeline.rewards.labellers.base import open_renderer
from pipeline.rl.config import RlConfig
from pipeline.rl.prompts import Prompts
from pipeline.rl.reward_sections import RewardSource
from pipeline.store import LabelStore
from pipeline.tokens import read_texts
from pipeline.training.run import described

RESULTS = "results.json"
SAMPLES = "samples.jsonl"
REPEATED = "repeated.json"
ROLLOUTS = "rollouts"
LEFT_BY_RUN = ("metrics.jsonl", RESULTS, SAMPLES, REPEATED)  # to be forgotten where another run takes its place
RUN = "run."  # before what describes the run, in the description of its kept rollouts
ADDED: dict[str, Any] = {"rl.mask_truncated": False, "rl.lag": 0, "rl.refill": 0, "reward.token_certainty": False}
"""Fields that earlier versions lacked, and the values under which a run is what it was there: these are not described."""
LEARNT_FROM = ("rewards.", "reward.", "rewarding.", "tokens.", "policy.", "reference.", "prompts.", "input.")
LEARNT_FROM_RL = ("rl.batch_size", "rl.group_size", "rl.max_new_tokens")
"""What of a description decides which samples a run learns from, beside its weights and random numbers."""


def describe_rl(
    config: RlConfig,
    prompts: Prompts,
    held_out: Prompts | None,
    dtype: str,
    device: str,
    workers: int,
    deepspeed: str | None,
) -> dict[str, Any]:
    """All that decides the bits of an online run, flat: dotted name to value. Raises ConfigError where a model or the chat
    template cannot be read."""
    algorithm = config.rl.algorithm
    critic = algorithm == "ppo" and config.ppo.value == "critic" and config.credit == "tokens"
    bootstraps = critic and any(source.kind == "relative" for source in config.rewards.values())
    description = described(
        config, ["rl", algorithm, "tokens", "reward", "rewarding"], dtype, device, workers, deepspeed
    )
    del description["rl.keep_rollouts"]  # it changes nothing of what is learnt
    del description["tokens.sampled"]  # nor can this be set
    for name, default in ADDED.items():
        if description[name] == default:
            del description[name]
    corrected = {"rl.correction": config.correction, "rl.correction_cap": config.rl.correction_cap}
    for name in corrected:
        del description[name]
    return description | {
        "tokens.template": _template(config.tokens),
        "tokens.date": config.tokens.date if open_renderer(config.policy, config.tokens).asks_for_date else None,
        "rl.replay": config.rl.replay and LabelStore(config.rl.replay).fingerprint(),
        **({} if config.sampler.engine == "transformers" else {"sampler.engine": config.sampler.engine}),
        "rl.credit": config.credit,
        "rl.kl_estimator": config.rl.kl,
        **(corrected if config.correction != "none" else {}),
        **({"ppo.after_cut": "critic"} if bootstraps else {}),  # versions before had 0 there
        **{
            f"rewards.{name}.{field}": value
            for name, source in config.rewards.items()
            for field, value in _source(config, source).items()
        },
        **{f"input.{name}": getattr(config.input, name) for name in ("prompt_key", "messages_key")},
        **{
            f"input.{name}": value
            for name in ("context_key", "history_key", "layout")
            if (value := getattr(config.input, name)) is not None
        },
        "prompts.digest": prompts.digest,
        "prompts.shapes": list(prompts.shapes),
        "prompts.count": len(prompts.prompts),
        "held_out.digest": held_out.digest if held_out else None,
        "held_out.shapes": list(held_out.shapes) if held_out else None,
        "held_out.check": _content(config.held_out.check),
        "held_out.answer_key": config.held_out.answer_key,
        "held_out.seed": config.held_out.seed,
    }


def learnt_from(description: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a description that a replay has to share with the run that it replays."""
    return {
        name: value for name, value in description.items() if name.startswith(LEARNT_FROM) or name in LEARNT_FROM_RL
    }


def replay_differences(stored: Mapping[str, Any], description: Mapping[str, Any]) -> list[str]:
    """A clause for each thing that a replay learns from and that the run which was kept had otherwise, or only one of them
    has. What is None is not set.

    Args:
        kept: of the store (`pipeline.rl.rollout_store.describe_rollouts`), the run's own below `run.`.
        description: of this run (`describe_rl`).
    """
    own = {name.removeprefix(RUN): value for name, value in stored.items() if name.startswith(RUN)}
    there, here = learnt_from(own), learnt_from(description)
    return [
        f"{name} {_told('was', there.get(name))} and {_told('is', here.get(name))}"
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name)
    ]


def _told(verb: str, value: Any) -> str:
    return f"{verb} not set" if value is None else f"{verb} {value!r}"


def _content(function: str | None) -> str | None:
    """`name sha256` of `path.py:name`: what it does, wherever it lies. Anything else as it is."""
    path, _, name = (function or "").rpartition(":")
    if not path.endswith(".py"):
        return function
    return f"{name} {hashlib.sha256(storage.read_bytes(path)).hexdigest()}"


def _template(tokens: TokensConfig) -> str:
    """auto and none as they are, and what a file holds as its sha256, wherever it lies."""
    text = read_texts(tokens).get(tokens.template)
    return tokens.template if text is None else hashlib.sha256(text.encode()).hexdigest()


def _source(config: RlConfig, source: RewardSource) -> dict[str, Any]:
    fields = source.model_dump(exclude={"model", "revision", "reference", "reference_revision"})
    if source.kind not in ("endogenous", "relative", "teacher"):
        return fields | {"function": _content(source.function)}
    own = config.reward_model
    model = own.named(source.model, source.revision)
    fields["model"] = identify_model(model, model.dtype)
    if source.reference:
        fields["reference"] = identify_model(own.named(source.reference, source.reference_revision), own.dtype)
    return fields
