"""Verdicts and answers are read behind the thoughts of who wrote them; thoughts that do not end hold none."""

from pathlib import Path

import pytest
from tiny import CHATML, save_model, tokenizer

from pipeline.config import EvaluateConfig, TokensConfig
from pipeline.corpus import Shape, Shard
from pipeline.errors import RowError
from pipeline.evaluation.benchmarks import find_benchmark
from pipeline.evaluation.benchmarks.maths import Maths
from pipeline.models.questions import Completion
from pipeline.rewards.answers import extract_and_check
from pipeline.rewards.labellers import MathsAnswerer, PairwiseJudge, PointwiseJudge, Verifier
from pipeline.rewards.labellers.judge import verdict
from pipeline.rl.config import RlConfig
from pipeline.rl.rollouts import Prompt
from pipeline.rl.sources import checker
from pipeline.tokens import Renderer
from pipeline.tokens.thoughts import behind_thoughts

OPENING = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")  # as DeepSeek-R1's, QwQ's
CASES = [  # what was written, whether the prompt opened thoughts, what is read
    ("It is 5.", False, "It is 5."),
    ("<think>4?</think>It is 5.", False, "It is 5."),
    ("4?\n</think>\nIt is 5.", False, "\nIt is 5."),
    ("4?\n</think>\nIt is 5.", True, "\nIt is 5."),
    ("<think>4?</think>no<think>6</think>5", False, "5"),
    ("<think>4?", False, None),
    ("<think>4?</think>5<think>6", False, None),
    ("4? It is 6", True, None),
    ("<thinking>4</thinking>5", False, "5"),
]


@pytest.mark.parametrize(("text", "opened", "answer"), CASES)
def test_what_is_read_stands_behind_the_thoughts(text: str, opened: bool, answer: str | None) -> None:
    assert behind_thoughts(text, opened) == answer


@pytest.mark.parametrize(("template", "opened"), [(OPENING, True), (CHATML, False), (None, False)])
def test_a_template_may_open_them(template: str | None, opened: bool) -> None:
    assert Renderer(tokenizer(template), TokensConfig(), 256).opens_thoughts is opened


THINKING = CHATML.replace(
    "{{ m['content'] }}", "{% if m['role'] == 'assistant' %}<think></think>{% endif %}{{ m['content'] }}"
)


def test_who_writes_may_think_and_what_is_scored_stands_behind_closed_thoughts(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", THINKING, context=2000)
    config = EvaluateConfig.model_validate({"model": {"name": str(model)}})
    shard, pair = Shard("a.jsonl", 0, 0, 1, 1, "0" * 64, 0, 10), Shape((("a", "chosen"), ("b", "rejected")), prompt="q")
    maths, question = find_benchmark("gsm8k", config.best_of_n), Shape((), prompt="question")
    assert isinstance(maths, Maths)
    for labeller, shape, ending in (
        (PointwiseJudge(config, config.model), pair, "assistant\n"),
        (PairwiseJudge(config, config.model), pair, "assistant\n"),
        (MathsAnswerer(config, config.model, benchmark=maths), question, "assistant\n"),
        (Verifier(config, config.model), pair, "assistant\n<think></think>"),
    ):
        row = {"q": "what?", "a": "yes", "b": "no", "question": "1+1?", "answer": "#### 2"}
        prepared = labeller.prepare(shard, 0, [(0, row)], shape)
        assert prepared.requests and not prepared.failures
        for request in prepared.requests:
            assert labeller.renderer.tokenizer.decode(request.prompt_ids).endswith(ending)


PATTERN = r"\[\[\s*(\d+)\s*\]\]"


def test_a_verdict_inside_thoughts_is_none() -> None:
    assert verdict(PATTERN, Completion("<think>[[3]]? No.</think> [[7]]", [1], True)) == "7"
    assert verdict(PATTERN, Completion("perhaps [[3]]</think>[[7]]", [1], True), True) == "7"
    for text, opened in (
        ("<think>[[3]] perhaps", False),
        ("[[3]] perhaps", True),
        ("<think>[[3]]</think> none", False),
    ):
        with pytest.raises(RowError) as error:
            verdict(PATTERN, Completion(text, [1], False), opened)
        assert error.value.reason == "unparsable_judgement"


def test_a_judge_whose_template_opens_thoughts_is_read_behind_them(tmp_path: Path) -> None:
    model = save_model(tmp_path / "judge", OPENING, context=2000)
    config = EvaluateConfig.model_validate({"model": {"name": str(model)}})
    judge = PointwiseJudge(config, config.model)
    assert judge.reward([Completion("[[3]]?</think>[[7]]", [1], True)])[0] == 7.0
    with pytest.raises(RowError, match="its thoughts do not end"):
        judge.reward([Completion("[[3]]?", [1], False)])


def test_an_answer_inside_thoughts_is_none() -> None:
    assert extract_and_check(r"<think>\boxed{4}</think>It is \boxed{5}.", "5").correct
    assert not extract_and_check(r"<think>\boxed{5}</think>It is \boxed{4}.", "5").correct
    for text, opened in ((r"<think>It is \boxed{5}", False), (r"It is \boxed{5}", True)):
        checked = extract_and_check(text, "5", opened)
        assert not checked.correct and checked.extracted is None
    assert extract_and_check(r"\boxed{5}", "5").correct


def test_what_is_measured_online_is_read_behind_thoughts(tmp_path: Path) -> None:
    for name, template, right in (("opening", OPENING, False), ("plain", CHATML, True)):
        named = {"name": str(save_model(tmp_path / name, template))}
        held_out = {"check": "maths", "prompts": ["x"]}
        check = checker(RlConfig.model_validate({"policy": named, "reward_model": named, "held_out": held_out}))
        assert check is not None
        prompt = Prompt("a:0", [], True, [1], {"answer": "5"})
        assert check(prompt, r"\boxed{5}") is right and check(prompt, r"4?</think>\boxed{5}")
