"""Benchmarks with pictures against their authors' formulas, typed anew here, on rows in the published layouts."""

import json
import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_benchmarks import evaluated, items_of
from test_corpus_pictures import picture

from pipeline.corpus.pictures import PLACEHOLDER, Picture
from pipeline.errors import InputError
from pipeline.evaluation.benchmarks import find_benchmark
from pipeline.evaluation.benchmarks.items import Answer, Item

IDS = (
    "RLAIF-V-14", "RLHF-V-2", "hallucination_pair-1", "mathverse_2279", "mmmu_pro_test_Marketing_150",
    "wildvision-battle-3", "LRVInstruction-000000007746", "svit-1", "jailbreak_7",
)  # fmt: skip


def vl_rows(count: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [
        {
            "id": IDS[rng.integers(len(IDS))], "query": f"<image>\nWhat is {i}?", "response": [f"a{i}", f"b{i}"],
            "image": {"bytes": picture(), "path": None}, "human_ranking": [0, 1] if rng.integers(2) else [1, 0],
            "models": ["m", "n"], "judge": "human", "rationale": None, "query_source": "COCO", "ground_truth": None,
        }
        for i in range(count)
    ]  # fmt: skip


def published_group(name: str) -> str:
    """Of cal.py at commit 9b10abd: the id up to its first _ or -, and the group of that data set."""
    prefix = re.split("[_-]", name)[0]
    data = {
        "RLAIF": "rlaif-v", "RLHF": "rlhf-v", "mathverse": "reasoning_tasks", "mmmu": "reasoning_tasks",
        "wildvision": "wildvision-battle", "hallucination": "povid",
    }.get(prefix, "vlfeedback")  # fmt: skip
    return {
        "vlfeedback": "general", "povid": "hallucination", "reasoning_tasks": "reasoning", "rlhf-v": "hallucination",
        "rlaif-v": "hallucination", "wildvision-battle": "general",
    }[data]  # fmt: skip


def test_vl_reward_bench_is_the_macro_mean_of_its_groups(tmp_path: Path) -> None:
    rows = vl_rows(60)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "test-00000-of-00001.parquet")
    items = items_of("vl-reward-bench", tmp_path)
    assert [item.chosen[0].text for item in items] == [row["response"][row["human_ranking"].index(0)] for row in rows]
    correct: dict[str, int] = defaultdict(int)
    total: dict[str, int] = defaultdict(int)
    for item, row in zip(items, rows, strict=True):
        group = published_group(row["id"])
        total[group] += 1
        correct[group] += item.chosen[0].reward > item.rejected[0].reward
    found = evaluated("vl-reward-bench", items)
    shares = {group: correct[group] / total[group] for group in ("general", "hallucination", "reasoning")}
    assert found.values == pytest.approx(
        {"macro": sum(shares.values()) / 3, "overall": sum(correct.values()) / sum(total.values()), **shares}
    )
    assert found.main == "macro" and found.ties and not found.notes


def test_groups_that_are_not_there_are_named() -> None:
    pair = {"chosen": (Answer(1.0, 1, "a"),), "rejected": (Answer(0.0, 1, "b"),)}
    prompt = {"role": "user", "content": PLACEHOLDER, "pictures": [Picture(picture(), "a.png")]}
    item = Item("f:0", extra={"id": "mmmu_1"}, prompt=(prompt,), **pair)  # type: ignore[arg-type]
    found = evaluated("vl-reward-bench", [item])
    assert found.values == {"macro": 1.0, "overall": 1.0, "reasoning": 1.0}
    assert found.notes == ["no items of general and hallucination: macro is the mean of the other groups"]
    why = find_benchmark("vl-reward-bench").check(Item("f:1", chosen=pair["chosen"]))
    assert why and "one of each is due" in why
    assert find_benchmark("vl-reward-bench").check(replace(item, prompt=())) == "its prompt shows no picture"


def multimodal_rows(count: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    kinds = (
        ("PAIRS_1", "safety"), ("hateful_2", "safety"), ("math_3", "reasoning"), ("EMMA-Coding_4", "reasoning"),
        ("nocaps_5", "open_generation/correctness_task"), ("MMBench_6", "vqa"),
    )  # fmt: skip
    drawn = [kinds[rng.integers(len(kinds))] for _ in range(count)]
    return [
        {
            "ID": name, "Dataset": "d", "Category": category, "Text": f"What is {i}?", "Image": "images/a.png",
            "Output1": f"a{i}", "Output2": f"b{i}", "Better": f"Output{1 + rng.integers(2)}",
        }
        for i, (name, category) in enumerate(drawn)
    ]  # fmt: skip


def test_multimodal_reward_bench_is_accuracy_over_all_and_by_category(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(picture())
    rows = multimodal_rows(60)
    (tmp_path / "all_data.json").write_text(json.dumps(rows))
    items = items_of("multimodal-reward-bench", tmp_path)
    accs: dict[str, list[int]] = defaultdict(list)
    for item, row in zip(items, rows, strict=True):
        assert item.chosen[0].text == row[row["Better"]]
        right = int(item.chosen[0].reward > item.rejected[0].reward)
        category = row["Category"]
        if category == "safety":
            category = "safety/bias" if row["ID"].lower().startswith("pairs") else "safety/toxicity"
        elif category == "reasoning":
            category = "reasoning/math" if row["ID"].lower().startswith("math") else "reasoning/coding"
        accs["overall"].append(right)
        accs[category].append(right)
    found = evaluated("multimodal-reward-bench", items)
    assert found.values == pytest.approx({name: sum(each) / len(each) for name, each in accs.items()})
    assert found.main == "overall"


@pytest.mark.parametrize("name", ["vl-reward-bench", "multimodal-reward-bench"])
def test_another_layout_is_refused_with_the_field_that_it_lacks(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"prompt": "?", "chosen": "a", "rejected": "b"}]))
    with pytest.raises(InputError, match="a row has no field"):
        items_of(name, tmp_path)
