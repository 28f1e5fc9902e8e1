"""What is held and forwarded at once where nothing is configured: on a GPU, what its memory has room for."""

import gc
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, DynamicCache, LlamaConfig

from pipeline.errors import RowError
from pipeline.models import memory
from pipeline.models.classification import Classifier
from pipeline.models.scoring import Scorer
from pipeline.tokens import TokenizedTurn

SMALL = LlamaConfig(
    vocab_size=50,
    hidden_size=48,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_of_a_cache_is_as_large_as_a_real_one(dtype: torch.dtype) -> None:
    model = AutoModelForCausalLM.from_config(SMALL, dtype=dtype)
    cache = DynamicCache(config=SMALL)
    model(torch.arange(7)[None], past_key_values=cache)
    held = sum(tensor.nbytes for layer in cache.layers for tensor in (layer.keys, layer.values))
    assert held == 7 * memory.cache_token_bytes(SMALL, dtype.itemsize)


def test_half_of_what_is_free_is_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    token = memory.cache_token_bytes(SMALL, 2)
    assert memory.held_tokens(SMALL, 2, 200_000 * token) == 100_000
    assert memory.held_tokens(SMALL, 2, 100 * token) == memory.BUDGET_TOKENS  # halved where it does not fit
    model = AutoModelForCausalLM.from_config(SMALL)
    assert memory.sampling_budget(model) == memory.BUDGET_TOKENS  # on a CPU


TOKENS = 256


def backbone() -> Any:
    """Large enough that what is of each token outweighs the rest; without the output matrix, which is tiled."""
    shape = {"hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 3, "num_attention_heads": 8}
    config = LlamaConfig(vocab_size=50, num_key_value_heads=2, **shape)
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").model


def test_a_token_that_is_scored_is_about_as_large_as_a_real_one() -> None:
    model, ids = backbone(), torch.arange(TOKENS)[None] % 50
    with torch.inference_mode():
        model(ids, use_cache=False)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            model(ids, use_cache=False)
    events = sorted(
        (e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()
    )
    live = peak = 0
    for event in events:
        live += event.nbytes()
        peak = max(peak, live)
    estimate = memory.scoring_token_bytes(model.config, 4)
    assert 0.6 * peak / TOKENS < estimate < 2 * peak / TOKENS


@pytest.mark.parametrize("checkpoints", [False, True])
def test_a_token_that_is_learnt_from_is_about_as_large_as_a_real_one(checkpoints: bool) -> None:
    model, ids = backbone(), torch.arange(TOKENS)[None] % 50
    if checkpoints:
        model.train().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}  # by storage, alive so that no other takes its address

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = model(ids, use_cache=False)
    assert out.last_hidden_state.grad_fn is not None
    each = [tensor.untyped_storage().nbytes() for at, tensor in kept.items() if at not in weights]
    layers = model.config.num_hidden_layers
    whole = memory.training_token_bytes(model.config, 4)
    held = memory.training_token_bytes(model.config, 4, checkpoints) - (whole // layers if checkpoints else 0)
    assert 0.5 * sum(each) / TOKENS < held < 2 * sum(each) / TOKENS


def on_gpu(monkeypatch: pytest.MonkeyPatch, free: int, config: Any = SMALL) -> Any:
    """A model in bfloat16 that says it lies on a GPU with so many free bytes."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (free, 2 * free))
    weight = SimpleNamespace(device=torch.device("cuda", 0), element_size=lambda: 2)
    return SimpleNamespace(config=config, get_input_embeddings=lambda: SimpleNamespace(weight=weight))


def test_budgets_follow_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    scored, learnt, saved = (
        memory.scoring_token_bytes(SMALL, 2),
        memory.training_token_bytes(SMALL, 2),
        memory.training_token_bytes(SMALL, 2, checkpoints=True),
    )
    assert memory.scoring_budget(on_gpu(monkeypatch, 60_000 * scored)) == 30_000
    assert memory.scoring_budget(on_gpu(monkeypatch, 80_000 * scored), share=0.5) == 20_000
    assert (
        memory.scoring_budget(on_gpu(monkeypatch, 10 * scored)) == memory.BUDGET_TOKENS
    )  # halved where it does not fit
    assert memory.scoring_budget(on_gpu(monkeypatch, 10**15)) == memory.MOST_TOKENS
    assert memory.training_budget(on_gpu(monkeypatch, 60_000 * learnt), checkpoints=False) == 30_000
    assert memory.training_budget(on_gpu(monkeypatch, 60_000 * saved), checkpoints=True) == 30_000
    assert memory.training_budget(on_gpu(monkeypatch, 6_000 * learnt), checkpoints=False) == 3_000
    assert memory.training_budget(on_gpu(monkeypatch, 1), checkpoints=False) == memory.LEAST_TOKENS
    assert memory.training_budget(on_gpu(monkeypatch, 10**15), checkpoints=False) == memory.MOST_TOKENS


def test_an_eighth_billion_fills_an_h200_and_fits_a_small_card(monkeypatch: pytest.MonkeyPatch) -> None:
    eight = LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8
    )
    assert memory.scoring_budget(on_gpu(monkeypatch, 120 * 2**30, eight)) == memory.MOST_TOKENS
    assert memory.scoring_budget(on_gpu(monkeypatch, 7 * 2**30, eight)) >= memory.BUDGET_TOKENS
    assert memory.training_budget(on_gpu(monkeypatch, 24 * 2**30, eight), checkpoints=False) < memory.BUDGET_TOKENS


def test_a_sampler_has_its_share_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    token = memory.cache_token_bytes(SMALL, 2)
    model = on_gpu(monkeypatch, 400_000 * token)
    assert memory.sampling_budget(model) == 200_000
    assert memory.sampling_budget(model, share=0.3) == pytest.approx(60_000, abs=1)


def test_an_engine_that_loads_the_model_itself_leaves_room_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = 2 * sum(each.numel() for each in AutoModelForCausalLM.from_config(SMALL).parameters())
    token = memory.cache_token_bytes(SMALL, 2)
    on_gpu(monkeypatch, 400_000 * token + 2 * weights)
    assert memory.paged_budget(SMALL, 2, "cuda", share=0.5) == 100_000
    assert memory.paged_budget(SMALL, 2, "cpu") == memory.BUDGET_TOKENS


class Held(torch.nn.Module):
    """What a failed batch had of the memory: gone, or not, as the budget is halved."""

    ref: weakref.ref[torch.Tensor] | None = None

    def fail(self, *_: Any, **__: Any) -> Any:
        tensor = torch.zeros(10)
        self.ref = weakref.ref(tensor)
        raise torch.OutOfMemoryError("out of memory")


@pytest.mark.parametrize("kind", ["scorer", "classifier"])
def test_what_a_failed_batch_held_is_free_before_its_cache_is_emptied(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one: Any
    if kind == "scorer":
        one, method = Scorer(AutoModelForCausalLM.from_config(SMALL), budget_tokens=100), "_score_batch"
    else:
        config = LlamaConfig(**{**SMALL.to_dict(), "num_labels": 1, "pad_token_id": 0})
        one, method = Classifier(AutoModelForSequenceClassification.from_config(config)), "_forward"
    held, seen = Held(), []
    monkeypatch.setattr(one, method, held.fail)
    shrink = one._shrink

    def look(*arguments: Any) -> None:
        assert held.ref is not None
        seen.append(held.ref())
        shrink(*arguments)

    monkeypatch.setattr(one, "_shrink", look)
    gc.disable()
    try:
        [result] = one.score([TokenizedTurn(np.array([1, 2]), np.array([3]), [])])
    finally:
        gc.enable()
    assert seen == [None] and isinstance(result, RowError) and result.reason == "out_of_memory"
