"""README.md of an exported model: what a model hub reads in its front matter, and what a person should know.

It leaves the machine: no path of a local disk or a bucket is in it, only the last part of each.
"""

import os
import re
from typing import Any

from huggingface_hub import ModelCardData

from pipeline.report import rl, training
from pipeline.report.page import listed
from pipeline.report.runs import figure, last_part, learning_config, policy_name, words
from pipeline.report.toml import to_toml
from pipeline.rl.algorithm_sections import ALGORITHMS
from pipeline.training.config import ADVANTAGE_OBJECTIVES, OBJECTIVES, PAIR_OBJECTIVES, SECTION_OF
from pipeline.training.documents import RlResults, Run
from pipeline.training.metrics import EVAL, MetricRow, ends

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
PLACE = re.compile(r"(?<![\w.~/:-])(?:(?:s3|gs|gcs|abfs|abfss|hdfs|file)://|~?/|[A-Za-z]:[\\/])[^\s\"'`,;()<>]+")
MACHINE = ("output", "run", "tracking", "checkpoint")  # sections that say where a run was, not what it was
UNSEEN = (
    "No benchmark was run on this model here; the figures are those of training. Whether it is better to talk to is not "
    "known.",
    "The reward of the labels is a model's opinion. What that model cannot tell apart, this one was not taught.",
    "Licence and data of the base model and of the prompts apply to this model too.",
)
UNSEEN_ONLINE = (
    "No benchmark was run on this model here; the figures are those of the run. Whether it is better to talk to is not "
    "known.",
    "The policy learnt to be paid by its reward. What the reward cannot tell apart, it was not taught; what the reward "
    "overrates, it may have found.",
    UNSEEN[2],
)


def model_card(run: Run, metrics: list[MetricRow], results: RlResults | None = None) -> str:
    """The card as text (write it as UTF-8 to README.md beside the weights).

    `run` and `metrics`, and `results` of an online run, as for the page.
    """
    accuracy = rl.accuracy_rows(results)
    heading = rl.title(run) if run.online else training.title(run)
    summary = rl.sentence(run) if run.online else training.sentence(run)
    names = rl.ordered(metrics) if run.online else training.ordered(metrics)
    blocks = [
        f"---\n{_front_matter(run)}\n---",
        f"# {policy_name(run)}, {without_places(heading)}",
        without_places(summary),
        _loading(),
        "## Labels" if run.labels else "",
        _labels(run),
        "## Accuracy on held-out prompts" if accuracy else "",
        table(["", "accuracy", "95% interval"], accuracy),
        "## Figures" if metrics else "",
        _figures(metrics, names),
        _counts(run),
        "## What to know",
        "\n".join(f"- {without_places(text)}" for text in _known(run, metrics, results)),
        "## Configuration",
        f"Places are named by their last part.\n\n```toml\n{to_toml(shareable_config(run))}\n```",
        _made_by(run),
    ]
    return "\n\n".join(filter(None, blocks)) + "\n"


def hub_name(run: Run) -> str | None:
    """The policy's name on a model hub; None for a folder of a machine, which is known by its digest."""
    name = run.policy.name
    local = "policy.content" in run.description or os.path.exists(name)
    return name if HUB_NAME.fullmatch(name) and not local else None


def without_places(text: str) -> str:
    """`text` with every path and address of a machine or a bucket cut down to its last part."""
    if os.path.isabs(text) or text.startswith("~/"):
        return last_part(text)
    return PLACE.sub(lambda match: last_part(match[0]), text)


def _front_matter(run: Run) -> str:
    tags = ["endoreward", run.objective, *(["lora"] if learning_config(run).lora.rank else [])]
    card = ModelCardData(
        base_model=hub_name(run), library_name="transformers", pipeline_tag="text-generation", tags=tags
    )
    return card.to_yaml()


def _loading() -> str:
    return (
        "## Use\n\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")\n'
        'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")\n```'
    )


def _labels(run: Run) -> str:
    rows = []
    for store in run.labels:
        reward = ", ".join(f"{name} = {value}" for name, value in (store.reward or {}).items() if value is not None)
        rows.append([last_part(store.path), last_part(store.model or ""), reward, f"`{store.fingerprint}`"])
    return table(["store", "model", "reward", "fingerprint"], rows)


def _figures(metrics: list[MetricRow], names: list[str]) -> str:
    """The start and the end of every curve, as the page has them."""
    rows = []
    for name in names:
        for key in (name, EVAL + name):
            if known := ends(metrics, key):
                rows.append([words(key), *(figure(name, value) for value in known)])
    return table(["", "start", "end"], rows)


def _counts(run: Run) -> str:
    rows = [[str(name), f"{value:,}" if isinstance(value, int) else str(value)] for name, value in run.examples]
    return table(["", "count or value"], rows)


def _known(run: Run, metrics: list[MetricRow], results: RlResults | None) -> list[str]:
    observed = rl.observations(run, metrics, results) if run.online else training.observations(run, metrics)
    return [*observed, *run.notes, *(UNSEEN_ONLINE if run.online else UNSEEN)]


def shareable_config(run: Run) -> dict[str, dict[str, Any]]:
    """The sections that this objective or algorithm reads, without those that only say where the run was."""
    method = run.objective
    foreign = {*ALGORITHMS, *OBJECTIVES, "pairs", "advantage"} - {method}
    foreign -= {SECTION_OF.get(method, method)}
    foreign -= {"pairs"} if method in PAIR_OBJECTIVES else {"advantage"} if method in ADVANTAGE_OBJECTIVES else set()
    own = {name: fields for name, fields in run.config.items() if name not in {*foreign, *MACHINE}}
    config: dict[str, dict[str, Any]] = shortened(own)
    return config


def shortened(value: Any) -> Any:
    """`value` with every text in it `without_places`."""
    if isinstance(value, dict):
        return {name: shortened(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [shortened(each) for each in value]
    return without_places(value) if isinstance(value, str) else value


def _made_by(run: Run) -> str:
    made_with = [f"{name} {version}" for name, version in run.versions.items()]
    origin = f"Made by `endoreward {'rl' if run.online else 'train'} run.toml` on {run.created[:10]}"
    fingerprint = f"Fingerprint of the run: `{run.fingerprint}`."
    return f"{origin}{f' with {listed(made_with)}' if made_with else ''}. {fingerprint}"


def table(head: list[str], rows: list[list[str]]) -> str:
    if not rows:
        return ""
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in map(without_places, row)] for row in rows]
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
