"""Which examples label stores hold: pairs of responses, or a prompt's responses. Rows by number, no text and no tokens.

The light columns of every part are read once, several parts at a time; what stays is a few numbers for each row. The
order is that of the stores as they are given, then of the names of their parts, then of the rows: the same for everyone
who reads the same stores. All responses to a prompt are in one part, so an example is too.

The last labelled turn of a response stands for it, as in `pairs.choose_pairs`; only `sft` with `sft.select` = "all"
learns from every labelled turn.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import ConfigError, StoreError
from pipeline.store import LabelStore, in_parallel, read_part
from pipeline.store.commit import rows_uri
from pipeline.store.pairs import CHOICE_COLUMNS, RANKING, Group, PairCounts, choose_pairs, last_turns_by_prompt
from pipeline.training.config import PAIR_OBJECTIVES, TrainConfig

COLUMNS = [*CHOICE_COLUMNS, "num_tokens", "num_prompt_tokens", "truncated"]
READERS = 16  # parts read at the same time
SAME_TOKENS = ("tokens.template", "tokens.append_eos", "labeller")  # what stores have to agree on to be learnt together
RELATIVE = ("awr", "grpo", "reinforce")  # objectives of advantages

Integers = NDArray[np.integer[Any]]


class Source(NamedTuple):
    """A finished label store."""

    uri: str
    fingerprint: str
    description: dict[str, Any]  # what the fingerprint stands for
    records: str  # sha256 over the digests of its parts
    pictured: bool = False  # whether any of its prompts has a picture

    @property
    def of_tokens(self) -> bool:
        """Whether it holds log pi, V and r of every token; rewards of whole responses have none."""
        return "labeller" not in self.description

    @property
    def columns(self) -> list[str]:
        """Those that say which examples there are."""
        return [*COLUMNS, RANKING] if self.description.get("input.pairs_from") == "all" else COLUMNS


class LabelPart(NamedTuple):
    """One Parquet file of a store."""

    source: int
    uri: str


@dataclass(frozen=True, slots=True)
class Counts:
    """What was found, and what was left out and why. A prompt counts once under each rubric."""

    labels: int = 0
    turns: int = 0  # labels left out, because a later turn stands for their response
    prompts: int = 0
    rubrics: frozenset[str] = frozenset()
    pairs: PairCounts = field(default_factory=PairCounts)
    alone: int = 0  # prompts left out, because they have one response and it takes two
    single: int = 0  # prompts kept where the best of one response is taken
    ties: int = 0  # prompts kept whose responses all have the same reward
    cut: int = 0  # labels learnt from whose response was cut off: it does not show how one ends

    def __add__(self, other: "Counts") -> "Counts":
        rubrics = self.rubrics | other.rubrics
        sums = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(Counts) if f.name != "rubrics"}
        return Counts(**sums, rubrics=rubrics)

    def rows(self) -> list[tuple[str, str]]:
        """The lines of a table: (name, number), those of nothing left out."""
        pairs = self.pairs
        lines = {
            "Labels": self.labels,
            "Prompts": self.prompts,
            "Pairs of known preference": pairs.known,
            "Of these against the reward": pairs.against,
            "Of these by score or rank": pairs.by_score,
            "Pairs by reward": pairs.by_reward,
            "Prompts of one reward throughout": self.ties,
            "Prompts of one response": self.single,
            "Responses that were cut off": self.cut,
            "Left out: prompts without two responses": self.alone + pairs.alone,
            "Left out: prompts whose scores or ranks prefer none": pairs.undecided,
            "Left out: prompts of one reward throughout": pairs.ties,
            "Left out: pairs of too small a margin": pairs.close,
            "Left out: labels of earlier turns": self.turns,
        }
        named = [("Rubrics", ", ".join(sorted(self.rubrics)))] if self.rubrics else []
        return [(name, f"{number:,}") for name, number in lines.items() if number] + named


@dataclass(frozen=True, eq=False)
class Examples:
    """E examples of R rows in all. Rows of example e: positions offsets[e] to offsets[e + 1] of the arrays of [R].

    A pair is (chosen, rejected). Examples stand in the order of their parts.
    """

    sources: Sequence[Source]
    parts: Sequence[LabelPart]
    counts: Counts
    pairs: bool
    part: NDArray[np.int32]  # [E], number in `parts`
    group: NDArray[np.int64]  # [E], number of its prompt under its rubric
    draw: NDArray[np.float64]  # [E], in [0, 1), of its prompt whatever the rubric: `split`
    offsets: NDArray[np.int64]  # [E + 1]
    rows: NDArray[np.int32]  # [R], within the part
    prompt_tokens: NDArray[np.int32]  # [R]
    tokens: NDArray[np.int32]  # [R]
    rewards: NDArray[np.float64]  # [R]

    def __len__(self) -> int:
        return len(self.part)

    def positions(self, numbers: Sequence[int] | Integers) -> NDArray[np.int64]:
        """Where the rows of some examples stand in the arrays of [R], one example after another."""
        chosen = np.asarray(numbers, np.int64)
        sizes = self.offsets[chosen + 1] - self.offsets[chosen]
        return np.repeat(self.offsets[chosen] - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())

    @property
    def pictured(self) -> bool:
        """Whether any prompt of the stores has a picture."""
        return any(source.pictured for source in self.sources)

    def places(self, positions: Integers) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Part, and row within it, of some of the R rows."""
        owners = np.searchsorted(self.offsets, positions, side="right") - 1
        return self.part[owners], self.rows[positions]

    def take(self, numbers: Sequence[int] | Integers) -> "Examples":
        """Some of the examples, in this order. `counts` stay those of all."""
        chosen = np.asarray(numbers, np.int64)
        positions = self.positions(chosen)
        of_rows = {name: getattr(self, name)[positions] for name in ("rows", "prompt_tokens", "tokens", "rewards")}
        of_examples = {name: getattr(self, name)[chosen] for name in ("part", "group", "draw")}
        sizes = self.offsets[chosen + 1] - self.offsets[chosen]
        return replace(self, **of_rows, **of_examples, offsets=np.append(0, np.cumsum(sizes)))

    def split(self, eval_share: float) -> tuple["Examples", "Examples"]:
        """The examples to learn from, and those of about `eval_share` of the prompts, which are kept from learning.

        A prompt is on one side with all its rubrics, whatever else the stores hold. Raises ConfigError where a side of
        the two stays empty.
        """
        held = self.draw < eval_share
        if eval_share and (held.all() or not held.any()):
            side = "training" if held.all() else "measuring"
            raise ConfigError(
                f"train.eval_share = {eval_share:g} of {len(self):,} examples leaves none for {side}; give another share, "
                "or another train.seed"
            )
        return self.take(np.flatnonzero(~held)), self.take(np.flatnonzero(held))

    def describe(self) -> dict[str, Any]:
        """What decides which rows the examples are: a run goes on only where this is the same. Places do not count."""
        stores = [{"fingerprint": source.fingerprint, "records": source.records} for source in self.sources]
        return {"stores": stores, "examples": len(self)}

    @property
    def rows_digest(self) -> str:
        """sha256 of which rows of which parts the examples are of: other settings may take as many others."""
        parts, rows = self.places(np.arange(len(self.rows)))
        return hashlib.sha256(parts.tobytes() + rows.tobytes()).hexdigest()


class _PartExamples(NamedTuple):
    """The e examples of one part, r rows in all."""

    counts: Counts
    sizes: NDArray[np.int64]  # [e], rows of each
    groups: NDArray[np.int64]  # [e], from 0
    draws: NDArray[np.float64]  # [e]
    columns: tuple[NDArray[Any], ...]  # [r]: row, num_prompt_tokens, num_tokens, reward


def find_examples(config: TrainConfig) -> Examples:
    """All examples of `train.labels` for `train.objective`.

    Raises:
        StoreError: where a store is missing, not finished, damaged or empty.
        ConfigError: where the stores do not go together, lack what the objective needs, or give no example.
    """
    sources, parts = _open(config)
    examples = in_parallel(lambda part: _of_part(part.uri, sources[part.source].columns, config), parts, READERS)
    by_part = [of_part for _, of_part in examples]
    counts = sum((each.counts for each in by_part), Counts())
    sizes = np.concatenate([each.sizes for each in by_part])
    _require_examples(config, counts, len(sizes))
    begins = np.cumsum([0, *(each.counts.prompts for each in by_part[:-1])])
    rows, prompt_tokens, tokens, rewards = (
        np.concatenate(column) for column in zip(*(each.columns for each in by_part), strict=True)
    )
    return Examples(
        sources=sources,
        parts=parts,
        counts=counts,
        pairs=config.train.objective in PAIR_OBJECTIVES,
        part=np.repeat(np.arange(len(by_part), dtype=np.int32), [len(each.sizes) for each in by_part]),
        group=np.concatenate([begin + each.groups for begin, each in zip(begins, by_part, strict=True)]),
        draw=np.concatenate([each.draws for each in by_part]),
        offsets=np.append(0, np.cumsum(sizes)),
        rows=rows,
        prompt_tokens=prompt_tokens,
        tokens=tokens,
        rewards=rewards,
    )


def comparisons(config: TrainConfig) -> list[str]:
    """What compares the responses to a prompt with each other, so that one alone teaches nothing; none: nothing does."""
    advantage = config.advantage
    if config.train.objective == "rwr":
        return ["train.objective = rwr"]
    if config.train.objective not in RELATIVE:
        return []
    settings = (
        [f"advantage.baseline = {advantage.baseline}"] if advantage.baseline in ("group", "leave-one-out") else []
    )
    return settings + (["advantage.scale = group"] if advantage.scale == "group" else [])


def read_columns(uri: str, columns: list[str]) -> pa.Table:
    """Some columns of a part. Raises StoreError where it is gone or damaged."""
    try:
        return read_part(uri, columns)
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{uri} cannot be read: {error}; see endoreward validate") from error


# Stores


def _open(config: TrainConfig) -> tuple[list[Source], list[LabelPart]]:
    if not config.train.labels:
        raise ConfigError("train.labels: no labels to learn from; give a label store that endoreward label made")
    sources: list[Source] = []
    parts: list[LabelPart] = []
    for number, uri in enumerate(config.train.labels):
        source, uris = _open_store(uri)
        _require_tokens(config, source)
        for other in sources:
            _require_same(other, source)
        sources.append(source)
        parts += [LabelPart(number, each) for each in uris]
    return sources, parts


def _open_store(uri: str) -> tuple[Source, list[str]]:
    """A store and the places of its parts, in the order of their names."""
    store = LabelStore(uri)
    store.require()
    survey = store.survey()
    progress = store.progress(survey)
    if not progress.complete:
        raise StoreError(
            f"{uri} is not finished: {progress.done_shards:,} of {progress.shards:,} shards are labelled; run its label "
            "command again, then train"
        )
    shards = survey.labelled
    if not shards:
        raise StoreError(f"{uri} holds no label: there is nothing to learn from; endoreward report says why")
    digest = hashlib.sha256("".join(f"{shard.name} {shard.labels.sha256}\n" for shard in shards).encode())
    pictured = bool(survey.stats.pictured)
    source = Source(uri, store.fingerprint(), store.description(), digest.hexdigest(), pictured)
    return source, [rows_uri(uri, "labels", shard) for shard in shards]


def _require_tokens(config: TrainConfig, source: Source) -> None:
    objective, advantage = config.train.objective, config.advantage
    weighs = objective in (*RELATIVE, "rwr")
    wanted = [
        ("advantage.credit = tokens", "rewards", weighs and advantage.credit == "tokens"),
        ("advantage.baseline = value", "values", objective in RELATIVE and advantage.baseline == "value"),
        (f"train.objective = {objective}", "log-probabilities", objective in ("grpo", "reinforce")),
    ]
    for setting, column, needed in wanted:
        if needed and not source.of_tokens:
            raise ConfigError(
                f"{setting} needs the {column} of tokens, and {source.uri} holds none: its rewards "
                f"({source.description['labeller']}) are of whole responses; take labels that endoreward label made, or "
                "another setting"
            )


def _require_same(first: Source, second: Source) -> None:
    if (first.fingerprint, first.records) == (second.fingerprint, second.records):
        raise ConfigError(f"train.labels: {first.uri} and {second.uri} hold the same labels; give them once")
    differ = [name for name in SAME_TOKENS if first.description.get(name) != second.description.get(name)]
    if differ:
        raise ConfigError(
            f"train.labels: {first.uri} and {second.uri} cannot be learnt from together: they differ in {', '.join(differ)}, "
            "so one policy would see two kinds of text; label both alike, or train on one after the other"
        )


# Rows


def _of_part(uri: str, columns: list[str], config: TrainConfig) -> _PartExamples:
    labels = read_columns(uri, columns)
    last = last_turns_by_prompt(labels)
    rubrics = frozenset(rubric for _, rubric in last if rubric is not None)
    every = config.train.objective == "sft" and config.sft.select == "all"
    turns = 0 if every else labels.num_rows - sum(len(rows) for rows, _ in last.values())
    counts = Counts(labels.num_rows, turns, len(last), rubrics)
    names = list(zip(labels["prompt_id"].to_pylist(), labels["rubric"].to_pylist(), strict=True))
    if config.train.objective in PAIR_OBJECTIVES:
        pairs = config.pairs
        pairs_of_rows, paired = choose_pairs(labels, pairs.preference, pairs.select, pairs.min_margin)
        flat, sizes, counts = pairs_of_rows.ravel(), np.full(len(pairs_of_rows), 2), replace(counts, pairs=paired)
    else:
        if every:
            groups: dict[Group, list[int]] = {group: [] for group in last}
            for row, name in enumerate(names):
                groups[name].append(row)
            chosen = list(groups.values())
        else:
            chosen, counts = _selected([rows for rows, _ in last.values()], labels["reward"].to_numpy(), config, counts)
        flat = np.array([row for rows in chosen for row in rows], np.int64)
        sizes = np.array([len(rows) for rows in chosen], np.int64)
    counts = replace(counts, cut=int(labels["truncated"].to_numpy()[np.unique(flat)].sum()))
    numbers = {group: number for number, group in enumerate(last)}
    groups_of_rows = np.array([numbers[name] for name in names])
    draws = np.array([_draw(prompt_id, config.train.seed) for prompt_id, _ in last])
    owners = groups_of_rows[flat[np.cumsum(sizes) - sizes]]
    light = (labels[name].to_numpy()[flat] for name in ("num_prompt_tokens", "num_tokens", "reward"))
    return _PartExamples(counts, sizes, owners, draws[owners], (flat.astype(np.int32), *light))


def _selected(
    groups: list[list[int]], rewards: NDArray[np.float64], config: TrainConfig, counts: Counts
) -> tuple[list[list[int]], Counts]:
    """What is learnt of each prompt's responses, and of how many prompts there is only one."""
    if comparisons(config):
        whole = [rows for rows in groups if len(rows) > 1]
        ties = sum(bool((rewards[rows] == rewards[rows[0]]).all()) for rows in whole)
        return whole, replace(counts, alone=len(groups) - len(whole), ties=ties)
    if config.train.objective != "sft":
        return groups, counts
    best = [[max(rows, key=lambda row: rewards[row])] for rows in groups]
    return best, replace(counts, single=sum(len(rows) == 1 for rows in groups))


def _draw(prompt_id: str, seed: int) -> float:
    """A number in [0, 1) that is the prompt's own."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{prompt_id}".encode()).digest()[:6], "big") / 2**48


# Nothing to learn from


def _require_examples(config: TrainConfig, counts: Counts, examples: int) -> None:
    objective = config.train.objective
    if objective in PAIR_OBJECTIVES and not examples:
        reasons = "; ".join(_why_no_pairs(counts.pairs, config.pairs.min_margin))
        raise ConfigError(f"train.objective = {objective}: no pair is left of {counts.prompts:,} prompts: {reasons}")
    if objective == "sft" and config.sft.select == "best" and counts.single == counts.prompts:
        raise ConfigError(
            "sft.select = best: each prompt has one response, so nothing is selected; label several responses to a "
            "prompt, or set sft.select = all"
        )
    if not examples:
        needs = comparisons(config)
        verb = "compares" if len(needs) == 1 else "compare"
        remedy = "" if objective == "rwr" else ", or set advantage.baseline = value or none, and advantage.scale = none"
        raise ConfigError(
            f"{' and '.join(needs)} {verb} the responses to a prompt, and each of the {counts.prompts:,} prompts has one; "
            f"label several responses to a prompt{remedy}"
        )


def _why_no_pairs(pairs: PairCounts, min_margin: float) -> Iterator[str]:
    why: Mapping[str, int] = {
        "prompts have no two responses to compare (label several, or set pairs.preference = reward)": pairs.alone,
        "prompts have scores or ranks that prefer no response (set pairs.preference = reward)": pairs.undecided,
        "prompts have responses of one reward throughout": pairs.ties,
        f"pairs have a margin of at most {min_margin:g} (lower pairs.min_margin)": pairs.close,
    }
    return (f"{number:,} {reason}" for reason, number in why.items() if number)
