"""The page of a training run: what was trained on what, where it started and ended, and its curves.

It shows what run.json and metrics.jsonl hold. Left out: anything that needs a model; what a run's figures are worth on a
benchmark is the page of an evaluation.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.report.page import Reproduction, facts, listed, page
from pipeline.report.runs import (
    curves_section,
    ends_table,
    last_part,
    learning_config,
    policy_name,
    prompt_view,
    read_config,
    readable,
    reward_words,
    settings_rows,
    tiles,
)
from pipeline.report.runs import ordered as ordered_by
from pipeline.store.summary import plain
from pipeline.training.config import OBJECTIVES, PAIR_OBJECTIVES, SECTION_OF, TrainConfig
from pipeline.training.documents import Run
from pipeline.training.metrics import EVAL, MetricRow, ends, finite

FIRST = ("loss", "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "reward", "kl")
CLIPPED = 0.5  # share of the steps whose gradient was clipped that is worth a word
GAP = 0.1  # accuracy in training above that on kept prompts that is worth a word


def training_page(
    run: Run,
    metrics: list[MetricRow],
    figures: Mapping[str, Any] | None = None,
    samples: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The page as text (write it as UTF-8). Raises StoreError where the configuration is of another version.

    Args:
        run: its manifest, or run.json of one that is not done.
        metrics: the rows of metrics.jsonl; there may be none.
        figures: by name, what else was measured of the policy.
        samples: `prompt` (a text or messages), and answers to it by who gave them.
    """
    names = ordered(metrics)
    return page(
        "training",
        title(run),
        facts=facts(run.created, run.fingerprint),
        sentence=sentence(run),
        tiles=tiles(run, metrics, ("rewards/accuracies", "reward", "loss")),
        observations=observations(run, metrics),
        ends=ends_table(metrics, names),
        curves=curves_section(run, metrics, names),
        figures=readable((name.replace("_", " "), value) for name, value in (figures or {}).items()),
        settings=_settings(run, metrics),
        examples=readable(run.examples),
        labels=[(each.path, reward_words(each.reward, each.model), each.fingerprint[:12]) for each in run.labels],
        notes=run.notes,
        samples=[_sample(sample) for sample in samples],
        reproduction=_reproduction(run),
    )


def title(run: Run) -> str:
    """`DPO on hh-labels`."""
    names = [last_part(each.path) for each in run.labels]
    names = [f"{len(names)} label stores"] if len(names) > 3 else names
    return f"{_objective(run)[0]} on {listed(names) if names else 'labels'}"


def sentence(run: Run) -> str:
    """What was trained, how and on what."""
    config = read_config(run, TrainConfig)
    rank = config.lora.rank
    what = f"A LoRA adapter of rank {rank} on {policy_name(run)}" if rank else f"All weights of {policy_name(run)}"
    length = f" for {run.steps:,} step{'' if run.steps == 1 else 's'}" if run.steps else ""
    unit = "pairs" if run.objective in PAIR_OBJECTIVES else "prompts"
    size = f" of {config.train.batch_size:,} {unit}" if length else ""
    rewards = list(dict.fromkeys(reward_words(each.reward, each.model) for each in run.labels))
    by = f". The labels hold {listed(rewards)}" if rewards else ""
    return f"{what}, trained{length}{size} by {_objective(run)[1]}{by}."


def ordered(metrics: list[MetricRow]) -> list[str]:
    """Names of what was measured, as the page has them in order."""
    return ordered_by(metrics, FIRST)


def settings(run: Run) -> dict[str, Any]:
    """The settings of the run's objective, by name and in the document's order; none for an objective that has none."""
    return run.config.get(SECTION_OF.get(run.objective, run.objective)) or {}


def observations(run: Run, metrics: list[MetricRow]) -> list[str]:
    """What a person should see in the curves, in sentences that depend on them."""
    sentences = (
        _unfinished(run, metrics),
        _not_finite(metrics),
        _both_below_zero(run, metrics),
        _overfitted(metrics),
        _past_its_best(metrics),
        _clipped(run, metrics),
    )
    return list(filter(None, sentences))


def _unfinished(run: Run, metrics: list[MetricRow]) -> str:
    if metrics and metrics[-1]["step"] < run.steps:
        return f"The run is not finished: this is step {metrics[-1]['step']:,} of {run.steps:,}."
    return ""


def _not_finite(metrics: list[MetricRow]) -> str:
    known = {step for step, _ in finite(metrics, "loss")}
    broken = [row["step"] for row in metrics if "loss" in row and row["step"] not in known]
    if not broken:
        return ""
    many = f"in {len(broken):,} steps, first in step {broken[0]:,}" if len(broken) > 1 else f"in step {broken[0]:,}"
    return f"The loss was not finite {many}: try a smaller learning rate."


def _both_below_zero(run: Run, metrics: list[MetricRow]) -> str:
    chosen, rejected = ends(metrics, "rewards/chosen"), ends(metrics, "rewards/rejected")
    if not chosen or not rejected or run.objective not in ("dpo", "ipo"):
        return ""
    if not (rejected[1] < chosen[1] < 0 and chosen[1] < chosen[0]):
        return ""
    return (
        "Both rewards ended below 0: the policy finds the chosen responses less likely than the reference does, and the "
        "rejected ones still less."
    )


def _overfitted(metrics: list[MetricRow]) -> str:
    train, held_out = ends(metrics, "rewards/accuracies"), ends(metrics, f"{EVAL}rewards/accuracies")
    if not train or not held_out or train[1] - held_out[1] < GAP:
        return ""
    return (
        f"At the end {train[1]:.0%} of the training pairs are told right, but {held_out[1]:.0%} of the kept ones: the policy "
        "learnt some pairs by heart."
    )


def _past_its_best(metrics: list[MetricRow]) -> str:
    losses = finite(metrics, f"{EVAL}loss")
    if len(losses) <= 2:
        return ""
    step, least = min(losses, key=lambda point: point[1])
    last = losses[-1][1]
    if not (least < last and last - least > 0.1 * (losses[0][1] - least)):
        return ""
    return (
        f"The loss on kept prompts was lowest at step {step:,} ({plain(least)}) and {plain(last)} at the end; best/ holds "
        "the model of that step."
    )


def _clipped(run: Run, metrics: list[MetricRow]) -> str:
    limit, norms = learning_config(run).optimizer.max_grad_norm, finite(metrics, "grad_norm")
    clipped = sum(norm > limit for _, norm in norms) / len(norms) if limit and norms else 0.0
    if clipped <= CLIPPED:
        return ""
    return f"The gradient was clipped to a norm of {limit:g} in {clipped:.0%} of the steps."


def _settings(run: Run, metrics: list[MetricRow]) -> list[tuple[str, str]]:
    rows: list[list[Any]] = [["Objective", _objective(run)[0]]]
    rows += [[f"{run.objective}, {name.replace('_', ' ')}", value] for name, value in settings(run).items()]
    resumed = [f"{again.step:,}" for again in run.repeated]
    again = [["Started again after step", listed(resumed) if resumed else None]]
    batch = [["Batch size", read_config(run, TrainConfig).train.batch_size]]
    return settings_rows(run, metrics, rows, batch, again)


def _sample(sample: Mapping[str, Any]) -> dict[str, Any]:
    answers = [(when, text) for when, text in sample.items() if when != "prompt" and text is not None]
    return {"prompt": prompt_view(sample.get("prompt")), "answers": answers}


def _reproduction(run: Run) -> Reproduction:
    fingerprints = [f"Fingerprint {run.fingerprint}"]
    fingerprints += [f"Fingerprint of {last_part(each.path)}: {each.fingerprint}" for each in run.labels]
    note = "The same fingerprint gives the same losses: to the last bit on CPUs, but for rounding on GPUs."
    return Reproduction.of(run.command or "endoreward train run.toml", run.config, run.versions, note, fingerprints)


def _objective(run: Run) -> tuple[str, str]:
    return OBJECTIVES.get(run.objective, (run.objective, run.objective))
