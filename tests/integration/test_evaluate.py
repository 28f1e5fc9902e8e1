"""The evaluate command as a user runs it, on a real local Ray."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from chaos import run_with_kills
from tiny import save_bigram

from pipeline.store import LabelStore, problems

Cli = Callable[..., subprocess.CompletedProcess[str]]
FAST = ("--set", "run.num_cpus=2", "--set", "scorer.cpus_per_actor=1")
JUDGE = {"good": "[[9]]", "bad": "[[2]]", "better": "[[A]]", "worse": "[[B]]"}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_list(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A bigram model, another one as its reference, and a random classifier, all of the same words."""
    folder = tmp_path_factory.mktemp("models")
    words = "what is it one two three Yes"
    made = {
        "base": save_bigram(folder / "base", JUDGE, words),
        "reference": save_bigram(folder / "reference", {**JUDGE, "one": "two"}, words),
        "classifier": folder / "classifier",
    }
    base = transformers.AutoModelForCausalLM.from_pretrained(made["base"])
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **{**base.config.to_dict(), "num_labels": 1, "pad_token_id": None, "initializer_range": 0.5}
    )
    transformers.LlamaForSequenceClassification(config).save_pretrained(made["classifier"])
    transformers.AutoTokenizer.from_pretrained(made["base"]).save_pretrained(made["classifier"])
    return made


EVERY = ("endogenous", "likelihood", "implicit", "judge-pointwise", "classifier")
"""Each engine at least once; a verifier asks a scorer too, and is in the kills below."""


@pytest.mark.timeout(600)
def test_every_reward_beside_every_other(models: dict[str, Path], tmp_path: Path, here: Cli, on_one_ray: Cli) -> None:
    rng = np.random.default_rng(0)
    words = ["one", "two", "three"]

    def text(last: str) -> str:
        return " ".join([*rng.choice(words, rng.integers(0, 5)), last])

    rows = [{"prompt": "what is it", "chosen": text("good"), "rejected": text("bad")} for _ in range(24)]
    rows += [{"prompt": "what is it", "chosen": text("bad"), "rejected": text("good")} for _ in range(8)]
    rows += [{"prompt": "what is it", "chosen": text("good"), "rejected": "two"}]  # a judgement that cannot be read
    rows += [{"prompt": "what is it", "chosen": "good", "rejected": ""}]  # a response that cannot be scored
    source, out = write(tmp_path / "pairs.jsonl", rows), tmp_path / "out"
    command = [
        "evaluate", "--benchmark", "pairs", "--input", source, "--model", models["base"], "--output", out,
        *(word for name in EVERY for word in ("--reward", name)), *FAST,
        "--set", f"implicit.reference={models['reference']}", "--set", f"classifier.model={models['classifier']}",
        "--set", "judge.pointwise_prompt={prompt} {response}", "--set", "judge.max_new_tokens=4",
        "--set", "input.shard_rows=10",
    ]  # fmt: skip
    ran = on_one_ray(*command)
    assert ran.returncode == 0, ran.stderr
    results = json.loads((out / "results.json").read_text())
    entries = {entry["name"]: entry for entry in results["rewards"]}
    assert list(entries) == [
        "endogenous (sum)", "endogenous (mean)", "endogenous (discounted_sum, gamma 0.95)",
        "likelihood (sum)", "likelihood (mean)", "implicit (sum)", "implicit (mean)",
        "judge-pointwise", "classifier",
    ]  # fmt: skip
    judge = entries["judge-pointwise"]
    assert judge["values"]["accuracy"] == 24 / 32 and judge["items"] == 32
    assert judge["incomplete"]["reasons"] == {"unparsable_judgement": 1, "empty_response": 1}
    assert judge["judgements"] == {"asked": 67, "unparsable": 1, "disagree": None}
    assert entries["classifier"]["items"] == 33
    assert entries["classifier"]["incomplete"]["reasons"] == {"empty_response": 1}
    for entry in entries.values():
        low, high = entry["intervals"]["accuracy"]
        assert low <= entry["values"]["accuracy"] <= high
        assert entry["batch_check"]["responses"] >= 8 and entry["batch_check"]["moved"] == 0
        assert entry["seconds_per_thousand_pairs"] > 0 and entry["bias"]["pairs"] == entry["items"]
    # the sum of log pi ranks as the endogenous sum does at gamma = 1, whose prompts' V cancels
    assert entries["endogenous (sum)"]["values"] == entries["likelihood (sum)"]["values"]
    assert results["accuracy"] == entries["endogenous (sum)"]["values"]["accuracy"]
    # above five distinct rewards the first is compared with every other; those that repeat one are left out
    assert len(results["comparisons"]) <= 7 and results["comparisons"][0]["items"] == 33
    assert all(c["second"] != "likelihood (sum)" for c in results["comparisons"])

    # implicit = beta * (log pi - log pi_ref), from plain forwards of both models
    items = pq.read_table(out / "items.parquet").to_pylist()
    [first] = [row for row in items if row["reward"] == "implicit (sum)" and row["id"] == "pairs.jsonl:0"]
    expected = 0.1 * (_logprob(models["base"], rows[0]["chosen"]) - _logprob(models["reference"], rows[0]["chosen"]))
    assert first["chosen_rewards"] == [pytest.approx(expected, abs=1e-5)]
    assert (
        "implicit (sum)" in (out / "results.md").read_text() and "implicit (sum)" in (out / "report.html").read_text()
    )

    # the endogenous store is an ordinary label store, and a second run has nothing to do
    store = out / "rewards" / "endogenous"
    assert here("validate", store).returncode == 0
    before = (out / "results.json").read_bytes()
    again = here(*command)
    assert again.returncode == 0 and again.stdout.count("nothing to do") == 4, again.stderr
    after = json.loads((out / "results.json").read_text())
    assert {**after, "created": ""} == {**json.loads(before), "created": ""}

    # from the store alone: the same figures, no model
    stored = here("evaluate", "--benchmark", "pairs", "--labels", store, "--output", tmp_path / "stored")
    assert stored.returncode == 0, stored.stderr
    found = json.loads((tmp_path / "stored" / "results.json").read_text())
    assert found["rewards"][1]["values"] == entries["endogenous (mean)"]["values"]

    other = here("evaluate", "--benchmark", "rm-bench", "--labels", store, "--output", tmp_path / "stored")
    assert other.returncode == 2 and "benchmark: 'pairs', now 'rm-bench'" in other.stderr


def _logprob(folder: Path, response: str) -> float:
    words = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    prompt, taken = (words(text, return_tensors="pt").input_ids[0] for text in ("what is it", response))
    logits = model(torch.cat([prompt, taken])[None]).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits, -1).gather(1, taken[:, None]).sum().item()


def test_a_judge_in_both_orders_and_one_that_never_answers(
    models: dict[str, Path], tmp_path: Path, on_one_ray: Cli
) -> None:
    rows = [{"prompt": "what is it", "chosen": ["worse", "one worse"], "rejected": ["better"]} for _ in range(6)]
    rows += [{"prompt": "what is it", "chosen": ["better", "one better"], "rejected": ["better"]} for _ in range(2)]
    source, out = write(tmp_path / "a.jsonl", rows), tmp_path / "out"
    common = ["--input", source, "--model", models["base"], "--output", out, "--reward", "judge-pairwise", *FAST]
    asked = ["--set", "judge.max_new_tokens=4", "--set", "judge.pairwise_prompt={prompt} {first} {second}"]
    ran = on_one_ray("evaluate", "--benchmark", "pairs", *common, *asked)
    assert ran.returncode == 0, ran.stderr
    [entry] = json.loads((out / "results.json").read_text())["rewards"]
    assert entry["values"]["accuracy"] == 12 / 16 and entry["ties"] == 4
    assert entry["judgements"] == {"asked": 16, "unparsable": 0, "disagree": 4}

    mute = ["--set", "judge.pairwise_prompt={prompt} {first} {second} it", "--set", "judge.max_new_tokens=4"]
    common[common.index(out)] = tmp_path / "mute"
    never = on_one_ray("evaluate", "--benchmark", "pairs", *common, *mute)
    assert never.returncode == 1 and "100% of 16 pairs have no judgement in the format asked for" in never.stderr
    assert not (tmp_path / "mute" / "results.json").exists()


def test_mistakes_are_said_before_anything_runs(models: dict[str, Path], tmp_path: Path, cli: Cli, here: Cli) -> None:
    source = write(tmp_path / "chat_filtered.json", [{"prompt": "q", "chosen": ["a", "b", "c"]}])
    out = tmp_path / "out"

    def refused(*words: Any) -> str:
        ran = here("evaluate", "--output", out, *words)
        assert ran.returncode == 2 and not out.exists(), ran.stderr
        return ran.stderr

    assert "rm-bench" in (said := refused("--benchmark", "nothing")) and "reward-bench-2" in said and "gsm8k" in said
    given = ("--benchmark", "pairs", "--input", source, "--model", models["base"])
    assert "judge-pairwise" in (said := refused(*given, "--reward", "judge")) and "'judge'" in said
    assert "implicit.reference" in refused(*given, "--reward", "implicit")
    assert "classifier.model" in refused(*given, "--reward", "classifier")
    wrong = refused("--benchmark", "rm-bench", "--input", source, "--model", models["base"])
    assert "chat_filtered.json" in wrong and "'rejected'" in wrong
    assert "--rubrics" in refused("--benchmark", "dsp", "--input", source, "--model", models["base"])
    assert "judge.pairwise_pattern" in refused(*given, "--set", "judge.pairwise_pattern=[AB]")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "mine").touch()
    said = cli("evaluate", *given, "--output", foreign)
    assert said.returncode == 2 and "holds something else (mine)" in said.stderr


@pytest.mark.parametrize(
    "count",
    [{"chat": 30, "code": 40}, pytest.param({"chat": 129, "code": 228}, marks=pytest.mark.slow)],
    ids=["some", "all"],
)
def test_rm_bench_is_the_authors_formula_on_the_stored_rewards(
    shared: Path, tmp_path: Path, on_one_ray: Cli, count: dict[str, int]
) -> None:
    out = tmp_path / "out"
    for domain, items in count.items():
        [whole] = (shared / "data/rm-bench").glob(f"{domain}*.json")
        write_list(tmp_path / "rm-bench" / whole.name, json.loads(whole.read_text())[:items])
    ran = on_one_ray(
        "evaluate", "--benchmark", "rm-bench", "--input", tmp_path / "rm-bench", "--output", out,
        "--model", shared / "models/stories260K", *FAST,
        "--set", "tokens.max_length=128", "--set", "tokens.over_length=cut_prompt",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    results = json.loads((out / "results.json").read_text())
    labels = pq.read_table(out / "rewards/endogenous/labels").to_pylist()
    matrices: dict[str, np.ndarray] = {}
    for domain, items in count.items():
        scores = {(r["prompt_id"], r["preference"], r["response_index"]): r["reward"] for r in labels}
        prompts = {prompt for prompt, _, _ in scores if prompt.startswith(domain)}
        assert len(prompts) == items == results["domains"][domain]["items"]
        matrix = np.zeros((3, 3))
        for prompt in prompts:
            for i in range(3):
                for j in range(3):
                    matrix[i, j] += scores[prompt, "chosen", i] > scores[prompt, "rejected", j]
        matrices[domain] = matrix / items
    kinds = {
        "hard": [np.sum(np.triu(m, 1)) / 3 for m in matrices.values()],
        "normal": [np.mean(np.diag(m)) for m in matrices.values()],
        "easy": [np.sum(np.tril(m, -1)) / 3 for m in matrices.values()],
    }
    assert {kind: results[kind] for kind in kinds} == {kind: np.mean(found) for kind, found in kinds.items()}
    overall = np.mean([np.mean(three) for three in zip(*kinds.values(), strict=True)])
    assert results["overall"] == overall and results["missing_domains"] == ["math", "safety"]
    assert results["rewards"][0]["name"] == "endogenous (sum)"


def test_a_policy_answers_questions(tmp_path: Path, on_one_ray: Cli, here: Cli) -> None:
    """A policy that says the right answer to one question of two, whatever the seed."""
    model = save_bigram(tmp_path / "policy", {"three": "5", "five": "7"}, "four")
    rows = [{"question": f"what is {word}", "answer": f"#### {gold}"} for word, gold in (("three", 5), ("five", 8))]
    source, out = write(tmp_path / "gsm8k.jsonl", [*rows, {"question": "what", "answer": ""}]), tmp_path / "out"
    command = [
        "evaluate", "--benchmark", "gsm8k", "--input", source, "--model", model, "--output", out, *FAST,
        "--set", "answers.instruction=", "--set", "answers.max_new_tokens=4", "--set", "answers.samples=2",
        "--set", "answers.temperature=0.01",
    ]  # fmt: skip
    ran = on_one_ray(*command)
    assert ran.returncode == 0, ran.stderr
    results = json.loads((out / "results.json").read_text())
    assert results["pass@1"] == 0.5 and results["rewards"][0]["incomplete"]["reasons"] == {"no_gold": 1}
    answers = pq.read_table(out / "rewards/policy/labels").to_pylist()
    assert [(a["response"], a["reward"]) for a in answers] == [("5", 1), ("5", 1), ("7", 0), ("7", 0)]
    assert here("validate", out / "rewards/policy").returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_an_evaluation_that_is_killed_goes_on_to_the_same_figures(models: dict[str, Path], tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rows = [
        {
            "prompt": f"what is {i}",
            "chosen": "one " * int(rng.integers(1, 9)) + "good",
            "rejected": "two " * (i % 5) + "bad",
        }
        for i in range(600)
    ]
    source = write(tmp_path / "pairs.jsonl", rows)

    def arguments(out: Path) -> list[str]:
        given = ["evaluate", "--benchmark", "pairs", "--input", source, "--model", models["base"], "--output", out]
        settings = ["verifier.question={prompt} {response}", "judge.pointwise_prompt={prompt} {response}"]
        settings += ["judge.max_new_tokens=4", "input.shard_rows=20"]
        rewards = [word for name in ("endogenous", "verifier", "judge-pointwise") for word in ("--reward", name)]
        return [*map(str, given), *rewards, *FAST, *(word for text in settings for word in ("--set", text))]

    run_with_kills(arguments(tmp_path / "undisturbed"), tmp_path / "undisturbed", 0, 0)
    killed = run_with_kills(arguments(tmp_path / "disturbed"), tmp_path / "disturbed", 8, 3)
    assert killed.total() == 8 and len(killed) > 1
    first, second = (json.loads((tmp_path / d / "results.json").read_text()) for d in ("undisturbed", "disturbed"))
    for one, other in zip(first["rewards"], second["rewards"], strict=True):
        same = ("name", "values", "intervals", "items", "incomplete", "ties", "responses", "tokens", "bias")
        assert {key: one[key] for key in same} == {key: other[key] for key in same}
    assert first["fingerprints"] == second["fingerprints"]
    for name in ("endogenous", "verifier", "judge-pointwise"):
        assert not list(problems(LabelStore(str(tmp_path / "disturbed/rewards" / name))))
