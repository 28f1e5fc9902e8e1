"""The report of a label store: one HTML page that a person reads, without a script and without a network.

It shows what the manifest says of all labels, and draws a bounded sample of them, with small copies of its prompts' pictures
where these are in reach. What it leaves out: anything that needs a model.
"""

import numpy as np
import pyarrow as pa
from markupsafe import Markup

from pipeline.config import RewardConfig
from pipeline.report.bias import BiasSection, bias_by_aggregation, bias_section, has_tokens
from pipeline.report.charts import draw_histogram, draw_scatter
from pipeline.report.markup import compact, minus, render
from pipeline.report.page import OTHER_VERSION, Reproduction, Tile, facts, page
from pipeline.report.responses import Decode, draw_responses
from pipeline.report.sentences import length_sentence, pairs_by_length_sentence, reward_sentence
from pipeline.rewards.aggregations import AGGREGATIONS
from pipeline.store.manifest import Manifest
from pipeline.store.pictures import pictured_rows
from pipeline.store.summary import accuracy_text, plain, signed, summary_rows
from pipeline.store.typed import parse

Chart = tuple[str, list[str], Markup]  # a section's title, its sentences, and what is drawn


def draw_report(manifest: Manifest, labels: pa.Table, decode: Decode) -> str:
    """The page as text (write it as UTF-8).

    Args:
        manifest: what the run says of itself and of all labels.
        labels: a sample of the store's labels, with its columns; all siblings of a prompt or none. Where their token
            lists are empty, the reward is of another kind than ours, and what speaks of tokens is left out.
        decode: the text piece of each token id, as many pieces as ids.

    Raises StoreError where the reward is one of another version.
    """
    summary, model, tokenwise = manifest.summary, _model(manifest), has_tokens(labels)
    reward, sources = _reward(manifest), _sources(manifest)
    online = bool(sources)  # the store holds what a policy sampled while it was trained
    inputs = [file.name for file in manifest.inputs]
    drawn = labels.num_rows > 0
    first = "r" if reward.sums_rewards else "l"
    pictures = bool(pictured_rows(labels)) and (manifest.config.get("output") or {}).get("thumbnails", True)
    return page(
        "labels",
        f"Rollouts of {model}" if online else f"Rewards {'inside' if tokenwise else 'of'} {model}",
        facts=facts(manifest.created, manifest.fingerprint),
        labelled=f"{summary.labels:,} response{'' if summary.labels == 1 else 's'}",
        model=model,
        tokenwise=tokenwise,
        online=online,
        steps=f"{len(inputs):,} step{'' if len(inputs) == 1 else 's'}",
        sources=sources,
        inputs=inputs,
        aggregation=reward.aggregation,
        formula=formula(reward),
        tiles=_tiles(manifest),
        charts=_charts(manifest, labels, reward if tokenwise else None) if drawn else [],
        bias=_bias(manifest, labels, reward, tokenwise) if drawn and summary.pairs else None,
        responses=draw_responses(labels, decode, first, pictures) if drawn and tokenwise else None,
        pictures=pictures,
        figures=[(name, minus(value)) for name, value in summary_rows(summary)] if summary.labels else [],
        errors=_errors(manifest),
        reproduction=None if online else _reproduction(manifest),
    )


def formula(reward: RewardConfig) -> Markup:
    """The reward of a response, a paragraph each: the aggregation, what it is made of, and the constants."""
    return render(
        "formula",
        aggregation=reward.aggregation,
        words=AGGREGATIONS[reward.aggregation].formula,
        alpha=f"{reward.alpha:g}",
        gamma=f"{reward.gamma:g}",
        floor=f"{reward.min_weight:g}" if reward.min_weight else "",
        initial=reward.subtract_initial_value,
    )


def _model(manifest: Manifest) -> str:
    """The last part of the model's name; a folder `.../x/model` keeps both of its names."""
    known = (manifest.config.get("model") or {}).get("name")
    name = str(known or "a language model").rstrip("/")
    return "/".join(name.split("/")[-2:]) if name.endswith("/model") else name.rpartition("/")[2]


def _reward(manifest: Manifest) -> RewardConfig:
    """That the labels were made with; of another kind than ours, the default."""
    stored = manifest.config.get("reward") or {}
    return parse(RewardConfig.model_validate, stored, "manifest.json: config.reward", OTHER_VERSION)


def _sources(manifest: Manifest) -> list[str]:
    """Names of the rewards of an online run."""
    return list(manifest.config.get("rewards") or {})


def _reproduction(manifest: Manifest) -> Reproduction:
    note, fingerprint = "The same fingerprint gives the same labels.", f"Fingerprint {manifest.fingerprint}"
    command = manifest.command or "endoreward label run.toml"
    return Reproduction.of(command, manifest.config, manifest.versions, note, [fingerprint])


def _tiles(manifest: Manifest) -> list[Tile]:
    summary, pairs, rows = manifest.summary, manifest.summary.pairs, manifest.counts.rows
    errors, tiles = sum(manifest.errors.values()), list[Tile]()
    if pairs:
        share, interval = accuracy_text(pairs).split(" ", 1)
        tiles.append((share, "accuracy", f"of {pairs.pairs:,} pairs {interval}"))
        tiles.append((signed(pairs.margin.mean), "mean margin", f"± {plain(pairs.margin.std)}"))
    elif summary.labels:
        mean, std, _, _ = summary.reward.known()
        tiles.append((signed(mean), "mean reward", f"± {plain(std)}"))
    tiles.append((compact(summary.labels), "labels", f"of {rows:,} input rows" if rows else ""))
    speed = manifest.timing.tokens_per_second if manifest.timing else 0
    pace = f"{speed:,.0f} tokens a second" if speed else ""
    tiles.append((compact(summary.tokens.response), "tokens scored", pace))
    if errors:
        tiles.append((compact(errors), "errors", "not labelled"))
    return [(minus(value), name, minus(note)) for value, name, note in tiles]


def _charts(manifest: Manifest, labels: pa.Table, settings: RewardConfig | None) -> list[Chart]:
    """`settings`: of our reward, None where it is of another kind."""
    summary = manifest.summary
    reward, tokens = labels["reward"].to_numpy(), labels["num_tokens"].to_numpy()
    preference = np.array(labels["preference"].to_pylist(), dtype=object)
    kinds = {kind or "other": preference == kind for kind in ("chosen", "rejected", None)}
    rewards = {name: reward[mask] for name, mask in kinds.items() if mask.any()}
    lengths = {name: tokens[mask] for name, mask in kinds.items() if mask.any()}
    drawn = _drawn_from(manifest, labels)
    across = []
    if settings is not None and settings.sums_rewards and not settings.subtract_initial_value:
        across = ["The sum holds V(s₁), which differs between prompts and cancels within a pair."]
    sentences = [length_sentence(summary, settings), pairs_by_length_sentence(summary), *across, *drawn]
    return [
        ("Rewards", [reward_sentence(summary), *drawn], draw_histogram(rewards)),
        ("Length", sentences, draw_scatter(lengths, rewards)),
    ]


def _bias(manifest: Manifest, labels: pa.Table, stored: RewardConfig, tokenwise: bool) -> BiasSection | None:
    drawn = _drawn_from(manifest, labels)
    drawn += ["Every aggregation is made of the same stored tokens; the first is the store's."] if tokenwise else []
    return bias_section(bias_by_aggregation(labels, stored), drawn)


def _drawn_from(manifest: Manifest, labels: pa.Table) -> list[str]:
    count, total = labels.num_rows, manifest.summary.labels
    return [] if count == total else [f"Drawn from {count:,} of {total:,} labels."]


def _errors(manifest: Manifest) -> list[tuple[str, str]]:
    """Reasons and counts, the most frequent first."""
    ranked = sorted(manifest.errors.items(), key=lambda item: (-item[1], item[0]))
    return [(reason, f"{count:,}") for reason, count in ranked]
