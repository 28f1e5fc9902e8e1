"""Pictures of a corpus: decoded within bounds, found wherever a row may hold them, read again from where they were."""

import base64
import io
import json
import struct
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import storage
from pipeline.corpus.files import rows
from pipeline.corpus.pictures import Picture, read_picture
from pipeline.corpus.sources import Origin, row_place
from pipeline.errors import RowError


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def picture(colour: str = "red", size: tuple[int, int] = (8, 6), format: str = "PNG") -> bytes:
    return encoded(Image.new("RGB", size, colour), format)


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it is so large and has no pixels: a bomb, were it decoded."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = b"IDAT" + zlib.compress(b"\0" * 10)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(each) - 4) + each + struct.pack(">I", zlib.crc32(each)) for each in (chunk, body, b"IEND")
    )


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_picture_has_the_size_and_the_colours_that_pillow_gives(format: str) -> None:
    data = picture("blue", (9, 5), format)
    mine = Picture(data, "a")
    assert mine.size() == (9, 5)
    assert mine.open().tobytes() == Image.open(io.BytesIO(data)).convert("RGB").tobytes()


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1"])
def test_other_modes_become_rgb(mode: str) -> None:
    assert Picture(encoded(Image.new(mode, (4, 4))), "a").open().mode == "RGB"


def test_a_picture_is_turned_as_exif_says() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGB", (8, 4), "white")
    image.paste("black", (0, 0, 4, 4))
    mine = Picture(encoded(image, "PNG", exif=exif), "a")
    assert mine.size() == mine.open().size == (4, 8)
    assert mine.open().getpixel((0, 0)) == (0, 0, 0) and mine.open().getpixel((0, 7)) == (255, 255, 255)


def animated() -> bytes:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


BAD = {
    "truncated": (picture(size=(64, 64), format="JPEG")[:-200], "bad_picture"),
    "truncated PNG": (encoded(Image.effect_noise((64, 64), 90))[:2000], "bad_picture"),
    "corrupt": (picture()[:20] + b"\0\1\2\3" * 9, "bad_picture"),
    "no picture": (b"%PDF-1.7 not a picture", "bad_picture"),
    "nothing": (b"", "bad_picture"),
    "huge": (png_header(40_000, 40_000), "picture_too_large"),
    "large": (png_header(8_000, 8_000), "picture_too_large"),
    "one pixel": (picture(size=(1, 1)), "picture_too_small"),
    "animated": (animated(), "animated_picture"),
    "cmyk": (encoded(Image.new("CMYK", (8, 8)), "JPEG"), "cmyk_picture"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_picture_is_an_error_with_its_reason(kind: str) -> None:
    data, reason = BAD[kind]
    with pytest.raises(RowError) as error:
        Picture(data, "there.png").open()
    assert error.value.reason == reason and "there.png" in error.value.detail


def test_a_bomb_is_never_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    for width in (8_000, 12_000, 40_000):
        with pytest.raises(RowError, match=r"input.max_picture_pixels"):
            Picture(png_header(width, width), "a").open()


def test_pictures_are_read_again_from_every_kind_of_file(tmp_path: Path) -> None:
    pictures = [picture(colour) for colour in ("red", "lime", "blue")]
    texts = [base64.b64encode(each).decode() for each in pictures]
    structs = [[{"bytes": each, "path": None}] for each in pictures]
    lines = "\n".join(json.dumps({"images": ["a.png", text]}) for text in texts)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "a.json").write_text(json.dumps([json.loads(line) for line in lines.split("\n")]))
    table = pa.table({"images": structs})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    pyarrow.csv.write_csv(pa.table({"images": texts}), tmp_path / "a.csv")
    for name, index in (("a.jsonl", 1), ("a.json", 1), ("a.parquet", 0), ("a.arrow", 0), ("a.csv", 0)):
        for row in (2, 0, 1):
            mine = Picture(pictures[row], row_place(str(tmp_path / name), row, "images", index))
            assert read_picture(mine.place, mine.digest) == mine, (name, row)
    (tmp_path / "b.png").write_bytes(pictures[0])
    mine = Origin(str(tmp_path / "a.jsonl")).picture("b.png", 0, "images", 0)
    assert mine.place == str(tmp_path / "b.png") and read_picture(mine.place, mine.digest) == mine


def test_a_picture_that_changed_or_went_is_an_error(tmp_path: Path) -> None:
    mine = Picture(picture(), str(tmp_path / "a.png"))
    with pytest.raises(RowError, match="missing_picture"):
        read_picture(mine.place, mine.digest)
    (tmp_path / "a.png").write_bytes(picture("blue"))
    with pytest.raises(RowError, match=r"changed_picture.*restore it"):
        read_picture(mine.place, mine.digest)
    (tmp_path / "a.jsonl").write_text('{"image": "a.png"}\n')
    for row in (0, 7):
        with pytest.raises(RowError, match="missing_picture"):
            read_picture(row_place(str(tmp_path / "a.jsonl"), row, "image", 0), mine.digest)


@pytest.mark.parametrize(
    "value",
    [
        picture(),
        base64.b64encode(picture()).decode(),
        "data:image/png;base64," + base64.b64encode(picture()).decode(),
        {"bytes": picture(), "path": "gone.png"},
        {"bytes": None, "path": "below/a.png"},
        "below/a.png",
        "./below/a.png",
    ],
    ids=["bytes", "base64", "data URI", "struct", "struct of a path", "path", "path from here"],
)
def test_a_value_gives_its_picture(tmp_path: Path, value: object) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "a.png").write_bytes(picture())
    assert Origin(str(tmp_path / "rows.jsonl")).picture(value, 3, "image", 0).data == picture()


@pytest.mark.parametrize(
    "path",
    ["../a.png", "below/../../a.png", "/etc/passwd", "file:///etc/passwd", "C:\\a.png", "..\\a.png", "s3://b/a.png"],
)
def test_a_path_stays_below_the_folder(tmp_path: Path, path: str) -> None:
    with pytest.raises(RowError, match="picture_place"):
        Origin(str(tmp_path / "rows.jsonl")).picture(path, 0, "image", 0)


def test_another_folder_and_urls_are_read_where_they_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(picture())
    origin = Origin(str(tmp_path / "rows" / "a.jsonl"), root=str(tmp_path / "pictures"))
    for path in ("a.png", str(tmp_path / "pictures" / "a.png")):
        assert origin.picture(path, 0, "image", 0).data == picture()
    with pytest.raises(RowError, match="picture_place"):
        origin.picture(str(tmp_path / "pictures" / ".." / "secret.png"), 0, "image", 0)
    with pytest.raises(RowError, match=r"input.picture_urls=true"):
        origin.picture("https://example.org/a.png", 0, "image", 0)


def test_bytes_and_pixels_are_bounded(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture(size=(64, 64)))
    small, few = Origin(str(tmp_path / "a.jsonl"), max_bytes=50), Origin(str(tmp_path / "a.jsonl"), max_pixels=4095)
    for value in ("a.png", picture(size=(64, 64))):
        with pytest.raises(RowError, match=r"input.max_picture_bytes"):
            small.picture(value, 0, "image", 0)
        with pytest.raises(RowError, match=r"input.max_picture_pixels"):
            few.picture(value, 0, "image", 0)


class _Web(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        data = {"/a.png": picture(), "/large.png": b"\0" * 5000}.get(self.path)
        self.send_response(200 if data else 404)
        self.end_headers()
        self.wfile.write(data or b"")

    def log_message(self, *_: object) -> None:
        return


def test_a_url_is_fetched_where_that_is_asked_for(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Web) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        web = f"http://127.0.0.1:{server.server_port}"
        origin = Origin(str(tmp_path / "rows.jsonl"), urls=True, max_bytes=4000)
        mine = origin.picture(f"{web}/a.png", 0, "image", 0)
        assert mine == Picture(picture(), f"{web}/a.png") and read_picture(mine.place, mine.digest) == mine
        with pytest.raises(RowError, match=r"missing_picture: .*cannot be fetched"):
            origin.picture(f"{web}/b.png", 0, "image", 0)
        with pytest.raises(RowError, match=r"picture_too_large: .* input\.max_picture_bytes"):
            origin.picture(f"{web}/large.png", 0, "image", 0)
        server.shutdown()


def test_pictures_lie_beside_a_corpus_in_an_object_store(s3: str) -> None:
    base, mark, query = s3.partition("?")
    storage.upload(f"{base}/corpus/images/a.png{mark}{query}", picture())
    line = json.dumps({"image": base64.b64encode(picture("blue")).decode(), "images": "images/a.png"}).encode() + b"\n"
    rows = f"{base}/corpus/rows.jsonl{mark}{query}"
    storage.upload(rows, line)
    for mine, data in (
        (Origin(rows).picture("images/a.png", 0, "images", 0), picture()),
        (Origin(rows).picture(json.loads(line)["image"], 0, "image", 0), picture("blue")),
    ):
        assert mine.data == data and read_picture(mine.place, mine.digest) == mine


def test_a_large_row_group_is_not_held_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "HELD", 100)
    monkeypatch.setattr(rows, "FEW", 3)
    pictures = [picture(f"#0000{n:02x}") for n in range(20)]
    pq.write_table(pa.table({"image": pictures}), tmp_path / "a.parquet", row_group_size=11)
    for row in (0, 2, 3, 10, 11, 19, 4, 5, 12, 1):
        mine = Picture(pictures[row], row_place(str(tmp_path / "a.parquet"), row, "image", 0))
        assert read_picture(mine.place, mine.digest) == mine
