"""The learning rate, DeepSpeed's configuration, and what makes two training runs the same."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import save_model

from actors.learner import Diverged
from jobs.learning import loop, worker
from jobs.learning.trainer import STARTS_WITHIN, _failures, _scaling, _variables
from jobs.train.recipe import TrainRecipe
from pipeline.config import load_config_as
from pipeline.errors import ConfigError, RunError, StoreError
from pipeline.store import documents
from pipeline.training.config import DpoConfig, LearnerConfig, TrainConfig, TrainSection
from pipeline.training.deepspeed import deepspeed_config
from pipeline.training.documents import Stopped
from pipeline.training.objectives import objective_of
from pipeline.training.run import CHECKPOINTS, POLICIES, SNAPSHOT, RunFolder, describe, keep_snapshot
from pipeline.training.schedule import base_rate, learning_rate

BEGUN = {
    "created": "2026-01-01T00:00:00+00:00", "objective": "dpo", "config": {}, "description": {}, "fingerprint": "f",
    "policy": {"name": "m"}, "steps": 2,
}  # fmt: skip


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_rate_rises_and_falls(schedule: str) -> None:
    train = TrainSection(schedule=schedule, warmup=0.1)
    rates = [learning_rate(train, 2.0, step, 100) for step in range(100)]
    assert rates[:11] == pytest.approx([2 * (step + 1) / 11 for step in range(11)])
    halfway = {"cosine": 1.0, "linear": 1.0, "constant": 2.0}[schedule]
    assert rates[55] == pytest.approx(halfway)
    assert rates[-1] == pytest.approx({"cosine": 2 * 0.0003046, "linear": 2 / 90, "constant": 2.0}[schedule], rel=1e-3)
    assert all(rate > 0 for rate in rates)
    assert [learning_rate(TrainSection(warmup=0.0), 1.0, step, 1) for step in range(1)] == [1.0]


def test_the_default_rate_goes_as_one_over_width() -> None:
    assert base_rate(TrainSection(), 4096, lora=False) == pytest.approx(5e-7, rel=0.05)
    assert base_rate(TrainSection(), 128, lora=True) == pytest.approx(10 * base_rate(TrainSection(), 128, lora=False))
    assert base_rate(TrainSection(learning_rate=7e-6), 128, lora=True) == 7e-6


def told(theirs: dict[str, Any], **learner: Any) -> dict[str, Any]:
    config = TrainConfig.model_validate({"learner": {"deepspeed": "mine.json", **learner}})
    return deepspeed_config(config, "bfloat16", json.dumps(theirs))


def test_a_users_configuration_is_merged() -> None:
    found = told(
        {
            "zero_optimization": {
                "stage": 2,
                "overlap_comm": True,
                "offload_optimizer": {"device": "cpu", "pin_memory": True},
            },
            "gradient_clipping": "auto",
            "train_batch_size": "auto",
            "optimizer": {"params": {"lr": "auto"}},
            "fp16": {"enabled": False, "loss_scale": 0},
            "wall_clock_breakdown": True,
        },
        zero_stage=2,
        offload="optimizer",
    )
    assert found["zero_optimization"] == {
        "stage": 2,
        "overlap_comm": True,
        "offload_optimizer": {"device": "cpu", "pin_memory": True},
    }
    assert found["gradient_clipping"] == 1.0 and found["wall_clock_breakdown"] is True
    assert found["bf16"] == {"enabled": True, "immediate_grad_update": True}
    assert not found.keys() & {"train_batch_size", "optimizer", "fp16"}


@pytest.mark.parametrize(
    ("theirs", "due"),
    [
        ({}, "fp32"),
        ({"data_types": {"grad_accum_dtype": "auto"}}, "fp32"),
        ({"data_types": {"grad_accum_dtype": "bf16"}}, "bf16"),
        ({"bf16": {"bf16_master_weights_and_grads": True}}, "bf16"),
        ({"bf16": {"bf16_master_weights_and_grads": True}, "data_types": {"grad_accum_dtype": "fp32"}}, "fp32"),
    ],
)
def test_gradients_are_added_up_in_float32_unless_a_user_says_otherwise(theirs: dict[str, Any], due: str) -> None:
    for stage in (1, 2, 3):
        assert told(theirs, zero_stage=stage)["data_types"] == {"grad_accum_dtype": due}
    assert deepspeed_config(TrainConfig(), "bfloat16")["data_types"] == {"grad_accum_dtype": "fp32"}


def test_every_conflict_is_named() -> None:
    with pytest.raises(ConfigError) as raised:
        told(
            {
                "train_batch_size": 8,
                "optimizer": {"type": "Adam"},
                "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme"}},
                "gradient_clipping": 0.5,
                "gradient_allreduce_op": "sum",
                "bf16": True,
            }
        )
    said = str(raised.value)
    assert "mine.json contradicts this configuration" in said
    for line in (
        "train_batch_size: say it with train.batch_size",
        "optimizer: say it with train.*",
        "zero_optimization.stage: 3 there, is 1 here; say it with learner.zero_stage",
        "zero_optimization.offload_optimizer.device: 'nvme' there, is not set here; say it with learner.offload",
        "gradient_clipping: 0.5 there, is 1.0 here; say it with train.max_grad_norm",
        "gradient_allreduce_op: say it with train.learning_rate; a step's loss is a mean over all workers",
        "bf16: True there, which DeepSpeed has a section for",
    ):
        assert line in said


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_what_is_no_configuration_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"mine\.json"):
        deepspeed_config(TrainConfig.model_validate({"learner": {"deepspeed": "mine.json"}}), "float32", text)


def test_what_moves_a_number_makes_another_run(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    labels = {"stores": [{"fingerprint": "f", "records": "r"}], "examples": 5}

    def description(workers: int = 1, deepspeed: str | None = None, **sections: Any) -> dict[str, Any]:
        config = TrainConfig.model_validate({"policy": {"name": str(model)}, **sections})
        return describe(config, labels, "float32", "cpu", workers, deepspeed)

    first = description()
    same = [
        {"output": {"path": "x"}},
        {"checkpoint": {"keep": 5}},
        {"learner": {"max_failures": 9}},
        {"learner": {"budget_tokens": 16384}},  # which is none at all: on a GPU its memory says how many
        {"learner": {"max_preemption_failures": 9}},
        {"ipo": {"beta": 1}},
    ]
    assert all(description(**sections) == first for sections in same)
    other = [
        {"train": {"seed": 1}}, {"dpo": {"beta": 1}}, {"pairs": {"label_smoothing": 0.1}}, {"lora": {"rank": 2}},
        {"learner": {"zero_stage": 2}}, {"learner": {"budget_tokens": 100}}, {"workers": 2}, {"deepspeed": "{}"},
        {"learner": {"workers": 4, "min_workers": 2}},
    ]  # fmt: skip
    assert all(description(**sections) != first for sections in other)
    assert first["learner.budget_tokens"] == 16384 and "learner.min_workers" not in first, (
        "as earlier versions described it"
    )
    low, plain = json.dumps({"data_types": {"grad_accum_dtype": "bf16"}}), "{}"
    config = TrainConfig.model_validate({"policy": {"name": str(model)}})
    dtypes = [describe(config, labels, "bfloat16", "cpu", 1, text)["learner.grad_accum_dtype"] for text in (plain, low)]
    assert dtypes == ["fp32", "bf16"] and "learner.grad_accum_dtype" not in first
    awr = description(train={"objective": "awr"})
    assert awr != description(train={"objective": "awr"}, awr={"temperature": 2})
    assert awr != description(train={"objective": "awr"}, advantage={"baseline": "none"})

    folder = RunFolder(str(tmp_path / "out"))
    folder.check(first)  # nothing there
    begun = {
        "created": "2026-01-01T00:00:00+00:00",
        "objective": "dpo",
        "config": {},
        "policy": {"name": "m"},
        "steps": 2,
    }
    documents.create(folder.at("run.json"), {**begun, "description": first, "fingerprint": "f"})
    folder.check(first)
    folder.check(description(dpo={"beta": 1}))  # nothing was learned there yet
    documents.create(folder.at("checkpoints", "checkpoint_manager_snapshot.json"), {})
    folder.check(first)
    with pytest.raises(StoreError, match=r"dpo.beta: the run there has None, this run 1.0"):
        folder.check(description(dpo={"beta": 1}))
    with pytest.raises(StoreError, match="a checkpoint fits only as many workers as wrote it"):
        folder.check(description(workers=2))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(StoreError, match=r"holds something else \(thesis\.txt\)"):
        RunFolder(str(tmp_path / "mine")).check(first)


def test_beta_is_by_where_preferences_come_from() -> None:
    known, reward = (TrainConfig.model_validate({"pairs": {"preference": name}}) for name in ("known", "reward"))
    assert [objective_of(config).beta for config in (known, reward)] == [0.1, 1.0]
    assert objective_of(reward.model_copy(update={"dpo": DpoConfig(beta=0.3)})).beta == 0.3


def test_a_dtype_without_effect_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"reference.dtype = bfloat16 has no effect on training; say it with learner.dtype"
    ):
        load_config_as(TrainConfig, None, [], ["reference.dtype=bfloat16"])


ONE, TWO = "checkpoint_2026-01-01_00-00-00.000001", "checkpoint_2026-01-01_00-00-09.000002"


def run_folder(tmp_path: Path, *checkpoints: str, snapshot: str | None = None) -> RunFolder:
    folder = RunFolder(str(tmp_path))
    documents.create(folder.at("run.json"), BEGUN)
    for name in checkpoints:
        (tmp_path / CHECKPOINTS / name).mkdir(parents=True)
        (tmp_path / CHECKPOINTS / name / "weights").write_text(name)
    if snapshot is not None:
        (tmp_path / CHECKPOINTS / SNAPSHOT).write_text(snapshot)
    return folder


def kept(tmp_path: Path) -> list[str]:
    """The folders of checkpoints, each with its file still in it."""
    return sorted(path.parent.name for path in (tmp_path / CHECKPOINTS).glob("*/weights"))


def listing(*names: str) -> str:
    return json.dumps({"checkpoint_results": [{"checkpoint_dir_name": name} for name in names]})


def test_what_a_kill_left_of_the_checkpoints_is_mended(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, ONE, TWO, "mine", "checkpoint-500", snapshot=listing(TWO))
    temporary = tmp_path / f".run.json.{'0' * 32}.tmp"
    temporary.touch()
    keep_snapshot(folder.uri)
    snapshot = tmp_path / CHECKPOINTS / SNAPSHOT
    snapshot.write_text('{"checkpoint_res')  # killed while it was written
    folder.mend()
    assert snapshot.read_text() == listing(TWO) and folder.begun
    assert kept(tmp_path) == ["checkpoint-500", TWO, "mine"], "what is not Ray's stays"
    assert not temporary.exists()


def test_a_kill_in_the_first_checkpoint_begins_anew(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    keep_snapshot(folder.uri)
    folder = run_folder(tmp_path, ONE, snapshot="")
    folder.mend()
    assert not folder.begun and kept(tmp_path) == []


@pytest.mark.parametrize(
    "snapshot", ['{"version": 2, "checkpoints": []}', "[]", '{"checkpoint_results": [1]}', "", None]
)
@pytest.mark.parametrize("own", [False, True])
def test_checkpoints_without_a_list_are_never_deleted(tmp_path: Path, snapshot: str | None, own: bool) -> None:
    """Another version of Ray may write its private list in another form, and people copy folders in part."""
    folder = run_folder(tmp_path, ONE, TWO, snapshot=snapshot)
    if own:
        (tmp_path / "checkpoints.json").write_text(listing(ONE) if snapshot else listing("checkpoint_gone"))
    with pytest.raises(StoreError, match="holds checkpoints") as refused:
        folder.mend()
    assert kept(tmp_path) == [ONE, TWO] and refused.value.exit_code == 2
    (tmp_path / CHECKPOINTS).rename(tmp_path / "away")  # as the sentence says
    (tmp_path / "checkpoints.json").write_text(listing(ONE, TWO))
    folder.mend()
    assert not folder.begun


def test_a_finished_run_whose_checkpoints_were_cleared_away_is_no_free_place(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    documents.create(folder.at("manifest.json"), {})
    folder.check({})
    with pytest.raises(StoreError, match="holds another run"):
        folder.check({"dpo.beta": 1})


@pytest.mark.parametrize(
    "theirs", [{"bf16": {"enabled": False}}, {"amp": {"enabled": True}}, {"tensor_parallel": {"size": 2}}]
)
def test_what_would_train_otherwise_is_no_silent_matter(theirs: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="contradicts this configuration"):
        told(theirs)


def test_what_one_worker_finds_is_raised_and_what_all_find_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def recipe(name: str) -> TrainRecipe:
        return TrainRecipe(
            config=TrainConfig(),
            device="cpu",
            deepspeed=None,
            output=str(tmp_path / name),
            steps=1,
            rate=1.0,
            nodes_go=False,
            run={},
            stored_reference=True,
            pictures=False,
            policy_labelled=True,
            reference=None,
            steps_per_epoch=1.0,
            examples=None,
        )

    def fails(error: Exception) -> Callable[[TrainRecipe], None]:
        def step(recipe: TrainRecipe) -> None:
            raise error

        return step

    monkeypatch.setattr(loop, "loop", fails(RunError("the disk is full")))
    monkeypatch.setattr(worker, "place_of", lambda: (0, 1))
    loop.carry_out(recipe("alone"))  # nobody waits for a lone worker: it ends, and nothing is started again
    assert RunFolder(recipe("alone").output).stopped() == Stopped(sentence="the disk is full")
    monkeypatch.setattr(worker, "place_of", lambda: (0, 2))
    with pytest.raises(RunError):  # the others may be waiting for this worker: it has to die
        loop.carry_out(recipe("disk"))
    assert RunFolder(recipe("disk").output).stopped() == Stopped(sentence="the disk is full")
    loop.carry_out(recipe("disk"))  # started again: there is no going on
    monkeypatch.setattr(loop, "loop", fails(Diverged("the loss is nan")))
    loop.carry_out(recipe("nan"))  # all end together, so nothing is started again
    assert RunFolder(recipe("nan").output).stopped() == Stopped(sentence="the loss is nan")


def test_the_policies_of_a_run_go_with_it_and_nothing_else_does(tmp_path: Path) -> None:
    """A run that never came to a checkpoint had its `best/` taken for that of the run in its place."""
    folder, policy = RunFolder(str(tmp_path / "run")), tmp_path / "policy"
    (policy / "below").mkdir(parents=True)
    for name in ("config.json", "below/weights"):
        (policy / name).write_text("{}")
    folder.record_policy("best", str(policy))
    documents.put_folder(str(policy), folder.at("best"))
    assert documents.read(folder.at(POLICIES)) == {"best": ["below/weights", "config.json"]}  # as 0.2.0 reads it
    theirs = tmp_path / "run" / "best" / "notes.txt"
    theirs.write_text("mine")
    (tmp_path / "run" / "hf").mkdir()
    folder.forget_policies()
    left = sorted(str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert left == ["best/notes.txt"] and theirs.read_text() == "mine"
    folder.forget_policies()  # of a run that wrote none


@pytest.mark.parametrize(
    ("learner", "why"),
    [
        ({"min_workers": 1}, "min_workers needs workers, the most that there may be"),
        ({"min_workers": 3, "workers": 2}, "is not more than that"),
        ({"min_workers": 1, "workers": 2, "zero_stage": 3}, "min_workers needs zero_stage = 1 or 2"),
    ],
)
def test_a_number_of_workers_that_may_change_has_its_limits(learner: dict[str, int], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        TrainConfig.model_validate({"learner": learner})


def test_what_ray_is_told_of_workers_and_failures() -> None:
    pytest.importorskip("ray.train")
    fixed, elastic = LearnerConfig(workers=4), LearnerConfig(workers=4, min_workers=2, max_preemption_failures=7)
    assert (_failures(fixed).max_failures, _failures(fixed).max_preemption_failures) == (3, -1), "any number"
    assert _failures(elastic).max_preemption_failures == 7
    assert _scaling(fixed, 4).num_workers == 4 and _scaling(elastic, 4).num_workers == (2, 4)
    assert _variables(fixed, nodes_go=True) == {}


def test_elastic_workers_wait_no_longer_for_a_node_that_is_gone_than_ray_counts_it() -> None:
    """The names are Ray's, and are handed to its controller."""
    coordinator = pytest.importorskip("ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator")
    from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE

    variables = _variables(LearnerConfig(workers=4, min_workers=2), nodes_go=False)
    assert variables.keys() <= ENV_VARS_TO_PROPAGATE and len(variables) == 2
    assert float(variables[STARTS_WITHIN]) == coordinator._AutoscalingCoordinatorActor.TICK_INTERVAL_S
