"""The page of a training run, as a parser, a browser and the curves it was drawn from see it."""

import math
import re
import tomllib
from html import unescape
from typing import Any

import numpy as np
import pytest
from test_report import Page, in_browser, needs_chromium

from pipeline.errors import StoreError
from pipeline.report.curves import COLUMNS, TOUCHES, Curve, beyond, draw_curves, smoothed, thinned
from pipeline.report.page import standalone_charts
from pipeline.report.runs import duration, last_part, reward_words
from pipeline.report.shares import SMALL
from pipeline.report.training import observations, sentence, title, training_page
from pipeline.training.config import OBJECTIVES, TrainConfig
from pipeline.training.documents import Run, RunManifest

MINUS = "\N{MINUS SIGN}"


FIGURES = {"held_out_accuracy": 0.625}
SAMPLES = [{"prompt": "What is 12 + 30?", "before": "32", "after": "42"}]


def described(objective: str = "dpo") -> dict[str, Any]:
    """What every run.json has."""
    config = TrainConfig.model_validate({"train": {"labels": ["out/hh"], "objective": objective}})
    return {
        "created": "2025-11-23T17:40:00+00:00",
        "objective": objective,
        "config": config.model_dump(exclude={"run"}),
        "description": {},
        "fingerprint": "ab12" * 16,
        "policy": {"name": config.policy.name},
        "steps": 1,
    }


def run(objective: str = "dpo", **others: Any) -> Run:
    return Run.parse(described(objective) | others, "run.json")


def full(**others: Any) -> RunManifest:
    content = described() | {
        "command": "endoreward train run.toml",
        "versions": {"endoreward": "0.2.0"},
        "policy": {"name": "org/tiny-chat"},
        "labels": [labels("out/hh", {"aggregation": "mean"}, "org/base")],
        "examples": [["pairs", 11200], ["dropped: no margin", 740]],
        "steps": 40,
        "notes": ["3 prompts gave no pair."],
        "repeated": [{"step": 20, "repeated": 3}],
        "seconds": 4321.0,
        "tokens": 123456,
        "last": {"step": 40},
        "device": "cpu",
    }
    return RunManifest.parse(content | others, "manifest.json")


def labels(path: str, reward: dict[str, Any] | None = None, model: str | None = None) -> dict[str, Any]:
    return {"path": path, "fingerprint": "ff00" * 16, "reward": reward, "model": model}


def rows(count: int, evaluated: int = 0, seed: int = 0) -> list[dict[str, Any]]:
    rng, found = np.random.default_rng(seed), []
    for step in range(1, count + 1):
        done = step / count
        chosen, margin = -0.3 * done + 0.05 * rng.normal(), done + 0.1 * rng.normal()
        row = {
            "step": step, "epoch": 3 * done, "loss": 0.7 - 0.3 * done + 0.02 * rng.normal(),
            "learning_rate": 5e-6 * (1 - done), "grad_norm": float(abs(rng.normal())), "num_tokens": 100 * step,
            "tokens_per_second": 4000.0, "rewards/chosen": chosen, "rewards/rejected": chosen - margin,
            "rewards/accuracies": min(1.0, 0.5 + 0.4 * done), "rewards/margins": margin, "kl": 0.1 * done,
            "extra/thing": done**2,
        }  # fmt: skip
        if evaluated and step % evaluated == 0:
            row |= {"eval_loss": 0.7 - 0.2 * done, "eval_rewards/accuracies": 0.5 + 0.2 * done}
        found.append(row)
    return found


def charts(html: str) -> dict[str, str]:
    """Each figure of the curves by its heading."""
    return {
        unescape(name): drawn for name, drawn in re.findall(r"<figure><h3>(.*?)</h3>(.*?)</figure>", html, re.DOTALL)
    }


def test_page_has_every_part_in_order_and_loads_nothing() -> None:
    html = training_page(full(), rows(40, evaluated=10), FIGURES, SAMPLES)
    page = Page(html)
    assert page.text["h1"] == ["DPO on hh"] == page.text["title"][:1]
    assert page.text["h2"] == [
        "Start and end", "Curves", "Figures", "Settings", "Examples", "Labels", "What to know", "Samples", "Reproduce",
    ]  # fmt: skip
    assert not page.having("script") and not page.having("link") and not page.having("img")
    assert not re.search(r"https?:|//\w|url\(|@import|src=|href=", html)
    assert all(drawing["aria-label"] for drawing in page.having("svg", "chart"))
    assert {"11,200", "740"} <= set(page.text["td"]) and "3 prompts gave no pair." in page.text["li"]
    assert {"32", "42"} <= set(page.text["div"]) and "0.625" in page.text["td"]
    said = sentence(full())
    assert said.startswith(
        "All weights of tiny-chat, trained for 40 steps of 16 pairs by direct preference optimization"
    )
    assert "the endogenous reward (mean) of base" in said and said in page.text["p"]
    assert TrainConfig.model_validate(tomllib.loads(page.text["code"][-1])).model_dump(exclude={"run"}) == full().config


def test_there_is_a_chart_for_whatever_was_measured() -> None:
    drawn = charts(training_page(full(), rows(40, evaluated=10)))
    assert list(drawn) == [
        "Loss", "Reward", "Accuracy", "Reward margin", "KL to the reference", "Extra, thing", "Norm of the gradient",
        "Learning rate", "Tokens a second",
    ]  # fmt: skip
    assert [drawn["Reward"].count(f'class="line {side}"') for side in ("chosen", "rejected")] == [1, 1]
    assert drawn["Loss"].count('<circle class="eval') == 4 and '<circle class="eval' not in drawn["Reward"]
    assert all(chart.count('class="resumed"') == 1 for chart in drawn.values())
    assert drawn["Accuracy"].count('class="chance"') == 1 and ">90%</text>" in drawn["Accuracy"]
    assert "10<tspan" in drawn["Learning rate"] and f">{MINUS}6</tspan>" in drawn["Learning rate"]
    few = charts(training_page(run(), [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25, "name": "x"}]))
    assert list(few) == ["Loss"] and "resumed" not in few["Loss"]


def test_what_only_evaluations_measured_has_a_chart_too() -> None:
    drawn = charts(training_page(run(), [{"step": i, "loss": 1.0, "eval_win_rate": i / 10} for i in (1, 2, 3)]))
    assert drawn["Win rate"].count('<circle class="eval') == 3 and 'class="raw' not in drawn["Win rate"]


@pytest.mark.parametrize("count", [1, 2, 20, 3000])
def test_page_is_readable_and_small_at_any_length(count: int) -> None:
    html = training_page(run(), rows(count, evaluated=max(1, count // 500)))
    assert "nan" not in html.lower().replace("dominant", "") and len(html) < 400_000
    for drawn in charts(html).values():
        assert len(re.findall(r"[ML][\d.]+ [\d.]+", drawn)) <= 3 * 4 * COLUMNS * 2
        assert drawn.count('class="touch"') == min(count, TOUCHES)


def test_thinning_keeps_ends_extremes_and_order() -> None:
    rng = np.random.default_rng(0)
    points = list(enumerate(rng.standard_t(2, 20_000).tolist(), 1))
    kept = thinned(points)
    assert len(kept) <= 4 * COLUMNS and set(kept) <= set(points) and kept == sorted(kept)
    assert kept[0] == points[0] and kept[-1] == points[-1]
    whole: dict[int, list[float]] = {}
    left: dict[int, list[float]] = {}
    for found, of in ((whole, points), (left, kept)):
        for step, value in of[:-1]:  # the last column has the end too
            found.setdefault(math.floor((step - 1) / 19_999 * COLUMNS), []).append(value)
    assert whole.keys() == left.keys() and len(whole) == COLUMNS
    for column in range(COLUMNS - 1):
        part, drawn = whole[column], left[column]
        assert (part[0], part[-1], min(part), max(part)) == (drawn[0], drawn[-1], min(drawn), max(drawn))
    assert thinned(points[:100]) == points[:100]


def test_smoothing_is_the_weighted_mean_of_neighbours() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=120)
    spread = 120 / 50
    found = [value for _, value in smoothed(list(enumerate(values.tolist())))]
    for i in (0, 1, 60, 119):  # from the definition, one place after another
        near = [j for j in range(120) if abs(i - j) <= math.ceil(3 * spread)]
        weights = [math.exp(-(((i - j) / spread) ** 2) / 2) for j in near]
        assert found[i] == pytest.approx(np.average(values[near], weights=weights))
    assert [v for _, v in smoothed([(s, 2.5) for s in range(7)])] == pytest.approx([2.5] * 7)
    assert smoothed([(1, 3.0)]) == [(1, 3.0)]


def test_a_few_values_far_off_do_not_flatten_the_curve() -> None:
    values = [1 + 0.01 * (i % 7) for i in range(300)]
    values[100] = 5000.0
    curve = Curve("", "", list(enumerate(values, 1)), [])
    assert beyond([curve], False) == [5000.0]
    drawn = draw_curves("x", [curve], 300, [], None, False)
    heights = [float(y) for y in re.findall(r"[\d.]+ ([\d.]+)", drawn.partition('class="raw')[2].partition("/>")[0])]
    assert min(heights) == SMALL.top and max(heights) <= SMALL.floor
    assert np.ptp([y for y in heights if y > SMALL.top]) > 50  # the rest has most of the height
    assert "Values beyond the frame: 1, farthest 5,000" in training_page(
        run(), [{"step": s, "grad_norm": v} for s, v in curve.train]
    )
    slope = Curve("", "", [(i, float(i)) for i in range(300)], [(3, -4.0)])
    assert beyond([slope], False) == []


def test_start_and_end_are_means_of_what_was_measured() -> None:
    metrics = rows(100, evaluated=50)
    page = Page(training_page(run(), metrics))
    first = np.mean([row["loss"] for row in metrics[:5]])
    cells = page.text["td"]
    assert f"{first:.4f}" in cells and "60.0%" in cells and "70.0%" in cells
    assert (
        "Start and end are means over the first and the last 5 steps, and over as large a share of the evaluations."
        in page.text["p"]
    )


def test_text_from_data_is_never_markup() -> None:
    evil = "</style><script>alert(1)</script>\"'&"
    given = full(
        command=evil, fingerprint=evil, versions={evil: evil}, policy={"name": evil}, device=evil, created=evil,
        labels=[labels(evil, {"aggregation": evil}, evil) | {"fingerprint": evil}], examples=[[evil, evil]], notes=[evil],
    )  # fmt: skip
    samples = [{"prompt": evil, "before": evil, "after": evil}, {"prompt": [{"role": evil, "content": evil * 99}]}]
    metrics = [{"step": 1, "loss": 0.5, evil: 1.0, f"{evil}/chosen": 1.0, f"{evil}/rejected": 2.0}]
    html = training_page(given, metrics, {evil: evil}, samples)
    page = Page(html)
    assert not page.having("script") and "alert(1)" in html and len(page.having("style")) == 1
    assert all("on" not in {name[:2] for name in attributes} for _, attributes in page.elements)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_only_what_is_always_there_is_needed(objective: str) -> None:
    page = Page(training_page(run(objective=objective), []))
    assert "No step was taken." in page.text["p"] and page.text["h2"] == ["Settings", "Reproduce"]
    assert title(run(objective=objective)).endswith(" on labels")


def test_a_setting_of_another_version_is_said() -> None:
    newer = run(config=described()["config"] | {"dpo": {"beta": 0.1, "reweighted": True}})
    with pytest.raises(StoreError, match=r"config: dpo\.reweighted: True: .*; draw it with the version"):
        training_page(newer, [])


def test_values_that_are_not_finite_are_owned_up_to() -> None:
    metrics = rows(30)
    metrics[9]["loss"] = metrics[12]["loss"] = math.nan
    html = training_page(run(), metrics)
    assert "Values that are not finite: 2." in html
    assert observations(run(), metrics)[0].startswith("The loss was not finite in 2 steps, first in step 10")
    for row in metrics:
        row["loss"] = math.nan
    assert "Loss" not in charts(training_page(run(), metrics))


def test_observations_depend_on_the_curves() -> None:
    def said(objective: str = "dpo", **values: list[float]) -> str:
        names = [name.replace("__", "/") for name in values]
        metrics = [
            {"step": i, **dict(zip(names, row, strict=True))}
            for i, row in enumerate(zip(*values.values(), strict=True), 1)
        ]
        return " ".join(observations(run(objective=objective), metrics))

    fallen = {"rewards__chosen": [0.0, -1.0], "rewards__rejected": [0.0, -2.0]}
    assert "Both rewards ended below 0" in said(**fallen)
    assert not said("simpo", **fallen) and not said(rewards__chosen=[0.0, 1.0], rewards__rejected=[0.0, -2.0])
    assert "95% of the training pairs" in said(rewards__accuracies=[0.5, 0.95], eval_rewards__accuracies=[0.5, 0.6])
    assert not said(rewards__accuracies=[0.5, 0.65], eval_rewards__accuracies=[0.5, 0.6])
    assert "lowest at step 2 (0.4000)" in said(eval_loss=[0.7, 0.4, 0.6])
    assert not said(eval_loss=[0.7, 0.4, 0.3]) and not said(eval_loss=[0.7, 0.4, 0.401])
    assert "clipped to a norm of 1 in 75%" in said(grad_norm=[2.0, 2.0, 2.0, 0.5])
    assert not said(grad_norm=[2.0, 0.5, 0.5, 0.5])
    so_far = [{"step": 2, "loss": 0.5}]
    assert observations(run(steps=9), so_far) == ["The run is not finished: this is step 2 of 9."]
    assert not observations(run(steps=2), so_far)


def test_names_of_things() -> None:
    assert [last_part(p) for p in ("s3://b/labels/hh?x=1/2", "/a/b/", "org/name", "", "/m/tiny/model")] == [
        "hh", "b", "name", "", "tiny/model",
    ]  # fmt: skip
    assert title(run("simpo", labels=[labels("a/x"), labels("b/y")])) == "SimPO on x and y"
    assert title(run(labels=[labels(str(i)) for i in range(5)])) == "DPO on 5 label stores"
    assert reward_words({"kind": "judge"}, "/m/j") == "the reward judge of j"
    discounted = {"aggregation": "discounted_sum", "gamma": 0.9}
    assert reward_words(discounted, None) == "the endogenous reward (discounted_sum, gamma = 0.9)"
    assert reward_words(None, None) == "a reward"
    assert [duration(s).replace("\N{NO-BREAK SPACE}", " ") for s in (45, 720, 11100)] == ["45 s", "12 min", "3 h 05"]


def test_charts_stand_alone() -> None:
    names = list(standalone_charts(training_page(full(), rows(40))))
    assert names[:3] == ["01-loss.svg", "02-reward.svg", "03-accuracy.svg"]


@needs_chromium
def test_page_in_a_browser(tmp_path: Any) -> None:
    dom = in_browser(training_page(full(), rows(40, evaluated=10)), tmp_path)
    assert len(dom.having("svg", "chart")) == 9 and dom.text["h1"] == ["DPO on hh"]
