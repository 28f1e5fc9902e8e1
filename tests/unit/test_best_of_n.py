"""Best-of-n against the enumeration of all subsets."""

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tiny import ENDLESS

from pipeline.config import BestOfNConfig, InputConfig
from pipeline.evaluation.benchmarks.best_of_n import BestOfN, expected_best
from pipeline.evaluation.benchmarks.figures import stratified_mean
from pipeline.evaluation.benchmarks.items import Answer, Item
from pipeline.rewards import answers


def enumerated(rewards: list[float], scores: list[float], k: int) -> float:
    picks = []
    for subset in combinations(range(len(rewards)), k):
        top = max(rewards[i] for i in subset)
        picks.append(np.mean([scores[i] for i in subset if rewards[i] == top]))
    return float(np.mean(picks))


def item(rewards: list[float], extra: dict | None = None, texts: list[str] | None = None, name: str = "f:0") -> Item:
    texts = texts or [""] * len(rewards)
    answers = (Answer(reward, 1, text) for reward, text in zip(rewards, texts, strict=True))
    return Item(name, others=tuple(answers), extra=extra or {})


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.0, 0.25, 1.0])), min_size=1, max_size=7))
def test_the_closed_form_is_the_mean_over_all_subsets(drawn):
    rewards, scores = [float(r) for r, _ in drawn], [s for _, s in drawn]
    for k in range(1, len(drawn) + 1):
        assert expected_best(rewards, scores, k) == pytest.approx(enumerated(rewards, scores, k), abs=1e-12)


def test_many_responses_overflow_nothing():
    assert expected_best(list(range(1100)), [1.0] * 1100, 550) == pytest.approx(1)


def test_figures_and_curve():
    benchmark = BestOfN(BestOfNConfig(score_key="scores"))
    items = [
        item([3.0, 1.0, 3.0, 0.0, -1.0, 2.0], {"scores": [1, 0, 0, 1, 1, 1]}, name="f:0"),
        item([1.0, 2.0, 5.0], {"scores": [True, False, False]}, name="f:1"),
    ]
    assert [benchmark.check(each) for each in items] == [None, None]
    found = benchmark.figures(items)
    assert found.main == "best_of_n"
    assert found.values == pytest.approx({"best_of_n": 0.25, "gain": -0.25, "mean": 0.5, "oracle": 1.0})
    for name, value in found.values.items():
        assert stratified_mean(found.scores[name], found.strata, found.weights, found.sizes) == pytest.approx(value)
    assert (found.ties, found.comparisons) == (1, 2)
    curve = found.details["curve"]
    assert curve["n"] == [1, 2, 3]
    for position, k in enumerate(curve["n"]):
        for name in ("score", "oracle"):
            want = []
            for each in items:
                scores = [float(s) for s in each.extra["scores"]]
                rewards = [a.reward for a in each.others] if name == "score" else scores
                want.append(enumerated(rewards, scores, k))
            assert curve[name][position] == pytest.approx(np.mean(want))


def test_without_a_label_chosen_is_one_and_rejected_zero():
    benchmark = BestOfN()
    pair = Item("f:0", chosen=(Answer(1.0, 1, ""),), rejected=(Answer(2.0, 1, ""), Answer(0.0, 1, "")))
    assert benchmark.check(pair) is None
    assert benchmark.figures([pair]).values == pytest.approx(
        {"best_of_n": 0, "gain": -1 / 3, "mean": 1 / 3, "oracle": 1}
    )
    assert "score_key" in (benchmark.check(item([1.0, 2.0])) or "")


def test_a_rule_scores_by_equivalence():
    benchmark = BestOfN(BestOfNConfig(answer_key="gold.answer"))
    each = item([1.0, 2.0], {"gold": {"answer": r"\frac{1}{2}"}}, [r"so \boxed{0.5}", r"so \boxed{2}"])
    assert benchmark.check(each) is None
    assert benchmark.figures([each]).values == {"best_of_n": 0.0, "gain": -0.5, "mean": 0.5, "oracle": 1.0}
    assert "no column 'gold.answer'" in (benchmark.check(item([1.0])) or "")


def test_thoughts_that_the_prompt_opened_and_nobody_closed_hold_no_answer():
    benchmark = BestOfN(BestOfNConfig(answer_key="gold"))
    texts = ["it may be 5</think> It is 4.", "it may be 4"]
    known = item([1.0, 2.0], {"gold": "4", "opens_thoughts": True}, texts)
    assert benchmark.figures([known]).values["mean"] == 0.5 and benchmark.figures([known]).values["best_of_n"] == 0.0
    assert benchmark.figures([item([1.0, 2.0], {"gold": "4"}, texts)]).values["mean"] == 1.0  # as any text


def test_a_rule_that_does_not_end_counts_as_wrong_and_is_said(monkeypatch):
    response, gold = ENDLESS
    right = rf"so \boxed{{{gold}}}"
    assert answers.extract_and_check(right, gold, False).correct  # kept: a busy machine takes longer than 2 s
    monkeypatch.setattr(answers, "CHECKED_WITHIN_S", 2.0)
    each = item([1.0, 2.0], {"gold": gold}, [right, response])
    found = BestOfN(BestOfNConfig(answer_key="gold")).figures([each])
    assert found.values["mean"] == 0.5 and found.values["best_of_n"] == 0.0
    assert "1 of 2 answers could not be checked" in found.notes[0]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([1.0], "1 scores for 2 responses"),
        ([1.0, float("nan")], "nan"),
        ([1.0, None], "None"),
        ([1.0, "one"], "'one'"),
        ([1.0, 7], "score 7"),
        (None, "1 scores"),
    ],
)
def test_check_says_what_is_wrong_with_scores(given, said):
    assert said in (BestOfN(BestOfNConfig(score_key="s")).check(item([1.0, 2.0], {"s": given})) or "")


def test_a_judge_of_pairs_is_refused():
    pair = Item("f:0", (Answer(0.0, 1, ""),), (Answer(0.0, 1, ""),), verdicts={(0, 0): 1.0})
    assert "judge" in (BestOfN().check(pair) or "")


def test_one_measure_only():
    with pytest.raises(ValidationError, match="not both"):
        BestOfNConfig(score_key="a", answer_key="b")


def test_gsm8k_solutions_by_flag_and_by_rule(shared: Path):
    """The authors' four solutions to each question: their flag and our rule give one oracle; each model's share of right
    solutions is what a reward that prefers it gets."""
    models = ["6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"]
    config = InputConfig(prompt_key="question", response_key=[f"{name}.solution" for name in models])
    flagged = BestOfN(BestOfNConfig(score_key=[f"{name}.is_correct" for name in models]))
    ruled = BestOfN(BestOfNConfig(answer_key="ground_truth"))
    with open(shared / "data/gsm8k/example_model_solutions.jsonl") as file:
        rows = [json.loads(line) for _, line in zip(range(200), file, strict=False)]
    shape = flagged.shape(rows[:5], config, "solutions")
    items = []
    for number, row in enumerate(rows):
        sample = shape.normalise("solutions", number, row)
        texts = [response.messages[0]["content"] for response in sample.responses]
        items.append(item([0.0, 1.0, 2.0, 3.0], sample.extra, texts, sample.prompt_id))
    assert [flagged.check(each) or ruled.check(each) for each in items] == [None] * len(items)
    by_flag, by_rule = flagged.figures(items), ruled.figures(items)
    assert by_flag.values == by_rule.values
    assert by_flag.values["best_of_n"] == np.mean([row["175b_verification"]["is_correct"] for row in rows])
    assert by_flag.values["oracle"] == np.mean([any(row[name]["is_correct"] for name in models) for row in rows])
