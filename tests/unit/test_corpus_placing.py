"""Rows with pictures, read as `label` reads them: which picture stands where, in every layout that people publish."""

import base64
import hashlib
import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import Row, plan, preferences, scored, write
from PIL import Image
from test_corpus_pictures import BAD, encoded

from pipeline.config import InputConfig
from pipeline.corpus import detect, read_shards
from pipeline.corpus.pictures import PLACEHOLDER as P
from pipeline.corpus.pictures import read_picture
from pipeline.corpus.samples import Message
from pipeline.corpus.sources import holds_pixels
from pipeline.errors import InputError, RowError

COLOURS = ("red", "lime", "blue")
PAIR: Row = {"chosen": "A whale.", "rejected": "A mouse."}
ASKED = "Which is bigger?"


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(buffer, "PNG")
    return buffer.getvalue()


RED, LIME, BLUE = map(png, COLOURS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for colour in COLOURS:
        (tmp_path / "images" / f"{colour}.png").write_bytes(png(colour))
    return tmp_path


def said(prompt: list[Message]) -> list[tuple[str, str, list[bytes]]]:
    return [(m["role"], m["content"], [picture.data for picture in m.get("pictures", [])]) for m in prompt]


def prompts(folder: Path, rows: list[Row], config: InputConfig | None = None) -> list[Any]:
    """Of each row what its responses answer, or its reason; every picture is read again from its place."""
    write(folder, rows)
    return read(folder, config)


def read(folder: Path, config: InputConfig | None = None) -> list[Any]:
    found: list[Any] = []
    for each in scored(plan(folder, config)):
        if isinstance(each, str):
            found.append(each)
            continue
        for message in (message for turn in each for message in turn.prompt):
            for picture in message.get("pictures", []):
                assert read_picture(picture.place, picture.digest) == picture
        [prompt] = {json.dumps(said(turn.prompt), default=bytes.hex): said(turn.prompt) for turn in each}.values()
        found.append(prompt)
    return found


def part(**inline: Any) -> dict[str, Any]:
    return {"type": "image", **inline}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def test_pictures_go_before_the_text_of_the_first_user_message(folder: Path) -> None:
    assert prompts(
        folder,
        [
            {"prompt": ASKED, "image": "images/red.png", **PAIR},
            {"prompt": ASKED, "image": None, "images": ["images/red.png", "images/blue.png"], **PAIR},
            {"prompt": ASKED, "system": "Look.", "images": ["images/lime.png"], **PAIR},
            {"prompt": ASKED, "images": [], **PAIR},
        ],
    ) == [
        [("user", P + ASKED, [RED])],
        [("user", P + P + ASKED, [RED, BLUE])],
        [("system", "Look.", []), ("user", P + ASKED, [LIME])],
        [("user", ASKED, [])],
    ]


def test_places_are_filled_in_order(folder: Path) -> None:
    two = ["images/red.png", "images/blue.png"]
    turns = [
        {"role": "user", "content": [part(), text("This, and"), part(), text("this?")]},
        {"role": "assistant", "content": "A <image> is no place here."},
        {"role": "user", "content": ASKED},
    ]
    shared = {"prompt": ASKED, **PAIR}
    assert prompts(
        folder,
        [
            {**shared, "prompt": "<image>\nThis, and <image>?", "images": two},
            {**shared, "prompt": turns, "images": two},
            {**shared, "prompt": [{"role": "user", "content": "<image>Hm."}, *turns[1:]], "images": two[:1]},
            {**shared, "prompt": "Write <image> in HTML."},
        ],
    ) == [
        [("user", f"{P}\nThis, and {P}?", [RED, BLUE])],
        [("user", f"{P}This, and{P}this?", [RED, BLUE]), ("assistant", turns[1]["content"], []), ("user", ASKED, [])],
        [("user", f"{P}Hm.", [RED]), ("assistant", turns[1]["content"], []), ("user", ASKED, [])],
        [("user", "Write <image> in HTML.", [])],
    ]


def test_parts_hold_their_own_pictures(folder: Path) -> None:
    data = "data:image/png;base64," + base64.b64encode(LIME).decode()
    content = [
        part(image="images/red.png"), part(url="images/lime.png"), part(path="images/blue.png"),
        {"type": "image_url", "image_url": {"url": data}}, {"type": "image_url", "image_url": data},
        part(base64=base64.b64encode(RED).decode()), part(), text(ASKED),
    ]  # fmt: skip
    row = {"prompt": [{"role": "user", "content": content}], "images": ["images/blue.png"], **PAIR}
    assert prompts(folder, [row]) == [[("user", P * 7 + ASKED, [RED, LIME, BLUE, LIME, LIME, RED, BLUE])]]


def test_conversations_that_carry_their_prompt_share_its_pictures(folder: Path) -> None:
    asked = [{"role": "user", "content": [part(image="images/red.png"), part(), text(ASKED)]}]
    row = {side: [*asked, {"role": "assistant", "content": [text(PAIR[side])]}] for side in PAIR}
    assert prompts(folder, [{**row, "images": ["images/blue.png"]}]) == [[("user", P + P + ASKED, [RED, BLUE])]]


def test_every_turn_sees_the_pictures_before_it(folder: Path) -> None:
    turns = [("human", "<image>One?"), ("gpt", "One."), ("human", "<image>Two?"), ("gpt", "Two.")]
    row = {
        "conversations": [{"from": role, "value": value} for role, value in turns],
        "images": ["images/red.png", "images/blue.png"],
    }
    write(folder, [row])
    [[first, second]] = scored(plan(folder, InputConfig(turns="all")), "all")
    assert said(first.prompt) == [("user", f"{P}One?", [RED])]
    assert said(second.prompt)[2:] == [("user", f"{P}Two?", [BLUE])]


WRONG = {
    "one place, two pictures": ({"prompt": "<image>?", "images": ["images/red.png"] * 2}, "picture_count"),
    "two places, one picture": ({"prompt": "<image><image>?", "image": "images/red.png"}, "picture_count"),
    "a part and no picture": ({"prompt": [{"role": "user", "content": [part(), text(ASKED)]}]}, "picture_count"),
    "a part with its own and one more": (
        {"prompt": [{"role": "user", "content": [part(image="images/red.png")]}], "image": "images/red.png"},
        "picture_count",
    ),
    "two columns": ({"image": "images/red.png", "images": ["images/red.png"]}, "picture_count"),
    "no user": ({"prompt": [{"role": "system", "content": "Hm."}], "image": "images/red.png"}, "picture_count"),
    "the sign of a picture": ({"prompt": f"What is {P}?", "image": "images/red.png"}, "bad_message"),
    "the sign among parts": (
        {"prompt": [{"role": "user", "content": [part(image="images/red.png"), text(P)]}]},
        "bad_message",
    ),
    "an assistant's": (
        {
            "prompt": [
                {"role": "user", "content": "?"},
                {"role": "assistant", "content": [part(image="images/red.png")]},
            ]
        },
        "not_text",
    ),
    "as a label store has it": (
        {"prompt": [{"role": "user", "content": "?", "pictures": [{"digest": "d", "place": "p"}]}]},
        "not_text",
    ),
    "not there": ({"image": "images/pink.png"}, "missing_picture"),
    "a folder": ({"image": "images"}, "missing_picture"),
    "a number": ({"image": 7}, "missing_picture"),
    "outside": ({"image": "../secret.png"}, "picture_place"),
    "a URL": ({"image": "https://example.org/a.png"}, "picture_place"),
    "sound": ({"image": "images/red.png", "audio": "a.wav"}, "not_text"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_row_that_does_not_add_up_is_an_error(folder: Path, kind: str) -> None:
    changes, reason = WRONG[kind]
    assert prompts(folder, [{"prompt": ASKED, **PAIR}, {"prompt": ASKED, **PAIR, **changes}])[1] == reason


def test_bad_pictures_are_error_rows_each_and_good_ones_beside_them_are_labels(folder: Path) -> None:
    rows = [{"prompt": ASKED, "image": {"bytes": RED, "path": None}, **PAIR}]
    rows += [{"prompt": ASKED, "image": {"bytes": data, "path": None}, **PAIR} for data, _ in BAD.values()]
    pq.write_table(pa.Table.from_pylist(rows), folder / "corpus.parquet")
    assert read(folder) == [[("user", P + ASKED, [RED])], *(reason for _, reason in BAD.values())]


def test_a_response_with_a_picture_is_an_error(folder: Path) -> None:
    row = {"prompt": ASKED, "chosen": [{"role": "assistant", "content": [part(), text("x")]}], "rejected": "A mouse."}
    shape = detect([{"prompt": ASKED, **PAIR}], InputConfig())
    assert [failed.error.reason for failed in shape.normalise("f", 0, row).failed] == ["not_text"]


def test_pixels_are_in_no_other_column_and_older_stores_read_as_before(folder: Path) -> None:
    table = pa.table(
        {"prompt": [ASKED], "images": [[{"bytes": RED, "path": "r.png"}]], **{k: [v] for k, v in PAIR.items()}}
    )
    pq.write_table(table, folder / "corpus.parquet")
    [stored] = plan(folder)
    [[chosen, _]] = scored([stored])
    assert chosen.extra == {}
    assert "images" in stored.shape.describe() and stored.shape.to_json()["images"] == ("images",)
    assert type(stored.shape).from_json(stored.shape.to_json()) == stored.shape
    plain = detect([{"prompt": ASKED, **PAIR}], InputConfig())
    assert not {"images", "origin"} & plain.to_json().keys()


def vl(ranking: list[int], **more: Any) -> Row:
    return {
        "id": "RLAIF-V-14", "query": ASKED, "response": ["A whale.", "A mouse."], "human_ranking": ranking,
        "models": ["m", "n"], "judge": "human", "rationale": None, "query_source": "COCO", **more,
    }  # fmt: skip


def multimodal(better: str) -> Row:
    return {
        "ID": "nocaps-1", "Dataset": "nocaps", "Category": "general", "Text": ASKED, "Image": "images/red.png",
        "Output1": "A whale.", "Output2": "A mouse.", "Better": better,
    }  # fmt: skip


PUBLISHED: dict[str, tuple[list[Row], list[tuple[str, str]], str]] = {
    # huggingface.co/datasets/openbmb/RLAIF-V-Dataset
    "rlaif-v": (
        [
            {
                "ds_name": "d",
                "image": {"bytes": RED, "path": "r.jpg"},
                "question": ASKED,
                **PAIR,
                "origin_dataset": "COCO",
                "origin_split": '{"model": "m"}',
                "idx": 0,
                "image_path": "gone/r.jpg",
            }
        ],
        [("A whale.", "A mouse.")],
        "image + question + chosen + rejected",
    ),
    # huggingface.co/datasets/MMInstruction/VL-RewardBench
    "vl-reward-bench": (
        [vl([0, 1], image={"bytes": RED, "path": None}), vl([1, 0], image={"bytes": RED, "path": None})],
        [("A whale.", "A mouse."), ("A mouse.", "A whale.")],
        "image + query + response",
    ),
    # huggingface.co/datasets/HuggingFaceH4/rlaif-v_formatted; huggingface.co/docs/trl/dataset_formats
    "trl": (
        [
            {
                "images": [{"bytes": RED, "path": None}],
                "prompt": [{"role": "user", "content": [{"type": "image", "text": None}, text(ASKED)]}],
                **{side: [{"role": "assistant", "content": [text(words)]}] for side, words in PAIR.items()},
            }
        ],
        [("A whale.", "A mouse.")],
        "images + prompt + chosen + rejected",
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_layout_in_parquet_is_recognised(folder: Path, name: str) -> None:
    rows, expected, says = PUBLISHED[name]
    pq.write_table(pa.Table.from_pylist(rows), folder / "corpus.parquet")
    inputs = plan(folder)
    assert inputs[0].shape.describe().startswith(says)
    assert preferences(inputs) == expected
    assert read(folder) == [[("user", P + ASKED, [RED])]] * len(rows)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([vl([1, 0], image_path="images/red.png")], [("A mouse.", "A whale.")]),
        ([multimodal("Output1"), multimodal("Output2")], [("A whale.", "A mouse."), ("A mouse.", "A whale.")]),
    ],
    ids=["VL-RewardBench from GitHub", "Multimodal RewardBench"],
)
def test_a_published_layout_with_files_beside_it_is_recognised(
    folder: Path, rows: list[Row], expected: list[tuple[str, str]]
) -> None:
    (folder / "all_data.json").write_text(json.dumps(rows))
    assert preferences(plan(folder)) == expected
    assert read(folder) == [[("user", P + ASKED, [RED])]] * len(rows)


def test_other_columns_hold_pictures_where_they_are_named(folder: Path) -> None:
    row = {"prompt": ASKED, "first": "images/red.png", "second": {"at": "images/blue.png"}, **PAIR}
    config = InputConfig(image_key=["first", "second.at"])
    assert prompts(folder, [row], config) == [[("user", P + P + ASKED, [RED, BLUE])]]
    with pytest.raises(InputError, match=r"input\.image_key = 'third'"):
        plan(folder, InputConfig(image_key="third"))


def test_without_asking_for_pictures_a_prompt_with_one_is_refused() -> None:
    row = {"prompt": ASKED, "image": "a.png", **PAIR}
    with pytest.raises(RowError, match="only text is scored"):
        detect([row], InputConfig()).normalise("f", 0, row)


def planned(folder: Path, **config: Any) -> list[int]:
    """Rows of each shard."""
    return [shard.rows for stored in plan(folder, InputConfig(**config)) for shard in stored.plan.shards]


def test_the_bytes_of_pictures_beside_the_rows_count(folder: Path) -> None:
    (folder / "images" / "large.png").write_bytes(b"\0" * 10_000)
    rows = [{"prompt": ASKED, "images": ["images/large.png"], **PAIR} for _ in range(8)]
    inline = [{"prompt": [{"role": "user", "content": [part(path="images/large.png"), text("?")]}], **PAIR}] * 8
    for each in (rows, inline):
        write(folder, each)
        assert planned(folder, shard_bytes=20_000) == [2, 2, 2, 2]
        pq.write_table(pa.Table.from_pylist(each), folder / "corpus.parquet")
        (folder / "corpus.jsonl").unlink()
        assert max(planned(folder, shard_bytes=20_000)) <= 2
        (folder / "corpus.parquet").unlink()


def test_rows_without_pictures_are_cut_as_before(folder: Path) -> None:
    write(folder, [{"prompt": ASKED, **PAIR}] * 9)
    assert planned(folder, shard_rows=4) == [4, 4, 1]


@pytest.mark.parametrize("groups", [10, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("embedded", [True, False])
def test_a_corpus_of_pictures_is_read_in_bounded_memory(folder: Path, embedded: bool, groups: int) -> None:
    """10,000 pictures of 20 kB, 200 MB (1,000 where it is to be quick): what is held is a few shards of 512 KiB."""
    noise = np.random.default_rng(0).integers(0, 256, (80, 80, 3), np.uint8)
    data = encoded(Image.fromarray(noise))
    assert 18_000 < len(data) < 22_000
    (folder / "images" / "noise.png").write_bytes(data)
    value = {"bytes": data, "path": None} if embedded else {"bytes": None, "path": "images/noise.png"}
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", struct), *((name, pa.string()) for name in ("prompt", *PAIR))])
    with pq.ParquetWriter(folder / "corpus.parquet", schema, compression="none", use_dictionary=False) as writer:
        for _ in range(groups):
            writer.write_table(pa.Table.from_pylist([{"image": value, "prompt": ASKED, **PAIR}] * 100, schema))
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    rows = most = 0
    try:
        [stored] = plan(folder)
        for _, numbered in read_shards(stored.file, stored.format, stored.plan.shards):
            for number, row in numbered[:1]:
                assert isinstance(row, dict)
                assert stored.shape.normalise("f", number, row).prompt[0]["pictures"][0].data == data
            rows += len(numbered)
            most = max(most, pa.total_allocated_bytes() - before)
        held = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert rows == 100 * groups
    assert max(shard.rows for shard in stored.plan.shards) <= 30
    assert held < 12 << 20 and most < 12 << 20, (held, most)


def test_a_picture_that_no_prompt_shows_is_said_and_its_pixels_are_stored_nowhere(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    struct, coded = {"bytes": RED, "path": "r.png"}, base64.b64encode(LIME).decode()
    row = {
        "prompt": ASKED,
        "images": [{"bytes": BLUE, "path": None}],
        "image_1": struct,
        "mask": BLUE,
        "more": [{"a": struct}],
    }
    pq.write_table(pa.Table.from_pylist([{**row, **PAIR, "image": coded, "note": b"plain"}]), folder / "corpus.parquet")
    [stored] = plan(folder, InputConfig(image_key="images"))
    said = capsys.readouterr().err
    assert (
        all(f"input.image_key={column} " in said for column in ("image_1", "mask", "more", "image"))
        and "note" not in said
    )
    [[chosen, _]] = scored([stored])
    kept = json.dumps(chosen.extra)
    red, lime, blue = (hashlib.sha256(each).hexdigest() for each in (RED, LIME, BLUE))
    assert kept.count(red) == 2 and kept.count(lime) == kept.count(blue) == 1 and chosen.extra["note"] == "plain"
    assert "PNG" not in kept and coded not in kept and len(kept) < 600


@pytest.mark.parametrize(
    ("row", "column"),
    [({"img": {"bytes": RED, "path": None}}, "img"), ({"image_path": "images/red.png"}, "image_path")],
)
def test_a_column_of_pictures_by_another_name_is_said(
    folder: Path, row: Row, column: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pq.write_table(pa.Table.from_pylist([{"prompt": ASKED, **row, **PAIR}]), folder / "corpus.parquet")
    plan(folder)
    assert f"--set input.image_key={column} " in " ".join(capsys.readouterr().err.split())
    assert read(folder, InputConfig(image_key=column)) == [[("user", P + ASKED, [RED])]]


def test_a_sign_without_a_picture_in_a_file_of_pictures_is_an_error(folder: Path) -> None:
    rows = [{"prompt": f"<image>\n{ASKED}", "image": path, **PAIR} for path in ("images/red.png", None)]
    rows.append({"prompt": "Write <image> in HTML.", "image": None, **PAIR})
    assert prompts(folder, rows) == [
        [("user", f"{P}\n{ASKED}", [RED])], "picture_count", [("user", "Write <image> in HTML.", [])]
    ]  # fmt: skip


def test_parts_as_other_interfaces_name_them(folder: Path) -> None:
    """OpenAI's Responses and Anthropic's Messages."""
    coded = base64.b64encode(LIME).decode()
    sources = (
        {"type": "input_image", "image_url": f"data:image/png;base64,{coded}"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": coded}},
    )
    rows = [
        {"prompt": [{"role": "user", "content": [{"type": "input_text", "text": "?"}, each]}], **PAIR}
        for each in sources
    ]
    assert prompts(folder, rows) == [[("user", f"?{P}", [LIME])]] * 2


def test_a_file_address_below_the_root(folder: Path) -> None:
    rows = [{"prompt": ASKED, "image": f"file://{folder}/images/red.png", **PAIR}]
    assert prompts(folder, rows, InputConfig(picture_root=str(folder))) == [[("user", P + ASKED, [RED])]]
    assert prompts(folder, [{**rows[0], "image": "file:///etc/passwd"}], InputConfig(picture_root=str(folder))) == [
        "picture_place"
    ]


def test_a_bound_that_is_raised_holds_wherever_the_picture_is_looked_at(folder: Path) -> None:
    Image.new("1", (8000, 8000)).save(folder / "images" / "large.png")
    rows = [{"prompt": ASKED, "image": "images/large.png", **PAIR}]
    assert prompts(folder, rows) == ["picture_too_large"]
    [[turn, _]] = scored(plan(folder, InputConfig(max_picture_pixels=100_000_000)))
    [shown] = turn.prompt[0]["pictures"]
    assert shown.size() == (8000, 8000) and shown.open().size == (8000, 8000)
    assert read_picture(shown.place, shown.digest).size() == (8000, 8000)
    with pytest.raises(ValueError, match="178956970"):
        InputConfig(max_picture_pixels=178_956_971)


def test_pairs_as_maps_are_read_are_no_pictures() -> None:
    """Parquet's maps come as lists of tuples; only what holds pixels has any, at whatever depth."""
    assert not holds_pixels([("a", 1), ("b", (2.0, float("nan")))])
    assert holds_pixels({"a": [("b", png("red"))]}) and not holds_pixels(b"BM of nothing")
