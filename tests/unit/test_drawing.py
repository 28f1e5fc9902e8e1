"""Numbers against SplitMix64's published outputs and plain integers, draws against the softmax."""

import torch
from scipy.stats import chisquare, gumbel_r, kstest

from pipeline.models.drawing import BLOCK, Blocks, gumbel, words
from pipeline.models.questions import stream_key

WORD = 2**64


def splitmix64(key: int, number: int) -> int:
    """Output `number`, counted from 0, in Python's unbounded integers."""
    z = (key + (number + 1) * 0x9E3779B97F4A7C15) % WORD
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
    return z ^ (z >> 31)


def test_words_are_splitmix64s() -> None:
    published = [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821
    ]  # of seed 1234567: the test values that its implementations share  # fmt: skip
    assert [word % WORD for word in words(torch.tensor([1234567]), 0, 5)[0].tolist()] == published
    keys = [stream_key(7, 0), stream_key(7, 1), -1, 2**63 - 1]
    for first in (0, 12_345_678):
        due = [[splitmix64(key, first + i) for i in range(6)] for key in keys]
        assert [[w % WORD for w in row] for row in words(torch.tensor(keys), first, 6).tolist()] == due


def test_noise_is_gumbels_and_finite() -> None:
    noise = gumbel(torch.tensor([stream_key(3, n) for n in range(40)]), 0, 5000)
    assert noise.dtype == torch.float64 and bool(noise.isfinite().all()) and noise.unique().numel() == noise.numel()
    assert kstest(noise.flatten().numpy(), gumbel_r.cdf).pvalue > 1e-3
    across = torch.corrcoef(noise).fill_diagonal_(0)  # samples of one seed know nothing of each other
    assert float(across.abs().max()) < 5 / 5000**0.5


def draws(logits: torch.Tensor, samples: int, steps: int) -> torch.Tensor:
    keys = torch.tensor([stream_key(11, sample) for sample in range(samples)])
    rows = Blocks(logits.expand(samples, -1))
    return torch.bincount(torch.cat([rows.draw(keys, step) for step in range(steps)]), minlength=logits.shape[-1])


def test_draws_are_distributed_as_the_softmax_within_blocks_and_across() -> None:
    for vocabulary in (5, BLOCK, 3 * BLOCK + 7):  # one part of a block, one block, several and a part
        logits = torch.randn(vocabulary, generator=torch.Generator().manual_seed(vocabulary)) * 1.5
        logits[::4] = -torch.inf  # as top_p leaves them
        counts, due = draws(logits, 400, 50), logits.double().softmax(-1) * 20_000
        assert not counts[::4].any()
        order = due.argsort()
        rare = int((due[order].cumsum(0) < 20).sum()) + 1  # together, so that every cell expects some
        observed, expected = (torch.cat([x[order[:rare]].sum()[None], x[order[rare:]]]) for x in (counts, due))
        assert chisquare(observed.numpy(), expected.numpy()).pvalue > 1e-3
        assert chisquare(observed.numpy(), expected.roll(1).numpy()).pvalue < 1e-6  # the test can fail


def test_a_whole_block_may_be_out_and_no_number_shows() -> None:
    logits = torch.full((2, 3 * BLOCK), -torch.inf)
    logits[:, 2 * BLOCK + 9] = 0.5
    keys = torch.tensor([5, 6])
    assert Blocks(logits).draw(keys, 0).tolist() == [2 * BLOCK + 9] * 2
    logits[1, 4] = torch.nan
    assert Blocks(logits).draw(keys, 0).tolist() == [2 * BLOCK + 9, 4]


def test_logprobs_are_the_log_softmax() -> None:
    logits = torch.randn((6, 1000), generator=torch.Generator().manual_seed(0)) * 4
    tokens = torch.tensor([0, 1, 127, 128, 998, 999])
    due = logits.double().log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(Blocks(logits).logprobs(tokens).double(), due, rtol=0, atol=2e-6)
