"""Prompts of an online run: what is read, what is left out and why."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import CHATML, save_model

from pipeline.errors import InputError
from pipeline.rl.config import RlConfig
from pipeline.rl.prompts import read_prompts


def config(model: Path, **rl: Any) -> RlConfig:
    return RlConfig.model_validate({"policy": {"name": str(model)}, "rl": rl})


def written(folder: Path, *rows: Any) -> str:
    file = folder / "prompts.jsonl"
    file.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_prompts_are_the_policys_tokens_with_their_columns(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", template=CHATML)
    file = written(
        tmp_path, {"prompt": "two?", "answer": 2}, {"prompt": [{"role": "user", "content": "hi"}], "level": "a"}
    )
    found = read_prompts(config(model, max_new_tokens=8), [file], "input.paths")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    for prompt, said in zip(found.prompts, ["two?", "hi"], strict=True):
        text = f"<|im_start|>user\n{said}<|im_end|>\n<|im_start|>assistant\n"
        assert prompt.ids == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert [prompt.id for prompt in found.prompts] == ["prompts.jsonl:0", "prompts.jsonl:1"]
    assert found.prompts[0].columns == {"answer": 2} and found.prompts[1].columns["level"] == "a"
    assert not found.left_out and not found.short


def test_what_cannot_be_asked_is_left_out_and_said(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", context=32)
    file = written(tmp_path, {"prompt": "x" * 40}, {"prompt": "x" * 28}, "{broken\n", {"prompt": "ok"})
    found = read_prompts(config(model, max_new_tokens=8), [file], "input.paths")
    assert [prompt.id for prompt in found.prompts] == ["prompts.jsonl:1", "prompts.jsonl:3"]
    assert [line.partition(": ")[0] for line in found.left_out] == ["prompts.jsonl:0", "prompts.jsonl:2"]
    assert "leaves no room for a response in 32 tokens" in found.left_out[0]
    assert found.short == 1


def test_no_prompt_at_all_is_an_error_that_says_why(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", context=32)
    with pytest.raises(InputError, match=r"input.paths: no prompt can be asked; the first of 1: prompts.jsonl:0"):
        read_prompts(config(model), [written(tmp_path, {"prompt": "x" * 40})], "input.paths")


def test_the_digest_is_of_the_content(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    first = read_prompts(config(model), [written(tmp_path, {"prompt": "a"})], "input.paths").digest
    again = read_prompts(config(model), [written(tmp_path, {"prompt": "a"})], "input.paths").digest
    other = read_prompts(config(model), [written(tmp_path, {"prompt": "b"})], "input.paths").digest
    assert first == again != other
