"""The label command as a user runs it, on a real local Ray."""

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT
from safetensors.numpy import load_file, save_file
from tiny import CHATML, save_model

from jobs.cluster import cluster
from pipeline.config import ClusterConfig, RewardConfig
from pipeline.rewards.endogenous import action_values, aggregate, token_rewards

Cli = Callable[..., subprocess.CompletedProcess[str]]
FAST = ("--set", "run.num_cpus=2", "--set", "scorer.cpus_per_actor=1")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), CHATML)


def rows(store: Path, kind: str = "labels") -> list[dict[str, Any]]:
    return pq.read_table(store / kind).sort_by("id").to_pylist()


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return path


PAIR = {"prompt": "What is it?", "chosen": "This.", "rejected": "That."}


class Labelled(NamedTuple):
    """A store, how it was made, and what another command was told that wanted to write it meanwhile."""

    source: Path
    store: Path
    process: int
    ran: subprocess.CompletedProcess[str]
    second: subprocess.CompletedProcess[str]
    seconds: float  # that the command took


@pytest.fixture(scope="module")
def labelled(model: Path, tmp_path_factory: pytest.TempPathFactory, here: Cli) -> Labelled:
    folder = tmp_path_factory.mktemp("labelled")
    source, store = folder / "a.jsonl", folder / "out"
    write(source, *[{**PAIR, "prompt": rf"Number {i}? \[/b] [red]", "source": "test"} for i in range(20)])
    arguments = ["label", "--model", str(model), "--input", str(source), "--output", str(store), *FAST]
    started = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-m", "jobs", *arguments], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as first:
        try:
            while not list(store.glob("records/run.json")):  # which is written before Ray starts
                assert first.poll() is None, first.stderr and first.stderr.read()
                time.sleep(0.05)
            second = here(*arguments)
        finally:
            out, err = first.communicate(timeout=240)
    seconds = time.monotonic() - started
    return Labelled(
        source, store, first.pid, subprocess.CompletedProcess(arguments, first.returncode, out, err), second, seconds
    )


def test_two_drivers_on_one_store(labelled: Labelled) -> None:
    assert labelled.second.returncode == 2 and f"process {labelled.process}" in labelled.second.stderr
    assert labelled.ran.returncode == 0 and len(rows(labelled.store)) == 40
    assert " INFO " not in labelled.ran.stderr and "streaming_executor" not in labelled.ran.stderr  # Ray's chatter


def test_label_resume_refuse_validate(
    model: Path, labelled: Labelled, tmp_path: Path, here: Cli, on_one_ray: Cli
) -> None:
    ran, source, store = labelled.ran, tmp_path / "a.jsonl", tmp_path / "out"
    shutil.copy2(labelled.source, source)
    shutil.copytree(labelled.store, store)
    assert ran.returncode == 0, ran.stderr
    assert "prompt + chosen + rejected" in ran.stdout and "|" in ran.stdout and "Accuracy" in ran.stdout
    labels = rows(store)
    assert len(labels) == 40 and json.loads(labels[0]["extra_info"]) == {"source": "test"}
    for label in labels:
        assert label["reward"] == pytest.approx(sum(label["token_rewards"]), rel=1e-12)
        telescoped = label["token_values"][0] + sum(label["token_logprobs"])
        assert label["reward"] == pytest.approx(telescoped, abs=1e-4)
    manifest = json.loads((store / "manifest.json").read_text())
    assert manifest["counts"] == {"rows": 20, "responses": 40, "labels": 40, "errors": 0, "shards": 1}
    assert manifest["summary"]["pairs"]["pairs"] == 20
    timing = manifest["timing"]
    assert 0 < timing["score_seconds"] <= timing["seconds"] <= labelled.seconds  # of one actor, within the command's
    report = (store / "report.html").read_text()
    assert "<svg" in report and "http://" not in report.replace("http://www.w3.org", "")

    again = here("label", "--model", model, "--input", source, "--output", store, *FAST)
    assert again.returncode == 0 and "nothing to do" in again.stdout

    other = here("label", "--model", model, "--input", source, "--output", store, "--set", "reward.alpha=0.5", *FAST)
    assert other.returncode == 2 and "reward.alpha: the store has 1.0, this run 0.5" in other.stderr
    template = here("label", "--model", model, "--input", source, "--output", store, "--set", "tokens.template=none")
    assert template.returncode == 2 and "tokens.template" in template.stderr
    weights = save_model(tmp_path / "other", CHATML, seed=1)
    refused = here("label", "--model", weights, "--input", source, "--output", store)
    assert refused.returncode == 2 and "model.content" in refused.stderr

    assert here("validate", store).returncode == 0
    assert "complete" in here("status", store).stdout

    more = write(tmp_path / "b.jsonl", PAIR)
    added = on_one_ray("label", "--model", model, "--input", source, "--input", more, "--output", store, *FAST)
    assert added.returncode == 0 and len(rows(store)) == 42

    source.write_text(source.read_text().replace("Number 3?", "Number 4?"))
    changed = here("label", "--model", model, "--input", source, "--output", store)
    assert changed.returncode == 2 and "content changed" in changed.stderr and "a.jsonl" in changed.stderr
    part = next((store / "labels").glob("*.parquet"))
    part.write_bytes(part.read_bytes()[:-1])
    broken = here("validate", store)
    assert broken.returncode == 1 and "damaged" in broken.stdout


def test_bad_rows_become_error_rows_and_the_rest_is_labelled(
    model: Path, tmp_path: Path, here: Cli, on_one_ray: Cli
) -> None:
    """Every kind of bad row in one corpus, each with its reason and its place."""
    bad = {
        "not_json": "{this is not JSON",
        "missing_column": {"prompt": "x", "chosen": "y"},
        "empty_response": {**PAIR, "rejected": ""},
        "null": {**PAIR, "rejected": None},
        "prompt_too_long": {**PAIR, "prompt": "long " * 200},
        "lone_surrogate": {**PAIR, "rejected": "\ud800"},
        "not_text": {**PAIR, "rejected": 12},
        "missing_column ": {"\ud800x": 1},  # its message quotes the half character
    }
    huge = {**PAIR, "chosen": "a" * 5_000_000}  # a 5 MB line is no error: its response is cut to fit
    source = write(tmp_path / "bad.jsonl", PAIR, *bad.values(), huge, PAIR, PAIR)
    store = tmp_path / "out"
    ran = on_one_ray("label", "--model", model, "--input", source, "--output", store, *FAST)
    assert ran.returncode == 0, ran.stderr
    errors = {(e["row"], e["reason"]): e for e in rows(store, "errors")}
    assert {(1 + i, reason.strip()) for i, reason in enumerate(bad)} <= errors.keys()
    for error in errors.values():
        assert error["file"] == "bad.jsonl" and len(error["detail"]) > 10
    good = {label["id"]: label for label in rows(store)}
    assert {f"bad.jsonl:{row}:{p}:0:0" for row in (0, 9, 10, 11) for p in ("chosen", "rejected")} <= good.keys()
    assert good["bad.jsonl:9:chosen:0:0"]["truncated"] and good["bad.jsonl:9:chosen:0:0"]["response"] == huge["chosen"]
    assert good["bad.jsonl:10:chosen:0:0"]["reward"] == good["bad.jsonl:11:chosen:0:0"]["reward"]  # duplicate rows stay
    assert not good.keys() & {e["id"] for e in errors.values()}
    assert re.search(r"not_json +1", ran.stdout)
    assert here("validate", store).returncode == 0

    retried = on_one_ray("label", "--model", model, "--input", source, "--output", store, "--retry-errors", *FAST)
    assert retried.returncode == 0 and here("validate", store).returncode == 0
    record = next(p for p in (store / "records").glob("*-000000.json"))
    assert json.loads(record.read_text())["generation"] == 1
    assert {label["id"]: label for label in rows(store)} == good


def refusals(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    """Inputs that cannot be used at all, and what must be said of each."""
    whole = gzip.compress(b"".join(json.dumps({**PAIR, "n": i}).encode() + b"\n" for i in range(3000)))
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "cut.json").write_text(json.dumps([PAIR, PAIR])[:-20])
    write(tmp_path / "odd.jsonl", {"left": "x", "right": "y"})
    write(tmp_path / "garbage.jsonl", "this", "is not", "JSON")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "empty").mkdir()
    said = {
        "cut.jsonl.gz": "cannot be read",
        "empty.jsonl": "no rows",
        "cut.json": "breaks after",
        "odd.jsonl": "left",
        "garbage.jsonl": "JSON",
        "bad.parquet": "cannot be read",
        "empty": "empty",
        "absent.jsonl": "absent.jsonl",
    }
    return {name: (tmp_path / name, words) for name, words in said.items()}


def test_unusable_input_is_refused_before_anything_starts(model: Path, tmp_path: Path, cli: Cli, here: Cli) -> None:
    for name, (path, words) in refusals(tmp_path).items():
        store = tmp_path / "out" / name
        run = cli if name == "garbage.jsonl" else here
        ran = run("label", "--model", model, "--input", path, "--output", store)
        assert ran.returncode == 2, (name, ran.stderr)
        assert words in ran.stderr and name in ran.stderr and "Traceback" not in ran.stderr, (name, ran.stderr)
        assert not (store / "labels").exists()


def test_a_wrong_key_names_the_columns(model: Path, tmp_path: Path, here: Cli) -> None:
    source = write(tmp_path / "a.jsonl", {"left": "x", "right": "y"})
    ran = here(
        "label", "--model", model, "--input", source, "--output", tmp_path / "o", "--set", "input.prompt_key=lift"
    )
    assert ran.returncode == 2 and "lift" in ran.stderr and "left" in ran.stderr
    ran = here(
        "label", "--model", model, "--input", source, "--output", tmp_path / "o", "--dry-run",
        "--set", "input.prompt_key=left", "--set", "input.response_key=right", "--tokens-per-second", "9", "--price", "2",
    )  # fmt: skip
    assert (
        ran.returncode == 0
        and "Tokens to forward" in ran.stdout
        and "at 2 an actor's hour" in ran.stdout
        and not (tmp_path / "o").exists()
    )


def test_unusable_models(tmp_path: Path, here: Cli, on_one_ray: Cli) -> None:
    source = write(tmp_path / "a.jsonl", PAIR)
    empty = tmp_path / "empty"
    empty.mkdir()
    damaged = save_model(tmp_path / "damaged", CHATML)
    (damaged / "config.json").write_text("{")
    for folder in (tmp_path / "absent", empty, damaged):
        ran = here("label", "--model", folder, "--input", source, "--output", tmp_path / "out")
        assert ran.returncode == 2 and str(folder) in ran.stderr and "Traceback" not in ran.stderr, ran.stderr
    partial = save_model(tmp_path / "partial", CHATML)
    tensors = load_file(partial / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, partial / "model.safetensors", metadata={"format": "pt"})
    ran = on_one_ray("label", "--model", partial, "--input", source, "--output", tmp_path / "out1", *FAST)
    assert ran.returncode == 1 and "model.norm.weight" in ran.stderr and "Traceback" not in ran.stderr, ran.stderr
    assert not (tmp_path / "out1/manifest.json").exists()
    weightless = save_model(tmp_path / "weightless", CHATML)
    os.truncate(weightless / "model.safetensors", 100)
    ran = here("label", "--model", weightless, "--input", source, "--output", tmp_path / "out2", *FAST)
    assert ran.returncode == 2 and str(weightless) in ran.stderr and "Traceback" not in ran.stderr, ran.stderr


def test_an_output_that_holds_something_else(model: Path, tmp_path: Path, here: Cli) -> None:
    source = write(tmp_path / "a.jsonl", PAIR)
    ran = here("label", "--model", model, "--input", source, "--output", tmp_path)
    assert ran.returncode == 2 and "holds something else" in ran.stderr
    (tmp_path / "foreign/labels").mkdir(parents=True)
    ran = here("label", "--model", model, "--input", source, "--output", tmp_path / "foreign")
    assert ran.returncode == 2 and "holds something else (labels/)" in ran.stderr
    for place in ("/proc/nowhere", "abc://x/y"):
        ran = here("label", "--model", model, "--input", source, "--output", place)
        assert ran.returncode == 2 and place.partition("/x")[0] in ran.stderr, ran.stderr
        assert "Traceback" not in ran.stderr, ran.stderr


@pytest.mark.slow
@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("mount"), reason="a full disk needs root, to mount a small one"
)
def test_a_full_disk(model: Path, tmp_path: Path, here: Cli, on_one_ray: Cli) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=192k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("this machine does not let tests mount a disk")
    source = write(
        tmp_path / "a.jsonl", *[{**PAIR, "chosen": f"{np.random.default_rng(i).bytes(80).hex()}"} for i in range(600)]
    )
    arguments = ("label", "--model", model, "--input", source, "--output", disk / "out", "--set", "input.shard_rows=50")
    try:
        ran = on_one_ray(*arguments, *FAST)
        assert ran.returncode == 1 and "full" in ran.stderr and "Traceback" not in ran.stderr, ran.stderr
        for part in (disk / "out" / "labels").glob("*.parquet"):
            pq.read_table(part)
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        assert on_one_ray(*arguments, *FAST).returncode == 0
        assert len(rows(disk / "out")) == 1200 and here("validate", disk / "out").returncode == 0
    finally:
        subprocess.run(["umount", disk], check=True)


def test_rubrics_turns_and_formats_in_one_run(model: Path, tmp_path: Path, here: Cli, on_one_ray: Cli) -> None:
    """A folder of Parquet, gzip and a JSON array; two rubrics; every assistant turn."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    talk = [
        {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "bye"}, {"role": "assistant", "content": "see you"},
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist([{"messages": talk}] * 3), folder / "a.parquet")
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(json.dumps(PAIR).encode() + b"\n"))
    (folder / "c.json").write_text(json.dumps([{"query": "q", "responses": {"law": "a", "art": "b"}}]))
    (tmp_path / "rubrics.toml").write_text('brief = "Be brief."\nkind = "Be kind."\n')
    ran = on_one_ray(
        "label", "--model", model, "--input", folder, "--output", tmp_path / "out", *FAST,
        "--set", f"tokens.rubrics={tmp_path / 'rubrics.toml'}", "--set", "input.turns=all",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    labels = rows(tmp_path / "out")
    assert len(labels) == 2 * (3 * 2 + 2 + 2)
    assert {label["turn"] for label in labels if label["prompt_id"] == "a.parquet:0"} == {0, 1}
    assert labels[0]["prompt"][0]["role"] == "system" and labels[0]["rubric"] in ("brief", "kind")
    named = {json.loads(label["extra_info"])["response_key"] for label in labels if label["prompt_id"] == "c.json:0"}
    assert named == {"law", "art"}
    assert here("validate", tmp_path / "out").returncode == 0


def test_a_ray_that_is_there_already_is_used_and_left_running(on_one_ray: Cli) -> None:
    import ray

    if not ray.is_initialized():  # else by a test before
        ray.init(address="local", num_cpus=2, include_dashboard=False)
    before = ray.get_runtime_context().get_node_id()
    with cluster(ClusterConfig(num_cpus=1)):
        assert ray.get_runtime_context().get_node_id() == before
    assert ray.is_initialized() and ray.get_runtime_context().get_node_id() == before


@pytest.mark.slow
def test_soda_chat(shared: Path, tmp_path: Path, on_one_ray: Cli) -> None:
    """Pairs right on real dialogues: `sum` as labelled, the others from the stored tokens of the same store."""
    ran = on_one_ray(
        "label", "--model", shared / "models/soda-chat-3M", "--input", shared / "data/soda-chat/preferences.jsonl",
        "--output", tmp_path / "out",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["summary"]["pairs"]["right"] == 244 and manifest["counts"]["labels"] == 800
    assert re.search(r"Correlation of reward and length +-0\.70", ran.stdout)
    labels = rows(tmp_path / "out")

    def right(**reward: Any) -> int:
        config = RewardConfig(**reward)
        scores = {}
        for label in labels:
            q = action_values(label["token_rewards"], label["token_values"], gamma=1.0)
            rewards = token_rewards(q, label["token_values"], config.gamma)
            scores[label["prompt_id"], label["preference"]] = aggregate(rewards, label["token_values"], config)
        return sum(scores[p, "chosen"] > scores[p, "rejected"] for p, kind in scores if kind == "chosen")

    assert right() == 244
    assert right(aggregation="mean") == 298
    assert [right(aggregation="discounted_sum", gamma=g) for g in (0.99, 0.95, 0.9, 0.8)] == [249, 267, 293, 313]


@pytest.mark.slow
def test_a_model_that_kills_its_process_as_it_is_loaded_ends_the_run(tmp_path: Path, on_one_ray: Cli) -> None:
    """Tried a few times, then a sentence; no row is blamed. What a row kills: test_killers.py."""
    model = save_model(tmp_path / "model", CHATML)
    (model / "deadly.py").write_text("""
import os
from transformers import LlamaForCausalLM

class Deadly(LlamaForCausalLM):
    def __init__(self, config):
        os._exit(1)
""")
    config = json.loads((model / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "deadly.Deadly"}
    (model / "config.json").write_text(json.dumps(config))
    source = write(tmp_path / "a.jsonl", PAIR)
    arguments = ["label", "--model", model, "--input", source, "--output", tmp_path / "out", *FAST]
    ran = on_one_ray(*arguments, "--set", "model.trust_remote_code=true")
    assert ran.returncode == 1 and "Traceback" not in ran.stderr, ran.stderr
    assert "ended 3 times before it had (exit code 1)" in ran.stderr and "run the same again" in ran.stderr
    assert not list((tmp_path / "out" / "errors").glob("*.parquet"))
