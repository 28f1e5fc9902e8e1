"""The structure of a packed row as the arguments of attention over segments of variable length.

One call of such a kernel takes segments: queries that lie together, keys that lie together, and which of them see which.
Families need two calls (`shared`): every prefix and every response to itself, causally, and all responses of a family to its
prefix, each to all of it. With a sliding window they need one (`windowed`): a response sees the last keys of its prefix and
itself. Segments without queries or without keys are never formed: kernels differ in what they return for those.

Built on the host, moved once; nothing here waits for the device.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch

Families = Sequence[tuple[int, int, list[int]]]  # (start, prefix length, lengths of the continuations), in tokens
Span = tuple[int, int]  # the first row and the one behind the last


@dataclass(frozen=True)
class Segments:
    """One call: S segments, Q queries and K keys, rows of the packed row.

    Queries and keys are aligned at their last: with `causal`, query i of m sees keys up to n - m + i of n, with a window the
    last `window` of those.
    """

    queries: torch.Tensor | None  # [Q], no row twice; None: the whole row
    keys: torch.Tensor | None  # [K]; None: the whole row
    query_starts: torch.Tensor  # [S + 1] in int32, where each segment begins among the queries
    key_starts: torch.Tensor  # [S + 1] in int32
    longest_query: int
    longest_key: int
    causal: bool
    window: int | None = None

    def __len__(self) -> int:
        return len(self.query_starts) - 1


def shared(families: Families, device: torch.device) -> tuple[Segments, ...]:
    """Without a window: prefixes and responses to themselves, then responses to their prefixes if there are any."""
    own = [(here, [here]) for family in families for here in _spans(family)]
    parts = [_segments(own, device, causal=True, every_query=True, every_key=True)]
    across = [
        ((start + prefix, start + prefix + sum(lengths)), [(start, start + prefix)])
        for start, prefix, lengths in families
        if prefix and sum(lengths)
    ]
    if across:
        parts.append(_segments(across, device, causal=False))
    return tuple(parts)


def windowed(families: Families, window: int, device: torch.device) -> tuple[Segments, ...]:
    """With a window of `window` tokens, the query's own among them."""
    pairs: list[tuple[Span, list[Span]]] = []
    for family in families:
        start, prefix, _ = family
        seen = (start + max(0, prefix - (window - 1)), start + prefix)
        pairs += [(here, [here] if here[0] == start and prefix else [seen, here]) for here in _spans(family)]
    return (_segments(pairs, device, causal=True, window=window, every_query=True),)


def _spans(family: tuple[int, int, list[int]]) -> list[Span]:
    """Those of the prefix and the responses that have tokens."""
    start, prefix, lengths = family
    ends = list(accumulate([prefix, *lengths], initial=start))
    return [(begin, end) for begin, end in pairwise(ends) if end > begin]


def _segments(
    pairs: list[tuple[Span, list[Span]]],
    device: torch.device,
    *,
    causal: bool,
    window: int | None = None,
    every_query: bool = False,
    every_key: bool = False,
) -> Segments:
    """`every_query`, `every_key`: the rows are all of the packed row in its order, so no index is needed."""
    query_lengths = [end - begin for (begin, end), _ in pairs]
    key_lengths = [sum(end - begin for begin, end in keys) for _, keys in pairs]
    return Segments(
        None if every_query else _rows([query for query, _ in pairs], device),
        None if every_key else _rows([span for _, keys in pairs for span in keys], device),
        _starts(query_lengths, device),
        _starts(key_lengths, device),
        max(query_lengths),
        max(key_lengths),
        causal,
        window,
    )


def _rows(spans: list[Span], device: torch.device) -> torch.Tensor:
    return torch.cat([torch.arange(begin, end) for begin, end in spans]).to(device)


def _starts(lengths: list[int], device: torch.device) -> torch.Tensor:
    return torch.tensor(list(accumulate(lengths, initial=0)), dtype=torch.int32).to(device)
