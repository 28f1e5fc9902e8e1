"""The last labelled turn of a response stands for it: a preference, or a score, is about how a conversation ended."""

from typing import NamedTuple

import pyarrow as pa


class Response(NamedTuple):
    """A response of a store; several of its turns may be labelled, a row each."""

    prompt_id: str
    rubric: str | None
    preference: str | None
    response_index: int


def last_turns(labels: pa.Table) -> dict[Response, int]:
    """The row of each response's last labelled turn; responses stand in the order in which they first occur.

    Needs the columns of `Response` and `turn`.
    """
    turns = labels["turn"].to_pylist()
    last: dict[Response, int] = {}
    for row, response in enumerate(map(Response, *(labels[name].to_pylist() for name in Response._fields))):
        if response not in last or turns[row] > turns[last[response]]:
            last[response] = row
    return last
