"""Uploads to a real S3 endpoint on loopback that are interrupted or fail on the way: nothing shows that is not whole."""

import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from moto.s3.exceptions import S3AccessDeniedError
from moto.s3.models import S3Backend
from pyarrow import fs

from jobs.stores.export import export
from pipeline import storage
from pipeline.corpus import FilePlan, InputFile, Shape, Shard, Shards
from pipeline.errors import StoreError
from pipeline.store import Label, LabelStore, StoredInput, commit, documents, fingerprint

SIZE = 12 << 20  # bytes that make an upload of two parts
INTERRUPTING = """
import os, signal, sys, time
from moto.s3.models import S3Backend
from moto.server import ThreadedMotoServer
begins, left = S3Backend.put_object, [int(sys.argv[1])]
def begin(*arguments, **named):
    if left:
        os.kill(left.pop(), signal.SIGINT)
    return begins(*arguments, **named)
S3Backend.put_object = begin
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
Hook = Callable[..., Any]


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    """A finished store of one pair whose text makes an upload of several parts."""
    import numpy as np

    store = LabelStore(str(tmp_path / "store"))
    store.open_for_writing({"x": 1})
    shard = Shard("a.jsonl", 0, 0, 1, 1, "0" * 64, 0, 10)
    labels = [
        Label(
            id=f"a.jsonl:0:{side}:0:0",
            prompt_id="a.jsonl:0",
            preference=side,
            response_index=0,
            prompt=[{"role": "user", "content": "q"}],
            response=np.random.default_rng(number).bytes(SIZE // 4).hex(),
            reward=1.0 - number,
            num_tokens=1,
            num_prompt_tokens=1,
            truncated=False,
            token_ids=[1],
            turn=0,
            token_logprobs=np.zeros(1, np.float32),
            token_values=np.zeros(1, np.float32),
            token_rewards=np.zeros(1, np.float32),
            rubric=None,
            extra_info="{}",
        )
        for number, side in enumerate(("chosen", "rejected"))
    ]
    commit(store.uri, shard, fingerprint.digest({"x": 1}), 0, labels, [])
    file, shape = InputFile("a.jsonl", "/a.jsonl", 1, 1), Shape(responses=(("chosen", "chosen"),), prompt="prompt")
    store.add_input(StoredInput(file, "auto", shape, FilePlan("a.jsonl", 1, "0" * 64, Shards.of("a.jsonl", [shard]))))
    return store


def hook(monkeypatch: pytest.MonkeyPatch, name: str, before: Hook) -> None:
    """Have the endpoint do something before it answers a request of this name."""
    answers = getattr(S3Backend, name)

    def answered(self: S3Backend, *arguments: Any, **named: Any) -> Any:
        before(*arguments, **named)
        return answers(self, *arguments, **named)

    monkeypatch.setattr(S3Backend, name, answered)


@pytest.fixture
def interrupting(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of an endpoint in a process of its own, which interrupts this one as its first upload begins."""
    server = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTING, str(os.getpid())], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert server.stdin is not None and server.stdout is not None
    place = f"127.0.0.1:{int(server.stdout.readline())}"
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{place}",
    }.items():
        monkeypatch.setenv(name, value)
    fs.S3FileSystem(endpoint_override=place, scheme="http", allow_bucket_creation=True).create_dir("interrupted")
    yield "s3://interrupted"
    server.stdin.close()
    server.wait(10)


def test_an_interrupted_export_leaves_no_half_file(interrupting: str, store: LabelStore) -> None:
    output = f"{interrupting}/pairs.jsonl"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has jobs in the background ignore it
    with pytest.raises(KeyboardInterrupt):
        export(store.uri, "trl", output)
        time.sleep(60)  # the signal ends it
    signal.signal(signal.SIGINT, before)
    gc.collect()
    if storage.exists(output):
        with pytest.raises(StoreError, match="exists already"):
            export(store.uri, "trl", output)
    else:
        export(store.uri, "trl", output)
    [pair] = map(json.loads, storage.read_bytes(output).decode().splitlines())
    assert len(pair["chosen"][0]["content"]) == len(pair["rejected"][0]["content"]) == SIZE // 2


def refuse_second_part(bucket: str, upload: str, part: int, *_: Any, **__: Any) -> None:
    if part == 2:
        raise S3AccessDeniedError


def refuse_large(bucket: str, key: str, data: bytes, *_: Any, **__: Any) -> None:
    if len(data) > SIZE // 2:
        raise S3AccessDeniedError


def test_an_upload_that_fails_on_the_way_leaves_nothing(
    s3: str, store: LabelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "model.safetensors").write_bytes(os.urandom(SIZE))
    (tmp_path / "hf" / "config.json").write_text("{}")
    data = os.urandom(SIZE)
    with monkeypatch.context() as patch:
        hook(patch, "upload_part", refuse_second_part)
        hook(patch, "put_object", refuse_large)
        for name, upload in {
            "part.parquet": lambda uri: documents.write_bytes(uri, data),
            "pairs.jsonl": lambda uri: export(store.uri, "trl", uri),
            "hf": lambda uri: documents.put_folder(str(tmp_path / "hf"), uri),
        }.items():
            with pytest.raises(OSError, match=rf"{name}.*: no permission to write it \(403 AccessDenied\)"):
                upload(f"{s3}/{name}")
    assert storage.list_entries(s3) == [("hf", True)] and storage.list_names(f"{s3}/hf") == ["config.json"]
    documents.write_bytes(f"{s3}/part.parquet", data)
    documents.put_folder(str(tmp_path / "hf"), f"{s3}/hf")
    assert storage.read_bytes(f"{s3}/part.parquet") == data
    assert storage.read_bytes(f"{s3}/hf/model.safetensors") == (tmp_path / "hf" / "model.safetensors").read_bytes()


def test_foreign_objects_are_refused(s3: str) -> None:
    for name in ("checkpoints/checkpoint-500/model.safetensors", ".git/HEAD"):
        documents.write_bytes(f"{s3}/folder/{name}", b"1")
        with pytest.raises(StoreError, match=r"holds something else \(.*/\)"):
            LabelStore(f"{s3}/folder").check_place()
