"""Labellers: what is asked, and how answers become labels, on models whose every answer is known."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny import CHATML, save_bigram, save_model

from pipeline.config import EvaluateConfig
from pipeline.corpus import Shape, Shard, detect
from pipeline.errors import RowError
from pipeline.models.generation import Generator
from pipeline.models.loading import load_model
from pipeline.models.questions import Completion
from pipeline.models.scoring import Scorer
from pipeline.rewards.labellers import Classified, Endogenous, Labeller, PairwiseJudge, PointwiseJudge, Verifier
from pipeline.rewards.labellers.base import filled
from pipeline.rewards.labellers.judge import verdict

VERDICTS = {"good": "[[9]]", "bad": "[[2]]", "better": "[[A]]", "worse": "[[B]]"}
SHAPE = Shape((("chosen", "chosen"), ("rejected", "rejected")), prompt="prompt")


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bigram(tmp_path_factory.mktemp("judge"), VERDICTS, "what is it one two Yes")


def configured(model: Path, **sections: Any) -> EvaluateConfig:
    return EvaluateConfig.model_validate({"model": {"name": str(model)}, **sections})


def ran(labeller: Labeller, rows: Sequence[dict[str, Any]], shape: Shape = SHAPE) -> tuple[list[Any], list[Any]]:
    """Labels and failures of some rows: prepare, answer, finish, as a worker does it."""
    shard = Shard("a.jsonl", 0, 0, len(rows), len(rows), "0" * 64, 0, 10)
    prepared = labeller.prepare(shard, 0, enumerate(rows), shape)
    model = load_model(labeller.model, "cpu", 0)
    if labeller.engine == "generator":
        answers: list[Any] = Generator(model, labeller.renderer.tokenizer, max_new_tokens=4).generate(prepared.requests)
    else:
        answers = Scorer(model).score(prepared.requests)
    return labeller.finish(prepared, answers)


def pair(chosen: str | list[str], rejected: str | list[str]) -> dict[str, Any]:
    return {"prompt": "what is it", "chosen": chosen, "rejected": rejected}


def test_a_pattern_that_does_not_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.rewards.labellers.judge.READ_WITHIN_S", 1.0)
    assert verdict(r"(a+)+$", Completion("it is aaa", [], True)) == "aaa"
    with pytest.raises(RowError, match=r"unparsable_judgement.*\(a\+\)\+\$ came to no end within 1 s"):
        verdict(r"(a+)+$", Completion("a" * 40 + "b", [], True))
    assert verdict(r"\[\[(\d)\]\]", Completion("[[3]] or [[4]]", [], True)) == "4"


def test_pointwise_rating_is_the_reward(judge: Path) -> None:
    config = configured(judge, judge={"pointwise_prompt": "{prompt} {response}"})
    labels, failures = ran(PointwiseJudge(config, config.model), [pair("one good", "bad"), pair("good", "two")])
    assert [label.reward for label in labels] == [9.0, 2.0, 9.0]
    assert json.loads(labels[0].extra_info)["reward_info"]["judgement"].strip() == "[[9]]"
    assert labels[0].num_tokens == 2 and not len(labels[0].token_logprobs)
    [failure] = failures
    assert failure.reason == "unparsable_judgement" and failure.id == "a.jsonl:1:rejected:0:0"


def test_pairwise_sees_both_orders(judge: Path) -> None:
    """The verdict follows the last word, the second answer's: `worse` there says B, `better` says A."""
    config = configured(judge, judge={"pairwise_prompt": "{prompt} {first} {second}"})
    rows = [pair("worse", "better"), pair("better", "worse"), pair("better", "better"), pair("better", "two")]
    labels, failures = ran(PairwiseJudge(config, config.model), rows)
    rewards = {(label.prompt_id, label.preference): label.reward for label in labels}
    # (worse, better) -> A and swapped (better, worse) -> B: both times `worse`, the chosen one
    assert rewards[("a.jsonl:0", "chosen")] == 1 and rewards[("a.jsonl:0", "rejected")] == 0
    assert rewards[("a.jsonl:1", "chosen")] == 0 and rewards[("a.jsonl:1", "rejected")] == 1
    # the same place twice is a disagreement: nobody won, and it is on record
    assert rewards[("a.jsonl:2", "chosen")] == rewards[("a.jsonl:2", "rejected")] == 0
    kept = {label.id: json.loads(label.extra_info)["reward_info"] for label in labels}
    assert kept["a.jsonl:2:chosen:0:0"]["verdicts"] == {"rejected:0": 0}
    assert kept["a.jsonl:0:chosen:0:0"]["verdicts"] == {"rejected:0": 1}
    assert [j["shown"] for j in kept["a.jsonl:0:chosen:0:0"]["judgements"]] == [
        ["chosen:0", "rejected:0"],
        ["rejected:0", "chosen:0"],
    ]
    # one order cannot be read: both responses are error rows, none is a guess
    assert {f.id for f in failures} == {"a.jsonl:3:chosen:0:0", "a.jsonl:3:rejected:0:0"}
    assert {f.reason for f in failures} == {"unparsable_judgement"}


def test_pairwise_compares_chosen_with_rejected_or_all(judge: Path) -> None:
    config = configured(judge, judge={"pairwise_prompt": "{prompt} {first} {second}"})
    labeller = PairwiseJudge(config, config.model)
    shard = Shard("a.jsonl", 0, 0, 1, 1, "0" * 64, 0, 10)
    nine = labeller.prepare(shard, 0, [(0, pair(["one"] * 3, ["two"] * 3))], SHAPE)
    assert len(nine.requests) == 18
    free = Shape((("responses", None),), prompt="prompt")
    three = labeller.prepare(shard, 0, [(0, {"prompt": "what", "responses": ["one", "two", "good"]})], free)
    assert len(three.requests) == 6


def test_a_question_that_does_not_fit_is_an_error_row(tmp_path: Path) -> None:
    judge = save_bigram(tmp_path / "short", VERDICTS, "what is it one", context=8)
    config = configured(judge, judge={"pointwise_prompt": "{prompt} {response}"})
    labels, failures = ran(PointwiseJudge(config, config.model), [pair("good", "one " * 20 + "good")])
    assert [label.preference for label in labels] == ["chosen"] and failures[0].reason == "question_too_long"


def test_verifier_is_log_p_of_yes(judge: Path) -> None:
    config = configured(judge, verifier={"question": "{prompt} {response}", "answer": "Yes"})
    labels, _ = ran(Verifier(config, config.model), [pair("one good", "two bad")])
    tokenizer = transformers.AutoTokenizer.from_pretrained(judge)
    model = transformers.AutoModelForCausalLM.from_pretrained(judge, dtype=torch.float64)
    yes = tokenizer.convert_tokens_to_ids("Yes")
    for label, text in zip(labels, ("what is it one good", "what is it two bad"), strict=True):
        ids = tokenizer(text, return_tensors="pt").input_ids
        expected = torch.log_softmax(model(ids).logits[0, -1], -1)[yes].item()
        assert label.reward == pytest.approx(expected, abs=1e-5)
        assert math.exp(label.reward) < 1 and label.response in text


def test_verifier_scores_no_end_of_turn(tmp_path: Path) -> None:
    model = save_model(tmp_path / "chat", CHATML)
    config = configured(model)
    labeller = Verifier(config, config.model)
    shard = Shard("a.jsonl", 0, 0, 1, 1, "0" * 64, 0, 10)
    prepared = labeller.prepare(shard, 0, [(0, pair("a", "b"))], SHAPE)
    decode = labeller.renderer.tokenizer.decode
    assert [decode(request.response_ids.tolist()) for request in prepared.requests] == ["Yes", "Yes"]
    asked = decode(prepared.requests[1].prompt_ids.tolist())
    assert "Question:\nwhat is it\n\nAnswer:\nb\n\nIs this" in asked and asked.endswith("<|im_start|>assistant\n")


def test_a_rubric_reaches_judge_and_verifier(tmp_path: Path) -> None:
    model = save_model(tmp_path / "chat", CHATML, context=2000)
    config = configured(model, tokens={"system_prompt": "Be strict."})
    shard = Shard("a.jsonl", 0, 0, 1, 1, "0" * 64, 0, 10)
    for kind in (Verifier, PointwiseJudge, PairwiseJudge):
        labeller = kind(config, config.model)
        request = labeller.prepare(shard, 0, [(0, pair("a", "b"))], SHAPE).requests[0]
        assert "system\nBe strict." in labeller.renderer.tokenizer.decode(list(request.prompt_ids))


@pytest.mark.parametrize("kind", [Verifier, PointwiseJudge, PairwiseJudge, Classified])
def test_samples_of_another_tokenizer_are_texts_to_who_asks_about_them(judge: Path, kind: type[Labeller]) -> None:
    """The tokens that a policy drew are of its own tokenizer; only their endogenous reward needs them."""
    config = configured(judge, judge={"pointwise_prompt": "{prompt} {response}"})
    labeller = kind(config, config.model)
    tokens = {"prompt_token_ids": [900], "response_token_ids": [[901], [902, 903]], "rendering": "another"}
    row = {"prompt": "what is it", "responses": ["one good", "two"], **tokens}
    shape = detect([row], config.input)
    assert shape.sampled
    prepared = labeller.prepare(Shard("a.jsonl", 0, 0, 1, 1, "0" * 64, 0, 10), 0, [(0, row)], shape)
    assert not prepared.failures and len(prepared.requests) == 2
    assert all(max(turn.response_ids) < 900 for turn in prepared.tokens)


def test_descriptions_tell_kinds_apart_and_label_keeps_its_own(judge: Path) -> None:
    config = configured(judge)
    kinds = [kind(config, config.model) for kind in (Endogenous, Verifier, PointwiseJudge, PairwiseJudge)]
    described = [labeller.describe("float32") for labeller in kinds]
    assert len({json.dumps(each, sort_keys=True) for each in described}) == len(kinds)
    assert "labeller" not in described[0] and described[0]["reward.aggregation"] == "sum"
    assert "reward.aggregation" not in described[1]  # another aggregation asks no verifier anew


def test_filling_in_leaves_braces_alone() -> None:
    assert filled("{a}{b}{a}", a="{b}", b="x{a}") == "{b}x{a}{b}"
    assert filled("{c} {a", a="1") == "{c} {a"
