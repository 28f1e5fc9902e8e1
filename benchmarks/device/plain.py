"""What one would write with transformers alone: the reference where it runs in float32 on the CPU, else the rival.

None of it is the pipeline's. Shapes: H tokens of a response, B rows, L their length, V vocabulary.
"""

import importlib.util
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn.functional import logsigmoid

from pipeline.tokens import TokenizedTurn


def logits(model: Any, turn: TokenizedTurn) -> torch.Tensor:
    """Of a response alone, no padding, in float32: [H, V]."""
    prompt, response = list(turn.prompt_ids), list(turn.response_ids)
    ids = torch.tensor([prompt + response], device=model.device)
    out: torch.Tensor = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    return out.float()


def taken(turn: TokenizedTurn, device: Any) -> torch.Tensor:
    return torch.tensor(list(turn.response_ids), device=device)


def scores(model: Any, turns: Sequence[TokenizedTurn]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Q, V and log pi of all responses' tokens one after another, [P] each, on the CPU in float64."""
    parts = []
    with torch.inference_mode():
        for turn in turns:
            own = logits(model, turn).double()
            q = own.gather(1, taken(turn, own.device)[:, None])[:, 0]
            values = own.logsumexp(1)
            parts.append((q.cpu(), values.cpu(), (q - values).cpu()))
    q, values, logprobs = (torch.cat(column) for column in zip(*parts, strict=True))
    return q, values, logprobs


def logprobs(model: Any, turns: Sequence[TokenizedTurn]) -> torch.Tensor:
    """log pi with gradients, [P] float32, a response at a time."""
    return torch.cat([logits(model, t).log_softmax(1).gather(1, taken(t, model.device)[:, None])[:, 0] for t in turns])


def attentions() -> list[str]:
    """What transformers can be asked for here, of those that are quick."""
    flash = "flash_attention_2" if importlib.util.find_spec("flash_attn") else None
    return ["sdpa", *([flash] if flash else [])]


def padded(turns: Sequence[TokenizedTurn], size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, list[slice]]]:
    """Batches in the order of the corpus: ids and mask [B, L], and where each row's response is predicted."""
    for start in range(0, len(turns), size):
        part = turns[start : start + size]
        rows = [list(t.prompt_ids) + list(t.response_ids) for t in part]
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        yield ids, mask, [slice(len(t.prompt_ids) - 1, len(row) - 1) for t, row in zip(part, rows, strict=True)]


def padded_logprobs(model: Any, turns: Sequence[TokenizedTurn], size: int) -> Iterator[tuple[list[torch.Tensor], int]]:
    """log pi of each response, [H] each, a batch at a time, and the tokens forwarded for it: full logits, log_softmax."""
    for ids, mask, spans in padded(turns, size):
        ids, mask = ids.to(model.device), mask.to(model.device)
        out = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        whole = out.float().log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
        yield [whole[row, span] for row, span in enumerate(spans)], ids.numel()


def dpo_loss(sums: torch.Tensor, reference: torch.Tensor, beta: float) -> torch.Tensor:
    """Rafailov et al. 2023, eq. 7, summed over pairs. `sums`: log pi of chosen, rejected, chosen, ...; likewise
    `reference`."""
    rewards = beta * (sums - reference)
    return -logsigmoid(rewards[::2] - rewards[1::2]).sum()


def gradients(model: Any) -> dict[str, torch.Tensor]:
    """On the CPU in float64, by name; they are taken off the model."""
    found = {n: p.grad.cpu().double() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, how: dict[str, Any]) -> torch.Tensor:
    """Softmax attention of a packed row by its definition: every query against every key under a mask, [T, N, D].

    Args:
        q, k, v: [1, N or K, T, D].
        how: families (start, prefix, lengths), scaling, window, softcap.
    """
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    weights = q @ k.transpose(2, 3) * how["scaling"]
    if how["softcap"]:
        weights = torch.tanh(weights / how["softcap"]) * how["softcap"]
    weights = weights.masked_fill(~seen(q.shape[2], how["families"], how["window"]).to(q.device), float("-inf"))
    out: torch.Tensor = (weights.softmax(-1) @ v)[0].transpose(0, 1)
    return out


def seen(tokens: int, families: list[tuple[int, int, list[int]]], window: int | None) -> torch.Tensor:
    """[T, T], True where a query may look."""
    mask = torch.zeros(tokens, tokens, dtype=torch.bool)
    for start, prefix, lengths in families:
        head = list(range(start, start + prefix))
        at = start + prefix
        for own in [[], *[list(range(sum(lengths[:i]) + at, sum(lengths[: i + 1]) + at)) for i in range(len(lengths))]]:
            line = head + own
            for place, query in enumerate(line):
                if query in own or not own:
                    mask[query, line[max(0, place + 1 - window) if window else 0 : place + 1]] = True
    return mask
