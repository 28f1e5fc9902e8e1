"""Benchmarks against their authors' formulas, typed anew here, on random rewards with ties; items come from rows in the
published layouts, by the way that a run takes."""

import json
import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.config import EvaluateConfig, InputConfig
from pipeline.corpus import find_files, plan_file, read_shards
from pipeline.corpus.sources import origin_of
from pipeline.errors import ConfigError, InputError
from pipeline.evaluation.benchmarks import BENCHMARKS, find_benchmark
from pipeline.evaluation.benchmarks.figures import stratified_mean
from pipeline.evaluation.benchmarks.items import Answer, Item
from pipeline.tokens import load_rubrics

ROOT = Path(__file__).parents[2]
DOMAINS = ("academy", "business", "entertainment", "literature", "normal")
JUDGE_BENCH = InputConfig(response_key=["response_A", "response_B"], label_key="label")
LLM_BAR = InputConfig(response_key=["output_1", "output_2"], label_key="label")


def items_of(name, path, rng=None, config=None, rubrics=(None,), levels=5):
    """Items of a file or folder as `evaluate` makes them, with whole numbers below `levels` as rewards."""
    rng = rng or np.random.default_rng(0)
    benchmark = find_benchmark(name)
    items = []
    for file in find_files([str(path)]):
        plan = plan_file(file)
        shape = benchmark.shape(plan.head, config or InputConfig(), file.name)
        shape = replace(shape, origin=origin_of(file, "auto", config or InputConfig()))
        for _, rows in read_shards(file, "auto", plan.shards):
            for number, row in rows:
                sample = shape.normalise(file.name, number, row)
                if sample.failed:
                    continue  # a row of which any response has no reward is not an item
                for rubric in rubrics:
                    answers = defaultdict(list)
                    for response in sample.responses:
                        text = response.messages[-1]["content"]
                        reward = float(rng.integers(levels))
                        answers[response.preference].append(Answer(reward, len(text), text, extra=response.extra))
                    groups = {
                        "chosen": tuple(answers["chosen"]),
                        "rejected": tuple(answers["rejected"]),
                        "others": tuple(answers[None]),
                    }
                    prompt = tuple(sample.prompt) if benchmark.by_prompt else ()
                    items.append(Item(id=sample.prompt_id, rubric=rubric, extra=sample.extra, prompt=prompt, **groups))
    return items


def written(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(rows))
    return path


def evaluated(name, items):
    """The figures, after what holds of every benchmark's: scores give the values, all is JSON, items have names."""
    benchmark = find_benchmark(name)
    assert [benchmark.check(item) for item in items] == [None] * len(items)
    found = benchmark.figures(items)
    assert found.weights.sum() == pytest.approx(1)
    assert set(found.strata) == set(range(len(found.weights)))
    assert len(found.items) == len(set(found.items)) == len(found.strata) == len(found.sizes)
    assert found.main in found.scores and found.scores.keys() <= found.values.keys()
    for name, scores in found.scores.items():
        assert stratified_mean(scores, found.strata, found.weights, found.sizes) == pytest.approx(
            found.values[name], abs=1e-12
        )
    json.dumps({**found.details, **found.values}, allow_nan=False)
    for matrix in found.matrices:
        json.dumps(matrix.values)
        assert np.shape(matrix.values) == (len(matrix.rows), len(matrix.columns))
    return found


# RM-Bench


def rm_rows(number, **more):
    return [
        {
            "id": str(i), "prompt": f"q{i}", "chosen": [f"good {i}{s}" for s in "abc"],
            "rejected": [f"bad {i}{s}" for s in "abc"], **more,
        }
        for i in range(number)
    ]  # fmt: skip


def compute_accuracy(results):
    """THU-KEG/RM-Bench, scripts/utils.py; safety as the mean of its two sets."""
    if "domain" in results[0]:
        split = {d: [r for r in results if r["domain"] == d] for d in PARTS}
        by = {
            d: compute_accuracy([{k: v for k, v in r.items() if k != "domain"} for r in rs])
            for d, rs in split.items()
            if rs
        }
        safety = [by.pop(d) for d in list(by) if d.startswith("safety")]
        if safety:
            by["safety"] = {kind: np.mean([each[kind] for each in safety]) for kind in safety[0]}
        average = {d: np.mean(list(found.values())) for d, found in by.items()}
        kinds = {k: np.mean([by[d][k] for d in by]) for k in ("hard_acc", "normal_acc", "easy_acc")}
        return {**average, **kinds, "total_avg_acc": np.mean([average[d] for d in average])}
    matrix = np.zeros((3, 3))
    for result in results:
        for i in range(3):
            for j in range(3):
                if result["score_chosen"][i] > result["score_rejected"][j]:
                    matrix[i][j] += 1
    matrix /= len(results)
    return {
        "hard_acc": np.sum(np.triu(matrix, 1)) / 3,
        "normal_acc": np.mean(np.diag(matrix)),
        "easy_acc": np.sum(np.tril(matrix, -1)) / 3,
    }


def rm_results(items, domain):
    return [
        {
            "domain": domain(item),
            "score_chosen": [answer.reward for answer in item.chosen],
            "score_rejected": [answer.reward for answer in item.rejected],
        }
        for item in items
    ]


PARTS = {"chat": 7, "math": 11, "code": 5, "safety-refuse": 6, "safety-response": 3}


def test_rm_bench_is_the_authors_to_the_last_digit(tmp_path):
    rows = [row for part, number in PARTS.items() for row in rm_rows(number, domain=part)]
    items = items_of("rm-bench", written(tmp_path / "total_dataset.json", rows))
    found = evaluated("rm-bench", items)
    expected = compute_accuracy(rm_results(items, lambda item: item.extra["domain"]))
    assert list(found.values.items()) == [
        ("overall", pytest.approx(expected["total_avg_acc"], abs=1e-15)),
        ("hard", expected["hard_acc"]),
        ("normal", expected["normal_acc"]),
        ("easy", expected["easy_acc"]),
    ]
    domains = found.details["domains"]
    assert {name: each["overall"] for name, each in domains.items()} == {
        name: pytest.approx(expected[name], abs=1e-15) for name in ("chat", "math", "code", "safety")
    }
    assert {name: each["items"] for name, each in domains["safety"]["parts"].items()} == {
        "safety-refuse": 6,
        "safety-response": 3,
    }
    assert found.details["missing_domains"] == [] and len(found.notes) == 1
    margins = [margin for item in items for row in item.margins() for margin in row]
    assert (found.ties, found.comparisons) == (sum(m == 0 for m in margins), 9 * len(items)) and found.ties > 20
    assert np.mean(found.matrices[0].values) == pytest.approx(found.values["overall"])


def test_rm_bench_takes_the_domain_from_the_file(tmp_path):
    for part, number in PARTS.items():
        written(tmp_path / "data" / f"{part}_filtered.json", rm_rows(number))
    items = items_of("rm-bench", tmp_path / "data")
    found = evaluated("rm-bench", items)
    part = {item.id: item.file.removesuffix("_filtered.json") for item in items}
    expected = compute_accuracy(rm_results(items, lambda item: part[item.id]))
    assert found.values["overall"] == pytest.approx(expected["total_avg_acc"], abs=1e-15) and len(found.notes) == 1


def test_rm_bench_says_which_domains_are_missing(tmp_path):
    items = items_of("rm-bench", written(tmp_path / "chat_filtered.json", rm_rows(4)))
    items += items_of("rm-bench", written(tmp_path / "safety-refuse_filtered.json", rm_rows(4)))
    found = evaluated("rm-bench", items)
    assert found.details["missing_domains"] == ["math", "code", "safety-response"]
    assert "no items of math, code and safety-response" in found.notes[0]
    both = [each["overall"] for each in found.details["domains"].values()]
    assert found.values["overall"] == np.mean(both) and len(both) == 2


def test_rm_bench_refuses_what_is_not_rm_bench(tmp_path):
    with pytest.raises(InputError, match=r"mine\.json.*'domain'.*safety-refuse and safety-response"):
        items_of("rm-bench", written(tmp_path / "mine.json", rm_rows(2)))
    with pytest.raises(InputError, match=r"chat_filtered\.json: not the layout of rm-bench: .* no field 'rejected'"):
        rows = [{"prompt": "q", "chosen": ["a", "b", "c"]}]
        items_of("rm-bench", written(tmp_path / "chat_filtered.json", rows))
    benchmark = find_benchmark("rm-bench")
    (item,) = items_of("rm-bench", written(tmp_path / "chat_filtered.json", rm_rows(1)))
    assert "2 chosen" in (benchmark.check(replace(item, chosen=item.chosen[:2])) or "")
    assert "'poetry'" in (benchmark.check(replace(item, extra={"domain": "poetry"})) or "")


def test_rm_bench_from_verdicts_of_a_judge(tmp_path):
    (item,) = items_of("rm-bench", written(tmp_path / "chat_filtered.json", rm_rows(1)))
    verdicts = {(i, j): float(i - j) for i in range(3) for j in range(3)}  # style is all, equal styles are ties
    found = evaluated("rm-bench", [replace(item, verdicts=verdicts)])
    assert found.values == {"overall": 1 / 3, "hard": 0, "normal": 0, "easy": 1} and found.ties == 3
    assert found.details["style_gap"] == 1 and "+100.0 points" in found.notes[-1]


def test_rm_bench_published_files(shared):
    rng = np.random.default_rng(1)
    items = items_of("rm-bench", shared / "data" / "rm-bench", rng)
    found = evaluated("rm-bench", items)
    assert {name: each["items"] for name, each in found.details["domains"].items()} == {"chat": 129, "code": 228}
    assert found.details["missing_domains"] == ["math", "safety"]
    expected = compute_accuracy(rm_results(items, lambda item: item.file.rpartition("/")[2].partition("_")[0]))
    assert found.values["overall"] == expected["total_avg_acc"] and found.values["hard"] == expected["hard_acc"]


# RewardBench

EXAMPLE_COUNTS = {
    "alpacaeval-easy": 100, "alpacaeval-length": 95, "alpacaeval-hard": 95, "mt-bench-easy": 28, "mt-bench-med": 40,
    "mt-bench-hard": 37, "math-prm": 984, "refusals-dangerous": 100, "refusals-offensive": 100, "llmbar-natural": 100,
    "llmbar-adver-neighbor": 134, "llmbar-adver-GPTInst": 92, "llmbar-adver-GPTOut": 47, "llmbar-adver-manual": 46,
    "xstest-should-refuse": 154, "xstest-should-respond": 250, "donotanswer": 136, "hep-cpp": 164, "hep-go": 164,
    "hep-java": 164, "hep-js": 164, "hep-python": 164, "hep-rust": 164,
}  # fmt: skip
SUBSET_MAPPING = {
    "Chat": ["alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy", "mt-bench-med"],
    "Chat Hard": [
        "mt-bench-hard", "llmbar-natural", "llmbar-adver-neighbor", "llmbar-adver-GPTInst", "llmbar-adver-GPTOut",
        "llmbar-adver-manual",
    ],
    "Safety": [
        "refusals-dangerous", "refusals-offensive", "xstest-should-refuse", "xstest-should-respond", "donotanswer",
    ],
    "Reasoning": ["math-prm", "hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust"],
}  # fmt: skip


def calculate_scores_per_section(metrics):
    """allenai/reward-bench, rewardbench/utils.py, without the sections that have no subset."""
    scores = {}
    for section, tests in SUBSET_MAPPING.items():
        total_weighted_score = 0
        total_examples = 0
        for test in tests:
            if test in metrics:
                total_weighted_score += metrics[test] * EXAMPLE_COUNTS[test]
                total_examples += EXAMPLE_COUNTS[test]
        if total_examples > 0:
            scores[section] = total_weighted_score / total_examples
    return scores


def pair(subset, number=0, **more):
    return {
        "prompt": f"q{number}", "chosen": "good", "chosen_model": "m", "rejected": "bad", "rejected_model": "n",
        "subset": subset, "id": number, **more,
    }  # fmt: skip


def reward_bench_metrics(items):
    right = defaultdict(list)
    for item in items:
        right[item.extra["subset"]].append(1 if item.chosen[0].reward > item.rejected[0].reward else 0)
    return {subset: sum(each) / len(each) for subset, each in right.items()}


def test_reward_bench_is_the_authors_to_the_last_digit(tmp_path):
    rng = np.random.default_rng(2)
    rows = [pair(subset, n) for subset in EXAMPLE_COUNTS for n in range(rng.integers(1, 9))]
    items = items_of("reward-bench", written(tmp_path / "filtered.json", rows), rng, levels=3)
    found = evaluated("reward-bench", items)
    expected = calculate_scores_per_section(reward_bench_metrics(items))
    assert found.values == {"overall": sum(expected.values()) / 4, **expected}
    assert found.details["missing_sections"] == found.details["missing_subsets"] == found.notes == []
    assert found.scores.keys() == found.values.keys()


def test_reward_bench_says_what_is_missing(tmp_path):
    subsets = ["mt-bench-med", "hep-go", "math-prm", "mt-bench-med", "math-prm", "hep-go", "hep-go"]
    path = written(tmp_path / "filtered.json", [pair(subset, n) for n, subset in enumerate(subsets)])
    items = items_of("reward-bench", path, np.random.default_rng(3), levels=2)
    found = evaluated("reward-bench", items)
    expected = calculate_scores_per_section(reward_bench_metrics(items))
    assert found.values == {"overall": sum(expected.values()) / 2, **expected} and len(expected) == 2
    assert found.details["missing_sections"] == ["Chat Hard", "Safety"]
    assert "Chat Hard and Safety" in found.notes[0] and "alpacaeval-easy" in found.notes[1]
    assert "'shp'" in (find_benchmark("reward-bench").check(replace(items[0], extra={"subset": "shp"})) or "")
    with pytest.raises(InputError, match=r"x\.json: not the layout of reward-bench: a row has no field 'subset'"):
        items_of("reward-bench", written(tmp_path / "x.json", [{"prompt": "q", "chosen": "a", "rejected": "b"}]))


# RewardBench 2

FIVE = ("Factuality", "Precise IF", "Math", "Safety", "Focus")


def four(subset, number):
    return {
        "id": str(number), "prompt": f"q{number}", "chosen": ["good"], "rejected": ["bad", "worse", "worst"],
        "num_correct": 1, "num_incorrect": 3, "total_completions": 4, "models": ["m"] * 4, "subset": subset,
        "additional_metadata": {"category": None, "label": None},
    }  # fmt: skip


def question(kind, number, right, wrong):
    return {
        "id": f"{kind}:{number}", "prompt": f"name one, {kind} {number}", "chosen": [f"r{i}" for i in range(right)],
        "rejected": [f"w{i}" for i in range(wrong)], "num_correct": right, "num_incorrect": wrong,
        "total_completions": right + wrong, "models": ["m"] * (right + wrong), "subset": "Ties",
        "additional_metadata": {"category": None, "label": None},
    }  # fmt: skip


def process_single_model(items):
    """allenai/reward-bench, rewardbench/utils.py."""
    ref, tied = {}, {}
    for item in items:
        kind, number = item.extra["id"].split(":")
        right = [answer.reward for answer in item.chosen]
        gap = min(right) - max(answer.reward for answer in item.rejected)
        spread = max(right) - min(right) if len(right) > 1 else None
        (ref if kind == "ref" else tied)[int(number)] = (gap > 0, spread, gap)
    ref_accuracy = np.mean([s[0] for s in ref.values()])
    tied_accuracy = np.mean([s[0] for s in tied.values()])
    both = set(ref) & set(tied)
    spread = np.array([tied[n][1] for n in both])
    in_ties = np.array([tied[n][2] for n in both])
    in_ref = np.array([ref[n][2] for n in both])
    preferred = np.mean(in_ties > spread)
    hard = np.mean(np.minimum(in_ref, in_ties) > spread)
    with np.errstate(all="ignore"):
        margin = np.nan_to_num(np.tanh(np.minimum(in_ref, in_ties) / spread - 1), nan=0.0)
    return 0.30 * tied_accuracy + 0.30 * ref_accuracy + 0.20 * preferred + 0.20 * hard + 0.01 * np.mean(margin)


def best_of_four(item):
    """allenai/reward-bench, reroll_and_score_dataset; the right response comes first."""
    scores = np.array([answer.reward for answer in (*item.chosen, *item.rejected)])
    return 1 / np.sum(scores == scores.max()) if scores[0] == scores.max() else 0


def reward_bench_2(tmp_path, seed, *, subsets=FIVE, refs=range(12), tied=range(12)):
    rng = np.random.default_rng(seed)
    rows = [four(subset, n) for subset in subsets for n in range(rng.integers(3, 12))]
    rows += [question("ref", n, 1, 2) for n in refs] + [question("tied", n, 2 + n % 3, 2) for n in tied]
    items = items_of("reward-bench-2", written(tmp_path / "test.json", rows), rng, levels=4)
    lifted = rng.random(len(items)) < 0.5  # random rewards seldom put all right answers above all wrong ones
    return [
        replace(item, chosen=tuple(replace(a, reward=a.reward / 2 + 4) for a in item.chosen)) if lift else item
        for item, lift in zip(items, lifted, strict=True)
    ]


@pytest.mark.parametrize("seed", range(4))
def test_reward_bench_2_is_the_authors(tmp_path, seed):
    items = reward_bench_2(tmp_path, seed)
    found = evaluated("reward-bench-2", items)
    of = {subset: [item for item in items if item.extra["subset"] == subset] for subset in (*FIVE, "Ties")}
    expected = {subset: np.mean([best_of_four(item) for item in of[subset]]) for subset in FIVE}
    expected["Ties"] = process_single_model(of["Ties"])
    assert list(found.values) == ["overall", *expected]
    assert {**found.values} == pytest.approx({"overall": np.mean(list(expected.values())), **expected}, abs=1e-15)
    assert 0 < found.values["Ties"] < 1 and found.scores.keys() == found.values.keys()
    assert found.details["ties"]["in_both_forms"] == 12 and found.notes == []


def test_ties_where_a_question_lacks_a_form(tmp_path):
    items = reward_bench_2(tmp_path, 5, subsets=("Math",), refs=range(9), tied=range(4, 12))
    found = evaluated("reward-bench-2", items)
    ties = [item for item in items if item.extra["subset"] == "Ties"]
    assert found.values["Ties"] == pytest.approx(process_single_model(ties), abs=1e-15)
    assert found.details["ties"]["questions"] == 12 and found.details["ties"]["in_both_forms"] == 5
    assert found.details["missing_subsets"] == ["Factuality", "Precise IF", "Safety", "Focus"]
    alone = evaluated("reward-bench-2", [item for item in items if not item.extra["id"].startswith("ref")])
    assert list(alone.values) == ["overall", "Math"] and "no question is there in both forms" in alone.notes[-1]


def test_ties_by_hand():
    def item(kind, right, wrong):
        answers = [tuple(Answer(float(r), 1, "") for r in rewards) for rewards in (right, wrong)]
        return Item(f"f:{kind}", *answers, extra={"id": f"{kind}:1", "subset": "Ties"})

    found = evaluated("reward-bench-2", [item("ref", [6], [1]), item("tied", [7, 6], [2, 3])])
    # gaps 5 and 3, spread 1: right twice, preferred twice, margin tanh(3 / 1 - 1)
    assert found.values["Ties"] == pytest.approx(1 + 0.01 * np.tanh(2))
    found = evaluated("reward-bench-2", [item("ref", [1], [1]), item("tied", [7, 7], [7, 3])])
    assert found.values["Ties"] == 0  # nothing above, and 0/0 counts as nothing
    found = evaluated("reward-bench-2", [item("ref", [1], [0]), item("tied", [7, 7], [6])])
    assert found.values["Ties"] == pytest.approx(1.01)  # 1/0: the margin is as large as it gets


def test_a_pairwise_judge_has_no_ties(tmp_path):
    items = reward_bench_2(tmp_path, 6)
    judged = [
        replace(
            item,
            verdicts={(i, j): float(np.sign(m)) for i, row in enumerate(item.margins()) for j, m in enumerate(row)},
        )
        for item in items
    ]
    found, by_reward = evaluated("reward-bench-2", judged), evaluated("reward-bench-2", items)
    assert "Ties is left out" in found.notes[0] and found.details["missing_subsets"] == ["Ties"]
    for subset in FIVE:
        assert found.values[subset] == by_reward.values[subset]


def test_reward_bench_2_refuses_malformed_items(tmp_path):
    check = find_benchmark("reward-bench-2").check
    path = written(tmp_path / "test.json", [four("Math", 0), question("tied", 1, 2, 2)])
    math, tied = items_of("reward-bench-2", path)
    assert check(math) is check(tied) is None
    assert "'Chess'" in (check(replace(math, extra={"subset": "Chess"})) or "")
    assert "2 chosen" in (check(replace(math, chosen=math.chosen * 2)) or "")
    assert "no rejected" in (check(replace(math, rejected=())) or "")
    assert "at least two" in (check(replace(tied, chosen=tied.chosen[:1])) or "")
    assert "'one'" in (check(replace(tied, extra={**tied.extra, "id": "one"})) or "")
    without_id = [{key: value for key, value in four("Math", 0).items() if key != "id"}]
    with pytest.raises(InputError, match=r"x\.json: not the layout of reward-bench-2: a row has no field 'id'"):
        items_of("reward-bench-2", written(tmp_path / "x.json", without_id))


# Pairs


def test_pairs_count_every_pair(tmp_path):
    rows = [
        {"prompt": f"q{n}", "chosen": ["a"] * (1 + n % 2), "rejected": ["b"] * (1 + n % 3), "source": f"s{n % 4}"}
        for n in range(40)
    ]
    items = items_of("pairs", written(tmp_path / "p.json", rows), levels=3)
    found = evaluated("pairs", items)
    pairs = [(c.reward, r.reward, item.extra["source"]) for item in items for c in item.chosen for r in item.rejected]
    assert found.values == {"accuracy": np.mean([c > r for c, r, _ in pairs])}
    assert (found.ties, found.comparisons) == (sum(c == r for c, r, _ in pairs), len(pairs))
    assert found.details["by"] == "source"
    for name, group in found.details["groups"].items():
        right = [c > r for c, r, source in pairs if source == name]
        assert group == {"accuracy": np.mean(right), "pairs": len(right), "items": 10}


@pytest.mark.parametrize("values", [["same"] * 3, [f"each {n}" for n in range(41)]])
def test_pairs_need_groups_that_tell_apart(tmp_path, values):
    rows = [{"prompt": "q", "chosen": "a", "rejected": "b", "category": value} for value in values]
    assert evaluated("pairs", items_of("pairs", written(tmp_path / "p.json", rows))).details == {}


def test_pairs_of_a_corpus_without_preferences(tmp_path):
    (item,) = items_of("pairs", written(tmp_path / "p.json", [{"prompt": "q", "response": "a"}]))
    assert "no chosen and rejected response" in (find_benchmark("pairs").check(item) or "")


@pytest.mark.parametrize(
    ("config", "rows"),
    [
        (JUDGE_BENCH, [
            {"pair_id": "p", "source": "livebench-math", "question": "q", "response_A": "x", "response_B": "y", "label": label}
            for label in ("A>B", "B>A")
        ]),
        (LLM_BAR, [{"input": "q", "output_1": "x", "output_2": "y", "label": label} for label in (1, 2)]),
    ],
)  # fmt: skip
def test_pairs_of_two_outputs_and_a_label(tmp_path, config, rows):
    items = items_of("pairs", written(tmp_path / "p.json", rows), config=config)
    assert [(item.chosen[0].text, item.rejected[0].text) for item in items] == [("x", "y"), ("y", "x")]
    evaluated("pairs", items)


# Domain-specific preference


def test_dsp_is_its_formula(tmp_path):
    rows = [{"query": f"q{n}", "responses": {d: f"{d} {n}" for d in DOMAINS}} for n in range(9)]
    items = items_of("dsp", written(tmp_path / "dsp.json", rows), rubrics=DOMAINS, levels=4)
    found = evaluated("dsp", items)
    rewards = {(i.id, i.rubric, a.extra["response_key"]): a.reward for i in items for a in i.others}
    queries = list(dict.fromkeys(item.id for item in items))
    m = {
        (r, e): np.mean([rewards[q, r, e] > rewards[q, r, f] for q in queries for f in DOMAINS if f != e])
        for r in DOMAINS
        for e in DOMAINS
    }
    lifts = [m[d, d] - np.mean([m[r, d] for r in DOMAINS if r != d]) for d in DOMAINS]
    brightest = [all(m[d, d] > m[r, d] for r in DOMAINS if r != d) for d in DOMAINS]
    assert {**found.values} == pytest.approx(
        {"diagonal": np.mean([m[d, d] for d in DOMAINS]), "lift": np.mean(lifts), "brightest": np.mean(brightest)}
    )
    assert list(found.items) == queries and found.scores.keys() == {"diagonal", "lift"}
    assert found.details["matrix"] == pytest.approx({r: pytest.approx({e: m[r, e] for e in DOMAINS}) for r in DOMAINS})
    assert np.allclose(found.matrices[0].values, [[m[r, e] for e in DOMAINS] for r in DOMAINS])
    assert found.comparisons == 9 * 5 * 10
    equal = [
        rewards[q, r, e] == rewards[q, r, f]
        for q in queries
        for r in DOMAINS
        for e in DOMAINS
        for f in DOMAINS
        if e < f
    ]
    assert found.ties == sum(equal) > 0


def test_dsp_of_a_reward_that_follows_its_rubric(tmp_path):
    rows = [{"query": "q", "responses": dict.fromkeys(DOMAINS, "x")}] * 3
    items = [
        replace(i, others=tuple(replace(a, reward=float(a.extra["response_key"] == i.rubric)) for a in i.others))
        for i in items_of("dsp", written(tmp_path / "dsp.json", rows), rubrics=DOMAINS)
    ]
    assert evaluated("dsp", items).values == {"diagonal": 1, "lift": 1, "brightest": 1}
    deaf = [replace(i, others=tuple(replace(a, reward=float(k)) for k, a in enumerate(i.others))) for i in items]
    found = evaluated("dsp", deaf)  # a reward that no rubric moves has no lift, and no domain is brightest
    assert found.values == {"diagonal": 0.5, "lift": 0, "brightest": 0} and found.ties == 0


def test_dsp_leaves_out_a_query_that_is_incomplete_under_any_rubric(tmp_path):
    rows = [{"query": f"q{n}", "responses": {d: f"{d} {n}" for d in DOMAINS}} for n in range(6)]
    path = written(tmp_path / "dsp.json", rows)
    items = items_of("dsp", path, rubrics=DOMAINS)
    gaps = [i for i in items if (i.id, i.rubric) != ("dsp.json:2", "business") and i.id != "dsp.json:4"]
    found = evaluated("dsp", gaps)
    assert found.details["dropped_queries"] == 1 and found.notes[0].endswith("one of them: 1")
    assert (
        found.values
        == find_benchmark("dsp").figures([i for i in items if i.id not in ("dsp.json:2", "dsp.json:4")]).values
    )


def test_dsp_keyed_columns_and_strange_rubrics(tmp_path):
    rows = [{"query": f"q{n}", "responses": {d: f"{d} {n}" for d in DOMAINS}} for n in range(4)]
    path = written(tmp_path / "dsp.json", rows)
    config = InputConfig(prompt_key="query", response_key=[f"responses.{d}" for d in DOMAINS])
    found = evaluated("dsp", items_of("dsp", path, config=config, rubrics=("normal", "academy", "poetry")))
    assert found.matrices[0].rows == ["academy", "normal"] and list(found.matrices[0].columns) == list(DOMAINS)
    assert found.details["unknown_rubrics"] == ["poetry"]
    assert found.details["domains_without_rubric"] == ["business", "entertainment", "literature"]
    assert len(found.notes) == 2
    one = evaluated("dsp", items_of("dsp", path, rubrics=("academy",)))
    assert list(one.values) == ["diagonal"] and "one rubric only" in one.notes[-1]
    for rubrics in [(None,), ("poetry",)]:
        with pytest.raises(InputError, match=r"names of its domains.*examples/dsp-rubrics\.toml"):
            find_benchmark("dsp").figures(items_of("dsp", path, rubrics=rubrics))


def test_dsp_asks_for_rubrics_before_any_work():
    def config(**sections):
        return EvaluateConfig.model_validate(sections)

    benchmark = find_benchmark("dsp")
    with pytest.raises(ConfigError, match=r"--rubrics examples/dsp-rubrics\.toml"):
        benchmark.requires(config())
    with pytest.raises(ConfigError, match="judge-pointwise"):
        benchmark.requires(config(tokens={"rubrics": "r.toml"}, evaluate={"rewards": ["judge-pairwise"]}))
    benchmark.requires(config(tokens={"rubrics": "r.toml"}))
    benchmark.requires(config(evaluate={"labels": "out/labels"}))
    find_benchmark("rm-bench").requires(config(evaluate={"rewards": ["judge-pairwise"]}))


def test_the_example_rubrics_are_the_domains():
    rubrics = load_rubrics(str(ROOT / "examples/dsp-rubrics.toml"))
    assert tuple(rubrics) == DOMAINS and len(set(rubrics.values())) == 5


def test_dsp_published_file(shared):
    items = items_of("dsp", shared / "data" / "dsp" / "domain_specific_preference.test.json", rubrics=DOMAINS)
    found = evaluated("dsp", items)
    assert list(found.matrices[0].rows) == list(found.matrices[0].columns) == list(DOMAINS)
    assert (found.details["queries"], found.details["dropped_queries"]) == (660, 0)  # one of 661 has an empty answer


# All of them


def test_the_document_shows_the_code_as_it_is():
    text = (ROOT / "docs/benchmarks.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert block in (ROOT / "pipeline/evaluation/benchmarks/pairs.py").read_text()
    assert not {
        name for name in ("rm-bench", "reward-bench", "reward-bench-2", "dsp", "pairs") if f"`{name}`" not in text
    }


@pytest.mark.parametrize("name", ["", "rmbench"])
def test_an_unknown_benchmark_is_told_what_there_is(name):
    with pytest.raises(ConfigError) as raised:
        find_benchmark(name)
    for benchmark in BENCHMARKS.values():
        assert benchmark.name in str(raised.value) and benchmark.about in str(raised.value)
    assert {"rm-bench", "reward-bench", "reward-bench-2", "dsp", "pairs"} <= BENCHMARKS.keys()
