"""The right answer behind a response's reasoning: what is asked of the model, the forms in float64, and what is refused."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny import CHATML, save_model

from pipeline.config import EvaluateConfig, RewardConfig
from pipeline.corpus import Shape, Shard
from pipeline.errors import ConfigError
from pipeline.evaluation.benchmarks import find_benchmark
from pipeline.evaluation.stores import evaluated
from pipeline.evaluation.variants import check_rewards, labellers_of, variants_of
from pipeline.models.loading import load_model
from pipeline.models.scoring import Scorer
from pipeline.rewards.labellers import ReferenceAnswer
from pipeline.store import LabelStore, commit

SHAPE = Shape((("chosen", "chosen"), ("rejected", "rejected")), prompt="prompt")
SHARD = Shard("a.jsonl", 0, 0, 10, 10, "0" * 64, 0, 10)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), CHATML)


def configured(model: Path, **section: Any) -> EvaluateConfig:
    return EvaluateConfig.model_validate(
        {
            "model": {"name": str(model)},
            "answer_likelihood": {"answer_key": "gold", **section},
            "evaluate": {"rewards": ["answer-likelihood"]},
        }
    )


def row(chosen: str, rejected: str, gold: Any = "cd") -> dict[str, Any]:
    return {"prompt": "ab?", "chosen": chosen, "rejected": rejected, "gold": gold}


def labelled(config: EvaluateConfig, *rows: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    labeller = ReferenceAnswer(config, config.model)
    prepared = labeller.prepare(SHARD, 0, enumerate(rows), SHAPE)
    return labeller.finish(prepared, Scorer(load_model(config.model, "cpu", 0)).score(prepared.requests))


def exact_logprobs(model: Path, reasoning: str, reference: str) -> np.ndarray:
    """log pi of each token of the reference in a plain float64 forward of the rendered text."""
    own = transformers.AutoTokenizer.from_pretrained(model)
    exact = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
    before = own(
        f"<|im_start|>user\nab?<|im_end|>\n<|im_start|>assistant\n{reasoning}", add_special_tokens=False
    ).input_ids
    ids = torch.tensor([[*before, *own(reference, add_special_tokens=False).input_ids]])
    with torch.no_grad():
        logprobs = torch.log_softmax(exact(ids).logits[0], -1)
    return np.array([logprobs[at - 1, ids[0, at]].item() for at in range(len(before), ids.shape[1])])


def test_each_form_is_its_equation_in_float64(model: Path, tmp_path: Path) -> None:
    config = configured(model)
    reasonings = ["x y so \\boxed{", "<think>q</think> \\boxed{"]
    labels, failures = labelled(
        config, row(reasonings[0] + "no}", reasonings[1] + " 7 } and more", "it is \\boxed{cdq}")
    )
    assert not failures
    commit(str(tmp_path), SHARD, "f", 0, labels, [])
    check_rewards(config)
    variants = variants_of(config, RewardConfig())
    stores = {"answer-likelihood": LabelStore(str(tmp_path))}
    found = {e.variant.name: e.items[0] for e in evaluated(stores, variants, find_benchmark("pairs"))}
    alone = exact_logprobs(model, "", "cdq")
    for side, reasoning in zip(("chosen", "rejected"), (reasonings[0], reasonings[1] + " "), strict=True):
        behind = exact_logprobs(model, reasoning, "cdq")
        got = {name: getattr(item, side)[0].reward for name, item in found.items()}
        assert got == {
            "answer-likelihood": pytest.approx(behind.sum(), abs=1e-5),
            "answer-likelihood (VeriFree)": pytest.approx(math.exp(behind.sum()), rel=1e-4),
            "answer-likelihood (RLPR)": pytest.approx(
                np.clip(np.exp(behind).mean() - np.exp(alone).mean(), 0, 1), abs=1e-6
            ),
            "answer-likelihood (NOVER)": pytest.approx(-math.exp(-behind.mean()), rel=1e-4),
        }
    rlpr = found["answer-likelihood (RLPR)"]
    assert max(rlpr.chosen[0].reward, rlpr.rejected[0].reward) > 0  # not clipped both
    assert json.loads(labels[0].extra_info)["reward_info"]["answer_tokens"] == len(alone)


def test_prompt_and_reasoning_are_one_prompt_and_nothing_behind_the_answer_is_scored(model: Path) -> None:
    config = configured(model, span="last_line")
    labeller = ReferenceAnswer(config, config.model)
    prepared = labeller.prepare(SHARD, 0, [(0, row("why\nso 7", "7"))], SHAPE)
    decode = labeller.renderer.tokenizer.decode
    asked = [(decode(each.prompt_ids.tolist()), decode(each.response_ids.tolist())) for each in prepared.requests]
    begin = "<|im_start|>user\nab?<|im_end|>\n<|im_start|>assistant\n"
    assert asked == [(begin + "why\n", "cd"), (begin, "cd"), (begin, "cd"), (begin, "cd")]


def test_what_has_no_answer_or_no_reference_is_an_error_row(model: Path) -> None:
    config = configured(model)
    labels, failures = labelled(
        config,
        row("\\boxed{1}", "one"),
        row("\\boxed{1}", "\\boxed{2}", None),
        row("\\boxed{1}", "\\boxed{2}" + "x" * 400),
    )
    assert [each.id for each in labels] == ["a.jsonl:0:chosen:0:0", "a.jsonl:2:chosen:0:0", "a.jsonl:2:rejected:0:0"]
    assert [each.reason for each in failures] == ["no_answer", "no_reference", "no_reference"]
    _, [first, _] = labelled(
        config, row("x" * 400 + "\\boxed{1}", "\\boxed{2}") | {"rejected": "y" * 400 + "\\boxed{3}"}
    )
    assert first.reason == "question_too_long"
    _, missing = labelled(config, {"prompt": "ab?", "chosen": "\\boxed{1}", "rejected": "\\boxed{2}"})
    assert {each.reason for each in missing} == {"missing_column"}


def test_what_evaluate_needs_for_it_is_asked_for(model: Path) -> None:
    config = configured(model, answer_key="")
    with pytest.raises(
        ConfigError, match=r"needs the column of the right answer: give --set answer_likelihood\.answer_key"
    ):
        check_rewards(config)
    config = configured(model)
    [store] = labellers_of(config)
    described = labellers_of(config)[store].describe("float32")
    assert described["labeller"] == "answer-likelihood" and described["answer_likelihood.span"] == "boxed"
