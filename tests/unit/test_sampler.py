"""The sampler without Ray: under the weights of the version that it is asked for, whatever their dtype, adapters apart."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM

from actors.sampler import PolicySampler, SamplerSpec, deserialized, serialize
from pipeline.config import ModelConfig
from pipeline.errors import RunError
from pipeline.models.engines.transformers import load_into
from pipeline.models.questions import Question
from pipeline.training.adapters import with_adapters
from pipeline.training.config import LoraSection

PROMPT = [5, 9, 33, 7]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_model(tmp_path_factory.mktemp("model"), hidden=32)


def sampler(folder: Path, dtype: str = "float32", **lora: int) -> PolicySampler:
    told = SamplerSpec(ModelConfig(name=str(folder), dtype=dtype), "cpu", 1, 4096, 8, 64, (), LoraSection(**lora))
    return PolicySampler(told)


def logprobs(model: torch.nn.Module, response: list[int]) -> torch.Tensor:
    out = model(torch.tensor([PROMPT + response])).logits[0, len(PROMPT) - 1 : -1].float().log_softmax(-1)
    return out.gather(1, torch.tensor(response)[:, None])[:, 0]


def test_its_cache_has_its_share_of_the_gpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.models.engines.transformers.sampling_budget", lambda model, share: int(1000 * share))
    model = ModelConfig(name=str(folder), dtype="float32")
    engine: Any = PolicySampler(SamplerSpec(model, "cpu", 1, None, 8, 64, (), LoraSection(), gpu_share=0.3)).engine
    assert engine.generator.budget_tokens == 300


def test_another_version_is_loaded_and_the_same_is_kept(folder: Path) -> None:
    policy = AutoModelForCausalLM.from_pretrained(folder)
    here = sampler(folder)
    for version in range(2):
        [[rollout]] = here.sample(version, serialize(policy.state_dict()), [Question(PROMPT, 1, 3)]).value
        assert rollout.version == version
        torch.testing.assert_close(torch.tensor(rollout.logprobs), logprobs(policy, rollout.ids), rtol=0, atol=1e-5)
        with torch.no_grad():
            for weight in policy.parameters():
                weight.mul_(1.1)
    [[again]] = here.sample(1, {"no such weight": (torch.float32, None)}, [Question(PROMPT, 1, 3)]).value
    assert again.ids == rollout.ids, "weights of a version that is there are not looked at"


def test_weights_keep_their_value_whatever_the_dtypes(folder: Path) -> None:
    there = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    there.register_buffer("scale", torch.tensor(0.5, dtype=torch.bfloat16))
    here = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    here.register_buffer("scale", torch.tensor(0.0))
    here.model.norm.float()
    with torch.no_grad():
        there.model.norm.weight.fill_(1.5)
    load_into(here, dict(deserialized(serialize(there.state_dict()))))
    assert here.model.norm.weight.dtype == torch.float32 and bool((here.model.norm.weight == 1.5).all())
    assert here.scale == 0.5
    with pytest.raises(RunError, match="the learner sends other, which LlamaForCausalLM does not have"):
        load_into(here, {"other": torch.ones(2)})


def test_weights_are_read_from_shared_memory_without_a_copy(folder: Path, recwarn: pytest.WarningsRecorder) -> None:
    there, here = (AutoModelForCausalLM.from_pretrained(folder) for _ in range(2))
    with torch.no_grad():
        there.lm_head.weight.mul_(2)
    weights = serialize(there.state_dict())
    for name, (_, content) in weights.items():
        assert content.ctypes.data == there.state_dict()[name].data_ptr()
        content.setflags(write=False)  # as arrays out of Ray's object store are
    load_into(here, dict(deserialized(weights)))
    assert all(torch.equal(tensor, there.state_dict()[name]) for name, tensor in here.state_dict().items())
    assert not [each for each in recwarn if "not writable" in str(each.message)]


def test_adapters_in_bfloat16_are_sampled_from_however_little_they_change(folder: Path) -> None:
    """Merged into the weights a change of a thousandth of them would be rounded away."""
    policy = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    with_adapters(policy, LoraSection(rank=2), seed=3)
    weights = {name: weight for name, weight in policy.named_parameters() if weight.requires_grad}
    with torch.no_grad():
        for name, weight in weights.items():
            if "lora_B" in name:
                weight.normal_(0, 1e-3, generator=torch.Generator().manual_seed(0))
    here = sampler(folder, "bfloat16", rank=2)
    here.sample(1, serialize(weights), [Question(PROMPT)])
    ids = torch.arange(40)[None]
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    with torch.no_grad():
        sampled, due, before = (model(ids).logits for model in (here.engine.model, policy, base))
    assert torch.equal(sampled, due) and not torch.equal(sampled, before)
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}


def test_certainty_is_of_what_each_token_was_drawn_from(folder: Path) -> None:
    """Against a plain float64 forward: entropy and KL(uniform || pi) of the policy, whoever is in the batch."""
    policy = AutoModelForCausalLM.from_pretrained(folder)
    spec = SamplerSpec(ModelConfig(name=str(folder), dtype="float32"), "cpu", 1, 4096, 8, 64, (), LoraSection())
    here = PolicySampler(replace(spec, certainty=True))
    questions = [Question(PROMPT, 2, 3), Question([8, 4], 1, 5)]
    answers = here.sample(0, serialize(policy.state_dict()), questions).value
    exact = policy.double()
    for question, rollouts in zip(questions, answers, strict=True):
        for rollout in rollouts:
            asked = torch.tensor([question.prompt_ids + rollout.ids])
            with torch.no_grad():
                logpi = exact(asked).logits[0, len(question.prompt_ids) - 1 : -1].log_softmax(-1)
            entropies, uniform = -(logpi.exp() * logpi).sum(1), torch.tensor(1 / logpi.shape[1])
            certainties = (uniform * (uniform.log() - logpi)).sum(1)
            assert rollout.certainty is not None
            both = torch.stack([entropies, certainties], 1)
            torch.testing.assert_close(torch.tensor(rollout.certainty).double(), both, rtol=0, atol=1e-5)
    [[without]] = sampler(folder).sample(0, serialize(policy.float().state_dict()), questions[1:]).value
    assert without.certainty is None and without.ids == answers[1][0].ids
