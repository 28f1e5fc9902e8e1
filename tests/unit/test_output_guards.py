"""Files of others: whatever lies in an OUTPUT that is not this program's own stays, to the last byte."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import save_model

from pipeline.errors import StoreError
from pipeline.store import LabelStore, WriterLock, documents, places
from pipeline.store.places import EVALUATION, KINDS, RUN, SAMPLES, STORE

Cli = Callable[..., subprocess.CompletedProcess[str]]
RAY_LIST = json.dumps({"ray_version": "2.9", "checkpoint_results": []})

# name: files by their path, and what of them the refusal names
FOREIGN: dict[str, tuple[dict[str, str], str]] = {
    "folders only": ({"checkpoints/checkpoint-500/model.safetensors": "w"}, "checkpoints/"),
    "another Ray Train": (
        {
            "checkpoints/checkpoint_2026-01-01_00-00-00.000001/model.pt": "w",
            "checkpoints/checkpoint_manager_snapshot.json": RAY_LIST,
        },
        "checkpoints/",
    ),
    "rollouts": ({"rollouts/2026/a.parquet": "r"}, "rollouts/"),
    "figures": ({"figures/01-accuracy.svg": "<svg/>"}, "figures/"),
    "rewards": ({"rewards/mine.csv": "r"}, "rewards/"),
    "records": ({"records/2026/vinyl.txt": "r"}, "records/"),
    "records of nothing": ({"records/run.txt": "r"}, "records/"),
    "a store of others": ({"_store/data.db": "r"}, "_store/"),
    "labels": ({"labels/part-0.parquet": "l"}, "labels/"),
    "a model": ({"hf/config.json": "{}", "hf/model.safetensors": "w"}, "hf/"),
    "an empty folder": ({"experiments/": ""}, "experiments/"),
    "a hidden file": ({".env": "KEY=1"}, ".env"),
    "a hidden folder": ({".cache/x": "1"}, ".cache/"),
    "a git repository": ({".git/HEAD": "ref: refs/heads/main", ".gitignore": "out"}, "a git repository"),
    "a home directory": ({".bashrc": "alias", ".ssh/id": "k", "Documents/a.txt": "a"}, "a home directory"),
    "another program's run": ({"run.json": '{"id": 7}', "metrics.jsonl": '{"step": 1}\n'}, "run.json"),
    "a list as its run": ({"run.json": "[1]"}, "run.json"),
    "another evaluation": ({"evaluation.json": '{"f1": 0.5}', "results.json": "{}"}, "evaluation.json"),
    "another's records": ({"records/run.json": "{}", "labels/a": "1"}, "records/"),
    "another's samples": ({"samples-00000-a.jsonl": "{}\n", "_samples.json": "{}"}, "_samples.json"),
    "metrics": ({"metrics.jsonl": '{"step": 1}\n', "report.html": "<p>"}, "metrics.jsonl"),
    "a lock of others": ({".lock": "held by me"}, ".lock"),
    "a temporary of others": ({".run.json.1.tmp": "half"}, ".run.json.1.tmp"),
    "a link to nothing": ({"model -> /nowhere": ""}, "model"),
    "a disk with a file": ({"lost+found/": "", "photo.jpg": "p"}, "photo.jpg"),
    "a folder of that name": ({".DS_Store/x": "1"}, ".DS_Store/"),
}
FREE = {
    "nothing": {},
    "a new disk": {"lost+found/": ""},
    "looked at": {".DS_Store": "d", ".directory": "d", "desktop.ini": "d", "Thumbs.db": "d"},
    "killed as it locked": {".lock": ""},
    "killed as it began": {".lock": '{"host": "h", "pid": 1, "since": "2026-01-01T00:00:00Z"}'},
}
OF = {"label": STORE, "aggregate": STORE, "evaluate": EVALUATION, "sample": SAMPLES, "train": RUN, "rl": RUN}


def lay(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        name, _, target = name.partition(" -> ")
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if target:
            path.symlink_to(target)
        elif name.endswith("/"):
            path.mkdir(exist_ok=True)
        else:
            path.write_text(text)
    return folder


def contents(folder: Path) -> dict[str, Any]:
    """Everything below a folder, with each file's bytes and each link's target."""
    return {
        str(path.relative_to(folder)): os.readlink(path)
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What each command needs beside its OUTPUT."""
    folder = tmp_path_factory.mktemp("given")
    model = save_model(folder / "model")
    pairs = folder / "pairs.jsonl"
    pairs.write_text('{"prompt": "q", "chosen": "a", "rejected": "b"}\n')
    return {
        "label": ["label", "--model", model, "--input", pairs],
        "aggregate": ["aggregate", folder / "store", "--set", "reward.aggregation=mean"],
        "evaluate": ["evaluate", "--benchmark", "pairs", "--model", model, "--input", pairs],
        "sample": ["sample", "--policy", model, "--prompts", pairs],
        "train": ["train", "--labels", folder / "store", "--policy", model],
        "rl": ["rl", "--policy", model, "--prompts", pairs, "--set", "rl.keep_rollouts=true"],
    }


@pytest.mark.parametrize("command", OF)
@pytest.mark.parametrize("foreign", FOREIGN)
def test_a_foreign_folder_is_refused_and_left_as_it_is(
    command: str, foreign: str, given: dict[str, list[Any]], tmp_path: Path, here: Cli
) -> None:
    files, names = FOREIGN[foreign]
    output = lay(tmp_path / "out", files)
    before = contents(output)
    ran = here(*given[command], "--output", output)
    assert ran.returncode == 2, ran.stderr
    assert contents(output) == before
    assert names in ran.stderr and str(output) in ran.stderr and "give" in ran.stderr and "Traceback" not in ran.stderr


@pytest.mark.parametrize("command", ["label", "train", "rl"])
def test_a_dry_run_refuses_what_the_run_would(
    command: str, given: dict[str, list[Any]], tmp_path: Path, here: Cli
) -> None:
    output = lay(tmp_path / "out", {"thesis.tex": "x"})
    ran = here(*given[command], "--output", output, "--dry-run")
    assert ran.returncode == 2 and "thesis.tex" in ran.stderr


@pytest.mark.parametrize("command", ["report", "status", "validate"])
@pytest.mark.parametrize("foreign", FOREIGN)
def test_nothing_is_drawn_into_a_foreign_folder(command: str, foreign: str, tmp_path: Path, here: Cli) -> None:
    output = lay(tmp_path / "out", FOREIGN[foreign][0])
    before = contents(output)
    ran = here(command, output)
    assert ran.returncode in ((2, 1) if command == "validate" else (2,)) and "Traceback" not in ran.stderr, ran.stderr
    assert contents(output) == before


@pytest.mark.parametrize("command", ["export", "sweep"])
def test_a_file_is_not_written_over(command: str, tmp_path: Path, here: Cli) -> None:
    store = LabelStore(str(tmp_path / "store"))
    store.open_for_writing({"reward.alpha": 1.0, "reward.gamma": 1.0, "reward.aggregation": "sum"})
    mine = tmp_path / "mine.parquet"
    mine.write_text("mine")
    ran = here(command, store.uri, *(["--format", "trl"] if command == "export" else []), "--output", mine)
    assert ran.returncode == 2 and f"{mine} exists already" in ran.stderr and mine.read_text() == "mine"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("free", FREE)
def test_an_empty_folder_may_hold_what_nobody_put_there(kind: places.Kind, free: str, tmp_path: Path) -> None:
    files = dict(FREE[free])
    if free == "killed as it began":
        *folders, name = kind.document
        files["/".join([*folders, f".{name}.{'a' * 32}.tmp"])] = "half"
    assert places.check(str(lay(tmp_path / "out", files)), kind) is False
    assert places.check(str(tmp_path / "new"), kind) is False


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_folder_is_of_one_kind(kind: places.Kind, tmp_path: Path) -> None:
    documents.create(str(tmp_path.joinpath(*kind.document)), dict.fromkeys(kind.fields, "x"))
    lay(tmp_path, {"notes.txt": "a person may keep notes beside"})
    assert places.check(str(tmp_path), kind)
    for other in KINDS:
        if other is not kind:
            with pytest.raises(StoreError, match=f"holds something else .*: it is {kind.name}"):
                places.check(str(tmp_path), other)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_damaged_document_is_no_proof(kind: places.Kind, tmp_path: Path) -> None:
    place = tmp_path.joinpath(*kind.document)
    documents.create(str(place), dict.fromkeys(kind.fields, "x"))
    place.write_bytes(place.read_bytes().replace(b"x", b"y", 1))
    before = contents(tmp_path)
    with pytest.raises(StoreError, match="is damaged, or was not written by this program"):
        places.check(str(tmp_path), kind)
    assert contents(tmp_path) == before


def test_an_output_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(StoreError, match="is a file"):
        places.check(str(tmp_path / "thesis.tex"), RUN)


def test_a_lock_of_another_program_is_not_taken(tmp_path: Path) -> None:
    lay(tmp_path, {".lock": "12345"})
    with pytest.raises(StoreError, match="was not written by this program"), WriterLock(str(tmp_path)):
        pass
    assert (tmp_path / ".lock").read_text() == "12345"


def test_only_what_a_store_recorded_is_discarded(tmp_path: Path) -> None:
    """Where another run takes the place of one that kept rollouts."""
    lay(tmp_path / "rollouts", {"labels/mine.parquet": "m", "notes.txt": "n"})
    before = contents(tmp_path)
    store = LabelStore(str(tmp_path / "rollouts"))
    store.discard()
    assert contents(tmp_path) == before, "it is no store"
    documents.create(store.at("records", "run.json"), {"description": {}, "fingerprint": "f"})
    store.discard()
    assert contents(tmp_path) == before


@pytest.mark.parametrize("command", ["train", "rl"])
def test_a_run_is_not_written_over_what_it_reads(
    command: str, given: dict[str, list[Any]], tmp_path: Path, here: Cli
) -> None:
    """Rollouts of a run without a checkpoint would be discarded as another takes its place, which is to learn from them."""
    output = tmp_path / "out"
    begun = {
        "created": "2026-01-01T00:00:00+00:00",
        "objective": "dpo",
        "config": {},
        "policy": {"name": "m"},
        "steps": 2,
    }
    documents.create(str(output / "run.json"), begun | {"description": {}, "fingerprint": "f"})
    documents.create(str(output / "rollouts/records/run.json"), {"description": {}, "fingerprint": "f"})
    lay(output, {"rollouts/labels/part.parquet": "p"})
    before = contents(output)
    own = {"train": ["--labels", output / "rollouts"], "rl": ["--set", f"rl.replay={output}/rollouts"]}[command]
    ran = here(*given[command], *own, "--output", output)
    assert ran.returncode == 2 and "and write over it" in ran.stderr and contents(output) == before
