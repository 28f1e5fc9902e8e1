"""The page of an online run: accuracy before and after, what was rewarded, curves, where the time went, what was said.

It shows what manifest.json, results.json, metrics.jsonl and samples.jsonl hold; its parts are those of the page of a
training run where they say the same. Left out: whether a rise of the accuracy is more than chance. Before and after are
measured on the same prompts, so that intervals that overlap do not say that nothing changed.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.report.markup import esc, minus
from pipeline.report.page import listed, page, reproduce, section, table, wide_section
from pipeline.report.shares import Interval, draw_intervals, figure_text, interval_text
from pipeline.report.training import (
    Run,
    curves_section,
    ends_section,
    figure,
    header,
    last_part,
    lede,
    notes_section,
    policy_name,
    prompt_text,
    reward_words,
    setup_section,
    tiles,
)
from pipeline.report.training import observations as observations_of_training
from pipeline.report.training import ordered as ordered_by
from pipeline.rl.config import ALGORITHMS, RewardSource, RlConfig
from pipeline.training.metrics import MetricRow, ends, finite

Results = Mapping[str, Any]  # of results.json

FIRST = (
    "accuracy",
    "reward",
    "kl",
    "entropy",
    "completions/mean_length",
    "completions/clipped_ratio",
    "repetition",
    "distinct",
    "frac_reward_zero_std",
)
TIME = "time/"  # in front of the seconds that a part of a step took
PARTS = {"sampling": 1.0, "rewarding": 0.72, "learning": 0.45, "weights": 0.25, "other": 0.0}  # their shades
BAR_WIDTH, BAR_HEIGHT = 720, 30
SHOWN = 600  # characters of an answer; the others are folded


def is_online(run: Run) -> bool:
    """Whether `run` is one of `rl`, and not of `train`."""
    return "rl" in run["config"]


def rl_page(
    run: Run, metrics: list[MetricRow], results: Results | None = None, samples: Sequence[MetricRow] = ()
) -> str:
    """The page as text (write it as UTF-8).

    Args:
        run: manifest.json: `created` and `config` are needed, all else may be missing.
        metrics: the rows of metrics.jsonl; there may be none.
        results: results.json; accuracies may be missing.
        samples: the lines of samples.jsonl.
    """
    results = results or {}
    names = ordered(metrics)
    of_sources = [name for name in names if name.startswith("rewards/") and name.endswith("/mean")]
    shown = [*FIRST[:2], *(of_sources if len(of_sources) > 1 else []), *FIRST[2:]]
    sections = [
        header(run, title(run), sentence(run)),
        tiles(run, metrics, ("reward", "kl"), _accuracy_tile(results)),
        *map(lede, observations(run, metrics, results)),
        _accuracy(results),
        _warnings(metrics),
        _rewards(run, metrics),
        curves_section(
            run,
            metrics,
            [name for name in shown if name in names],
            [again["step"] for again in run.get("repeated") or []],
            folded=[name for name in names if name not in shown],
        ),
        _samples(samples),
        _time(metrics),
        ends_section(metrics, names),
        _settings(run, metrics),
        _repeated(run),
        notes_section(run),
        _reproduce(run),
    ]
    return page(title(run), sections)


def title(run: Run) -> str:
    """`GRPO on gsm8k`."""
    names = [last_part(path) for path in _config(run).input.paths]
    names = [f"{len(names)} sets of prompts"] if len(names) > 3 else names
    return f"{_algorithm(run)[0]} on {listed(names) if names else 'prompts'}"


def sentence(run: Run) -> str:
    """What was trained, how and for which reward."""
    config = _config(run)
    rank, told = config.lora.rank, config.rl
    what = f"A LoRA adapter of rank {rank} on {policy_name(run)}" if rank else f"All weights of {policy_name(run)}"
    steps = run.get("steps")
    length = f" for {steps:,} step{'' if steps == 1 else 's'}" if steps else ""
    size = f" of {told.batch_size:,} prompts, {_count(told.group_size, 'response')} to each," if length else ""
    replayed = f" on the samples of {last_part(told.replay)}" if told.replay else ""
    rewards = [f"{_weight(source)}{source_words(config, source)}" for source in config.rewards.values()]
    return f"{what}, trained{length}{size} by {_algorithm(run)[1]}{replayed}. The reward is {listed(rewards)}."


def source_words(config: RlConfig, source: RewardSource) -> str:
    """What one of the rewards is."""
    model = last_part(source.model or config.reward_model.name)
    said = {
        "endogenous": reward_words({"reward": config.reward.model_dump(), "model": model}),
        "relative": f"log π of {model or 'the reward model'} relative to {last_part(source.reference)}",
        "maths": "whether the final answer is right",
        "function": f"the function {source.function.rpartition(':')[2]}",
        "length": "a penalty of length",
    }[source.kind]
    said += " under a rubric of its own" if source.system_prompt else ""
    return said + (f" (for {source.share:.0%} of the prompts)" if source.share < 1 else "")


def ordered(metrics: list[MetricRow]) -> list[str]:
    """Names of what was measured, as the page has them in order; the seconds of `time/` have a section of their own."""
    return [name for name in ordered_by(metrics, FIRST) if not name.startswith(TIME)]


def observations(run: Run, metrics: list[MetricRow], results: Results) -> list[str]:
    """What a person should see first, in sentences that depend on what was measured."""
    said = []
    reward, (before, after) = ends(metrics, "reward"), (_measured(results, when) for when in ("before", "after"))
    if reward and before and after and reward[1] > reward[0] and after[0] < before[0]:
        clear = before[1] and after[1] and after[1][1] < before[1][0]
        said.append(
            f"The reward rose and the accuracy fell{'' if clear else ', though perhaps by chance'}: the policy learnt what is "
            "paid and not what is right. Try fewer steps, or a larger rl.kl_coefficient."
        )
    if warned := list(_warned(metrics)):
        many = f"{len(warned):,} warnings came up, the first" if len(warned) > 1 else "A warning came up"
        said.append(f"{many} at step {warned[0][0]:,}.")
    return said + observations_of_training(run, metrics)


def accuracy_rows(results: Results) -> list[list[str]]:
    """Before and after: when, the accuracy, and its 95% interval, of what is known."""
    found = ((when, _measured(results, when)) for when in ("before", "after"))
    return [[when, figure_text(known[0]), interval_text(known[1])] for when, known in found if known]


def _config(run: Run) -> RlConfig:
    return RlConfig.model_validate(run["config"])


def _algorithm(run: Run) -> tuple[str, str]:
    name = _config(run).rl.algorithm
    return ALGORITHMS.get(name, (name, name))


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _weight(source: RewardSource) -> str:
    return "" if source.weight == 1 else minus(f"{source.weight:g} \N{MULTIPLICATION SIGN} ")


# Accuracy, warnings


def _measured(results: Results, when: str) -> tuple[float, Interval | None] | None:
    value = results.get(f"accuracy_{when}")
    return None if value is None else (value, results.get(f"accuracy_{when}_interval"))


def _accuracy_tile(results: Results) -> list[tuple[str, str, str]]:
    before, after = (_measured(results, when) for when in ("before", "after"))
    note = f"{figure_text(before[0])} before" if before else ""
    return [(figure_text(after[0]), "accuracy, held-out prompts", note)] if after else []


def _accuracy(results: Results) -> str:
    rows = [
        (f"{when} the run", *known) for when in ("before", "after") if (known := _measured(results, when)) is not None
    ]
    if not rows:
        return ""
    count = results.get("held_out")
    said = f"Share of right answers to {f'{count:,} ' if count else ''}prompts that nothing was learnt from."
    return section("Accuracy", [said, "With 95% intervals."], draw_intervals(rows, None, "Accuracy"))


def _warned(metrics: list[MetricRow]) -> Iterator[tuple[int, str]]:
    for row in metrics:
        warnings = row.get("warnings")
        yield from ((row["step"], str(said)) for said in warnings or [] if isinstance(warnings, list))


def _warnings(metrics: list[MetricRow]) -> str:
    items = "".join(f"<li><b>Step {step:,}.</b> {esc(said)}</li>" for step, said in _warned(metrics))
    said = "What the run said of itself as it went: signs, and no proofs."
    return section("Warnings", [said], f'<ul class="notes">{items}</ul>') if items else ""


# Rewards, time, samples


def _rewards(run: Run, metrics: list[MetricRow]) -> str:
    config, rows = _config(run), []
    for name, source in config.rewards.items():
        key = f"rewards/{name}/mean"
        known = ends(metrics, key)
        path = [figure(key, value) for value in known] if known else ["", ""]
        rows.append([f"{esc(name)}<small>{esc(source_words(config, source))}</small>", f"{source.weight:g}", *path])
    said = "What was paid for: the sum of these, each times its weight. Start and end are those of the curves."
    return section("Rewards", [said], table(rows, ["source", "weight", "start", "end"]))


def _time(metrics: list[MetricRow]) -> str:
    """A bar and a table of what the seconds went to: the parts that were measured, and what is left of the steps."""
    spent = {name: math.fsum(value for _, value in finite(metrics, TIME + name)) for name in PARTS}
    steps = [value for _, value in finite(metrics, "step_time")]
    spent["other"] = max(0.0, math.fsum(steps) - math.fsum(spent.values()))
    spent = {name: seconds for name, seconds in spent.items() if seconds}
    whole, count = math.fsum(spent.values()), len(steps) or sum(f"{TIME}learning" in row for row in metrics)
    if not whole or not count:
        return ""
    bars, rows, left = [], [], 0.0
    for name, seconds in spent.items():
        mark = f'<rect class="dot spent" fill-opacity="{PARTS[name]}"'
        width, share = BAR_WIDTH * seconds / whole, f"{seconds / whole:.1%}"
        place = f'x="{left:.1f}" y="0" width="{width:.1f}" height="{BAR_HEIGHT}"'
        bars.append(f"{mark} {place}><title>{name} {share}</title></rect>")
        swatch = f'<svg class="swatch" viewBox="0 0 14 10" aria-hidden="true">{mark} width="14" height="10"/></svg>'
        rows.append([f"{swatch}{name}", f"{seconds / count:.3g} s", share])
        left += width
    label = "Share of the time: " + ", ".join(f"{name} {seconds / whole:.1%}" for name, seconds in spent.items())
    frame = f'class="chart" viewBox="0 0 {BAR_WIDTH} {BAR_HEIGHT}" role="img" aria-label="{label}"'
    said = [f"A step took {whole / count:.3g} s on average. Measuring on held-out prompts is not in it."]
    if waited := [value for _, value in finite(metrics, f"{TIME}waiting")]:
        said.append(f"Learners waited for samples and rewards for {math.fsum(waited) / whole:.0%} of the time.")
    return section("Time", said, f"<svg {frame}>{''.join(bars)}</svg>{table(rows, ['', 'a step', 'share'])}")


def _samples(lines: Sequence[MetricRow]) -> str:
    """The first, a middle and the last evaluation side by side: a card for each prompt."""
    by_step = {line["step"]: line["samples"] for line in lines}  # a step that was done again counts once
    steps = sorted(by_step)
    chosen = sorted({steps[0], steps[(len(steps) - 1) // 2], steps[-1]}) if steps else []
    cards: dict[str, list[str]] = {}
    for step in chosen:
        for sample in by_step[step]:
            cards.setdefault(str(sample["prompt"]), []).append(_answers(step, sample["responses"]))
    drawn = "".join(
        f'<article class="card">{prompt_text(prompt)}<div class="sides three">{"".join(sides)}</div></article>'
        for prompt, sides in cards.items()
    )
    said = "Some prompts with the responses of highest and of lowest reward, or with the only one."
    return wide_section("Samples", [said], drawn) if drawn else ""


def _answers(step: int, responses: Sequence[MetricRow]) -> str:
    names = ["best", "worst"] if len(responses) == 2 else [""] * len(responses)
    drawn = "".join(_answer(name, response) for name, response in zip(names, responses, strict=True))
    return f'<section class="response"><h4><b class="chosen">step {step:,}</b></h4>{drawn}</section>'


def _answer(name: str, response: MetricRow) -> str:
    verdict = {True: "right", False: "wrong"}.get(response.get("right"), "")  # type: ignore[arg-type]
    cut = "" if response.get("finished", True) else "cut off"
    facts = [verdict, f"reward {_short(response['reward'])}", _count(response["tokens"], "token"), cut]
    parts = response.get("parts") or {}
    of_parts = ", ".join(f"{source} {_short(value)}" for source, value in parts.items()) if len(parts) > 1 else ""
    text = str(response["text"])
    more = f"<details><summary>{len(text) - SHOWN:,} more characters</summary>{_said(text[SHOWN:])}</details>"
    head = f"<b>{name}</b> " if name else ""
    return (
        f"<h4>{head}{esc(', '.join(filter(None, facts)))}"
        f"{f'<small>{esc(of_parts)}</small>' if of_parts else ''}</h4>"
        f"{_said(text[:SHOWN])}{more if len(text) > SHOWN else ''}"
    )


def _short(value: float) -> str:
    return minus(f"{value:.4g}")


def _said(text: str) -> str:
    return f'<div class="answer" dir="auto">{esc(text)}</div>'


# How it was made


def _settings(run: Run, metrics: list[MetricRow]) -> str:
    config = _config(run)
    told, short = config.rl, _algorithm(run)[0]
    own = getattr(config, told.algorithm).model_dump()
    place = {"reward": "taken off the reward", "loss": "in the loss"}[told.kl_in]
    kl = f"{told.kl_coefficient:g} \N{MULTIPLICATION SIGN} {told.kl}, {place}" if told.kl_coefficient else "none"
    method = [
        ["Algorithm", short],
        *([f"{short}, {name.replace('_', ' ')}", value] for name, value in own.items()),
        ["Credit", {"response": "the response's reward to every token", "tokens": "rewards to go"}[config.credit]],
        ["KL to the reference", kl],
        ["Coefficient of the entropy", told.entropy_coefficient or None],
        ["Penalty of a response cut off", config.rewarding.missing_eos_penalty or None],
        ["Samples of", last_part(told.replay) if told.replay else None],
    ]
    batch = [
        ["Prompts", run.get("prompts")],
        ["Held-out prompts", run.get("held_out") or None],
        ["Prompts of a step", told.batch_size],
        ["Responses to a prompt", told.group_size],
        ["Longest response, tokens", told.max_new_tokens],
        ["Epochs of a batch", told.epochs],
        ["Optimiser steps of an epoch", told.minibatches],
    ]
    pools = [["Samplers", config.sampler.actors], ["Rewarders", config.rewarder.actors]]
    return setup_section(run, metrics, method, batch, pools)


def _repeated(run: Run) -> str:
    items = []
    for again in run.get("repeated") or []:
        why = f": {again['why']}" if again.get("why") else ""
        said = f"{_count(again['repeated'], 'step')} done twice{why}."
        items.append(f"<li><b>After step {again['step']:,}.</b> {esc(said)}</li>")
    said = "Where the run went on from a checkpoint, and how much was done twice."
    return section("Started again", [said], f'<ul class="notes">{"".join(items)}</ul>') if items else ""


def _reproduce(run: Run) -> str:
    fingerprints = [f"Fingerprint {run['fingerprint']}"] if run.get("fingerprint") else []
    said = (
        "The same fingerprint asks for the same run. Where rounding differs, as between machines, one token that is sampled "
        "differently makes another run from there on."
    )
    return reproduce(run, "endoreward rl run.toml", said, "run.toml", fingerprints)
