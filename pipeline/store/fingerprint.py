"""What makes two runs the same: everything that changes a number, and nothing else."""

import hashlib
import json
from typing import Any

from pipeline.config import InputConfig, LabelConfig, TokensConfig
from pipeline.tokens.templates import ASKS_FOR_DATE

FORMAT = 2  # raised when the meaning of a stored column changes


def describe(
    config: LabelConfig,
    model: dict[str, Any],
    template: str | None,
    rubrics: dict[Any, Any],
    settings: dict[str, Any],
) -> dict[str, Any]:
    """The description of a run's labels, flat: dotted name to value.

    Args:
        model: what `identify_model` says of the weights.
        template: the chat template's text, None without one.
        rubrics: system prompt by rubric name.
        settings: what else the reward depends on, by the configuration's names; for the endogenous one, `reward.*`.
    """
    return {
        "format": FORMAT,
        **{f"model.{name}": value for name, value in model.items()},
        **describe_tokens(config.tokens, template),
        "tokens.rubrics": {str(name): text for name, text in rubrics.items()},
        **settings,
        "input.turns": config.input.turns,
        **{f"input.{name}": value for name, value in config.input.model_dump().items() if _says_a_meaning(name, value)},
    }


def describe_tokens(config: TokensConfig, template: str | None) -> dict[str, Any]:
    """What of a description makes tokens of a conversation, under a template."""
    return {
        "tokens.template": template,
        "tokens.template_kwargs": config.template_kwargs,
        "tokens.date": config.date if ASKS_FOR_DATE in (template or "") else None,
        "tokens.thoughts": config.thoughts,
        "tokens.control": config.control,
        "tokens.trailing_space": config.trailing_space,
        "tokens.over_length": config.over_length,
        "tokens.append_eos": config.append_eos,
    }


FIRST_KEYS = ("prompt_key", "response_key", "chosen_key", "rejected_key", "messages_key")
LATER_KEYS = (
    "context_key", "history_key", "layout", "label_key", "label_values", "label_threshold", "label_above", "label_tie",
    "score_key", "rank_key", "pairs_from", "score_threshold", "min_margin", "image_key", "max_picture_pixels",
    "max_picture_bytes", "pictures",
)  # fmt: skip


def _says_a_meaning(field: str, value: Any) -> bool:
    """Whether a field of the input says what its columns mean. Those that came later count only where they are set, so
    that stores from before them keep their fingerprint."""
    return field in FIRST_KEYS or (field in LATER_KEYS and value != InputConfig.model_fields[field].default)


def digest(description: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def differences(stored: dict[str, Any], wanted: dict[str, Any], whose: str = "the store") -> list[str]:
    """A line for each entry that differs, for people; `whose` is what has `stored`."""
    names = sorted(stored.keys() | wanted.keys())
    return [
        f"{name}: {whose} has {_short(stored.get(name))}, this run {_short(wanted.get(name))}"
        for name in names
        if stored.get(name) != wanted.get(name)
    ]


def _short(value: Any) -> str:
    text = repr(value)
    if len(text) <= 60:
        return text
    return f"{text[:40]}... ({hashlib.sha256(text.encode()).hexdigest()[:8]})"
