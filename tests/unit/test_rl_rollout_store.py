"""Kept rollouts: what is read is what was kept, whatever was killed; and a store like any other to those who read stores."""

import base64
import io
import itertools
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from label_stores import as_format_1
from tiny import CHATML, save_model

from jobs.stores import inspect_store
from jobs.stores.redraw import redraw
from jobs.stores.sweep import sweep
from pipeline.config import ModelConfig
from pipeline.errors import ConfigError, StoreError
from pipeline.models.generation import Generator
from pipeline.models.loading import load_model, load_tokenizer
from pipeline.models.questions import Question
from pipeline.rl.config import RlConfig
from pipeline.rl.prompts import read_prompts
from pipeline.rl.rollout_store import RolloutStore, describe_rollouts
from pipeline.rl.rollouts import Group, Prompt, Rewarded, Rollout
from pipeline.rl.sources import RewardMixture
from pipeline.store import documents, part_uri, problems
from pipeline.training.config import TrainConfig
from pipeline.training.examples import find_examples
from pipeline.training.rows import RowReader, stored_reference
from pipeline.training.steps import StepData

RUN = {"rl.algorithm": "grpo", "rl.seed": 0}
DESCRIPTION = {"tokens.template": None, "reward.gamma": 1.0, "run.rl.seed": 0}


def group(number: int, seed: int = 0, sizes: Sequence[int] = (3, 1), **columns: Any) -> Group:
    """Of random bits: no float32 holds what these float64 are."""
    chance = np.random.default_rng([number, seed])

    def tokens(size: int) -> Any:
        return chance.normal(size=size).astype(np.float32)

    talk = number % 2 == 0
    prompt = Prompt(
        f"a.jsonl:{number}", [{"role": "user", "content": f"ab ☃ {number}"}], talk, [7, number, 2**30], columns
    )
    rollouts = [Rollout(chance.integers(0, 99, n).tolist(), f"é {n}", n > 1, tokens(n), seed) for n in sizes]
    rewarded = [
        Rewarded(
            chance.normal() / 3,
            {"endogenous": chance.normal(), "right": 1 / 3} if n > 1 else {},
            chance.normal(size=n) / 3,
            chance.normal(size=n) / 3 if talk else None,
            None if talk else tokens(n),
        )
        for n in sizes
    ]
    return Group(prompt, rollouts, rewarded)


def bits(thing: Any) -> Any:
    """Something that is equal where types and bits are."""
    if isinstance(thing, np.ndarray):
        return thing.dtype.str, thing.shape, thing.tobytes()
    if is_dataclass(thing):
        return type(thing), [bits(getattr(thing, field.name)) for field in fields(thing)]
    if isinstance(thing, list | tuple):
        return [bits(each) for each in thing]
    return repr(dict(sorted(thing.items()))) if isinstance(thing, dict) else (type(thing), thing)


@pytest.fixture
def kept(tmp_path: Path) -> RolloutStore:
    kept = RolloutStore(str(tmp_path / "rollouts"))
    kept.open(DESCRIPTION)
    return kept


BATCHES = [[group(0), group(1, sizes=(2, 5))], [group(1, 1), group(0, 1), group(0, 2)]]


# What is read is what was kept


def test_what_is_read_has_the_bits_of_what_was_kept(kept: RolloutStore) -> None:
    for step, batch in enumerate(BATCHES):
        kept.keep(step, batch)
    again = RolloutStore(kept.store.uri)
    assert again.steps() == 2
    for step, batch in enumerate(BATCHES):
        assert bits(again.read(step)) == bits(batch)
    assert again.read(0)[0].rewarded[0].values.flags.writeable  # type: ignore[union-attr]


def test_awkward_values_come_back(kept: RolloutStore) -> None:
    odd = np.array([-0.0, 1e-45, -np.inf], np.float32)
    tiny = np.array([5e-324, -0.0, 0.1 + 0.2])
    columns = {"answer": ["4", None, {"b": 1, "a": 0.1}], "rollout": "a column of that name", "missing": float("nan")}
    plain = Prompt("a: b.jsonl:3", [], False, [1], columns)
    batch = [Group(plain, [Rollout([1, 2, 3], "", False, odd, 9)], [Rewarded(1e-300, {"x": -0.0}, tiny, tiny, odd)])]
    kept.keep(0, batch)
    assert bits(kept.read(0)) == bits(batch)


def test_rollouts_of_format_1_are_read(kept: RolloutStore) -> None:
    """Which kept the prompt's tokens beside the other things that have no column."""

    def former(row: dict[str, Any]) -> str:
        extra = json.loads(row["extra_info"])
        ids = np.array(row["prompt_token_ids"], np.int32)
        extra["rollout"]["prompt_ids"] = [ids.dtype.str, base64.b64encode(ids.tobytes()).decode()]
        return json.dumps(extra)

    for step, batch in enumerate(BATCHES):
        kept.keep(step, batch)
    as_format_1(kept.store, former)
    assert list(problems(kept.store)) == []
    assert [bits(kept.read(step)) for step in range(2)] == [bits(batch) for batch in BATCHES]


def test_the_tools_of_a_prompt_are_kept(kept: RolloutStore) -> None:
    made = group(0)
    batch = [replace(made, prompt=replace(made.prompt, tools=[{"type": "function", "function": {"name": "add"}}]))]
    kept.keep(0, batch)
    assert bits(kept.read(0)) == bits(batch)


def test_the_columns_are_those_of_the_contract(kept: RolloutStore) -> None:
    batch = [group(0, answer="12")]
    kept.keep(0, batch)
    [first, second] = pq.read_table(kept.store.at("labels")).to_pylist()
    [rollout, _], [rewarded, _] = batch[0].rollouts, batch[0].rewarded
    assert first["id"] == "step-000000:0:response:0:0" and first["prompt_id"] == second["prompt_id"] == "step-000000:0"
    assert first["reward"] == rewarded.reward and not first["truncated"] and second["truncated"]
    assert first["token_ids"] == rollout.ids and first["num_prompt_tokens"] == 3
    assert first["prompt_token_ids"] == batch[0].prompt.ids
    assert np.float32(first["token_logprobs"]).tobytes() == rollout.logprobs.tobytes()
    assert np.array_equal(np.float32(first["token_rewards"]), rewarded.token_rewards.astype(np.float32))
    extra = json.loads(first["extra_info"])
    assert extra["answer"] == "12" and extra["rollout"]["prompt"] == "a.jsonl:0"


# Steps


def test_steps_are_counted_from_the_first_on(kept: RolloutStore) -> None:
    assert (RolloutStore(kept.store.uri + "-not-there").steps(), kept.steps()) == (0, 0)
    kept.keep(1, BATCHES[1])
    assert kept.steps() == 0
    kept.keep(0, BATCHES[0])
    assert kept.steps() == 2


def files(kept: RolloutStore) -> dict[str, bytes]:
    root = Path(kept.store.uri)
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def record(kept: RolloutStore, step: int) -> dict[str, Any]:
    names = sorted(Path(kept.store.uri, "records").glob("*-000000.json"))
    found = [documents.read(str(name)) for name in names]
    return next(each for each in found if each["shard"]["file"] == f"step-{step:06d}")


def test_a_step_that_is_kept_again_is_left_as_it_is_or_replaced(kept: RolloutStore) -> None:
    kept.keep(0, BATCHES[0])
    kept.finish()
    before = files(kept)
    kept.keep(0, BATCHES[0])
    assert files(kept) == before
    moved = BATCHES[0][0].rewarded[0].token_rewards.copy()
    moved[-1] = np.nextafter(moved[-1], 1.0)
    first = replace(BATCHES[0][0].rewarded[0], token_rewards=moved)
    other = [
        replace(BATCHES[0][0], rewarded=[first, *BATCHES[0][0].rewarded[1:]]),
        BATCHES[0][1],
    ]
    kept.keep(0, other)
    assert record(kept, 0)["generation"] == 1 and "manifest.json" not in files(kept)
    assert bits(kept.read(0)) == bits(other) and list(problems(kept.store)) == []


def test_a_step_whose_part_is_damaged_is_kept_anew(kept: RolloutStore) -> None:
    kept.keep(0, BATCHES[0])
    [part] = Path(kept.store.uri, "labels").iterdir()
    part.write_bytes(part.read_bytes()[:-9])
    kept.keep(0, BATCHES[0])
    assert bits(kept.read(0)) == bits(BATCHES[0]) and list(problems(kept.store)) == []


def test_another_description_is_refused(kept: RolloutStore) -> None:
    kept.keep(0, BATCHES[0])
    before = files(kept)
    with pytest.raises(StoreError, match=r"run\.rl\.seed: the store has 0, this run 1"):
        RolloutStore(kept.store.uri).open({**DESCRIPTION, "run.rl.seed": 1})
    assert files(kept) == before
    RolloutStore(kept.store.uri).open(DESCRIPTION)
    assert files(kept) == before


def test_what_cannot_be_read_is_named(kept: RolloutStore, tmp_path: Path) -> None:
    kept.keep(0, BATCHES[0])
    with pytest.raises(StoreError, match=r"rollouts, step 3: not kept, there are 1 steps"):
        kept.read(3)
    with pytest.raises(StoreError, match="not a label store"):
        RolloutStore(str(tmp_path / "nothing")).read(0)
    [part] = Path(kept.store.uri, "labels").iterdir()
    whole = part.read_bytes()
    for data in (whole[:-1], whole[:99] + bytes([whole[99] ^ 1]) + whole[100:]):
        part.write_bytes(data)
        with pytest.raises(StoreError, match=r"rollouts, step 0: .* is missing or damaged"):
            kept.read(0)
    part.unlink()
    with pytest.raises(StoreError, match=r"rollouts, step 0: .* is missing or damaged"):
        kept.read(0)
    [place] = Path(kept.store.uri, "records").glob("*-000000.json")
    place.write_bytes(place.read_bytes()[:-1])
    with pytest.raises(StoreError, match=r"rollouts, step 0: .* is damaged"):
        kept.read(0)


# Killed in between


def killed(work: Callable[[], object], kill_at: int) -> bool:
    """Run `work` in a forked child that dies before change number `kill_at` of the file system; whether it died."""
    child = os.fork()
    if child == 0:
        changes = itertools.count()

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            change = writes or event in ("os.rename", "os.link", "os.remove", "os.mkdir")
            if change and next(changes) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

        code = 1
        try:
            sys.addaudithook(hook)
            work()
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("replaces", [False, True])
def test_a_kill_at_every_step_loses_nothing(kept: RolloutStore, tmp_path: Path, replaces: bool) -> None:
    kept.keep(0, BATCHES[0])
    if replaces:
        kept.keep(1, BATCHES[0])
    saved = shutil.copytree(kept.store.uri, tmp_path / "saved")
    for kills in itertools.count():
        shutil.rmtree(kept.store.uri)
        shutil.copytree(saved, kept.store.uri)
        if not killed(lambda: kept.keep(1, BATCHES[1]), kills):
            break
        assert bits(kept.read(0)) == bits(BATCHES[0])
        assert kept.steps() in (1, 2)
        assert replaces or kept.store.progress().complete, "the store of the steps so far"
        again = RolloutStore(kept.store.uri)
        again.open(DESCRIPTION)
        again.keep(1, BATCHES[1])
        assert bits(again.read(1)) == bits(BATCHES[1]) and again.steps() == 2
        assert list(problems(again.store)) == [] and again.store.progress().complete
        assert not [name for name in files(kept) if name.endswith(".tmp")]
    assert kills >= 6


# A store like any other


PROMPTS = [{"prompt": f"what is {n} ab", "answer": str(n)} for n in range(3)]


@pytest.fixture(scope="module", params=["template", "base"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), CHATML if request.param == "template" else None)


def sampled(config: RlConfig, source: Path) -> list[list[Group]]:
    """Two batches of what the policy really samples and its own logits reward."""
    prompts = read_prompts(config, [str(source)], "input.paths").prompts
    policy = load_model(config.policy, "cpu")
    generator = Generator(policy, load_tokenizer(config.policy), max_new_tokens=9, temperature=1.0, logprobs=True)
    rewarder = RewardMixture(config, "cpu", "float32", hold_reference=True)
    batches = []
    for step in range(2):
        answers = generator.generate([Question(prompt.ids, 3, 10 * step + n) for n, prompt in enumerate(prompts)])
        made = [
            (prompt, [Rollout(a.token_ids, a.text, a.finished, a.logprobs, step) for a in each])  # type: ignore[union-attr, arg-type]
            for prompt, each in zip(prompts, answers, strict=True)
        ]
        worth = rewarder.reward(made)
        batches.append([Group(*each, earned) for each, earned in zip(made, worth, strict=True)])
    return batches


def test_train_learns_from_it_as_the_run_did(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "prompts.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    name = {"name": str(model)}
    tokens = {"system_prompt": "Be brief, ab."}
    config = RlConfig.model_validate({"policy": name, "reward_model": name, "tokens": tokens})
    batches = sampled(config, source)
    kept = RolloutStore(str(tmp_path / "rollouts"))
    kept.open(describe_rollouts(config, RUN, "float32"))
    for step, batch in enumerate(batches):
        kept.keep(step, batch)
        assert bits(kept.read(step)) == bits(batch)

    assert list(problems(kept.store)) == []
    told = {"labels": [kept.store.uri], "objective": "grpo"}
    training = TrainConfig.model_validate({"train": told, "policy": name, "advantage": {"credit": "tokens"}})
    examples = find_examples(training)
    assert examples.counts.prompts == 6 and examples.counts.labels == 18
    reader = RowReader(examples.sources, examples.parts, ModelConfig.model_validate(name), 4)
    groups = [each for batch in batches for each in batch]
    wanted = sorted(
        (tuple(g.prompt.ids), tuple(made.ids), made.logprobs.tobytes(), worth.reward)
        for g in groups
        for made, worth in zip(g.rollouts, g.rewarded, strict=True)
    )
    rows = reader.read(examples, range(18))
    assert wanted == sorted(
        (tuple(row.prompt_ids), tuple(row.response_ids), row.logprobs.tobytes(), row.reward)  # type: ignore[union-attr]
        for row in rows
    )
    part = StepData(training, examples, reader, None, False, 0, 1).part(range(6))
    learnt = [response for micro in part.micro_batches for response in micro]
    assert part.totals["responses"] == len(learnt) == 18
    assert sorted(response.behaviour.tobytes() for response in learnt) == sorted(each[2] for each in wanted)  # type: ignore[union-attr]

    stored, _ = stored_reference(examples.sources, ModelConfig.model_validate(name), "float32")
    assert not stored, "the weights that sampled are not the policy before training, though they began as it"
    with pytest.raises(ConfigError, match="no token rewards that another reward could be made of"):
        sweep(kept.store.uri, [], None)

    kept.finish(config)
    capsys.readouterr()
    assert inspect_store.status(kept.store.uri) == inspect_store.validate(kept.store.uri) == redraw(kept.store.uri) == 0
    assert "6 of 6 rows, 2 of 2 shards" in capsys.readouterr().out


def test_pairs_are_formed_within_a_step(model: Path, tmp_path: Path) -> None:
    kept = RolloutStore(str(tmp_path / "rollouts"))
    config = RlConfig.model_validate({"policy": {"name": str(model)}, "reward_model": {"name": str(model)}})
    kept.open(describe_rollouts(config, RUN, "float32"))
    best = []
    for step in range(3):
        same = replace(group(0, step, sizes=(3, 4, 5)), prompt=group(0).prompt)
        kept.keep(step, [same])
        best.append((max(r.reward for r in same.rewarded), min(r.reward for r in same.rewarded)))
    examples = find_examples(
        TrainConfig.model_validate(
            {"train": {"labels": [kept.store.uri], "objective": "dpo"}, "pairs": {"preference": "reward"}}
        )
    )
    assert sorted(map(tuple, examples.rewards.reshape(-1, 2).tolist())) == sorted(best)


def test_a_copy_of_the_store_is_whole_and_replays(kept: RolloutStore, tmp_path: Path) -> None:
    kept.keep(0, BATCHES[0])
    shutil.copytree(kept.store.uri, tmp_path / "copy")
    copy = RolloutStore(str(tmp_path / "copy"))
    assert list(problems(copy.store)) == [] and bits(copy.read(0)) == bits(BATCHES[0])
    part = part_uri(copy.store.uri, "labels", copy.store.inputs()[0].plan.shards[0])
    assert pq.read_table(io.BytesIO(Path(part).read_bytes())).num_rows == 4
