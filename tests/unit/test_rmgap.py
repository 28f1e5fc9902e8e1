"""RMGAP against its authors' formulas, typed anew here, and against labels of the same prompts and responses in rows of
their own."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_benchmarks import evaluated, items_of
from tiny import CHATML, save_model

from pipeline.config import EvaluateConfig, InputConfig
from pipeline.corpus import Shard, find_files
from pipeline.errors import ConfigError, InputError, RowError
from pipeline.evaluation.benchmarks import find_benchmark
from pipeline.evaluation.benchmarks.items import Item
from pipeline.evaluation.reading import items_of as stored_items
from pipeline.models.loading import load_model
from pipeline.models.scoring import Scorer
from pipeline.rewards.labellers import Endogenous
from pipeline.store.schema import labels_table

RMGAP = find_benchmark("rmgap")
DOMAINS = {"Chat": 7, "Writing": 3, "Reasoning": 5, "Safety": 4}
Row = dict[str, Any]


def row(
    number: int, domain: str = "Chat", keys: tuple[str, ...] = ("response2", "response1", "a.b", "response4")
) -> Row:
    """In the published layout; winners in another order than responses, as a key may win two groups."""
    return {
        "id": f"{domain}-{number}",
        "domain": domain,
        "source": "somewhere",
        "responses": [{"key": key, "text": f"{key} of {number}"} for key in keys],
        "prompt_groups": [
            {
                "group": g + 1,
                "winner": keys[g * number % 4],
                "prompts": [{"text": f"{number}: way {g}.{p}"} for p in range(3)],
            }
            for g in range(4)
        ],
        "style_assignments": {key: {"tone": "dry"} for key in keys},
    }


def written(path: Path, domains: dict[str, int]) -> Path:
    rows = [row(n, domain) for domain, number in domains.items() for n in range(number)]
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


def rewarded(item: Item, rewards: Sequence[float]) -> Item:
    return replace(item, others=tuple(replace(a, reward=float(r)) for a, r in zip(item.others, rewards, strict=True)))


def authors(items: list[Item]) -> dict[str, float]:
    """nanzhi84/RMGAP, src/rmgap/task_runner.py: records of (domain, record, group, winner, keys in order, scores)."""
    records = []
    for item in items:
        rewards = {answer.text: answer.reward for answer in item.others}
        assert len(rewards) == 4
        scored = iter(answer.reward for answer in item.others)
        keys = [answer.text.partition(" of ")[0] for answer in item.others[:4]]
        for group in item.extra["prompt_groups"]:
            for _ in range(3):
                by_key = {key: next(scored) for key in keys}
                records.append((item.extra["domain"], item.id, group["group"], group["winner"], by_key))
    wins, total, bon = defaultdict(float), defaultdict(int), defaultdict(list)
    rankings = defaultdict(lambda: defaultdict(list))
    for domain, record, group, winner, by_key in records:
        ordered = sorted(by_key)
        scores = np.array([by_key[key] for key in ordered])
        index = ordered.index(winner)
        losers = scores[[i for i, key in enumerate(ordered) if key != winner]]
        wins[domain] += float(np.sum(scores[index] > losers))
        total[domain] += len(losers)
        bon[domain].append(1 if np.all(scores[index] > losers) else 0)
        pairs = sorted(zip(ordered, scores, strict=True), key=lambda each: (-float(each[1]), str(each[0])))
        rankings[domain][record, group].append([key for key, _ in pairs])
    flags = {d: [int(all(r == each[0] for r in each)) for each in of.values()] for d, of in rankings.items()}
    return {
        "pair": float(np.mean([wins[d] / total[d] for d in total])),
        "bon": float(np.mean([np.mean(each) for each in bon.values()])),
        "consistency": float(np.mean([np.mean(each) for each in flags.values()])),
    }


@pytest.mark.parametrize("levels", [2, 3, 50])
def test_figures_are_the_authors(tmp_path: Path, levels: int) -> None:
    items = items_of("rmgap", written(tmp_path / "test.jsonl", DOMAINS), np.random.default_rng(levels), levels=levels)
    if levels == 2:  # random rankings hardly ever agree
        items = [
            item if n % 3 == 0 else rewarded(item, [a.reward for a in item.others[:4]] * 12)
            for n, item in enumerate(items)
        ]
    found = evaluated("rmgap", items)
    assert found.main == "pair" and dict(found.values) == pytest.approx(authors(items), abs=1e-12)
    assert found.values["consistency"] > 0.3 or levels > 2
    for domain, number in DOMAINS.items():
        alone = authors([item for item in items if item.extra["domain"] == domain])
        assert found.details["domains"][domain] == pytest.approx({**alone, "items": number})
    margins = [
        by[group["winner"]] - reward
        for item in items
        for g, group in enumerate(item.extra["prompt_groups"])
        for p in range(3)
        for by in [{a.text.partition(" of ")[0]: a.reward for a in item.others[4 * (3 * g + p) :][:4]}]
        for key, reward in by.items()
        if key != group["winner"]
    ]
    assert (found.ties, found.comparisons) == (margins.count(0), 36 * 19) and found.notes == []


def test_a_reward_that_knows_and_one_that_knows_nothing(tmp_path: Path) -> None:
    items = items_of("rmgap", written(tmp_path / "test.jsonl", {"Chat": 3}))
    deaf = [rewarded(item, [0, 1, 2, 3] * 12) for item in items]
    assert evaluated("rmgap", deaf).values["consistency"] == 1  # the same ranking whatever is asked
    keys = [[answer.text.partition(" of ")[0] for answer in item.others] for item in items]
    winners = [[group["winner"] for group in item.extra["prompt_groups"] for _ in range(12)] for item in items]
    knowing = [
        rewarded(i, [k == w for k, w in zip(*each, strict=True)]) for i, *each in zip(items, keys, winners, strict=True)
    ]
    found = evaluated("rmgap", knowing)
    assert found.values == {"pair": 1, "bon": 1, "consistency": 1}
    assert "no rows of Writing, Reasoning and Safety" in found.notes[0]
    constant = [rewarded(item, [1] * 48) for item in items]
    found = evaluated("rmgap", constant)  # ties are wrong, and ranked by key
    assert found.values == {"pair": 0, "bon": 0, "consistency": 1} and found.ties == found.comparisons


def test_a_clone_is_its_split(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    written(tmp_path / "data" / "test.jsonl", {"Chat": 1})
    written(tmp_path / "data" / "train.jsonl", {"Chat": 2})
    assert [file.name for file in find_files([str(tmp_path)], default=RMGAP.choice)] == ["data/test.jsonl"]


def test_rows_that_are_not_the_layout(tmp_path: Path) -> None:
    (item,) = items_of("rmgap", written(tmp_path / "test.jsonl", {"Chat": 1}))
    assert "'Poetry'" in (RMGAP.check(replace(item, extra={**item.extra, "domain": "Poetry"})) or "")
    assert "3 prompts and 4 responses" in (RMGAP.check(replace(item, others=item.others[:-4])) or "")
    assert "3 prompts and 4 responses" in (RMGAP.check(replace(item, others=item.others[:-1])) or "")
    foreign = tuple(replace(answer, extra={"response_key": "academy"}) for answer in item.others)
    assert "3 prompts and 4 responses" in (RMGAP.check(replace(item, others=foreign)) or "")
    groups = [{**group, "winner": "nobody"} for group in item.extra["prompt_groups"]]
    assert "a winner" in (RMGAP.check(replace(item, extra={**item.extra, "prompt_groups": groups})) or "")
    assert "a winner" in (RMGAP.check(replace(item, extra={**item.extra, "prompt_groups": groups[1:]})) or "")
    shape = RMGAP.shape([row(0)], InputConfig(), "test.jsonl")
    lopsided = row(0)
    lopsided["prompt_groups"][0]["prompts"].append(lopsided["prompt_groups"][1]["prompts"].pop())
    sample = shape.normalise("a", 0, lopsided)  # twelve prompts, and not three in each group
    answers = tuple(replace(item.others[0], extra=response.extra) for response in sample.responses)
    assert len(answers) == 48 and "3 prompts" in (RMGAP.check(replace(item, others=answers)) or "")
    with pytest.raises(
        InputError, match=r"x\.json: not the layout of rmgap: a row has no field 'prompt_groups.winner'"
    ):
        RMGAP.shape([{"domain": "Chat", "responses": [{"key": "a", "text": "b"}]}], InputConfig(), "x.json")
    with pytest.raises(ConfigError, match="judge-pointwise"):
        RMGAP.requires(EvaluateConfig.model_validate({"evaluate": {"rewards": ["judge-pairwise"]}}))


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        (("prompt_groups", 1, "prompts", 2, "text"), " ", "empty_prompt"),
        (("prompt_groups", 1, "prompts", 2, "text"), None, "null"),
        (("responses", 1, "text"), None, "null"),
        (("responses", 1, "key"), "response2", "bad_message"),
        (("responses",), "text", "not_text"),
    ],
)
def test_a_bad_row_is_an_error_row(place: tuple[Any, ...], value: Any, reason: str) -> None:
    bad = row(0)
    shape = RMGAP.shape([bad], InputConfig(), "a.json")
    inner: Any = bad
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    with pytest.raises(RowError) as raised:
        shape.normalise("a", 0, bad)
    assert raised.value.reason == reason


def test_an_empty_response_is_counted() -> None:
    empty = row(0)
    empty["responses"][2]["text"] = ""
    sample = RMGAP.shape([empty], InputConfig(), "a.json").normalise("a", 0, empty)
    assert len(sample.responses) == 36 and [f.error.reason for f in sample.failed] == ["empty_response"] * 12
    assert [failed.index % 4 for failed in sample.failed] == [2] * 12


def test_each_response_is_scored_behind_each_prompt(tmp_path: Path) -> None:
    """Labels of one row are those of twelve rows, a prompt with its four responses each."""
    model = save_model(tmp_path / "model", CHATML)
    config = EvaluateConfig.model_validate({"model": {"name": str(model)}})
    labeller, scorer = Endogenous(config, config.model), Scorer(load_model(config.model, "cpu", 0))

    def labels(rows: list[Row], benchmark: str) -> list[Any]:
        shape = find_benchmark(benchmark).shape(rows, config.input, "a.json")
        shard = Shard("a", 0, 0, len(rows), len(rows), "0" * 64, 0, 10)
        prepared = labeller.prepare(shard, 0, enumerate(rows), shape)
        made, failures = labeller.finish(prepared, scorer.score(prepared.requests))
        assert not failures
        return made

    whole = row(1)
    texts = [response["text"] for response in whole["responses"]]
    prompts = [prompt["text"] for group in whole["prompt_groups"] for prompt in group["prompts"]]
    grid = labels([whole], "rmgap")
    plain = labels([{"prompt": prompt, "responses": texts} for prompt in prompts], "pairs")
    assert [label.response for label in grid] == [label.response for label in plain] == texts * 12
    assert [label.prompt for label in grid] == [label.prompt for label in plain]
    assert [label.reward for label in grid] == pytest.approx([label.reward for label in plain], rel=1e-5)
    assert len({round(label.reward, 5) for label in grid}) == 48 and {label.preference for label in grid} == {None}
    [item] = stored_items(labels_table(grid))
    assert RMGAP.check(item) is None and evaluated("rmgap", [item]).values == pytest.approx(authors([item]))
