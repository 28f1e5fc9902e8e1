"""Whether weights have arrived: what the probe refuses, and adapters before they are written."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from actors.sampler import PolicySampler, SamplerSpec, serialize
from pipeline.config import ModelConfig
from pipeline.errors import RunError
from pipeline.models.engines.base import Adapters
from pipeline.models.engines.lora import write_adapters
from pipeline.models.engines.probe import Probe, probe_text
from pipeline.models.engines.weights import check_weights
from pipeline.models.questions import Question
from pipeline.training.adapters import adapter_shapes, with_adapters
from pipeline.training.config import LoraSection

LEARNER = np.array([-3.0, -20.0, -0.5], np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.save_model(tmp_path_factory.mktemp("model"), hidden=32))


def test_a_probe_passes_rounding_and_refuses_more() -> None:
    Probe("float32").check(1, LEARNER, LEARNER + np.float32(9e-4))
    with pytest.raises(RunError, match=r"version 2 have not arrived .* up to 0.01 nats from the learner's"):
        Probe("float32").check(2, LEARNER, LEARNER + np.float32(0.01))
    Probe("bfloat16").check(2, LEARNER, LEARNER + np.float32(0.2))
    with pytest.raises(RunError, match="have not arrived"):
        Probe("bfloat16").check(2, LEARNER, np.full(3, np.nan, np.float32))


def test_a_probe_refuses_an_engine_that_stays_where_it_was() -> None:
    probe, engine = Probe("float32"), LEARNER + np.float32(1e-4)
    probe.check(1, LEARNER, engine)
    probe.check(2, LEARNER, engine)  # a learner that stays too, as at a rate of 0
    with pytest.raises(RunError, match="goes on with the weights before version 3"):
        probe.check(3, LEARNER + np.float32(1e-5), engine)
    probe.check(3, LEARNER + np.float32(1e-5), engine + np.float32(1e-5))


def test_the_text_is_the_vocabularys() -> None:
    for vocabulary in (17, 7919, 49152):
        text = probe_text(vocabulary)
        assert len(text) == 24 and all(0 <= each < vocabulary for each in text)
    assert len(set(probe_text(49152))) == 24


def test_a_sampler_holds_each_version_against_the_learner(folder: str) -> None:
    spec = SamplerSpec(ModelConfig(name=folder, dtype="float32"), "cpu", 1, 4096, 8, 64, (), LoraSection())
    sampler, policy = PolicySampler(spec), AutoModelForCausalLM.from_pretrained(folder)
    text = probe_text(policy.config.vocab_size)
    logprobs = policy(torch.tensor([text])).logits[0, :-1].log_softmax(-1)
    due = logprobs.gather(1, torch.tensor(text[1:])[:, None])[:, 0].detach().numpy()
    sampler.sample(1, serialize(policy.state_dict()), [Question([5])], due)
    for _ in range(2):  # also when it is asked again: weights that failed are there, and are no version
        with pytest.raises(RunError, match="the weights of version 2 have not arrived"):
            sampler.sample(2, serialize(policy.state_dict()), [Question([5])], due - np.float32(0.1))
    sampler.sample(2, serialize(policy.state_dict()), [Question([5])], due)


# Adapters


def test_adapters_are_written_as_peft_reads_them(folder: str, tmp_path: Path) -> None:
    policy = AutoModelForCausalLM.from_pretrained(folder)
    with_adapters(policy, LoraSection(rank=2, alpha=3), seed=3)
    weights = {name: weight.detach() for name, weight in policy.named_parameters() if weight.requires_grad}
    for name, weight in weights.items():
        weight.normal_(0, 0.1, generator=torch.Generator().manual_seed(len(name)))
    write_adapters(str(tmp_path), weights, Adapters(2, 3, {}))
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path)
    ids = torch.arange(20)[None]
    torch.testing.assert_close(again(ids).logits, policy(ids).logits, rtol=0, atol=1e-5)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["lora_alpha"] == 3


def test_adapters_are_held_against_the_complete_set(folder: str) -> None:
    """By name and shape those that the learner's own function makes; both matrices of one module may be what is missing."""
    policy, lora = AutoModelForCausalLM.from_pretrained(folder), LoraSection(rank=2)
    shapes = adapter_shapes(policy.config, lora)
    with_adapters(policy, lora, seed=3)
    weights = {name: weight.detach() for name, weight in policy.named_parameters() if weight.requires_grad}
    check_weights(weights, shapes)
    assert len(shapes) == 2 * 7 * policy.config.num_hidden_layers
    module = "model.layers.1.self_attn.q_proj"
    first = f"{module}.lora_A.default.weight"
    for faulty, message in (
        ({n: w for n, w in weights.items() if n != first}, r"q_proj.lora_A.default.weight is missing$"),
        (
            {n: w for n, w in weights.items() if module not in n},
            "q_proj.lora_A.* is missing, .*q_proj.lora_B.* is missing$",
        ),
        ({**weights, first: torch.ones(3, 32)}, r"q_proj.lora_A.default.weight is \[3, 32\] and should be \[2, 32\]$"),
        ({**weights, "lm_head.weight": torch.ones(2, 3)}, r"lm_head\.weight is none of the model's$"),
        ({}, "are not those of the model that vLLM holds"),
    ):
        with pytest.raises(RunError, match=message):
            check_weights(faulty, shapes)
    few = adapter_shapes(policy.config, LoraSection(rank=2, targets=["v_proj"]))
    assert {name.partition(".lora_")[0].rpartition(".")[2] for name in few} == {"v_proj"}
