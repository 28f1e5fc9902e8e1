"""`push` and `pull`: a store goes to a hub or a folder, and comes back whole; nothing of anybody else is lost on the way."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import small_hub
import yaml
from small_hub import TOKEN, Hub, Repository

from pipeline.report.dataset_card import is_untouched
from pipeline.store import LabelStore, documents, problems
from pipeline.store.manifest import Manifest

ROOT = Path(__file__).parents[2]
NAME = "org/soda"
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A finished store with labels and an error, whose documents name places of a machine."""
    folder = tmp_path / "store"
    shutil.copytree(ROOT / "tests/data/store-format-2", folder)
    [path] = (folder / "records").glob("input-*.json")
    content = documents.read(str(path))
    content["file"]["uri"] = "/home/jane/corpora/pairs.jsonl"
    documents.write(str(path), content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["config"]["model"]["name"] = "/home/jane/models/tiny"
    manifest["command"] = "endoreward label --model /home/jane/models/tiny --output s3://secret-bucket/x"
    manifest["inputs"][0]["uri"] = "/home/jane/corpora/pairs.jsonl"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "status.json").write_text('{"host": "janes-machine"}')
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with small_hub.serve(monkeypatch) as hub:
        yield hub


@pytest.fixture(params=["hub", "folder"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "folder":
        yield str(tmp_path / "published")
        return
    with small_hub.serve(monkeypatch):
        yield NAME


def same(store: Path, other: Path) -> None:
    """What counts is the same to the last bit, and whole."""
    assert list(problems(LabelStore(str(other)))) == []
    for name in ("labels", "errors", "records"):
        left, right = (
            {p.name: p.read_bytes() for p in (each / name).rglob("*") if p.is_file()} for each in (store, other)
        )
        assert left.keys() == right.keys()
        assert {n for n in left if left[n] != right[n]} <= {p.name for p in (store / "records").glob("input-*")}


def test_a_store_comes_back_as_it_was(store: Path, place: str, here: Run, tmp_path: Path) -> None:
    assert (done := here("push", store, "--to", place)).returncode == 0, done.stderr
    back = tmp_path / "back"
    assert (done := here("pull", place, "--output", back)).returncode == 0, done.stderr
    assert "whole; 16 labels" in done.stdout
    same(store, back)
    assert sorted(p.name for p in back.iterdir()) == ["errors", "labels", "manifest.json", "records"]
    manifest = Manifest.find(LabelStore(str(back)))
    assert manifest and manifest.summary == Manifest.find(LabelStore(str(store))).summary  # type: ignore[union-attr]
    assert (
        here("sweep", back).returncode
        == here("validate", back).returncode
        == here("push", back, "--to", place).returncode
        == 0
    )
    again = here("pull", place, "--output", back)
    assert again.returncode == 2 and "is not empty and is left as it is" in again.stderr


def test_the_card_is_read_by_a_hub_and_names_no_place(store: Path, here: Run, tmp_path: Path) -> None:
    from huggingface_hub import DatasetCard

    here("push", store, "--to", tmp_path / "d")
    text = (tmp_path / "d/README.md").read_text()
    card = DatasetCard(text)
    assert card.data.size_categories == "n<1K" and "endoreward" in card.data.tags
    configs = {each["config_name"]: each["data_files"] for each in yaml.safe_load(text.split("---")[1])["configs"]}
    assert configs == {"labels": "labels/*.parquet", "errors": "errors/*.parquet"}
    rows = {kind: pq.read_table(str(tmp_path / "d" / kind)).num_rows for kind in configs}
    assert rows == {"labels": 16, "errors": 1}
    fingerprint = LabelStore(str(store)).fingerprint()
    for words in (
        "Rewards of tiny",
        fingerprint,
        "| Accuracy | 100.0%",
        "## Biases",
        "at equal length",
        "| not_text | 1 |",
    ):
        assert words in text
    assert is_untouched(text) and not is_untouched(text.replace("tiny", "large"))
    everything = b"".join(p.read_bytes() for p in (tmp_path / "d").rglob("*") if p.is_file())
    assert not re.search(rb"/home/jane|secret-bucket|janes-machine", everything)


def test_a_new_dataset_is_private_and_a_commit_on_condition(store: Path, hub: Hub, here: Run) -> None:
    done = here("push", store, "--to", NAME)
    repository = hub.repositories[NAME]
    assert repository.private and "a new dataset, private" in done.stdout
    assert len(repository.commits) == 2 and len(hub.blobs) == 3
    assert here("push", store, "--to", f"hf://datasets/{NAME}").returncode == 0
    assert len(repository.commits) == 2, "nothing was new"
    assert here("push", store, "--to", "org/open", "--public").returncode == 0
    assert not hub.repositories["org/open"].private
    assert all(who is None for method, path, who in hub.requests if path.startswith("/storage/"))
    hub.before_commit = lambda: repository.add({**repository.commits[-1][1], "notes.md": b"by others"})
    del repository.commits[-1][1]["manifest.json"]  # so that there is something to commit
    late = here("push", store, "--to", NAME)
    assert late.returncode == 2 and "no manifest.json" in late.stderr
    repository.commits[-1][1]["manifest.json"] = json.dumps(json.loads((store / "manifest.json").read_text())).encode()
    late = here("push", store, "--to", NAME)
    assert late.returncode == 2 and "changed while it was written" in late.stderr
    assert here("push", store, "--to", NAME).returncode == 0
    assert repository.commits[-1][1]["notes.md"] == b"by others"


def test_the_token_is_the_environments_alone(
    store: Path, hub: Hub, here: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    outputs = [here("push", store, "--to", NAME)]
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "token").write_text(TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    count = len(hub.requests)
    outputs.append(here("pull", NAME, "--output", tmp_path / "back"))
    assert outputs[-1].returncode == 2 and "none that may be read from here" in outputs[-1].stderr
    outputs.append(here("push", store, "--to", "org/other"))
    assert outputs[-1].returncode == 2 and "put one into the environment, as HF_TOKEN" in outputs[-1].stderr
    assert all(who is None for _, _, who in hub.requests[count:])
    monkeypatch.setenv("HF_TOKEN", "hf_wr0ng")
    hub.repositories[NAME].private = False
    outputs.append(here("push", store, "--to", "org/other"))
    assert outputs[-1].returncode == 2 and "the hub refuses (401" in outputs[-1].stderr
    assert not any(TOKEN in each.stdout + each.stderr or "wr0ng" in each.stdout + each.stderr for each in outputs)
    assert here("pull", NAME, "--output", tmp_path / "back").returncode == 0, "what is public needs none"


def test_what_is_somebody_elses_is_refused(store: Path, place: str, here: Run, tmp_path: Path) -> None:
    """Another store, one of the same fingerprint with labels that this one lacks, and what is no store."""
    assert here("push", store, "--to", place).returncode == 0
    other = tmp_path / "other"
    shutil.copytree(store, other)
    run = documents.read(str(other / "records/run.json"))
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["inputs"][0]["sha256"] = "0" * 64
    (other / "manifest.json").write_text(json.dumps(manifest))
    refused = here("push", other, "--to", place)
    assert refused.returncode == 2 and "holds labels of pairs.jsonl that" in refused.stderr
    from pipeline.store import fingerprint

    description = run["description"] | {"reward.gamma": 0.5}
    digest = fingerprint.digest(description)
    documents.write(str(other / "records/run.json"), {"fingerprint": digest, "description": description})
    for path in (other / "records").glob("[0-9a-f]*-*.json"):
        documents.write(str(path), documents.read(str(path)) | {"fingerprint": digest})
    (other / "manifest.json").write_text(json.dumps(manifest | {"fingerprint": digest}))
    refused = here("push", other, "--to", place)
    assert (
        refused.returncode == 2 and "holds the labels of another store, of fingerprint ffd181259341" in refused.stderr
    )
    back = tmp_path / "back"
    assert here("pull", place, "--output", back).returncode == 0
    same(store, back)


def test_a_folder_of_something_else_is_refused(store: Path, here: Run, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/README.md").write_text("mine")
    refused = here("push", store, "--to", tmp_path / "d")
    assert refused.returncode == 2 and "holds something else (README.md)" in refused.stderr
    assert (tmp_path / "d/README.md").read_text() == "mine"
    refused = here("pull", tmp_path / "d", "--output", tmp_path / "back")
    assert (
        refused.returncode == 2 and "it has no records/run.json" in refused.stderr and not (tmp_path / "back").exists()
    )


def test_pictures_are_named_as_what_goes(store: Path, here: Run, tmp_path: Path) -> None:
    assert "name pictures" not in here("push", store, "--to", tmp_path / "text").stderr
    path = min((store / "records").glob("[0-9a-f]*-[0-9]*.json"))
    record = documents.read(str(path))
    record["stats"]["pictured"] = 3
    documents.write(str(path), record)
    done = here("push", store, "--to", tmp_path / "pictures")
    assert done.returncode == 0
    assert "3 labels name pictures of their prompts by place, and these paths go as they are" in done.stderr


def test_a_store_in_use_is_no_dataset(store: Path, here: Run, tmp_path: Path) -> None:
    """The store itself, and others of its fingerprint, which a push would strip of their places."""
    shutil.copytree(store, tmp_path / "other")
    (tmp_path / "other/status.json").rename(tmp_path / "other/.lock")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for to, name in ((store, "status.json"), (tmp_path / "other", ".lock")):
        refused = here("push", store, "--to", to)
        assert refused.returncode == 2 and f"{to} is a label store in use (it has {name})" in refused.stderr
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_an_older_copy_takes_no_labels_away(store: Path, place: str, here: Run) -> None:
    from jobs.stores.datasets import dataset_at

    assert here("push", store, "--to", place).returncode == 0
    dataset = dataset_at(place)
    dataset.files()
    manifest = json.loads(dataset.read("manifest.json"))
    newer = json.dumps(manifest | {"counts": manifest["counts"] | {"labels": 17}}).encode()
    for content, sentence in (
        (newer, r"holds 17 labels and \S+ 16, so it is newer, and they would go; pull it, or give another --to"),
        (b"{", r"manifest\.json is damaged: .*; give another --to"),
    ):
        dataset.files()
        dataset.change({"manifest.json": content}, [], "by hand", False)
        refused = here("push", store, "--to", place)
        assert refused.returncode == 2 and re.search(sentence, " ".join(refused.stderr.split()))
        dataset.files()
        assert dataset.read("manifest.json") == content


def test_an_edited_card_and_other_files_stay_and_stale_parts_go(
    store: Path, place: str, here: Run, tmp_path: Path
) -> None:
    """After `compact` the dataset has the merged files in place of the small ones."""
    from jobs.stores.datasets import dataset_at

    assert here("push", store, "--to", place).returncode == 0
    dataset = dataset_at(place)
    dataset.files()
    dataset.change({"README.md": b"---\ntags: [mine]\n---\nedited", "picture.png": b"p"}, [], "by hand", False)
    assert here("compact", store).returncode == 0
    done = here("push", store, "--to", place)
    assert done.returncode == 0 and "README.md was edited there, and stays" in done.stderr
    names = dataset.files()
    assert dataset.read("README.md").endswith(b"edited") and "picture.png" in names
    assert all("segment" in name for name in names if name.endswith(".parquet"))
    done = here("pull", place, "--output", tmp_path / "back")
    assert done.returncode == 0 and "1 files of the dataset are not of the store" in done.stdout
    same(store, tmp_path / "back")


def test_what_is_damaged_goes_neither_way(store: Path, place: str, here: Run, tmp_path: Path) -> None:
    from jobs.stores.datasets import dataset_at

    assert here("push", store, "--to", place).returncode == 0
    part = next((store / "labels").iterdir())
    data = bytearray(part.read_bytes())
    data[100] ^= 1
    dataset = dataset_at(place)
    dataset.files()
    dataset.change({f"labels/{part.name}": bytes(data)}, [], "by hand", False)
    done = here("pull", place, "--output", tmp_path / "back")
    assert done.returncode == 2 and f"{place} is not whole, and nothing is written: " in done.stderr
    assert "its checksum is not the recorded one" in done.stderr and not (tmp_path / "back").exists()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".endoreward")]
    part.write_bytes(data)
    done = here("push", store, "--to", place)
    assert done.returncode == 2 and "is not whole and stays where it is" in done.stderr


def test_what_a_hub_has_already_is_not_taken_for_new(store: Path, hub: Hub, here: Run) -> None:
    """A push that stopped before its commit has left an empty dataset; another's private one looks like none."""
    hub.repositories[NAME] = Repository(private=True)
    hub.repositories[NAME].add({".gitattributes": b""})
    done = here("push", store, "--to", NAME, "--public")
    assert done.returncode == 0 and "a new dataset, private" in done.stdout and hub.repositories[NAME].private
    assert f"{NAME} is there already and stays private: --public is for a new" in " ".join(done.stderr.split())
    hub.repositories["org/theirs"] = Repository(private=True, foreign=True)
    done = here("push", store, "--to", "org/theirs")
    assert done.returncode == 2 and "org/theirs is there already, and this token may not read it" in done.stderr


@pytest.mark.parametrize(
    ("status", "remedy"), [(500, "run the same again"), (429, "run the same again"), (400, "mend what it names")]
)
def test_a_hubs_own_words_and_what_helps(
    status: int, remedy: str, hub: Hub, store: Path, here: Run, tmp_path: Path
) -> None:
    """Nothing is said of commits: `pull` makes none, and of a push's own none can tell."""
    hub.ill = status
    for command in (["push", store, "--to", NAME], ["pull", NAME, "--output", tmp_path / "back"]):
        done = here(*command)
        assert done.returncode == 1
        assert f"{NAME}: the hub answers {status}: not now; {remedy}" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("to", "sentence"),
    [
        ("s3://bucket/x", "is neither a dataset on the hub, ORG/NAME, nor a local folder"),
        ("soda", "is neither a dataset"),
        ("hf://datasets/soda", "is no dataset on a hub"),
        ("docs/images", "give ./docs/images, or hf://datasets/docs/images"),
    ],
)
def test_places_that_are_none(store: Path, here: Run, to: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    done = here("push", store, "--to", to)
    assert done.returncode == 2 and sentence in done.stderr


def test_an_unfinished_store_and_a_hub_out_of_reach(
    store: Path, here: Run, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    done = here("push", store, "--to", NAME)
    assert done.returncode == 2 and "HF_HUB_OFFLINE is set" in done.stderr
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    done = here("push", store, "--to", NAME)
    assert done.returncode == 1 and "the hub gives no answer: " in done.stderr and "refused" in done.stderr
    (store / "manifest.json").unlink()
    done = here("push", store, "--to", tmp_path / "d")
    assert done.returncode == 2 and "has no manifest.json" in done.stderr


def test_a_revision_is_read_as_it_was(store: Path, hub: Hub, here: Run, tmp_path: Path) -> None:
    here("push", store, "--to", NAME)
    first = hub.repositories[NAME].commits[-1][0]
    here("compact", store)
    here("push", store, "--to", NAME)
    assert here("pull", NAME, "--output", tmp_path / "old", "--revision", first).returncode == 0
    assert not list((tmp_path / "old/labels").glob("part-segment-*")) and list(
        (store / "labels").glob("part-segment-*")
    )
    done = here("pull", tmp_path, "--output", tmp_path / "x", "--revision", first)
    assert done.returncode == 2 and "is a folder and has none" in done.stderr


@pytest.mark.slow
def test_a_store_in_a_bucket_is_published_as_one_on_a_disk(store: Path, s3: str, here: Run, tmp_path: Path) -> None:
    place = f"{s3}/store"
    documents.put_folder(str(store), place)
    assert (done := here("push", place, "--to", tmp_path / "d")).returncode == 0, done.stderr
    assert here("pull", tmp_path / "d", "--output", tmp_path / "back").returncode == 0
    same(store, tmp_path / "back")
    refused = here("pull", tmp_path / "d", "--output", f"{s3}/back")
    assert refused.returncode == 2 and "pull writes to a local folder" in refused.stderr
