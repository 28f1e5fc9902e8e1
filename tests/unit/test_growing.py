"""The cache that grows in place against transformers' own, which is made anew for every token."""

import pytest
import tiny
import torch
import transformers
from transformers.cache_utils import DynamicLayer

from pipeline.models.growing import ROOM, GrowingLayer, grow_in_place


@pytest.fixture
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=264, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=512,
        )
    ).eval()  # fmt: skip


def states(tokens: int, rows: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, 2, tokens, 8), torch.randn(rows, 2, tokens, 4)  # values may have another size


def test_keys_and_values_are_transformers_own() -> None:
    plain, own = DynamicLayer(), DynamicLayer()
    first = states(5)
    plain.update(*first)
    own.update(*first)
    growing = GrowingLayer(own)
    for tokens in (1, 1, 3, ROOM, 1):
        new = states(tokens, len(plain.keys))
        for due, there in zip(plain.update(*new), growing.update(*new), strict=True):
            assert torch.equal(due, there)
        assert growing.get_seq_length() == plain.get_seq_length()
        if tokens == 3:  # rows leave and come twice; the next token finds others
            for layer in (plain, growing):
                layer.reorder_cache(torch.tensor([2, 0, 2, 1]))
        if tokens == ROOM:
            for layer in (plain, growing):
                layer.crop(-7)


def test_what_is_there_is_not_copied_for_a_token() -> None:
    own = DynamicLayer()
    own.update(*states(5))
    growing = GrowingLayer(own)
    growing.update(*states(1))
    place = growing.keys.data_ptr(), growing.values.data_ptr()
    for _ in range(ROOM):
        growing.update(*states(1))
    assert (growing.keys.data_ptr(), growing.values.data_ptr()) == place
    growing.update(*states(1))
    assert growing.keys.data_ptr() != place[0]


@torch.inference_mode()
def test_a_model_goes_on_from_it_to_the_same_logits(model: torch.nn.Module) -> None:
    ids = torch.arange(60).reshape(2, 30)
    caches = [model(ids, use_cache=True).past_key_values for _ in range(2)]
    grow_in_place(caches[1])
    assert {type(layer) for layer in caches[1].layers} == {GrowingLayer}
    for token in range(3):
        logits = [model(torch.full((2, 1), token), past_key_values=cache).logits for cache in caches]
        assert torch.equal(*logits)


def test_other_layers_and_caches_stay(model: torch.nn.Module) -> None:
    ids = torch.tensor([tiny.tokenizer()("a b c").input_ids])
    sliding = transformers.MistralForCausalLM(
        transformers.MistralConfig(**model.config.to_dict() | {"sliding_window": 4})
    )
    cache = sliding(ids, use_cache=True).past_key_values
    kinds = [type(layer) for layer in cache.layers]
    assert [type(layer) for layer in grow_in_place(cache).layers] == kinds and DynamicLayer not in kinds
    assert grow_in_place(None) is None
