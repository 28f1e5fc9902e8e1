"""A file of JSON lines planned in sections, each by itself, is planned as in one go."""

import random
from pathlib import Path

import pytest

from pipeline.corpus import (
    InputFile,
    digest_of,
    find_files,
    joined,
    plan_file,
    plan_section,
    read_shards,
    read_together,
    sections,
)
from pipeline.corpus.files import readers
from pipeline.errors import InputError


def file_of(folder: Path, lines: list[bytes], end: bytes = b"\n") -> InputFile:
    path = folder / "a.jsonl"
    path.write_bytes(end.join(lines))
    return next(iter(find_files([str(path)])))


@pytest.mark.parametrize("size", [1, 7, 64, 100, 1000, 1 << 26])
@pytest.mark.parametrize("seed", range(4))
def test_sections_are_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, size: int) -> None:
    rng = random.Random(seed)
    kinds = [b"", b"  ", b"{broken", b'{"a": "' + b"x" * 300 + b'"}', *[b'{"a": %d}' % i for i in range(9)]]
    lines = [b"\xef\xbb\xbf" + b'{"a": 0}' if seed % 2 else b"", *(rng.choice(kinds) for _ in range(120))]
    file = file_of(tmp_path, lines, b"\r\n" if seed == 3 else b"\n")
    monkeypatch.setattr(readers, "SECTION", size)
    plan = plan_file(file, shard_rows=5, shard_bytes=400)
    number = sections(file)
    assert number == max(1, -(-file.size // size))
    parts = [plan_section(file, index, 5, 400) for index in range(number)]
    assert joined(file, "auto", parts, digest_of(file)) == plan
    rows = [(number, str(row)) for _, shard in read_shards(file, "auto", plan.shards) for number, row in shard]
    groups = [plan.shards.pick(group) for group, _ in read_together(plan.shards, range(len(plan.shards)), 4)]
    assert rows == [(n, str(row)) for g in groups for _, shard in read_shards(file, "auto", g) for n, row in shard]
    assert [number for number, _ in rows] == [i for i, line in enumerate(lines) if line.strip()]
    data = Path(file.uri).read_bytes()
    begins = [0, *(i + 1 for i, byte in enumerate(data) if byte == ord("\n"))]
    for shard in plan.shards:
        assert shard.offset is not None and shard.length is not None
        assert len({b // size for b in begins if shard.offset <= b < shard.offset + shard.length}) == 1


def test_what_cannot_be_planned_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "SECTION", 10)
    for name in ("a.json", "a.jsonl.gz", "a.csv", "a.parquet"):
        assert sections(InputFile(name, f"/{name}", 1000, 1)) == 1
    file = file_of(tmp_path, [b'{"data": [{"prompt": "q", "response": "x"}]}'])
    parts = [plan_section(file, index) for index in range(sections(file))]
    for plan in (lambda: plan_file(file), lambda: joined(file, "auto", parts, "")):
        with pytest.raises(InputError, match="whole file is one object"):
            plan()
    Path(file.uri).unlink()
    with pytest.raises(InputError, match=r"a\.jsonl: cannot be read from byte 20 on"):
        plan_section(file, 2)
    with pytest.raises(InputError, match=r"a\.jsonl: cannot be read"):
        digest_of(file)


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS"),
        (b"PAR1", "its content is parquet and not jsonl"),
        (b"\x1f\x8b\x08", "its content is packed as .gz and its name does not say so"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_so_in_sections_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: bytes, said: str
) -> None:
    monkeypatch.setattr(readers, "SECTION", 10)
    file = file_of(tmp_path, [start + b"x" * 50])
    errors = []
    for plan in (lambda: plan_file(file), lambda: plan_section(file, 0)):
        with pytest.raises(InputError, match=said) as raised:
            plan()
        errors.append(str(raised.value))
    assert errors[0] == errors[1]
