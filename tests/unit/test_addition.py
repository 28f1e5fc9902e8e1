"""The embedded default: problems and worked answers against integer arithmetic, and the model on the embedded pairs."""

import importlib.util
import json
import os
import random
import sys
import warnings
from itertools import islice

import pytest

FOLDER = os.path.join(os.path.dirname(__file__), "..", "..", "examples", "addition")


def load_problems():
    spec = importlib.util.spec_from_file_location("addition_problems", os.path.join(FOLDER, "problems.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


problems = load_problems()


@pytest.fixture(scope="module")
def pairs() -> list[dict[str, str]]:
    with open(os.path.join(FOLDER, "pairs.jsonl"), encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def wrong_steps(prompt: str, worked: str) -> list[int]:
    """Independent of the generator: the columns whose total is not the sum of what the step itself names.

    Fails if a step misstates the problem's digits or the carry that the step before left, or if the final answer is not
    made of the totals.
    """
    a, b = prompt.removesuffix("=").split("+")
    *steps, final = worked.split(";")
    assert len(steps) == 3
    carry, written, wrong = "0", "", []
    for column, step in enumerate(steps):
        terms, total = step.split("=")
        assert terms == f"{a[-1 - column]}+{b[-1 - column]}+{carry}"
        if sum(int(term) for term in terms.split("+")) != int(total):
            wrong.append(column)
        carry, digit = total
        written = digit + written
    assert final == str(int(carry + written))
    return wrong


def test_the_same_seed_gives_the_same_rows_and_another_seed_others() -> None:
    rows = list(problems.pair_rows(50, seed=7))
    assert rows == list(problems.pair_rows(50, seed=7))
    assert rows[:20] == list(problems.pair_rows(20, seed=7))
    assert rows != list(problems.pair_rows(50, seed=8))


def test_training_and_held_out_problems_are_disjoint_in_either_order() -> None:
    train = set(islice(problems.problem_stream(1, held_out=False), 5000))
    held_out = set(problems.distinct_problems(5000, seed=1))
    assert len(held_out) == 5000
    assert not train & (held_out | {problems.Problem(b, a) for a, b in held_out})
    assert all(100 <= number <= 999 for problem in train | held_out for number in problem)


def test_about_a_tenth_is_held_out() -> None:
    rng = random.Random(0)
    drawn = [problems.Problem(rng.randint(100, 999), rng.randint(100, 999)) for _ in range(5000)]
    assert 0.08 < sum(problem.held_out for problem in drawn) / 5000 < 0.12


@pytest.mark.parametrize(
    ("a", "b", "worked"),
    [
        (345, 678, "5+8+0=13;4+7+1=12;3+6+1=10;1023"),
        (100, 100, "0+0+0=00;0+0+0=00;1+1+0=02;200"),
        (999, 999, "9+9+0=18;9+9+1=19;9+9+1=19;1998"),
    ],
)
def test_the_right_answer_in_full(a: int, b: int, worked: str) -> None:
    assert problems.right_answer(problems.Problem(a, b)) == worked


def test_right_answers_are_right_and_wrong_ones_have_one_wrong_step_and_a_wrong_sum() -> None:
    rng = random.Random(0)
    columns = set()
    for problem in problems.distinct_problems(2000, seed=3):
        right, wrong = problems.right_answer(problem), problems.wrong_answer(problem, rng)
        assert problems.parse(problem.prompt) == problem
        assert wrong_steps(problem.prompt, right) == []
        assert int(right.split(";")[-1]) == problem.a + problem.b
        (column,) = wrong_steps(problem.prompt, wrong)
        columns.add(column)
        assert int(wrong.split(";")[-1]) != problem.a + problem.b
        assert problems.is_correct(problem, right)
        assert not problems.is_correct(problem, wrong)
    assert columns == {0, 1, 2}


@pytest.mark.parametrize("text", ["", "1023;", "5+8+0=13;4+7+1=12", "5+8+0=13;4+7+1=12;3+6+1=10;10230", "ten"])
def test_what_is_not_an_answer_is_not_correct(text: str) -> None:
    assert not problems.is_correct(problems.Problem(345, 678), text)


def test_a_third_of_the_demonstrations_are_wrong() -> None:
    rng = random.Random(0)
    stream = list(islice(problems.problem_stream(5, held_out=False), 5000))
    wrong = sum(not problems.is_correct(problem, problems.demonstration(problem, rng)) for problem in stream)
    assert 0.31 < wrong / 5000 < 0.36


def test_more_problems_than_there_are_is_an_error() -> None:
    with pytest.raises(ValueError, match="count must be"):
        problems.distinct_problems(100_000, seed=1)


def test_the_command_writes_rows(tmp_path, monkeypatch) -> None:
    output = tmp_path / "rows.jsonl"
    monkeypatch.setattr(sys, "argv", ["problems.py", "--problems", "3", "--split", "train", "--output", str(output)])
    problems.main()
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert rows == list(problems.problem_rows(3, seed=1, held_out=False))
    for row in rows:
        a, b = row["prompt"].removesuffix("=").split("+")
        assert row["answer"] == str(int(a) + int(b))


def test_the_embedded_pairs_are_what_the_command_writes(pairs) -> None:
    assert pairs == list(problems.pair_rows(500, seed=1))


@pytest.fixture(scope="module")
def embedded():
    transformers = pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer = transformers.AutoTokenizer.from_pretrained(os.path.join(FOLDER, "model"))
        model = transformers.AutoModelForCausalLM.from_pretrained(os.path.join(FOLDER, "model")).eval()
    return tokenizer, model


def test_the_tokenizer_puts_one_bos_and_no_eos_and_gives_the_text_back(embedded, pairs) -> None:
    tokenizer, model = embedded
    text = pairs[0]["prompt"] + pairs[0]["chosen"]
    ids = tokenizer(text).input_ids
    assert len(ids) == 1 + len(text)
    assert ids[0] == tokenizer.bos_token_id
    assert not set(ids[1:]) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}) == 4
    assert len(tokenizer) == model.config.vocab_size
    assert tokenizer("é").input_ids == [tokenizer.bos_token_id, tokenizer.unk_token_id]


def test_the_embedded_model_ranks_right_above_wrong(embedded, pairs) -> None:
    torch = pytest.importorskip("torch")
    tokenizer, model = embedded
    sums = []
    for side in ("chosen", "rejected"):
        texts = [pair["prompt"] + pair[side] + tokenizer.eos_token for pair in pairs]
        inputs = tokenizer(texts, return_tensors="pt", padding=True)
        with torch.no_grad():
            logprobs = model(**inputs).logits[:, :-1].log_softmax(-1).gather(-1, inputs.input_ids[:, 1:, None])[..., 0]
        sums.append((logprobs * inputs.attention_mask[:, 1:])[:, 8:].sum(-1))  # a prompt is BOS and 8 characters
    assert (sums[0] > sums[1]).float().mean() >= 0.95
