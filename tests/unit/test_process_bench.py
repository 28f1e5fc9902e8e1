"""ProcessBench against its authors' formulas, typed anew here, thresholds by trying all, and steps by counting bytes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_benchmarks import evaluated as checked
from tiny import CHATML, save_model, tokenizer

from pipeline.config import EvaluateConfig, InputConfig, ModelConfig, RewardConfig, TokensConfig
from pipeline.corpus import Shard, find_files, turns
from pipeline.corpus.samples import STEP_STARTS
from pipeline.errors import ConfigError, InputError, RowError
from pipeline.evaluation.benchmarks import find_benchmark
from pipeline.evaluation.benchmarks.items import Answer, Item
from pipeline.evaluation.benchmarks.process_bench import choose
from pipeline.evaluation.results import Cost, make_results
from pipeline.evaluation.statistics import intervals
from pipeline.evaluation.steps import step_of_tokens, step_variants
from pipeline.evaluation.stores import evaluated
from pipeline.models.loading import load_model, load_tokenizer
from pipeline.models.scoring import Scorer
from pipeline.report.evaluation import draw_evaluation
from pipeline.report.markdown import results_markdown
from pipeline.rewards.labellers import Endogenous
from pipeline.store import LabelStore, commit
from pipeline.tokens import Renderer, pieces

PROCESS = find_benchmark("process-bench")
SUBSETS = ("gsm8k", "math", "olympiadbench", "omnimath")
Row = dict[str, Any]


def item(number: int, subset: str, label: Any, steps: tuple[float, ...], **more: Any) -> Item:
    answer = Answer(min(steps, default=0.0), 9, "text", steps=steps, **more)
    return Item(f"{subset}.json:{number}", others=(answer,), extra={"id": f"{subset}-{number}", "label": label})


def drawn(seed: int, subsets: tuple[str, ...] = SUBSETS, each: int = 40, levels: int = 9, lift: int = 3) -> list[Item]:
    """Random whole rewards, of wrong steps lower by `lift`."""
    rng = np.random.default_rng(seed)
    items = []
    for subset in subsets:
        for number in range(each):
            steps = rng.integers(levels, size=rng.integers(1, 7)).astype(float)
            label = int(rng.integers(len(steps))) if number % 3 else -1
            steps[label] -= lift if label >= 0 else 0
            items.append(item(number, subset, label, tuple(steps.tolist())))
    return items


def predicted(steps: tuple[float, ...], sign: int, threshold: float) -> int:
    for number, reward in enumerate(steps):
        if sign * reward < threshold:
            return number
    return -1


def authors(items: list[Item], sign: int, threshold: float) -> tuple[float, float, float]:
    """QwenLM/ProcessBench, code/run_eval.py, of one subset: error accuracy, correct accuracy, F1."""
    pairs = [(i.extra["label"], predicted(i.others[0].steps, sign, threshold)) for i in items]
    data = [{"label": label, "match": pred == label} for label, pred in pairs]
    acc1 = np.mean([e["match"] for e in data if e["label"] != -1])
    acc2 = np.mean([e["match"] for e in data if e["label"] == -1])
    return float(acc1), float(acc2), float(2 * acc1 * acc2 / (acc1 + acc2)) if acc1 + acc2 else 0.0


def of(items: list[Item], subset: str) -> list[Item]:
    return [each for each in items if each.extra["id"].startswith(f"{subset}-")]


@pytest.mark.parametrize("seed", range(4))
def test_figures_are_the_authors_at_the_best_rule_of_gsm8k(seed: int) -> None:
    items = drawn(seed, lift=-3 if seed == 3 else 3)
    found = checked("process-bench", items)
    rewards = sorted({reward for each in of(items, "gsm8k") for reward in each.others[0].steps})
    ways = [(sign, sign * reward + 0.25 * side) for sign in (1, -1) for reward in rewards for side in (-1, 1)]
    best = max(authors(of(items, "gsm8k"), *way)[2] for way in ways)
    rule = found.details["sign"], found.details["threshold"]
    assert best > 0 and authors(of(items, "gsm8k"), *rule)[2] == pytest.approx(best)
    assert rule[0] == (-1 if seed == 3 else 1)
    every = {subset: authors(of(items, subset), *rule) for subset in SUBSETS}
    error, correct, f1 = map(float, np.mean(list(every.values()), axis=0))
    assert dict(found.values) == pytest.approx(
        {
            "f1": f1,
            "held_out": np.mean([every[subset][2] for subset in SUBSETS[1:]]),
            "error_accuracy": error,
            "correct_accuracy": correct,
        }
    )
    for subset, expected in every.items():
        entry = found.details["subsets"][subset]
        assert (entry["error_accuracy"], entry["correct_accuracy"], entry["f1"]) == pytest.approx(expected)
        assert (entry["items"], entry["erroneous"]) == (40, 26)
        at = [i.others[0].steps[i.extra["label"]] for i in of(items, subset) if i.extra["label"] >= 0]
        assert entry["reward_of_the_wrong_step"] == pytest.approx(np.mean(at))
    assert "chosen on gsm8k alone" in found.notes[0] and ("above" in found.notes[0]) == (seed == 3)


@pytest.mark.parametrize("seed", range(30))
def test_the_rule_is_the_best_of_all(seed: int) -> None:
    items = drawn(seed, ("gsm8k",), each=12, levels=4, lift=1)
    rule = choose(items)
    rewards = {reward for each in items for reward in each.others[0].steps}
    ways = [(s, s * r + d) for s in (1, -1) for r in rewards for d in (-0.5, 0, 0.5)]
    assert authors(items, rule.sign, rule.threshold)[2] == pytest.approx(max(authors(items, *way)[2] for way in ways))
    assert all(
        rule.predict(i.others[0].steps) == predicted(i.others[0].steps, rule.sign, rule.threshold) for i in items
    )


def test_the_other_subsets_have_no_say_in_the_rule() -> None:
    items = drawn(0)
    rule = choose(of(items, "gsm8k"))
    turned = [*of(items, "gsm8k"), *drawn(1, SUBSETS[1:], lift=-9)]
    for each in (items, turned):
        details = PROCESS.figures(each).details
        assert (details["sign"], details["threshold"]) == (rule.sign, rule.threshold)


def test_by_hand() -> None:
    gsm8k = [item(0, "gsm8k", 1, (2.0, -1.0, 5.0)), item(1, "gsm8k", -1, (3.0, 2.5))]
    maths = [item(2, "math", 0, (1.75, -9.0)), item(3, "math", -1, (0.0,)), item(4, "math", -1, (0.75,))]
    found = PROCESS.figures(gsm8k + maths)
    # between -1 and 2 GSM8K is right: its middle
    assert (found.details["sign"], found.details["threshold"]) == (1, 0.5)
    assert found.details["subsets"]["math"]["f1"] == 0  # its error is missed, though half of the correct ones are right
    assert found.values == {"f1": 0.5, "held_out": 0, "error_accuracy": 0.5, "correct_accuracy": 0.75}
    assert "olympiadbench and omnimath" in found.notes[1] and PROCESS.chance(found) is None
    assert set(PROCESS.figures(gsm8k).values) == {"f1", "error_accuracy", "correct_accuracy"}  # nothing is held out


def test_the_interval_of_f1_is_that_of_resampled_f1() -> None:
    items = drawn(7, each=150)
    found = checked("process-bench", items)
    rule, rng = (found.details["sign"], found.details["threshold"]), np.random.default_rng(0)
    hits = {
        (subset, wrong): np.array(
            [
                predicted(i.others[0].steps, *rule) == i.extra["label"]
                for i in of(items, subset)
                if (i.extra["label"] >= 0) == wrong
            ]
        )
        for subset in SUBSETS
        for wrong in (True, False)
    }
    resampled = {key: rng.choice(each, (2000, len(each))).mean(1) for key, each in hits.items()}
    pairs = {subset: (resampled[subset, True], resampled[subset, False]) for subset in SUBSETS}
    means = {
        "f1": np.mean([2 * a * b / (a + b) for a, b in pairs.values()], axis=0),
        "held_out": np.mean([2 * a * b / (a + b) for s, (a, b) in pairs.items() if s != "gsm8k"], axis=0),
        "error_accuracy": np.mean([a for a, _ in pairs.values()], axis=0),
    }
    bounds = intervals(found, 2000, 0)
    for name, values in means.items():
        assert bounds[name] == pytest.approx(np.quantile(values, (0.025, 0.975)), abs=0.01), name
        assert bounds[name][1] - bounds[name][0] > 0.05


def test_what_cannot_be_evaluated_is_said() -> None:
    assert PROCESS.check(item(0, "math", 1, (1.0, 2.0))) is None
    for label in (2, -2, True, None, "1", 0.0):
        assert "-1 or the number of a step, from 0" in (PROCESS.check(item(0, "math", label, (1.0, 2.0))) or "")
    assert "'aime'" in (PROCESS.check(item(0, "aime", 0, (1.0,))) or "")
    assert "raise tokens.max_length" in (PROCESS.check(item(0, "math", 0, (1.0,), truncated=True)) or "")
    assert "give the text" in (PROCESS.check(item(0, "math", 0, ())) or "")
    assert "no token of its own" in (PROCESS.check(item(0, "math", 0, (1.0, float("nan")))) or "")
    assert "2 solutions" in (PROCESS.check(Item("a:0", others=(Answer(0.0, 1, ""),) * 2, extra={"id": "math-1"})) or "")
    for items in (drawn(0, ("math",)), [item(0, "gsm8k", -1, (1.0,)), *drawn(0, ("math",))]):
        with pytest.raises(InputError, match=r"chooses its threshold on gsm8k.*give the file gsm8k\.json"):
            PROCESS.figures(items)
    rewards = EvaluateConfig.model_validate({"evaluate": {"rewards": ["endogenous", "judge-pointwise"]}})
    with pytest.raises(
        ConfigError, match="judge-pointwise has none; give --reward endogenous, likelihood and implicit"
    ):
        PROCESS.requires(rewards)
    with pytest.raises(InputError, match=r"x\.json: not the layout of process-bench: a row has no field 'steps'"):
        PROCESS.shape([{"problem": "q", "label": 1}], InputConfig(), "x.json")


@pytest.mark.parametrize(
    ("steps", "reason"), [("text", "not_text"), ([], "not_text"), (["a", None], "null"), (["a", 1], "not_text")]
)
def test_steps_that_are_none(steps: Any, reason: str) -> None:
    shape = PROCESS.shape([{"problem": "q", "steps": ["a"], "label": 0}], InputConfig(), "a.json")
    with pytest.raises(RowError) as raised:
        shape.normalise("a", 0, {"problem": "q", "steps": steps, "label": 0})
    assert raised.value.reason == reason


@pytest.mark.parametrize("card", [True, False])
def test_a_clone_is_all_of_its_subsets(tmp_path: Path, card: bool) -> None:
    for subset in SUBSETS:
        (tmp_path / f"{subset}.json").write_text("[]")
    if card:
        files = "".join(f"  - split: {subset}\n    path: {subset}.json\n" for subset in SUBSETS)
        (tmp_path / "README.md").write_text(
            f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n# Steps\n"
        )
    found = find_files([str(tmp_path)], default=PROCESS.choice)
    assert [file.name for file in found] == [f"{subset}.json" for subset in SUBSETS]


# Tokens and steps


def by_bytes(ids: list[int], steps: list[str]) -> list[int]:
    """The step in which each token's first byte stands; of a tokenizer whose every token is its bytes."""
    tok, place, owners = tokenizer(), 0, []
    ends = np.cumsum([len(f"{step}\n\n".encode()) for step in steps])
    last = len("\n\n".join(steps).encode())
    sizes = [len(tok.convert_ids_to_tokens(int(i))) for i in ids]  # a character stands for a byte
    for size in sizes:
        owners.append(-1 if place >= last else int((place >= ends).sum()))
        place += size
    return owners


@pytest.mark.parametrize(
    "steps",
    [["ab cd.", "abcd", "x a"], ["one"], ["a\n\nb", "\nc", " d "], ["", "b"], ["naïve ∑", "日本 a", "end"]],
)
def test_tokens_belong_to_the_step_that_they_begin_in(steps: list[str]) -> None:
    tok = tokenizer()
    text = "\n\n".join(steps)
    starts = [len("\n\n".join([*steps[:n], ""])) for n in range(len(steps))]
    ids = [*tok(text)["input_ids"], tok.eos_token_id]
    owners, number = step_of_tokens(pieces(tok)(ids), text, starts)
    assert number == len(steps)
    inside = len(ids) - 1 - (len(text.encode()) - len(text.rstrip().encode()))  # what ends the response is of no step
    assert owners.tolist()[:inside] == by_bytes(ids, steps)[:inside] and set(owners[inside:].tolist()) == {-1}
    cut = owners[: len(ids) // 2].tolist()
    assert step_of_tokens(pieces(tok)(ids[: len(cut)]), text, starts)[0].tolist() in (cut, [*cut[:-1], -1])


def test_text_around_a_response_is_of_no_step() -> None:
    texts = ["<think>", "\n", "</think>", " a", "b.", "\n\n", "c", "<end>"]
    assert step_of_tokens(texts, "ab.\n\nc", [0, 5])[0].tolist() == [-1, -1, -1, 0, 0, 0, 1, -1]
    assert step_of_tokens(["ab", ".", "\n\nc"], " ab.\n\nc ", [0, 6])[0].tolist() == [0, 0, 0]  # a template that strips
    assert step_of_tokens(["other", " text"], "ab.\n\nc", [0, 5]) == (pytest.approx(np.array([-1, -1])), 0)


@pytest.mark.parametrize("name", ["soda-chat-3M", "stories260K"])
def test_steps_of_real_tokenizers(shared: Path, name: str) -> None:
    """With a chat template, behind which a space begins the first token, and without."""
    model = ModelConfig(name=str(shared / "models" / name))
    tok = load_tokenizer(model)
    renderer = Renderer(tok, TokensConfig(), 256)
    steps = ["First, 3 + 4 = 7 apples.", "So  naïvely\n- it is 7.", "\\boxed{7}"]
    row = {"problem": "How many?", "steps": steps, "label": -1}
    [turn] = turns(PROCESS.shape([row], InputConfig(), "a.json").normalise("a", 0, row))
    texts = pieces(tok)(renderer.tokenize(turn).response_ids.tolist())
    owners, number = step_of_tokens(texts, turn.response, turn.extra[STEP_STARTS])
    joined = ["".join(text for text, owner in zip(texts, owners, strict=True) if owner == n) for n in range(3)]
    assert number == 3 and "".join(joined).lstrip() == "\n\n".join(steps)
    assert [each.strip() for each in joined] == steps  # neither joins the end of a step with the next


def test_from_a_file_to_results(tmp_path: Path) -> None:
    """Every step that a run takes but Ray's: rewards of steps are those of the stored tokens, counted by bytes."""
    model = save_model(tmp_path / "model", CHATML)
    config = EvaluateConfig.model_validate(
        {
            "model": {"name": str(model)},
            "evaluate": {"resamples": 100, "rewards": ["endogenous", "likelihood"]},
            "reward": {"gamma": 0.9},
        }
    )
    rows = [
        {
            "id": f"{subset}-{n}", "generator": "m", "problem": f"What is {n}?",
            "steps": [f"ab {n} cd.", "a b", f"so {n}"][: 1 + n % 3], "final_answer_correct": n % 2 == 0,
            "label": -1 if n % 2 else 0,
        }
        for subset in ("gsm8k", "math")
        for n in range(6)
    ]  # fmt: skip
    labeller, shard = Endogenous(config, config.model), Shard("a", 0, 0, 12, 12, "0" * 64, 0, 10)
    prepared = labeller.prepare(shard, 0, enumerate(rows), PROCESS.shape(rows, config.input, "gsm8k.json"))
    labels, failures = labeller.finish(prepared, Scorer(load_model(config.model, "cpu", 0)).score(prepared.requests))
    assert not failures and [label.response for label in labels] == ["\n\n".join(row["steps"]) for row in rows]
    commit(str(tmp_path / "store"), shard, "f", 0, labels, failures)
    stores = {"endogenous": LabelStore(str(tmp_path / "store"))}
    variants = step_variants(config, RewardConfig(gamma=0.9), pieces(tokenizer(CHATML)))
    found = evaluated(stores, variants, PROCESS)
    assert [each.variant.name for each in found] == [
        f"{reward} ({way} of a step)" for reward in ("endogenous", "likelihood") for way in ("sum", "mean", "minimum")
    ]
    for each in found:
        assert not each.incomplete and len(each.items) == 12
        for row, label, own in zip(rows, labels, each.items, strict=True):
            values = label.token_rewards if each.variant.reward == "endogenous" else label.token_logprobs
            owners = np.array(by_bytes(list(label.token_ids), row["steps"]))
            way = {"sum": np.sum, "mean": np.mean, "minimum": np.min}[each.variant.name.split("(")[1].split(" ")[0]]
            expected = [way(values[owners == step].astype(np.float64)) for step in range(len(row["steps"]))]
            assert own.others[0].steps == pytest.approx(expected, rel=1e-5)
            assert own.others[0].reward == min(own.others[0].steps) and own.extra["label"] == row["label"]
    costs = [Cost("m", [], None, None, None)] * len(found)
    results, table = make_results(found, costs, {}, PROCESS, config, created="2026-01-01")
    document = json.loads(json.dumps(results.content()))
    assert document["benchmark"] == "process-bench" and 0 <= document["f1"] <= 1 and "threshold" in document
    first = table.to_pylist()[0]
    assert first["step_rewards"] == list(found[0].items[0].others[0].steps)
    assert "endogenous (sum of a step)" in results_markdown(results)
    page = draw_evaluation(results)
    assert all(words in page for words in ("minimum of a step", "chosen on gsm8k alone", "reward of the wrong step"))
