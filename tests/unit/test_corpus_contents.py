"""Files that are not what their names say, and files of a form that is no row for each line: each is read right, or refused
with a sentence whose advice is enough."""

import bz2
import gzip
import io
import json
import lzma
import re
import shlex
import subprocess
import sys
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import InputConfig, load_config
from pipeline.corpus import detect, find_files, plan_file, read_shards
from pipeline.errors import InputError, RowError

ROWS = [{"prompt": f"q{i}", "chosen": "good", "rejected": "bad"} for i in range(4)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
ARRAY = json.dumps(ROWS, indent=1).encode()
COLUMNS = {name: [row[name] for row in ROWS] for name in ROWS[0]}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"


def zipped(data):
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("a.jsonl", data)
    return sink.getvalue()


def parquet(table):
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def arrow(table, opener=pa.ipc.new_file):
    sink = io.BytesIO()
    with opener(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


TABLE = pa.Table.from_pylist(ROWS)
TWICE = pa.table([pa.array(["a"]), pa.array(["b"]), pa.array(["c"])], names=["prompt", "chosen", "chosen"])


def put(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    return find_files([str(tmp_path / name)])[0]


def rows_of(file, format="auto"):
    return [row for _, rows in read_shards(file, format, plan_file(file, format).shards) for _, row in rows]


READ = {
    "bom.jsonl": b"\xef\xbb\xbf" + LINES,
    "lines.json": LINES,
    "array.json": ARRAY,
    "pretty.json": b"\n".join(json.dumps(row, indent=2).encode() for row in ROWS),
    "table.parquet": parquet(TABLE),
    "table.arrow": arrow(TABLE),
    "spark-00000.snappy.parquet": parquet(TABLE),
}


@pytest.mark.parametrize("name", READ)
def test_what_is_read_right(tmp_path, name):
    assert rows_of(put(tmp_path, name, READ[name])) == ROWS


def test_a_row_of_lists_is_a_row(tmp_path):
    """What might be taken for columns or for rows under names, and is not."""
    message = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    for row in (
        {"prompt": "q", "responses": ["a", "b"]},
        {"prompt": message, "responses": ["a", "b"]},
        {"prompt": "q", "completions": [{"response": "a", "score": 1}, {"response": "b", "score": 2}]},
        {"messages": message},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"chosen": message, "rejected": message},
        {"prompt": {"0": "q"}, "chosen": "a"},
        {"prompt": "q", "samples": [{"text": "a"}, {"text": "b"}]},
        {"prompt": {"text": "q"}, "chosen": {"text": "a"}, "rejected": {"text": "b"}},
        {"prompt": message[0], "chosen": message[1], "rejected": message[1]},
    ):
        for name, data in (("a.json", json.dumps(row, indent=1)), ("b.jsonl", json.dumps(row))):
            assert rows_of(put(tmp_path, name, data.encode())) == [row]


# What a file is called, what it is, and what the refusal says.
REFUSED = {
    "pointer in parquet": ("a.parquet", POINTER, "pointer of Git LFS .*git lfs pull"),
    "pointer in lines": ("a.jsonl", POINTER, "pointer of Git LFS .*git lfs pull"),
    "pointer in gzip": ("a.jsonl.gz", POINTER, "pointer of Git LFS .*git lfs pull"),
    "web page": ("a.jsonl", b"<!DOCTYPE html>\n<html>", "web page"),
    "utf16 lines": ("a.jsonl", LINES.decode().encode("utf-16"), "UTF-16; convert it with `iconv"),
    "utf16 without its mark": ("a.jsonl", LINES.decode().encode("utf-16-le"), "UTF-16; convert it with `iconv"),
    "utf16 array": ("a.json", ARRAY.decode().encode("utf-16"), "UTF-16; convert it with `iconv"),
    "utf16 in gzip": ("a.jsonl.gz", gzip.compress(LINES.decode().encode("utf-16")), "UTF-16"),
    "bzip2": ("a.jsonl.bz2", bz2.compress(LINES), "unpack it with `bunzip2 -k` and give what comes out"),
    "xz": ("a.jsonl.xz", lzma.compress(LINES), "unpack it with `unxz -k`"),
    "zip": ("a.jsonl.zip", zipped(LINES), "unpack it with `unzip`"),
    "zip under another name": ("a.jsonl", zipped(LINES), "packed as .zip; unpack it with `unzip`"),
    "tar": ("a.tar.gz", b"", "unpack it with `tar -xf`"),
    "gzip under another name": ("a.jsonl", gzip.compress(LINES), r"rename it to a\.jsonl\.gz"),
    "parquet in gzip": ("a.parquet.gz", gzip.compress(parquet(TABLE)), "gunzip -k"),
    "parquet under another name": ("a.jsonl", parquet(TABLE), "--set input.format=parquet"),
    "arrow under another name": ("a.json", arrow(TABLE), "--set input.format=arrow"),
    "lines under another name": ("a.parquet", LINES, "--set input.format=json"),
    "arrow called parquet": ("a.parquet", arrow(TABLE), "--set input.format=arrow"),
    "array called lines": ("a.jsonl", ARRAY, None),
    "unknown suffix": ("corpus.data", LINES, "--set input.format=jsonl "),
    "text": ("a.txt", LINES, r'--set input.format=jsonl .*of plain text make JSON lines, \{"text"'),
    "spreadsheet": ("a.xlsx", b"PK", "export it as CSV"),
    "column twice, parquet": ("a.parquet", parquet(TWICE), "column 'chosen' is there twice"),
    "column twice, arrow": ("a.arrow", arrow(TWICE), "column 'chosen' is there twice"),
    "column twice, stream": ("a.arrow", arrow(TWICE, pa.ipc.new_stream), "column 'chosen' is there twice"),
    "no columns": ("a.parquet", parquet(TABLE.select([])), "has no columns"),
    "columns": ("a.json", json.dumps(COLUMNS).encode(), "one object, of columns, each a list"),
    "columns in lines": ("a.jsonl", json.dumps(COLUMNS).encode(), "one object, of columns, each a list"),
    "columns of pandas": (
        "a.json", json.dumps({k: {str(i): t for i, t in enumerate(v)} for k, v in COLUMNS.items()}).encode(),
        "one object, of columns, each an object of row numbers",
    ),
    "splits": ("a.json", json.dumps({"train": ROWS, "test": ROWS[:1]}).encode(), "of rows under 'train' and 'test'"),
    "rows by id": ("a.json", json.dumps({f"id{i}": row for i, row in enumerate(ROWS)}).encode(), "of rows under keys"),
    "rows under a name": ("a.json", json.dumps({"version": "1.0", "data": ROWS}).encode(), "of rows under 'data'"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_and_the_advice_is_enough(tmp_path, monkeypatch, name):
    called, data, said = REFUSED[name]
    monkeypatch.chdir(tmp_path)
    file = put(tmp_path, called, data)
    if said is None:  # each line is a row that cannot be read: whoever plans says so
        message = plan_file(file).trouble or ""
    else:
        with pytest.raises(InputError, match=said) as raised:
            plan_file(file)
        message = str(raised.value)
        assert called in message
    if setting := re.search(r"--set (input\.format=\w+)", message):
        format = load_config(None, [], [setting[1]]).input.format
        assert rows_of(file, format) == ROWS
    if command := re.search(r"`(python -c .*)`", message):
        words = command[1].replace("python", shlex.quote(sys.executable), 1)
        subprocess.run(words, shell=True, check=True, cwd=tmp_path)
        out = "rows.jsonl" if "> rows.jsonl" in words else "a.jsonl" + ("l" if called == "a.jsonl" else "")
        assert rows_of(find_files([str(tmp_path / out)])[0], "jsonl") == ROWS


def test_an_empty_parquet_has_no_rows(tmp_path):
    assert plan_file(put(tmp_path, "a.parquet", parquet(TABLE.slice(0, 0)))).rows == 0


@pytest.mark.parametrize("row", ['{"chosen": "a", "chosen": "b"}', '{"a": {"b": 1, "b": 2}}'])
def test_a_key_twice_is_an_error_row(tmp_path, row):
    data = f'{{"prompt": "q", "chosen": "c"}}\n{row}\n'.encode()
    good, bad = rows_of(put(tmp_path, "a.jsonl", data))
    assert good == {"prompt": "q", "chosen": "c"}
    assert isinstance(bad, RowError) and bad.reason == "duplicate_key"


def test_a_map_with_a_key_twice_is_an_error_row(tmp_path):
    maps = pa.array([[("k", "v")], [("k", "v"), ("k", "w")]], pa.map_(pa.string(), pa.string()))
    good, bad = rows_of(put(tmp_path, "a.parquet", parquet(pa.table({"m": maps}))))
    assert good == {"m": {"k": "v"}} and isinstance(bad, RowError) and "'k'" in bad.detail


def test_columns_are_recognised_after_all_this(tmp_path):
    assert (
        detect(plan_file(put(tmp_path, "a.json", ARRAY)).head, InputConfig()).describe().startswith("prompt + chosen")
    )


def test_a_key_twice_in_the_first_line_keeps_lines(tmp_path):
    file = put(tmp_path, "a.json", b'{"a": 1, "a": 2}\n' + LINES)
    assert plan_file(file).shards[0].offset == 0 and rows_of(file)[1:] == ROWS
