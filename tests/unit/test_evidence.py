"""benchmarks/evidence: its commands are the product's, its sets are what they say, and its tables follow from the stores."""

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from label_stores import label_store
from tiny import CHATML, save_model

from jobs.__main__ import _flags, _parser
from pipeline.config import EvaluateConfig, load_config_as
from pipeline.evaluation.benchmarks import find_benchmark

EVIDENCE = Path(__file__).parents[2] / "benchmarks" / "evidence"


@pytest.fixture
def rewards(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EVIDENCE))
    import rewards

    return rewards


def test_its_commands_are_those_of_the_product(rewards: ModuleType) -> None:
    for each in rewards.SETS:
        for asked in ((*rewards.REWARDS, "contrast", *each.beside), rewards.JUDGES):
            if not each.asked(asked):
                continue
            words = rewards.command(each, Path("a.json"), "model", Path("out"), asked, ["judge.max_unparsable=1"])
            arguments = _parser().parse_args(words)
            config = load_config_as(EvaluateConfig, arguments.config, _flags(arguments), arguments.set)
            assert isinstance(config, EvaluateConfig) and config.evaluate.resamples == rewards.RESAMPLES
            without = {*each.without, *(() if each.contrast else ("contrast",))}
            assert set(config.evaluate.rewards) == set(asked) - without
            assert [config.contrast.rubric, config.contrast.against] == [
                *(each.contrast if each.contrast and "contrast" in asked else ("", ""))
            ]
            find_benchmark(config.evaluate.benchmark).requires(config)


def test_sets_are_drawn_alike_and_whole(rewards: ModuleType, shared: Path) -> None:
    sizes = {"rm-bench-chat": 129, "hh-harmless": 500, "soda-chat": 400, "gsm8k": 500}
    for each in rewards.SETS:
        source = shared.joinpath("data", *each.source)
        rows = rewards.drawn(each, source, each.items)
        assert len(rows) == sizes.get(each.name, 100) and rows == rewards.drawn(each, source, each.items)
        if each.name == "gsm8k":
            right = {row["question"]: row for row in rewards.json_lines(source)}
            for row in rows:
                solutions = [each for each in right[row["prompt"]].values() if isinstance(each, dict)]
                sides = {solution["solution"]: solution["is_correct"] for solution in solutions}
                assert (sides[row["chosen"]], sides[row["rejected"]]) == (True, False)
                assert row["answer"] == right[row["prompt"]]["ground_truth"]


def test_a_table_follows_from_a_store(
    rewards: ModuleType, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewards, "RESAMPLES", 100)
    model = save_model(tmp_path / "tiny", CHATML, context=1024)
    [soda] = [each for each in rewards.SETS if each.name == "soda-chat"]
    rows = rewards.drawn(soda, shared.joinpath("data", *soda.source), 8)
    folder = tmp_path / "out" / "tiny" / "soda-chat" / "run" / "rewards" / "endogenous"
    folder.parent.mkdir(parents=True)
    store = label_store(folder, model, rows)
    command = [str(model), "--set", "soda-chat", "--items", "8", "--tables", "--judged", "0", "--reward", "endogenous"]
    rewards.main([*command, "--output", str(tmp_path / "out"), "--results", str(tmp_path / "tables")])
    text = (tmp_path / "tables" / "soda-chat.json").read_text()
    made = json.loads(text)
    assert {"command", "commit", "machine", "model", "inputs", "created"} <= made.keys() and str(tmp_path) not in text
    assert made["model"]["name"] == "tiny" and made["command"].endswith(
        "tiny --set soda-chat --items 8 --judged 0 --reward endogenous"
    )
    shown = {entry["name"]: entry for entry in made["rewards"]}
    labels = [label for _, part in store.read("labels", store.survey().shards) for label in part.to_pylist()]
    pairs = {(label["prompt_id"], label["preference"]): label for label in labels}
    for gamma in rewards.GAMMAS:
        scores = {key: sum(gamma**h * x for h, x in enumerate(label["token_logprobs"])) for key, label in pairs.items()}
        right = [scores[name, "chosen"] > scores[name, "rejected"] for name, side in scores if side == "chosen"]
        assert shown[f"log pi: discounted sum, gamma {gamma:g}"]["values"] == {"accuracy": np.mean(right)}
        assert f"r_h: discounted_sum, gamma {gamma:g}" in shown
    longer = [pairs[n, "chosen"]["num_tokens"] > pairs[n, "rejected"]["num_tokens"] for n, s in pairs if s == "chosen"]
    assert shown["the longer response"]["values"] == {"accuracy": np.mean(longer)}
    assert shown["the longer response"]["length"]["longer_wins"] == 1


def test_the_loop_agrees_with_the_stores(
    rewards: ModuleType, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In every layout; and it sees a reward that is another."""
    import agreement

    model = save_model(tmp_path / "tiny", CHATML, context=4096)
    for each in rewards.SETS:
        if each.name.startswith("dsp-"):
            continue
        rows = rewards.drawn(each, shared.joinpath("data", *each.source), 1)
        place = tmp_path / "out" / "tiny" / each.name
        rewards.written(rows, place / "run-input" / each.file)
        (place / "run" / "rewards").mkdir(parents=True)
        tokens = {"rubrics": each.options[1]} if each.options else {}
        label_store(place / "run" / "rewards" / "endogenous", model, rows, tokens=tokens)
    with pytest.raises(SystemExit) as ended:
        agreement.main([str(model), "--output", str(tmp_path / "out"), "--results", str(tmp_path / "tables")])
    said = capsys.readouterr().out
    assert ended.value.code == 0 and said.count("holds: ") == 15, said
    counted = json.loads((tmp_path / "tables" / "agreement-hh-harmless.json").read_text())
    at_one = next(each for each in counted["alphas"] if each["alpha"] == 1)
    assert at_one["sum"] == counted["counts"]["sum"]["loop"] and at_one["mean"] == counted["counts"]["mean"]["loop"]
    scores = {(0, None, "chosen:0"): [1.0, 1.0, 1.0], (0, None, "rejected:0"): [0.0, 0.0, 0.0]}
    turned = {key: [1 - value for value in values] for key, values in scores.items()}
    claims = agreement.compare("x", scores, turned)
    assert list(claims.values())[1] is False
    less = {key: values for key, values in scores.items() if key[2] == "chosen:0"}
    assert next(iter(agreement.compare("x", scores, less).values())) is False
