"""Families of responses as the tensors of a forward: packed into one row, or padded on the right.

The last token of a response predicts nothing that is scored, so it is not forwarded.

Shapes: B rows of length L, T tokens of the packed row, P scored positions in the order of the batch.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline.corpus.pictures import Picture
from pipeline.models.scoring.attention import Packing
from pipeline.models.scoring.batches import Family

if TYPE_CHECKING:
    from pipeline.models.pictures import PictureProcessor
    from pipeline.models.pictures.features import View


def pack(batch: Sequence[Family]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Packing]:
    """Ids and positions [T] of the packed row, the index of every scored state [P], and the row's structure."""
    ids, positions, chosen, structure = [], [], [], []
    end = 0
    for family in batch:
        start, prefix = end, len(family.prompt_ids)
        structure.append((start, prefix, [len(r) - 1 for r in family.responses]))
        ids.append(family.prompt_ids)
        positions.append(np.arange(prefix))
        end += prefix
        for response in family.responses:
            rest = len(response) - 1
            chosen += [np.array([start + prefix - 1]), np.arange(end, end + rest)]
            ids.append(response[:-1])
            positions.append(np.arange(prefix, prefix + rest))
            end += rest
    return joined(ids), joined(positions), joined(chosen), Packing(structure)


def picture_positions(batch: Sequence[Family], view: View) -> torch.Tensor:
    """Positions of a packed row where prompts have pictures: text goes on behind the largest of its prompt's. [3, 1, T] where
    the model has those of time, height and width, else [1, T]."""
    parts: list[torch.Tensor] = []
    for family, own in zip(batch, view.positions([joined([f.prompt_ids]) for f in batch]), strict=True):
        behind = (own.max() + 1 + torch.arange(len(response) - 1) for response in family.responses)
        parts += [own, *(each.expand(len(own), -1) for each in behind)]
    positions = torch.cat(parts, dim=1)
    return positions[:, None] if len(positions) > 1 else positions


def joined(parts: Sequence[Any]) -> torch.Tensor:
    """Arrays of ids one after another, as torch indexes with them: [T] of int64."""
    return torch.from_numpy(np.concatenate([*parts, np.zeros(0, np.int64)], dtype=np.int64))


def pad(batch: Sequence[Family], whole: bool = False) -> tuple[torch.Tensor, torch.Tensor, list[tuple[int, int]]]:
    """A row for each response, its prompt repeated: ids and mask [B, L], and where each row's scored states begin and end.

    `whole` keeps the last tokens.
    """
    rows = [(family.prompt_ids, r) for family in batch for r in family.responses]
    dropped = 0 if whole else 1
    width = max(len(prompt) + len(r) - dropped for prompt, r in rows)
    ids = torch.zeros((len(rows), width), dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    spans = []
    for row, (prompt, response) in enumerate(rows):
        length = len(prompt) + len(response) - dropped
        ids[row, :length] = joined([prompt, response])[:length]
        mask[row, :length] = 1
        spans.append((len(prompt) - 1, len(prompt) + len(response) - 1))
    return ids, mask, spans


def probe_families(config: Any) -> list[Family]:
    """Two prompts with three responses, of different lengths and widely spread tokens; and where the model has a sliding
    window that matters, a prompt that is longer than it."""
    window, context = getattr(config, "sliding_window", None), getattr(config, "max_position_embeddings", 0)
    beyond = window + 4 if isinstance(window, int) and window + 16 <= context else 6
    ids = np.array([(7 + 7919 * i) % config.vocab_size for i in range(40 + beyond)], np.int32)
    return [
        Family(ids[:9], (0, 1), (ids[9:16], ids[16:28])),
        Family(ids[28 : 28 + beyond], (2,), (ids[28 + beyond : 38 + beyond],)),
    ]


def probe_pictured(config: Any, processor: PictureProcessor) -> Family:
    """A prompt with a picture between widely spread tokens, and two responses to it."""
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    Image.fromarray(pixels).save(data := io.BytesIO(), "PNG")
    picture = Picture(data.getvalue(), "a picture of the probe")
    text = processor.written.replace(processor.marker, processor.expanded([picture.size()])[0])
    shown = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = [i for i in ((7 + 7919 * n) % config.vocab_size for n in range(48)) if i != processor.token_id][:40]
    prompt = np.array([*ids[:5], *shown, *ids[5:12]], np.int32)
    return Family(prompt, (0, 1), (np.array(ids[12:20], np.int32), np.array(ids[20:40], np.int32)), (picture,))


def agree(logprobs: torch.Tensor, due: torch.Tensor, dtype: torch.dtype, slack: float = 1.0) -> bool:
    """Whether log-probabilities [P] of a probe's responses are the same but for rounding in the model's dtype: the root of the
    mean square by which they differ is at most a share of the range of those that are due, 1e-2 in 16 bits, else 1e-3.

    Not of their size, most of which is the logarithm of the vocabulary: beside that, what changes for a response that sees
    its sibling, or loses its prompt, may be as small as rounding. Like is to be compared with like: a model rounds its own
    logits to its dtype, and another batch of the same rows rounds otherwise in every layer.

    Args:
        slack: a factor on the share.
    """
    share = slack * (1e-2 if dtype in (torch.bfloat16, torch.float16) else 1e-3)
    spread = (due.max() - due.min()).clamp_min(1e-3)  # an even distribution has none
    return bool((logprobs - due).square().mean().sqrt() <= share * spread)
