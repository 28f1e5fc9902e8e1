"""Unpaired feedback against SciPy, against counting, and against the closed form of the AUC's variance."""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from tiny import CHATML, save_model

from pipeline.config import EvaluateConfig, RewardConfig
from pipeline.corpus import Shard, find_files, plan_file, read_shards
from pipeline.errors import InputError
from pipeline.evaluation.benchmarks import find_benchmark
from pipeline.evaluation.benchmarks.figures import stratified_mean
from pipeline.evaluation.benchmarks.items import Answer, Item
from pipeline.evaluation.results import Cost, make_results
from pipeline.evaluation.statistics import compare, intervals
from pipeline.evaluation.stores import evaluated
from pipeline.evaluation.variants import variants_of
from pipeline.models.loading import load_model
from pipeline.models.scoring import Scorer
from pipeline.rewards.labellers import Endogenous
from pipeline.store import LabelStore, commit

KTO = find_benchmark("kto")


def item(number, label, reward, prompt=None, rubric=None):
    answer = Answer(float(reward), 3, "text")
    asked = ({"role": "user", "content": prompt or f"p{number}"},)
    return Item(f"a:{number}", others=(answer,), extra={"label": label}, prompt=asked, rubric=rubric)


def drawn(seed, high=23, low=31, levels=9, prompts=None):
    rng = np.random.default_rng(seed)
    labels = rng.permutation([True] * high + [False] * low)
    rewards = rng.integers(levels, size=len(labels)) + labels
    shared = rng.integers(prompts, size=len(labels)) if prompts else range(len(labels))
    return [
        item(n, bool(label), r, f"p{p}") for n, (label, r, p) in enumerate(zip(labels, rewards, shared, strict=True))
    ]


def sides(items):
    return [[i.others[0].reward for i in items if i.extra["label"] is label] for label in (True, False)]


def counted(good, bad):
    """Pairs won, ties half; pairs."""
    return sum((x > y) + 0.5 * (x == y) for x in good for y in bad), len(good) * len(bad)


@pytest.mark.parametrize("seed", range(5))
def test_auc_is_that_of_mann_and_whitney(seed):
    items = drawn(seed)
    found = KTO.figures(items)
    good, bad = sides(items)
    expected = scipy.stats.mannwhitneyu(good, bad).statistic / (len(good) * len(bad))
    assert found.values == {"auc": pytest.approx(expected, abs=1e-12)}
    assert found.values["auc"] == pytest.approx(counted(good, bad)[0] / counted(good, bad)[1], abs=1e-12)
    assert stratified_mean(found.scores["auc"], found.strata, found.weights, found.sizes) == pytest.approx(expected)
    assert (found.ties, found.comparisons) == (sum(x == y for x in good for y in bad), len(good) * len(bad))
    assert found.ties > 0 and found.tie_rule == "a tie counts half" and "different prompts" in found.notes[0]


@pytest.mark.parametrize("seed", range(3))
def test_the_interval_of_auc_is_as_wide_as_delongs(seed):
    items = drawn(seed, high=150, low=80, levels=40)
    found = KTO.figures(items)
    good, bad = map(np.array, sides(items))
    wins = (good[:, None] > bad) + 0.5 * (good[:, None] == bad)
    variance = wins.mean(1).var(ddof=1) / len(good) + wins.mean(0).var(ddof=1) / len(bad)
    low, high = intervals(found, 4000, 0)["auc"]
    assert (high - low) / (2 * 1.96 * np.sqrt(variance)) == pytest.approx(1, abs=0.07)
    assert low < found.values["auc"] < high


@pytest.mark.parametrize("seed", range(5))
def test_by_prompt_where_a_prompt_has_both(seed):
    items = drawn(seed, prompts=12)
    found = KTO.figures(items)
    prompts = {i.prompt[0]["content"] for i in items}
    groups = [sides([i for i in items if i.prompt[0]["content"] == prompt]) for prompt in prompts]
    won, pairs = np.array([counted(*group) for group in groups if all(group)]).sum(0)
    assert list(found.values) == ["by_prompt", "auc"] and found.main == "by_prompt"
    assert found.values["by_prompt"] == pytest.approx(won / pairs, abs=1e-12) and found.comparisons == pairs
    good, bad = sides(items)
    assert found.values["auc"] == pytest.approx(scipy.stats.mannwhitneyu(good, bad).statistic / (len(good) * len(bad)))
    main = found.scores["by_prompt"]
    assert stratified_mean(main, found.strata, found.weights, found.sizes) == pytest.approx(won / pairs)
    assert found.details == {
        "desirable": 23, "undesirable": 31, "prompts": len(prompts), "prompts_with_both": len(found.items),
    }  # fmt: skip
    assert f"{len(found.items)} of {len(prompts)} prompts" in found.notes[0]
    low, high = intervals(found, 500, 0)["by_prompt"]
    assert low < found.values["by_prompt"] < high
    same = compare(found, KTO.figures(items), "by_prompt", 500, 0)
    assert same is not None and same.difference == 0 and same.items == len(found.items)


def test_by_hand():
    items = [item(0, True, 2, "p"), item(1, False, 1, "p"), item(2, False, 2, "p"), item(3, False, 9, "q")]
    found = KTO.figures(items)
    assert found.values == {"by_prompt": 0.75, "auc": 0.5} and found.ties == 1 and KTO.chance(found) == 0.5
    assert KTO.figures(items[:2]).values == {"by_prompt": 1, "auc": 1}
    perfect = KTO.figures([item(n, n > 4, n) for n in range(10)])
    low, high = intervals(perfect, 200, 0)["auc"]
    assert perfect.values == {"auc": 1} and 0.5 < low < 0.9 and high == 1  # all agree, and ten show only so much


def test_rubrics_are_averaged_and_never_mixed():
    rewards = [(True, 1, "a"), (False, 0, "a"), (True, 5, "b"), (False, 6, "b")]
    items = [item(n, label, r, f"p{n}", rubric) for n, (label, r, rubric) in enumerate(rewards)]
    found = KTO.figures(items)
    assert found.values == {"auc": 0.5} and found.weights.sum() == 1
    assert stratified_mean(found.scores["auc"], found.strata, found.weights, found.sizes) == 0.5


@pytest.mark.parametrize("value", [True, 1, "True", " true ", "1", False, 0, "FALSE", "0"])
def test_labels_that_are_understood(value):
    assert KTO.check(item(0, value, 1)) is None
    desirable = str(value).strip().lower() in ("true", "1")
    assert KTO.figures([item(0, value, 1), item(1, not desirable, 0)]).values["auc"] == (1 if desirable else 0)


@pytest.mark.parametrize("value", [None, "good", -1, 2, 0.5, "", [True], {}])
def test_labels_that_are_not(value):
    assert "true (desirable) or false is due" in (KTO.check(item(0, value, 1)) or "")


def test_what_is_no_feedback_is_refused():
    answer = Answer(1.0, 1, "")
    assert "as pairs" in (KTO.check(Item("a:0", (answer,), (answer,), extra={"label": True})) or "")
    assert "2 completions" in (KTO.check(Item("a:0", others=(answer, answer), extra={"label": True})) or "")
    with pytest.raises(InputError, match="all 3 completions are desirable"):
        KTO.figures([item(n, True, n) for n in range(3)])
    with pytest.raises(InputError, match="not the layout of kto: a row has no field 'label'"):
        KTO.shape([{"prompt": "q", "completion": "a"}], EvaluateConfig().input, "a.json")


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_from_a_file_to_results(tmp_path: Path, name: str) -> None:
    """Every step that a run takes but Ray's."""
    model = save_model(tmp_path / "model", CHATML)
    config = EvaluateConfig.model_validate({"model": {"name": str(model)}, "evaluate": {"resamples": 100}})
    rows = [{"prompt": f"what {n % 4}", "completion": f"tea {n}" * (1 + n % 3), "label": n % 3 == 0} for n in range(12)]
    if name.endswith("csv"):
        lines = [",".join(map(str, row.values())) for row in rows]
        (tmp_path / name).write_text("\n".join(["prompt,completion,label", *lines]))
    else:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    [file] = find_files([str(tmp_path / name)])
    plan = plan_file(file)
    labeller = Endogenous(config, config.model)
    [(_, read)] = read_shards(file, "auto", plan.shards)
    shard = Shard("a", 0, 0, 12, 12, "0" * 64, 0, 10)
    prepared = labeller.prepare(shard, 0, iter(read), KTO.shape(list(plan.head), config.input, file.name))
    labels, failures = labeller.finish(prepared, Scorer(load_model(config.model, "cpu", 0)).score(prepared.requests))
    commit(str(tmp_path / "store"), shard, "f", 0, labels, failures)
    store = LabelStore(str(tmp_path / "store"))
    found = evaluated({"endogenous": store}, variants_of(config, RewardConfig()), KTO)
    costs = [Cost("m", [], None, None, None)] * len(found)
    document, _ = make_results(found, costs, {}, KTO, config, created="2026-01-01")
    results = document.content()
    rewards = {int(each.prompt_id.partition(":")[2]): each.reward for each in labels}
    groups = [
        [[rewards[n] for n in range(p, 12, 4) if (n % 3 == 0) is label] for label in (True, False)] for p in range(4)
    ]
    won, pairs = np.array([counted(*group) for group in groups]).sum(0)
    assert results["by_prompt"] == won / pairs and results["prompts"] == results["prompts_with_both"] == 4
    good, bad = ([rewards[n] for n in range(12) if (n % 3 == 0) is label] for label in (True, False))
    assert results["auc"] == pytest.approx(counted(good, bad)[0] / 32)
    low, high = results["rewards"][0]["intervals"]["by_prompt"]
    assert low <= results["by_prompt"] <= high
