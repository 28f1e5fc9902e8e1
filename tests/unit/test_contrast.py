"""Contrast: log pi of a response under one rubric less under another, against a plain forward in float64."""

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
from pipeline.store import LabelStore, commit

SHAPE = Shape((("chosen", "chosen"), ("rejected", "rejected")), prompt="prompt")
SHARD = Shard("a.jsonl", 0, 0, 10, 10, "0" * 64, 0, 10)
ROWS = [{"prompt": "ab?", "chosen": "cd a", "rejected": "x"}, {"prompt": "q", "chosen": "one two", "rejected": "ab ab"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), CHATML)


def configured(model: Path, **sections: Any) -> EvaluateConfig:
    contrast = {"rubric": "Be brief.", "against": "Be long."} | sections.pop("contrast", {})
    fields = {"model": {"name": str(model)}, "contrast": contrast, "evaluate": {"rewards": ["contrast"]}}
    return EvaluateConfig.model_validate({**fields, **sections})


def filled(config: EvaluateConfig, folder: Path) -> dict[str, LabelStore]:
    """The label stores that the reward needs, as a worker fills them."""
    stores = {}
    for name, labeller in labellers_of(config).items():
        prepared = labeller.prepare(SHARD, 0, enumerate(ROWS), SHAPE)
        answers = Scorer(load_model(config.model, "cpu", 0)).score(prepared.requests)
        commit(str(folder / name), SHARD, "f", 0, *labeller.finish(prepared, answers))
        stores[name] = LabelStore(str(folder / name))
    return stores


def exact_logprobs(model: Path, system: str, prompt: str, response: str) -> np.ndarray:
    own = transformers.AutoTokenizer.from_pretrained(model)
    exact = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
    head = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    before = own(f"{head}<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False)
    scored = own(f"{response}<|im_end|>", add_special_tokens=False)
    ids = torch.tensor([[*before.input_ids, *scored.input_ids]])
    with torch.no_grad():
        logprobs = torch.log_softmax(exact(ids).logits[0], -1)
    return np.array([logprobs[at - 1, ids[0, at]].item() for at in range(len(before.input_ids), ids.shape[1])])


@pytest.mark.parametrize("against", ["Be long.", ""])
def test_contrast_is_a_difference_of_log_probabilities(model: Path, tmp_path: Path, against: str) -> None:
    config = configured(model, contrast={"against": against})
    check_rewards(config)
    found = evaluated(filled(config, tmp_path), variants_of(config, RewardConfig()), find_benchmark("pairs"))
    by_name = {each.variant.name: each.items for each in found}
    assert list(by_name) == ["contrast (sum)", "contrast (mean)"]
    for row, total, mean in zip(ROWS, by_name["contrast (sum)"], by_name["contrast (mean)"], strict=True):
        for side in ("chosen", "rejected"):
            texts = row["prompt"], row[side]
            difference = exact_logprobs(model, "Be brief.", *texts) - exact_logprobs(model, against, *texts)
            assert getattr(total, side)[0].reward == pytest.approx(difference.sum(), abs=1e-4)
            assert getattr(mean, side)[0].reward == pytest.approx(difference.mean(), abs=1e-4)


def test_a_contrast_of_a_rubric_with_itself_or_beside_others_is_refused(model: Path) -> None:
    for sections, words in (
        ({"contrast": {"against": "Be brief."}}, "are the same; give two"),
        ({"contrast": {"rubric": " "}}, r"give --set contrast\.rubric"),
        ({"tokens": {"system_prompt": "Be kind."}}, r"leave tokens\.system_prompt out"),
        ({"tokens": {"rubrics": "rubrics.toml"}}, r"leave tokens\.rubrics out"),
    ):
        with pytest.raises(ConfigError, match=words):
            check_rewards(configured(model, **sections))  # type: ignore[arg-type]


def test_a_response_that_is_cut_otherwise_under_one_rubric_is_refused(model: Path, tmp_path: Path) -> None:
    config = configured(model, contrast={"rubric": "Be brief. " * 3}, tokens={"max_length": 64})
    stores = filled(config, tmp_path)
    with pytest.raises(ConfigError, match=r"tokens\.over_length=reject"):
        evaluated(stores, variants_of(config, RewardConfig()), find_benchmark("pairs"))
