"""What a file is by its first bytes, where its name says otherwise: a sentence with a remedy for each.

A person's file is often not what its name says: a pointer of Git LFS, a web page, something packed, UTF-16.
"""

from shlex import quote

from pipeline.corpus.files.inputs import WRAPPINGS, Format

LOOKED_AT = 512  # bytes
TEXT = ("json", "jsonl", "csv", "tsv")
LFS = b"version https://git-lfs.github.com/spec/v1"
FORMATS = {b"PAR1": "parquet", b"ARROW1": "arrow"}
PACKED = {
    b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst", b"BZh": ".bz2", b"\xfd7zXZ": ".xz", b"PK\x03\x04": ".zip",
}  # fmt: skip


def mistaken(name: str, start: bytes, how: Format) -> str | None:
    """Why a file cannot be read as its name says, and what to do; None where nothing shows."""
    if start.startswith(LFS):
        return "this is a pointer of Git LFS and not the data; run `git lfs pull` in the clone, or download the file itself"
    packed = next((suffix for magic, suffix in PACKED.items() if start.startswith(magic)), None)
    if packed in WRAPPINGS:
        return f"its content is packed as {packed}; unpack it with `{WRAPPINGS[packed]}` and give what comes out"
    if how.kind in TEXT and how.compression is None:
        if packed:
            return f"its content is packed as {packed} and its name does not say so; rename it to {name}{packed}"
        form = next((form for magic, form in FORMATS.items() if start.startswith(magic)), None)
        return f"its content is {form} and not {how.kind}: say --set input.format={form}" if form else None
    return None


def not_text(start: bytes) -> str | None:
    """Why unpacked bytes are not text of any format that is read, and what to do; None where they may be."""
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in start:
        return "its text is not UTF-8 but, it seems, UTF-16; convert it with `iconv -f UTF-16 -t UTF-8`"
    if start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "this is a web page and not the data; download the file itself"
    if start.startswith(LFS):
        return "this is a pointer of Git LFS and not the data; run `git lfs pull` in the clone"
    return None


def remedy(start: bytes, how: Format) -> str:
    """What else a file that does not read as `how` may be: the end of a sentence, or nothing."""
    form = next((form for magic, form in FORMATS.items() if start.startswith(magic)), None)
    if form is None and how.compression is None and start.lstrip(b"\xef\xbb\xbf \r\n\t")[:1] in (b"{", b"["):
        form = "json"
    return f"; its content looks like {form}, so say --set input.format={form}" if form and form != how.kind else ""


def unnest(name: str, nested: str) -> str:
    """How to make rows of a file that is one object of columns, or of rows under names."""
    base = name.rpartition("/")[2]
    if nested.startswith("columns"):
        code = f"import pandas; pandas.read_json({base!r}).to_json({base + 'l'!r}, orient='records', lines=True)"
        return f"make a row of each with `python -c {quote(code)}`"
    if not nested.endswith("'"):
        code = f"import json; [print(json.dumps(row)) for row in json.load(open({base!r})).values()]"
        return f"take them out with `python -c {quote(code)} > rows.jsonl`"
    first = nested.removeprefix("rows under ").split(" and ")[0]
    code = f"import json; [print(json.dumps(row)) for row in json.load(open({base!r}))[{first}]]"
    return f"take out one of them with `python -c {quote(code)} > rows.jsonl`"
