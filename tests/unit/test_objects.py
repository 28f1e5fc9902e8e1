"""The client of an object store, against a real S3 endpoint on loopback that fails on demand."""

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from faulty_s3 import FaultyS3, of_a_module, of_a_test  # noqa: F401 - fixtures `endpoint` and `s3`
from pyarrow import fs

from pipeline import objects, storage
from pipeline.errors import ConfigError, StorageError
from pipeline.store import documents


def test_one_of_many_creates(s3: FaultyS3) -> None:
    s3.jitter_s = 0.02
    uri = f"{s3.uri}/once/record.json"
    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(lambda number: storage.create(uri, b"%d" % number), range(8)))
    [winner] = [number for number, version in enumerate(versions) if version is not None]
    assert storage.read_bytes(uri) == b"%d" % winner


def test_a_version_is_replaced_once(s3: FaultyS3) -> None:
    uri = f"{s3.uri}/version"
    first = storage.create(uri, b"1")
    assert first is not None and storage.read_version(uri)[1].e_tag == first.e_tag
    assert storage.replace(uri, b"2", first) and storage.replace(uri, b"3", first) is None
    storage.remove(uri)
    assert storage.replace(uri, b"4", first) is None and not storage.exists(uri)


@pytest.mark.parametrize(
    "status,code",
    [(409, "ConditionalRequestConflict"), (429, "TooManyRequests"), (500, "InternalError"), (503, "SlowDown")],
)
def test_a_busy_store_is_asked_again(s3: FaultyS3, status: int, code: str) -> None:
    uri = f"{s3.uri}/busy/{status}"
    s3.fault("*", "busy", status=status, code=code, times=3)
    version = storage.create(uri, b"1")
    assert version is not None and s3.calls("PUT", "busy") == 4
    s3.fault("*", "busy", status=status, code=code, times=3)
    assert storage.replace(uri, b"2", version)
    s3.fault("*", "", status=status, code=code, times=3)
    assert storage.list_names(f"{s3.uri}/busy").count(str(status)) == 1
    s3.fault("*", "busy", status=status, code=code, times=3)
    assert storage.read_bytes(uri) == b"2"
    s3.fault("*", "busy", status=status, code=code, times=3)
    storage.remove(uri)
    assert not storage.exists(uri)


@pytest.mark.parametrize("fault", [{"drop": True}, {"status": 500}])
def test_a_put_whose_answer_was_lost_is_settled_by_reading(s3: FaultyS3, fault: dict[str, Any]) -> None:
    uri = f"{s3.uri}/lost/{'-'.join(fault)}"
    s3.fault("PUT", "lost", after=True, **fault)
    first = storage.create(uri, b"mine")
    assert first is not None, "it took effect, and was not another's"
    s3.fault("PUT", "lost", after=True, **fault)
    assert storage.replace(uri, b"mine still", first) is not None
    s3.fault("PUT", "lost", **fault)  # this one took no effect
    assert storage.create(uri, b"other") is None and storage.read_bytes(uri) == b"mine still"


@pytest.fixture
def impatient(s3: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> str:
    """The bucket's address, for which requests time out after a moment and are not repeated for long."""
    requests: Any = [
        {**each, "client_options": {**each["client_options"], "timeout": timedelta(seconds=0.2)}}
        for each in objects._REQUESTS
    ]
    monkeypatch.setattr(objects, "_REQUESTS", requests)
    monkeypatch.setattr(objects, "RETRY_S", 0.0)
    objects._bucket.cache_clear()
    yield s3.uri  # type: ignore[misc]
    objects._bucket.cache_clear()


def test_a_put_that_arrives_late_changes_nothing(s3: FaultyS3, impatient: str) -> None:
    uri = f"{impatient}/late"
    assert storage.upload(uri, b"0")
    s3.fault("PUT", "late", delay_s=0.5)
    with pytest.raises(StorageError, match=r"s3://.*/late: cannot write it: no answer, 1 tries in 0 s"):
        storage.upload(uri, b"early")
    assert storage.upload(uri, b"later")
    time.sleep(0.5)
    assert s3.calls("PUT", "late") == 3 and storage.read_bytes(uri) == b"later"


def test_a_storm_ends_in_a_sentence(s3: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "RETRY_S", 0.2)
    s3.fault("PUT", "storm", status=503, code="SlowDown", times=1e9)
    with pytest.raises(
        StorageError, match=r"/storm/x: cannot write it: 503 SlowDown, \d+ tries in 0 s; when"
    ) as raised:
        documents.write_bytes(f"{s3.uri}/storm/x", b"1")
    assert "test-secret" not in str(raised.value) and "test-key" not in str(raised.value)
    assert s3.calls("PUT", "storm") > 1


def test_a_permission_error_names_object_operation_and_right(s3: FaultyS3) -> None:
    s3.fault("*", "", status=403, code="AccessDenied", times=1e9)
    for call, deed, right in (
        (lambda: storage.read_bytes(f"{s3.uri}/a/x"), "read", "s3:GetObject"),
        (lambda: storage.list_names(f"{s3.uri}/a/x"), "list", "s3:ListBucket"),
        (lambda: storage.create(f"{s3.uri}/a/x", b"1"), "write", "s3:PutObject"),
        (lambda: storage.remove(f"{s3.uri}/a/x"), "remove", "s3:DeleteObject"),
    ):
        with pytest.raises(
            StorageError, match=rf"/a/x: no permission to {deed} it \(403 AccessDenied\); grant {right}"
        ):
            call()
    assert len(s3.requests) == 4, "asking again does not help"
    s3.faults.clear()
    s3.fault("*", "", status=403, code="InvalidAccessKeyId")
    with pytest.raises(StorageError, match="credentials are not accepted"):
        storage.read_bytes(f"{s3.uri}/a/x")
    with pytest.raises(StorageError, match="there is no such bucket"):
        documents.write_bytes("s3://no-such-bucket/x", b"1")


def test_secrets_stay_out_of_addresses(s3: FaultyS3) -> None:
    with pytest.raises(ConfigError, match="has credentials in it") as raised:
        storage.read_bytes("s3://some-key:some-secret@bucket/x")
    assert "some-" not in str(raised.value)
    with pytest.raises(ConfigError, match=r"unknown option secret_key .* known are region"):
        storage.read_bytes("s3://bucket/x?secret_key=hidden")
    with pytest.raises(ConfigError, match="only s3:// and gs:// can create"):
        documents.write_bytes("hdfs://host/x", b"1")


def test_credentials_of_a_profile(s3: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "credentials").write_text("[lab]\naws_access_key_id = lab-key\naws_secret_access_key = lab%secret\n")
    (tmp_path / "config").write_text("[profile sso]\nsso_session = x\n[profile lab]\nregion = eu-west-1\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    objects._bucket.cache_clear()
    s3.keys.clear()
    place = f"{s3.uri}/by-profile?endpoint_override=127.0.0.1:{s3.port}&scheme=http"
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    assert storage.create(place, b"1") and s3.keys == {"lab-key"}
    objects._bucket.cache_clear()


def test_folders_and_what_stands_for_them(s3: FaultyS3) -> None:
    import boto3

    client, bucket = boto3.client("s3"), s3.bucket
    for key in ("tree/", "tree/a/", "tree/empty/", "tree/a/one.txt", "tree/a b/ü%20#.txt", "tree/none"):
        client.put_object(Bucket=bucket, Key=key, Body=b"" if key.endswith(("/", "none")) else b"12")
    tree = f"{s3.uri}/tree"
    assert storage.list_entries(tree) == [("a", True), ("a b", True), ("empty", True), ("none", False)]
    filesystem, path = storage.locate(tree)
    below = {
        info.path.removeprefix(f"{path}/"): (info.type.name, info.size)
        for info in filesystem.get_file_info(fs.FileSelector(path, recursive=True))
    }
    assert below == {
        "a": ("Directory", None),
        "a b": ("Directory", None),
        "empty": ("Directory", None),
        "a/one.txt": ("File", 2),
        "a b/ü%20#.txt": ("File", 2),
        "none": ("File", 0),
    }
    assert storage.exists(tree) and not storage.is_file(tree) and not storage.exists(f"{s3.uri}/tre")
    assert storage.read_bytes(f"{tree}/a b/ü%20#.txt") == b"12"
    filesystem.delete_dir(path)
    left = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
    assert {info.type for info in left} == {fs.FileType.Directory} and not storage.exists(f"{tree}/a")


def test_pyarrow_reads_through_the_same_client(s3: FaultyS3, tmp_path: Path) -> None:
    table = pa.table({"x": range(200_000), "y": [str(n) for n in range(200_000)]})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=50_000)
    storage.upload_file(f"{s3.uri}/read/t.parquet", str(tmp_path / "t.parquet"))
    filesystem, path = storage.locate(f"{s3.uri}/read/t.parquet")
    s3.fault("GET", "t.parquet", status=500, times=2)
    with filesystem.open_input_file(path) as file:
        assert pq.ParquetFile(file).read().equals(table)
    lines = b"".join(b"%d\n" % n for n in range(700_000))
    storage.upload(f"{s3.uri}/read/lines", lines)
    s3.requests.clear()
    s3.fault("GET", "lines", drop=True, times=2)
    filesystem, path = storage.locate(f"{s3.uri}/read/lines")
    with filesystem.open_input_stream(path) as stream:
        assert stream.read(10) + stream.read() == lines
    with filesystem.open_input_stream(path) as stream:
        head = stream.read(10)
        storage.upload(f"{s3.uri}/read/lines", lines + b"more")
        with pytest.raises(OSError, match="changed while it was read"):
            stream.read()
    assert head == lines[:10]
    with filesystem.open_output_stream(path) as out:
        out.write(b"anew")
    assert storage.read_bytes(f"{s3.uri}/read/lines") == b"anew"


def test_a_large_file_goes_in_parts_that_are_tried_again(s3: FaultyS3, tmp_path: Path) -> None:
    data = b"0123456789abcdef" * (20 << 16)
    (tmp_path / "large").write_bytes(data)
    s3.fault("PUT", "large", status=503, code="SlowDown", times=1)
    assert storage.upload_file(f"{s3.uri}/large", str(tmp_path / "large"))
    assert storage.read_bytes(f"{s3.uri}/large") == data and s3.calls("PUT", "partNumber") > 3
    (tmp_path / "small").write_bytes(b"")
    assert storage.upload_file(f"{s3.uri}/small", str(tmp_path / "small"), replace=False)
    assert not storage.upload_file(f"{s3.uri}/small", str(tmp_path / "small"), replace=False)


def test_a_fork_is_refused_where_it_would_hang(s3: FaultyS3) -> None:
    storage.exists(f"{s3.uri}/x")
    child = os.fork()
    if not child:
        try:
            storage.exists(f"{s3.uri}/x")
        except StorageError as error:
            os._exit(0 if "forked" in str(error) else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


class _Generations(BaseHTTPRequestHandler):
    """The part of Google's interface that puts on a condition need."""

    protocol_version = "HTTP/1.1"
    kept: ClassVar[dict[str, tuple[int, bytes]]] = {}

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        wanted = self.headers["x-goog-if-generation-match"]
        generation, _ = self.kept.get(self.path, (0, b""))
        if int(wanted) != generation:
            self._answer(412, generation)
            return
        self.kept[self.path] = generation + 1, data
        self._answer(200, generation + 1)

    def do_GET(self) -> None:
        if self.path in self.kept:
            self._answer(200, *self.kept[self.path])
        else:
            self._answer(404, 0)

    do_HEAD = do_GET

    def _answer(self, status: int, generation: int, data: bytes = b"") -> None:
        self.send_response(status)
        headers = {"x-goog-generation": generation, "ETag": f'"{generation}"', "Content-Length": len(data)}
        for name, value in {**headers, "Last-Modified": self.date_time_string()}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


def test_google_gets_generations(monkeypatch: pytest.MonkeyPatch) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Generations)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.setenv("GOOGLE_BEARER_TOKEN", "test-token")
    uri = f"gs://bucket/a/record.json?endpoint_override=127.0.0.1:{server.server_port}&scheme=http"
    try:
        assert documents.create(uri, {"n": 1}) and not documents.create(uri, {"n": 2})
        _, version = storage.read_version(uri)
        assert storage.replace(uri, b"{}", version) and storage.replace(uri, b"[]", version) is None
        assert json.loads(storage.read_bytes(uri)) == {}
        assert documents.write_bytes(uri, b"[1]") and storage.read_bytes(uri) == b"[1]"
    finally:
        server.shutdown()
        server.server_close()


def test_a_model_and_a_configuration_from_a_bucket(
    s3: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same weights by the same fingerprint, fetched once, and anew where they change."""
    from pipeline.config import load_config
    from pipeline.models.loading import identify_model, load_model, load_settings, load_tokenizer

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder, uri = tiny.save_model(tmp_path / "model", tiny.CHATML), f"{s3.uri}/models/tiny"
    documents.put_folder(str(folder), uri)
    toml = f'[model]\nname = "{uri}"\n[reward]\nalpha = 0.5\n'
    storage.upload(f"{s3.uri}/label.toml", toml.encode())
    config = load_config(f"{s3.uri}/label.toml", [], [])
    here = config.model.model_copy(update={"name": str(folder)})
    assert config.reward.alpha == 0.5
    s3.fault("GET", "models", status=503, times=2)
    model = load_model(config.model, "cpu")
    assert all(a.equal(b) for a, b in zip(model.parameters(), load_model(here, "cpu").parameters(), strict=True))
    assert load_tokenizer(config.model)("abc")["input_ids"] == load_tokenizer(here)("abc")["input_ids"]
    assert identify_model(config.model, "float32") == identify_model(here, "float32")
    assert load_settings(config.model).vocab_size and s3.calls("GET", r"safetensors$") <= 3, "not fetched again"
    storage.upload(f"{uri}/README.md", b"changed")
    assert load_settings(config.model).vocab_size and len(list((tmp_path / "cache/endoreward/folders").iterdir())) == 2
    for name in (f"{s3.uri}/models/none", "s3://no-such-bucket/model"):
        with pytest.raises(ConfigError, match=f"there is no model folder {name}"):
            load_settings(config.model.model_copy(update={"name": name}))
    with pytest.raises(ConfigError, match=f"cannot read the configuration {s3.uri}/none.toml: .* is not there"):
        load_config(f"{s3.uri}/none.toml", [], [])
    import boto3

    boto3.client("s3").put_object(Bucket=s3.bucket, Key="models/tiny/x/../../../../escape", Body=b"x")
    with pytest.raises((ConfigError, StorageError)):
        load_settings(config.model)
