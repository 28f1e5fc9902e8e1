"""The actors with vLLM in them, without Ray: one in a process beside, and samplers that take versions."""

from typing import Any

import numpy as np
import pytest
import torch
from conftest import SIBLING
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors.beside import ActorBeside
from actors.generator import GeneratorSpec
from actors.sampler import PolicySampler, SamplerSpec, serialize
from pipeline.config import ModelConfig
from pipeline.errors import RunError
from pipeline.models.engines.probe import probe_text
from pipeline.models.questions import Question
from pipeline.training.adapters import with_adapters
from pipeline.training.config import LoraSection

MODEL = ModelConfig(name=str(SIBLING), dtype="float32")


def questions() -> list[Question]:
    tokenizer = AutoTokenizer.from_pretrained(SIBLING)
    return [Question(list(tokenizer(text)["input_ids"]), 4, i) for i, text in enumerate(("753+939=", "1+2=", "9+90="))]


def test_an_actor_beside_answers_as_the_references_does() -> None:
    answers = {}
    for engine in ("transformers", "vllm"):
        spec = GeneratorSpec(MODEL, "cpu", 0, 1, 4096, 2, max_new_tokens=40, temperature=1.0, engine=engine)
        beside = ActorBeside(spec)
        answered = beside.answer("three rows", questions())
        beside.beside.stop()
        assert answered.check.responses == 2 and answered.check.moved == 0 and answered.forwarded_tokens > 0
        answers[engine] = [each.token_ids for samples in answered.answers for each in samples]
    same = sum(a == b for a, b in zip(answers["transformers"], answers["vllm"], strict=True))
    assert same >= 11, "of 12"


@pytest.mark.parametrize("rank", [0, 4])
def test_a_sampler_takes_versions_and_refuses_others(rank: int) -> None:
    """Twenty of them, of all weights or of adapters; the samples are of the version that is asked for."""
    lora = LoraSection(rank=rank)
    sampler = PolicySampler(SamplerSpec(MODEL, "cpu", 1, 4096, 24, 128, (), lora, engine="vllm"))
    policy = AutoModelForCausalLM.from_pretrained(SIBLING, dtype=torch.float32)
    if rank:
        with_adapters(policy, lora, seed=0)
    text, draw = probe_text(policy.config.vocab_size), torch.Generator().manual_seed(0)
    trained = {name: weight for name, weight in policy.named_parameters() if weight.requires_grad}

    def logprobs(ids: list[int]) -> Any:
        with torch.no_grad():
            rows = policy(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        return rows.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()

    for version in range(20):
        weights = {name: weight.detach() for name, weight in trained.items()}
        asked = questions()
        samples = sampler.sample(version, serialize(weights), asked, logprobs(text)).value
        for question, rollouts in zip(asked, samples, strict=True):
            for rollout in rollouts:
                due = logprobs(question.prompt_ids + rollout.ids)[-len(rollout.ids) :]
                np.testing.assert_allclose(rollout.logprobs, due, rtol=0, atol=1e-3)
                assert rollout.version == version
        if version < 19:
            with torch.no_grad():
                for weight in trained.values():
                    weight += 0.01 * torch.randn(weight.shape, generator=draw)
    with pytest.raises(RunError, match="the weights of version 20 have not arrived"):
        sampler.sample(20, serialize(weights), questions(), logprobs(text) + np.float32(0.01))
    lacking = dict(list(serialize(weights).items())[1:])
    with pytest.raises(RunError, match="are not those of the model that vLLM holds"):
        sampler.sample(21, lacking, questions(), logprobs(text))
