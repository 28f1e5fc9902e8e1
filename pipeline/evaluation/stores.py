"""From label stores to items: what each reward says of a benchmark's rows, and which rows are not complete."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from math import comb
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.corpus.samples import Preference, parse_turn_id
from pipeline.evaluation.benchmarks.base import Benchmark, item_name
from pipeline.evaluation.benchmarks.items import Item
from pipeline.evaluation.documents import Judgements
from pipeline.evaluation.reading import COLUMNS, PROMPT, LabelRows
from pipeline.evaluation.variants import Parts, Variant
from pipeline.rewards.derive import TOKEN_COLUMNS
from pipeline.rewards.labellers import UNPARSABLE
from pipeline.store import Committed, LabelStore
from pipeline.store.schema import LABELS, WIDE_LABELS
from pipeline.store.turns import Response

NO_ANSWER = "no_answer"
Key = tuple[str, str | None]  # prompt_id and rubric; a row that failed before rubrics were applied has None


@dataclass
class Evaluated:
    """All that one variant says of a benchmark."""

    variant: Variant
    items: list[Item]  # complete, and checked by the benchmark
    incomplete: Counter[str]  # items that are not, by reason
    examples: list[str]  # names of some of those
    responses: int = 0  # that have a reward, those of incomplete items too
    truncated: int = 0
    tokens: int = 0
    judgements: Judgements | None = None


@dataclass
class _Failed:
    """What could not be scored."""

    rows: dict[str, str] = field(default_factory=dict)  # reason of a whole input row, by prompt_id
    responses: dict[tuple[str, str | None, Preference | None, int], tuple[int | None, str]] = field(
        default_factory=dict
    )  # the last turn that failed and why; the rubric is None where it failed before rubrics were applied


def evaluated(stores: Mapping[str, LabelStore], variants: Sequence[Variant], benchmark: Benchmark) -> list[Evaluated]:
    """Read each store once, part by part. Raises ConfigError where a variant cannot be made of a store's rows."""
    evaluations = []
    shards = {name: stores[name].survey().shards for name in {name for variant in variants for name in variant.stores}}
    columns = [*COLUMNS, PROMPT] if benchmark.by_prompt else list(COLUMNS)
    for names in dict.fromkeys(variant.stores for variant in variants):
        group = [variant for variant in variants if variant.stores == names]
        failed = _failures([(stores[name], shards[name]) for name in names])
        rewards: dict[str, list[np.ndarray]] = {variant.name: [np.zeros(0)] for variant in group}
        steps: dict[str, list[tuple[float, ...]]] = {variant.name: [] for variant in group}
        tables = [LABELS.empty_table().select(columns)]
        needed = list(dict.fromkeys(name for variant in group for name in variant.optional))
        needed = [*TOKEN_COLUMNS, *needed] if any(variant.tokens for variant in group) else []
        for parts in _parts(stores, shards, names, columns, needed):
            tables.append(parts[names[0]].select(columns))
            for variant in group:
                rewards[variant.name].append(variant.of(parts))
                steps[variant.name] += variant.steps(parts) if variant.steps else []
        labels = pa.concat_tables(tables)
        rows = LabelRows(labels, benchmark.by_prompt)
        reasons = _reasons(rows, failed)
        for variant in group:
            values = np.concatenate(rewards[variant.name])
            items = rows.items(values, steps[variant.name])
            evaluations.append(_evaluated(variant, labels, items, reasons, failed, benchmark))
            evaluations[-1].responses = int(np.isfinite(values).sum())
    return sorted(evaluations, key=lambda each: variants.index(each.variant))


def _parts(
    stores: Mapping[str, LabelStore],
    shards: Mapping[str, Sequence[Committed]],
    names: Sequence[str],
    columns: list[str],
    tokens: list[str],
) -> Iterator[Parts]:
    """The parts of several stores of the same input, the same responses in each: those that all of them have; `tokens` names
    the columns of tokens that they are read with, none where empty."""
    columns = [*columns, "id", "token_ids", *tokens] if tokens else columns
    first, *others = names
    by_name = {name: {shard.name: shard for shard in shards[name]} for name in others}
    for committed in shards[first]:
        own = {first: committed, **{name: by_name[name].get(committed.name) for name in others}}
        parts = {name: _part(stores[name], own[name], columns) for name in names}
        if len(names) > 1:
            shared = set.intersection(*(set(part["id"].to_pylist()) for part in parts.values()))
            parts = {name: _only(part, shared) for name, part in parts.items()}
        if parts[names[0]].num_rows:
            yield parts


def _part(store: LabelStore, shard: Committed | None, columns: list[str]) -> pa.Table:
    if shard is None or not shard.labels.rows:
        return WIDE_LABELS.empty_table().select(columns)
    return store.read_rows("labels", shard, columns)


def _only(part: pa.Table, ids: set[str]) -> pa.Table:
    rows = sorted((label, i) for i, label in enumerate(part["id"].to_pylist()) if label in ids)
    return part.take(pa.array([i for _, i in rows], pa.int64()))


def _failures(stores: Sequence[tuple[LabelStore, Sequence[Committed]]]) -> _Failed:
    failed = _Failed()
    for store, shards in stores:
        for _, errors in store.read("errors", shards):
            for row in errors.to_pylist():
                prompt_id, reason = row["prompt_id"], row["reason"]
                name = parse_turn_id(prompt_id, row["id"])
                if name is None:
                    failed.rows.setdefault(prompt_id, reason)
                    continue
                response = (prompt_id, name.rubric, name.preference, name.index)
                standing = failed.responses.get(response)
                if standing is None or (name.turn or 0) > (standing[0] or 0):
                    failed.responses[response] = (name.turn, reason)
    return failed


def _reasons(rows: LabelRows, failed: _Failed) -> dict[Key, str]:
    """Why items are not complete. A turn that failed before a later one that is labelled is no loss: the last turn of a
    response stands for it."""
    reasons: dict[Key, str] = {}
    rubrics = {rubric for _, rubric, _, _ in rows.last_turns} | {r for _, r, _, _ in failed.responses} or {None}
    applied: list[str | None] = [rubric for rubric in rubrics if rubric is not None] or [None]
    for prompt_id, reason in failed.rows.items():
        reasons |= {(prompt_id, rubric): reason for rubric in applied}
    for (prompt_id, rubric, preference, index), (turn, reason) in failed.responses.items():
        for under in applied if rubric is None else [rubric]:
            labelled = rows.last_turns.get(Response(prompt_id, under, preference, index))
            if labelled is None or turn is None or labelled < turn:
                reasons.setdefault((prompt_id, under), reason)
    return reasons


def _evaluated(
    variant: Variant,
    labels: pa.Table,
    whole: Sequence[Item],
    reasons: Mapping[Key, str],
    failed: _Failed,
    benchmark: Benchmark,
) -> Evaluated:
    incomplete = dict(reasons)
    items = []
    for item in whole:
        key = (item.id, item.rubric)
        if key in incomplete:
            continue
        judged = _with_verdicts(item) if variant.reward == "judge-pairwise" else item
        why = UNPARSABLE if judged is None else _unanswered(judged) or benchmark.check(judged)
        if why is None and judged is not None:
            items.append(judged)
        elif why is not None:
            incomplete[key] = why
    examples = [item_name(Item(prompt_id, rubric=rubric)) for prompt_id, rubric in list(incomplete)[:5]]
    return Evaluated(
        variant,
        items,
        Counter(incomplete.values()),
        examples,
        responses=labels.num_rows,
        truncated=sum(labels["truncated"].to_pylist()),
        tokens=sum(labels["num_tokens"].to_pylist()),
        judgements=_judgements(variant, labels, whole, failed),
    )


def _unanswered(item: Item) -> str | None:
    """Why an item is not complete where a response has no answer that a reward is about."""
    answers = (*item.chosen, *item.rejected, *item.others)
    return NO_ANSWER if any(np.isnan(answer.reward) for answer in answers) else None


def _with_verdicts(item: Item) -> Item | None:
    """A pairwise judge's verdicts, from what its labels keep; None where one could not be read, or not asked for."""
    orders = [answer.extra["verdicts"] for answer in (*item.chosen, *item.others)]
    if any(outcome is None for verdicts in orders for outcome in verdicts.values()):
        return None
    if not item.chosen and not item.ranking:
        return item
    pairs = product(range(len(item.chosen)), range(len(item.rejected)))
    verdicts = {(i, j): item.chosen[i].extra["verdicts"].get(f"rejected:{j}") for i, j in pairs}
    verdicts |= {(i, j): item.others[i].extra["verdicts"].get(f"response:{j}") for i, j in item.ranking}
    if None in verdicts.values():
        return None
    return replace(item, verdicts={pair: float(outcome) for pair, outcome in verdicts.items()})


def _judgements(variant: Variant, labels: pa.Table, items: Sequence[Item], failed: _Failed) -> Judgements | None:
    unparsable = [response for response, (_, reason) in failed.responses.items() if reason == UNPARSABLE]
    if variant.reward == "judge-pointwise":
        return Judgements(asked=labels.num_rows + len(unparsable), unparsable=len(unparsable), disagree=None)
    if variant.reward != "judge-pairwise":
        return None
    outcomes: list[float] = []
    for item in items:
        answers: list[Any] = [*item.chosen, *item.others]
        read = [o for answer in answers for o in answer.extra["verdicts"].values() if o is not None]
        # without preferences a pair stands with both of its responses
        outcomes += read if item.chosen else sorted(read, key=abs)[::2]
    asked = _pairs_asked(labels, unparsable)
    return Judgements(asked=asked, unparsable=asked - len(outcomes), disagree=outcomes.count(0))


def _pairs_asked(labels: pa.Table, unparsable: Sequence[tuple[str, str | None, Preference | None, int]]) -> int:
    """Pairs that a pairwise judge was shown: of responses with a label, or without one readable judgement."""
    names = (labels[name].to_pylist() for name in ("prompt_id", "rubric", "preference", "response_index"))
    sides = Counter(
        (prompt_id, rubric, kind) for prompt_id, rubric, kind, _ in {*zip(*names, strict=True), *unparsable}
    )
    prompts = {key[:2] for key in sides}
    return sum(sides[*key, "chosen"] * sides[*key, "rejected"] + comb(sides[*key, None], 2) for key in prompts)
