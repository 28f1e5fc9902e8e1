"""Pairs of scores and ranks (`input.pairs_from` = "all"), against enumeration: from a corpus to every use of its pairs."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from corpora import plan, scored, write
from hypothesis import given, settings
from hypothesis import strategies as st
from label_stores import label_store
from tiny import CHATML, save_model

from jobs.label.preview import first_preference
from jobs.stores.export import explain, export
from pipeline.config import InputConfig, RewardConfig
from pipeline.corpus.labels.rules import ByScores
from pipeline.corpus.ranking import ranked_pairs
from pipeline.corpus.samples import turn_id
from pipeline.errors import ConfigError, StoreError
from pipeline.evaluation.benchmarks.pairs import Pairs
from pipeline.evaluation.bias import bias
from pipeline.evaluation.reading import items_of
from pipeline.evaluation.stores import _with_verdicts
from pipeline.report.responses import choose_cards, draw_responses
from pipeline.rewards.derive import outcomes
from pipeline.store import Label, LabelStore, part_uri, read_part
from pipeline.store.pairs import PairCounts, choose_pairs
from pipeline.store.schema import extra_json, labels_table
from pipeline.store.summary import ShardStats, find_pairs
from pipeline.training.config import TrainConfig
from pipeline.training.examples import find_examples

TEXTS = ("A whale sings.", "A mouse.", "A horse runs far.", "No idea.")


def label(
    prompt: str, index: int, reward: float, extra: dict[str, Any], turn: int = 0, rubric: str | None = None
) -> Label:
    none = np.zeros(0, np.float32)
    return Label(
        turn_id(prompt, None, index, turn, rubric), prompt, None, index, [], f"{prompt} {index}", reward, 1 + index, 1, False,
        [], turn, none, none, none, rubric, extra_json(extra),
    )  # fmt: skip


NUMBERS = st.lists(st.one_of(st.none(), st.integers(-3, 3), st.sampled_from([0.5, 1.25])), min_size=1, max_size=6)


def expected(numbers: list[float | None], margin: float, ranks: bool) -> set[tuple[int, int]]:
    """By definition."""
    found = set()
    for i, j in combinations(range(len(numbers)), 2):
        one, other = numbers[i], numbers[j]
        if one is not None and other is not None and abs(one - other) > margin:
            found.add((i, j) if (one > other) != ranks else (j, i))
    return found


@settings(deadline=None)
@given(st.lists(NUMBERS, min_size=1, max_size=4), st.sampled_from([0.0, 0.5, 1.0, 2.5]), st.booleans(), st.randoms())
def test_pairs_are_all_that_differ_by_more_than_the_margin(prompts, margin, ranks, random):
    """Under two rubrics, the last turn of a response standing for it, in whatever order the rows are."""
    rule = ByScores(("scores",), ranks, "all", margin)
    labels, due, counts = [], set(), PairCounts()
    for number, numbers in enumerate(prompts):
        names = [str(i) for i in range(len(numbers))]
        decision = rule.decide({"scores": numbers}, names)
        assert not decision.preferences
        extras = [decision.of_response[name] for name in names]
        better = expected(numbers, margin, ranks)
        assert set(ranked_pairs(extras)) == better and len(ranked_pairs(extras)) == len(better)
        for rubric in ("x", "y"):
            rewards = [random.choice([0.0, 1.0, 2.0]) for _ in names]
            labels += [label(f"a:{number}", i, r, extras[i], 1, rubric) for i, r in enumerate(rewards)]
            labels.append(label(f"a:{number}", 0, 9.0, extras[0], 0, rubric))  # an earlier turn
            due |= {(f"a:{number}", rubric, i, j) for i, j in better}
            against = sum(rewards[i] < rewards[j] for i, j in better)
            alone, undecided = int(len(names) < 2), int(len(names) > 1 and not better)
            counts += PairCounts(len(better), len(better), against, undecided=undecided, alone=alone)
    random.shuffle(labels)
    table = labels_table(labels)
    found, said = choose_pairs(table)
    named = {
        (labels[i].prompt_id, labels[i].rubric, labels[i].response_index, labels[j].response_index) for i, j in found
    }
    assert named == due and len(found) == len(due) and said == counts
    assert {labels[row].turn for pair in found for row in pair} <= {1}
    assert {labels[i].prompt_id == labels[j].prompt_id and labels[i].rubric == labels[j].rubric for i, j in found} <= {
        True
    }
    margins = [labels[i].reward - labels[j].reward for i, j in found]
    pairs = ShardStats.of(table).summary().pairs
    assert (pairs.pairs, pairs.right, pairs.ties) == (
        len(due), sum(m > 0 for m in margins), margins.count(0)
    ) if due else pairs is None  # fmt: skip
    assert sorted(margin for item in items_of(table) for *_, margin in item.pairs()) == sorted(margins)


def test_by_reward_is_still_by_reward():
    numbers = [{"response_score": s, "input.min_margin": 0.0} for s in (1.0, 1.0, 2.0)]
    table = labels_table([label("a:0", i, r, numbers[i]) for i, r in enumerate((3.0, 2.0, 1.0))])
    found, counts = choose_pairs(table, "reward", "all")
    assert found.tolist() == [[0, 1], [0, 2], [1, 2]] and counts == PairCounts(by_reward=3)


@pytest.mark.parametrize(
    "extra", [{"response_score": 1}, {"input.min_margin": 0.0}, {"response_rank": 2, "min_margin": 0}]
)
def test_numbers_alone_prefer_nothing(extra):
    """What stores hold that were labelled without input.pairs_from: their prompts are paired by reward as ever."""
    table = labels_table([label("a:0", i, float(i), extra) for i in range(2)])
    assert not len(find_pairs(table)) and choose_pairs(table)[1] == PairCounts(by_reward=1)
    assert "input.score_key or input.rank_key and input.pairs_from" in (Pairs().check(items_of(table)[0]) or "")


# A corpus of lists of structs


def ultrafeedback(*scores: float | None) -> dict[str, Any]:
    answers = [{"response": t, "overall_score": s, "model": "m"} for t, s in zip(TEXTS, scores, strict=False)]
    return {"source": "s", "instruction": "Which is bigger?", "models": ["m"], "completions": answers}


ROWS = [ultrafeedback(7.5, 3.0, 5.0, 3.0), ultrafeedback(3.0, 3.0), ultrafeedback(1.0, None, 2.0), ultrafeedback(6.0)]
PAIRS = [(0, 0, 1), (0, 0, 2), (0, 0, 3), (0, 2, 1), (0, 2, 3), (2, 2, 0)]  # row, better, worse
ALL = {"pairs_from": "all"}


def test_label_reads_it_and_says_what_it_will_do(tmp_path):
    write(tmp_path, ROWS)
    inputs = plan(tmp_path, InputConfig(**ALL))
    turns = scored(inputs)
    assert {turn.preference for row in turns for turn in row} == {None}
    assert [turn.extra["response_score"] for turn in turns[2]] == [1.0, None, 2.0]
    said = inputs[0].shape.describe()
    assert (
        "2 rows prefer a response, 2 do not: ties, or scores that are not there; 6 pairs of two responses each" in said
    )
    assert "1 responses have no score or rank and are in no pair" in said
    assert first_preference(inputs[0]) == (
        'better in row 0: "A whale sings.", not "A mouse.", because scores 7.5, 3, 5, 3 (completions.overall_score; '
        "input.pairs_from = all)"
    )


def test_ranks_are_better_the_lower_and_a_margin_is_of_ranks(tmp_path):
    write(
        tmp_path,
        [{"question": "q", "answers": [{"answer": t, "rank": r} for t, r in zip("abc", (3, 1, 2), strict=True)]}],
    )
    keys = {"response_key": "answers.answer", "rank_key": "answers.rank", **ALL}
    for margin, due in ((0, [("b", "a"), ("b", "c"), ("c", "a")]), (1, [("b", "a")]), (2, [])):
        [turns] = scored(plan(tmp_path, InputConfig(**keys, min_margin=margin)))
        assert [(turns[i].response, turns[j].response) for i, j in ranked_pairs([t.extra for t in turns])] == due


def test_a_number_that_is_none_is_an_error_row(tmp_path):
    write(tmp_path, [ultrafeedback(1.0, 2.0), {**ultrafeedback(1.0), "completions": [
        {"response": "a", "overall_score": "good"}, {"response": "b", "overall_score": 1}]}])  # fmt: skip
    assert [each if isinstance(each, str) else len(each) for each in scored(plan(tmp_path, InputConfig(**ALL)))] == [
        2,
        "no_score",
    ]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LabelStore:
    folder = tmp_path_factory.mktemp("ranked")
    return label_store(folder / "store", save_model(folder / "model", CHATML), ROWS, input=ALL)


def ids(row: int, *responses: int) -> list[str]:
    return [f"store.jsonl:{row}:response:{index}:0" for index in responses]


def of_store(store: LabelStore) -> list[Any]:
    return [read_part(part_uri(store.uri, "labels", record.shard)) for record in store.records()]


def rewards(store: LabelStore) -> dict[str, float]:
    return {r["id"]: r["reward"] for part in of_store(store) for r in part.select(["id", "reward"]).to_pylist()}


def test_its_fingerprint_says_so_and_others_stay(store):
    assert store.description()["input.pairs_from"] == "all" and "input.min_margin" not in store.description()


def test_its_accuracy_is_of_these_pairs(store):
    reward = rewards(store)
    found = sum((record.stats for record in store.records()), ShardStats()).summary().pairs
    sides = [ids(row, better, worse) for row, better, worse in PAIRS]
    assert found.pairs == len(PAIRS) and found.right == sum(reward[a] > reward[b] for a, b in sides)
    swept = [outcomes(part, RewardConfig(), [RewardConfig()])[0] for part in of_store(store)]
    assert (sum(each.pairs.pairs for each in swept), sum(each.pairs.right for each in swept)) == (6, found.right)


def test_it_is_a_benchmark(store):
    items = [item for part in of_store(store) for item in items_of(part)]
    why = [Pairs().check(item) for item in items]
    assert why[0] is why[2] is None and "prefer" in (why[1] or "") and "prefer" in (why[3] or "")
    figures = Pairs().figures([items[0], items[2]])
    reward = rewards(store)
    right = [[reward[a] > reward[b] for a, b in (ids(row, i, j) for row, i, j in PAIRS if row == of)] for of in (0, 2)]
    assert figures.values["accuracy"] == sum(map(sum, right)) / 6 and figures.comparisons == 6
    assert figures.scores["accuracy"].tolist() == [
        sum(each) / len(each) for each in right
    ] and figures.sizes.tolist() == [5, 1]
    found = bias(items)
    assert found is not None and found.pairs == 6 and found.accuracy == figures.values["accuracy"]


def test_a_judge_of_pairs_says_which_of_a_ranking_is_better():
    verdicts = {(0, 1): 1, (0, 2): 0, (1, 2): -1}
    extras: list[dict[str, Any]] = []
    for i, score in enumerate((3.0, 1.0, 2.0)):
        own = {f"response:{j}": verdicts.get((i, j), -verdicts.get((j, i), 0)) for j in range(3) if j != i}
        extras.append({"response_score": score, "input.min_margin": 0.0, "reward_info": {"verdicts": own}})
    [item] = items_of(labels_table([label("a:0", i, 0.5, extra) for i, extra in enumerate(extras)]))
    judged = _with_verdicts(item)
    assert judged is not None and [margin for *_, margin in judged.pairs()] == [1.0, 0.0, 1.0]  # 0>1, 0>2, 2>1


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_it_is_exported(store, ending, tmp_path, capsys):
    output = tmp_path / f"pairs.{ending}"
    assert export(store.uri, "trl", str(output)) == 0
    read = (
        [json.loads(line) for line in output.read_text().splitlines()]
        if ending == "jsonl"
        else pq.read_table(output).to_pylist()
    )
    found = [(row["prompt_id"], row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in read]
    assert found == [(f"store.jsonl:{row}", TEXTS[better], TEXTS[worse]) for row, better, worse in PAIRS]
    reward = rewards(store)
    assert [row["margin"] for row in read] == [reward[a] - reward[b] for a, b in (ids(*each) for each in PAIRS)]
    said = " ".join(capsys.readouterr().out.split())
    assert "6 pairs with the preference of the input" in said
    assert (
        "Of these, 6 pairs are by score or rank" in said and "1 prompts left out: their scores or ranks prefer" in said
    )


def test_it_is_learnt_from(store):
    examples = find_examples(TrainConfig.model_validate({"train": {"labels": [store.uri]}}))
    labels = [part["id"].to_pylist() for part in of_store(store)]
    parts, rows = examples.places(examples.positions(range(len(examples))))
    found = [labels[part][row] for part, row in zip(parts, rows, strict=True)]
    assert [found[i : i + 2] for i in range(0, len(found), 2)] == [ids(*each) for each in PAIRS]
    lines = dict(examples.counts.rows())
    assert lines["Pairs of known preference"] == lines["Of these by score or rank"] == "6"
    assert lines["Left out: prompts whose scores or ranks prefer none"] == "1" and "Pairs by reward" not in lines
    against = sum(rewards(store)[a] < rewards(store)[b] for a, b in (ids(*each) for each in PAIRS))
    assert lines.get("Of these against the reward", "0") == str(against)
    settings = {"train": {"labels": [store.uri]}, "pairs": {"preference": "reward"}}
    assert find_examples(TrainConfig.model_validate(settings)).counts.pairs.known == 0


def test_its_report_shows_better_beside_worse(store):
    part = of_store(store)[0]
    assert [len(rows) for rows, _ in choose_cards(part)] == [2]
    drawn = draw_responses(part, lambda tokens: ["x"] * len(tokens), "r")
    assert drawn.index('<b class="better">better</b>') < drawn.index('<b class="worse">worse</b>')


def test_nothing_but_ties_is_refused_with_a_way_out(tmp_path):
    model = save_model(tmp_path / "model", CHATML)
    ties = label_store(
        tmp_path / "store", model, [ultrafeedback(3.0, 3.0), ultrafeedback(2.0, 2.5)], input={**ALL, "min_margin": 1}
    )
    with pytest.raises(
        ConfigError, match=r"2 prompts have scores or ranks that prefer no response \(set pairs.preference"
    ):
        find_examples(TrainConfig.model_validate({"train": {"labels": [ties.uri]}}))
    obeyed = {"train": {"labels": [ties.uri]}, "pairs": {"preference": "reward"}}
    assert len(find_examples(TrainConfig.model_validate(obeyed))) == 2
    with pytest.raises(StoreError, match="holds no pair"):
        export(ties.uri, "trl", str(Path(tmp_path, "pairs.jsonl")))
    assert not any("by score" in sentence for sentence in explain(PairCounts(by_reward=1)))
