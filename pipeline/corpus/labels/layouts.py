"""Published layouts that are recognised whole by their columns: what `input.*` keys would say of each.

A layout is here where its columns alone do not say what its labels mean, or which columns are the responses, and its
authors do. What a person states goes before it, key by key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pipeline.corpus import columns
from pipeline.corpus.columns import RawRow
from pipeline.errors import InputError

if TYPE_CHECKING:
    from pipeline.config import InputConfig

Form = Literal["", "threads", "tldr", "turn", "grid", "steps"]  # the last two are of benchmarks


@dataclass(frozen=True)
class Layout:
    """One published layout."""

    name: str  # as input.layout gives it
    source: str  # where its authors say what it means
    columns: tuple[str, ...]  # all of them are there; `a.b` is `b` within `a`
    keys: Mapping[str, Any]  # fields of InputConfig
    labels: tuple[str, ...] = ()  # columns that each say a preference and may disagree: one has to be stated
    about: Mapping[str, str] = field(default_factory=dict)  # of each of them, what it prefers
    form: Form = ""  # how prompt and responses are put together, where columns are not texts or messages
    desirable: str | None = None  # a column that says of the response alone whether it is good


# Of VL-RewardBench: the place of each response, 0 for the better.
RANKED = {
    "prompt_key": "query",
    "response_key": "response",
    "rank_key": "human_ranking",
    "pairs_from": "best_worst",
}
LAYOUTS = (
    Layout(
        "shp",
        "huggingface.co/datasets/stanfordnlp/SHP",
        ("history", "human_ref_A", "human_ref_B", "labels"),
        {
            "prompt_key": "history",
            "response_key": ["human_ref_A", "human_ref_B"],
            "label_key": "labels",
            "label_values": {"1": "human_ref_A", "0": "human_ref_B"},
        },
    ),
    Layout(
        "pku-saferlhf",
        "huggingface.co/datasets/PKU-Alignment/PKU-SafeRLHF",
        ("prompt", "response_0", "response_1", "better_response_id", "safer_response_id"),
        {
            "prompt_key": "prompt",
            "response_key": ["response_0", "response_1"],
            "label_values": {"0": "response_0", "1": "response_1"},
        },
        labels=("better_response_id", "safer_response_id"),
        about={"better_response_id": "the more helpful", "safer_response_id": "the safer"},
    ),
    Layout(
        "pku-saferlhf-single-dimension",
        "huggingface.co/datasets/PKU-Alignment/PKU-SafeRLHF-single-dimension",
        ("prompt", "response_0", "response_1", "better_response_id"),
        {
            "prompt_key": "prompt",
            "response_key": ["response_0", "response_1"],
            "label_key": "better_response_id",
            "label_values": {"0": "response_0", "1": "response_1"},
        },
    ),
    Layout(
        "ultrafeedback",
        "huggingface.co/datasets/openbmb/UltraFeedback",
        ("instruction", "completions.response", "completions.overall_score"),
        {
            "prompt_key": "instruction",
            "response_key": "completions.response",
            "score_key": "completions.overall_score",
        },
    ),
    Layout(
        "summarize-from-feedback",
        "github.com/openai/summarize-from-feedback",
        ("info", "summaries.text", "choice"),
        {
            "prompt_key": "info",
            "response_key": "summaries.text",
            "label_key": "choice",
            "label_values": {"0": "0", "1": "1"},
        },
        form="tldr",
    ),
    Layout(
        "chatbot-arena",
        "huggingface.co/datasets/lmsys/chatbot_arena_conversations",
        ("conversation_a", "conversation_b", "winner"),
        {"response_key": ["conversation_a", "conversation_b"], "label_key": "winner"},
        form="turn",  # of which `winner` speaks: mt_bench_human_judgments has both turns in every row
    ),
    Layout(
        "lmsys-arena-55k",
        "huggingface.co/datasets/lmsys/lmsys-arena-human-preference-55k",
        ("prompt", "response_a", "response_b", "winner_model_a", "winner_model_b", "winner_tie"),
        {
            "prompt_key": "prompt",
            "response_key": ["response_a", "response_b"],
            "label_key": ["winner_model_a", "winner_model_b", "winner_tie"],
        },
        form="threads",
    ),
    Layout(
        "judgebench",
        "github.com/ScalerLab/JudgeBench",
        ("pair_id", "source", "question", "response_A", "response_B", "label"),
        {"prompt_key": "question", "response_key": ["response_A", "response_B"], "label_key": "label"},
    ),
    Layout(
        "llmbar",
        "github.com/princeton-nlp/LLMBar",
        ("input", "output_1", "output_2", "label"),
        {"prompt_key": "input", "response_key": ["output_1", "output_2"], "label_key": "label"},
    ),
    Layout(
        "vl-reward-bench",
        "huggingface.co/datasets/MMInstruction/VL-RewardBench",
        ("id", "query", "response", "image", "human_ranking"),
        {**RANKED, "image_key": "image"},
    ),
    Layout(
        "vl-reward-bench-files",
        "github.com/vl-rewardbench/VL_RewardBench",
        ("id", "query", "response", "image_path", "human_ranking"),
        {**RANKED, "image_key": "image_path"},
    ),
    Layout(
        "multimodal-reward-bench",
        "github.com/facebookresearch/multimodal_rewardbench",
        ("Text", "Image", "Output1", "Output2", "Better"),
        {
            "prompt_key": "Text",
            "response_key": ["Output1", "Output2"],
            "label_key": "Better",
            "label_values": {"Output1": "Output1", "Output2": "Output2"},
            "image_key": "Image",
        },
    ),
    Layout(
        "kto",
        "huggingface.co/docs/trl/dataset_formats",
        ("prompt", "completion", "label"),
        {"prompt_key": "prompt", "response_key": "completion"},
        desirable="label",
    ),
)
BY_NAME = {layout.name: layout for layout in LAYOUTS}
# Rows that `endoreward sample` wrote: what else they hold is what the corpus of the prompts held.
SAMPLED = Layout(
    "",
    "pipeline/rewards/labellers/prompts.py",
    ("prompt", "responses", "truncated"),
    {"prompt_key": "prompt", "response_key": "responses", "context_key": "", "history_key": ""},
)
OWN_RESPONSES = ("chosen_key", "rejected_key", "messages_key")  # keys that say another arrangement than a layout's


def recognised(rows: Sequence[RawRow], config: InputConfig, name: str) -> Layout | None:
    """The layout that a file's first rows are of, or that `input.layout` names; None where it is no published one, or
    where the configuration says other responses.

    Raises InputError where the layout that is named is not known, or its columns are not there.
    """
    if config.layout is not None:
        layout = BY_NAME.get(config.layout)
        if layout is None:
            raise InputError(f"input.layout = {config.layout!r} is not known; there are {', '.join(BY_NAME)}")
        missing = [column for column in layout.columns if not any(columns.has(row, column) for row in rows)]
        if missing:
            raise InputError(
                f"{name}: not the layout {layout.name} of input.layout: no column {', '.join(missing)} in its first rows; "
                f"columns: {', '.join(columns.paths(rows)[:40])}"
            )
        return layout
    if any(getattr(config, key) for key in OWN_RESPONSES):
        return None
    if all(any(column in row for row in rows) for column in ("chosen", "rejected")):
        return None
    for layout in (SAMPLED, *LAYOUTS):
        if all(any(columns.has(row, column) for row in rows) for column in layout.columns) and _agrees(layout, config):
            return layout
    return None


def _agrees(layout: Layout, config: InputConfig) -> bool:
    """Whether the responses that are stated are the layout's."""
    stated = config.response_key
    theirs = layout.keys["response_key"]
    return stated is None or _set(stated) == _set(theirs)


def _set(keys: str | Sequence[str]) -> set[str]:
    return {keys} if isinstance(keys, str) else set(keys)


def completed(layout: Layout, config: InputConfig, name: str) -> InputConfig:
    """The configuration with what the layout says of keys that are not stated.

    Raises InputError where the layout has several labels and none of them is stated.
    """
    keys = {key: value for key, value in layout.keys.items() if getattr(config, key) is None}
    if config.score_key or config.rank_key:  # stated: they say what is better, and no label does
        return config.model_copy(
            update={k: v for k, v in keys.items() if k not in ("score_key", "label_key", "label_values")}
        )
    theirs = layout.keys.get("label_key")
    if layout.labels and config.label_key is None:
        ways = " or ".join(f"--set input.label_key={label} ({layout.about[label]} response)" for label in layout.labels)
        raise InputError(f"{name}: {' and '.join(layout.labels)} may disagree on which response is better; say {ways}")
    own_label = config.label_key is not None and config.label_key != theirs and config.label_key not in layout.labels
    if own_label or config.label_threshold is not None:
        keys.pop("label_values", None)
    return config.model_copy(update=keys)
