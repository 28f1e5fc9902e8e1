"""Each trainer's format of `export`, and what it cannot say. Their own loaders read the files in tests/frameworks."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from label_stores import label_store
from tiny import CHATML, save_model, tokenizer

from jobs.stores.formats import _axolotl, _verl
from pipeline.store.pairs import PREFERENCES

ROOT = Path(__file__).parents[2]
STORE = ROOT / "tests/data/store-format-2"
Run = Callable[..., "subprocess.CompletedProcess[str]"]
KNOWN = PREFERENCES.names[3:]


def said(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
@pytest.mark.parametrize("name", ["trl", "openrlhf", "axolotl", "verl"])
def test_every_pair_in_the_format_of_its_reader(
    name: str, ending: str, here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)  # the manifest names the model from here
    output = tmp_path / f"pairs.{ending}"
    done = here("export", STORE, "--format", name, "--output", output)
    if (name, ending) == ("verl", "jsonl"):
        assert done.returncode == 2 and "is read from .parquet alone" in done.stderr and not output.exists()
        return
    assert done.returncode == 0, done.stderr
    rows = (
        pq.read_table(output).to_pylist()
        if ending == "parquet"
        else [json.loads(line) for line in output.read_text().splitlines()]
    )
    labels = {row["id"]: row for row in pq.read_table(STORE / "labels").to_pylist()}
    assert len(rows) == 8 and "8 pairs: " in done.stdout
    for row in rows:
        chosen, rejected = (labels[f"{row['prompt_id']}:{side}:0:0"] for side in ("chosen", "rejected"))
        prompt = [said(each["role"], each["content"]) for each in chosen["prompt"]]
        answers = [said("assistant", each["response"]) for each in (chosen, rejected)]
        expected: list[Any] = {
            "trl": [prompt, [answers[0]], [answers[1]]],
            "openrlhf": [prompt, [answers[0]], [answers[1]]],
            "axolotl": [prompt, *answers],
            "verl": [prompt[0]["content"], *(each["content"] for each in answers)],
        }[name]
        assert list(row) == ["messages" if name == "axolotl" else "prompt", "chosen", "rejected", *KNOWN]
        assert list(row.values())[:3] == expected
        assert row["margin"] == chosen["reward"] - rejected["reward"] == row["chosen_reward"] - row["rejected_reward"]


def test_an_ending_is_refused_before_anything_is_opened(here: Run, tmp_path: Path) -> None:
    done = here("export", tmp_path / "nowhere", "--format", "verl", "--output", tmp_path / "pairs.jsonl")
    assert done.returncode == 2 and "--format verl is read from .parquet alone" in done.stderr


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain pair, one that differs before its last turn, and one with no message in common."""
    folder = tmp_path_factory.mktemp("store")
    rows = [
        {
            "chosen": [said("user", "ab"), said("assistant", "cd")],
            "rejected": [said("user", "ab"), said("assistant", "d")],
        },
        {
            "chosen": [said("user", "ab"), said("assistant", "c"), said("user", "d"), said("assistant", "a")],
            "rejected": [said("user", "ab"), said("assistant", "x"), said("user", "d"), said("assistant", "b")],
        },
        {
            "chosen": [said("user", "a"), said("assistant", "b")],
            "rejected": [said("user", "c"), said("assistant", "d")],
        },
    ]
    label_store(folder / "store", save_model(folder / "model", CHATML), rows)
    return folder / "store"


def test_what_a_loader_would_misread_is_left_out_and_counted(store: Path, here: Run, tmp_path: Path) -> None:
    written = {}
    for name in ("trl", "openrlhf", "axolotl"):
        done = here("export", store, "--format", name, "--output", tmp_path / f"{name}.jsonl")
        assert done.returncode == 0, done.stderr
        rows = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        written[name] = [int(row["prompt_id"].rpartition(":")[2]) for row in rows], " ".join(done.stderr.split())
    assert [places for places, _ in written.values()] == [[0, 1, 2], [0, 1], [0]]
    assert "left out" not in written["trl"][1]
    assert "1 pairs left out: they have no message in common as a prompt" in written["openrlhf"][1]
    assert "2 pairs left out: their conversations differ before the last turn" in written["axolotl"][1]


@pytest.fixture
def borrowed(tmp_path: Path) -> Callable[..., Path]:
    """A store whose manifest somebody else wrote, with a model of these fields."""

    def with_model(**model: Any) -> Path:
        folder = tmp_path / "borrowed"
        shutil.copytree(STORE, folder)
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(manifest | {"config": manifest["config"] | {"model": model}}))
        return folder

    return with_model


def test_a_store_does_not_say_that_code_may_run(borrowed: Callable[..., Path], here: Run, tmp_path: Path) -> None:
    model, ran = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(ROOT / "examples/addition/model", model)
    settings = json.loads((model / "tokenizer_config.json").read_text())
    code = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (model / "tokenizer_config.json").write_text(json.dumps(settings | code))
    (model / "own.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Own: ...\n")
    store = borrowed(name=str(model), trust_remote_code=True, allow_pickle=True)
    done = here("export", store, "--format", "verl", "--output", tmp_path / "x.parquet")
    assert done.returncode == 2 and "brings code of its own, which no store may run; --format trl" in done.stderr
    done = here("report", store)
    assert done.returncode == 0 and "shows numbers in place of tokens" in " ".join(done.stderr.split())
    assert not ran.exists()


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ({"name": "gpt2"}, "its model was a folder, gpt2, which is not here, and is no hub's model of that name"),
        ({"name": ""}, "does not name the model"),
        ({"name": ["gpt2"], "dtype": 7}, "does not name the model"),
        ({"name": "other"}, "other has another tokenizer than the model that labelled"),
    ],
)
def test_a_tokenizer_is_that_of_the_labels(
    model: dict[str, Any],
    sentence: str,
    borrowed: Callable[..., Path],
    here: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in a store that was pulled, whose model is named by its last part."""
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "other", CHATML)
    done = here("export", borrowed(**model), "--format", "verl", "--output", "x.parquet")
    assert done.returncode == 2 and re.search(re.escape(sentence) + ".*--format trl needs", done.stderr, re.DOTALL)


def test_a_thought_is_not_lost_on_axolotl() -> None:
    pair = {"prompt": [said("user", "a")], "chosen": [said("assistant", "b")], **dict.fromkeys(KNOWN, 0)}
    plain = _axolotl({**pair, "rejected": [said("assistant", "c")]})
    assert isinstance(plain, dict) and plain["rejected"] == said("assistant", "c")
    thought = _axolotl({**pair, "rejected": [said("assistant", "c", reasoning_content="hm")]})
    assert isinstance(thought, str) and thought.startswith("a message has more than a role and a content")


def test_a_store_of_which_nothing_fits_is_refused(tmp_path: Path, here: Run) -> None:
    rows = [
        {"chosen": [said("user", "a"), said("assistant", "b")], "rejected": [said("user", "c"), said("assistant", "d")]}
    ]
    label_store(tmp_path / "store", save_model(tmp_path / "model", CHATML), rows)
    done = here("export", tmp_path / "store", "--format", "openrlhf", "--output", tmp_path / "x.jsonl")
    assert done.returncode == 2 and "none of its pairs fits --format openrlhf" in done.stderr
    assert not (tmp_path / "x.jsonl").exists()


def test_a_prompt_of_verl_is_the_text_of_its_tokens() -> None:
    """Also where the tokenizer puts a token in front by itself, and not where the text has other tokens."""
    pair = {"chosen": [said("assistant", "b")], "rejected": [said("assistant", "c")], **dict.fromkeys(KNOWN, 0)}
    tok = tokenizer(CHATML, bos=True)
    ids = tok("<|im_start|>user\nab<|im_end|>\n")["input_ids"]
    assert ids[0] == tok.bos_token_id
    row = _verl(tok)({**pair, "prompt_token_ids": ids})
    assert isinstance(row, dict) and row["prompt"] == "<|im_start|>user\nab<|im_end|>\n"
    assert tok(row["prompt"])["input_ids"] == ids
    split = tok("a")["input_ids"] + tok("b")["input_ids"][1:]
    assert _verl(tok)({**pair, "prompt_token_ids": split}) == "the text of their prompt does not read as its tokens"
    assert _verl(tok)({**pair, "prompt_token_ids": None}) == "the store does not have the tokens of its prompts"
