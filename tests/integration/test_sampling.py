"""`sample`, then `label` of what it wrote, as a user runs them, on a real local Ray."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
from conftest import ROOT

from pipeline.store import LabelStore
from pipeline.store import problems as problems_of

Cli = Callable[..., subprocess.CompletedProcess[str]]
FAST = ("--set", "run.num_cpus=2", "--set", "scorer.cpus_per_actor=1", "--set", "input.shard_rows=4")
MODEL = ROOT / "examples/addition/model"


def test_samples_are_a_corpus_for_label(tmp_path: Path, cli: Cli, here: Cli, on_one_ray: Cli) -> None:
    problems = tmp_path / "problems.jsonl"
    rows = [{"prompt": f"{100 + i}+{200 + 7 * i}=", "answer": str(300 + 8 * i)} for i in range(10)]
    rows.insert(3, {"prompt": "9" * 200, "answer": "too long"})
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output, store = tmp_path / "samples", tmp_path / "labels"
    command = ("sample", "--policy", MODEL, "--prompts", problems, "--output", output, *FAST)
    command += ("--set", "sample.num_responses=3", "--set", "sample.max_new_tokens=32")

    ran = cli(*command)
    assert ran.returncode == 0, ran.stderr
    assert (
        "Distinct" in ran.stdout
        and "one response:" in ran.stdout
        and "prompts without a response: 1 (prompt_too_long 1)" in ran.stderr
    )
    [file] = output.glob("samples-*")
    samples = [json.loads(line) for line in file.read_text().splitlines()]
    answered = [row for row in rows if row["answer"] != "too long"]
    assert [(row["prompt"], row["answer"]) for row in samples] == [(row["prompt"], row["answer"]) for row in answered]
    [error] = pq.read_table(output / "_store/errors").to_pylist()
    assert error["reason"] == "prompt_too_long" and error["row"] == 3
    assert not list(problems_of(LabelStore(str(output / "_store"))))
    policy = json.loads((output / "_store/manifest.json").read_text())
    assert policy["config"]["sample"]["num_responses"] == 3 and "sample --policy" in policy["command"]

    labelled = on_one_ray("label", "--model", MODEL, "--input", output, "--output", store, *FAST)
    assert labelled.returncode == 0, labelled.stderr
    assert "prompt + responses (text, 3), with the tokens that were sampled" in labelled.stdout
    labels = pq.read_table(store / "labels").sort_by("id").to_pylist()
    assert [label["id"] for label in labels] == sorted(
        f"{file.name}:{row}:response:{index}:0" for row in range(10) for index in range(3)
    )
    drawn = {
        (label["prompt"][0]["content"], label["response_index"]): label
        for label in pq.read_table(output / "_store/labels").to_pylist()
    }
    for label in labels:
        row, sample = samples[int(label["prompt_id"].split(":")[1])], label["response_index"]
        assert label["response"] == row["responses"][sample]
        before = drawn[row["prompt"], sample]
        assert label["prompt_token_ids"] == before["prompt_token_ids"] == row["prompt_token_ids"]
        assert label["token_ids"] == before["token_ids"]  # the very tokens that the policy drew, cut off or not
        extra = json.loads(label["extra_info"])
        assert extra == {"answer": row["answer"], "truncated": row["truncated"]}

    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in output.rglob("*") if path.is_file() and path.name != ".lock"}

    written = files()
    again = here(*command)
    assert again.returncode == 0 and "nothing to do" in again.stdout and "starting Ray" not in again.stdout
    assert files() == written
