"""One shard's way from raw rows to labels: the steps between reading and writing, without Ray.

prepare   rows -> turns with their tokens, and the failures so far
finish    turns with their scores -> labels and failures
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.apart import uncollected
from pipeline.config import RewardConfig
from pipeline.corpus import NumberedRow, Shape, Shard, turns
from pipeline.corpus.samples import Turn, response_id
from pipeline.errors import RowError
from pipeline.models.scores import Scores
from pipeline.rewards.aggregations import Certainty
from pipeline.rewards.endogenous import aggregates, stored_action_values, token_rewards
from pipeline.store.schema import Failure, Label, extra_json, other_json
from pipeline.tokens import Renderer, TokenizedTurn
from pipeline.tokens.sampled import as_asked

Column = NDArray[np.float32]
KEPT = "reward_info"  # in extra_info: what a labeller keeps beside the reward
NO_TOKENS = np.zeros(0, np.float32)
ALIKE = "responses have the same tokens as another response to their prompt whose text differs: their rewards are equal"


@dataclass
class Prepared:
    """A shard with everything that can be known of it without the model."""

    shard: Shard
    generation: int
    turns: list[Turn] = field(default_factory=list)
    tokens: list[TokenizedTurn] = field(default_factory=list)  # one per turn
    requests: Sequence[Any] = ()  # what the model is asked, in order; for the endogenous reward its `tokens`
    plan: Any = None  # what else reading the answers needs
    failures: list[Failure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    counts: Counter[str] = field(
        default_factory=Counter
    )  # how often a thing came up that a person should know, by sentence


def prepare(
    shard: Shard, generation: int, rows: Iterable[NumberedRow], shape: Shape, renderer: Renderer, which: str
) -> Prepared:
    """Normalise and tokenise a shard's rows. Every response ends in `turns` or in `failures`; nothing raises RowError."""
    with uncollected():
        return _prepared(Prepared(shard, generation), rows, shape, renderer, which)


def _prepared(out: Prepared, rows: Iterable[NumberedRow], shape: Shape, renderer: Renderer, which: str) -> Prepared:
    expanded = [_expand(out.shard.file, number, row, shape, renderer, which) for number, row in rows]
    groups = renderer.tokenize_groups([each.turns for each in expanded])
    for each, answers in zip(expanded, groups, strict=True):
        out.failures += each.failures
        for turn, tokens in zip(each.turns, answers, strict=True):
            if isinstance(tokens, RowError):
                out.failures.append(failure(turn.id, turn.prompt_id, tokens))
            else:
                out.turns.append(turn)
                out.tokens.append(tokens)
        renderer.counts[ALIKE] += _alike(each.turns, answers)
    out.notes, out.counts = list(renderer.notes), renderer.take_counts()
    out.requests = out.tokens
    return out


class _Expanded(NamedTuple):
    """A row's turns to score, siblings all, and what of it cannot be scored."""

    turns: list[Turn]
    failures: list[Failure]


def _expand(
    file: str, number: int, row: dict[str, Any] | RowError, shape: Shape, renderer: Renderer, which: str
) -> _Expanded:
    prompt_id = f"{file}:{number}"
    try:
        if isinstance(row, RowError):
            raise row
        sample = as_asked(shape.normalise(file, number, row), renderer)
    except RowError as error:
        return _Expanded([], [failure(prompt_id, prompt_id, error)])
    failures = [
        failure(response_id(prompt_id, failed.preference, failed.index), prompt_id, failed.error)
        for failed in sample.failed
    ]
    asked = [each for turn in turns(sample, which) for each in renderer.under_rubrics(turn)]  # type: ignore[arg-type]
    if not asked and not failures:
        failures = [failure(prompt_id, prompt_id, RowError("no_response", "the row has no response to score"))]
    return _Expanded(asked, failures)


def _alike(asked: Sequence[Turn], answers: Sequence[TokenizedTurn | RowError]) -> int:
    """How many responses have other texts than a sibling and the same tokens."""
    texts: dict[tuple[bytes, bytes], set[str]] = {}
    for turn, tokens in zip(asked, answers, strict=True):
        if isinstance(tokens, TokenizedTurn) and not tokens.truncated:
            key = tokens.prompt_ids.tobytes(), tokens.response_ids.tobytes()
            texts.setdefault(key, set()).add(turn.response)
    return sum(len(each) - 1 for each in texts.values())


def finish(
    prepared: Prepared, scores: Sequence[Scores | RowError], reward: RewardConfig
) -> tuple[list[Label], list[Failure]]:
    """Labels and failures of a shard, in the order of its rows; `scores` has one entry per turn."""
    scored: list[tuple[Turn, TokenizedTurn, Scores]] = []
    failures = list(prepared.failures)
    for turn, tokens, answer in zip(prepared.turns, prepared.tokens, scores, strict=True):
        if isinstance(answer, RowError):
            failures.append(failure(turn.id, turn.prompt_id, answer))
        else:
            scored.append((turn, tokens, answer))
    return labels_of(scored, reward), failures


def label(turn: Turn, tokens: TokenizedTurn, scores: Scores, reward: RewardConfig) -> Label:
    """The label of one turn."""
    [made] = labels_of([(turn, tokens, scores)], reward)
    return made


def labels_of(scored: Sequence[tuple[Turn, TokenizedTurn, Scores]], reward: RewardConfig) -> list[Label]:
    """The label of each turn; the same whatever others there are. `reward` follows from the stored columns alone, so that it
    can be computed anew from them."""
    if not scored:
        return []
    lengths = [len(scores.logprobs) for _, _, scores in scored]
    logprobs = np.concatenate([scores.logprobs for _, _, scores in scored]).astype(np.float32)
    values = np.concatenate([scores.values for _, _, scores in scored]).astype(np.float32)
    exact = token_rewards(np.concatenate([scores.q for _, _, scores in scored]), values, reward.gamma, lengths)
    q = stored_action_values(logprobs, values, exact, reward.alpha, reward.gamma, lengths)
    rewards = token_rewards(q, values, reward.gamma, lengths).astype(np.float32)
    certainty = certainty_of([scores for _, _, scores in scored])
    totals = aggregates(rewards, values, reward, lengths, certainty)
    ends = np.cumsum(lengths).tolist()
    return [
        make_label(
            turn,
            tokens,
            total,
            (logprobs[end - length : end], values[end - length : end], rewards[end - length : end]),
            certainty=certainty and Certainty(*(column[end - length : end] for column in certainty)),
        )
        for (turn, tokens, _), total, length, end in zip(scored, totals, lengths, ends, strict=True)
    ]


def certainty_of(scores: Sequence[Scores]) -> Certainty | None:
    """The optional columns of all responses behind one another, rounded as they are stored; None where they were not asked
    for."""
    columns = [(each.entropies, each.self_certainty) for each in scores]
    if any(column is None for each in columns for column in each):
        return None
    return Certainty(*(np.concatenate(column).astype(np.float32) for column in zip(*columns, strict=True)))


def make_label(
    turn: Turn,
    tokens: TokenizedTurn,
    reward: float,
    columns: tuple[Column, Column, Column] = (NO_TOKENS, NO_TOKENS, NO_TOKENS),
    kept: Mapping[str, Any] | None = None,
    certainty: Certainty | None = None,
) -> Label:
    """The label of one turn.

    Args:
        columns: log pi, V and r of its tokens, [H] each; empty for a reward that its tokens have no share in.
        kept: what else is worth keeping of how the reward came about: `reward_info` in `extra_info`.
        certainty: the optional columns, [H] each.
    """
    logprobs, values, rewards = columns
    return Label(
        id=turn.id,
        prompt_id=turn.prompt_id,
        preference=turn.preference,
        response_index=turn.response_index,
        prompt=tokens.prompt,
        response=turn.response,
        reward=reward,
        num_tokens=len(tokens.response_ids),
        num_prompt_tokens=len(tokens.prompt_ids),
        truncated=tokens.truncated,
        token_ids=tokens.response_ids,
        turn=turn.turn,
        token_logprobs=logprobs,
        token_values=values,
        token_rewards=rewards,
        rubric=turn.rubric,
        extra_info=extra_json({**turn.extra, **({KEPT: kept} if kept else {})}),
        prompt_token_ids=tokens.prompt_ids,
        response_other=other_json(turn.beside),
        token_entropies=certainty and certainty.entropies,
        token_self_certainty=certainty and certainty.self_certainty,
    )


def failure(identity: str, prompt_id: str, error: RowError) -> Failure:
    """The error row of a response, or where `identity` is the prompt's of a whole input row."""
    file, _, row = prompt_id.rpartition(":")
    detail = error.detail.encode(errors="backslashreplace").decode()  # it may quote half a character from the row
    return Failure(identity, prompt_id, file, int(row), error.reason, detail)
