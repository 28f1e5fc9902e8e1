"""Parts of a store read and reckoned by several threads: what comes out is what one thread makes, and few are in memory."""

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from label_stores import label_store
from tiny import save_model

from jobs.stores.export import export
from jobs.stores.sweep import sweep
from pipeline.store import LabelStore, in_parallel, problems, reading
from pipeline.training.config import TrainConfig
from pipeline.training.examples import find_examples


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> LabelStore:
    folder = tmp_path_factory.mktemp("store")
    rows = [{"prompt": f"Number {i}?", "chosen": f"good {i} " * (1 + i % 7), "rejected": "bad"} for i in range(60)]
    return label_store(folder / "store", save_model(folder / "model"), rows)


def of_sweep(store: LabelStore, place: Path) -> str:
    sweep(store.uri, output=str(place / "sweep.json"))
    return (place / "sweep.json").read_text()


def of_export(store: LabelStore, place: Path) -> str:
    export(store.uri, "trl", str(place / "pairs.jsonl"))
    return (place / "pairs.jsonl").read_text()


def of_validate(store: LabelStore, place: Path) -> str:
    [part, *_] = sorted(Path(store.uri, "labels").glob("*.parquet"))
    whole = part.read_bytes()
    try:
        part.write_bytes(whole[:-9] + b"x" + whole[-8:])
        return json.dumps(list(problems(store)))
    finally:
        part.write_bytes(whole)


def of_train(store: LabelStore, place: Path) -> str:
    examples = find_examples(TrainConfig.model_validate({"train": {"labels": [store.uri]}}))
    return json.dumps([examples.rows.tolist(), examples.rewards.tolist(), examples.rows_digest])


@pytest.mark.parametrize("command", [of_sweep, of_export, of_validate, of_train])
def test_results_are_those_of_one_thread(
    store: LabelStore, tmp_path: Path, command: Callable[[LabelStore, Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    used: set[int] = set()
    read_part = reading.read_part

    def slow(uri: str, columns: list[str] | None = None) -> object:
        used.add(threading.get_ident())
        time.sleep(0.001)
        return read_part(uri, columns)

    several, one = tmp_path / "several", tmp_path / "one"
    several.mkdir()
    one.mkdir()
    for module in ("pipeline.store.store", "pipeline.training.examples"):
        monkeypatch.setattr(f"{module}.read_part", slow)
    by_several = command(store, several)
    assert len(used) > 1 or command is of_validate, "read by several"
    monkeypatch.setattr(reading, "ThreadPoolExecutor", lambda workers: ThreadPoolExecutor(1))
    assert command(store, one) == by_several and len(by_several) > 50


def test_at_most_one_value_a_worker_and_one_more_are_in_memory() -> None:
    """However slow who takes them is, and in the order of what was asked for."""
    lock, made, taken, most = threading.Lock(), 0, 0, 0

    def make(number: int) -> int:
        nonlocal made, most
        with lock:
            made += 1
            most = max(most, made - taken)
        return number * number

    for number, (item, value) in enumerate(in_parallel(make, range(200), 4)):
        assert (item, value) == (number, number * number)
        time.sleep(0.0005)
        with lock:
            taken += 1
    assert 1 < most <= 4 + 2, "four workers, one more, and the one that is being looked at"


def test_what_a_worker_raises_is_raised_and_the_rest_is_not_begun() -> None:
    begun: list[int] = []

    def fail(number: int) -> int:
        begun.append(number)
        if number == 3:
            raise ValueError("three")
        return number

    with pytest.raises(ValueError, match="three"):
        list(in_parallel(fail, range(10_000), 2))
    assert len(begun) < 20
