"""A step as its workers see it, against the labels read plainly."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from label_stores import label_store
from tiny import save_model

from pipeline.config import ModelConfig
from pipeline.errors import ConfigError
from pipeline.models.loading import load_model
from pipeline.models.scoring import Scorer
from pipeline.training.advantages import Siblings, advantages
from pipeline.training.config import TrainConfig
from pipeline.training.examples import find_examples
from pipeline.training.reference import References, missing_parts, score_part
from pipeline.training.rows import RowReader
from pipeline.training.steps import StepData, check_step

GROUPS = [
    {"prompt": f"Number {i}?", "responses": [f"{'ab' * (1 + (i + k) % 4)} {k}" for k in range(2 + i % 3)]}
    for i in range(9)
]
PAIRS = [{"prompt": f"Number {i}?", "chosen": "yes " * (1 + i % 3), "rejected": "no"} for i in range(9)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def stores(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("stores")
    for name, rows in (("groups", GROUPS), ("pairs", PAIRS)):
        label_store(folder / name, model, rows, reward={"gamma": 0.9, "aggregation": "discounted_sum"})
    return {name: folder / name for name in ("groups", "pairs")}


def settings(store: Path, model: Path, **sections: Any) -> TrainConfig:
    train = {"labels": [str(store)], "batch_size": 4, **sections.pop("train", {})}
    return TrainConfig.model_validate({"train": train, "policy": {"name": str(model)}, **sections})


def workers(
    config: TrainConfig, count: int, stored: bool = True, references: References | None = None
) -> list[StepData]:
    examples = find_examples(config)
    reader = RowReader(examples.sources, examples.parts, config.policy, 2)
    return [StepData(config, examples, reader, references, stored, rank, count) for rank in range(count)]


def labels(store: Path) -> dict[tuple[int, ...], dict[str, Any]]:
    """By tokens of the response and the text of the prompt, which are together unique here."""
    rows = pq.read_table(store / "labels").to_pylist()
    return {(row["prompt"][0]["content"], *row["token_ids"]): row for row in rows}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_workers_together_have_the_step_once(stores: dict[str, Path], model: Path, count: int) -> None:
    config = settings(stores["pairs"], model, learner={"budget_tokens": 60})
    everyone = workers(config, count)
    rows = labels(stores["pairs"])
    tokenizer = everyone[0].reader.tokenizer
    for k in range(5):
        numbers = everyone[0].order().step(k)
        parts = [each.part(numbers) for each in everyone]
        assert len({len(part.micro_batches) for part in parts}) == 1, "collectives need as many on every worker"
        assert len({(*part.totals.items(), part.tokens) for part in parts}) == 1
        seen = [response for part in parts for micro in part.micro_batches for response in micro]
        found = [rows[tokenizer.decode(each.prompt_ids), *each.response_ids] for each in seen]
        assert len(seen) == 8 == parts[0].totals["responses"] == 2 * parts[0].totals["pairs"]
        assert parts[0].totals["tokens"] == sum(row["num_tokens"] for row in found)
        assert parts[0].tokens == sum(row["num_tokens"] + row["num_prompt_tokens"] for row in found)
        for chosen, rejected in zip(found[::2], found[1::2], strict=True):
            assert (chosen["preference"], rejected["preference"]) == ("chosen", "rejected")
            assert chosen["prompt_id"] == rejected["prompt_id"]
        for response, row in zip(seen, found, strict=True):
            assert response.reward == row["reward"]
            np.testing.assert_array_equal(response.reference, np.float32(row["token_logprobs"]))
            assert response.behaviour is None and response.advantages is None


def test_advantages_are_of_all_siblings_wherever_they_are_computed(stores: dict[str, Path], model: Path) -> None:
    config = settings(
        stores["groups"],
        model,
        train={"objective": "grpo"},
        advantage={"credit": "tokens", "baseline": "leave-one-out"},
        learner={"budget_tokens": 40},  # siblings lie in several micro-batches
    )
    everyone = workers(config, 2)
    rows = labels(stores["groups"])
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for row in rows.values():
        by_prompt.setdefault(row["prompt_id"], []).append(row)
    due = {}
    for group in by_prompt.values():
        siblings = Siblings(
            [row["reward"] for row in group],
            [row["num_tokens"] for row in group],
            [np.float32(row["token_rewards"]) for row in group],
            [np.float32(row["token_values"]) for row in group],
        )
        due |= zip(
            (row["id"] for row in group), advantages(config, siblings, 0.9), strict=True
        )  # the labels' own gamma
    parts = [each.part(everyone[0].order().step(0)) for each in everyone]
    assert len(parts[0].micro_batches) > 1
    tokenizer = everyone[0].reader.tokenizer
    for response in (each for part in parts for micro in part.micro_batches for each in micro):
        row = rows[tokenizer.decode(response.prompt_ids), *response.response_ids]
        np.testing.assert_allclose(response.advantages, due[row["id"]], rtol=1e-12)
        np.testing.assert_array_equal(response.behaviour, np.float32(row["token_logprobs"]))


def test_tokens_rewards_are_credited_where_no_values_are_stored_and_missing_values_are_found_before_a_run(
    stores: dict[str, Path], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of kept rollouts whose rewards forecast nothing."""
    read = RowReader.read
    monkeypatch.setattr(RowReader, "read", lambda *told: [replace(row, values=None) for row in read(*told)])
    told: dict[str, Any] = {"train": {"objective": "reinforce"}}
    config = settings(stores["groups"], model, **told, advantage={"credit": "tokens", "scale": "none"})
    [data] = workers(config, 1)
    check_step(config, data.examples, data.reader)
    rows = labels(stores["groups"])
    [micro] = data.part(np.arange(1)).micro_batches
    found = [rows[data.reader.tokenizer.decode(each.prompt_ids), *each.response_ids] for each in micro]
    to_go = [
        [sum(0.9 ** (k - h) * r[k] for k in range(h, len(r))) for h in range(5)]
        for r in (row["token_rewards"] for row in found)
    ]
    for response, mine in zip(micro, to_go, strict=True):
        due = [mine[h] - np.mean([each[h] for each in to_go]) for h in range(len(response.response_ids))]
        np.testing.assert_allclose(response.advantages, due, rtol=1e-6, atol=1e-6)
    config = settings(stores["groups"], model, **told, advantage={"credit": "tokens", "baseline": "value"})
    with pytest.raises(ConfigError, match=r"advantage.baseline = value needs token_values of every token"):
        check_step(config, data.examples, data.reader)


def test_all_parts_are_all_examples(stores: dict[str, Path], model: Path) -> None:
    [data] = workers(settings(stores["pairs"], model), 1)
    sizes = [part.totals["pairs"] for part in data.parts()]
    assert sizes == [4, 4, 1]


def test_a_computed_reference_is_kept_and_read_back(stores: dict[str, Path], model: Path, tmp_path: Path) -> None:
    other = save_model(tmp_path / "other", seed=5)
    config = settings(stores["pairs"], model)
    examples, place = find_examples(config), str(tmp_path / "reference")
    assert missing_parts(place, examples) == list(range(len(examples.parts)))
    scorer = Scorer(load_model(ModelConfig(name=str(other)), "cpu"))
    for part in missing_parts(place, examples):
        score_part(place, examples, part, RowReader(examples.sources, examples.parts, config.policy, 1), scorer)
    assert missing_parts(place, examples) == []
    [data] = workers(config, 1, stored=False, references=References(place, hold=1))
    raw = load_model(ModelConfig(name=str(other)), "cpu")
    for part in data.parts():
        for response in (each for micro in part.micro_batches for each in micro):
            ids = torch.tensor([[*response.prompt_ids, *response.response_ids]], dtype=torch.long)
            own = raw(ids).logits[0].log_softmax(-1)[len(response.prompt_ids) - 1 : -1]
            due = own.gather(1, torch.tensor(response.response_ids, dtype=torch.long)[:, None])[:, 0]
            np.testing.assert_allclose(response.reference, due.detach().numpy(), atol=1e-4)
