"""verl 0.9.1: its loading of a reward manager, its reward loop and its reward data, with our file and our server."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from project import MODEL, STORE, asked, ours

verl = pytest.importorskip("verl")
torch = pytest.importorskip("torch")

import numpy as np  # noqa: E402
from hydra import compose, initialize_config_dir  # noqa: E402
from verl import DataProto  # noqa: E402

pytestmark = pytest.mark.shims
ANSWERS = {"345+678=": "1023", "12+7=": "19"}
TOKENS = ["reward.reward_model.enable=True", "reward.reward_model.enable_resource_pool=False"]


@pytest.fixture
def file(shim: Callable[[str], Path], server: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ENDOREWARD_URL", server)
    return shim("verl")


def config_of(*overrides: str) -> Any:
    """verl's own configuration, composed by Hydra."""
    folder = Path(verl.__file__).parent / "trainer/config"
    with initialize_config_dir(str(folder), version_base=None):
        return compose("ppo_trainer", [f"actor_rollout_ref.model.path={MODEL}", *overrides])


def manager_config(file: Path, name: str, *overrides: str) -> Any:
    place = [f"reward.reward_manager.module.path={file}", f"reward.reward_manager.name={name}"]
    return config_of("reward.reward_manager.source=importlib", *place, *overrides)


def batch_of(tokenizer: Any) -> tuple[DataProto, list[tuple[list[int], list[int]]]]:
    """Rollouts as verl batches them: prompts padded on the left, responses on the right."""
    pairs = [
        (tokenizer(p)["input_ids"], tokenizer(a, add_special_tokens=False)["input_ids"]) for p, a in ANSWERS.items()
    ]
    width, length = (max(len(pair[side]) for pair in pairs) for side in (0, 1))
    prompts = torch.tensor([[0] * (width - len(p)) + p for p, _ in pairs])
    responses = torch.tensor([r + [0] * (length - len(r)) for _, r in pairs])
    masks = [[0] * (width - len(p)) + [1] * (len(p) + len(r)) + [0] * (length - len(r)) for p, r in pairs]
    tensors = {
        "prompts": prompts,
        "responses": responses,
        "input_ids": torch.cat([prompts, responses], 1),
        "attention_mask": torch.tensor(masks),
    }
    raw = np.array([[{"role": "user", "content": p}] for p in ANSWERS], dtype=object)
    others = {
        "raw_prompt": raw,
        "data_source": np.array(["addition"] * 2, dtype=object),
        "reward_model": np.array([{"ground_truth": a} for a in ANSWERS.values()], dtype=object),
        "extra_info": np.array([{} for _ in ANSWERS], dtype=object),
    }
    return DataProto.from_dict(tensors=tensors, non_tensors=others), pairs


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    own = asyncio.new_event_loop()
    asyncio.set_event_loop(own)
    yield own
    own.close()


def test_the_reward_loop_gets_the_reward_of_the_tokens(
    file: Path, tokenizer: Any, token_rewards: Callable[..., list[float]], loop: Any
) -> None:
    from verl.experimental.reward_loop.reward_loop import RewardLoopWorker
    from verl.trainer.ppo.reward import resolve_reward_manager_cls

    config = manager_config(file, "EndorewardManager")
    data, pairs = batch_of(tokenizer)
    outputs = loop.run_until_complete(RewardLoopWorker(config).compute_score_batch(data))
    expected = [sum(token_rewards(*pair)) for pair in pairs]
    assert [output["reward_score"] for output in outputs] == pytest.approx(expected, abs=1e-3)
    assert [output["reward_extra_info"]["endogenous_reward"] for output in outputs] == pytest.approx(expected, abs=1e-3)
    scores = resolve_reward_manager_cls(config).assemble_rm_scores(data, [o["reward_score"] for o in outputs])
    ends = [len(response) - 1 for _, response in pairs]
    assert [float(scores[i, end]) for i, end in enumerate(ends)] == pytest.approx(expected, abs=1e-3)


def test_the_colocated_path_gets_the_reward_of_each_token(
    file: Path, tokenizer: Any, token_rewards: Callable[..., list[float]], loop: Any
) -> None:
    from verl.experimental.reward_loop.reward_loop import RewardLoopWorker
    from verl.trainer.ppo.reward import resolve_reward_manager_cls

    own = [f"reward.custom_reward_function.path={file}", f"reward.reward_model.model_path={MODEL}"]
    config = manager_config(file, "EndorewardTokenManager", *TOKENS, *own)
    data, pairs = batch_of(tokenizer)
    outputs = loop.run_until_complete(RewardLoopWorker(config).compute_score_batch(data))
    scores = resolve_reward_manager_cls(config).assemble_rm_scores(data, [o["reward_score"] for o in outputs])
    assert scores.shape == data.batch["responses"].shape
    for row, pair in zip(scores.tolist(), pairs, strict=True):
        expected = token_rewards(*pair)
        assert row == pytest.approx([*expected, *[0.0] * (len(row) - len(expected))], abs=1e-3)
    with pytest.raises(ValueError, match="token rewards exist on verl's colocated path alone"):
        RewardLoopWorker(manager_config(file, "EndorewardTokenManager"))


def test_a_reward_function_without_the_prompt_is_refused(file: Path, tokenizer: Any, server: str, loop: Any) -> None:
    """verl's own manager calls it; with the prompt in extra_info it is the reward of the text."""
    from verl.experimental.reward_loop.reward_loop import RewardLoopWorker

    worker = RewardLoopWorker(config_of(f"reward.custom_reward_function.path={file}"))
    data, _ = batch_of(tokenizer)
    with pytest.raises(ValueError, match="verl gives compute_score no prompt"):
        loop.run_until_complete(worker.compute_score(data[:1]))
    data.non_tensor_batch["extra_info"][0]["prompt"] = "345+678="
    output = loop.run_until_complete(worker.compute_score(data[:1]))
    assert output["reward_score"] == pytest.approx(asked(server, "345+678=", "1023"), abs=1e-4)


def test_a_response_that_cannot_be_scored_names_its_reason(file: Path, tokenizer: Any, loop: Any) -> None:
    from verl.experimental.reward_loop.reward_loop import RewardLoopWorker

    data, _ = batch_of(tokenizer)
    data.batch["attention_mask"][0, len(data.batch["prompts"][0]) :] = 0
    data.batch["input_ids"][0, len(data.batch["prompts"][0]) :] = 0
    with pytest.raises(RuntimeError, match="empty_response"):
        worker = RewardLoopWorker(manager_config(file, "EndorewardManager"))
        loop.run_until_complete(worker.compute_score(data[:1]))


def test_pairs_are_read_by_its_dataset_of_rewards(tmp_path: Path, tokenizer: Any) -> None:
    from verl.utils.dataset.rm_dataset import RMDataset

    ours("export", STORE, "--format", "verl", "--output", tmp_path / "pairs.parquet")
    rows = RMDataset(str(tmp_path / "pairs.parquet"), tokenizer, max_length=64, cache_dir=str(tmp_path / "cache"))
    assert len(rows) == 8
    import pyarrow.parquet as pq

    written = pq.read_table(tmp_path / "pairs.parquet").to_pylist()
    labels = {row["id"]: row for row in pq.read_table(STORE / "labels").to_pylist()}
    for place, row in enumerate(written):
        item = rows[place]
        for number, side in enumerate(("chosen", "rejected")):
            label = labels[f"{row['prompt_id']}:{side}:0:0"]
            ids = item["input_ids"][number][item["attention_mask"][number].bool()].tolist()
            prompt, response = label["prompt_token_ids"], label["token_ids"]
            front = [tokenizer.bos_token_id]  # that verl's dataset lets the tokenizer put in front of a response too
            assert prompt[:1] == front and ids == [*prompt, *front, *response], "the prompt and the end are as scored"
