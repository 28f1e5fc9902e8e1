"""Drawing a token of each row from its logits, by numbers that depend on nothing but the row's seed, its sample and the step.

A draw is Gumbel's trick: argmax of log p + noise is distributed as p (Maddison et al. 2014, arXiv 1411.0030, section 2). It is
done twice, first among blocks of the vocabulary, whose log-probabilities are sums within them, then within the block that was
taken: so a row wants V / 128 + 128 numbers a step in place of V. Rounding decides only between two that are all but equal;
inverting a cumulative sum would let it shift every token behind.

Numbers are counted, not drawn one after another: number n of a row is output n of SplitMix64 from the row's key (Steele, Lea
and Flood 2014, "Fast splittable pseudorandom number generators", figure 17), for all rows of a batch at once. In whole
numbers, so that they are the same on every device.
"""

import functools
import math

import torch

BLOCK = 128  # tokens; a divisor of most vocabularies, or logits would be copied
GOLDEN, FIRST, SECOND = (word - 2**64 for word in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def words(keys: torch.Tensor, first: int | torch.Tensor, count: int) -> torch.Tensor:
    """Outputs `first` to `first + count`, counted from 0, of SplitMix64 from each key: [R] -> [R, count], signed words.
    `first` is one for all rows or [R]."""
    counter = torch.arange(1, count + 1, device=keys.device)
    counter = counter + (first if isinstance(first, int) else first[:, None])
    mixed = keys[:, None] + counter * GOLDEN
    for shift, factor in ((30, FIRST), (27, SECOND)):
        mixed = mixed.bitwise_xor_(_shifted(mixed, shift)).mul_(factor)
    return mixed.bitwise_xor_(_shifted(mixed, 31))


def gumbel(keys: torch.Tensor, first: int | torch.Tensor, count: int) -> torch.Tensor:
    """-log of exponential variates, [R, count] float64: float32 has ties."""
    uniform = (_shifted(words(keys, first, count), 12).double() + 0.5).mul_(2.0**-52)  # between 0 and 1, never either
    return uniform.log_().neg_().log_().neg_()


def _shifted(values: torch.Tensor, bits: int) -> torch.Tensor:
    """To the right, with zeros coming in from the left."""
    return (values >> bits).bitwise_and_(2 ** (64 - bits) - 1)


class Blocks:
    """Logits [R, V] by blocks of the vocabulary."""

    def __init__(self, logits: torch.Tensor):
        self.logits = logits
        lacking = -logits.shape[1] % BLOCK
        whole = torch.nn.functional.pad(logits, (0, lacking), value=-torch.inf) if lacking else logits
        self.parts = whole.unflatten(1, (-1, BLOCK))

    @functools.cached_property
    def sums(self) -> torch.Tensor:
        """log of the sum of exp(logit) of each block, [R, V / BLOCK] float64; not a number where a logit is not."""
        sums: torch.Tensor = self.parts.logsumexp(-1).double()
        return sums

    def draw(self, keys: torch.Tensor, step: int | torch.Tensor) -> torch.Tensor:
        """A token of each row, [R], distributed as softmax(logits): by the numbers of step `step`, of all rows or [R], from
        these keys, [R]. One that is not a number where there is such a one."""
        blocks = self.sums.shape[1]
        noise = gumbel(keys, step * (blocks + BLOCK), blocks + BLOCK)
        block = (self.sums + noise[:, :blocks]).argmax(1)
        inside = self.parts[torch.arange(len(block), device=block.device), block]
        tokens: torch.Tensor = block * BLOCK + (inside + noise[:, blocks:]).argmax(1)
        return tokens

    def logprobs(self, tokens: torch.Tensor) -> torch.Tensor:
        """log softmax(logits) of one token a row: [R] -> [R]."""
        taken = self.logits.gather(1, tokens[:, None])[:, 0]
        return (taken - self.sums.logsumexp(1)).to(self.logits.dtype)

    def certainty(self) -> torch.Tensor:
        """The entropy of softmax(logits) and KL(uniform || softmax(logits)) of each row: [R, 2]. Not finite where a logit is
        not."""
        logsum = self.sums.logsumexp(1)
        shares = (self.logits - logsum[:, None]).exp()
        entropies = logsum - (shares * self.logits).sum(1)
        certainties = logsum - self.logits.mean(1, dtype=torch.float64) - math.log(self.logits.shape[1])
        return torch.stack([entropies, certainties], 1).to(self.logits.dtype)
