"""FlashAttention's calls of packed attention on a CUDA device against the loop over segments, in bfloat16 with gradients; that
nothing waits for the device, and that a response's numbers do not depend on the batch."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

FAMILIES = [(0, 70, [30, 0, 130, 1]), (231, 1, [9]), (241, 300, [40] * 16), (1181, 33, [0]), (1214, 5, [])]
TOKENS = 1219


def inputs(groups: int, size: int) -> list:
    """Query, key, value [1, heads, T, D] as projections lay them out, and a slope [1, T, N, D]."""
    draw = torch.Generator("cuda").manual_seed(0)
    drawn = [
        torch.randn(1, TOKENS, n, size, generator=draw, device="cuda").bfloat16()
        for n in (8, 8 // groups, 8 // groups, 8)
    ]
    return [*(each.transpose(1, 2).requires_grad_() for each in drawn[:3]), drawn[3]]


def attend(given: list, window: int | None, looped: bool = False) -> list:
    """Output and gradients."""
    from pipeline.models.scoring.attention import Packing, packed_attention

    *qkv, slope = given
    how = {"packing": Packing(FAMILIES), "sliding_window": window, "scaling": 0.1, "looped": looped}
    out, _ = packed_attention(torch.nn.Module(), *qkv, None, **how)
    return [out, *torch.autograd.grad(out, qkv, slope)]


@pytest.fixture(autouse=True)
def kernels_are_used() -> None:
    from pipeline.models.scoring import attention

    yield
    assert attention.refusals(torch.device("cuda")) == []


@pytest.mark.parametrize("window", [None, 2, 24, 10_000])
@pytest.mark.parametrize("size", [64, 96, 128, 256])
@pytest.mark.parametrize("groups", [1, 4, 8])
def test_segments_give_what_the_loop_gives(groups: int, size: int, window: int | None) -> None:
    """Both against the loop in float32: as near as the loop in bfloat16, but for a second rounding."""
    given = inputs(groups, size)
    exact = attend([each.detach().float().requires_grad_() for each in given], window, looped=True)

    def apart(ours: list) -> list[float]:
        return [float((a.detach().float() - b.detach()).norm() / b.norm()) for a, b in zip(ours, exact, strict=True)]

    for ours, theirs in zip(apart(attend(given, window)), apart(attend(given, window, looped=True)), strict=True):
        assert ours <= max(2 * theirs, 1e-2)


@pytest.mark.parametrize("window", [None, 24])
def test_nothing_waits_for_the_device(window: int | None) -> None:
    from pipeline.models.scoring.attention import Packing, packed_attention

    q, k, v, slope = inputs(4, 64)
    how = {"packing": Packing(FAMILIES), "sliding_window": window, "scaling": 0.1}
    packed_attention(torch.nn.Module(), q, k, v, None, **how)  # tries the kernel and moves the indices
    torch.cuda.set_sync_debug_mode("error")
    try:
        out, _ = packed_attention(torch.nn.Module(), q, k, v, None, **how)
        torch.autograd.grad(out, (q, k, v), slope)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_segments_of_one_token_with_grouped_heads() -> None:
    """At a longest query of 1 the kernel would take another way, which takes every segment to have a query."""
    from pipeline.models.scoring.attention import Packing, packed_attention

    families = [(0, 1, [1, 1]), (3, 1, [1]), (5, 1, [])]
    q, k, v, _ = (each[:, :, :6].detach() for each in inputs(4, 64))
    ours, due = (
        packed_attention(torch.nn.Module(), q, k, v, None, packing=Packing(families), looped=looped)[0]
        for looped in (False, True)
    )
    torch.testing.assert_close(ours, due, atol=2e-2, rtol=2e-2)


def test_a_response_has_the_same_attention_alone_and_among_others() -> None:
    from pipeline.models.scoring.attention import Packing, packed_attention

    q, k, v, _ = (each.detach() for each in inputs(4, 64))
    together, _ = packed_attention(torch.nn.Module(), q, k, v, None, packing=Packing(FAMILIES))
    rows = torch.cat([torch.arange(0, 70), torch.arange(100, 230)]).cuda()  # the first prompt, its third response
    q, k, v = (each[:, :, rows] for each in (q, k, v))
    alone, _ = packed_attention(torch.nn.Module(), q, k, v, None, packing=Packing([(0, 70, [130])]))
    assert torch.equal(alone, together[:, rows])
