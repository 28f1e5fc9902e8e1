"""vLLM against the reference: the same tokens by the same random numbers, their log-probabilities, weights by version."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, SIBLING
from transformers import AutoModelForCausalLM

from pipeline.config import ModelConfig
from pipeline.errors import ConfigError, RowError, RunError
from pipeline.models.engines.checks import CPU_HEAD_SIZES, check_vllm
from pipeline.models.engines.probe import Probe, probe_text
from pipeline.models.questions import Question

QUESTIONS = ("What is the capital of France?", "Name a colour.", "Tell me a story about a dog.", "What is 1 + 1?")
SUMS = ("753+939=", "1+2=", "100+200=", "999+1=")


def asked(engine: Any, texts: tuple[str, ...], samples: int) -> list[Question]:
    tokenizer = engine.tokenizer if hasattr(engine, "tokenizer") else engine.generator.tokenizer

    def ids(text: str) -> list[int]:
        if tokenizer.chat_template is None:
            return list(tokenizer(text)["input_ids"])
        messages = [{"role": "user", "content": text}]
        return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))

    return [Question(ids(text), samples, seed) for seed, text in enumerate(texts)]


def flat(answers: list[Any]) -> list[Any]:
    return [sample for samples in answers for sample in samples]


def agree(reference: Any, vllm: Any, texts: tuple[str, ...]) -> None:
    """Rounding may decide one draw of thousands otherwise; from there it is another response. Log-probabilities are those
    that the reference gives to what vLLM drew, whatever itself it drew."""
    questions = asked(vllm, texts, 16)
    due, got = (engine.generate(questions) for engine in (reference, vllm))
    same = [(a, b) for a, b in zip(flat(due), flat(got), strict=True) if a.token_ids == b.token_ids]
    assert len(same) >= 0.95 * len(flat(got))
    assert all(a.text == b.text and a.finished == b.finished for a, b in same)
    for question, samples in zip(questions, got, strict=True):
        for each in samples:
            exact = reference.logprobs(question.prompt_ids + each.token_ids)[-len(each.token_ids) :]
            np.testing.assert_allclose(each.logprobs, exact, rtol=0, atol=1e-3)


def test_smollm2_draws_the_references_tokens(both: tuple[Any, Any]) -> None:
    agree(*both, QUESTIONS)  # 64 sequences, each with a seed of its own


def test_additions_draw_the_references_tokens(adders: tuple[Any, Any]) -> None:
    agree(*adders, SUMS)


def test_a_sample_does_not_depend_on_its_batch(both: tuple[Any, Any]) -> None:
    vllm = both[1]
    assert vllm.can.repeatable
    questions = asked(vllm, QUESTIONS, 4)
    together = vllm.generate(questions)
    alone = [vllm.generate([question])[0] for question in reversed(questions)][::-1]
    assert [[each.token_ids for each in samples] for samples in together] == [
        [each.token_ids for each in samples] for samples in alone
    ]
    [few] = vllm.generate([replace(questions[0], samples=2)])
    assert [each.token_ids for each in few] == [each.token_ids for each in together[0][:2]]


def test_log_probabilities_of_a_text(both: tuple[Any, Any]) -> None:
    reference, vllm = both
    [question] = asked(vllm, QUESTIONS[:1], 1)
    [[drawn]] = vllm.generate([question])
    text = question.prompt_ids + drawn.token_ids
    np.testing.assert_allclose(vllm.logprobs(text), reference.logprobs(text), rtol=0, atol=1e-3)
    np.testing.assert_allclose(vllm.logprobs(text)[-len(drawn.token_ids) :], drawn.logprobs, rtol=0, atol=1e-3)


@pytest.mark.parametrize("drawing", [{"temperature": 0.0}, {"temperature": 0.7, "top_p": 0.8}])
def test_other_distributions_too(drawing: dict[str, float], adders: tuple[Any, Any], monkeypatch: Any) -> None:
    """On the engines that are there: their settings of drawing are set, and what is made of them."""
    from pipeline.models.engines.vllm import _draws_of

    reference, vllm = adders
    for name, value in drawing.items():
        monkeypatch.setattr(reference.generator, name, value)
    monkeypatch.setattr(vllm, "drawing", replace(vllm.drawing, **drawing))
    processor = next(p for p in processors(vllm) if type(p).__name__ == "Draws")
    monkeypatch.setattr(processor, "warpers", _draws_of(vllm.drawing).warpers)
    due, got = (flat(engine.generate(asked(engine, SUMS, 8))) for engine in adders)
    same = [(a, b) for a, b in zip(due, got, strict=True) if a.token_ids == b.token_ids]
    assert len(same) >= 0.95 * len(due)
    if drawing["temperature"]:
        assert all(each.logprobs is None for each in got), "vLLM's are of temperature 1"
    else:
        for mine, its in same:
            np.testing.assert_allclose(its.logprobs, mine.logprobs, rtol=0, atol=1e-3)


def processors(vllm: Any) -> Iterator[Any]:
    runner = vllm.llm.llm_engine.model_executor.driver_worker.worker.model_runner
    yield from runner.input_batch.logitsprocs.non_argmax_invariant


def test_what_cannot_be_asked_is_an_error_row(adders: tuple[Any, Any]) -> None:
    vllm = adders[1]
    fine, long, strange = vllm.generate([Question([1, 5]), Question([1] * 128), Question([99])])
    assert not isinstance(fine, RowError)
    assert [each.reason for each in (long, strange)] == ["prompt_too_long", "unknown_token"]
    held = vllm.most
    vllm.most = 8
    try:
        [large] = vllm.generate([Question([1, 5])])
    finally:
        vllm.most = held
    assert large.reason == "out_of_memory" and "26 tokens is more than budget_tokens = 8" in large.detail


# Weights by version


@pytest.fixture
def learner(adders: tuple[Any, Any]) -> Iterator[Any]:
    """A model that changes; both engines have their own weights again afterwards."""
    model = AutoModelForCausalLM.from_pretrained(SIBLING, dtype=torch.float32)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    yield model
    for engine in adders:
        engine.load(0, before)


def changed(model: Any, version: int) -> dict[str, torch.Tensor]:
    """As a step would: every weight by a little."""
    draw = torch.Generator().manual_seed(version)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.01 * torch.randn(weight.shape, generator=draw)
    return {name: weight.detach() for name, weight in model.named_parameters()}


def of_learner(model: Any, text: list[int]) -> np.ndarray:
    with torch.no_grad():
        logprobs = model(torch.tensor([text])).logits[0, :-1].log_softmax(-1)
    taken: np.ndarray = logprobs.gather(1, torch.tensor(text[1:])[:, None])[:, 0].numpy()
    return taken


def test_after_ten_updates_samples_come_from_the_new_weights(adders: tuple[Any, Any], learner: Any) -> None:
    reference, vllm = adders
    probe, text = Probe("float32"), probe_text(17)
    questions = asked(vllm, SUMS, 4)
    first = [each.token_ids for each in flat(vllm.generate(questions))]
    for version in range(1, 11):
        weights = changed(learner, version)
        vllm.load(version, weights)
        assert vllm.version == version
        probe.check(version, of_learner(learner, text), vllm.logprobs(text))
        for question, samples in zip(questions, vllm.generate(questions), strict=True):  # prompts that the cache knew
            for each in samples:
                due = of_learner(learner, question.prompt_ids + each.token_ids)[-len(each.token_ids) :]
                np.testing.assert_allclose(each.logprobs, due, rtol=0, atol=1e-3)
    assert [each.token_ids for each in flat(vllm.generate(questions))] != first
    reference.load(10, weights)
    agree(reference, vllm, SUMS)


def test_a_load_that_is_skipped_is_noticed(adders: tuple[Any, Any], learner: Any, monkeypatch: Any) -> None:
    vllm, probe, text = adders[1], Probe("float32"), probe_text(17)
    vllm.load(1, changed(learner, 1))
    probe.check(1, of_learner(learner, text), vllm.logprobs(text))
    monkeypatch.setattr(vllm.llm, "collective_rpc", lambda *_, **__: None)
    vllm.load(2, changed(learner, 2))
    with pytest.raises(RunError, match="the weights of version 2 have not arrived in the sampler"):
        probe.check(2, of_learner(learner, text), vllm.logprobs(text))
    with pytest.raises(RunError, match="goes on with the weights before version 3"):  # one that moves little
        probe.check(3, probe.before[0] + np.float32(1e-4), vllm.logprobs(text))  # type: ignore[index]


@pytest.mark.parametrize("name", ["lm_head.weight", "model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"])
def test_a_tensor_that_is_missing_is_noticed(
    name: str, adders: tuple[Any, Any], learner: Any, monkeypatch: Any
) -> None:
    """Before it is sent; and, were it sent, by the probe: vLLM takes it without a word."""
    vllm, text = adders[1], probe_text(17)
    vllm.load(1, changed(learner, 1))
    lacking = {each: weight for each, weight in changed(learner, 2).items() if each != name}
    with pytest.raises(RunError, match=f"not those of the model that vLLM holds: {name} is missing"):
        vllm.load(2, lacking)
    assert vllm.version == 1
    monkeypatch.setattr("pipeline.models.engines.vllm.check_weights", lambda *_: None)
    vllm.load(2, lacking)
    with pytest.raises(RunError, match="have not arrived"):
        Probe("float32").check(2, of_learner(learner, text), vllm.logprobs(text))


def test_tied_weights_arrive_in_the_output_too(both: tuple[Any, Any], smollm2: str, monkeypatch: Any) -> None:
    """Without the second name vLLM's output goes on with a packed copy of the embedding before, on a CPU."""
    vllm = both[1]
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    text = probe_text(model.config.vocab_size)
    try:
        with torch.no_grad():
            model.model.embed_tokens.weight *= 1.02
        weights = {name: weight.detach() for name, weight in model.named_parameters()}
        assert "lm_head.weight" not in weights
        vllm.load(1, weights)
        Probe("float32").check(1, of_learner(model, text), vllm.logprobs(text))
        monkeypatch.setattr(vllm, "held", replace(vllm.held, tied={}))
        with torch.no_grad():
            model.model.embed_tokens.weight *= 1.02
        vllm.load(2, weights)
        with pytest.raises(RunError, match="have not arrived"):
            Probe("float32").check(2, of_learner(model, text), vllm.logprobs(text))
    finally:
        monkeypatch.undo()
        vllm.load(3, before)


# What it cannot run


def test_what_vllm_says_of_itself() -> None:
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    assert tuple(CPUAttentionBackend.get_supported_head_sizes()) == CPU_HEAD_SIZES


def test_checks_before_anything_starts(tmp_path: Any, smollm2: str) -> None:
    for model in (str(SIBLING), smollm2):
        check_vllm(ModelConfig(name=model), "cpu", "sampler.engine", takes_weights=True)
    with pytest.raises(ConfigError, match="of size 24"):
        check_vllm(ModelConfig(name=str(ROOT / "examples/addition/model")), "cpu", "sampler.engine")
