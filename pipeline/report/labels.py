"""The report of a label store: one HTML page that a person reads, without a script and without a network.

It shows what the manifest says of all labels, and draws a bounded sample of them. What it leaves out: anything that
needs a model.
"""

from typing import Any

import numpy as np
import pyarrow as pa
from markupsafe import Markup

from pipeline.config import SUMS, RewardConfig
from pipeline.report.bias import BiasSection, bias_by_aggregation, bias_section, has_tokens
from pipeline.report.charts import draw_histogram, draw_scatter
from pipeline.report.markup import compact, minus, render
from pipeline.report.page import Reproduction, Tile, facts, page
from pipeline.report.responses import Decode, draw_responses
from pipeline.report.sentences import length_sentence, pairs_by_length_sentence, reward_sentence
from pipeline.rewards.aggregations import AGGREGATIONS
from pipeline.store.summary import accuracy_text, plain, signed, summary_rows

Manifest = dict[str, Any]
Chart = tuple[str, list[str], Markup]  # a section's title, its sentences, and what is drawn


def draw_report(manifest: Manifest, labels: pa.Table, decode: Decode) -> str:
    """The page as text (write it as UTF-8).

    Args:
        manifest: what the run says of itself: `summary` (of all labels) is needed, all else may be missing.
        labels: a sample of the store's labels, with its columns; all siblings of a prompt or none. Where their token
            lists are empty, the reward is of another kind than ours, and what speaks of tokens is left out.
        decode: the text piece of each token id, as many pieces as ids.
    """
    config, summary = manifest.get("config") or {}, manifest["summary"]
    model, tokenwise, online = _model(manifest), has_tokens(labels), _of_online_run(manifest)
    reward, inputs = _section(config, "reward"), _inputs(manifest)
    drawn = labels.num_rows > 0
    first = "r" if reward.get("aggregation", "sum") in SUMS else "l"
    return page(
        "labels",
        f"Rollouts of {model}" if online else f"Rewards {'inside' if tokenwise else 'of'} {model}",
        facts=facts(manifest, manifest.get("fingerprint")),
        labelled=f"{summary['labels']:,} response{'' if summary['labels'] == 1 else 's'}",
        model=model,
        tokenwise=tokenwise,
        online=online,
        steps=f"{len(inputs):,} step{'' if len(inputs) == 1 else 's'}",
        sources=[str(name) for name in _section(config, "rewards")],
        inputs=[str(name) for name in inputs],
        aggregation=reward.get("aggregation", "sum"),
        formula=formula(reward),
        tiles=_tiles(manifest),
        charts=_charts(manifest, labels, tokenwise) if drawn else [],
        bias=_bias(manifest, labels, tokenwise) if drawn else None,
        responses=draw_responses(labels, decode, first) if drawn and tokenwise else None,
        figures=[(name, minus(value)) for name, value in summary_rows(summary)] if summary["labels"] else [],
        errors=_errors(manifest),
        reproduction=None if online else _reproduction(manifest),
    )


def formula(reward: dict[str, Any]) -> Markup:
    """The reward of a response, a paragraph each: the aggregation, what it is made of, and the constants."""
    aggregation = reward.get("aggregation", "sum")
    return render(
        "formula",
        aggregation=aggregation,
        words=AGGREGATIONS[aggregation].formula if aggregation in AGGREGATIONS else aggregation,  # of a later version
        alpha=f"{reward.get('alpha', 1.0):g}",
        gamma=f"{reward.get('gamma', 1.0):g}",
        floor=f"{reward['min_weight']:g}" if reward.get("min_weight") else "",
        initial=bool(reward.get("subtract_initial_value")),
    )


def _model(manifest: Manifest) -> str:
    """The last part of the model's name; a folder `.../x/model` keeps both of its names."""
    config = manifest.get("config") or {}
    known = _section(manifest, "model").get("name") or _section(config, "model").get("name")
    name = str(known or "a language model").rstrip("/")
    return "/".join(name.split("/")[-2:]) if name.endswith("/model") else name.rpartition("/")[2]


def _inputs(manifest: Manifest) -> list[str]:
    paths = _section(manifest.get("config") or {}, "input").get("paths") or []
    return [each["name"] for each in manifest["inputs"]] if manifest.get("inputs") else paths


def _reproduction(manifest: Manifest) -> Reproduction:
    fingerprint = f"Fingerprint {manifest['fingerprint']}" if manifest.get("fingerprint") else ""
    note = "The same fingerprint gives the same labels."
    return Reproduction.of(manifest, "endoreward label run.toml", note, [fingerprint])


def _of_online_run(manifest: Manifest) -> bool:
    """Whether a store holds what a policy sampled while it was trained."""
    return bool(_section(manifest.get("config") or {}, "rewards"))


def _tiles(manifest: Manifest) -> list[Tile]:
    summary, timing = manifest["summary"], manifest.get("timing") or {}
    pairs, reward, errors = summary["pairs"], summary["reward"], sum((manifest.get("errors") or {}).values())
    tiles: list[Tile] = []
    if pairs:
        share, interval = accuracy_text(pairs).split(" ", 1)
        tiles.append((share, "accuracy", f"of {pairs['pairs']:,} pairs {interval}"))
        tiles.append((signed(pairs["margin"]["mean"]), "mean margin", f"± {plain(pairs['margin']['std'])}"))
    elif reward["mean"] is not None:
        tiles.append((signed(reward["mean"]), "mean reward", f"± {plain(reward['std'])}"))
    rows = (manifest.get("counts") or {}).get("rows")
    tiles.append((compact(summary["labels"]), "labels", f"of {rows:,} input rows" if rows else ""))
    speed = timing.get("tokens_per_second")
    pace = f"{speed:,.0f} tokens a second" if speed else ""
    tiles.append((compact(summary["tokens"]["response"]), "tokens scored", pace))
    if errors:
        tiles.append((compact(errors), "errors", "not labelled"))
    return [(minus(value), name, minus(note)) for value, name, note in tiles]


def _charts(manifest: Manifest, labels: pa.Table, tokenwise: bool) -> list[Chart]:
    summary, config = manifest["summary"], manifest.get("config") or {}
    reward, tokens = labels["reward"].to_numpy(), labels["num_tokens"].to_numpy()
    preference = np.array(labels["preference"].to_pylist(), dtype=object)
    kinds = {kind or "other": preference == kind for kind in ("chosen", "rejected", None)}
    rewards = {name: reward[mask] for name, mask in kinds.items() if mask.any()}
    lengths = {name: tokens[mask] for name, mask in kinds.items() if mask.any()}
    drawn = _drawn_from(manifest, labels)
    settings = _section(config, "reward") if tokenwise else None
    across = []
    if (
        settings is not None
        and settings.get("aggregation", "sum") in SUMS
        and not settings.get("subtract_initial_value")
    ):
        across = ["The sum holds V(s₁), which differs between prompts and cancels within a pair."]
    sentences = [length_sentence(summary, settings), pairs_by_length_sentence(summary), *across, *drawn]
    return [
        ("Rewards", [reward_sentence(summary), *drawn], draw_histogram(rewards)),
        ("Length", sentences, draw_scatter(lengths, rewards)),
    ]


def _bias(manifest: Manifest, labels: pa.Table, tokenwise: bool) -> BiasSection | None:
    if not manifest["summary"]["pairs"]:
        return None
    stored = RewardConfig.model_validate(_section(manifest.get("config") or {}, "reward"))
    drawn = _drawn_from(manifest, labels)
    drawn += ["Every aggregation is made of the same stored tokens; the first is the store's."] if tokenwise else []
    return bias_section(bias_by_aggregation(labels, stored), drawn)


def _drawn_from(manifest: Manifest, labels: pa.Table) -> list[str]:
    count, total = labels.num_rows, manifest["summary"]["labels"]
    return [] if count == total else [f"Drawn from {count:,} of {total:,} labels."]


def _errors(manifest: Manifest) -> list[tuple[str, str]]:
    """Reasons and counts, the most frequent first."""
    errors = manifest.get("errors") or {}
    ranked = sorted(errors.items(), key=lambda item: (-item[1], item[0]))
    return [(reason, f"{count:,}") for reason, count in ranked] if sum(errors.values()) else []


def _section(config: dict[str, Any], name: str) -> dict[str, Any]:
    return config.get(name) or {}
