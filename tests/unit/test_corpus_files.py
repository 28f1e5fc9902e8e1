import gzip
import json
import os
import pickle
import re
import shlex

import pytest

from pipeline.corpus import Choice, file_format, find_files, plan_file, read_shards
from pipeline.errors import InputError


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """data/{a.jsonl, sub/a.jsonl, sub/b.json.gz, README.md, .hidden/h.jsonl, _temporary/t.jsonl, sub/_x.json}"""
    for name in ("a.jsonl", "sub/a.jsonl", "README.md", ".hidden/h.jsonl", "_temporary/t.jsonl", "sub/_x.json"):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"text": "x"}\n')
    (tmp_path / "data/sub/b.json.gz").write_bytes(gzip.compress(b'{"text": "x"}\n'))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*paths):
    return [file.name for file in find_files(list(paths))]


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["data/a.jsonl"], ["a.jsonl"]),
        (["data/sub/a.jsonl"], ["a.jsonl"]),
        (["data"], ["a.jsonl", "sub/a.jsonl", "sub/b.json.gz"]),
        (["data/"], ["a.jsonl", "sub/a.jsonl", "sub/b.json.gz"]),
        (["."], ["data/a.jsonl", "data/sub/a.jsonl", "data/sub/b.json.gz"]),
        (["data/*.jsonl"], ["a.jsonl"]),
        (["data/**/*.jsonl"], ["a.jsonl", "sub/a.jsonl"]),
        (["data/s?b/*"], ["sub/a.jsonl", "sub/b.json.gz"]),
        (["data/[rs]ub/*.gz"], ["sub/b.json.gz"]),
        (["data/_temporary/*"], ["t.jsonl"]),
        (["*/_temporary/*"], ["data/_temporary/t.jsonl"]),
        (["data/*.md"], ["README.md"]),
        (["data/README.md"], ["README.md"]),
        (["data/a.jsonl", "./data/../data/a.jsonl"], ["a.jsonl"]),
        (["data/sub/a.jsonl", "data"], ["a.jsonl", "sub/a.jsonl", "sub/b.json.gz"]),
        (["data", "data/sub/a.jsonl"], ["a.jsonl", "sub/a.jsonl", "sub/b.json.gz"]),
    ],
)
def test_names_are_relative_to_what_was_given(tree, paths, expected):
    assert names(*paths) == expected


def test_names_do_not_depend_on_how_a_path_is_written(tree):
    assert names(f"file://{tree}/data") == names(f"{tree}/data") == names("data")
    assert {file.uri for file in find_files(["data"])} == {file.uri for file in find_files([f"file://{tree}/data"])}


def test_a_file_knows_its_size_and_time_and_crosses_processes(tree):
    (file,) = find_files(["data/a.jsonl"])
    assert os.path.isabs(file.uri)
    assert (file.size, file.stamp) == (14, os.stat("data/a.jsonl").st_mtime_ns)
    assert pickle.loads(pickle.dumps(file)) == file


def test_a_name_with_glob_signs_is_a_file_first(tree):
    (tree / "data/x[1].jsonl").write_text("")
    assert names("data/x[1].jsonl") == ["x[1].jsonl"]


def test_links_to_one_file_count_once(tree):
    (tree / "data/latest.jsonl").symlink_to(tree / "data/a.jsonl")
    (tree / "data/sub/up").symlink_to(tree / "data")
    assert names("data") == ["a.jsonl", "sub/a.jsonl", "sub/b.json.gz"]


def test_a_saved_dataset_is_its_arrow_files(tree):
    state = json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]})
    for name, content in (("data-00000-of-00001.arrow", ""), ("state.json", state), ("dataset_info.json", "")):
        path = tree / "saved/train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert names("saved") == ["train/data-00000-of-00001.arrow"]


def test_two_files_of_one_name_are_refused(tree):
    with pytest.raises(InputError, match=r"data/a\.jsonl and .*data/sub/a\.jsonl .* 'a\.jsonl'.*common folder"):
        find_files(["data/a.jsonl", "data/sub/a.jsonl"])


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("data/none.jsonl", "no such file"),
        ("data/.empty", "no file to read in this folder"),
        ("data/*.parquet", "matches no file"),
        ("none/*.parquet", "matches no file"),
        ("what://bucket/x", "cannot be listed"),
    ],
)
def test_a_path_to_nothing_is_refused(tree, path, said):
    (tree / "data/.empty").mkdir()
    with pytest.raises(InputError, match=said) as raised:
        find_files(["data", path])
    assert path in str(raised.value)


@pytest.mark.parametrize(
    ("name", "format", "expected"),
    [
        ("a.jsonl", "auto", ("jsonl", None)),
        ("a.NDJSON", "auto", ("jsonl", None)),
        ("a.json.gz", "auto", ("json", "gzip")),
        ("a.jsonl.zst", "auto", ("jsonl", "zstd")),
        ("a.parquet", "auto", ("parquet", None)),
        ("a.arrow", "auto", ("arrow", None)),
        ("a.txt.gz", "jsonl", ("jsonl", "gzip")),
        ("part-0", "parquet", ("parquet", None)),
        ("a.json", "jsonl", ("jsonl", None)),
    ],
)
def test_format(name, format, expected):
    assert file_format(name, format) == expected


@pytest.mark.parametrize("name", ["a.txt", "part-0", "a.gz"])
def test_an_unknown_suffix_asks_for_the_format(name):
    with pytest.raises(InputError, match=r"input\.format="):
        file_format(name)


def test_s3(tmp_path, monkeypatch):
    server_module = pytest.importorskip("moto.server", reason="needs moto for an S3 on loopback")
    boto3 = pytest.importorskip("boto3", reason="needs boto3 to fill an S3 on loopback")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        endpoint = "http://{}:{}".format(*server.get_host_and_port())
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        client = boto3.client("s3")
        client.create_bucket(Bucket="corpora")
        body = b"".join(b'{"text": "story %d"}\n' % i for i in range(10))
        client.put_object(Bucket="corpora", Key="set/a b/one.jsonl", Body=body)
        client.put_object(Bucket="corpora", Key="set/two.jsonl.gz", Body=gzip.compress(body))
        client.put_object(Bucket="corpora", Key="set/_SUCCESS", Body=b"")

        files = find_files(["s3://corpora/set"])
        assert [(file.name, file.uri) for file in files] == [
            ("a b/one.jsonl", "s3://corpora/set/a b/one.jsonl"),
            ("two.jsonl.gz", "s3://corpora/set/two.jsonl.gz"),
        ]
        assert [(each.name, each.uri) for each in files.skipped] == [("_SUCCESS", "s3://corpora/set/_SUCCESS")]
        assert files.files == find_files(["s3://corpora/set/**/*.jsonl*"]).files
        for file in files:
            shards = plan_file(file, shard_rows=4).shards
            rows = [row for _, rows in read_shards(file, "auto", shards[1:]) for row in rows]
            assert rows == [(i, {"text": f"story {i}"}) for i in range(4, 10)]
        card = b"---\nconfigs:\n- config_name: default\n  data_files:\n    good: one.csv\n    bad: two.csv\n---\n"
        for name, body in (("README.md", card), ("one.csv", b"text\n007\n"), ("two.csv", b"text\nx\n")):
            client.put_object(Bucket="corpora", Key=f"clone/{name}", Body=body)
        for clone in (
            "s3://corpora/clone",
            f"s3://corpora/clone?endpoint_override={endpoint.partition('//')[2]}&scheme=http",
        ):
            with pytest.raises(InputError, match=r"several splits.*bad \(two\.csv\), good \(one\.csv\)") as raised:
                find_files([clone])
            (two,) = shlex.split(re.search(r"\(or give the path (.*?)\);", str(raised.value))[1])
            assert [file.name for file in find_files([two])] == ["two.csv"]
            (file,) = files = find_files([clone], Choice(split="good"))
            assert [row for _, rows in read_shards(file, "auto", plan_file(file).shards) for row in rows] == [
                (0, {"text": "007"})
            ]
            assert [each.name for each in files.skipped] == ["README.md", "two.csv"]
        for missing in ("s3://corpora/none", "s3://nobucket/x"):
            with pytest.raises(InputError, match="no such file"):
                find_files([missing])
    finally:
        server.stop()


def test_the_hub(tmp_path, monkeypatch):
    """The paths we ask of huggingface_hub's filesystem, on a stand-in that keeps its files in a folder."""
    hub = pytest.importorskip("huggingface_hub", reason="needs huggingface_hub")
    from fsspec.implementations.dirfs import DirFileSystem
    from fsspec.implementations.local import LocalFileSystem

    from pipeline import storage

    path = tmp_path / "datasets/org/name@v1/data/train.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text('{"text": "x"}\n')
    monkeypatch.setattr(hub, "HfFileSystem", lambda: DirFileSystem(str(tmp_path), LocalFileSystem()))
    storage._filesystem.cache_clear()
    try:
        (file,) = find_files(["hf://datasets/org/name@v1"])
        assert (file.name, file.uri) == ("data/train.jsonl", "hf://datasets/org/name@v1/data/train.jsonl")
        assert find_files(["hf://datasets/org/name@v1/data/*.jsonl"])[0].name == "train.jsonl"
        assert plan_file(file).rows == 1
    finally:
        storage._filesystem.cache_clear()
