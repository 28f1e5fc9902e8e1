"""On a disk that is full, a real one: what was there stays whole, what is said names the disk, and with room it goes on."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from label_stores import label_store
from small_disk import leave, make_room, small_disk
from tiny import save_model

from pipeline.errors import RunError
from pipeline.store import LabelStore, documents, problems
from pipeline.training.metrics import MetricsFile, read_metrics

BIG = bytes(64 * 1024)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk") as folder:
        yield folder


def write_whole(place: str) -> None:
    with documents.whole_file(place) as path:
        Path(path).write_bytes(BIG)


def append(place: str) -> None:
    with MetricsFile(place) as file:
        for step in range(1, 4000):
            file.append({"step": step, "loss": 0.5})


WRITERS: dict[str, tuple[Callable[[str], object], str]] = {
    "a document": (lambda place: documents.write(place, {"a": "x" * len(BIG)}), "the disk that holds .* is full"),
    "a new document": (lambda place: documents.create(place, {"a": "x" * len(BIG)}), "the disk that holds .* is full"),
    "a large file": (write_whole, "the disk that holds .* is full"),
    "metrics": (append, "cannot write .*: No space left on device; mend it"),
}


@pytest.mark.parametrize("name", [*WRITERS])
def test_nothing_is_there_by_halves(disk: Path, name: str) -> None:
    write, said = WRITERS[name]
    (disk / "before").write_bytes(b"kept")
    leave(disk, 16)
    place = disk / "out" / "file"
    place.parent.mkdir()
    with pytest.raises(RunError, match=said):
        write(str(place))
    if name == "metrics":  # a row is there, or it is not; the last may be cut off, and is left out
        assert [row["step"] for row in read_metrics(str(place))] == list(range(1, 1 + len(read_metrics(str(place)))))
    else:
        assert list(place.parent.iterdir()) == []
    assert (disk / "before").read_bytes() == b"kept"
    make_room(disk)
    place.unlink(missing_ok=True)
    write(str(place))
    assert place.stat().st_size > 16 * 1024


def test_a_store_goes_on_where_its_disk_was_full(disk: Path, tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    rows = [{"prompt": f"Number {i}?", "chosen": f"good {i}", "rejected": "bad"} for i in range(12)]
    leave(disk, 48)  # room for its documents and some parts
    with pytest.raises(RunError, match=r"the disk that holds .* is full; nothing is lost"):
        label_store(disk / "store", model, rows)
    begun = LabelStore(str(disk / "store")).progress()
    assert 0 < begun.done_rows < 12
    make_room(disk)
    store = label_store(disk / "store", model, rows)
    quiet = label_store(tmp_path / "store", model, rows)
    assert store.progress().complete and list(problems(store)) == []
    mine, due = (pq.read_table(f"{each.uri}/labels").sort_by("id") for each in (store, quiet))
    assert mine.num_rows == 24 and mine.equals(due)
