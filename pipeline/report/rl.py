"""The page of an online run: accuracy before and after, what was rewarded, curves, where the time went, what was said.

It shows what manifest.json, results.json, metrics.jsonl and samples.jsonl hold. Left out: whether a rise of the accuracy
is more than chance. Before and after are measured on the same prompts, so that intervals that overlap do not say that
nothing changed.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from pipeline.report import training
from pipeline.report.markup import esc, minus
from pipeline.report.page import Cell, Prompt, Reproduction, Tile, facts, listed, page
from pipeline.report.runs import (
    curves_section,
    ends_table,
    figure,
    last_part,
    policy_name,
    prompt_view,
    read_config,
    reward_words,
    settings_rows,
    tiles,
)
from pipeline.report.runs import ordered as ordered_by
from pipeline.report.shares import Interval, draw_intervals, figure_text, interval_text
from pipeline.rl.algorithm_sections import ALGORITHMS
from pipeline.rl.config import RlConfig
from pipeline.rl.reward_sections import RewardSource
from pipeline.training.documents import Repeat, RlResults, Run, SampledResponse, SamplesLine
from pipeline.training.metrics import MetricRow, ends, finite

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


def rl_page(
    run: Run, metrics: list[MetricRow], results: RlResults | None = None, samples: Sequence[SamplesLine] = ()
) -> str:
    """The page as text (write it as UTF-8). Raises StoreError where the configuration is of another version.

    Args:
        run: its manifest, or run.json of one that is not done.
        metrics: the rows of metrics.jsonl; there may be none.
        results: results.json, where something was measured; accuracies may be missing.
        samples: the lines of samples.jsonl.
    """
    names = ordered(metrics)
    of_sources = [name for name in names if name.startswith("rewards/") and name.endswith("/mean")]
    shown = [*FIRST[:2], *(of_sources if len(of_sources) > 1 else []), *FIRST[2:]]
    return page(
        "rl",
        title(run),
        facts=facts(run.created, run.fingerprint),
        sentence=sentence(run),
        tiles=tiles(run, metrics, ("reward", "kl"), _accuracy_tile(results)),
        observations=observations(run, metrics, results),
        accuracy=_accuracy(results),
        held_out=f"{results.held_out:,} " if results and results.held_out else "",
        warnings=[(f"{step:,}", text) for step, text in _warned(metrics)],
        rewards=_rewards(run, metrics),
        curves=curves_section(
            run,
            metrics,
            [name for name in shown if name in names],
            folded=[name for name in names if name not in shown],
        ),
        samples=_samples(samples),
        shown=SHOWN,
        time=_time(metrics),
        ends=ends_table(metrics, names),
        settings=_settings(run, metrics),
        repeated=[_repeated(again) for again in run.repeated],
        notes=run.notes,
        reproduction=_reproduction(run),
    )


def title(run: Run) -> str:
    """`GRPO on gsm8k`."""
    names = [last_part(path) for path in _config(run).input.paths]
    names = [f"{len(names)} sets of prompts"] if len(names) > 3 else names
    return f"{_algorithm(run)[0]} on {listed(names) if names else 'prompts'}"


def sentence(run: Run) -> str:
    """What was trained, how and for which reward."""
    config = _config(run)
    rank, rl = config.lora.rank, config.rl
    what = f"A LoRA adapter of rank {rank} on {policy_name(run)}" if rank else f"All weights of {policy_name(run)}"
    length = f" for {run.steps:,} step{'' if run.steps == 1 else 's'}" if run.steps else ""
    size = f" of {rl.batch_size:,} prompts, {_count(rl.group_size, 'response')} to each," if length else ""
    replayed = f" on the samples of {last_part(rl.replay)}" if rl.replay else ""
    rewards = [f"{_weight(source)}{source_words(config, source)}" for source in config.rewards.values()]
    return f"{what}, trained{length}{size} by {_algorithm(run)[1]}{replayed}. The reward is {listed(rewards)}."


def source_words(config: RlConfig, source: RewardSource) -> str:
    """What one of the rewards is."""
    model = last_part(source.model or config.reward_model.name)
    what = {
        "endogenous": reward_words(config.reward.model_dump(), model),
        "relative": f"log π of {model or 'the reward model'} relative to {last_part(source.reference)}",
        "teacher": f"log π of {model or 'a teacher'} relative to the policy's own",
        "maths": "whether the final answer is right",
        "function": f"the function {source.function.rpartition(':')[2]}",
        "length": "a penalty of length",
    }[source.kind]
    what += " under a rubric of its own" if source.system_prompt else ""
    return what + (f" (for {source.share:.0%} of the prompts)" if source.share < 1 else "")


def ordered(metrics: list[MetricRow]) -> list[str]:
    """Names of what was measured, as the page has them in order; the seconds of `time/` have a section of their own."""
    return [name for name in ordered_by(metrics, FIRST) if not name.startswith(TIME)]


def observations(run: Run, metrics: list[MetricRow], results: RlResults | None) -> list[str]:
    """What a person should see first, in sentences that depend on what was measured."""
    sentences = []
    reward, (before, after) = ends(metrics, "reward"), (_measured(results, when) for when in ("before", "after"))
    if reward and before and after and reward[1] > reward[0] and after[0] < before[0]:
        clear = before[1] and after[1] and after[1][1] < before[1][0]
        sentences.append(
            f"The reward rose and the accuracy fell{'' if clear else ', though perhaps by chance'}: the policy learnt what is "
            "paid and not what is right. Try fewer steps, or a larger rl.kl_coefficient."
        )
    if warned := list(_warned(metrics)):
        many = f"{len(warned):,} warnings came up, the first" if len(warned) > 1 else "A warning came up"
        sentences.append(f"{many} at step {warned[0][0]:,}.")
    return sentences + training.observations(run, metrics)


def accuracy_rows(results: RlResults | None) -> list[list[str]]:
    """Before and after: when, the accuracy, and its 95% interval, of what is known."""
    accuracies = ((when, _measured(results, when)) for when in ("before", "after"))
    return [[when, figure_text(known[0]), interval_text(known[1])] for when, known in accuracies if known]


def _config(run: Run) -> RlConfig:
    return read_config(run, RlConfig)


def _algorithm(run: Run) -> tuple[str, str]:
    name = _config(run).rl.algorithm
    return ALGORITHMS.get(name, (name, name))


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _weight(source: RewardSource) -> str:
    return "" if source.weight == 1 else minus(f"{source.weight:g} \N{MULTIPLICATION SIGN} ")


# Accuracy, warnings


def _measured(results: RlResults | None, when: str) -> tuple[float, Interval | None] | None:
    return results.accuracy(when) if results is not None else None


def _accuracy_tile(results: RlResults | None) -> list[Tile]:
    before, after = (_measured(results, when) for when in ("before", "after"))
    note = f"{figure_text(before[0])} before" if before else ""
    return [(figure_text(after[0]), "accuracy, held-out prompts", note)] if after else []


def _accuracy(results: RlResults | None) -> Markup | None:
    rows = [
        (f"{when} the run", *known) for when in ("before", "after") if (known := _measured(results, when)) is not None
    ]
    return draw_intervals(rows, None, "Accuracy") if rows else None


def _warned(metrics: list[MetricRow]) -> Iterator[tuple[int, str]]:
    for row in metrics:
        warnings = row.get("warnings")
        yield from ((row["step"], str(text)) for text in warnings or [] if isinstance(warnings, list))


# Rewards, time, samples


def _rewards(run: Run, metrics: list[MetricRow]) -> list[list[Cell]]:
    """What was paid for: each source, its weight, and its reward at the start and at the end."""
    config, rows = _config(run), list[list[Cell]]()
    for name, source in config.rewards.items():
        key = f"rewards/{name}/mean"
        known = ends(metrics, key)
        path = [figure(key, value) for value in known] if known else ["", ""]
        rows.append([(name, source_words(config, source)), f"{source.weight:g}", *path])
    return rows


class Time(NamedTuple):
    """What the seconds went to: sentences, a bar, and (mark, part, seconds a step, share) each."""

    sentences: list[str]
    bar: Markup
    rows: list[tuple[Markup, str, str, str]]


def _time(metrics: list[MetricRow]) -> Time | None:
    """The parts that were measured, and what is left of the steps; None where nothing was measured."""
    spent = {name: math.fsum(value for _, value in finite(metrics, TIME + name)) for name in PARTS}
    steps = [value for _, value in finite(metrics, "step_time")]
    spent["other"] = max(0.0, math.fsum(steps) - math.fsum(spent.values()))
    spent = {name: seconds for name, seconds in spent.items() if seconds}
    whole, count = math.fsum(spent.values()), len(steps) or sum(f"{TIME}learning" in row for row in metrics)
    if not whole or not count:
        return None
    rows = [
        (Markup(_mark(name) + ' width="14" height="10"/>'), name, f"{seconds / count:.3g} s", f"{seconds / whole:.1%}")
        for name, seconds in spent.items()
    ]
    sentences = [f"A step took {whole / count:.3g} s on average. Measuring on held-out prompts is not in it."]
    if waited := [value for _, value in finite(metrics, f"{TIME}waiting")]:
        sentences.append(f"Learners waited for samples and rewards for {math.fsum(waited) / whole:.0%} of the time.")
    return Time(sentences, _draw_time(spent, whole), rows)


def _draw_time(spent: dict[str, float], whole: float) -> Markup:
    """Chart: a bar of `whole` seconds, in the parts that they were spent on."""
    bars, left = [], 0.0
    for name, seconds in spent.items():
        width = BAR_WIDTH * seconds / whole
        place = f'x="{left:.1f}" y="0" width="{width:.1f}" height="{BAR_HEIGHT}"'
        bars.append(f"{_mark(name)} {place}><title>{name} {seconds / whole:.1%}</title></rect>")
        left += width
    label = "Share of the time: " + ", ".join(f"{name} {seconds / whole:.1%}" for name, seconds in spent.items())
    frame = f'class="chart" viewBox="0 0 {BAR_WIDTH} {BAR_HEIGHT}" role="img" aria-label="{esc(label)}"'
    return Markup(f"<svg {frame}>{''.join(bars)}</svg>")


def _mark(part: str) -> str:
    """The beginning of a rectangle in the shade of a part of the time."""
    return f'<rect class="dot spent" fill-opacity="{PARTS[part]}"'


class Answer(NamedTuple):
    """One response of a sample."""

    name: str  # best or worst, where there are both
    facts: str
    rewards: str  # of each source, where there are several
    text: str


class Samples(NamedTuple):
    """The answers to one prompt, those of each evaluation side by side."""

    prompt: Prompt
    sides: list[tuple[str, list[Answer]]]  # the step, its answers


def _samples(lines: Sequence[SamplesLine]) -> list[Samples]:
    """The first, a middle and the last evaluation, by prompt."""
    by_step = {line.step: line.samples for line in lines}  # a step that was done again counts once
    steps = sorted(by_step)
    chosen = sorted({steps[0], steps[(len(steps) - 1) // 2], steps[-1]}) if steps else []
    cards: dict[str, Samples] = {}
    for step in chosen:
        for sample in by_step[step]:
            card = cards.setdefault(sample.prompt, Samples(prompt_view(sample.prompt), []))
            card.sides.append((f"{step:,}", _answers(sample.responses)))
    return list(cards.values())


def _answers(responses: Sequence[SampledResponse]) -> list[Answer]:
    names = ["best", "worst"] if len(responses) == 2 else [""] * len(responses)
    return [_answer(name, response) for name, response in zip(names, responses, strict=True)]


def _answer(name: str, response: SampledResponse) -> Answer:
    verdict = {True: "right", False: "wrong", None: ""}[response.right]
    cut = "" if response.finished else "cut off"
    parts = [verdict, f"reward {_short(response.reward)}", _count(response.tokens, "token"), cut]
    rewards = response.parts
    by_source = ", ".join(f"{source} {_short(value)}" for source, value in rewards.items()) if len(rewards) > 1 else ""
    return Answer(name, ", ".join(filter(None, parts)), by_source, response.text)


def _short(value: float) -> str:
    return minus(f"{value:.4g}")


# How it was made


def _settings(run: Run, metrics: list[MetricRow]) -> list[tuple[str, str]]:
    config = _config(run)
    rl, short = config.rl, _algorithm(run)[0]
    section = getattr(config, rl.algorithm, None)  # of an algorithm that has settings
    own = section.model_dump() if section else {}
    place = {"reward": "taken off the reward", "loss": "in the loss"}[rl.kl_in]
    kl = f"{rl.kl_coefficient:g} \N{MULTIPLICATION SIGN} {rl.kl}, {place}" if rl.kl_coefficient else "none"
    method = [
        ["Algorithm", short],
        *([f"{short}, {name.replace('_', ' ')}", value] for name, value in own.items()),
        ["Credit", {"response": "the response's reward to every token", "tokens": "rewards to go"}[config.credit]],
        ["KL to the reference", kl],
        ["Coefficient of the entropy", rl.entropy_coefficient or None],
        ["Penalty of a response cut off", config.rewarding.missing_eos_penalty or None],
        ["Steps that samples are behind", rl.lag or None],
        ["Correction", None if config.correction == "none" else f"{config.correction}, at most {rl.correction_cap:g}"],
        ["Further prompts for groups without variance", rl.refill * rl.batch_size or None],
        ["Samples of", last_part(rl.replay) if rl.replay else None],
    ]
    batch: list[list[Any]] = [
        ["Prompts", run.prompts],
        ["Held-out prompts", run.held_out or None],
        ["Prompts of a step", rl.batch_size],
        ["Responses to a prompt", rl.group_size],
        ["Longest response, tokens", rl.max_new_tokens],
        ["Epochs of a batch", rl.epochs],
        ["Optimiser steps of an epoch", rl.minibatches],
    ]
    pools = [["Samplers", config.sampler.actors], ["Rewarders", config.rewarder.actors]]
    return settings_rows(run, metrics, method, batch, pools)


def _repeated(again: Repeat) -> tuple[str, str]:
    """After which step the run went on from a checkpoint, and what was done twice."""
    why = f": {again.why}" if again.why else ""
    return f"{again.step:,}", f"{_count(again.repeated, 'step')} done twice{why}."


def _reproduction(run: Run) -> Reproduction:
    note = (
        "The same fingerprint asks for the same run. Where rounding differs, as between machines, one token that is sampled "
        "differently makes another run from there on."
    )
    command = run.command or "endoreward rl run.toml"
    return Reproduction.of(command, run.config, run.versions, note, [f"Fingerprint {run.fingerprint}"])
