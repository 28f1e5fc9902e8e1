import gzip
import io
import json
import os
import pickle
import random
from dataclasses import replace
from datetime import date

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import load_config
from pipeline.corpus import (
    FilePlan,
    InputFile,
    counted,
    detect,
    find_files,
    plan_file,
    read_shards,
    read_together,
    require_proof,
)
from pipeline.corpus.files import text
from pipeline.corpus.sources import beside_of
from pipeline.errors import InputError, RowError

ROWS = [{"prompt": f"frage {i} \U0001f600", "n": i, "list": [{"a": i, "b": None}] * (i % 3)} for i in range(53)]
LINES = b"".join(json.dumps(row, ensure_ascii=i % 2 == 0).encode() + b"\n" for i, row in enumerate(ROWS))
ARRAY = json.dumps(ROWS, indent=1).encode()
TABLE = pa.Table.from_pylist(ROWS)


def parquet(table=TABLE, group=20, **options):
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=group, write_page_checksum=True, **options)
    return sink.getvalue()


def arrow(opener, table=TABLE, batch=20):
    sink = io.BytesIO()
    with opener(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=batch)
    return sink.getvalue()


FORMS = {
    "a.jsonl": LINES,
    "no_last_newline.jsonl": LINES.rstrip(),
    "crlf.jsonl": LINES.replace(b"\n", b"\r\n"),
    "bom.jsonl": b"\xef\xbb\xbf" + LINES,
    "a.jsonl.gz": gzip.compress(LINES),
    "two_members.jsonl.gz": gzip.compress(LINES[:1000]) + gzip.compress(LINES[1000:]),
    "a.ndjson.zst": zstandard.compress(LINES),
    "array.json": ARRAY,
    "array.json.gz": gzip.compress(ARRAY),
    "bom.json": b"\xef\xbb\xbf  \r\n" + ARRAY + b"\n\n",
    "lines.json": LINES,
    "pretty.json": b"\n\n".join(json.dumps(row, indent=2).encode() for row in ROWS),
    "a.parquet": parquet(),
    "small_groups.parquet": parquet(group=3),
    "one_group.parquet": parquet(group=1000, compression="zstd"),
    "stream.arrow": arrow(pa.ipc.new_stream),
    "file.arrow": arrow(pa.ipc.new_file),
}
SPLITTABLE = {name for name in FORMS if name.endswith((".jsonl", ".parquet"))} | {"lines.json"}


@pytest.fixture
def write(tmp_path):
    def write(name: str, data: bytes) -> InputFile:
        (tmp_path / name).write_bytes(data)
        return find_files([str(tmp_path / name)])[0]

    return write


def rows_of(file, plan, format="auto"):
    return [row for _, rows in read_shards(file, format, plan.shards) for row in rows]


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("shard_rows", [1, 7, 256])
def test_shards_put_together_are_the_file(write, name, shard_rows):
    file = write(name, FORMS[name])
    plan = plan_file(file, shard_rows=shard_rows)

    assert plan.rows == len(ROWS)
    assert list(plan.head) == ROWS[: len(plan.head)] and len(plan.head) == 20
    assert [shard.index for shard in plan.shards] == list(range(len(plan.shards)))
    assert [shard.start for shard in plan.shards] == [0, *(shard.stop for shard in plan.shards[:-1])]
    assert all(shard.rows <= shard_rows for shard in plan.shards)
    assert {shard.offset is not None for shard in plan.shards} == {name in SPLITTABLE}
    assert rows_of(file, plan) == list(enumerate(ROWS))
    if name in SPLITTABLE and not name.endswith("parquet"):
        assert sum(shard.length for shard in plan.shards) == len(FORMS[name])


@pytest.mark.parametrize("name", FORMS)
def test_any_shards_can_be_asked_for(write, name):
    file = write(name, FORMS[name])
    plan = plan_file(file, shard_rows=7)
    asked = random.Random(0).sample(plan.shards, 4)
    for shard, rows in read_shards(file, "auto", asked):
        assert rows == [(i, ROWS[i]) for i in range(shard.start, shard.stop)]
        asked.remove(shard)
    assert asked == []
    assert list(read_shards(file, "auto", [])) == []
    groups = read_together(plan.shards, range(len(plan.shards)), 3)
    parts = [list(read_shards(file, "auto", reversed(plan.shards.pick(group)))) for group, _ in groups]
    assert [row for part in parts for _, rows in part for row in rows] == list(enumerate(ROWS))


@pytest.mark.parametrize("name", FORMS)
def test_plans_are_repeatable_and_plain_data(write, name):
    file = write(name, FORMS[name])
    plan = plan_file(file, shard_rows=7)
    assert plan_file(file, shard_rows=7) == plan
    assert plan_file(file, shard_rows=10).digest == plan.digest
    assert pickle.loads(pickle.dumps(plan)) == plan
    back = FilePlan.from_json(json.loads(json.dumps(plan.to_json())))
    assert (back.shards, back.rows, back.digest, back.file) == (plan.shards, plan.rows, plan.digest, plan.file)


@pytest.mark.parametrize("name", FORMS)
def test_a_changed_file_is_refused(write, name):
    changed = [{**row, "n": -1} if row["n"] == 40 else row for row in ROWS]
    file = write(name, FORMS[name])
    plan = plan_file(file, shard_rows=7)
    lines = b"".join(json.dumps(row).encode() + b"\n" for row in changed)
    table = pa.Table.from_pylist(changed)
    data = {
        "parquet": lambda: parquet(table), "arrow": lambda: arrow(pa.ipc.new_stream, table),
        "gz": lambda: gzip.compress(lines), "zst": lambda: zstandard.compress(lines),
    }.get(name.rsplit(".", 1)[1], lambda: lines)()  # fmt: skip
    write(name, data)
    assert plan_file(file, shard_rows=7).digest != plan.digest
    with pytest.raises(InputError, match=r"changed while it was being labelled|could be read when"):
        rows_of(file, plan)


def test_only_the_changed_shard_is_refused(write):
    file = write("a.jsonl", LINES)
    plan = plan_file(file, shard_rows=10)
    write("a.jsonl", LINES.replace(b'"n": 23', b'"n": 99'))
    assert len(list(read_shards(file, "auto", plan.shards[:2]))) == 2
    with pytest.raises(InputError, match="rows 20 to 29 are not what they were"):
        list(read_shards(file, "auto", plan.shards[2:]))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "array.json", "a.parquet", "stream.arrow"])
def test_a_vanished_or_shortened_file_is_refused(write, name):
    file = write(name, FORMS[name])
    plan = plan_file(file, shard_rows=10)
    write(name, FORMS[name][:-200])
    with pytest.raises(InputError, match=name):
        rows_of(file, plan)
    os.remove(file.uri)
    with pytest.raises(InputError, match="could be read when the run was planned"):
        rows_of(file, plan)


def test_unsplittable_files_are_read_once(write, monkeypatch):
    file = write("a.jsonl.gz", FORMS["a.jsonl.gz"])
    plan = plan_file(file, shard_rows=5)
    passes = []
    lines = text.lines
    monkeypatch.setattr(text, "lines", lambda stream, row=0: passes.append(row) or lines(stream, row))
    shards = read_shards(file, "auto", plan.shards[1::2])
    next(shards)
    assert len(list(shards)) == len(plan.shards) // 2 - 1
    assert passes == [0]


BAD_LINES = [
    (b'{"a": 1', "not_json"),
    (b"plain text", "not_json"),
    (b"[1, 2]", "not_json"),
    (b'"text"', "not_json"),
    (b"null", "not_json"),
    (b'{"a": 1} {"b": 2}', "not_json"),
    (b'{"a": "tab\there"}', "not_json"),
    (b'{"a": "\xff\xfe"}', "not_utf8"),
    (b'{"a": "\xed\xa0\x80"}', "not_utf8"),
    (b"[" * 100_000, "not_json"),
    (b'{"a": ' + b"9" * 5000 + b"}", "not_json"),
]


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_bad_lines_are_rows_with_a_reason(write, suffix):
    data = b"\n".join([b'{"good": 0}', *(line for line, _ in BAD_LINES), b'{"good": 1}'])
    file = write(f"a.{suffix}", gzip.compress(data) if suffix.endswith("gz") else data)
    plan = plan_file(file, shard_rows=5)
    assert (plan.rows, list(plan.head)) == (len(BAD_LINES) + 2, [{"good": 0}, {"good": 1}])
    assert plan.trouble and plan.trouble.startswith("not_json")
    rows = rows_of(file, plan)
    assert rows[0] == (0, {"good": 0}) and rows[-1] == (len(BAD_LINES) + 1, {"good": 1})
    for (row, error), (_, reason) in zip(rows[1:-1], BAD_LINES, strict=True):
        assert isinstance(error, RowError) and error.reason == reason, row
        assert len(error.detail) < 250 and error.detail.isprintable()


def test_blank_lines_keep_the_numbers_of_the_others(write):
    file = write("a.jsonl", b'\n\n{"a": 0}\n  \r\n{"a": 1}\n\n\n{"a": 2}\n\n\n')
    plan = plan_file(file, shard_rows=2)
    assert (plan.rows, [shard.rows for shard in plan.shards]) == (3, [2, 1])
    assert rows_of(file, plan) == [(2, {"a": 0}), (4, {"a": 1}), (7, {"a": 2})]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", b""), ("b.jsonl", b"\n \n"), ("c.json", b""), ("d.json", b" \n"), ("e.json", b"[ ]\n"),
        ("f.jsonl.gz", b""), ("g.jsonl.gz", gzip.compress(b"", mtime=0)), ("h.parquet", parquet(TABLE.slice(0, 0))),
        ("i.arrow", arrow(pa.ipc.new_stream, TABLE.slice(0, 0))), ("j.jsonl", b"\xef\xbb\xbf"),
    ],
)  # fmt: skip
def test_an_empty_file_has_no_rows(write, name, data):
    file = write(name, data)
    plan = plan_file(file)
    assert (plan.rows, plan.shards, plan.head) == (0, (), ())


def test_one_object_is_one_row(write):
    for data in (b'{"a": 1}', b'{\n "a": 1\n}\n', b'\xef\xbb\xbf\n{\n"a": 1}'):
        file = write("a.json", data)
        assert [row for _, row in rows_of(file, plan_file(file))] == [{"a": 1}]


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "json"])
def test_a_very_long_row(write, suffix):
    rows = [{"a": "x"}, {"a": "ü\\n" * 1_000_000}, {"a": "y"}]
    data = json.dumps(rows).encode() if suffix == "json" else b"\n".join(json.dumps(row).encode() for row in rows)
    assert len(data) > 5_000_000
    file = write(f"a.{suffix}", gzip.compress(data, 1) if suffix.endswith("gz") else data)
    assert [row for _, row in rows_of(file, plan_file(file))] == rows


@pytest.mark.parametrize("name", FORMS)
def test_a_shard_ends_at_its_bytes_too(write, name):
    file = write(name, FORMS[name])
    whole, one, some = (plan_file(file, shard_rows=1000, shard_bytes=size) for size in (1 << 40, 1, 1000))
    assert len(whole.shards) < len(some.shards) < len(one.shards) == len(ROWS)
    assert all(rows_of(file, plan) == rows_of(file, whole) for plan in (one, some))
    assert some.digest == whole.digest == one.digest


def test_a_shard_of_json_is_little_more_than_its_bytes(write):
    plan = plan_file(write("a.jsonl", LINES), shard_rows=1000, shard_bytes=1000)
    assert all(shard.length < 1000 + max(map(len, LINES.splitlines(keepends=True))) for shard in plan.shards)
    assert all(shard.length >= 1000 for shard in plan.shards[:-1])


def test_not_a_number_is_kept_and_duplicates_stay(write):
    file = write("a.jsonl", b'{"a": NaN, "b": -Infinity}\n{"c": 1}\n{"c": 1}\n')
    (_, first), *rest = rows_of(file, plan_file(file))
    assert first["a"] != first["a"] and first["b"] == float("-inf")
    assert rest == [(1, {"c": 1}), (2, {"c": 1})]


BROKEN = {
    "cut.jsonl.gz": (FORMS["a.jsonl.gz"][:-20], "Truncated"),
    "checksum.jsonl.gz": (FORMS["a.jsonl.gz"][:-8] + b"12345678", "check"),
    "cut.ndjson.zst": (FORMS["a.ndjson.zst"][:-20], "Truncated"),
    "plain.jsonl.gz": (LINES, "gzip"),
    "cut.json": (ARRAY[:2000], "breaks after [0-9]+ rows as json: .*near the end of the file"),
    "open.json": (ARRAY[:-1], "breaks after 53 rows as json: a comma or ] is due at the end of the file"),
    "comma.json": (ARRAY[:-1] + b",]", "breaks after 53 rows"),
    "no_comma.json": (b'[{"a": 1} {"a": 2}]', "after 1 rows as json: a comma or ] is due at"),
    "tail.json": (ARRAY + b"x", "the array is closed, yet there follows 'x'"),
    "tab.json": (b'[{"a": 1}, {"a": "\t"}, ' + b"1," * 100_000 + b"1]", "after 1 rows as json: Invalid control"),
    "deep.json": (b"[" * 100_000, "nested too deeply"),
    "text.json": (b"once upon a time", "cannot be read as json"),
    "cut.parquet": (FORMS["a.parquet"][:-100], "cannot be read as parquet"),
    "empty.parquet": (b"", "cannot be read as parquet"),
    "text.parquet": (LINES, "cannot be read as parquet"),
    "cut.arrow": (FORMS["stream.arrow"][:-3000], "as arrow"),
    "cut_file.arrow": (FORMS["file.arrow"][:-3000], "as arrow"),
    "empty.arrow": (b"", "cannot be read as arrow"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_when_planned(write, name):
    data, said = BROKEN[name]
    with pytest.raises(InputError, match=said) as raised:
        plan_file(write(name, data))
    assert name in str(raised.value) and "again" in str(raised.value)


def flipped(data, group, column):
    """Parquet with a bit of one page turned over."""
    chunk = next(
        chunk
        for chunk in (pq.ParquetFile(io.BytesIO(data)).metadata.row_group(group).column(i) for i in range(20))
        if chunk.path_in_schema.startswith(column)
    )
    broken = bytearray(data)
    broken[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 16
    return bytes(broken)


def test_a_flipped_bit_in_parquet_is_refused_when_planned_where_its_head_is(write):
    data = parquet(TABLE.select(["prompt"]), compression="none", use_dictionary=False)
    with pytest.raises(InputError, match=r"a\.parquet: .*checksum"):
        plan_file(write("a.parquet", flipped(data, 0, "prompt")))


def test_a_flipped_bit_behind_the_head_of_parquet_fails_where_it_is_read(write):
    data = parquet(TABLE.select(["prompt", "n"]), compression="none", use_dictionary=False)
    file = write("a.parquet", flipped(data, 1, "prompt"))
    plan = plan_file(file, shard_rows=7)
    shards, got = read_shards(file, "auto", plan.shards), []
    with pytest.raises(InputError, match="checksum") as raised:
        for shard, _ in shards:
            got.append((shard.start, shard.stop))
    assert got == [(0, 7), (7, 14), (14, 20)]
    assert f"{file.uri}: row group 1, rows 20 to 39, cannot be decoded" in str(raised.value)
    assert "fetch or write the file again, and label it into another --output" in str(raised.value)
    assert [len(rows) for _, rows in read_shards(file, "auto", plan.shards[6:])] == [7, 6]  # those behind it


def test_parquet_that_ends_before_its_last_row_group_is_refused_when_planned(write):
    data = parquet(group=1000, compression="none")
    size = int.from_bytes(data[-8:-4], "little") + 8
    with pytest.raises(InputError, match=r"breaks after 20 rows as parquet|cannot be read as parquet"):
        plan_file(write("a.parquet", data[:600] + data[-size:]))


PAIRS = pa.table(
    {
        "prompt": [f"p{i}" for i in range(60)],
        "response_a": [f"a{i}" for i in range(60)],
        "response_b": [f"b{i}" for i in range(60)],
        "winner": ["a" if i % 3 else "b" for i in range(60)],
        "score_a": [float(i % 4) for i in range(60)],
        "score_b": [1.0] * 60,
    }
)
BOTH = 'input.response_key=["response_a", "response_b"]'


@pytest.mark.parametrize(("column", "refused"), [("prompt", False), ("response_b", False), ("winner", True)])
def test_what_labels_mean_is_read_of_their_columns_alone(write, column, refused):
    file = write("a.parquet", flipped(parquet(PAIRS, compression="none", use_dictionary=False), 2, column))
    plan = plan_file(file, shard_rows=20)
    config = load_config(None, [], ["input.label_key=winner", BOTH]).input
    shape = detect(plan.head, config, file.name)
    planned = [(file, "auto", replace(shape, label=replace(shape.label, closed="letters")), plan)]
    if refused:
        with pytest.raises(InputError, match="row group 2, rows 40 to 59, cannot be decoded"):
            require_proof(planned)
        return
    require_proof(planned)
    with pytest.raises(InputError, match="row group 2, rows 40 to 59, cannot be decoded"):
        rows_of(file, plan)


def test_scores_are_counted_of_their_columns_alone(write):
    whole = parquet(PAIRS, compression="none", use_dictionary=False)
    notes = []
    for name, data in (("whole", whole), ("broken", flipped(whole, 2, "prompt"))):
        file = write(f"{name}.parquet", data)
        plan = plan_file(file)
        keys = [BOTH, 'input.score_key=["score_a", "score_b"]', "input.pairs_from=best_worst"]
        notes.append(
            counted((file, "auto", detect(plan.head, load_config(None, [], keys).input, file.name), plan)).note
        )
    assert notes[0] == notes[1] and "45 rows prefer a response, 15 do not" in notes[0]


def test_files_beside_the_rows_of_parquet_are_looked_for_where_a_column_may_name_them(write, tmp_path):
    (tmp_path / "far.png").write_bytes(b"x" * 5000)
    own = [{"bytes": b"p" * 50, "path": f"{i}.png"} for i in range(60)]
    named = [*own[:50], {"bytes": None, "path": "far.png"}, *own[51:]]
    for images, right, shards in ((own, True, 3), (named, False, None), (named, True, 4)):
        table = PAIRS.select(["prompt"]).append_column("image", pa.array(images))
        data = parquet(table, compression="none", use_dictionary=False)
        file = write("a.parquet", data if right and images is named else flipped(data, 2, "image.bytes"))
        beside = beside_of(file, load_config(None, [], []).input)
        if shards is None:
            with pytest.raises(InputError, match="checksum"):
                plan_file(file, shard_rows=20, shard_bytes=4500, beside=beside)
        else:
            assert len(plan_file(file, shard_rows=20, shard_bytes=4500, beside=beside).shards) == shards


def test_a_broken_array_is_not_read_to_its_end():
    reads = []

    class Counting(io.BytesIO):
        def readinto(self, buffer):
            reads.append(len(buffer))
            return super().readinto(buffer)

    stream = Counting(b'[{"a": 1}, {oops}, ' + b"1, " * 300_000 + b"1]")
    with pytest.raises(ValueError, match="oops"):
        list(text.values(io.BufferedReader(stream), chunk=1000))
    assert 0 < sum(reads) < 50_000


def test_an_array_of_bad_elements(write):
    file = write("a.json", b'[{"a": 1}, 2, "x", null, {"a": "\xff"}, {"a": "\\udc80"}, [3], {"a": 4}]')
    reasons = [row.reason if isinstance(row, RowError) else row for _, row in rows_of(file, plan_file(file))]
    assert reasons == [{"a": 1}, "not_json", "not_json", "not_json", "not_utf8", {"a": "\udc80"}, "not_json", {"a": 4}]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=50, deadline=None)
@given(
    values=st.lists(json_values, max_size=6),
    chunk=st.integers(1, 40),
    indent=st.sampled_from([None, 1]),
    ascii_only=st.booleans(),
)
def test_arrays_come_back_value_by_value_whatever_is_read_at_once(values, chunk, indent, ascii_only):
    data = json.dumps(values, indent=indent, ensure_ascii=ascii_only).encode()
    found = list(text.values(io.BytesIO(data), chunk=chunk))
    assert [row for row, _ in found] == list(range(len(values)))
    assert [repr(json.loads(raw)) for _, raw in found] == list(map(repr, values))


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), max_size=6), shard_rows=st.integers(1, 12), wanted=st.data())
def test_columnar_cuts(lengths, shard_rows, wanted):
    from pipeline.corpus.files import columnar

    total = sum(lengths)
    batches, row = [], 0
    for length in lengths:
        batches.append(pa.RecordBatch.from_pydict({"i": list(range(row, row + length))}))
        row += length
    ranges = [(i, min(i + shard_rows, total)) for i in range(0, total, shard_rows)]
    asked = [each for each in ranges if wanted.draw(st.booleans())]
    found = list(columnar.cut(batches, 0, asked))
    assert [each for each, _ in found] == asked
    for (start, stop), pieces in found:
        assert [i for piece in pieces for i in piece["i"].to_pylist()] == list(range(start, stop))


def test_values_python_cannot_hold_make_a_row_error(write):
    texts = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.array([0, 2, 4, 6], pa.int32()).buffers()[1], pa.py_buffer(b"ab\xff\xfecd")]
    )
    table = pa.table({"a": texts, "d": pa.array([1, 2, 10**9], pa.date32())})
    for name, data in (("a.parquet", parquet(table)), ("a.arrow", arrow(pa.ipc.new_stream, table))):
        file = write(name, data)
        plan = plan_file(file)
        assert list(plan.head) == [{"a": "ab", "d": date(1970, 1, 2)}]
        rows = [row for _, row in rows_of(file, plan)]
        assert [row.reason for row in rows[1:]] == ["not_utf8", "unreadable"]


def test_parquet_of_maps_dictionaries_and_nested_messages(write):
    messages = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    table = pa.table(
        {
            "messages": pa.array([[("user", "a"), ("assistant", None)], None], messages),
            "map": pa.array([[("k", "v")], []], pa.map_(pa.string(), pa.string())),
            "kind": pa.array(["x", "y"]).dictionary_encode(),
        }
    )
    expected = [
        {
            "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}],
            "map": {"k": "v"},
            "kind": "x",
        },
        {"messages": None, "map": {}, "kind": "y"},
    ]
    for name, data in (("a.parquet", parquet(table)), ("a.arrow", arrow(pa.ipc.new_stream, table))):
        file = write(name, data)
        assert [row for _, row in rows_of(file, plan_file(file, shard_rows=1))] == expected


def test_parquet_shards_of_one_row_group_share_their_bytes(write):
    file = write("a.parquet", parquet(group=20))
    plan = plan_file(file, shard_rows=7)
    assert [(s.start, s.stop) for s in plan.shards[:4]] == [(0, 7), (7, 14), (14, 20), (20, 27)]
    assert [(len(group), apart) for group, apart in read_together(plan.shards, range(len(plan.shards)), 1)] == [
        (size, False) for size in (3, 3, 2)
    ]
    assert len(plan_file(write("b.parquet", parquet(group=3)), shard_rows=9).shards) == 6


def test_a_format_can_be_said(write):
    file = write("corpus.txt", LINES)
    with pytest.raises(InputError, match=r"corpus\.txt.*input\.format"):
        plan_file(file)
    assert rows_of(file, plan_file(file, "jsonl"), "jsonl") == list(enumerate(ROWS))
    assert rows_of(file, plan_file(file, "json"), "json") == list(enumerate(ROWS))
