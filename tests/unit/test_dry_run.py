"""`--dry-run` of evaluate and sample: everything is checked and shown, nothing is written."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny import CHATML, save_model

from jobs.__main__ import main
from jobs.label.preview import show_runs
from pipeline.config import ModelConfig
from pipeline.store import LabelStore


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model", CHATML)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n")
    return path


def test_evaluate_says_which_stores_it_would_fill(
    model: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [
        "evaluate",
        "--benchmark",
        "pairs",
        "--model",
        str(model),
        "--input",
        str(pairs),
        "--output",
        str(tmp_path / "out"),
        "--dry-run",
    ]
    assert main([*asked, "--reward", "endogenous", "--reward", "judge-pairwise"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("1 of 1") == 2 and str(tmp_path / "out/rewards/judge-pairwise") in printed
    assert 'benchmark = "pairs"' in printed and not (tmp_path / "out").exists()
    pairs.write_text(json.dumps({"prompt": "a"}) + "\n")
    assert main(asked) == 2 and "pairs.jsonl" in capsys.readouterr().err


def test_sample_says_what_it_would_ask(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "a"}) + "\n" + json.dumps({"prompt": "b"}) + "\n")
    out = tmp_path / "out"
    flags = ["--policy", str(model), "--prompts", str(prompts), "--output", str(out)]
    assert main(["sample", *flags, "--dry-run"]) == 0
    assert "2 of 2" in capsys.readouterr().out and not out.exists()


def test_evaluate_says_what_a_store_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Path(__file__).parents[1] / "data/store-format-2"
    out = tmp_path / "out"
    assert main(["evaluate", "--benchmark", "pairs", "--labels", str(store), "--output", str(out), "--dry-run"]) == 0
    assert f"{store}, " in capsys.readouterr().out and not out.exists()


def test_a_server_is_not_announced_where_nothing_is_left_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    store = LabelStore(str(Path(__file__).parents[1] / "data/store-format-2"))
    done = SimpleNamespace(  # what an endpoint would be asked is read of a whole labeller
        store=store, inputs=store.inputs(), labeller=SimpleNamespace(model=ModelConfig(name="m"), writer="endpoint")
    )
    rows = sum(stored.plan.rows for stored in done.inputs)
    show_runs({"judge": done}, retry_errors=False)  # type: ignore[dict-item]
    assert f"0 of {rows}" in capsys.readouterr().out
