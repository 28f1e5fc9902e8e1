"""The page and the card of an online run, as a parser, a browser and arithmetic see them; its line on a terminal."""

import json
import re
import tomllib
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard
from test_report import Page, in_browser, needs_chromium
from test_training_page import charts

from jobs.__main__ import main
from jobs.stores.inspect_run import read_samples
from jobs.terminal import TrainProgress, errors, figures_of
from pipeline.errors import StoreError
from pipeline.report.card import model_card
from pipeline.report.rl import SHOWN, observations, rl_page, sentence, title
from pipeline.rl.config import ALGORITHMS, RlConfig
from pipeline.store import documents
from pipeline.training.documents import RlResults, Run, RunManifest, SamplesLine
from pipeline.training.metrics import MetricsFile
from pipeline.training.run import RunFolder

MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"
RESULTS = RlResults(
    accuracy_before=0.392,
    accuracy_before_interval=[0.371, 0.413],
    accuracy_after=0.601,
    accuracy_after_interval=[0.579, 0.622],
    held_out=2000,
    steps=40,
)


def described(algorithm: str = "grpo", sections: dict[str, Any] | None = None) -> dict[str, Any]:
    """What every run.json has."""
    config = {
        "rl": {"algorithm": algorithm, "max_steps": 40},
        "input": {"paths": ["/data/sums.jsonl"]},
        "policy": {"name": "org/tiny-chat"},
        "reward_model": {"name": "/home/jane/models/judge"},
        "rewards": {"endogenous": {}, "a b": {"kind": "length", "weight": 0.5, "share": 0.25}},
        "output": {"path": "s3://secret-bucket/run"},
    }
    if algorithm == "opd":
        config |= {"rewards": {"teacher": {"kind": "teacher"}}}
    made = RlConfig.model_validate(config | (sections or {}))
    return {
        "created": "2025-11-23T17:40:00+00:00",
        "kind": "rl",
        "objective": algorithm,
        "config": made.model_dump(mode="json"),
        "description": {},
        "fingerprint": "ab12" * 16,
        "policy": {"name": made.policy.name},
        "steps": 40,
    }


def run(algorithm: str = "grpo", sections: dict[str, Any] | None = None, **others: Any) -> Run:
    return Run.parse(described(algorithm, sections) | others, "run.json")


FULL = described() | {
    "command": "endoreward rl run.toml",
    "versions": {"endoreward": "0.3.0"},
    "prompts": 7473,
    "held_out": 2000,
    "notes": ["3 prompts were too long."],
    "seconds": 4000.0,
    "tokens": 123456,
    "last": {"step": 40},
    "device": "1 x cpu, float32",
    "repeated": [{"step": 20, "repeated": 7, "why": "workers were killed"}],
}


def full() -> RunManifest:
    return RunManifest.parse(FULL, "manifest.json")


def rows(count: int, every: int = 10) -> list[dict[str, Any]]:
    rng, found = np.random.default_rng(0), [{"step": 0, "eval_accuracy": 0.39, "eval_reward": -1.0}]
    for step in range(1, count + 1):
        done = step / count
        row = {
            "step": step, "num_tokens": 100 * step, "loss": rng.normal(), "grad_norm": 0.5, "learning_rate": 1e-6,
            "reward": done - 1 + 0.1 * rng.normal(), "reward_std": 0.4, "frac_reward_zero_std": 0.25,
            "rewards/endogenous/mean": done - 1, "rewards/endogenous/std": 0.3, "rewards/a b/mean": -0.5,
            "kl": 0.1 * done, "entropy": 1 - 0.5 * done, "completions/mean_length": 100 + 20 * done,
            "completions/clipped_ratio": 0.1, "repetition": 0.05, "distinct": 1.0,
            "time/sampling": 4.0, "time/rewarding": 2.0, "time/learning": 1.5, "time/weights": 0.5,
            "time/waiting": 6.5, "step_time": 10.0,
        }  # fmt: skip
        if step % every == 0:
            row |= {"eval_accuracy": 0.4 + 0.2 * done, "eval_reward": done - 1.1}
        if step == 12:
            row["warnings"] = ["The reward rose from -1 to 0.5 while 4-grams repeat."]
        found.append(row)
    return found


def samples_line(step: int, prompt: str, *responses: dict[str, Any]) -> SamplesLine:
    return SamplesLine.model_validate({"step": step, "samples": [{"prompt": prompt, "responses": list(responses)}]})


def line(step: int, text: str, prompt: str = "2 + 2?", **others: Any) -> SamplesLine:
    response = {"text": text, "reward": -0.5, "parts": {"endogenous": -0.25, "a b": -0.5}, "tokens": 9}
    return samples_line(step, prompt, {"finished": True, "right": None} | response | others)


def test_page_has_every_part_in_order_and_loads_nothing() -> None:
    page = Page(html := rl_page(full(), rows(40), RESULTS, [line(0, "5"), line(40, "4")]))
    assert page.text["h1"] == ["GRPO on sums.jsonl"] == page.text["title"][:1]
    assert page.text["h2"] == [
        "Accuracy", "Warnings", "Rewards", "Curves", "Samples", "Time", "Start and end", "Settings", "Started again",
        "What to know", "Reproduce",
    ]  # fmt: skip
    assert not page.having("script") and not page.having("link") and not page.having("img")
    assert not re.search(r"https?:|//\w|url\(|@import|src=|href=", html.partition("<pre>")[0])  # no word of the config
    assert all(drawing["aria-label"] for drawing in page.having("svg", "chart"))
    assert sentence(full()) in page.text["p"] and "A warning came up at step 12." in page.text["p"]
    assert "Step 12." in page.text["b"] and any("while 4-grams repeat" in text for text in page.text["li"])
    assert any("7 steps done twice: workers were killed." in text for text in page.text["li"])
    assert {"7,473", f"0.01 {TIMES} k1, taken off the reward"} <= set(page.text["td"])
    given = tomllib.loads(page.text["code"][-1])
    assert RlConfig.model_validate(given).model_dump(mode="json") == full().config


def test_accuracy_before_and_after_with_intervals() -> None:
    page = Page(rl_page(full(), rows(40), RESULTS))
    assert "60.1%" in page.text["b"] and "39.2% before" in page.text["small"]
    assert {" ".join(t.split()) for t in page.text["tspan"]} >= {"(37.1% to 41.3%)", "(57.9% to 62.2%)"}
    half = RESULTS.model_copy(update={"accuracy_after": None, "accuracy_after_interval": None})
    assert "before the run" in Page(rl_page(full(), rows(40), half)).text["text"]
    assert "Accuracy" not in Page(rl_page(full(), rows(40), RlResults(held_out=0, steps=40))).text["h2"]


def test_curves_show_what_matters_and_fold_the_rest() -> None:
    html = rl_page(full(), rows(40), RESULTS)
    drawn = charts(html)
    assert list(drawn) == [
        "Accuracy", "Reward", "Reward endogenous", "Reward a b", "KL to the reference", "Entropy of the next token",
        "Mean length, tokens", "Cut off", "Repeated 4-grams", "Different responses to a prompt",
        "Groups of equal rewards",
        "Loss", "Spread of rewards", "Reward endogenous, spread", "Seconds a step", "Norm of the gradient",
        "Learning rate",
    ]  # fmt: skip
    assert drawn["Accuracy"].count('<circle class="eval') == 5 and 'class="chance"' not in drawn["Accuracy"]
    assert all(chart.count('class="resumed"') == 1 for chart in drawn.values())
    assert html.index("6 more") > html.index("<h3>Groups of equal rewards") and html.index("6 more") < html.index(
        "<h3>Loss"
    )


def test_time_is_what_was_measured_and_what_is_left() -> None:
    html = rl_page(full(), rows(40))
    page = Page(html)
    assert {"4 s", "40.0%", "2 s", "1.5 s", "15.0%", "0.5 s", "5.0%", "20.0%"} <= set(page.text["td"])
    assert "Learners waited for samples and rewards for 65% of the time." in page.text["p"]
    bars = [float(bar["width"] or 0) for bar in page.having("rect", "spent") if bar.get("x")]
    assert bars == pytest.approx([288, 144, 108, 36, 144])
    without = [{name: v for name, v in row.items() if name != "step_time"} for row in rows(40)]
    assert {"50.0%", "25.0%"} <= set(Page(rl_page(full(), without)).text["td"])
    assert "Time" not in Page(rl_page(full(), [{"step": 1, "reward": 1.0}])).text["h2"]


def test_samples_lie_side_by_side() -> None:
    lines = [line(step, f"answer {step}") for step in (0, 10, 20, 30, 40)] + [line(40, "done again", right=True)]
    page = Page(html := rl_page(full(), rows(40), RESULTS, lines))
    assert len(page.having("article", "card")) == 1
    assert [text for text in page.text["div"] if text.startswith(("answer", "done"))] == [
        "answer 0", "answer 20", "done again",
    ]  # fmt: skip
    assert f"right, reward {MINUS}0.5, 9 tokens" in page.text["h4"]
    assert f"endogenous {MINUS}0.25, a b {MINUS}0.5" in page.text["small"]
    assert (
        "2 + 2?" in html
        and len(Page(rl_page(full(), [], None, [line(0, "x"), line(5, "y", "?")])).having("article")) == 2
    )
    long = "word " * SHOWN
    folded = Page(rl_page(full(), [], None, [line(0, long, finished=False)]))
    assert f"{4 * SHOWN:,} more characters" in folded.text["summary"]
    assert "".join(text for text in folded.text["div"] if text.startswith("word")) == long
    assert any(text.endswith("cut off") for text in folded.text["h4"])


def test_a_line_of_samples_that_is_none_is_said(tmp_path: Any) -> None:
    folder, half = RunFolder(str(tmp_path)), line(1, "half a pair \ud83d").model_dump()
    written = json.dumps(half, ensure_ascii=False).encode(errors="backslashreplace")
    (tmp_path / "samples.jsonl").write_bytes(written + b"\n")
    assert read_samples(folder)[0].samples[0].responses[0].text == "half a pair \ud83d"
    for second, said in (
        (b'{"step": 2', r"line 2 is damaged: .*; put it back"),
        (b'{"step": 2, "samples": [{"prompt": "p"}]}', r"line 2: samples\.0\.responses: is missing; put it back"),
    ):
        (tmp_path / "samples.jsonl").write_bytes(written + b"\n" + second)
        with pytest.raises(StoreError, match=said):
            read_samples(folder)


def test_text_from_data_is_never_markup() -> None:
    evil = "</style><script>alert(1)</script>\"'&"
    sections = {
        "rewards": {
            evil: {"kind": "relative", "model": evil, "reference": evil},
            "f": {"kind": "function", "function": f"{evil}.py:{evil}"},
        },
        "input": {"paths": [evil]},
        "policy": {"name": evil},
    }
    again = [{"step": 1, "repeated": 2, "why": evil}]
    made = {"command": evil, "fingerprint": evil, "versions": {evil: evil}, "device": evil}
    given = run(sections=sections, notes=[evil], repeated=again, **made)
    response = {"text": evil * 99, "reward": 1.0, "parts": {evil: 1.0, "b": 2.0}, "tokens": 3, "finished": True}
    samples = [samples_line(1, evil, response, response | {"right": False})]
    measured = [
        {
            "step": 1,
            "reward": 1.0,
            evil: 1.0,
            f"rewards/{evil}/mean": 1.0,
            "warnings": [evil],
            "time/learning": 1,
        }
    ]
    page = Page(html := rl_page(given, measured, RESULTS, samples))
    assert not page.having("script") and html.count("alert(1)") > 10 and len(page.having("style")) == 1
    assert all("on" not in {name[:2] for name in attributes} for _, attributes in page.elements)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_only_what_is_always_there_is_needed(algorithm: str) -> None:
    page = Page(rl_page(run(algorithm), []))
    assert "No step was taken." in page.text["p"] and page.text["h2"] == ["Rewards", "Settings", "Reproduce"]
    assert title(run(algorithm)).endswith(" on sums.jsonl")


def test_the_sentence_says_what_was_paid_for() -> None:
    said = sentence(full())
    assert said == (
        "All weights of tiny-chat, trained for 40 steps of 16 prompts, 8 responses to each, by group-relative policy "
        f"optimization. The reward is the endogenous reward (sum) of judge and 0.5 {TIMES} a penalty of length (for 25% of "
        "the prompts)."
    )
    replayed = run("ppo", {"rl": {"algorithm": "ppo", "replay": "/a/first/rollouts"}, "lora": {"rank": 8}})
    assert "by proximal policy optimization on the samples of rollouts." in sentence(replayed)


def test_observations_depend_on_the_figures() -> None:
    fallen = RESULTS.model_copy(update={"accuracy_after": 0.3, "accuracy_after_interval": [0.28, 0.32]})
    unsure = RESULTS.model_copy(update={"accuracy_after": 0.385, "accuracy_after_interval": [0.365, 0.405]})
    plain = [{"step": i, "reward": float(i)} for i in range(41)]
    assert observations(full(), plain, RESULTS) == []
    assert observations(full(), plain, fallen)[0].startswith("The reward rose and the accuracy fell: ")
    assert "perhaps by chance" in observations(full(), plain, unsure)[0]
    falling = [{"step": i, "reward": -float(i)} for i in range(41)]
    assert observations(full(), falling, fallen) == []


def test_the_card_says_what_was_done_and_names_no_place() -> None:
    text = model_card(full(), rows(40), RESULTS)
    card = ModelCard(text)
    assert card.data.tags == ["endoreward", "grpo"] and card.data.base_model == "org/tiny-chat"
    assert "# tiny-chat, GRPO on sums.jsonl" in text and "| before | 39.2% | 37.1% to 41.3% |" in text
    assert "`endoreward rl run.toml`" in text and "A warning came up at step 12." in text
    assert not {"jane", "secret-bucket", "/data"} & set(re.findall(r"jane|secret-bucket|/data", text))
    given = tomllib.loads(re.search(r"```toml\n(.*?)\n```", text, re.DOTALL)[1])  # type: ignore[index]
    assert {name for name in given if name in ALGORITHMS} == {"grpo"}
    assert RlConfig.model_validate(given).rewards == RlConfig.model_validate(full().config).rewards
    assert "## Accuracy" not in model_card(full(), rows(40))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_card_needs_no_more_than_the_page(algorithm: str) -> None:
    assert ModelCard(model_card(run(algorithm), [])).data.tags == ["endoreward", algorithm]


def test_a_row_on_the_terminal() -> None:
    row = rows(40)[5]
    assert (
        figures_of(row | {"kl": 0.0123, "reward": 1.2345}) == "reward 1.23, KL 0.0123, 102 tokens long, 10.0 s a step"
    )
    assert "KL 0," in figures_of(row | {"kl": 7e-14})
    with errors.capture() as said, TrainProgress(40, name="rl") as progress:
        progress.update({"step": 0, "eval_accuracy": 0.39, "eval_completions/mean_length": 97.0})
        for each in rows(40)[1:]:
            progress.update({"step": each["step"], "reward": 0.5, "completions/mean_length": 90.0})
    assert "step 0, kept prompts: accuracy 39.0%, 97 tokens long" in said.get()
    assert "step 40 of 40, reward 0.5, accuracy 39.0%, 90 tokens long" in said.get()


@needs_chromium
def test_page_in_a_browser(tmp_path: Any) -> None:
    dom = in_browser(rl_page(full(), rows(40), RESULTS, [line(0, "5"), line(40, "4")]), tmp_path)
    assert len(dom.having("svg", "chart")) == 17 + 2 and dom.text["h1"] == ["GRPO on sums.jsonl"]


def test_a_run_that_stopped_has_a_page_so_far(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    folder = RunFolder(str(tmp_path))
    documents.create(folder.at("run.json"), FULL)
    assert main(["report", str(tmp_path)]) == 0  # killed before its first step
    with MetricsFile(folder.at("metrics.jsonl")) as metrics:
        metrics.append({"step": 1, "num_tokens": 64, "reward": 1.5})
    assert main(["report", str(tmp_path)]) == 0
    assert "step 1 of 40" in (tmp_path / "report.html").read_text()
    assert "report.html" in capsys.readouterr().out
