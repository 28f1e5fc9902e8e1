"""Models that some version of transformers computes wrongly: afterwards they give the numbers of their architecture."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers

from pipeline.models.corrections import correct

SIZES: dict[str, Any] = dict(
    vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    head_dim=8, initializer_range=0.3, pad_token_id=0,
)  # fmt: skip
CAPPED: dict[str, Callable[[], Any]] = {
    "gemma2": lambda: transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**SIZES, attn_logit_softcapping=2.0)),
    "classifier": lambda: transformers.Gemma2ForSequenceClassification(
        transformers.Gemma2Config(**SIZES, attn_logit_softcapping=2.0)
    ),
    "vault gemma": lambda: transformers.VaultGemmaForCausalLM(
        transformers.VaultGemmaConfig(**SIZES, attn_logit_softcapping=2.0)
    ),
}
IDS = torch.arange(1, 61)[None]


@torch.inference_mode()
def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits


@pytest.mark.parametrize("kind", CAPPED)
def test_a_soft_cap_of_the_attention_counts(kind: str) -> None:
    torch.manual_seed(0)
    model = CAPPED[kind]().eval()
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    uncapped = copy.deepcopy(eager)
    for module in uncapped.modules():
        if hasattr(module, "attn_logit_softcapping"):
            module.attn_logit_softcapping = None
    correct(model)
    torch.testing.assert_close(logits(model), logits(eager))
    assert (logits(uncapped) - logits(eager)).abs().max() > 0.02  # it is a cap that is felt


def test_attention_without_a_soft_cap_stays_as_it_is() -> None:
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).eval()
    correct(model)
    assert model.config._attn_implementation == "sdpa"


def test_dynamic_positions_of_a_short_sequence_are_the_same_after_a_longer_one() -> None:
    torch.manual_seed(0)
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    config = transformers.LlamaConfig(**SIZES, max_position_embeddings=32, rope_parameters=rope)
    model = transformers.LlamaForCausalLM(config).eval()
    correct(model)
    correct(model)
    assert sum(len(module._forward_pre_hooks) for module in model.modules()) == 1
    short, longer = IDS[:, :20], IDS[:, :50]
    before, scaled = logits(model, short), logits(model)
    torch.testing.assert_close(logits(model, short), before)
    torch.testing.assert_close(logits(model), scaled)
    logits(model, short)
    torch.testing.assert_close(logits(model, longer), logits(copy.deepcopy(model), longer))
    torch.testing.assert_close(logits(model, short), before)
    assert (scaled[:, :20] - before).abs().max() > 0.1


def test_phi_3_generates_from_all_tokens_beyond_its_first_length() -> None:
    torch.manual_seed(0)
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
    config = transformers.Phi3Config(
        **SIZES,
        max_position_embeddings=128,
        original_max_position_embeddings=32,
        rope_parameters=rope,
        eos_token_id=None,
    )
    model = transformers.Phi3ForCausalLM(config).eval()
    correct(model)
    options = {"max_new_tokens": 20, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    out = copy.deepcopy(model).generate(IDS[:, :20], attention_mask=torch.ones(1, 20, dtype=torch.long), **options)
    assert out.sequences.shape[1] == 40
    for length in range(20, 40):
        torch.testing.assert_close(out.logits[length - 20], logits(model, out.sequences[:, :length])[:, -1])
