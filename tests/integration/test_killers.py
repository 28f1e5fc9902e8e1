"""Rows that end the process of the tokenizer or of the model, on a real local Ray."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tiny import CHATML, save_model

from pipeline.store import LabelStore, problems

Cli = Callable[..., subprocess.CompletedProcess[str]]

TOKENIZER = """
import os, signal
from transformers import PreTrainedTokenizerFast

class Killer(PreTrainedTokenizerFast):
    def __call__(self, text=None, *args, **kwargs):
        if "SEGFAULT" in str(text) and not os.path.exists("{mended}"):
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().__call__(text, *args, **kwargs)

    def encode(self, text, *args, **kwargs):
        if "SEGFAULT" in str(text) and not os.path.exists("{mended}"):
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().encode(text, *args, **kwargs)
"""
MODEL = """
import os
from transformers import LlamaForCausalLM, LlamaModel

class KillerModel(LlamaModel):
    def forward(self, input_ids, *args, **kwargs):
        marked = input_ids == {token}
        if (marked[:, 1:] & marked[:, :-1]).any() and not os.path.exists("{mended}"):  # one `#` alone may be in a probe
            os._exit(7)
        return super().forward(input_ids, *args, **kwargs)

class Killer(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        self.model = KillerModel(config)
        self.post_init()
"""


@pytest.fixture(scope="module")
def killer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokenizer dies of the word SEGFAULT, and which itself exits at `##`, until a file `mended` is there."""
    folder = save_model(tmp_path_factory.mktemp("killer"), CHATML)
    token = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]["#"]
    (folder / "tokenization_killer.py").write_text(TOKENIZER.format(mended=folder / "mended"))
    (folder / "modeling_killer.py").write_text(MODEL.format(token=token, mended=folder / "mended"))
    for name, key, value in (
        ("tokenizer_config.json", "AutoTokenizer", [None, "tokenization_killer.Killer"]),
        ("config.json", "AutoModelForCausalLM", "modeling_killer.Killer"),
    ):
        told = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**told, "auto_map": {key: value}}))
    return folder


@pytest.mark.timeout(600)
def test_a_row_that_ends_its_process_is_an_error_row_and_the_store_goes_on(
    killer: Path, tmp_path: Path, on_one_ray: Cli, here: Cli
) -> None:
    records = [{"prompt": f"question {i}", "chosen": "good", "rejected": "bad"} for i in range(8)]
    records[3]["chosen"], records[5]["rejected"] = "SEGFAULT", "ba##d"
    source, store = tmp_path / "a.jsonl", tmp_path / "out"
    source.write_text("".join(json.dumps(each) + "\n" for each in records))
    arguments = [
        "label", "--model", killer, "--input", source, "--output", store, "--set", "model.trust_remote_code=true",
        "--set", "run.num_cpus=2", "--set", "scorer.cpus_per_actor=1", "--set", "input.shard_rows=2",
    ]  # fmt: skip
    ran = on_one_ray(*arguments)
    assert ran.returncode == 0, ran.stderr
    errors = {each["id"]: each for each in pq.read_table(store / "errors").to_pylist()}
    assert {each["reason"] for each in errors.values()} == {"killed_process"}
    assert {key: each["detail"].partition(", by ")[2].partition(";")[0] for key, each in errors.items()} == {
        "a.jsonl:3": "signal SIGSEGV",
        "a.jsonl:5:rejected:0:0": "exit code 7",
    }
    labels = pq.read_table(store / "labels", columns=["id"])["id"].to_pylist()
    assert len(labels) == len(set(labels)) == 7 * 2 - 1 and not set(labels) & set(errors)
    assert list(problems(LabelStore(str(store)))) == []
    assert "killed_process" in ran.stderr and "killed_process" in here("status", store).stdout

    (killer / "mended").touch()
    again = on_one_ray(*arguments, "--retry-errors")
    assert again.returncode == 0, again.stderr
    labels = pq.read_table(store / "labels", columns=["id"])["id"].to_pylist()
    assert len(labels) == len(set(labels)) == 8 * 2 and list(problems(LabelStore(str(store)))) == []
