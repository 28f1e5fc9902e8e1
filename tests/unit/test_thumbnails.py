"""Small copies of pictures on the page of a label store: bounded, re-encoded, and left out where that is asked for."""

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_corpus_pictures import encoded, picture

from pipeline.corpus.pictures import PLACEHOLDER, Picture, grey_picture
from pipeline.report.markup import render
from pipeline.report.responses import draw_responses
from pipeline.report.thumbnails import LARGEST, MOST, SIDE, thumbnails
from pipeline.store.schema import Label, labels_table


def stored(*pictures: Picture) -> list[Any]:
    shown = [{"digest": each.digest, "place": each.place} for each in pictures]
    return [{"role": "user", "content": PLACEHOLDER * len(shown) + "What is it?", "pictures": shown}]


def saved(folder: Path, name: str, data: bytes) -> Picture:
    (folder / name).write_bytes(data)
    return Picture(data, str(folder / name))


def test_a_copy_is_small_and_holds_nothing_of_the_file_but_what_it_shows(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a secret"
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (900, 1200, 3), np.uint8))
    [shown] = thumbnails(stored(saved(tmp_path, "a.png", encoded(noise, exif=exif))))
    assert (shown.name, shown.note, shown.width, shown.height) == ("picture 1", "1,200 x 900", SIDE, SIDE * 3 // 4)
    data = base64.b64decode(shown.data.removeprefix("data:image/jpeg;base64,"))
    assert len(data) <= LARGEST and b"secret" not in data
    assert Image.open(io.BytesIO(data)).size == (shown.width, shown.height)


def test_what_cannot_be_shown_says_why(tmp_path: Path) -> None:
    changed, gone = saved(tmp_path, "a.png", picture("red")), saved(tmp_path, "b.png", picture("blue"))
    Path(changed.place).write_bytes(picture("lime"))
    Path(gone.place).unlink()
    web = Picture(b"", "https://example.org/a.png")
    shown = thumbnails(stored(changed, gone, web, grey_picture(30, 20), *[web] * 3))
    assert [each.note for each in shown[:2]] == ["changed picture", "missing picture"]
    assert "fetches nothing" in shown[2].note and not any(each.data for each in shown[:3])
    assert shown[3].data and (shown[3].width, shown[3].height) == (30, 20)
    assert shown[MOST].name == "3 more pictures"


@pytest.mark.parametrize("wanted", [True, False])
def test_the_page_shows_them_beside_the_tokens_unless_they_are_left_out(tmp_path: Path, wanted: bool) -> None:
    ones = np.ones(1, np.float32)
    label = Label(
        id="f:0:response:0:0", prompt_id="f:0", preference=None, response_index=0, reward=1.0, num_tokens=1,
        prompt=stored(saved(tmp_path, "a.png", picture("red", (40, 30)))), response="red", num_prompt_tokens=3,
        truncated=False, token_ids=[1], turn=0, token_logprobs=-ones, token_values=ones, token_rewards=ones, rubric=None,
        extra_info="{}", prompt_token_ids=[1, 2, 3],
    )  # fmt: skip
    drawn = str(draw_responses(labels_table([label]), lambda ids: ["red"] * len(ids), "r", wanted))
    assert "[picture 1] What is it?" in drawn and PLACEHOLDER not in drawn
    images = re.findall(r'<img src="data:image/jpeg;base64,[^"]+" alt="picture 1" width="40" height="30">', drawn)
    assert len(images) == wanted
    page = str(render("page", title="t", style="", pictures=wanted))
    assert ("img-src data:" in page) == wanted and "default-src 'none'" in page
    assert "img-src" not in str(render("page", title="of a page that never shows any", style=""))
