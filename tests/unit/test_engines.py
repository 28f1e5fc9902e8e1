"""The interface of engines, on its reference: completions, log-probabilities of a text, weights under a version."""

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM

from pipeline.config import ModelConfig
from pipeline.errors import RunError
from pipeline.models.engines import Drawing, Engine, EngineSpec, open_engine
from pipeline.models.questions import Completion, Question

PROMPT = [5, 9, 33, 7]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_model(tmp_path_factory.mktemp("model"), hidden=32)


@pytest.fixture
def engine(folder: Path) -> Engine:
    drawing = Drawing(max_new_tokens=8, temperature=1.0, logprobs=True)
    return open_engine(EngineSpec(ModelConfig(name=str(folder), dtype="float32"), "cpu", drawing))


def completion(engine: Engine) -> Completion:
    [[completion]] = engine.generate([Question(PROMPT, 1, 3)])  # type: ignore[misc]
    assert isinstance(completion, Completion)
    return completion


def test_log_probabilities_of_a_text_are_those_that_it_was_drawn_with(engine: Engine) -> None:
    drawn = completion(engine)
    again = engine.logprobs(PROMPT + drawn.token_ids)
    assert len(again) == len(PROMPT) + len(drawn.token_ids) - 1
    np.testing.assert_allclose(again[len(PROMPT) - 1 :], drawn.logprobs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("temperature", "top_p", "logprobs", "raw"),
    [(1, 1, True, True), (0, 0.9, True, True), (0.7, 1, True, False), (1, 0.9, True, False), (1, 1, False, False)],
)
def test_raw_log_probabilities_are_of_what_is_drawn_or_are_none(
    temperature: float, top_p: float, logprobs: bool, raw: bool, folder: Path
) -> None:
    """By the reference, which gives those of what it draws from: they are those of temperature 1 where these are right."""
    drawing = Drawing(8, temperature=temperature, top_p=top_p, logprobs=logprobs)
    assert drawing.wants_raw == raw
    engine = open_engine(EngineSpec(ModelConfig(name=str(folder), dtype="float32"), "cpu", drawing))
    drawn = completion(engine)
    of_temperature_1 = engine.logprobs(PROMPT + drawn.token_ids)[len(PROMPT) - 1 :]
    if logprobs:
        assert np.allclose(drawn.logprobs, of_temperature_1, atol=1e-5) == raw
    else:
        assert drawn.logprobs is None


def test_what_is_repeatable_does_not_depend_on_its_batch(engine: Engine) -> None:
    """Together, and alone in another order; other seeds give other texts."""
    questions = [Question(PROMPT[:length], 3, seed) for seed in range(3) for length in (1, 2, 4)]
    together = engine.generate(questions)
    alone = [engine.generate([question])[0] for question in reversed(questions)][::-1]
    assert engine.can.repeatable and together == alone
    assert len({tuple(each.token_ids) for samples in together for each in samples}) == 27  # type: ignore[union-attr]


def test_weights_come_under_a_version(folder: Path, engine: Engine) -> None:
    learner = AutoModelForCausalLM.from_pretrained(folder)
    before = engine.logprobs(PROMPT)
    assert engine.version is None
    with torch.no_grad():
        for weight in learner.parameters():
            weight.mul_(1.1)
    engine.load(4, learner.state_dict())
    due = learner(torch.tensor([PROMPT])).logits[0, :-1].log_softmax(-1).gather(1, torch.tensor(PROMPT[1:])[:, None])
    np.testing.assert_allclose(engine.logprobs(PROMPT), due[:, 0].detach().numpy(), rtol=0, atol=1e-5)
    assert engine.version == 4 and np.abs(engine.logprobs(PROMPT) - before).max() > 1e-3
    with pytest.raises(RunError, match="the learner sends other, which LlamaForCausalLM does not have"):
        engine.load(5, {"other": torch.ones(2)})
    assert engine.version is None, "some weights may be of the one, some of the other"
