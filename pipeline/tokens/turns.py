"""What a model sees of a turn, and how it is cut where it is too long (`tokens.over_length`)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.corpus.pictures import Picture
from pipeline.corpus.samples import Message
from pipeline.errors import RowError

Ids = NDArray[np.int32]
NO_IDS: Ids = np.zeros(0, np.int32)

UNBOUNDED = 2**20  # tokens: the length of a context of which nothing is known


@dataclass(frozen=True, eq=False)
class TokenizedTurn:
    """What the model sees of a turn. `prompt` is the messages as rendered, a rubric's system message included. Ids may be
    given as lists too."""

    prompt_ids: Ids  # at least one
    response_ids: Ids  # the scored tokens, at least one
    prompt: list[Message]
    truncated: bool = False
    pictures: tuple[Picture, ...] = ()  # of the prompt, in order; prompt_ids hold each one's tokens

    def __post_init__(self) -> None:
        for name in ("prompt_ids", "response_ids"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), np.int32))


def fit(
    turns: Sequence[TokenizedTurn | RowError], limit: int, over_length: str, bos: int | None
) -> list[TokenizedTurn | RowError]:
    """Turns of at most `limit` tokens; what is cut from a prompt is cut for all responses to it.

    Args:
        over_length: `tokens.over_length`: cut_response, cut_prompt or reject.
        bos: the beginning-of-sequence token, which stays in front of a prompt that is cut.

    A prompt with pictures is not cut: it would lose one, or a part of one.
    """
    longest: dict[bytes, int] = {}
    for turn in turns if over_length == "cut_prompt" else ():
        if isinstance(turn, TokenizedTurn):
            key = turn.prompt_ids.tobytes()
            longest[key] = max(longest.get(key, 0), len(turn.response_ids))
    fitted: list[TokenizedTurn | RowError] = []
    for turn in turns:
        if isinstance(turn, RowError):
            fitted.append(turn)
        elif (
            over_length == "cut_prompt" and len(turn.prompt_ids) + (most := longest[turn.prompt_ids.tobytes()]) > limit
        ):
            fitted.append(_with_shorter_prompt(turn, limit, most, bos))
        else:
            fitted.append(_with_shorter_response(turn, limit, over_length))
    return fitted


def _with_shorter_prompt(turn: TokenizedTurn, limit: int, longest: int, bos: int | None) -> TokenizedTurn | RowError:
    """With room for the longest response to this prompt; `longest` is its tokens."""
    prompt = turn.prompt_ids
    if turn.pictures:
        return RowError(
            "prompt_too_long",
            f"{len(prompt)} prompt and up to {longest} response tokens, at most {limit} fit, and a prompt with pictures is "
            "not cut; raise tokens.max_length, set tokens.over_length = cut_response, or give smaller pictures",
        )
    begin = prompt[: int(prompt[0] == bos)]
    room = limit - min(longest, limit - 1)
    kept = prompt[len(prompt) - room + len(begin) :]
    shorter = np.concatenate([begin, kept]) if room > len(begin) else prompt[-room:]
    return replace(turn, prompt_ids=shorter, response_ids=turn.response_ids[: limit - 1], truncated=True)


def _with_shorter_response(turn: TokenizedTurn, limit: int, over_length: str) -> TokenizedTurn | RowError:
    prompt, response = turn.prompt_ids, turn.response_ids
    if len(prompt) + len(response) <= limit:
        return turn
    size = f"{len(prompt)} prompt and {len(response)} response tokens, at most {limit} fit"
    if over_length == "reject":
        return RowError("too_long", f"{size}; raise tokens.max_length or cut with tokens.over_length")
    if len(prompt) >= limit:
        return RowError("prompt_too_long", f"{size}; raise tokens.max_length or set tokens.over_length = cut_prompt")
    return replace(turn, response_ids=response[: limit - len(prompt)], truncated=True)


def length_notes(wanted: int | None, context: int, own: object) -> list[str]:
    """What a person should know of the length that is used.

    Args:
        wanted: `tokens.max_length`.
        context: the most tokens that the model takes.
        own: the tokenizer's `model_max_length`.
    """
    notes = []
    used = min(wanted or context, context)
    if wanted and wanted > context:
        notes.append(f"tokens.max_length = {wanted} is more than the model's context, {context} is used")
    if isinstance(own, int) and own < used < UNBOUNDED:
        notes.append(
            f"the tokenizer states a length of {own}, the model one of {context}: {used} tokens are used; set "
            f"tokens.max_length = {own} where the tokenizer is right"
        )
    return notes
