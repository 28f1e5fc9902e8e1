"""The report of a label store: one HTML page that a person reads, without a script and without a network.

It shows what the manifest says of all labels, and draws a bounded sample of them. What it leaves out: anything that
needs a model. Everything from data is escaped, and the page's own policy forbids scripts and requests besides.
"""

import json
from importlib.resources import files
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.report.charts import draw_histogram, draw_scatter
from pipeline.report.markup import compact, esc, minus
from pipeline.report.reading import length_sentence, pairs_by_length_sentence, reward_sentence
from pipeline.report.responses import Decode, draw_responses
from pipeline.summary import accuracy_text, plain, signed, summary_rows

Manifest = dict[str, Any]

POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def draw_report(manifest: Manifest, labels: pa.Table, decode: Decode) -> str:
    """The page as text (write it as UTF-8).

    Args:
        manifest: what the run says of itself: `summary` (of all labels) is needed, all else may be missing.
        labels: a sample of the store's labels, with its columns; all siblings of a prompt or none.
        decode: the text piece of each token id, as many pieces as ids.
    """
    config = manifest.get("config") or {}
    name = str(_section(config, "model").get("name") or "a language model").rstrip("/")
    model = "/".join(name.split("/")[-2:]) if name.endswith("/model") else name.rpartition("/")[2]
    sections = [_header(manifest, model), _tiles(manifest)]
    if labels.num_rows:
        sections += [*_charts(manifest, labels), _responses(manifest, labels, decode)]
    if manifest["summary"]["labels"]:
        sections.append(_figures(manifest))
    else:
        sections.append('<p class="empty">No response was labelled.</p>')
    sections += [_errors(manifest), _reproduce(manifest)]
    body = "\n".join(filter(None, sections))
    style = files(__package__).joinpath("report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>Rewards inside {esc(model)}</title><style>\n{style}</style></head>\n"
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


def to_toml(config: dict[str, dict[str, Any]]) -> str:
    """A configuration of sections as TOML; fields that are None are left out, because TOML has no word for them."""
    blocks = []
    for name, section in config.items():
        if isinstance(section, dict):
            lines = [f"{key} = {_toml_value(value)}" for key, value in section.items() if value is not None]
            blocks += ["\n".join([f"[{name}]", *lines])] if lines else []
    return "\n\n".join(blocks)


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


def _header(manifest: Manifest, model: str) -> str:
    config, summary = manifest.get("config") or {}, manifest["summary"]
    reward = _section(config, "reward")
    inputs = manifest.get("inputs") or [{"name": path} for path in _section(config, "input").get("paths") or []]
    names = [f"<b>{esc(given['name'])}</b>" for given in inputs[:3]]
    if len(inputs) > 3:
        names.append(f"{len(inputs) - 3:,} more files")
    corpus = f" from {_listed(names)}" if names else ""
    labelled = f"{summary['labels']:,} response{'' if summary['labels'] == 1 else 's'}"
    line = [
        f"{labelled}{corpus}, labelled with the reward that is already inside <b>{esc(model)}</b>.",
        f"Aggregation <b>{esc(reward.get('aggregation', 'sum'))}</b>:",
    ]
    facts = [str(manifest["created"])[:16].replace("T", " ")] if manifest.get("created") else []
    if manifest.get("fingerprint"):
        facts.append(f"fingerprint {str(manifest['fingerprint'])[:12]}")
    rows = "".join(f"<p>{text}</p>" for text in formula(reward))
    return (
        f'<header><p class="facts"><b>endoreward</b>{"".join(f"<span>{esc(fact)}</span>" for fact in facts)}</p>'
        f"<h1>Rewards inside {esc(model)}</h1>"
        f'<p class="lede">{" ".join(line)}</p><div class="formula">{rows}</div></header>'
    )


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
    rows = "".join(
        f'<tr><th scope="row">{esc(name)}</th><td>{esc(minus(value))}</td></tr>'
        for name, value in summary_rows(manifest["summary"])
    )
    said = "All labels of the store. A spread is one standard deviation; a tie counts as not right."
    return _section_of("Figures", [said], f"<table>{rows}</table>")


def _charts(manifest: Manifest, labels: pa.Table) -> list[str]:
    summary, config = manifest["summary"], manifest.get("config") or {}
    reward, tokens = labels["reward"].to_numpy(), labels["num_tokens"].to_numpy()
    preference = np.array(labels["preference"].to_pylist(), dtype=object)
    kinds = {kind or "other": preference == kind for kind in ("chosen", "rejected", None)}
    rewards = {name: reward[mask] for name, mask in kinds.items() if mask.any()}
    lengths = {name: tokens[mask] for name, mask in kinds.items() if mask.any()}
    drawn = [] if len(reward) == summary["labels"] else [f"Drawn from {len(reward):,} of {summary['labels']:,} labels."]
    section = _section(config, "reward")
    across = []
    if section.get("aggregation", "sum") != "mean" and not section.get("subtract_initial_value"):
        across = ["The sum holds V(s₁), which differs between prompts and cancels within a pair."]
    return [
        _section_of("Rewards", [reward_sentence(summary), *drawn], draw_histogram(rewards)),
        _section_of(
            "Length",
            [length_sentence(summary, section), pairs_by_length_sentence(summary), *across, *drawn],
            draw_scatter(lengths, rewards),
        ),
    ]


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
    rows = "".join(
        f'<tr><th scope="row">{esc(reason)}</th><td>{count:,}</td></tr>'
        for reason, count in sorted(errors.items(), key=lambda item: (-item[1], item[0]))
    )
    said = "Responses and input rows that could not be scored, by reason. errors/ holds each with its explanation."
    return _section_of("Errors", [said], f"<table>{rows}</table>")


def _reproduce(manifest: Manifest) -> str:
    config = manifest.get("config") or {}
    command = manifest.get("command") or "endoreward label run.toml"
    versions = ", ".join(f"{name} {version}" for name, version in (manifest.get("versions") or {}).items())
    parts = [f"<pre><code>{esc(command)}</code></pre>"]
    if config:
        parts.append(f"<details><summary>run.toml</summary><pre><code>{esc(to_toml(config))}</code></pre></details>")
    parts += [f'<p class="fine">{esc(versions)}</p>'] if versions else []
    parts += [f'<p class="fine">Fingerprint {esc(manifest["fingerprint"])}</p>'] if manifest.get("fingerprint") else []
    return _section_of("Reproduce", ["The same fingerprint gives the same labels."], "".join(parts))


def _section_of(title: str, said: list[str], body: str) -> str:
    notes = "".join(f"<p>{esc(text)}</p>" for text in said if text)
    return f'<section class="beside"><div class="said"><h2>{title}</h2>{notes}</div><div>{body}</div></section>'


def _section(config: dict[str, Any], name: str) -> dict[str, Any]:
    return config.get(name) or {}


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _toml_value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
