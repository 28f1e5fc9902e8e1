"""Families of responses as the tensors of a forward: packed into one row, or padded on the right.

The last token of a response predicts nothing that is scored, so it is not forwarded.

Shapes: B rows of length L, T tokens of the packed row, P scored positions in the order of the batch.
"""

from collections.abc import Sequence
from typing import Any

import torch

from pipeline.models.scoring.attention import Packing
from pipeline.models.scoring.batches import Family


def pack(batch: Sequence[Family]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Packing]:
    """Ids and positions [T] of the packed row, the index of every scored state [P], and the row's structure."""
    ids: list[int] = []
    positions: list[int] = []
    chosen: list[int] = []
    structure = []
    for family in batch:
        start, prefix = len(ids), len(family.prompt_ids)
        structure.append((start, prefix, [len(r) - 1 for r in family.responses]))
        ids += family.prompt_ids
        positions += range(prefix)
        for response in family.responses:
            chosen.append(start + prefix - 1)
            chosen += range(len(ids), len(ids) + len(response) - 1)
            ids += response[:-1]
            positions += range(prefix, prefix + len(response) - 1)
    return torch.tensor(ids), torch.tensor(positions), torch.tensor(chosen), Packing(structure)


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
        tokens = [*prompt, *response][: len(prompt) + len(response) - dropped]
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
        spans.append((len(prompt) - 1, len(prompt) + len(response) - 1))
    return ids, mask, spans


def probe_families(config: Any) -> list[Family]:
    """Two prompts with three responses, of different lengths and widely spread tokens; and where the model has a sliding
    window that matters, a prompt that is longer than it."""
    window, context = getattr(config, "sliding_window", None), getattr(config, "max_position_embeddings", 0)
    beyond = window + 4 if isinstance(window, int) and window + 16 <= context else 6
    tokens = [(7 + 7919 * i) % config.vocab_size for i in range(40 + beyond)]
    return [
        Family(tuple(tokens[:9]), (0, 1), (tuple(tokens[9:16]), tuple(tokens[16:28]))),
        Family(tuple(tokens[28 : 28 + beyond]), (2,), (tuple(tokens[28 + beyond : 38 + beyond]),)),
    ]


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
