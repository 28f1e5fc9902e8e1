"""Which examples stores hold, against enumeration of what is written; stores and settings that cannot be learnt from."""

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from label_stores import label_store
from tiny import CHATML, save_model

from pipeline.corpus import Shard
from pipeline.corpus.samples import turn_id
from pipeline.errors import ConfigError, StoreError
from pipeline.rewards.labellers import Verifier
from pipeline.store import Label, LabelStore, commit
from pipeline.store.pairs import PairCounts
from pipeline.training.config import TrainConfig
from pipeline.training.examples import Examples, find_examples

DESCRIPTION: dict[str, Any] = {"tokens.template": None, "tokens.append_eos": True, "reward.alpha": 1.0}
GROUPED = ("awr", "rwr", "grpo", "reinforce")


def label(
    prompt: str, kind: str | None, reward: float, index: int = 0, turn: int = 0, rubric: str | None = None
) -> Label:
    length = 1 + index + turn
    return Label(
        id=turn_id(prompt, kind, index, turn, rubric),  # type: ignore[arg-type]
        prompt_id=prompt,
        preference=kind,  # type: ignore[arg-type]
        response_index=index,
        prompt=[],
        response="text",
        reward=reward,
        num_tokens=length,
        num_prompt_tokens=7 + turn,
        truncated=False,
        token_ids=[0] * length,
        turn=turn,
        token_logprobs=np.zeros(length, np.float32),
        token_values=np.zeros(length, np.float32),
        token_rewards=np.zeros(length, np.float32),
        rubric=rubric,
        extra_info="{}",
    )


def stored(folder: Path, *parts: Sequence[Label], **description: Any) -> str:
    """A finished store with these parts."""
    store = LabelStore(str(folder))
    store.open_for_writing(DESCRIPTION | description)
    for number, labels in enumerate(parts):
        commit(store.uri, Shard("a", number, number, number + 1, 1, "0" * 64, 0, 10), "f", 0, labels, [])
    return store.uri


def configured(*stores: str, objective: str = "dpo", seed: int = 0, **sections: Any) -> TrainConfig:
    train = {"labels": stores, "objective": objective, "seed": seed}
    return TrainConfig.model_validate({"train": train, **sections})


def ids_of(examples: Examples) -> list[list[str]]:
    """The labels of each example, read from the parts."""
    tables = [pq.read_table(part.uri)["id"].to_pylist() for part in examples.parts]
    found = []
    for number in range(len(examples)):
        parts, rows = examples.places(examples.positions([number]))
        found.append([tables[part][row] for part, row in zip(parts, rows, strict=True)])
    return found


def some_labels() -> list[Label]:
    """Of 300 prompts, all that may come together: rubrics, preferences or none, several responses and turns, equal rewards."""
    rng = random.Random(0)
    found = []
    for prompt in range(300):
        kinds = rng.choice([(None,), (None,), ("chosen", "rejected"), ("chosen", "rejected", None)])
        every = itertools.product(rng.choice([(None,), ("x", "y")]), kinds, range(4), range(2))
        picked = [each for each in every if rng.random() < 0.4]
        rng.shuffle(picked)
        for rubric, kind, index, turn in picked:
            found.append(label(f"a:{prompt}", kind, rng.choice([-1.5, 0.0, 0.25, 2.0]), index, turn, rubric))
    return found


LABELS = some_labels()


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> str:
    """LABELS as a store of two parts."""
    cut = next(n for n, each in enumerate(LABELS) if each.prompt_id == "a:150")
    return stored(tmp_path_factory.mktemp("many") / "store", LABELS[:cut], LABELS[cut:])


def siblings(labels: Sequence[Label]) -> list[list[Label]]:
    """By definition: of each prompt under a rubric, the last turn of every response, in the order that they begin in."""
    groups = dict.fromkeys((each.prompt_id, each.rubric) for each in labels)
    found = []
    for group in groups:
        members = [each for each in labels if (each.prompt_id, each.rubric) == group]
        names = dict.fromkeys((each.preference, each.response_index) for each in members)
        turns = [[e for e in members if (e.preference, e.response_index) == name] for name in names]
        found.append([max(each, key=lambda e: e.turn) for each in turns])
    return found


def expected_pairs(labels: Sequence[Label], preference: str, select: str, least: float) -> tuple[list[Any], PairCounts]:
    known, by_reward, counts = [], [], PairCounts()
    for group in siblings(labels):
        chosen = [each for each in group if each.preference == "chosen"]
        rejected = [each for each in group if each.preference == "rejected"]
        if preference == "known" and chosen and rejected:
            known += [(a, b) for a in chosen for b in rejected]
        elif len(group) < 2 or (preference == "known" and (chosen or rejected)):
            counts += PairCounts(alone=1)
        elif len({each.reward for each in group}) == 1:
            counts += PairCounts(ties=1)
        else:
            rewards = [each.reward for each in group]
            every = [(a, b) for i, a in enumerate(group) for b in group[i + 1 :]]
            every = [(b, a) if b.reward > a.reward else (a, b) for a, b in every]
            if select == "best-worst":
                every = [(group[rewards.index(max(rewards))], group[rewards.index(min(rewards))])]
            kept = [(a, b) for a, b in every if a.reward - b.reward > least]
            by_reward += kept
            counts += PairCounts(by_reward=len(kept), close=len(every) - len(kept))
    counts += PairCounts(known=len(known), against=sum(a.reward < b.reward for a, b in known))
    return [[a.id, b.id] for a, b in known + by_reward], counts


@pytest.mark.parametrize("preference", ["known", "reward"])
@pytest.mark.parametrize("select", ["best-worst", "all"])
@pytest.mark.parametrize("least", [0.0, 0.25, 2.0])
def test_pairs_are_those_of_the_definition(many: str, preference: str, select: str, least: float) -> None:
    told = {"preference": preference, "select": select, "min_margin": least}
    examples = find_examples(configured(many, pairs=told))
    expected, counts = expected_pairs(LABELS, preference, select, least)
    assert sorted(ids_of(examples)) == sorted(expected) and examples.counts.pairs == counts
    assert min(counts.by_reward, counts.ties, counts.alone) > 0 and (counts.against > 0) == (preference == "known")
    check_columns(examples)


def check_columns(examples: Examples) -> None:
    """Lengths, rewards and groups are those of the rows."""
    by_id = {each.id: each for each in LABELS}
    rows = [by_id[name] for names in ids_of(examples) for name in names]
    assert examples.rewards.tolist() == [each.reward for each in rows]
    assert examples.tokens.tolist() == [each.num_tokens for each in rows]
    assert examples.prompt_tokens.tolist() == [each.num_prompt_tokens for each in rows]
    groups = {(by_id[names[0]].prompt_id, by_id[names[0]].rubric): [] for names in ids_of(examples)}  # type: ignore[var-annotated]
    for names, group in zip(ids_of(examples), examples.group.tolist(), strict=True):
        groups[by_id[names[0]].prompt_id, by_id[names[0]].rubric].append(group)
    assert all(len(set(numbers)) == 1 for numbers in groups.values())
    assert len({numbers[0] for numbers in groups.values()}) == len(groups)


@pytest.mark.parametrize("objective", [*GROUPED, "best", "all"])
def test_groups_are_those_of_the_definition(many: str, objective: str) -> None:
    told = {"objective": "sft", "sft": {"select": objective}} if objective in ("best", "all") else {}
    examples = find_examples(configured(many, **({"objective": objective} | told)))
    groups = siblings(LABELS)
    several = [group for group in groups if len(group) > 1]
    every = {
        (group[0].prompt_id, group[0].rubric): [
            each.id for each in LABELS if (each.prompt_id, each.rubric) == (group[0].prompt_id, group[0].rubric)
        ]
        for group in groups
    }
    expected = {
        "best": [[max(group, key=lambda each: each.reward).id] for group in groups],
        "all": list(every.values()),
    }.get(objective, [[each.id for each in group] for group in several])
    assert ids_of(examples) == expected
    check_columns(examples)
    counts = examples.counts
    assert counts.labels == len(LABELS) and counts.prompts == len(groups)
    assert counts.turns == (0 if objective == "all" else len(LABELS) - sum(map(len, groups)))
    if objective in GROUPED:
        assert counts.alone == len(groups) - len(several) > 0
        assert counts.ties == sum(len({each.reward for each in group}) == 1 for group in several) > 0


def group(prompt: str, *rewards: float) -> list[Label]:
    return [label(prompt, None, reward, index) for index, reward in enumerate(rewards)]


def test_several_parts_of_several_stores_in_a_fixed_order(tmp_path: Path) -> None:
    one = stored(tmp_path / "one", group("a:0", 1, 2), [], group("a:1", 3, 4, 5))
    two = stored(tmp_path / "two", group("a:2", 6, 7), **{"reward.alpha": 2.0})
    examples = find_examples(configured(one, two, objective="grpo"))
    assert [part.source for part in examples.parts] == [0, 0, 1]
    assert examples.part.tolist() == [0, 1, 2] and examples.group.tolist() == [0, 1, 2]
    assert examples.offsets.tolist() == [0, 2, 5, 7] and examples.rewards.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert examples.rows.tolist() == [0, 1, 0, 1, 2, 0, 1]
    some = examples.take([2, 0])
    assert some.rewards.tolist() == [6, 7, 1, 2] and some.offsets.tolist() == [0, 2, 4]
    assert ids_of(some) == [ids_of(examples)[2], ids_of(examples)[0]]
    assert len(examples.take([])) == 0


def test_what_was_found_is_a_table(tmp_path: Path) -> None:
    under = [
        label("a:1", kind, r, 0, t, "kind") for kind, r, t in (("chosen", 1, 0), ("chosen", 0, 1), ("rejected", 2, 0))
    ]
    uri = stored(tmp_path / "s", [*group("a:0", 1, 5, 3), *under], [*group("a:2", 1, 1), *group("a:3", 1)])
    assert find_examples(configured(uri, pairs={"select": "all", "min_margin": 2.0})).counts.rows() == [
        ("Labels", "9"),
        ("Prompts", "4"),
        ("Pairs of known preference", "1"),
        ("Of these against the reward", "1"),
        ("Pairs by reward", "1"),
        ("Left out: prompts without two responses", "1"),
        ("Left out: prompts of one reward throughout", "1"),
        ("Left out: pairs of too small a margin", "2"),
        ("Left out: labels of earlier turns", "1"),
        ("Rubrics", "kind"),
    ]
    assert ("Prompts of one reward throughout", "1") in find_examples(configured(uri, objective="awr")).counts.rows()


@pytest.mark.parametrize(("objective", "due"), [("dpo", ["1"]), ("sft", ["1"]), ("grpo", ["3"])])
def test_responses_that_were_cut_off_are_counted_where_they_are_learnt_from(
    objective: str, due: list[str], tmp_path: Path
) -> None:
    cut = [replace(each, truncated=each.reward > 1) for each in group("a:0", 1, 5, 3, 4)]
    uri = stored(tmp_path / "s", cut, group("a:1", 1, 2))
    rows = find_examples(configured(uri, objective=objective, pairs={"select": "best-worst"})).counts.rows()
    assert [number for name, number in rows if name == "Responses that were cut off"] == due
    whole = find_examples(configured(stored(tmp_path / "t", group("a:1", 1, 2)), objective=objective)).counts.rows()
    assert "Responses that were cut off" not in dict(whole)


def test_a_store_that_changed_is_told_by_its_description(tmp_path: Path) -> None:
    one = stored(tmp_path / "one", group("a:0", 1, 2), group("a:1", 1, 2))
    same = stored(tmp_path / "same", group("a:0", 1, 2), group("a:1", 1, 2))
    more = stored(tmp_path / "more", group("a:0", 1, 2), group("a:1", 1, 2), group("a:2", 1))
    other = stored(tmp_path / "other", group("a:0", 1, 2), group("a:1", 1, 3))
    anew = stored(tmp_path / "anew", group("a:0", 1, 2), group("a:1", 1, 2), **{"reward.alpha": 2.0})
    described = [find_examples(configured(uri)).describe() for uri in (one, same, more, other, anew)]
    assert described[0] == described[1] and described[0]["examples"] == 2
    assert all(each != described[0] for each in described[2:])


def test_other_rows_of_as_many_examples_are_told_by_their_digest(tmp_path: Path) -> None:
    """Of which a computed reference is kept."""
    under = [label("a:0", "chosen", 1.0), label("a:0", "rejected", 2.0), label("a:0", "rejected", 3.0, 1)]
    uri = stored(tmp_path / "s", under, group("a:1", 1, 2))
    known, by_reward = (
        find_examples(configured(uri, pairs={"preference": name, "select": "all"})) for name in ("known", "reward")
    )
    known, by_reward = known.take([0]), by_reward.take([0])
    assert known.describe() == by_reward.describe() and ids_of(known) != ids_of(by_reward)
    assert known.rows_digest != by_reward.rows_digest


def test_held_out_prompts_are_the_same_under_every_rubric_and_in_every_store(tmp_path: Path) -> None:
    def labels(prompt: int) -> list[Label]:
        return [label(f"a:{prompt}", None, r, r, 0, rubric) for rubric in ("x", "y") for r in (0, 1)]

    one = stored(tmp_path / "one", *([x for n in range(at, at + 100) for x in labels(n)] for at in (0, 100, 200, 300)))
    two = stored(tmp_path / "two", [x for n in range(0, 400, 40) for x in labels(n)], **{"reward.alpha": 2.0})
    examples = find_examples(configured(one, two, objective="grpo"))
    train, held = examples.split(0.25)
    prompts = [
        {name.partition("@")[0].rsplit(":", 3)[0] for names in ids_of(e) for name in names} for e in (train, held)
    ]
    assert not prompts[0] & prompts[1] and len(prompts[0] | prompts[1]) == 400
    assert len(train) + len(held) == len(examples) and 60 < len(prompts[1]) < 140
    alone = find_examples(configured(two, objective="grpo")).split(0.25)[1]
    assert {name for names in ids_of(alone) for name in names} <= {name for names in ids_of(held) for name in names}
    again = find_examples(configured(one, objective="grpo", seed=1)).split(0.25)[1]
    assert ids_of(again) != ids_of(find_examples(configured(one, objective="grpo")).split(0.25)[1])
    assert [len(each) for each in examples.split(0.0)] == [len(examples), 0]
    for share, side in ((1e-9, "measuring"), (1 - 1e-9, "training")):
        with pytest.raises(ConfigError, match=f"leaves none for {side}"):
            examples.split(share)


# What cannot be learnt from


def refused(kind: type[Exception], *stores: str, **told: Any) -> str:
    with pytest.raises(kind) as error:
        find_examples(configured(*stores, **told))
    assert str(error.value)[-1].isalnum() or str(error.value).endswith(")")
    return str(error.value)


def test_stores_that_are_none(tmp_path: Path) -> None:
    assert "no labels to learn from" in refused(ConfigError)
    assert "is not a label store" in refused(StoreError, str(tmp_path / "nothing"))
    assert "holds no label" in refused(StoreError, stored(tmp_path / "empty"))
    assert "holds no label" in refused(StoreError, stored(tmp_path / "failed", [], []))
    gone = stored(tmp_path / "gone", group("a:0", 1, 2))
    [part] = Path(gone, "labels").iterdir()
    part.unlink()
    assert "cannot be read" in refused(StoreError, gone)


def test_an_unfinished_store_is_refused(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", CHATML)
    rows = [{"prompt": "q", "chosen": "a", "rejected": "b"}] * 5
    uri = label_store(tmp_path / "store", model, rows, shards=2).uri
    assert "is not finished: 2 of 3 shards are labelled; run its label command again" in refused(StoreError, uri)


def test_objectives_of_tokens_need_tokens(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", CHATML)
    rows = [{"prompt": "q", "chosen": "a", "rejected": "b"}]
    uri = label_store(tmp_path / "store", model, rows, kind=Verifier).uri
    for objective in ("grpo", "reinforce"):
        said = refused(ConfigError, uri, objective=objective)
        assert f"train.objective = {objective} needs the log-probabilities of tokens, and {uri} holds none" in said
    said = refused(ConfigError, uri, objective="awr", advantage={"credit": "tokens"})
    assert (
        "advantage.credit = tokens needs the rewards of tokens" in said and "(verifier) are of whole responses" in said
    )
    said = refused(ConfigError, uri, objective="awr", advantage={"baseline": "value", "scale": "none"})
    assert "advantage.baseline = value needs the values of tokens" in said
    for objective in ("dpo", "awr", "rwr", "sft"):
        assert len(find_examples(configured(uri, objective=objective))) == 1


def test_no_pair_says_why(tmp_path: Path) -> None:
    uri = stored(
        tmp_path / "s", [*group("a:0", 1), *group("a:1", 2, 2), *group("a:2", 1, 2), label("a:3", "chosen", 1)]
    )
    said = refused(ConfigError, uri, pairs={"min_margin": 1.0})
    assert "train.objective = dpo: no pair is left of 4 prompts: 2 prompts have no two responses to compare" in said
    assert "1 prompts have responses of one reward throughout; 1 pairs have a margin of at most 1 (lower" in said


def test_one_response_to_a_prompt_is_too_few_to_compare(tmp_path: Path) -> None:
    uri = stored(tmp_path / "s", [*group("a:0", 1), *group("a:1", 2)])
    said = refused(ConfigError, uri, objective="rwr")
    assert said.startswith(
        "train.objective = rwr compares the responses to a prompt, and each of the 2 prompts has one"
    )
    for objective in ("awr", "grpo", "reinforce"):
        said = refused(ConfigError, uri, objective=objective)
        assert said.startswith("advantage.baseline = group and advantage.scale = group compare")
        said = refused(ConfigError, uri, objective=objective, advantage={"baseline": "value"})
        assert said.startswith("advantage.scale = group compares") and "set advantage.baseline = value or none" in said
        found = find_examples(configured(uri, objective=objective, advantage={"baseline": "none", "scale": "none"}))
        assert len(found) == 2
    assert "sft.select = best: each prompt has one response" in refused(ConfigError, uri, objective="sft")
    assert len(find_examples(configured(uri, objective="sft", sft={"select": "all"}))) == 2


def test_stores_that_do_not_go_together(tmp_path: Path) -> None:
    one = stored(tmp_path / "one", group("a:0", 1, 2))
    copy = stored(tmp_path / "copy", group("a:0", 1, 2))
    assert f"{one} and {copy} hold the same labels; give them once" in refused(ConfigError, one, copy)
    model = stored(tmp_path / "model", group("a:0", 1, 2), **{"model.content": "x", "model.max_length": 9})
    assert len(find_examples(configured(one, model))) == 2  # another model, but the same text
    other = stored(tmp_path / "other", group("a:0", 1, 2), **{"tokens.template": "x", "tokens.append_eos": False})
    said = refused(ConfigError, one, other)
    assert "they differ in tokens.template, tokens.append_eos" in said and "label both alike" in said
