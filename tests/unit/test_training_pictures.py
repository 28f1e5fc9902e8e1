"""Training on labels whose prompts have pictures: rows, references and steps of the embedded model of shapes, and what is
refused before anything starts."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from label_stores import label_store
from tiny import save_model

from pipeline.config import InputConfig, ModelConfig
from pipeline.errors import ConfigError, InputError, StoreError
from pipeline.models.loading import load_model, load_settings, load_tokenizer
from pipeline.models.pictures import open_pictures, picture_processor
from pipeline.models.scoring import Scorer
from pipeline.rewards.labellers.prompts import prompt_shape
from pipeline.store import LabelStore
from pipeline.training.batch import collate
from pipeline.training.config import TrainConfig
from pipeline.training.examples import find_examples
from pipeline.training.objectives import objective_of
from pipeline.training.pictures import PictureInputs
from pipeline.training.policy import Policy, choose_layout
from pipeline.training.reference import References, score_part
from pipeline.training.rows import RowReader, check_rows
from pipeline.training.steps import StepData

pytest.importorskip("PIL", reason="needs the extra pictures")
FOLDER = Path(__file__).parents[2] / "examples" / "shapes"
MODEL = FOLDER / "model"
PICTURE_TOKENS = 9


def rows(name: str, count: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text().splitlines()[:count]]


def labelled(folder: Path, name: str, count: int) -> LabelStore:
    """Of the first rows of an embedded file, whose pictures lie beside the corpus, and of one row of text alone."""
    shutil.copytree(FOLDER / name, folder / name)
    bare = {"prompt": "What is in the picture?", "chosen": "one red circle", "rejected": "two"}
    return label_store(folder / "store", MODEL, [*rows(name, count), bare])


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    return labelled(tmp_path, "held-out", 4)


def settings(store: LabelStore, policy: Path = MODEL, **sections: Any) -> TrainConfig:
    train = {"labels": [store.uri], "batch_size": 5, **sections.pop("train", {})}
    return TrainConfig.model_validate({"train": train, "policy": {"name": str(policy)}, **sections})


def reader_of(config: TrainConfig) -> RowReader:
    examples = find_examples(config)
    return RowReader(examples.sources, examples.parts, config.policy, 8)


def data_of(config: TrainConfig, references: References | None = None) -> StepData:
    return StepData(config, find_examples(config), reader_of(config), references, references is None, 0, 1)


@pytest.mark.slow
def test_the_embedded_pairs_are_labelled_and_ranked_by_their_pictures(tmp_path: Path) -> None:
    """Two labels a row and no error row; right above wrong in 95% of the rows, and in half of them without the pictures."""
    shutil.copytree(FOLDER / "held-out", tmp_path / "held-out")
    every = rows("held-out", 200)
    blind = [{key: value for key, value in row.items() if key != "image"} for row in every]
    for name, corpus, right in (("seeing", every, range(190, 201)), ("blind", blind, range(100, 101))):
        store = label_store(tmp_path / name, MODEL, corpus, shard_rows=100)
        survey = store.survey()
        assert (survey.labels, survey.errors.total()) == (400, 0)
        assert survey.stats.pictured == (400 if name == "seeing" else 0)
        rewards: dict[str, dict[str, float]] = {}
        for _, labels in store.read("labels", survey.shards, ["prompt_id", "preference", "reward"]):
            for row in labels.to_pylist():
                rewards.setdefault(row["prompt_id"], {})[row["preference"]] = row["reward"]
        assert sum(pair["chosen"] > pair["rejected"] for pair in rewards.values()) in right


def test_a_step_has_the_bytes_of_its_pictures_and_counts_their_tokens(store: LabelStore) -> None:
    data = data_of(settings(store))
    assert data.examples.pictured
    check_rows(data.reader, data.examples)
    part = data.part(np.arange(5))
    responses = [response for micro in part.micro_batches for response in micro]
    seen = {picture.data for response in responses for picture in response.pictures}
    assert seen == {(FOLDER / row["image"]).read_bytes() for row in rows("held-out", 4)}
    token = load_settings(ModelConfig(name=str(MODEL))).image_token_id
    for response in responses:
        assert int((np.asarray(response.prompt_ids) == token).sum()) == PICTURE_TOKENS * len(response.pictures)
    assert part.tokens == sum(len(response.prompt_ids) + len(response.response_ids) for response in responses)
    assert [bool(response.pictures) for response in responses] == [True] * 8 + [False] * 2


def test_rows_rendered_again_have_the_tokens_that_were_labelled(store: LabelStore) -> None:
    config = settings(store)
    examples, stored, again = find_examples(config), reader_of(config), reader_of(config)
    again.same = [False]  # as under another tokenizer
    positions = np.arange(len(examples.rows))
    for ours, due in zip(again.read(examples, positions), stored.read(examples, positions), strict=True):
        np.testing.assert_array_equal(ours.prompt_ids, due.prompt_ids)
        assert ours.pictures == due.pictures


def test_the_policy_before_training_has_the_stored_log_probabilities_and_so_has_a_computed_reference(
    store: LabelStore, tmp_path: Path
) -> None:
    config = settings(store)
    data = data_of(config)
    model = load_model(config.policy, "cpu")
    scorer = Scorer(load_model(config.policy, "cpu"), pictures=open_pictures(config.policy, model.config))
    for part in range(len(data.examples.parts)):
        score_part(str(tmp_path / "reference"), data.examples, part, data.reader, scorer)
    computed = data_of(config, References(str(tmp_path / "reference"), 8))
    policy = Policy(model, pictures=PictureInputs(model, open_pictures(config.policy, model.config)))
    assert choose_layout(policy, policy, "auto") == [] and policy.layout == "packed"
    for part, other in zip(data.parts(), computed.parts(), strict=True):
        for micro, with_reference in zip(part.micro_batches, other.micro_batches, strict=True):
            stored = np.concatenate([np.asarray(response.reference) for response in micro])
            again = np.concatenate([np.asarray(response.reference) for response in with_reference])
            with torch.no_grad():
                own = policy(micro).logprobs.numpy()
            np.testing.assert_allclose(own, stored, atol=1e-4)
            np.testing.assert_allclose(again, stored, atol=1e-4)


@pytest.mark.parametrize("objective", ["sft", "dpo", "grpo", "awr"])
def test_every_objective_reaches_the_vision_tower(store: LabelStore, objective: str) -> None:
    config = settings(store, train={"objective": objective})
    model = load_model(config.policy, "cpu").requires_grad_(True)
    policy = Policy(model, pictures=PictureInputs(model, open_pictures(config.policy, model.config)))
    policy.use_layout("packed")
    [micro] = data_of(config).part(np.arange(5)).micro_batches
    terms = objective_of(config).terms(collate(micro, *policy(micro)))
    terms.losses.sum().backward()
    assert torch.isfinite(terms.losses).all()
    weight = model.model.vision_model.embeddings.patch_embedding.weight
    assert torch.isfinite(weight.grad).all() and weight.grad.any()


def test_a_picture_that_changed_or_is_gone_ends_the_run_before_it_starts(store: LabelStore, tmp_path: Path) -> None:
    config = settings(store)
    place = tmp_path / rows("held-out", 4)[2]["image"]
    shutil.copy(FOLDER / rows("held-out", 4)[0]["image"], place)
    with pytest.raises(StoreError, match=r"0002.png.*another than the one that was labelled"):
        check_rows(reader_of(config), find_examples(config))
    place.unlink()
    with pytest.raises(StoreError, match=r"a picture of its prompt cannot be learnt from: .*0002.png"):
        check_rows(reader_of(config), find_examples(config))


def test_a_policy_that_sees_no_pictures_or_others_is_refused(store: LabelStore, tmp_path: Path) -> None:
    blind = save_model(tmp_path / "blind")
    with pytest.raises(ConfigError, match=r"the corpus has pictures, and .*blind \(llama\) reads text alone"):
        reader_of(settings(store, blind))
    other = tmp_path / "other"
    shutil.copytree(MODEL, other)
    own = json.loads((other / "processor_config.json").read_text())
    (other / "processor_config.json").write_text(json.dumps({**own, "image_seq_len": 4}))
    config = settings(store, other)
    with pytest.raises(ConfigError, match="its pictures have 9 tokens in the labels and 4 under the processor of"):
        check_rows(reader_of(config), find_examples(config))


@pytest.mark.parametrize("parts", [True, False])
def test_prompts_with_pictures_are_not_asked(parts: bool) -> None:
    """By `sample` and `rl`, which read their prompts with this."""
    content = [{"type": "image"}, {"type": "text", "text": "what?"}] if parts else "what?"
    asked = [{"prompt": [{"role": "user", "content": content}], **({} if parts else {"image": "a.png"})}]
    with pytest.raises(InputError, match="prompts have pictures, and a policy is not asked with pictures yet"):
        prompt_shape(asked, InputConfig(paths=["p.jsonl"]), "p.jsonl")
    shape = prompt_shape([{"prompt": "what?", "image": None}], InputConfig(paths=["p.jsonl"]), "p.jsonl")
    assert shape.prompt == "prompt"


@pytest.mark.slow
def test_dpo_on_pictures_separates_held_out_pairs_further(tmp_path: Path) -> None:
    """A plain loop of torch over the steps of the embedded pairs: the mean margin of held-out rewards grows, and who is blind
    would have gained nothing, because every pair occurs with right and wrong swapped."""
    (tmp_path / "learnt").mkdir()
    (tmp_path / "held").mkdir()
    config = settings(labelled(tmp_path / "learnt", "pairs", 60), train={"batch_size": 10})
    measured = data_of(settings(labelled(tmp_path / "held", "held-out", 40)))
    model = load_model(config.policy, "cpu").requires_grad_(True)
    tokenizer = load_tokenizer(config.policy)
    policy = Policy(model, pictures=PictureInputs(model, picture_processor(config.policy, model.config, tokenizer)))
    choose_layout(policy, policy, "auto")
    objective, data = objective_of(config), data_of(config)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-4)

    def margin() -> float:
        with torch.no_grad():
            terms = [objective.terms(collate(m, *policy(m))) for part in measured.parts() for m in part.micro_batches]
        return float(torch.cat([each.metrics["rewards/margins"] for each in terms]).mean())

    before = margin()
    order = data.order()
    for step in range(18):
        for micro in data.part(order.step(step)).micro_batches:
            objective.terms(collate(micro, *policy(micro))).losses.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert abs(before) < 1e-3
    assert margin() > 0.1
