"""README.md of a label store that is published as a dataset: what a hub reads in its front matter, and what to know.

It leaves the machine: no path of a local disk or a bucket is in it, nor in the manifest that goes with it.
"""

import hashlib

import pyarrow as pa
from huggingface_hub import DatasetCardData

from pipeline.config import RewardConfig
from pipeline.report.bias import Pair, bias_by_aggregation, bias_columns, has_tokens, named
from pipeline.report.card import MACHINE, shortened, table, without_places
from pipeline.report.page import OTHER_VERSION, listed
from pipeline.report.runs import last_part
from pipeline.report.sentences import length_sentence, pairs_by_length_sentence, reward_sentence
from pipeline.report.toml import to_toml
from pipeline.rewards.aggregations import AGGREGATIONS
from pipeline.store.manifest import InputEntry, Manifest
from pipeline.store.summary import summary_rows
from pipeline.store.typed import parse

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
LARGEST = "n>10M"
KINDS = {"labels": "one row per scored response", "errors": "one row per response that could not be scored"}
KNOWN = (
    "A reward is a model's opinion, read off its logits: no person has seen these rows. What that model cannot tell apart, "
    "the reward cannot.",
    "Rewards of stores with different fingerprints cannot be compared.",
    "Licence and terms of the corpus and of the model apply to these labels too.",
)
MADE_BY = "<!-- made by endoreward push: {} -->"


def shareable_manifest(manifest: Manifest) -> Manifest:
    """The manifest without places: paths and addresses are cut down to their last part, and what only says where a run was
    is left out."""
    config = {name: fields for name, fields in manifest.config.items() if name not in (*MACHINE, "endpoint")}
    inputs = [each.model_copy(update={"uri": each.uri and without_places(each.uri)}) for each in manifest.inputs]
    command, notes = without_places(manifest.command), [without_places(note) for note in manifest.notes]
    return manifest.model_copy(
        update={"config": shortened(config), "inputs": inputs, "command": command, "notes": notes}
    )


def dataset_card(manifest: Manifest, labels: pa.Table | None, name: str) -> str:
    """The card as text (write it as UTF-8 to README.md); its last line is a digest of the rest (`is_untouched`).

    Args:
        manifest: as `shareable_manifest` gives it.
        labels: a sample of the store's labels, all siblings of a prompt or none; None of none.
        name: of the dataset, `ORG/NAME`, or empty where it is a folder.

    Raises:
        StoreError: where the reward is one of another version.
    """
    reward = parse(
        RewardConfig.model_validate, manifest.config.get("reward") or {}, "manifest.json: config.reward", OTHER_VERSION
    )
    tokenwise = labels is not None and has_tokens(labels)
    model = last_part(str((manifest.config.get("model") or {}).get("name") or "")) or "a language model"
    blocks = [
        f"---\n{_front_matter(manifest, model)}\n---",
        f"# Rewards of {model}",
        _what(manifest, reward if tokenwise else None, model),
        _loading(manifest, name),
        "## Figures",
        table(["", "value"], [[key, value] for key, value in summary_rows(manifest.summary)]),
        *_biases(manifest, labels, reward, tokenwise),
        "## Errors" if manifest.errors else "",
        table(["reason", "rows"], [[reason, f"{count:,}"] for reason, count in manifest.errors.items()]),
        "## Corpus",
        table(["file", "rows", "sha256", "read as"], [_input(each) for each in manifest.inputs]),
        "## What to know",
        "\n".join(f"- {text}" for text in (*manifest.notes, *KNOWN)),
        "## Configuration",
        f"Places are named by their last part.\n\n```toml\n{to_toml(manifest.config)}\n```",
        _made_by(manifest),
    ]
    text = "\n\n".join(filter(None, blocks)) + "\n"
    return text + MADE_BY.format(_digest(text)) + "\n"


def is_untouched(card: str) -> bool:
    """Whether a README.md is as `dataset_card` wrote it."""
    text, _, last = card.removesuffix("\n").rpartition("\n")
    return last == MADE_BY.format(_digest(text + "\n"))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _front_matter(manifest: Manifest, model: str) -> str:
    count = manifest.counts.labels
    configs = [
        {"config_name": kind, "data_files": f"{kind}/*.parquet", **({"default": True} if kind == "labels" else {})}
        for kind in _kinds(manifest)
    ]
    card = DatasetCardData(
        pretty_name=f"Rewards of {model}",
        annotations_creators="machine-generated",
        size_categories=next((name for bound, name in SIZES if count < bound), LARGEST),
        tags=["endoreward", "reward", "preference"],
        configs=configs,
    )
    return card.to_yaml()


def _kinds(manifest: Manifest) -> list[str]:
    return [kind for kind in KINDS if kind == "labels" or manifest.errors]


def _what(manifest: Manifest, reward: RewardConfig | None, model: str) -> str:
    """Args: reward: ours; None for one of another kind."""
    counts = manifest.counts
    inputs = listed([each.name for each in manifest.inputs[:3]])
    more = f" and {len(manifest.inputs) - 3:,} more files" if len(manifest.inputs) > 3 else ""
    text = f"{counts.labels:,} responses of {inputs}{more}, labelled with a reward of {model}"
    if reward is not None:
        formula = AGGREGATIONS[reward.aggregation].formula
        text = (
            f"{counts.labels:,} responses of {inputs}{more}, labelled token by token with the endogenous reward of {model} "
            f"(Li et al. 2025, arXiv 2506.23235): {named(reward)}, {formula}, at alpha = {reward.alpha:g}"
        )
    return f"{text}. Fingerprint `{manifest.fingerprint}`."


def _loading(manifest: Manifest, name: str) -> str:
    place = name or "path/to/this/folder"
    lines = [f'{kind} = load_dataset("{place}", "{kind}", split="train")' for kind in _kinds(manifest)]
    kinds = "\n".join(f"- `{kind}`: {KINDS[kind]}" for kind in _kinds(manifest))
    python = "\n".join(["from datasets import load_dataset", "", *lines])
    return (
        f"## Use\n\n{kinds}\n\n```python\n{python}\n```\n\nAs a label store, whole and checked, with `endoreward pull {place} "
        "--output DIR`; its columns are explained in endoreward's docs/store.md."
    )


def _biases(manifest: Manifest, labels: pa.Table | None, reward: RewardConfig, tokenwise: bool) -> list[str]:
    summary = manifest.summary
    if labels is None:
        return []
    sentences = [
        reward_sentence(summary),
        length_sentence(summary, reward if tokenwise else None),
        pairs_by_length_sentence(summary),
    ]
    biases = bias_by_aggregation(labels, reward) if summary.pairs else []
    head, cells = bias_columns(biases) if biases else ([], [])
    rows = [[name, *map(_cell, row)] for (name, _), row in zip(biases, cells, strict=True)]
    drawn = labels.num_rows < summary.labels
    sample = f"The table is of {labels.num_rows:,} of them." if biases and drawn else ""
    return [
        "## Biases",
        " ".join(filter(None, [*sentences, sample])),
        table(["reward", *head], rows),
        "\n".join(f"- {text}" for text in biases[0][1].summary) if biases else "",
    ]


def _cell(pair: Pair) -> str:
    figure, under = pair
    return f"{figure} ({under})" if under else figure


def _input(entry: InputEntry) -> list[str]:
    return [entry.name, f"{entry.rows:,}", f"`{entry.sha256[:16]}`", entry.shape]


def _made_by(manifest: Manifest) -> str:
    made_with = listed([f"{name} {version}" for name, version in manifest.versions.items()])
    counts = (
        f"{manifest.counts.rows:,} rows of input, {manifest.counts.labels:,} labels, errors: {manifest.counts.errors:,}"
    )
    return f"Made on {manifest.created[:10]}{f' with {made_with}' if made_with else ''}: {counts}."
