"""Packed attention in calls of a kernel for segments against the loop over segments, in float64 with gradients; and models run
so, against the model's own forward. The kernel is tests/plain_varlen.py, but for FlashAttention's calls on the meta device."""

import copy
from collections.abc import Callable

import numpy as np
import plain_varlen
import pytest
import torch
import transformers
from tiny import SMALL

from pipeline.models.scoring import Scorer, attention, varlen
from pipeline.models.scoring.attention import Packing
from pipeline.tokens import TokenizedTurn
from pipeline.training.batch import Response
from pipeline.training.policy import Policy, choose_layout

Families = list[tuple[int, int, list[int]]]
MODULE = torch.nn.Module()

ROWS: dict[str, Families] = {
    "many families": [(0, 5, [3, 1, 4]), (13, 9, [2, 6]), (30, 1, [1]), (32, 4, [7, 7, 7])],
    "one family": [(0, 6, [4, 2, 9])],
    "one response": [(0, 7, [5])],
    "no response goes on": [(0, 5, [0, 0]), (5, 3, [0])],
    "some do not go on": [(0, 5, [0, 4, 0]), (9, 3, [0]), (12, 2, [3, 0])],
    "a prompt alone": [(0, 8, []), (8, 3, [2])],
    "no prompt": [(0, 0, [4, 3]), (7, 3, [2])],
    "tokens alone": [(0, 1, [1, 1]), (3, 1, [1])],
}


@pytest.fixture(autouse=True)
def untried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_refusals", {})


def inputs(families: Families, heads: int, groups: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """Query, key, value [1, heads, T, 4] as a model's projections are laid out, and a slope [1, T, N, 4]."""
    draw = torch.Generator().manual_seed(3)
    tokens = Packing(families).tokens
    counts = (heads, heads // groups, heads // groups, heads)
    drawn = [torch.randn(1, tokens, n, 4, generator=draw, dtype=torch.float64).to(dtype) for n in counts]
    return [*(each.transpose(1, 2).requires_grad_() for each in drawn[:3]), drawn[3]]


def attend(given: list[torch.Tensor], families: Families, window: int | None = None) -> list[torch.Tensor]:
    """Output and gradients of packed attention."""
    *qkv, slope = given
    out, _ = attention.packed_attention(
        MODULE, *qkv, None, packing=Packing(families), scaling=0.7, sliding_window=window
    )
    return [out, *torch.autograd.grad(out, qkv, slope)]


def apart(ours: list[torch.Tensor], due: list[torch.Tensor]) -> list[float]:
    return [float((a - b).norm() / b.norm()) for a, b in zip(ours, due, strict=True)]


@pytest.mark.parametrize("window", [None, 1, 2, 4, 6, 100])
@pytest.mark.parametrize("groups", [1, 4, 8])
@pytest.mark.parametrize("row", ROWS)
def test_segments_give_what_the_loop_gives(
    row: str, groups: int, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = inputs(ROWS[row], 8, groups)
    due = attend(given, ROWS[row], window)
    kernel = plain_varlen.force(monkeypatch)
    attend(given, ROWS[row], window)  # the first time, the kernel is tried on a row of attention's own
    kernel.calls = 0
    ours = attend(given, ROWS[row], window)
    for a, b in zip(ours, due, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    one = window is not None and window < Packing(ROWS[row]).longest
    assert kernel.calls == (1 if one or not any(prefix and sum(lengths) for _, prefix, lengths in ROWS[row]) else 2)


@pytest.mark.parametrize("keyless", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("row", ["no prompt", "no response goes on", "some do not go on"])
def test_a_part_without_keys_weighs_nothing(row: str, keyless: float, monkeypatch: pytest.MonkeyPatch) -> None:
    given = inputs(ROWS[row], 4, 2)
    due = attend(given, ROWS[row])
    plain_varlen.force(monkeypatch, plain_varlen.Plain(keyless))
    assert max(apart(attend(given, ROWS[row]), due)) < 1e-12


def test_the_gradient_is_that_of_differences() -> None:
    families: Families = [(0, 2, [2, 1]), (5, 1, [1])]
    kernel = plain_varlen.Plain()
    qkv = inputs(families, 2, 2)[:3]
    for window in (None, 2):
        parts = Packing(families).parts(window, qkv[0].device)
        assert torch.autograd.gradcheck(lambda q, k, v, p=parts: varlen.attend(q, k, v, p, kernel, 0.7), qkv)


def test_a_merge_by_autograd_would_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Because the kernel's logsumexp carries no gradient: outputs agree and gradients do not."""
    families = ROWS["one family"]
    given = inputs(families, 4, 2)
    due = attend(given, families)
    q, k, v = (each[0].transpose(0, 1) for each in given[:3])
    own, across = Packing(families).parts(None, q.device)
    first, first_lse = plain_varlen.PlainVarlen.apply(q, k, v, own, 0.7)
    second, second_lse = plain_varlen.PlainVarlen.apply(q[across.queries], k[across.keys], v[across.keys], across, 0.7)
    weight = torch.zeros_like(first_lse).index_copy(
        1, across.queries, (second_lse - first_lse[:, across.queries]).sigmoid()
    )
    wide = torch.zeros_like(first).index_copy(0, across.queries, second)
    naive = (first + weight.T[..., None] * (wide - first))[None]
    wrong = apart([naive, *torch.autograd.grad(naive, given[:3], given[3])], due)
    assert wrong[0] < 1e-12 and min(wrong[1:3]) > 0.2 and wrong[3] < 1e-12
    plain_varlen.force(monkeypatch)
    assert max(apart(attend(given, families), due)) < 1e-12


def test_a_key_that_many_responses_see_sums_their_gradients_in_float32() -> None:
    """Shown by the dtype: the CPU sums so by itself, CUDA rounds every sum to the dtype of the total."""
    gradient = torch.ones(3, 1, dtype=torch.bfloat16)
    total = varlen._add(None, gradient, torch.zeros(3, dtype=torch.long), torch.zeros(1, 1, dtype=torch.bfloat16))
    assert total.dtype == torch.float32 and total.tolist() == [[3.0]]


def test_bfloat16_is_merged_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """As near to float64 as the loop is, gradients included."""
    families: Families = [(0, 20, [6] * 30), (200, 9, [4, 30])]
    given = inputs(families, 8, 4, torch.bfloat16)
    exact = attend([each.detach().double().requires_grad_() for each in given], families)
    loop = apart([each.double() for each in attend(given, families)], exact)
    plain_varlen.force(monkeypatch)
    for ours, theirs in zip(apart([each.double() for each in attend(given, families)], exact), loop, strict=True):
        assert ours < 1.5 * theirs


def test_index_tensors_are_made_once_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    for name in ("shared", "windowed"):
        own = getattr(attention.segments, name)
        monkeypatch.setattr(attention.segments, name, lambda *a, n=name, f=own: (made.append(n), f(*a))[1])
    plain_varlen.force(monkeypatch)
    model = small("gemma3").eval()
    Scorer(model)
    made.clear()
    packing = Packing(ROWS["many families"])
    model.set_attn_implementation(attention.NAME)
    positions = torch.cat([torch.arange(n) for n in (packing.tokens,)])[None]
    model.base_model(input_ids=positions, position_ids=positions, packing=packing, use_cache=False)
    assert sorted(made) == ["shared", "windowed"]


# What is not the kernel's goes as before


def test_soft_caps_take_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    given, families = inputs(ROWS["many families"], 4, 2), ROWS["many families"]
    kernel = plain_varlen.force(monkeypatch)
    attention.packed_attention(MODULE, *given[:3], None, packing=Packing(families), softcap=3.0)
    assert kernel.calls == 0


def test_flash_is_for_16_bits_and_as_many_segments_as_a_grid_has(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = Packing(ROWS["many families"]).parts(None, torch.device("cpu"))
    flash = varlen.Flash()
    assert flash.takes(torch.empty(1, dtype=torch.bfloat16), parts) and flash.takes(torch.empty(1).half(), parts)
    assert not flash.takes(torch.empty(1), parts) and not flash.takes(torch.empty(1).double(), parts)
    monkeypatch.setattr(varlen, "LARGEST_GRID", 12)
    assert not flash.takes(torch.empty(1, dtype=torch.bfloat16), parts)


class Broken(plain_varlen.Plain):
    def forward(self, *given):  # type: ignore[no-untyped-def]
        raise RuntimeError("no such device\nand a trace")


class WrongForward(plain_varlen.Plain):
    def forward(self, *given):  # type: ignore[no-untyped-def]
        out, logsumexp = super().forward(*given)
        return out, logsumexp + 1.0 * (not given[3].causal)


class WrongBackward(plain_varlen.Plain):
    def backward(self, *given):  # type: ignore[no-untyped-def]
        *gradients, of_value = super().backward(*given)
        return (*gradients, of_value * 1.2)


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (Broken, "RuntimeError: no such device)"),
        (WrongForward, "% off)"),
        (WrongBackward, "the kernel's numbers are 20% off)"),
    ],
)
def test_a_kernel_that_fails_or_differs_leaves_the_loop_and_a_note(
    kernel: type[plain_varlen.Plain], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = Scorer(small("llama")).score(TURNS)
    plain_varlen.force(monkeypatch, kernel())
    scorer = Scorer(small("llama"))
    assert scorer.layout == "packed" and len(scorer.notes) == 1 and scorer.notes[0].endswith(reason)
    for ours, due in zip(scorer.score(TURNS), expected, strict=True):
        np.testing.assert_array_equal(ours.logprobs, due.logprobs)
    policy = Policy(small("llama"))
    assert choose_layout(policy, policy, "auto") == scorer.notes and policy.layout == "packed"


class WrongInModels(plain_varlen.Plain):
    """Right on the small row on which it is tried, wrong in a model."""

    def forward(self, *given):  # type: ignore[no-untyped-def]
        out, logsumexp = super().forward(*given)
        return (out if len(given[0]) > 100 else out.flip(0)), logsumexp


def test_a_kernel_that_differs_in_the_model_leaves_the_loop_and_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Scorer(small("llama")).score(TURNS)
    plain_varlen.force(monkeypatch, WrongInModels())
    scorer = Scorer(small("llama"))
    [note] = scorer.notes
    assert scorer.layout == "packed" and "one by one, which is slower (its logits differ)" in note
    for ours, due in zip(scorer.score(TURNS), expected, strict=True):
        np.testing.assert_array_equal(ours.logprobs, due.logprobs)
    policy = Policy(small("llama"))
    [note] = choose_layout(policy, policy, "auto")
    assert policy.layout == "packed" and "slower (its log-probabilities differ)" in note
    assert policy.model.config._attn_implementation == attention.LOOPED


def test_a_kernel_that_runs_out_of_memory_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(plain_varlen.Plain):
        def forward(self, *given):  # type: ignore[no-untyped-def]
            raise torch.OutOfMemoryError("CUDA out of memory")

    plain_varlen.force(monkeypatch, Full())
    families = ROWS["one family"]
    with pytest.raises(torch.OutOfMemoryError):
        attend(inputs(families, 4, 2), families)
    assert attention._refusals == {}


# Whole models

MODELS: dict[str, Callable[[], transformers.PreTrainedConfig]] = {
    "llama": lambda: transformers.LlamaConfig(**SMALL),
    "qwen3": lambda: transformers.Qwen3Config(**SMALL, head_dim=8),
    "mistral_window": lambda: transformers.MistralConfig(**SMALL, sliding_window=6),
    "gemma2": lambda: transformers.Gemma2Config(**SMALL, head_dim=8, sliding_window=6, attn_logit_softcapping=2.0),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **SMALL, head_dim=8, sliding_window=6, layer_types=["sliding_attention", "full_attention", "sliding_attention"]
    ),
}


def small(name: str) -> transformers.PreTrainedModel:
    torch.manual_seed(7)
    return transformers.AutoModelForCausalLM.from_config(MODELS[name]()).eval()


def turns() -> list[TokenizedTurn]:
    rng = np.random.default_rng(0)

    def draw(n: int) -> list[int]:
        return rng.integers(1, 97, n).tolist()

    prompts = [(draw(n), lengths) for n, lengths in ((1, [1, 4]), (5, [9, 1]), (17, [12, 3, 20]), (30, [1]))]
    return [TokenizedTurn(prompt, draw(n), []) for prompt, lengths in prompts for n in lengths]


TURNS = turns()


@pytest.mark.parametrize("name", MODELS)
def test_labels_are_those_of_the_models_own_forward(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(name)
    exact = copy.deepcopy(model).double()
    exact.set_attn_implementation("eager")
    kernel = plain_varlen.force(monkeypatch)
    scorer = Scorer(model, budget_tokens=64)
    assert scorer.layout == "packed" and scorer.notes == []
    kernel.calls = 0
    scores = scorer.score(TURNS)
    assert (kernel.calls > 0) == (name != "gemma2")
    for turn, got in zip(TURNS, scores, strict=True):
        ids = torch.tensor([[*turn.prompt_ids, *turn.response_ids]])
        with torch.no_grad():
            logits = exact(ids).logits[0, len(turn.prompt_ids) - 1 : -1]
        due = logits.log_softmax(1).gather(1, torch.tensor(list(turn.response_ids))[:, None])[:, 0]
        np.testing.assert_allclose(got.logprobs, due.numpy(), atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "mistral_window", "gemma3"])
def test_rewards_do_not_depend_on_the_batch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain_varlen.force(monkeypatch)
    together = Scorer(small(name), budget_tokens=10**6).score(TURNS)
    alone = Scorer(small(name), budget_tokens=1)
    for turn, both in zip(TURNS, together, strict=True):
        [one] = alone.score([turn])
        np.testing.assert_allclose(one.q - one.values, both.q - both.values, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_rounding_in_bfloat16_is_no_reason_for_another_way(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = plain_varlen.force(monkeypatch)
    config = MODELS[name]()
    config.num_hidden_layers = 12
    if hasattr(config, "layer_types"):
        config.layer_types = ["full_attention"] * 12
    torch.manual_seed(0)
    scorer = Scorer(transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16))
    assert scorer.layout == "packed" and scorer.notes == [] and kernel.calls >= 24
    assert scorer.packed_attention == attention.NAME
    policy = Policy(scorer.model)
    assert choose_layout(policy, policy, "auto") == [] and policy.packed_attention == attention.NAME


@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_a_policy_are_those_of_the_loop(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    responses = [Response(t.prompt_ids, t.response_ids, 0.0) for t in TURNS]

    def gradients() -> list[torch.Tensor]:
        policy = Policy(small(name).double())
        assert choose_layout(policy, policy, "packed") == []
        logprobs = policy(responses).logprobs
        (logprobs * torch.linspace(0.5, 1.5, len(logprobs))).sum().backward()
        return [p.grad for p in policy.model.parameters()]  # type: ignore[misc]

    due = gradients()
    kernel = plain_varlen.force(monkeypatch)
    for ours, theirs in zip(gradients(), due, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)  # some norms are in float32
    assert (kernel.calls > 0) == (name != "gemma2")


# FlashAttention's operators, as far as they go without a GPU


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("groups", [1, 4])
def test_flash_is_called_as_this_version_wants_it(groups: int, window: int | None) -> None:
    """On the meta device: arguments are those of the schema, shapes are those that are merged."""
    families = ROWS["many families"]
    tokens = Packing(families).tokens
    q, k, v = (
        torch.empty(1, n, tokens, 16, dtype=torch.bfloat16, device="meta", requires_grad=True)
        for n in (8, 8 // groups, 8 // groups)
    )
    parts = Packing(families).parts(window, torch.device("meta"))
    out = varlen.attend(q, k, v, parts, varlen.Flash(), 0.25)
    assert out.shape == (1, tokens, 8, 16) and out.dtype == torch.bfloat16
    gradients = torch.autograd.grad(out, (q, k, v), torch.empty_like(out))
    assert [(g.shape, g.dtype) for g in gradients] == [(each.shape, each.dtype) for each in (q, k, v)]


@pytest.mark.parametrize(
    ("longest", "window", "causal", "due"), [(9, None, True, (-1, 0)), (9, None, False, (-1, -1)), (1, 5, True, (4, 0))]
)
def test_flash_is_given_windows_and_lengths_as_it_counts_them(
    longest: int, window: int | None, causal: bool, due: tuple[int, int]
) -> None:
    """A longest query of 1 would have grouped heads take another way, in which every segment has exactly one query."""
    starts = torch.tensor([0, longest], dtype=torch.int32)
    of = attention.segments.Segments(None, None, starts, starts, longest, longest, causal, window)
    how = varlen._how(of, 0.5)
    assert (how["window_size_left"], how["window_size_right"]) == due
    assert varlen._lengths(of)[2:] == (max(2, longest), longest)
    assert varlen._unsplit() in ({}, {"num_splits": 1})
    known = str(torch.ops.aten._flash_attention_forward.default._schema)
    assert ("num_splits" in known) == bool(varlen._unsplit())
