"""The server's queue: full batches, numbers that do not depend on company, and everyone gets an answer."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import save_model

from jobs.serve.batching import Answers, Batcher, Expired, Lost, Unready
from pipeline.config import ModelConfig
from pipeline.models.loading import load_model
from pipeline.models.scoring import Scorer
from pipeline.tokens import TokenizedTurn

IDS = st.lists(st.integers(0, 255), min_size=1, max_size=12)
REQUESTS = st.lists(
    st.tuples(st.sampled_from([[1], [2, 3, 4], [9] * 20]), st.lists(IDS, min_size=1, max_size=3)),
    min_size=1,
    max_size=8,
)


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    folder = save_model(tmp_path_factory.mktemp("model") / "m")
    return Scorer(load_model(ModelConfig(name=str(folder)), "cpu"), budget_tokens=64)


@dataclass
class Own:
    """A scorer of one batch at a time."""

    scorer: Scorer
    at_once: int = 1

    @property
    def batch_tokens(self) -> int:
        return self.scorer.batch_tokens

    def score(self, turns: Sequence[TokenizedTurn]) -> Answers:
        return self.scorer.score(turns)


class Held:
    """A scorer that waits until it is let go, and remembers its batches."""

    batch_tokens, at_once = 10, 1

    def __init__(self) -> None:
        self.go, self.began = threading.Event(), threading.Event()
        self.batches: list[list[int]] = []

    def score(self, turns: Sequence[TokenizedTurn]) -> Answers:
        self.began.set()
        self.go.wait(10)
        self.batches.append([int(turn.response_ids[0]) for turn in turns])
        if any(turn.response_ids[0] == 13 for turn in turns):
            raise ValueError("13")
        return [turn.response_ids for turn in turns]  # type: ignore[misc]


@pytest.fixture
def started() -> Iterator[Callable[[Any], Batcher]]:
    open_: list[Batcher] = []

    def start(scorer: Any, batches: int = 1) -> Batcher:
        batcher = Batcher(lambda: scorer, threads=batches)
        open_.append(batcher)
        batcher.start()
        while not batcher.ready:
            time.sleep(0.001)
        return batcher

    yield start
    for batcher in open_:
        batcher.close(10)


def turn(prompt: list[int], response: list[int]) -> TokenizedTurn:
    return TokenizedTurn(prompt, response, [])  # type: ignore[arg-type]


@settings(max_examples=12, deadline=None)
@given(REQUESTS)
def test_a_number_does_not_depend_on_who_else_asks(
    scorer: Scorer, requests: list[tuple[list[int], list[list[int]]]]
) -> None:
    turns = [[turn(prompt, response) for response in responses] for prompt, responses in requests]
    batcher = Batcher(lambda: Own(scorer))
    futures: list[Future[Answers] | None] = [None] * len(turns)

    def ask(position: int) -> None:
        futures[position] = batcher.submit(turns[position])

    threads = [threading.Thread(target=ask, args=(position,)) for position in range(len(turns))]
    batcher.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answered = [
        future.result(10) for future in futures if future is not None
    ]  # a scorer is not for two threads at once
    for own, answers in zip(turns, answered, strict=True):
        for each, answer in zip(own, answers, strict=True):
            [alone] = scorer.score([each])
            for name in ("q", "values", "logprobs"):
                np.testing.assert_allclose(getattr(answer, name), getattr(alone, name), rtol=1e-5, atol=1e-5)
    batcher.close()


def test_a_batch_is_filled_with_those_that_share_a_prompt_first(started: Callable[..., Batcher]) -> None:
    held = Held()
    batcher = started(held)
    first = batcher.submit([turn([1], [0])])
    assert held.began.wait(10)  # what comes now waits for the model
    rest = [
        batcher.submit([turn([1, 2, 3], [number] + [0] * more)])
        if number % 2
        else batcher.submit([turn([7] * number, [number])])
        for number, more in ((1, 3), (2, 0), (3, 2), (5, 3), (4, 0))
    ]
    held.go.set()
    for future in [first, *rest]:
        future.result(10)
    assert held.batches[0] == [0]
    assert held.batches[1] == [1, 3, 2]  # 6 tokens, 2 for the same prompt, and 2 that fit; 5 would be one too many
    assert sorted(held.batches[2]) == [4, 5]
    assert batcher.counts.batches == 3 and batcher.counts.responses == 6
    assert batcher.counts.tokens == 1 + (6 + 2 + 2) + (6 + 4)


def test_one_request_that_the_model_fails_on_fails_alone(started: Callable[..., Batcher]) -> None:
    held = Held()
    batcher = started(held)
    first = batcher.submit([turn([1], [0])])
    assert held.began.wait(10)
    bad, good = batcher.submit([turn([1], [13])]), batcher.submit([turn([1], [5])])
    held.go.set()
    assert first.result(10) and good.result(10)[0].tolist() == [5]  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="13"):
        bad.result(10)
    assert batcher.submit([turn([1], [6])]).result(10)


def test_a_cancelled_or_late_request_is_not_computed(started: Callable[..., Batcher]) -> None:
    held = Held()
    batcher = started(held)
    first = batcher.submit([turn([1], [0])])
    assert held.began.wait(10)
    late = batcher.submit([turn([1], [1])], deadline=time.monotonic() - 1)
    gone = batcher.submit([turn([1], [2])])
    last = batcher.submit([turn([1], [3])])
    assert gone.cancel()
    held.go.set()
    assert first.result(10) and last.result(10)
    with pytest.raises(Expired, match="before the model was free"):
        late.result(10)
    assert held.batches == [[0], [3]]


def test_closing_answers_what_waits_and_takes_nothing_more(started: Callable[..., Batcher]) -> None:
    held = Held()
    batcher = started(held)
    futures = [batcher.submit([turn([1], [number])]) for number in range(5)]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    held.go.set()
    closing.join(10)
    assert [future.result(0)[0].tolist() for future in futures] == [[number] for number in range(5)]  # type: ignore[union-attr]
    with pytest.raises(Unready, match="going down"):
        batcher.submit([turn([1], [1])])
    assert not batcher.ready


def test_a_model_that_is_being_loaded_is_not_waited_for() -> None:
    held, loaded = Held(), threading.Event()
    batcher = Batcher(lambda: held if loaded.wait(10) else Held())
    batcher.start()
    begun = time.monotonic()
    batcher.close(10)
    assert time.monotonic() - begun < 1
    loaded.set()
    with pytest.raises(Unready, match="going down"):
        batcher.require_ready()


def test_a_model_that_cannot_be_loaded_is_told() -> None:
    errors: list[Exception] = []

    def load() -> Any:
        raise OSError("no such weights")

    batcher = Batcher(load, errors.append)
    batcher.start()
    while not errors:
        time.sleep(0.001)
    batcher.close(10)
    assert [str(error) for error in errors] == ["no such weights"] and not batcher.ready


class Replicas:
    """As many batches at once as it has replicas; those whose first token is in `killers` end theirs, as often as it says."""

    batch_tokens = 8

    def __init__(self, at_once: int, killers: Mapping[int, int] = {}):
        self.at_once, self.killers = at_once, dict(killers)
        self.batches: list[list[int]] = []
        self.computing, self.most = 0, 0
        self._own = threading.Lock()

    def score(self, turns: Sequence[TokenizedTurn]) -> Answers:
        first = [int(turn.response_ids[0]) for turn in turns]
        with self._own:
            self.batches.append(first)
            self.computing += 1
            self.most = max(self.most, self.computing)
        time.sleep(0.01)
        with self._own:
            self.computing -= 1
            for each in first:
                if self.killers.get(each, 0) > 0:
                    self.killers[each] -= 1
                    raise Lost("it ended")
        return [turn.response_ids for turn in turns]  # type: ignore[misc]


def test_as_many_batches_at_once_as_there_are_replicas(started: Callable[..., Batcher]) -> None:
    replicas = Replicas(2)
    batcher = started(replicas, 6)
    futures = [batcher.submit([turn([number] * 8, [number])]) for number in range(1, 30)]
    assert [future.result(10)[0].tolist() for future in futures] == [[number] for number in range(1, 30)]  # type: ignore[union-attr]
    assert replicas.most == 2 and batcher.counts.batches == 29
    replicas.at_once = 5  # more have come
    futures = [batcher.submit([turn([number] * 8, [number])]) for number in range(1, 30)]
    assert all(future.result(10) for future in futures) and replicas.most == 5


def test_requests_wait_while_there_is_no_replica(started: Callable[..., Batcher]) -> None:
    replicas = Replicas(1)
    batcher = started(replicas, 2)
    replicas.at_once = 0
    assert not batcher.ready
    future = batcher.submit([turn([1], [1])])
    late = batcher.submit([turn([1], [2])], deadline=time.monotonic() + 0.1)
    with pytest.raises(Expired):
        late.result(10)
    assert not future.done()
    replicas.at_once = 1
    assert future.result(10) and batcher.ready


def test_what_a_replica_took_with_it_is_asked_again(started: Callable[..., Batcher]) -> None:
    """Each alone: one that ends every replica takes no other with it, and is given up."""
    replicas = Replicas(1, killers={13: 9, 7: 1})
    batcher = started(replicas, 2)
    held = batcher.submit([turn([1] * 8, [5])])  # while this is computed, the others become one batch
    futures = {number: batcher.submit([turn([1], [number])]) for number in (7, 13, 8)}
    assert held.result(10)
    assert [futures[number].result(10)[0].tolist() for number in (7, 8)] == [[7], [8]]  # type: ignore[union-attr]
    with pytest.raises(Lost, match="it ended"):
        futures[13].result(10)
    assert sum(13 in batch for batch in replicas.batches) == 3 and replicas.batches.count([13]) >= 2
    assert batcher.counts.lost == 9 - replicas.killers[13] + 1 and batcher.counts.failures == 0
    assert batcher.submit([turn([1], [6])]).result(10)


class Gone:
    """Replicas that will not come back."""

    batch_tokens, at_once, calls = 100, 1, 0

    def score(self, turns: Sequence[TokenizedTurn]) -> Answers:
        self.calls += 1
        time.sleep(0.01)
        raise Unready("the model has no replica now")


def test_replicas_that_are_gone_are_no_failure_of_the_model(started: Callable[..., Batcher]) -> None:
    gone = Gone()
    batcher = started(gone)
    futures = [batcher.submit([turn([1], [number])]) for number in range(4)]
    for future in futures:
        with pytest.raises(Unready, match="no replica"):
            future.result(10)
    assert gone.calls <= 2 and (batcher.counts.failures, batcher.counts.lost, batcher.counts.batches) == (0, 0, 0)


class OneReplica:
    """One process that computes a batch with the next at its door: where it ends, both are lost."""

    batch_tokens, at_once = 8, 2

    def __init__(self, killers: Sequence[int]):
        self.killers, self.ends = killers, 0
        self._computing = threading.Lock()

    def score(self, turns: Sequence[TokenizedTurn]) -> Answers:
        begun = self.ends
        kills = any(turn.response_ids[0] in self.killers for turn in turns)
        time.sleep(0 if kills else 0.02)  # the others come behind it
        with self._computing:
            if self.ends == begun and kills:
                self.ends += 1
            if self.ends != begun:
                raise Lost("it ended")
            return [turn.response_ids for turn in turns]  # type: ignore[misc]


def test_who_stood_behind_a_killer_is_not_taken_for_one(started: Callable[..., Batcher]) -> None:
    batcher = started(OneReplica(range(13, 18)), 2)
    futures = {number: batcher.submit([turn([number] * 8, [number])]) for number in (5, 13, 6, 14, 7, 15, 8, 16, 9, 17)}
    for number, future in futures.items():
        if number < 13:
            assert future.result(10)[0].tolist() == [number]  # type: ignore[union-attr]
        else:
            with pytest.raises(Lost):
                future.result(10)


def test_a_batch_that_is_lost_on_the_way_down_is_answered(started: Callable[..., Batcher]) -> None:
    replicas = Replicas(2, killers={1: 1})
    batcher = started(replicas, 4)
    futures = [batcher.submit([turn([number] * 8, [number])]) for number in (1, 2, 3)]
    batcher.close(10)
    assert [future.result(0)[0].tolist() for future in futures] == [[1], [2], [3]]  # type: ignore[union-attr]
