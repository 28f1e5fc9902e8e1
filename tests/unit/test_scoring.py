"""The scorer against a plain Hugging Face forward in float64 with full logits, for every architecture we claim."""

import copy

import numpy as np
import pytest
import torch
import transformers
from tiny import SMALL

from pipeline.errors import RowError
from pipeline.models.scoring import Scorer
from pipeline.models.scoring.attention import Packing
from pipeline.models.scoring.batches import Family, families
from pipeline.models.scoring.head import reduce_logits
from pipeline.models.scoring.layouts import pack
from pipeline.rewards.endogenous import token_rewards
from pipeline.tokens import TokenizedTurn

VOCABULARY = SMALL["vocab_size"]


def build(name: str) -> torch.nn.Module:
    torch.manual_seed(7)
    t = transformers
    gpt = dict(vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4, n_positions=128, initializer_range=0.3)
    makers = {
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**SMALL)),
        "qwen2": lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**SMALL)),
        "qwen3": lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**SMALL, head_dim=8)),
        "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(**gpt)),
        "gpt_neo": lambda: t.GPTNeoForCausalLM(
            t.GPTNeoConfig(
                vocab_size=VOCABULARY,
                hidden_size=32,
                num_layers=4,
                num_heads=4,
                max_position_embeddings=128,
                attention_types=[[["global", "local"], 2]],
                window_size=6,
                initializer_range=0.3,
            )
        ),
        "gemma2": lambda: t.Gemma2ForCausalLM(
            t.Gemma2Config(
                **SMALL, head_dim=8, sliding_window=6, final_logit_softcapping=3.0, attn_logit_softcapping=2.0
            )
        ),
        "mistral_window": lambda: t.MistralForCausalLM(t.MistralConfig(**SMALL, sliding_window=6)),
        "mixtral": lambda: t.MixtralForCausalLM(
            t.MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2, sliding_window=None)
        ),
        "qwen3_moe": lambda: t.Qwen3MoeForCausalLM(
            t.Qwen3MoeConfig(**SMALL, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
        ),
        "granite": lambda: t.GraniteForCausalLM(t.GraniteConfig(**SMALL, logits_scaling=4.0)),
        "cohere": lambda: t.CohereForCausalLM(t.CohereConfig(**SMALL, logit_scale=0.25)),
        "phi": lambda: t.PhiForCausalLM(
            t.PhiConfig(**{**SMALL, "num_key_value_heads": 4})
        ),  # its output layer has a bias
    }
    model = makers[name]().eval()
    for parameter in model.parameters():  # biases start at zero, which would hide that one is forgotten
        if parameter.ndim == 1:
            parameter.data += torch.randn_like(parameter) * 0.1
    return model


ARCHITECTURES = [
    "llama", "qwen2", "qwen3", "gpt2", "gpt_neo", "gemma2", "mistral_window", "mixtral", "qwen3_moe", "granite",
    "cohere", "phi",
]  # fmt: skip


def turns(seed: int = 0) -> list[TokenizedTurn]:
    """Families of one to four responses, lengths from one token on, out of order."""
    rng = np.random.default_rng(seed)

    def draw(n: int) -> list[int]:
        return rng.integers(1, VOCABULARY, n).tolist()

    prompts = [draw(n) for n in (1, 5, 17, 30)]
    pairs = [(p, draw(n)) for i, p in enumerate(prompts) for n in ([1], [9, 1], [12, 3, 20], [7, 25, 2, 2])[i]]
    return [TokenizedTurn(*pairs[i], prompt=[]) for i in rng.permutation(len(pairs))]


def reference(model: torch.nn.Module, turn: TokenizedTurn, alpha: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Q, V and log pi from full logits in float64, one sequence, no batch."""
    ids = torch.tensor([turn.prompt_ids.tolist() + turn.response_ids.tolist()])
    exact = copy.deepcopy(model).double()
    exact.set_attn_implementation("eager")  # before transformers 5.21, that of Gemma 2 has no soft cap by default
    if hasattr(exact.config, "num_experts_per_tok"):
        exact.set_experts_implementation("eager")  # the grouped product knows no float64
    with torch.no_grad():
        logits = exact(input_ids=ids).logits[0, len(turn.prompt_ids) - 1 : -1]
    q = logits.gather(1, torch.tensor(turn.response_ids)[:, None])[:, 0]
    values = alpha * torch.logsumexp(logits / alpha, dim=1)
    return q.numpy(), values.numpy(), (q - torch.logsumexp(logits, dim=1)).numpy()


@pytest.mark.parametrize("alpha", [1.0, 0.3])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_scores_equal_a_float64_forward(name: str, alpha: float) -> None:
    model = build(name)
    batch = turns()
    expected = [reference(model, turn, alpha) for turn in batch]
    scorer = Scorer(model, alpha=alpha, budget_tokens=64)
    assert scorer.layout == ("cached" if name == "gpt_neo" else "packed")
    assert scorer.head is not None, "the sliced head was not recognised"
    for layout in dict.fromkeys((scorer.layout, "cached", "plain")):
        scorer.layout = layout
        for turn, got, (q, values, logprobs) in zip(batch, scorer.score(batch), expected, strict=True):
            assert len(got.q) == len(turn.response_ids)
            np.testing.assert_allclose(got.q, q, atol=1e-4)
            np.testing.assert_allclose(got.values, values, atol=1e-4)
            np.testing.assert_allclose(got.logprobs, logprobs, atol=1e-4)
            np.testing.assert_allclose(token_rewards(got.q, got.values), token_rewards(q, values), atol=1e-4)


@pytest.mark.parametrize("layout", ["packed", "cached", "plain"])
@pytest.mark.parametrize("name", ["llama", "gpt_neo", "gemma2", "mixtral"])
def test_rewards_do_not_depend_on_the_batch(name: str, layout: str) -> None:
    batch = [turn for seed in range(7) for turn in turns(seed)][:64]
    together, alone = Scorer(build(name), budget_tokens=10**6), Scorer(build(name), budget_tokens=1)
    if layout == "packed" and together.layout != "packed":
        pytest.skip(f"{name} cannot be packed")
    together.layout = alone.layout = layout
    scored = together.score(batch)
    for turn, both in zip(batch, scored, strict=True):
        [one] = alone.score([turn])
        ours, theirs = token_rewards(one.q, one.values), token_rewards(both.q, both.values)
        assert abs(ours.sum() - theirs.sum()) < 1e-5 * max(1.0, np.abs(ours).sum())


def test_a_shared_prompt_is_forwarded_once() -> None:
    prompt = list(range(1, 41))
    batch = [TokenizedTurn(prompt, [5, 6, 7, 8], []), TokenizedTurn(prompt, [9, 10], [])]
    for name in ("llama", "gpt_neo"):
        scorer = Scorer(build(name))
        scorer.score(batch)
        assert scorer.forwarded_tokens <= 40 + 2 * 3  # the last token of a response predicts nothing


def test_head_slices_do_not_move_scores() -> None:
    model, batch = build("llama"), turns()
    whole = Scorer(model).score(batch)
    scorer = Scorer(model)
    assert scorer.head is not None
    scorer.head.rows = 3
    for a, b in zip(whole, scorer.score(batch), strict=True):
        np.testing.assert_allclose(a.values, b.values, atol=1e-5)


def test_an_unknown_transformation_of_logits_falls_back_to_the_models_own() -> None:
    class Odd(transformers.LlamaForCausalLM):
        def forward(self, *args, **kwargs):  # type: ignore[no-untyped-def]
            out = super().forward(*args, **kwargs)
            out.logits = out.logits * 1.7
            return out

    model = Odd(build("llama").config)
    model.load_state_dict(build("llama").state_dict())
    model.eval()
    expected = [reference(model, turn, 1.0) for turn in turns()]
    scorer = Scorer(model)
    assert scorer.head is None and "own logits" in scorer.notes[0]
    for got, (q, values, _) in zip(scorer.score(turns()), expected, strict=True):
        np.testing.assert_allclose(got.q, q, atol=1e-4)
        np.testing.assert_allclose(got.values, values, atol=1e-4)


class _Limited(transformers.LlamaModel):
    """Runs out of memory above `limit` tokens, as a GPU would."""

    limit = 10**9

    def forward(self, input_ids, **kwargs):  # type: ignore[no-untyped-def]
        if input_ids.numel() > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(input_ids=input_ids, **kwargs)


def test_running_out_of_memory_halves_the_budget_and_goes_on() -> None:
    model = build("llama")
    batch = turns()
    expected = Scorer(copy.deepcopy(model)).score(batch)
    model.model.__class__ = _Limited
    scorer = Scorer(model, budget_tokens=4096)
    model.model.limit = 60
    for got, wanted in zip(scorer.score(batch), expected, strict=True):
        np.testing.assert_allclose(got.q, wanted.q, atol=1e-5)
    assert scorer.budget_tokens < 128 and "out of memory" in scorer.notes[0]


def test_a_response_too_large_for_the_memory_is_a_row_error_and_its_siblings_are_scored() -> None:
    model = build("llama")
    model.model.__class__ = _Limited
    scorer = Scorer(model)
    model.model.limit = 30
    huge, small = TokenizedTurn([1, 2], list(range(1, 60)), []), TokenizedTurn([1, 2], [3, 4], [])
    first, second = scorer.score([huge, small])
    assert isinstance(first, RowError) and first.reason == "out_of_memory"
    assert len(second.q) == 2


def test_a_logit_that_is_no_number_is_a_row_error() -> None:
    model = build("llama")
    scorer = Scorer(model)
    model.model.embed_tokens.weight.data[50] = float("nan")
    bad, good = scorer.score([TokenizedTurn([1, 50], [3, 4], []), TokenizedTurn([1, 2], [3, 4], [])])
    assert isinstance(bad, RowError) and bad.reason == "not_finite"
    assert np.isfinite(good.q).all()


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_positions_that_depend_on_the_longest_of_a_call_are_given_none(kind: str) -> None:
    """Each response as if it were scored alone, whatever was scored beside or before it."""
    rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4, "original_max_position_embeddings": 32}
    small = {**SMALL, "max_position_embeddings": 128 if kind == "longrope" else 32}
    torch.manual_seed(7)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**small, rope_parameters=rope)).eval()
    batch = [TokenizedTurn(list(range(1, 9)), list(range(20, 20 + n)), []) for n in (60, 10, 40, 24)]
    expected = []
    for turn in batch:
        expected.append(reference(model, turn, 1.0))  # a fresh copy each, so no call remembers another
    for got, (q, values, _) in zip(Scorer(model).score(batch), expected, strict=True):
        np.testing.assert_allclose(got.q, q, atol=1e-4)
        np.testing.assert_allclose(got.values, values, atol=1e-4)


def test_a_sliding_window_that_the_attention_is_not_told_of_is_found_by_the_probe() -> None:
    """Some architectures window by a mask alone, which packing would lose."""

    class Untold(transformers.MistralForCausalLM):
        pass

    model = Untold(transformers.MistralConfig(**SMALL, sliding_window=40)).eval()
    for layer in model.model.layers:
        layer.self_attn.config = copy.copy(model.config)
        layer.self_attn.config.sliding_window = None
    assert Scorer(model).layout != "packed"
    told = transformers.MistralForCausalLM(transformers.MistralConfig(**SMALL, sliding_window=40)).eval()
    scorer = Scorer(told)
    assert scorer.layout == "packed"
    turn = TokenizedTurn(list(range(1, 60)), list(range(5, 40)), [])
    [got] = scorer.score([turn])
    np.testing.assert_allclose(got.q, reference(told, turn, 1.0)[0], atol=1e-4)


def test_a_token_beyond_the_embedding_is_a_row_error() -> None:
    bad, good = Scorer(build("llama")).score([TokenizedTurn([1], [VOCABULARY], []), TokenizedTurn([1], [2], [])])
    assert isinstance(bad, RowError) and bad.reason == "unknown_token" and len(good.q) == 1


def test_low_precision_weights_accumulate_in_float32() -> None:
    model = build("llama").to(torch.bfloat16)
    scorer = Scorer(model)
    assert scorer.layout == "packed" and scorer.head is not None
    hidden = torch.randn(5, 32).to(torch.bfloat16)
    exact = hidden.double() @ model.lm_head.weight.double().T
    torch.testing.assert_close(scorer.head.logits(hidden).double(), exact, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("alpha", [1.0, 0.1, 3.0])
def test_reduction_of_logits(alpha: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20, VOCABULARY, generator=generator) * 30
    taken = torch.randint(VOCABULARY, (20,), generator=generator)
    exact = logits.double()
    got = reduce_logits(logits.clone(), taken, alpha)
    torch.testing.assert_close(got.values.double(), alpha * torch.logsumexp(exact / alpha, 1), atol=1e-4, rtol=1e-6)
    wanted = torch.log_softmax(exact, 1).gather(1, taken[:, None])[:, 0]
    torch.testing.assert_close(got.logprobs.double(), wanted, atol=1e-4, rtol=1e-6)
    assert (got.values >= got.q).all() and (got.logprobs <= 0).all()


def test_families_hold_every_turn_once_and_keep_to_the_budget() -> None:
    batch = turns()
    for budget in (1, 20, 50, 1000):
        found = families(batch, range(len(batch)), budget)
        assert sorted(m for f in found for m in f.members) == list(range(len(batch)))
        for family in found:
            assert family.tokens <= budget or len(family.members) == 1
            assert [batch[m].response_ids.tolist() for m in family.members] == [list(r) for r in family.responses]


def in_bfloat16(kind: str, layers: int, spread: float) -> torch.nn.Module:
    torch.manual_seed(0)
    made = {"llama": transformers.LlamaConfig, "qwen2": transformers.Qwen2Config}[kind]
    config = made(**{**SMALL, "num_hidden_layers": layers, "initializer_range": spread})
    return transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_rounding_of_many_layers_in_bfloat16_is_no_reason_for_another_way(kind: str) -> None:
    """Nor for the model's own logits, which are rounded to bfloat16: labels would be as coarse."""
    scorer = Scorer(in_bfloat16(kind, 16, 0.3))
    assert scorer.notes == [] and scorer.head is not None and scorer.layout == "packed"


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_a_response_that_would_see_its_sibling_is_found_out_in_bfloat16(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pack_wrongly(batch: list[Family]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Packing]:
        *tensors, packing = pack(batch)
        return (*tensors, Packing([(start, prefix, [sum(parts)]) for start, prefix, parts in packing.families]))

    monkeypatch.setattr("pipeline.models.scoring.scorer.pack", pack_wrongly)
    scorer = Scorer(in_bfloat16(kind, 3, 0.05))
    assert scorer.head is not None and scorer.layout == "cached"
