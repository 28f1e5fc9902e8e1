"""The report of a label store: one HTML page that a person reads, without a script and without a network.

It shows what the manifest says of all labels, and draws a bounded sample of them. What it leaves out: anything that
needs a model. The page of an evaluation is in `evaluation`.
"""

from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config import RewardConfig
from pipeline.report.bias import bias_by_aggregation, draw_bias, has_tokens
from pipeline.report.charts import draw_histogram, draw_scatter
from pipeline.report.markup import compact, esc, minus
from pipeline.report.page import facts, listed, page, reproduce, section, table, to_toml
from pipeline.report.reading import length_sentence, pairs_by_length_sentence, reward_sentence
from pipeline.report.responses import Decode, draw_responses
from pipeline.store.summary import accuracy_text, plain, signed, summary_rows

__all__ = ["Manifest", "draw_report", "formula", "to_toml"]

Manifest = dict[str, Any]


def draw_report(manifest: Manifest, labels: pa.Table, decode: Decode) -> str:
    """The page as text (write it as UTF-8).

    Args:
        manifest: what the run says of itself: `summary` (of all labels) is needed, all else may be missing.
        labels: a sample of the store's labels, with its columns; all siblings of a prompt or none. Where their token
            lists are empty, the reward is of another kind than ours, and what speaks of tokens is left out.
        decode: the text piece of each token id, as many pieces as ids.
    """
    config = manifest.get("config") or {}
    known = _section(manifest, "model").get("name") or _section(config, "model").get("name")
    name = str(known or "a language model").rstrip("/")
    model = "/".join(name.split("/")[-2:]) if name.endswith("/model") else name.rpartition("/")[2]
    tokenwise = has_tokens(labels)
    sections = [_header(manifest, model, tokenwise), _tiles(manifest)]
    if labels.num_rows:
        sections += [*_charts(manifest, labels, tokenwise), _bias(manifest, labels, tokenwise)]
        sections += [_responses(manifest, labels, decode)] if tokenwise else []
    if manifest["summary"]["labels"]:
        sections.append(_figures(manifest))
    else:
        sections.append('<p class="empty">No response was labelled.</p>')
    sections.append(_errors(manifest))
    if not _of_online_run(manifest):
        fingerprint = f"Fingerprint {manifest['fingerprint']}" if manifest.get("fingerprint") else ""
        said = "The same fingerprint gives the same labels."
        sections.append(reproduce(manifest, "endoreward label run.toml", said, "run.toml", [fingerprint]))
    return page(_title(manifest, model, tokenwise), sections)


def formula(reward: dict[str, Any]) -> list[str]:
    """The reward of a response in HTML, a line each: the aggregation, what it is made of, and the constants."""
    aggregation, floor = reward.get("aggregation", "sum"), reward.get("min_weight") or 0
    h, s, a = "<i>h</i>", "<i>s<sub>h</sub></i>", "<i>a<sub>h</sub></i>"
    constants = f"&alpha; = {reward.get('alpha', 1.0):g}"
    if aggregation == "mean":
        return [f"<i>R</i> = &alpha; &middot; mean<sub>{h}</sub> log &pi;({a} | {s})", constants]
    weight = "" if aggregation == "sum" else f"&gamma;<sup>{h}&minus;1</sup> "
    if floor and weight:
        weight = f"max({weight.strip()}, {floor:g}) "
    initial = " &minus; <i>V</i>(<i>s</i><sub>1</sub>)" if reward.get("subtract_initial_value") else ""
    return [
        f"<i>R</i> = &Sigma;<sub>{h}</sub> {weight}<i>r<sub>h</sub></i>{initial}",
        f"<i>r<sub>h</sub></i> = <i>Q</i>({s}, {a}) &minus; &gamma; <i>V</i>(<i>s</i><sub>{h}+1</sub>)",
        "<i>V</i>(<i>s</i>) = &alpha; log &Sigma;<sub><i>a</i></sub> exp(<i>Q</i>(<i>s</i>, <i>a</i>) / &alpha;)",
        f"{constants}, &gamma; = {reward.get('gamma', 1.0):g}",
    ]


def _header(manifest: Manifest, model: str, tokenwise: bool) -> str:
    config, summary = manifest.get("config") or {}, manifest["summary"]
    reward = _section(config, "reward")
    inputs = manifest.get("inputs") or [{"name": path} for path in _section(config, "input").get("paths") or []]
    names = [f"<b>{esc(given['name'])}</b>" for given in inputs[:3]]
    if len(inputs) > 3:
        names.append(f"{len(inputs) - 3:,} more files")
    corpus = f" from {listed(names)}" if names else ""
    labelled = f"{summary['labels']:,} response{'' if summary['labels'] == 1 else 's'}"
    said, made = f"labelled by <b>{esc(model)}</b> with one reward for the whole response.", ""
    if tokenwise:
        said = f"labelled with the reward that is already inside <b>{esc(model)}</b>. "
        said += f"Aggregation <b>{esc(reward.get('aggregation', 'sum'))}</b>:"
        made = f'<div class="formula">{"".join(f"<p>{text}</p>" for text in formula(reward))}</div>'
    if _of_online_run(manifest):
        sources = _section(config, "rewards")
        corpus, made = f" of {len(inputs):,} step{'' if len(inputs) == 1 else 's'}", ""
        said = f"sampled from <b>{esc(model)}</b> as it improved, with what it learnt from: {listed([*map(esc, sources)])}."
    return (
        f"<header>{facts(manifest, manifest.get('fingerprint'))}<h1>{esc(_title(manifest, model, tokenwise))}</h1>"
        f'<p class="lede">{labelled}{corpus}, {said}</p>{made}</header>'
    )


def _of_online_run(manifest: Manifest) -> bool:
    """Whether a store keeps what a policy sampled while it improved."""
    return bool(_section(manifest.get("config") or {}, "rewards"))


def _title(manifest: Manifest, model: str, tokenwise: bool) -> str:
    if _of_online_run(manifest):
        return f"Rollouts of {model}"
    return f"Rewards {'inside' if tokenwise else 'of'} {model}"


def _tiles(manifest: Manifest) -> str:
    summary, timing = manifest["summary"], manifest.get("timing") or {}
    pairs, reward, errors = summary["pairs"], summary["reward"], sum((manifest.get("errors") or {}).values())
    tiles: list[tuple[str, str, str]] = []
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
    drawn = "".join(
        f"<div><dt>{name}</dt><dd><b>{minus(value)}</b><small>{minus(note)}</small></dd></div>"
        for value, name, note in tiles
    )
    return f'<dl class="tiles">{drawn}</dl>'


def _figures(manifest: Manifest) -> str:
    rows = [[esc(name), esc(minus(value))] for name, value in summary_rows(manifest["summary"])]
    said = "All labels of the store. A spread is one standard deviation; a tie counts as not right."
    return section("Figures", [said], table(rows))


def _charts(manifest: Manifest, labels: pa.Table, tokenwise: bool) -> list[str]:
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
        and settings.get("aggregation", "sum") != "mean"
        and not settings.get("subtract_initial_value")
    ):
        across = ["The sum holds V(s₁), which differs between prompts and cancels within a pair."]
    return [
        section("Rewards", [reward_sentence(summary), *drawn], draw_histogram(rewards)),
        section(
            "Length",
            [length_sentence(summary, settings), pairs_by_length_sentence(summary), *across, *drawn],
            draw_scatter(lengths, rewards),
        ),
    ]


def _bias(manifest: Manifest, labels: pa.Table, tokenwise: bool) -> str:
    if not manifest["summary"]["pairs"]:
        return ""
    stored = RewardConfig.model_validate(_section(manifest.get("config") or {}, "reward"))
    drawn = _drawn_from(manifest, labels)
    drawn += ["Every aggregation is made of the same stored tokens; the first is the store's."] if tokenwise else []
    return draw_bias(bias_by_aggregation(labels, stored), drawn)


def _drawn_from(manifest: Manifest, labels: pa.Table) -> list[str]:
    count, total = labels.num_rows, manifest["summary"]["labels"]
    return [] if count == total else [f"Drawn from {count:,} of {total:,} labels."]


def _responses(manifest: Manifest, labels: pa.Table, decode: Decode) -> str:
    said = (
        '<h2>Token by token</h2><p class="said">Some responses, taken evenly by rank. Point at a token to read its '
        "figures. No value follows the last token, so its r is all of Q and stands out.</p>"
    )
    aggregation = _section(manifest.get("config") or {}, "reward").get("aggregation")
    drawn = draw_responses(labels, decode, "l" if aggregation == "mean" else "r")
    return f'<section class="wide">{said}{drawn}</section>'


def _errors(manifest: Manifest) -> str:
    errors = manifest.get("errors") or {}
    if not sum(errors.values()):
        return ""
    ranked = sorted(errors.items(), key=lambda item: (-item[1], item[0]))
    said = "Responses and input rows that could not be scored, by reason. errors/ holds each with its explanation."
    return section("Errors", [said], table([[esc(reason), f"{count:,}"] for reason, count in ranked]))


def _section(config: dict[str, Any], name: str) -> dict[str, Any]:
    return config.get(name) or {}
