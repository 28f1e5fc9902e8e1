"""How far a run is before its first shard is committed: by what actors say of the shards that they have in hand."""

import threading
from pathlib import Path
from typing import Any

import pytest
from tiny import CHATML, save_model

from jobs.label import watch as watching
from jobs.label.backlog import Backlog
from jobs.label.flow import ShardActor
from jobs.label.watch import Watch
from jobs.label.work import Headway, PoolState
from pipeline.config import EvaluateConfig
from pipeline.corpus import detect, find_files, plan_file, read_shards
from pipeline.models.loading import load_model
from pipeline.models.questions import Question
from pipeline.models.scoring import Scorer
from pipeline.rewards.labellers import Classified, Endogenous, Labeller
from pipeline.rewards.labelling import Prepared
from pipeline.store import Status
from pipeline.store import status as statuses


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), CHATML)


class Halfway:
    """A model in the middle of a shard: it stands still until it is let go on."""

    def __init__(self, reached: int):
        self.forwarded_tokens, self.reached = 1000, reached  # 1000: of shards before
        self.there, self.go = threading.Event(), threading.Event()

    def answer(self, what: str, requests: Any) -> Any:
        self.forwarded_tokens += self.reached
        self.there.set()
        assert self.go.wait(10)
        raise KeyError("enough")


def prepared(tmp_path: Path, model: Path, kind: type[Labeller]) -> tuple[Labeller, Prepared]:
    """Six responses of three rows, of which two have the same prompt."""
    (tmp_path / "a.jsonl").write_text(
        '{"prompt": "one", "chosen": "good", "rejected": "quite bad"}\n'
        '{"prompt": "one", "chosen": "very good", "rejected": "no"}\n'
        '{"prompt": "two and more", "chosen": "yes", "rejected": "bad bad"}\n'
    )
    config = EvaluateConfig.model_validate({"model": {"name": str(model)}, "classifier": {"model": str(model)}})
    labeller = kind(config, config.model)
    [file] = find_files([str(tmp_path / "a.jsonl")])
    plan = plan_file(file, shard_rows=10)
    [(shard, raw)] = list(read_shards(file, "auto", plan.shards))
    return labeller, labeller.prepare(shard, 0, raw, detect(list(plan.head), config.input))


def shard_actor(labeller: Labeller, model: Any) -> ShardActor:
    actor = ShardActor.__new__(ShardActor)
    actor.labeller, actor.actor, actor.in_hand = labeller, model, None
    actor.target, actor.answering = None, threading.Lock()  # type: ignore[assignment]
    return actor


def test_a_scorer_is_given_as_many_tokens_as_are_expected(tmp_path: Path, model: Path) -> None:
    labeller, shard = prepared(tmp_path, model, Endogenous)
    scorer = Scorer(load_model(labeller.model, "cpu", 0))
    assert scorer.layout == "packed"
    scorer.score(shard.requests)
    assert shard_actor(labeller, None)._tokens_of(shard.requests) == scorer.forwarded_tokens


def test_a_shard_that_is_half_answered_is_half_of_its_rows(tmp_path: Path, model: Path) -> None:
    labeller, shard = prepared(tmp_path, model, Endogenous)
    expected = shard_actor(labeller, None)._tokens_of(shard.requests)
    halfway = Halfway(expected // 2)
    actor = shard_actor(labeller, halfway)
    assert actor.headway() == Headway(1000)

    def label() -> None:
        with pytest.raises(KeyError):
            actor._labelled(shard, again=False)

    thread = threading.Thread(target=label)
    thread.start()
    assert halfway.there.wait(10)
    tokens = sum(len(turn.response_ids) for turn in shard.tokens)
    reached = actor.headway()
    halfway.go.set()
    thread.join()
    share = (expected // 2) / expected
    assert reached == pytest.approx((1000 + expected // 2, share * 3, share * tokens)) and 0.4 < share <= 0.5
    assert actor.headway() == Headway(1000 + expected // 2)  # nothing in hand


def test_what_is_to_be_written_has_no_share(tmp_path: Path, model: Path) -> None:
    labeller, shard = prepared(tmp_path, model, Endogenous)
    actor = shard_actor(labeller, Halfway(0))
    assert actor._tokens_of([Question([1, 2, 3])]) == 0
    actor.in_hand = shard, 0, 500
    assert actor.headway() == Headway(1000)


def test_a_classifier_repeats_prompts(tmp_path: Path, model: Path) -> None:
    labeller, shard = prepared(tmp_path, model, Classified)
    whole = sum(len(turn.prompt_ids) + len(turn.response_ids) for turn in shard.requests)
    assert shard_actor(labeller, None)._tokens_of(shard.requests) == whole


class Clock:
    time = 1000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watch:
    """Of a hundred rows, none of them done; nothing is told to Ray."""

    class Untold:
        def __init__(self, *values: Any):
            pass

        def __getattr__(self, name: str) -> Any:
            return lambda *values: None

    monkeypatch.setattr(watching, "RunMetrics", Untold)
    backlog = Backlog([])
    backlog.rows = backlog.total_rows = 100
    made = Watch(str(tmp_path), "label", backlog)
    made.status = statuses.StatusFile(str(tmp_path), 100, 0, clock=Clock())
    return made


def test_a_run_of_one_shard_shows_its_rate_and_the_time_left(watch: Watch) -> None:
    """The minutes in which a node came and the model was loaded are no part of the rate."""
    clock = watch.status.clock
    assert isinstance(clock, Clock)
    watch.pool(PoolState(1, 0, 1, 1, 0))
    clock.time += 100
    assert (watch.status.now().tokens_per_second, watch.status.now().seconds_left) == (None, None)
    watch.pool(PoolState(1, 1, 0, 1, 0))
    seen: list[Status] = []
    for step in range(1, 4):
        clock.time += 10
        watch.pool(PoolState(1, 1, 0, 1, step * 4000, rows_in_hand=10.0 * step, tokens_in_hand=1000.0 * step))
        seen.append(watch.status.now())
    assert [each.tokens for each in seen] == [1000, 2000, 3000] and {each.done_rows for each in seen} == {0}
    assert [each.tokens_per_second for each in seen] == pytest.approx([100] * 3)
    assert [each.rows_per_second for each in seen] == pytest.approx([1] * 3)
    assert [each.seconds_left for each in seen] == pytest.approx([90, 80, 70])
    watch.status.commit(100, 10_000, {})
    assert watch.status.now().seconds_left == 0


def test_what_is_waited_for_is_told_while_some_run(watch: Watch) -> None:
    watch.pool(PoolState(3, 1, 2, 2, 0, nodes_pending=2))
    workforce = watch.status.now().workforce
    said = "3 actors wanted, 1 running, 2 waiting for a node or loading, 2 nodes, 2 nodes pending"
    assert (workforce.nodes_pending, workforce.waiting) == (2, said)
    lines = dict(statuses.status_rows(watch.status.now(), writer=True))
    assert lines["Nodes"] == "2, 2 pending" and lines["Waits for"] == said
    watch.pool(PoolState(3, 3, 0, 4, 0))
    assert watch.status.now().workforce.waiting is None
