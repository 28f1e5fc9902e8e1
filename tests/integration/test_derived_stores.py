"""What is made of a finished store without a model: sweep, aggregate, export, report. Two runs of `label` serve them all."""

import glob
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny import CHATML, save_model

from jobs.stores.aggregate import aggregate
from jobs.stores.export import export
from jobs.stores.inspect_store import validate
from jobs.stores.redraw import redraw
from jobs.stores.sweep import sweep
from pipeline.config import RewardConfig
from pipeline.errors import ConfigError, StoreError
from pipeline.rewards.endogenous import action_values, token_rewards
from pipeline.rewards.endogenous import aggregate as aggregate_tokens
from pipeline.store import LabelStore, WriterLock
from pipeline.store.schema import read_messages

WANTED = ["reward.aggregation=discounted_sum", "reward.gamma=0.9"]
FAST = ("input.shard_rows=8", "run.num_cpus=2", "scorer.cpus_per_actor=1")


class Corpus(NamedTuple):
    """Pairs, one row that is an error, and prompts with three responses each."""

    model: Path
    sources: list[Path]
    store: Path  # labelled with the sum
    run: Callable[..., subprocess.CompletedProcess[str]]

    def label(self, output: Path, *assignments: str) -> subprocess.CompletedProcess[str]:
        flags = [word for source in self.sources for word in ("--input", source)]
        flags += [word for text in (*FAST, *assignments) for word in ("--set", text)]
        return self.run("label", "--model", self.model, *flags, "--output", output)


@pytest.fixture(scope="module")
def corpus(
    tmp_path_factory: pytest.TempPathFactory, on_one_ray: Callable[..., subprocess.CompletedProcess[str]]
) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    pairs = [{"prompt": f"Number {i}?", "chosen": "ab " * (1 + i % 5), "rejected": f"No {i}"} for i in range(20)]
    pairs[3]["rejected"] = ""
    several = [{"prompt": f"Name {i}!", "responses": [f"n{i}", "none at all", "cd"]} for i in range(3)]
    sources = [folder / "pairs.jsonl", folder / "several.jsonl"]
    for source, rows in zip(sources, (pairs, several), strict=True):
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = Corpus(save_model(folder / "model", CHATML), sources, folder / "sum", on_one_ray)
    ran = found.label(found.store)
    assert ran.returncode == 0, ran.stderr
    return found


def contents(store: Path) -> dict[str, bytes]:
    """Every file of a store that has to be the same whoever made it."""
    names = glob.glob("labels/*", root_dir=store) + glob.glob("errors/*", root_dir=store)
    names += glob.glob("records/*", root_dir=store)
    return {name: (store / name).read_bytes() for name in sorted(names)}


def test_an_aggregated_store_is_the_one_that_labelling_anew_makes(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, anew = tmp_path / "made", tmp_path / "anew"

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    commits: list[object] = []
    commit = sys.modules["jobs.stores.aggregate"].commit

    def commit_two(*arguments: object) -> object:
        commits.append(arguments)
        return commit(*arguments) if len(commits) <= 2 else killed()

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("jobs.stores.aggregate.commit", commit_two)
        aggregate(str(corpus.store), str(made), WANTED)
    assert not (made / "manifest.json").exists() and LabelStore(str(made)).progress().done_shards == 2
    untouched = {path: path.stat().st_mtime_ns for path in (made / "labels").iterdir()}

    assert aggregate(str(corpus.store), str(made), WANTED, command="endoreward aggregate") == 0
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in untouched.items())
    ran = corpus.label(anew, *WANTED)
    assert ran.returncode == 0, ran.stderr
    assert contents(made) == contents(anew) and any(name.startswith("errors/") for name in contents(made))
    assert validate(str(made)) == 0
    ours, theirs = (json.loads((store / "manifest.json").read_text()) for store in (made, anew))
    for key in ("fingerprint", "inputs", "counts", "errors", "summary"):
        assert ours[key] == theirs[key]
    assert ours["config"] | {"output": None} == theirs["config"] | {"output": None}
    assert ours["timing"] is None and ours["command"] == "endoreward aggregate"
    assert "Token by token" in (made / "report.html").read_text()

    again = corpus.label(made, *WANTED)
    assert again.returncode == 0 and "nothing to do" in again.stdout, again.stderr
    capsys.readouterr()
    assert aggregate(str(corpus.store), str(made), WANTED) == 0 and "nothing to do" in capsys.readouterr().out

    # The other way round, and by the plain loop.
    back = tmp_path / "back"
    assert aggregate(str(made), str(back), ["reward.aggregation=sum", "reward.gamma=1"]) == 0
    assert contents(back) == contents(corpus.store)
    wanted = RewardConfig(gamma=0.9, aggregation="discounted_sum")
    rewards = dict(zip(*(pq.read_table(made / "labels")[name].to_pylist() for name in ("id", "reward")), strict=True))
    for row in pq.read_table(corpus.store / "labels").to_pylist():
        r = token_rewards(action_values(row["token_rewards"], row["token_values"]), row["token_values"], 0.9)
        assert rewards[row["id"]] == pytest.approx(aggregate_tokens(r, row["token_values"], wanted), rel=1e-6)


def test_what_cannot_be_aggregated_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    store, output = str(corpus.store), str(tmp_path / "out")
    before = contents(corpus.store)
    for assignments, said in {
        "reward.alpha=0.5": "another alpha needs the model",
        "model.dtype=bfloat16": r"only reward\.\* can be set",
        "reward.gama=1": "no such field",
        "reward.min_weight=0.1": "What is not set stays as the store has it",
        "reward.gamma=1": "has this reward already",
    }.items():
        with pytest.raises(ConfigError, match=said):
            aggregate(store, output, [assignments])
    assert not os.path.exists(output)
    with pytest.raises(StoreError, match="the store that is read"):
        aggregate(store, os.path.relpath(store), ["reward.gamma=0.9"])
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("x")
    with pytest.raises(StoreError, match="holds something else"):
        aggregate(store, str(tmp_path / "thesis"), WANTED)
    with pytest.raises(StoreError, match="not a label store"):
        aggregate(output, str(tmp_path / "other"), WANTED)
    with WriterLock(output), pytest.raises(StoreError, match="being written by another driver"):
        aggregate(store, output, WANTED)

    part = sorted(glob.glob("labels/*", root_dir=store))[0]
    copy = tmp_path / "copy"
    shutil.copytree(store, copy)
    (copy / part).write_bytes(before[part][:-1])
    with pytest.raises(StoreError, match="is damaged; endoreward validate"):
        aggregate(str(copy), output, WANTED)
    next((copy / "records").glob("*-000000.json")).unlink()
    with pytest.raises(StoreError, match="is not finished: 3 of 4 shards"):
        aggregate(str(copy), output, WANTED)
    assert contents(corpus.store) == before


def test_a_sweep_says_what_each_aggregated_store_would(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = tmp_path / "sweep.json"
    assert sweep(str(corpus.store), gammas=(1.0, 0.9), output=str(figures)) == 0
    shown = capsys.readouterr().out
    found = json.loads(figures.read_text())
    assert (found["labels"], found["pairs"], found["complete"]) == (39 + 9, 19, True)
    assert len(found["rewards"]) == 5 and str(corpus.store) not in figures.read_text()
    for row in found["rewards"]:
        changed = [f"reward.{name}={value}" for name, value in row["reward"].items() if not isinstance(value, bool)]
        place = str(corpus.store)
        if not row["stored"]:
            place = str(tmp_path / f"{row['reward']['aggregation']}-{row['reward']['gamma']}")
            aggregate(str(corpus.store), place, changed)
        summary = json.loads(Path(place, "manifest.json").read_text())["summary"]
        assert (row["right"], row["ties"]) == (summary["pairs"]["right"], summary["pairs"]["ties"])
        assert row["margin_mean"] == pytest.approx(summary["pairs"]["margin"]["mean"], rel=1e-9)
        correlation = summary["length"]["reward_length_correlation"]
        assert row["reward_length_correlation"] == pytest.approx(correlation, rel=1e-9)
        assert bool(row["warnings"]) == (row["reward"]["aggregation"] == "sum" and row["reward"]["gamma"] != 1)
    best = max(row["right"] for row in found["rewards"] if not row["warnings"])
    assert all(row["highest"] == (row["right"] == best and not row["warnings"]) for row in found["rewards"])
    assert "flattered by the choice" in shown and "leaks" in shown and "stored" in shown
    with pytest.raises(StoreError, match="exists already"):
        sweep(str(corpus.store), output=str(figures))
    with pytest.raises(ConfigError, match=r"--gamma 1\.5: a discount is from 0 to 1"):
        sweep(str(corpus.store), gammas=(0.9, 1.5))

    copy = tmp_path / "unfinished"
    shutil.copytree(corpus.store, copy)
    next((copy / "records").glob("*-000000.json")).unlink()
    assert sweep(str(copy)) == 0
    assert "is not finished: 3 of 4 shards" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_an_export_holds_every_pair(
    corpus: Corpus, tmp_path: Path, ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / f"pairs.{ending}"
    assert export(str(corpus.store), "trl", str(output)) == 0
    text = output.read_text() if ending == "jsonl" else ""
    rows = [json.loads(line) for line in text.splitlines()] or pq.read_table(output).to_pylist()
    labels = {row["id"]: row for row in pq.read_table(corpus.store / "labels").to_pylist()}
    pairs = {row["prompt_id"]: row for row in rows}
    assert len(rows) == len(pairs) == 19 + 3 and os.listdir(output.parent) == [output.name]
    against = 0
    for i in set(range(20)) - {3}:
        row = pairs[f"pairs.jsonl:{i}"]
        chosen, rejected = (labels[f"pairs.jsonl:{i}:{side}:0:0"] for side in ("chosen", "rejected"))
        assert row["prompt"] == read_messages(chosen["prompt"]) and row["rubric"] is None
        for side, label in (("chosen", chosen), ("rejected", rejected)):
            assert row[side] == [{"role": "assistant", "content": label["response"]}]
            assert row[f"{side}_reward"] == label["reward"]
        assert row["margin"] == chosen["reward"] - rejected["reward"]
        against += row["margin"] < 0
    for i in range(3):
        rewards = [labels[f"several.jsonl:{i}:response:{k}:0"]["reward"] for k in range(3)]
        row = pairs[f"several.jsonl:{i}"]
        assert (row["chosen_reward"], row["rejected_reward"]) == (max(rewards), min(rewards))
        best = labels[f"several.jsonl:{i}:response:{np.argmax(rewards)}:0"]
        assert row["chosen"][0]["content"] == best["response"]
    said = capsys.readouterr().out
    assert f"19 pairs with the preference of the input; in {against} of them" in said
    assert "3 pairs of prompts without a known preference" in said and "1 prompts left out" in said

    with pytest.raises(StoreError, match="exists already"):
        export(str(corpus.store), "trl", str(output))
    with pytest.raises(ConfigError, match="unknown; there is trl, openrlhf, verl, axolotl"):
        export(str(corpus.store), "csv", str(output))
    with pytest.raises(ConfigError, match=r"has to end in \.parquet or \.jsonl"):
        export(str(corpus.store), "trl", str(tmp_path / "pairs.csv"))


def test_a_report_is_drawn_again(corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "store"
    shutil.copytree(corpus.store, store)
    before = (store / "report.html").read_text()
    (store / "report.html").unlink()
    assert redraw(str(store)) == 0
    assert (store / "report.html").read_text() == before

    manifest = json.loads((store / "manifest.json").read_text())
    manifest["config"]["model"]["name"] = str(tmp_path / "gone")
    (store / "manifest.json").write_text(json.dumps(manifest))
    capsys.readouterr()
    assert redraw(str(store)) == 0
    assert "its model was a folder" in capsys.readouterr().err
    number = pq.read_table(store / "labels")["token_ids"][0][0]
    assert f">{number}<" in (store / "report.html").read_text().replace("> ", ">")

    (store / "manifest.json").unlink()
    with pytest.raises(StoreError, match=r"no manifest\.json.*run its label command again"):
        redraw(str(store))
