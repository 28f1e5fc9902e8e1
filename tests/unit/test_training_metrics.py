"""metrics.jsonl as a killed run leaves it and a resumed one mends it, and the trackers as their own readers see them."""

import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow import fs

from jobs import terminal
from jobs.terminal import TrainProgress
from pipeline import storage
from pipeline.errors import ConfigError, RunError, StoreError
from pipeline.training import metrics
from pipeline.training.config import TrackingConfig
from pipeline.training.metrics import Follower, MetricsFile, Trackers, end_size, ends, finite, numbers, read_metrics

RUN = {"created": "2025-11-23T12:00:00+00:00", "objective": "dpo", "config": {"train": {"seed": 0}}}


def rows(*steps: int) -> list[dict[str, Any]]:
    return [{"step": step, "loss": 1 / step} for step in steps]


def write(uri: str, *steps: int) -> None:
    with MetricsFile(uri) as file:
        for row in rows(*steps):
            file.append(row)


def test_every_row_can_be_read_as_soon_as_it_is_appended(tmp_path: Path) -> None:
    uri = str(tmp_path / "run" / "metrics.jsonl")
    assert read_metrics(uri) == []
    file = MetricsFile(uri)
    for row in rows(1, 2, 3):
        file.append(row)
        assert read_metrics(uri)[-1] == row
    file.close()
    assert read_metrics(uri) == rows(1, 2, 3)
    assert [json.loads(line) for line in Path(uri).read_text().splitlines()] == rows(1, 2, 3)


def test_what_json_has_no_word_for(tmp_path: Path) -> None:
    uri = str(tmp_path / "metrics.jsonl")
    given = {
        "loss": math.nan,
        "kl": math.inf,
        "a": torch.tensor(1.5),
        "b": np.float32(0.25),
        "c": None,
        "d": np.int64(7),
    }
    with MetricsFile(uri) as file:
        file.append({"step": 1, **given})

    def refuse(word: str) -> None:
        raise AssertionError(word)

    stored = json.loads(Path(uri).read_text(), parse_constant=refuse)
    assert stored == {"step": 1, "loss": None, "kl": None, "a": 1.5, "b": 0.25, "d": 7}
    (row,) = read_metrics(uri)
    assert math.isnan(row["loss"]) and math.isnan(row["kl"]) and row["a"] == 1.5


@pytest.mark.parametrize("step", [0, 2, 5, 9])
def test_truncate_takes_away_what_is_after_the_checkpoint_and_half_a_line(tmp_path: Path, step: int) -> None:
    path = tmp_path / "metrics.jsonl"
    write(str(path), 1, 2, 3, 4, 5)
    with path.open("ab") as torn:
        torn.write(b'{"step": 6, "lo')
    assert read_metrics(str(path)) == rows(1, 2, 3, 4, 5)
    with MetricsFile(str(path)) as file:
        file.truncate(step)
        assert read_metrics(str(path)) == rows(*range(1, min(step, 5) + 1))
        file.append(rows(step + 1)[0])
    assert read_metrics(str(path)) == rows(*range(1, min(step, 5) + 1), step + 1)
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_who_appends_without_truncating_mends_half_a_line_first(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 1.0}\n{"step": 2')
    write(str(path), 2)
    assert read_metrics(str(path)) == rows(1, 2)


def test_a_whole_last_line_without_its_end_counts(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 1.0}')
    write(str(path), 2)
    assert read_metrics(str(path)) == rows(1, 2)


def test_a_writer_that_outlived_its_driver_does_no_harm(tmp_path: Path) -> None:
    uri = str(tmp_path / "metrics.jsonl")
    old = MetricsFile(uri)
    for row in rows(1, 2, 3):
        old.append(row)
    new = MetricsFile(uri)
    new.truncate(2)
    old.append({"step": 4, "loss": -1.0})
    new.append(rows(3)[0])
    old.append({"step": 5, "loss": -1.0})
    old.close()
    new.append(rows(4)[0])
    new.close()
    assert read_metrics(uri) == rows(1, 2, 3, 4)


@pytest.mark.parametrize("line", [b'{"step": 2, "los', b"\0\0\0", b"[]", b'{"loss": 1}', b'{"step": "x"}'])
def test_damage_in_the_middle_is_named_and_not_skipped(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
    with pytest.raises(StoreError, match=r"metrics\.jsonl, line 2: .*delete this line"):
        read_metrics(str(path))
    with pytest.raises(StoreError, match="line 2"):
        MetricsFile(str(path)).truncate(1)
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n' + line + b"\n")
    assert [row["step"] for row in read_metrics(str(path))] == [1, 2]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, a disk that is full")
def test_a_full_disk_is_said(tmp_path: Path) -> None:
    file = MetricsFile(str(tmp_path / "metrics.jsonl"))
    file.truncate(0)
    file._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115
    with pytest.raises(RunError, match=r"metrics\.jsonl.*No space left"):
        file.append({"step": 1})


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket of a real S3 endpoint on loopback."""
    from moto.server import ThreadedMotoServer

    with pytest.MonkeyPatch.context() as patch:
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        for name, value in {
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "y",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        }.items():
            patch.setenv(name, value)
        storage._filesystem.cache_clear()
        local = fs.S3FileSystem(endpoint_override=f"{host}:{port}", scheme="http", allow_bucket_creation=True)
        local.create_dir("runs")
        yield "s3://runs"
        server.stop()
        storage._filesystem.cache_clear()


def test_an_object_store_gets_the_whole_file_now_and_then(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"{bucket}/now-and-then/metrics.jsonl"
    clock = [100.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: clock[0])
    assert read_metrics(uri) == []
    file = MetricsFile(uri)
    for row in rows(1, 2, 3):
        file.append(row)
        assert [row["step"] for row in read_metrics(uri)] == [1]  # the first at once, then none for a while
    clock[0] += metrics.REWRITE_S
    file.append(rows(4)[0])
    assert read_metrics(uri) == rows(1, 2, 3, 4)
    file.append(rows(5)[0])
    file.flush()
    assert read_metrics(uri) == rows(1, 2, 3, 4, 5)
    file.append(rows(6)[0])
    file.close()
    assert read_metrics(uri) == rows(1, 2, 3, 4, 5, 6)


def test_uploads_take_a_small_part_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, uploads = [0.0], []

    def upload(uri: str, data: bytes) -> bool:
        uploads.append(clock[0])
        clock[0] += 3.0  # a slow one
        return True

    monkeypatch.setattr(metrics.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(metrics.documents, "write_bytes", upload)
    monkeypatch.setattr(metrics.storage, "read_bytes", lambda uri: b"")
    file = MetricsFile("s3://runs/slow/metrics.jsonl")
    for step in range(1, 1001):
        file.append({"step": step})
        clock[0] += 0.5
    assert len(uploads) > 5 and 3.0 * len(uploads) < 0.07 * clock[0]


def test_truncate_on_an_object_store(bucket: str) -> None:
    uri = f"{bucket}/resumed/metrics.jsonl"
    write(uri, 1, 2, 3, 4)
    with MetricsFile(uri) as file:
        file.truncate(2)
        assert read_metrics(uri) == rows(1, 2)
        file.append(rows(3)[0])
    assert read_metrics(uri) == rows(1, 2, 3)


def test_what_curves_say() -> None:
    rng = np.random.default_rng(0)
    loss = rng.normal(size=400)
    kept = [{"step": i + 1, "loss": float(value)} for i, value in enumerate(loss)]
    kept[200] |= {"eval_loss": 0.5, "loss": math.nan, "device": "cpu", "done": True}
    assert numbers(kept) == ["loss", "eval_loss"]
    assert len(finite(kept, "loss")) == 399 and finite(kept, "eval_loss") == [(201, 0.5)]
    assert ends(kept, "loss") == pytest.approx((loss[:19].mean(), loss[-19:].mean()))
    assert ends(kept, "eval_loss") == (0.5, 0.5) and ends(kept, "kl") is None
    assert [end_size(n) for n in (1, 20, 59, 1000, 100_000)] == [1, 1, 2, 50, 50]


# Trackers


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_tensorboard_reads_the_curves_back_once_after_a_resume(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs tensorboard to read event files back")
    config = TrackingConfig()
    with Trackers(config, str(tmp_path), RUN) as trackers:
        for row in rows(1, 2, 3, 4):
            trackers.log(row | {"eval_rewards/accuracies": 0.5, "note": "text"})
    with Trackers(config, str(tmp_path), RUN, step=2) as trackers:
        for step in (3, 4, 5):
            trackers.log({"step": step, "loss": 10.0 * step})
    found = scalars(tmp_path / "tensorboard")
    assert set(found) == {"train/loss", "eval/rewards/accuracies"}
    assert found["train/loss"] == [(1, 1.0), (2, 0.5), (3, 30.0), (4, 40.0), (5, 50.0)]
    assert found["eval/rewards/accuracies"] == [(1, 0.5), (2, 0.5)]


@pytest.mark.parametrize(("tensorboard", "output"), [(False, "here"), (True, "s3://runs/x")])
def test_no_tracker_is_no_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tensorboard: bool, output: str) -> None:
    monkeypatch.chdir(tmp_path)
    with Trackers(TrackingConfig(tensorboard=tensorboard), output, RUN) as trackers:
        trackers.log({"step": 1, "loss": 1.0})
    assert os.listdir(tmp_path) == []


def test_wandb_that_is_not_installed_is_said_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: None)
    metrics.check_tracking(TrackingConfig())
    with pytest.raises(ConfigError, match="pip install wandb"):
        metrics.check_tracking(TrackingConfig(wandb="project"))


def test_wandb_gets_rows_by_step_and_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of its library, which is replaced here: the real one is tried offline below."""
    asked: list[tuple[str, Any]] = []

    class Run:
        def define_metric(self, name: str, step_metric: str | None = None) -> None:
            asked.append(("define", (name, step_metric)))

        def log(self, row: dict[str, float]) -> None:
            asked.append(("log", row))

        def finish(self) -> None:
            asked.append(("finish", None))

    class Library:
        errors = type("errors", (), {"Error": ZeroDivisionError})

        @staticmethod
        def Settings(**given: Any) -> dict[str, Any]:
            return given

        @staticmethod
        def init(**given: Any) -> Run:
            asked.append(("init", given))
            if given["project"] == "closed":
                raise ZeroDivisionError("no key")
            return Run()

    monkeypatch.setitem(sys.modules, "wandb", Library)
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: object())
    config = TrackingConfig(tensorboard=False, wandb="project")
    for step in (0, 2):
        with Trackers(config, str(tmp_path), RUN | {"command": "secret"}, step) as trackers:
            trackers.log({"step": step + 1, "loss": 0.5, "eval_loss": 0.25})
    inits = [given for what, given in asked if what == "init"]
    assert inits[0]["id"] == inits[1]["id"] and inits[0]["resume"] == "allow"
    assert inits[0]["config"] == RUN["config"] and "secret" not in str(asked)
    assert next(given for what, given in asked if what == "log") == {"step": 1, "train/loss": 0.5, "eval/loss": 0.25}
    assert asked[-1] == ("finish", None) and ("define", ("*", "step")) in asked
    with pytest.raises(ConfigError, match="closed: no key; set WANDB_API_KEY, or WANDB_MODE=offline"):
        Trackers(TrackingConfig(tensorboard=False, wandb="closed"), str(tmp_path), RUN)


@pytest.mark.slow
def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="needs wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    with Trackers(TrackingConfig(tensorboard=False, wandb="project"), str(tmp_path), RUN) as trackers:
        for row in rows(1, 2, 3):
            trackers.log(row)
    wandb.teardown()
    written = [path for path in (tmp_path / "wandb").rglob("*") if path.is_file()]
    (record,) = (path for path in written if path.suffix == ".wandb")
    assert b"train/loss" in record.read_bytes()
    assert not any(b"0123456789" * 4 in path.read_bytes() for path in written)


# The terminal


def test_progress_in_a_log(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = [0.0]
    monkeypatch.setattr(terminal.time, "perf_counter", lambda: clock[0])
    with TrainProgress(10, done_steps=4) as progress:
        for step in (5, 6, 7, 8, 6, 7, 8, 9, 10):
            clock[0] += 4
            row = {
                "step": step,
                "epoch": step / 5,
                "loss": 0.5,
                "rewards/accuracies": 0.75,
                "tokens_per_second": 1234.5,
            }
            progress.update(row | ({"eval_loss": 0.25} if step == 9 else {}))
    said = capsys.readouterr().err.rstrip().splitlines()  # Rich 13 ends in an empty line
    assert said == [
        "step 7 of 10, epoch 1.40, loss 0.5000, accuracy 75.0%, 1,234 tokens/s, about 12 s left",  # 4 s a step, 3 left
        "step 7 of 10, epoch 1.40, loss 0.5000, accuracy 75.0%, 1,234 tokens/s, about 12 s left",  # after a restart
        "step 9, kept prompts: loss 0.2500",
        "step 10 of 10, epoch 2.00, loss 0.5000, accuracy 75.0%, 1,234 tokens/s, about 0 s left",
    ]


def test_a_follower_sees_each_row_once_and_what_is_written_once_more_again(tmp_path: Path) -> None:
    uri = str(tmp_path / "metrics.jsonl")
    assert Follower(uri).new() == []
    with MetricsFile(uri) as metrics:
        metrics.append({"step": 1, "loss": 1.0})
        follower = Follower(uri)
        assert follower.step == 1 and follower.new() == []
        metrics.append({"step": 2, "loss": 0.5, "warnings": ["slow"]})
        metrics.append({"step": 3, "loss": math.inf})
        two, three = follower.new()
        assert (
            two == {"step": 2, "loss": 0.5, "warnings": ["slow"]} and math.isnan(three["loss"]) and follower.step == 3
        )
        with open(uri, "ab") as half:
            half.write(b'{"step": 4, ')
        assert follower.new() == []
        metrics.truncate(1)
        metrics.append({"step": 2, "loss": 0.25})
        assert follower.new() == [{"step": 2, "loss": 0.25}] and follower.new() == [] and follower.step == 2


def test_who_follows_reads_what_is_new_and_the_whole_only_of_another_file(tmp_path: Path, monkeypatch: Any) -> None:
    uri = str(tmp_path / "metrics.jsonl")
    whole = []

    def read_bytes(place: str) -> bytes:
        whole.append(place)
        return Path(place).read_bytes()

    with MetricsFile(uri) as metrics_file:
        metrics_file.append({"step": 1, "loss": 1.0})
        follower = Follower(uri)
        monkeypatch.setattr(storage, "read_bytes", read_bytes)
        for step in range(2, 30):
            metrics_file.append({"step": step, "loss": 1 / step})
            assert follower.new() == rows(step) and follower.new() == []
        assert whole == []
        metrics_file.truncate(12)
        whole.clear()
        assert follower.new() == [] and whole == [uri]
        for step in (13, 14):
            metrics_file.append({"step": step, "loss": 0.0})
        assert follower.new() == [{"step": 13, "loss": 0.0}, {"step": 14, "loss": 0.0}] and whole == [uri]
        metrics_file.truncate(12)
        for step in range(13, 31):  # longer than what was seen, before it is looked at
            metrics_file.append({"step": step, "loss": 9.5})
        assert follower.new() == [{"step": step, "loss": 9.5} for step in range(13, 31)]
    os.remove(uri)
    assert follower.new() == []
