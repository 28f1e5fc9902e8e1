"""The server's queue: full batches, numbers that do not depend on company, and everyone gets an answer."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import save_model

from jobs.serve.batching import Answers, Batcher, Expired, Full, Unready
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


class Held:
    """A scorer that waits until it is let go, and remembers its batches."""

    batch_tokens = 10

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

    def start(scorer: Any, most: int = 8) -> Batcher:
        batcher = Batcher(lambda: scorer, most)
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
    batcher = Batcher(lambda: scorer, 8)
    futures: list[Future[Answers] | None] = [None] * len(turns)

    def ask(position: int) -> None:
        futures[position] = batcher.submit(turns[position])

    threads = [threading.Thread(target=ask, args=(position,)) for position in range(len(turns))]
    batcher.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for own, future in zip(turns, futures, strict=True):
        assert future is not None
        for each, answer in zip(own, future.result(10), strict=True):
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


def test_places_are_bounded_and_come_back(started: Callable[..., Batcher]) -> None:
    batcher = started(Held(), 2)
    with batcher.room(), batcher.room():
        with pytest.raises(Full, match="2 requests are in hand already; try again in 1 s") as raised, batcher.room():
            pass
        assert raised.value.retry_after_s == 1
    with batcher.room():
        assert batcher.in_hand == 1
    assert batcher.in_hand == 0


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
    with pytest.raises(Unready, match="going down"), batcher.room():
        pass


def test_a_model_that_cannot_be_loaded_is_told() -> None:
    errors: list[Exception] = []

    def load() -> Any:
        raise OSError("no such weights")

    batcher = Batcher(load, 2, errors.append)
    with pytest.raises(Unready, match="being loaded"), batcher.room():
        pass
    batcher.start()
    batcher.close(10)
    assert [str(error) for error in errors] == ["no such weights"] and not batcher.ready
