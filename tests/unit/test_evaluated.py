"""From label stores to items: which rows are complete, and what of a judge is counted."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import CHATML, save_model

from pipeline.config import EvaluateConfig, RewardConfig
from pipeline.corpus import Shard
from pipeline.corpus.samples import TurnName, parse_turn_id, turn_id
from pipeline.errors import ConfigError
from pipeline.evaluation.benchmarks import find_benchmark
from pipeline.evaluation.benchmarks.items import Answer, Item
from pipeline.evaluation.documents import Judgements
from pipeline.evaluation.results import Cost, make_results
from pipeline.evaluation.stores import Evaluated, _with_verdicts, evaluated
from pipeline.evaluation.variants import variants_of
from pipeline.models.loading import load_model
from pipeline.models.scoring import Scorer
from pipeline.rewards.labellers import Endogenous
from pipeline.store import LabelStore, commit
from pipeline.store.schema import Failure, Label

PAIRS = find_benchmark("pairs")


def label(
    prompt_id: str, kind: str | None, index: int = 0, turn: int = 0, rubric: str | None = None, **given: Any
) -> Label:
    logprobs = np.asarray(given.pop("logprobs", [-1.0, -2.0]), np.float32)
    values = np.asarray(given.pop("values", [3.0, 4.0]), np.float32)
    rewards = np.asarray(logprobs + values - np.append(values[1:], 0), np.float32)
    fields = {
        "reward": float(rewards.sum(dtype=np.float64)), "response": "text", "truncated": False,
        "token_ids": list(range(len(logprobs))), "num_tokens": len(logprobs), "extra_info": "{}",
    } | given  # fmt: skip
    name = turn_id(prompt_id, kind, index, turn, rubric)  # type: ignore[arg-type]
    return Label(
        id=name, prompt_id=prompt_id, preference=kind, response_index=index, prompt=[], num_prompt_tokens=1, turn=turn,  # type: ignore[arg-type]
        token_logprobs=logprobs, token_values=values, token_rewards=rewards, rubric=rubric, **fields,
    )  # fmt: skip


def failure(identity: str, prompt_id: str, reason: str = "too_long") -> Failure:
    file, _, row = prompt_id.rpartition(":")
    return Failure(identity, prompt_id, file, int(row), reason, "why")


def stored(folder: Path, *parts: tuple[Sequence[Label], Sequence[Failure]]) -> LabelStore:
    """A store whose shards hold these."""
    for number, (labels, failures) in enumerate(parts):
        shard = Shard("a", number, 10 * number, 10 * number + 10, 10, "0" * 64, 0, 10)
        commit(str(folder), shard, "f", 0, labels, failures)
    return LabelStore(str(folder))


def configured(*rewards: str) -> EvaluateConfig:
    return EvaluateConfig.model_validate({"evaluate": {"rewards": list(rewards)}})


def read(stores: dict[str, LabelStore], *rewards: str) -> dict[str, Evaluated]:
    found = evaluated(stores, variants_of(configured(*rewards), RewardConfig()), PAIRS)
    return {each.variant.name: each for each in found}


def pair(row: int, **chosen: Any) -> list[Label]:
    return [label(f"a:{row}", "chosen", **chosen), label(f"a:{row}", "rejected", logprobs=[-2.0, -2.0])]


def test_likelihood_and_aggregations_are_of_the_stored_tokens(tmp_path: Path) -> None:
    chosen = label("a:0", "chosen", logprobs=[-1.0, -2.0, -4.5], values=[3.0, 4.0, 5.0])
    found = read({"endogenous": stored(tmp_path, ([chosen], []))}, "endogenous", "likelihood")
    assert list(found) == [
        "endogenous (sum)", "endogenous (mean)", "endogenous (discounted_sum, gamma 0.95)", "likelihood (sum)",
        "likelihood (mean)",
    ]  # fmt: skip
    assert all(each.incomplete for each in found.values())  # a chosen response without a rejected one is no pair
    both = [chosen, label("a:0", "rejected")]
    found = read({"endogenous": stored(tmp_path / "b", (both, []))}, "endogenous", "likelihood")
    rewards = {name: each.items[0].chosen[0].reward for name, each in found.items()}
    q = np.array([2.0, 2.0, 0.5])
    assert rewards == {
        "endogenous (sum)": pytest.approx(3.0 - 7.5),  # V(s_1) + log pi
        "endogenous (mean)": pytest.approx(-2.5),
        "endogenous (discounted_sum, gamma 0.95)": pytest.approx(
            sum(0.95**h * (q[h] - 0.95 * v) for h, v in enumerate([4.0, 5.0, 0.0])), rel=1e-6
        ),
        "likelihood (sum)": pytest.approx(-7.5),
        "likelihood (mean)": pytest.approx(-2.5),
    }


def test_a_row_with_a_lost_response_is_incomplete(tmp_path: Path) -> None:
    store = stored(
        tmp_path,
        ([*pair(0), label("a:1", "chosen")], [failure("a:1:rejected:0:0", "a:1"), failure("a:2", "a:2", "not_json")]),
        ([], [failure("a:10:chosen:0", "a:10", "empty_response")]),
    )
    found = read({"endogenous": store}, "endogenous")["endogenous (sum)"]
    assert [item.id for item in found.items] == ["a:0"]
    assert found.incomplete == {"too_long": 1, "not_json": 1, "empty_response": 1}
    assert set(found.examples) == {"a:1", "a:2", "a:10"} and found.responses == 3


def test_under_rubrics_each_counts(tmp_path: Path) -> None:
    labels = [x for r in ("kind", "brief") for row in (0, 1) for x in pair_under(row, r)]
    labels = [each for each in labels if each.id != "a:1:rejected:0:0@brief"]
    failures = [
        failure("a:1:rejected:0:0@brief", "a:1"),
        failure("a:2", "a:2", "null"),
        failure("a:3:chosen:0", "a:3", "null"),
    ]
    found = read({"endogenous": stored(tmp_path, (labels, failures))}, "endogenous")["endogenous (sum)"]
    assert {(item.id, item.rubric) for item in found.items} == {("a:0", "kind"), ("a:0", "brief"), ("a:1", "kind")}
    assert found.incomplete == {"too_long": 1, "null": 4}  # rows 2 and 3 are lost under both


def pair_under(row: int, rubric: str) -> list[Label]:
    return [label(f"a:{row}", kind, rubric=rubric) for kind in ("chosen", "rejected")]


def test_an_early_turn_that_failed_is_no_loss_and_a_late_one_is(tmp_path: Path) -> None:
    labels = [label(f"a:{row}", kind, turn=1) for row in (0, 1) for kind in ("chosen", "rejected")]
    failures = [failure("a:0:chosen:0:0", "a:0"), failure("a:1:chosen:0:2", "a:1")]
    found = read({"endogenous": stored(tmp_path, (labels, failures))}, "endogenous")["endogenous (sum)"]
    assert [item.id for item in found.items] == ["a:0"] and found.incomplete == {"too_long": 1}


def test_implicit_is_of_what_both_stores_have(tmp_path: Path) -> None:
    own = stored(tmp_path / "own", (pair(0, logprobs=[-1.0, -1.5]), []), (pair(10), []))
    reference = stored(
        tmp_path / "reference",
        (pair(0)[::-1], []),  # another order in the file
        ([], [failure(f"a:10:{kind}:0:0", "a:10") for kind in ("chosen", "rejected")]),
    )
    found = read({"endogenous": own, "reference": reference}, "implicit")
    assert found["implicit (sum)"].items[0].chosen[0].reward == pytest.approx(0.1 * (-2.5 + 3.0))
    assert found["implicit (mean)"].items[0].chosen[0].reward == pytest.approx(0.1 * 0.5 / 2)
    assert found["implicit (sum)"].items[0].rejected[0].reward == 0
    assert found["implicit (sum)"].incomplete == {"too_long": 1}


def test_implicit_refuses_other_tokens(tmp_path: Path) -> None:
    own, other = stored(tmp_path / "own", (pair(0), [])), stored(tmp_path / "other", (pair(0, token_ids=[7, 8]), []))
    with pytest.raises(ConfigError, match="shares its tokenizer"):
        read({"endogenous": own, "reference": other}, "implicit")


def judged(row: int, kind: str, verdicts: dict[str, int | None], index: int = 0) -> Label:
    info = json.dumps({"reward_info": {"verdicts": verdicts, "judgements": []}})
    return label(f"a:{row}", kind, index, reward=0.5, extra_info=info)


def test_a_pairwise_judge_is_counted_in_pairs(tmp_path: Path) -> None:
    labels = [
        judged(0, "chosen", {"rejected:0": 1}), judged(0, "rejected", {"chosen:0": -1}),
        judged(1, "chosen", {"rejected:0": 0}), judged(1, "rejected", {"chosen:0": 0}),
        # two chosen, one rejected: one of the two pairs cannot be read
        judged(2, "chosen", {"rejected:0": 1}), judged(2, "rejected", {"chosen:0": -1, "chosen:1": None}),
    ]  # fmt: skip
    failures = [failure("a:2:chosen:1:0", "a:2", "unparsable_judgement")]
    found = read({"judge-pairwise": stored(tmp_path, (labels, failures))}, "judge-pairwise")["judge-pairwise"]
    assert found.judgements == Judgements(asked=4, unparsable=1, disagree=1)
    assert [item.margins() for item in found.items] == [[[1.0]], [[0.0]]]
    assert found.incomplete == {"unparsable_judgement": 1}


def test_an_unreadable_pair_makes_its_item_incomplete(tmp_path: Path) -> None:
    labels = [
        judged(0, "chosen", {"rejected:0": 1, "rejected:1": None}), judged(0, "rejected", {"chosen:0": -1}),
        judged(0, "rejected", {"chosen:0": None, "chosen:1": 1}, 1),
        judged(0, "chosen", {"rejected:0": 1, "rejected:1": -1}, 1),
    ]  # fmt: skip
    found = read({"judge-pairwise": stored(tmp_path, (labels, []))}, "judge-pairwise")["judge-pairwise"]
    assert not found.items and found.incomplete == {"unparsable_judgement": 1}
    assert found.judgements == Judgements(asked=4, unparsable=1, disagree=0)


def test_a_column_called_verdicts_is_the_rows_own(tmp_path: Path) -> None:
    labels = [label("a:0", kind, extra_info='{"verdicts": {"x": 1}}') for kind in ("chosen", "rejected")]
    [item] = read({"endogenous": stored(tmp_path, (labels, []))}, "endogenous")["endogenous (sum)"].items
    assert item.extra == {"verdicts": {"x": 1}} and item.verdicts is None


def test_a_reward_that_fails_leaves_the_others_their_figures(tmp_path: Path) -> None:
    good = stored(tmp_path / "good", (pair(0), []))
    mute = stored(
        tmp_path / "mute",
        ([], [failure(f"a:0:{kind}:0:0", "a:0", "unparsable_judgement") for kind in ("chosen", "rejected")]),
    )
    config = configured("endogenous", "judge-pointwise")
    found = evaluated({"endogenous": good, "judge-pointwise": mute}, variants_of(config, RewardConfig()), PAIRS)
    results, items = make_results(
        found,
        [Cost("m", [], 2.0, 10, None)] * len(found),
        {"verifier": "stopped"},
        PAIRS,
        config,
        created="2026-01-01",
        notes=["a note"],
    )
    assert [entry.name for entry in results.rewards] == [each.variant.name for each in found[:3]]
    assert list(results.failed) == ["verifier", "judge-pointwise"]
    assert "100% of 2 responses have no judgement" in results.failed["judge-pointwise"]
    assert results.content()["accuracy"] == 1.0 and results.notes == ["a note"] and items.num_rows == 3
    assert results.rewards[0].seconds_per_thousand_pairs == pytest.approx(2000)


@pytest.mark.parametrize(
    "identity, name",
    [
        ("d/a:b.jsonl:7:chosen:0:2@kind", TurnName("chosen", 0, 2, "kind")),
        ("d/a:b.jsonl:7:response:3:0", TurnName(None, 3, 0, None)),
        ("d/a:b.jsonl:7:rejected:1", TurnName("rejected", 1, None, None)),
        ("d/a:b.jsonl:7", None),
    ],
)
def test_ids_are_read_back(identity: str, name: TurnName | None) -> None:
    assert parse_turn_id("d/a:b.jsonl:7", identity) == name
    if name is not None and name.turn is not None:
        assert turn_id("d/a:b.jsonl:7", name.preference, name.index, name.turn, name.rubric) == identity


def test_dsp_from_rows_to_figures(tmp_path: Path) -> None:
    """Rubrics reach the model, and its rewards the matrix, through every step that a run takes but Ray's."""
    model = save_model(tmp_path / "model", CHATML)
    rubrics = tmp_path / "rubrics.toml"
    rubrics.write_text('drinks = "Speak of drinks."\nfood = "Speak of food."\n')
    config = EvaluateConfig.model_validate({"model": {"name": str(model)}, "tokens": {"rubrics": str(rubrics)}})
    rows = [{"query": f"what {n}", "responses": {"drinks": f"tea {n}", "food": f"rice {n}"}} for n in range(6)]
    rows.append({"query": "and", "responses": {"drinks": "", "food": "rice"}})
    benchmark, labeller = find_benchmark("dsp"), Endogenous(config, config.model)
    shard = Shard("a", 0, 0, 7, 7, "0" * 64, 0, 10)
    prepared = labeller.prepare(shard, 0, enumerate(rows), benchmark.shape(rows, config.input, "a.json"))
    labels, failures = labeller.finish(prepared, Scorer(load_model(config.model, "cpu", 0)).score(prepared.requests))
    store = stored(tmp_path / "store", (labels, failures))
    [found, *_] = evaluated({"endogenous": store}, variants_of(config, RewardConfig()), benchmark)
    assert len(found.items) == 12 and found.incomplete == {"empty_response": 2}
    rewards = {
        (each.rubric, each.prompt_id, json.loads(each.extra_info)["response_key"]): each.reward for each in labels
    }
    assert len(set(rewards.values())) == len(rewards)  # each rubric gives other rewards
    [matrix] = benchmark.figures(found.items).matrices
    keys = sorted({key for _, _, key in rewards})
    expected = [
        [np.mean([rewards[r, f"a:{n}", keys[e]] > rewards[r, f"a:{n}", keys[1 - e]] for n in range(6)]) for e in (0, 1)]
        for r in ("drinks", "food")
    ]
    assert matrix.values == expected


def test_a_pair_that_a_judge_was_not_asked_about_leaves_its_item_out() -> None:
    """Its question was too long, say: the response keeps a verdict on the other pair alone."""
    rejected = tuple(Answer(0.0, 1, "no") for _ in range(2))
    answers = [
        Answer(1.0, 1, "yes", extra={"verdicts": verdicts})
        for verdicts in ({"rejected:0": 1}, {"rejected:0": 1, "rejected:1": -1})
    ]
    assert _with_verdicts(Item("a:0", chosen=(answers[0],), rejected=rejected)) is None
    judged = _with_verdicts(Item("a:0", chosen=(answers[1],), rejected=rejected))
    assert judged is not None and judged.verdicts == {(0, 0): 1.0, (0, 1): -1.0}
