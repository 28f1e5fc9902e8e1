"""What a label store has of pictures: digests and places, never pixels; and what changed since is found."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_store import DESCRIPTION, commit_all, contents, rows_of, shards_of, store

from jobs.label.label_run import _require_same_pictures
from jobs.stores.compact import compact
from pipeline.corpus.pictures import Picture, read_picture
from pipeline.corpus.sources import row_place
from pipeline.errors import StoreError
from pipeline.store import LabelStore, Record, commit, fingerprint, problems
from pipeline.store.schema import read_messages, stored_messages
from pipeline.store.store import StoredInput

__all__ = ["store"]  # the fixture


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def pictures(store: LabelStore, tmp_path: Path) -> list[Picture]:
    """A finished store: each prompt has a picture in a file of its own and one that lies in its row."""
    own = []
    for row in range(6):
        (tmp_path / f"{row}.png").write_bytes(png(f"#0{row}0000"))
        own.append(Picture(png(f"#0{row}0000"), str(tmp_path / f"{row}.png")))

    def pictured() -> None:
        for shard in shards_of(store):
            labels, failures = rows_of(shard)
            for number, label in enumerate(labels):
                row = int(label.prompt_id.rpartition(":")[2])
                inside = Picture(png("white"), row_place(str(tmp_path / "rows.jsonl"), row, "image", 0))
                asked = {"role": "user", "content": "\ufffc\ufffc?", "pictures": [own[row], inside]}
                labels[number] = replace(label, prompt=[{"role": "system", "content": "Look."}, asked])
            commit(store.uri, shard, fingerprint.digest(DESCRIPTION), 0, labels, failures)

    pictured()
    return own


def test_a_store_holds_digest_and_place_and_no_pixel(store: LabelStore, pictures: list[Picture]) -> None:
    assert list(problems(store)) == []
    label = pq.read_table(Path(store.uri, "labels")).to_pylist()[0]
    system, user = read_messages(label["prompt"])
    assert "pictures" not in system and user["content"] == "\ufffc\ufffc?"
    assert user["pictures"][0] == {"digest": pictures[0].digest, "place": pictures[0].place}  # type: ignore[comparison-overlap]
    assert read_picture(**user["pictures"][0]) == pictures[0]  # type: ignore[arg-type]
    assert stored_messages([system, user]) == label["prompt"], "and so they are stored again"
    assert not any(png("white")[8:] in data for data in contents(store).values())
    assert [record.stats.pictured for record in store.records()] == [3, 3, 3]


def test_a_store_of_text_is_what_it_was(store: LabelStore) -> None:
    commit_all(store)
    for record in store.records():
        assert "pictured" not in record.to_json()["stats"]
        assert Record.parse(json.loads(json.dumps(record.to_json())), "r") == record
    assert not list(store.changed_pictures())


def test_compacted_the_pictures_are_still_there(store: LabelStore, pictures: list[Picture]) -> None:
    assert compact(store.uri) == 0
    assert list(problems(store)) == [] and sum(record.stats.pictured for record in store.records()) == 9


def test_a_changed_picture_is_found(store: LabelStore, pictures: list[Picture]) -> None:
    [stored] = store.inputs()
    inputs = [StoredInput(stored.file, stored.format, replace(stored.shape, pictured=True), stored.plan)]
    _require_same_pictures(store, inputs)
    Path(pictures[3].place).unlink()  # out of reach is not another
    assert list(problems(store)) == []
    Path(pictures[2].place).write_bytes(png("black"))
    assert list(problems(store)) == [f"{pictures[2].place}: the picture changed since it was labelled"]
    with pytest.raises(StoreError, match="restore it, or label the new pictures into another --output"):
        _require_same_pictures(store, inputs)
    data = bytearray(pictures[2].data)
    data[-20] ^= 1  # one bit
    Path(pictures[2].place).write_bytes(data)
    assert len(list(problems(store))) == 1
    Path(pictures[2].place).write_bytes(pictures[2].data)
    assert list(problems(store)) == []
