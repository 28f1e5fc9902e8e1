"""The confidence of a final answer: where the answer is, which tokens it has, and what `evaluate` makes of it."""

import math
from pathlib import Path

import numpy as np
import pytest
from tiny import CHATML, save_model, tokenizer

from jobs.evaluate.run import _check_tokenizer
from pipeline.config import EvaluateConfig, RewardConfig
from pipeline.corpus import Shard
from pipeline.corpus.samples import Turn
from pipeline.errors import ConfigError
from pipeline.evaluation.benchmarks import find_benchmark
from pipeline.evaluation.stores import evaluated
from pipeline.evaluation.variants import variants_of
from pipeline.models.scores import Scores
from pipeline.rewards.confidence import RULES, answer_confidence, answer_span, without_ends
from pipeline.rewards.labelling import label
from pipeline.store import LabelStore, commit
from pipeline.tokens import TokenizedTurn, pieces, special_ids, tokenizer_digest


@pytest.mark.parametrize(
    ("rule", "text", "answer"),
    [
        ("boxed", r"So \boxed{3} or \boxed{ \frac{1}{2} }.", r"\frac{1}{2}"),
        ("boxed", r"\boxed{7} and then \boxed{8", "7"),  # the last that is closed
        ("boxed", r"it is \fbox 5", "5"),
        ("boxed", r"<think>\boxed{1}</think> \boxed{2}", "2"),
        ("boxed", r"<think>\boxed{1}</think> none", None),
        ("boxed", r"\boxed{}", None),
        ("boxed", "42", None),
        ("boxed", r"<think>\boxed{1}", None),
        ("after_thoughts", "<think>a</think>\n\nIt is 5. \n", "It is 5."),
        ("after_thoughts", "<think>a</think>  ", None),
        ("after_thoughts", " whole text ", "whole text"),
        ("last_line", "<think>a\nb</think>4\n\n It is 5. \n\n", "It is 5."),
        ("last_line", "<think>a\nb</think>5", "5"),
        ("last_line", "5", "5"),
    ],
)
def test_each_rule_finds_its_span(rule: str, text: str, answer: str | None) -> None:
    span = answer_span(text, rule)  # type: ignore[arg-type]
    assert (None if span is None else text[slice(*span)]) == answer


def test_a_text_that_begins_inside_thoughts_has_an_answer_behind_them_alone() -> None:
    for rule in RULES:
        assert answer_span(r"\boxed{1}", rule, opened=True) is None  # type: ignore[arg-type]
        assert answer_span(r"4 or \boxed{5}?</think>\boxed{6}", rule, opened=True) is not None  # type: ignore[arg-type]


def test_confidence_is_the_mean_probability_of_the_tokens_that_touch_the_answer() -> None:
    texts = ["It is ", "\\bo", "xed{", "", "é", "1", "2}", ".", ""]  # é is two tokens, the last an end token
    probabilities = np.array([0.5, 0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9])
    logprobs = np.log(probabilities)
    assert answer_confidence(logprobs, texts) == pytest.approx((0.3 + 0.4 + 0.6 + 0.7) / 4, rel=1e-12)
    whole = answer_confidence(logprobs, texts, "last_line")
    assert whole == pytest.approx(probabilities[:-1].mean(), rel=1e-12)  # the end token is no part of it
    assert math.isnan(answer_confidence(logprobs[:3], texts[:3])) and math.isnan(answer_confidence([-1.0], [""]))


def test_end_tokens_are_no_text_and_special_tokens_inside_are() -> None:
    own = tokenizer(CHATML)
    end = own.convert_tokens_to_ids("<|im_end|>")
    ids = [
        *own("ab", add_special_tokens=False)["input_ids"],
        end,
        *own("cd", add_special_tokens=False)["input_ids"],
        end,
    ]
    assert end in special_ids(own)
    texts = without_ends(ids, pieces(own)(ids), special_ids(own))
    assert texts == ["ab", "<|im_end|>", "cd", ""]


def labels_of(folder: Path, texts: list[str]) -> list[object]:
    """A label a text, of the tokens of the model in `folder`, each with the probability 1 / (1 + its number)."""
    own, labels = tokenizer(CHATML), []
    for row, text in enumerate(texts):
        ids = [*own(text, add_special_tokens=False)["input_ids"], own.convert_tokens_to_ids("<|im_end|>")]
        logprobs = -np.log(1.0 + np.arange(len(ids)))
        side = ("chosen", "rejected")[row % 2]
        turn = Turn(f"a:{row // 2}:{side}:0:0", f"a:{row // 2}", side, 0, 0, [], text, False, None, {})  # type: ignore[arg-type]
        tokens = TokenizedTurn([1], ids, [{"role": "user", "content": "?"}])
        labels.append(label(turn, tokens, Scores(logprobs, np.zeros(len(ids)), logprobs), RewardConfig()))
    return labels


def test_evaluate_reads_it_from_a_store_and_counts_items_without_an_answer(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", CHATML)
    texts = [r"\boxed{ab}", r"so \boxed{x}", r"\boxed{7}", "seven"]
    labels = labels_of(model, texts)
    commit(str(tmp_path / "store"), Shard("a", 0, 0, 10, 10, "0" * 64, 0, 10), "f", 0, labels, [])  # type: ignore[arg-type]
    sections = {"evaluate": {"rewards": ["answer-confidence"]}, "model": {"name": str(model)}}
    config = EvaluateConfig.model_validate(sections)
    variants = variants_of(config, RewardConfig())
    [found] = evaluated({"endogenous": LabelStore(str(tmp_path / "store"))}, variants, find_benchmark("pairs"))
    assert found.incomplete == {"no_answer": 1} and found.examples == ["a:1"] and found.responses == 3
    [item] = found.items
    for answer, text, content in ((item.chosen[0], texts[0], "ab"), (item.rejected[0], texts[1], "x")):
        at = len(tokenizer(CHATML)(text[: text.index("{") + 1], add_special_tokens=False)["input_ids"])
        count = len(tokenizer(CHATML)(content, add_special_tokens=False)["input_ids"])
        expected = np.mean([1 / (1 + h) for h in range(at, at + count)])
        assert answer.reward == pytest.approx(expected, rel=1e-6)
    assert variants[0].name == "answer-confidence" and "boxed" in variants[0].about


def test_another_tokenizer_than_the_stores_is_refused(tmp_path: Path) -> None:
    sections = {"evaluate": {"rewards": ["answer-confidence"]}, "model": {"name": str(save_model(tmp_path, CHATML))}}
    config = EvaluateConfig.model_validate(sections)
    _check_tokenizer(config, {"model.tokenizer": tokenizer_digest(tokenizer(CHATML))})
    with pytest.raises(ConfigError, match="has not the tokenizer that made the tokens"):
        _check_tokenizer(config, {"model.tokenizer": "another"})
    with pytest.raises(ValueError, match="after_thoughts"):
        EvaluateConfig.model_validate({"answer_confidence": {"span": "first_line"}})
