"""Keys that may make prompts and responses of columns that are not recognised: what an error offers, likeliest first.

A column is offered for what its name says, or where it alone is left. Others are not: whoever types what stands in a message
would label an id.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.corpus import columns
from pipeline.corpus.columns import RawRow
from pipeline.corpus.labels.meaning import label_column, siblings
from pipeline.corpus.labels.words import tokens

ASKING = {
    "prompt", "question", "query", "instruction", "problem", "input", "context", "dialogue", "history", "post", "human",
    "user",
}  # fmt: skip
ANSWERING = {
    "response", "responses", "completion", "completions", "answer", "answers", "output", "outputs", "solution", "solutions",
    "generation", "generations", "summary", "summaries", "reply", "replies", "choices", "assistant", "text", "content", "body",
}  # fmt: skip
# Columns that say something about prompt or response: no text of a conversation.
ABOUT = {
    "id", "ids", "uid", "index", "hash", "model", "models", "source", "sources", "dataset", "type", "kind", "name", "domain",
    "language", "lang", "category", "date", "time", "timestamp", "url", "author", "user_id", "status", "version", "split",
    "tag", "tags", "title", "label", "labels", "score", "scores", "rating", "ratings", "rank", "ranks", "winner", "preference",
    "feedback", "rationale", "rationales", "statement", "statements", "generator", "annotator", "labeler", "tools", "tokens",
    "truth", "task", "subject", "topic", "system",
}  # fmt: skip
BETTER = {"chosen", "preferred", "accepted", "better", "winning", "positive"}
WORSE = {"rejected", "dispreferred", "worse", "losing", "negative"}


def advice(rows: Sequence[RawRow], prompt: str | None, halves: set[str]) -> Iterator[dict[str, Any]]:
    """Fields of InputConfig.

    Args:
        prompt: the column that is taken for the prompt, which may be an object that holds it; None where there is none.
        halves: the names under which chosen and rejected would be recognised.
    """
    texts = [path for path in columns.paths(rows, (str, list)) if _holds_text(rows, path)]
    named = [path for path in texts if not ABOUT & set(tokens(path.rpartition(".")[2]))]
    if halves <= set(texts):  # they are the responses: only their prompt is missing
        yield from ({"prompt_key": path} for path in named if path not in halves)
        return
    pair = _pair([path for path in named if path != prompt])
    sides = opposites([path for path in named if path != prompt])
    taken = {*(sides or ()), *(pair or ())}
    asking = _prompts(named, prompt, taken)
    if sides:
        keys: dict[str, Any] = {"chosen_key": sides[0], "rejected_key": sides[1]}
        yield from ({"prompt_key": path, **keys} for path in asking)
        yield keys
        return
    if pair:
        label = label_column(rows, pair)
        keys = {"response_key": list(pair), **({"label_key": label} if label else {})}
        if any(isinstance(columns.lookup(row, pair[0]), list) for row in rows if columns.has(row, pair[0])):
            yield keys  # conversations, which may carry their prompt
        yield from ({"prompt_key": path, **keys} for path in asking)
    if not pair:
        yield from ({"messages_key": path} for path in texts if _is_conversation(rows, path))
    left = [path for path in named if path not in asking]
    answering = [path for path in left if ANSWERING & set(tokens(path.rpartition(".")[2]))]
    if not answering and left and len(texts) == len(left) + len(asking) == 1 + len(asking):
        answering = left
    likely = sorted(answering, key=lambda path: tokens(path.rpartition(".")[2])[-1] not in ANSWERING)
    yield from ({"prompt_key": asked, "response_key": path} for asked in asking for path in likely)
    yield from ({"response_key": path} for path in likely if prompt is None)  # a corpus of text without prompts


def opposites(texts: Sequence[str]) -> tuple[str, str] | None:
    """Two columns of which one is named as the better and the other as the worse: `accepted`, `rejected`."""
    for first in texts:
        left = tokens(first)
        if not BETTER & set(left) or "non" in left:
            continue
        rest = [token for token in left if token not in BETTER]
        for second in texts:
            right = tokens(second)
            worse = bool(WORSE & set(right)) or ("non" in right and bool(BETTER & set(right)))
            if worse and [token for token in right if token not in BETTER | WORSE | {"non"}] == rest:
                return first, second
    return None


def _pair(texts: Sequence[str]) -> tuple[str, str] | None:
    """Siblings, of those that are named as responses where there are such."""
    answering = [path for path in texts if ANSWERING & set(tokens(path.rpartition(".")[2]))]
    return siblings(answering) or siblings(texts)


def _prompts(named: Sequence[str], prompt: str | None, taken: set[str]) -> list[str]:
    """Columns that may be the prompt, likeliest first."""
    if prompt is not None:
        inside = [path for path in named if path == prompt or path.startswith(f"{prompt}.")]
        return sorted(inside, key=lambda path: not (ASKING | ANSWERING) & set(tokens(path.rpartition(".")[2])))
    return [path for path in named if ASKING & set(tokens(path.rpartition(".")[2])) and path not in taken]


def _values(rows: Sequence[RawRow], path: str) -> list[Any]:
    return [columns.lookup(row, path) for row in rows if columns.has(row, path)]


def _holds_text(rows: Sequence[RawRow], path: str) -> bool:
    """Whether a column holds text, or lists of it or of messages."""
    return any(
        isinstance(value, str)
        or (isinstance(value, list) and any(isinstance(each, str | dict | list) for each in value))
        for value in _values(rows, path)
    )


def _is_conversation(rows: Sequence[RawRow], path: str) -> bool:
    return any(
        isinstance(value, list)
        and len(value) > 1
        and all(isinstance(m, dict) and {"role", "from"} & m.keys() for m in value)
        for value in _values(rows, path)
    )
