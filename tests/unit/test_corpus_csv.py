"""CSV and TSV: every cell is the text that is there, as Python's own reader gives it."""

import csv
import gzip
import io
import json
import pickle

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import InputConfig
from pipeline.corpus import FilePlan, detect, find_files, plan_file, read_shards
from pipeline.corpus.files import columnar
from pipeline.errors import InputError, RowError

ROWS = [
    {
        "prompt": f"Frage {i}\n\U0001f600",
        "chosen": 'he said "yes", twice',
        "rejected": "" if i % 3 else "\t;|",
        "id": f"00{i}",
    }
    for i in range(53)
]


def written(rows, delimiter=",", end="\n"):
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter, lineterminator=end)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


FORMS = {
    "a.csv": written(ROWS),
    "crlf.csv": written(ROWS, end="\r\n"),
    "bom.csv": b"\xef\xbb\xbf" + written(ROWS),
    "no_last_newline.csv": written(ROWS).rstrip(b"\n"),
    "blank_lines.csv": b"\n" + written(ROWS) + b"\n\n",
    "a.csv.gz": gzip.compress(written(ROWS)),
    "a.csv.zst": zstandard.compress(written(ROWS)),
    "a.tsv": written(ROWS, "\t"),
    "a.tsv.gz": gzip.compress(written(ROWS, "\t")),
}


def put(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    return find_files([str(tmp_path / name)])[0]


def rows_of(file, plan, format="auto"):
    return [row for _, rows in read_shards(file, format, plan.shards) for row in rows]


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("block", [300, columnar.CSV_BYTES])
def test_every_cell_is_its_text(tmp_path, monkeypatch, name, block):
    file = put(tmp_path, name, FORMS[name])
    whole = plan_file(file, shard_rows=7)
    monkeypatch.setattr(columnar, "CSV_BYTES", block)
    plan = plan_file(file, shard_rows=7)
    assert plan == whole  # a digest does not hang on how much is read at once
    assert plan.rows == 53 and list(plan.head) == ROWS[:20]
    assert rows_of(file, plan) == list(enumerate(ROWS))
    assert plan_file(file, shard_rows=10).digest == plan.digest
    assert [(s.start, s.stop, s.rows) for s in plan.shards[:2]] == [(0, 7, 7), (7, 14, 7)]
    for shard, rows in read_shards(file, "auto", [plan.shards[3], plan.shards[1]]):
        assert rows == [(i, ROWS[i]) for i in range(shard.start, shard.stop)]
    assert FilePlan.from_json(json.loads(json.dumps(plan.to_json()))).shards == pickle.loads(pickle.dumps(plan)).shards


def test_nothing_is_guessed(tmp_path):
    row = {"a": "007", "b": "true", "c": "NA", "d": "null", "e": "1e5", "f": "2024-01-01", "g": "", "h": " x "}
    file = put(tmp_path, "a.csv", written([row]))
    assert rows_of(file, plan_file(file)) == [(0, row)]


def test_a_corpus_in_csv_is_a_corpus(tmp_path):
    file = put(tmp_path, "a.csv", FORMS["a.csv"])
    assert (
        detect(plan_file(file).head, InputConfig(), "a.csv").describe().startswith("prompt + chosen + rejected (text")
    )


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.tsv"])
def test_a_changed_cell_is_seen(tmp_path, name):
    file = put(tmp_path, name, FORMS[name])
    plan = plan_file(file, shard_rows=7)
    changed = [{**row, "id": "x"} if row["id"] == "0040" else row for row in ROWS]
    data = written(changed, "\t" if "tsv" in name else ",")
    put(tmp_path, name, gzip.compress(data) if name.endswith("gz") else data)
    assert plan_file(file).digest != plan.digest
    assert len(list(read_shards(file, "auto", plan.shards[:5]))) == 5
    with pytest.raises(InputError, match="rows 35 to 41 are not what they were"):
        rows_of(file, plan)
    renamed = data.replace(b"rejected", b"refused", 1)
    put(tmp_path, name, gzip.compress(renamed) if name.endswith("gz") else renamed)
    with pytest.raises(InputError, match="rows 0 to 6 are not what they were"):
        rows_of(file, plan)


@pytest.mark.parametrize("data", [b"", b"\n", b"a,b", b"a,b\n", b"\xef\xbb\xbf", b"\xef\xbb\xbfa\r\n"])
def test_a_file_of_names_alone_has_no_rows(tmp_path, data):
    assert plan_file(put(tmp_path, "a.csv", data)).rows == 0


def test_one_column(tmp_path):
    file = put(tmp_path, "a.csv", b'text\none\n""\n"two\nlines"\n')
    assert rows_of(file, plan_file(file)) == [(0, {"text": "one"}), (1, {"text": ""}), (2, {"text": "two\nlines"})]


def test_text_that_is_not_utf8_is_an_error_row(tmp_path):
    file = put(tmp_path, "a.csv", b"a,b\n1,2\nGr\xfc\xdfe,x\n3,4\n")
    rows = rows_of(file, plan_file(file))
    assert rows[0] == (0, {"a": "1", "b": "2"}) and rows[2] == (2, {"a": "3", "b": "4"})
    assert isinstance(rows[1][1], RowError) and rows[1][1].reason == "not_utf8"


BROKEN = {
    "a cell too many": (
        b"a,b\n1,2\n1,2,3\n",
        r"row 3 \(the line of names is row 1\) has 3 cells and 2 are due: '1,2,3'",
    ),
    "a cell too few": (b"a,b\n1,2\n\n1\n", "row .* has 1 cells and 2 are due"),
    "an open quote": (b'a,b\n1,2\n1,"open\n3,4\n', "a double quote is opened and never closed"),
    "an open quote in one column": (b'a\n1\n"open\n3\n', "a double quote is opened and never closed"),
    "one name twice": (b"a,a\n1,2\n", "column 'a' is there twice"),
    "semicolons": (
        b"prompt;chosen\n1;2\n",
        "seems to be separated by ';': commas are due; fetch or write the file again",
    ),
    "tabs": (b"prompt\tchosen\n1\t2\n", "say --set input.format=tsv"),
    "UTF-16": ("a,b\n1,2\n".encode("utf-16"), "iconv -f UTF-16"),
    "cut": (FORMS["a.csv.gz"][:-20], "gz"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_table_is_refused_when_planned(tmp_path, name):
    data, said = BROKEN[name]
    with pytest.raises(InputError, match=said) as raised:
        plan_file(put(tmp_path, "corpus.csv.gz" if name == "cut" else "corpus.csv", data))
    assert "corpus.csv" in str(raised.value)


def test_a_row_longer_than_a_block_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(columnar, "CSV_BYTES", 1 << 20)
    with pytest.raises(InputError, match="a row is longer than 1 MiB"):
        plan_file(put(tmp_path, "a.csv", b"a,b\n1," + b"x" * (3 << 20) + b"\n"))


cell = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0\x1e\ufeff"), max_size=8)


@settings(max_examples=60, deadline=None)
@given(
    table=st.integers(2, 4).flatmap(lambda n: st.lists(st.lists(cell, min_size=n, max_size=n), min_size=1, max_size=6)),
    delimiter=st.sampled_from(",\t"),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_any_table_comes_back(table, delimiter, quoting):
    names = [f"c{i}" for i in range(len(table[0]))]
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator="\n").writerows([names, *table])
    stream = io.BytesIO(text.getvalue().encode())
    assert columnar.csv_header(io.BytesIO(text.getvalue().encode()), delimiter) == names
    batches = columnar.csv_batches(stream, names, delimiter)
    assert [list(row.values()) for batch in batches for row in batch.to_pylist()] == table


def test_names_that_are_not_utf8_are_refused(tmp_path):
    with pytest.raises(InputError, match="of names, is not UTF-8 text"):
        plan_file(put(tmp_path, "a.csv", b"Gr\xfc\xdfe,b\n1,2\n"))
