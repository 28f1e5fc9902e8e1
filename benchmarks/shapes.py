"""Corpora by their shape: prompts and the responses to each, as random token ids with the lengths of real data.

How fast a model scores depends on lengths and on what responses share, not on what the tokens are. Lengths are lognormal, with
the means and deviations measured on the real corpora under the tokenizer of SmolLM2. Needs numpy alone, so that it runs where
only a model does.

    hh         two responses of some 45 tokens to a dialogue of 120 (harmless-base, test)
    rm-bench   six to a short question: three styles of a right and of a wrong answer, two short and four long (chat)
    best-of-16 sixteen responses of 40 tokens to a prompt of 600
"""

from dataclasses import dataclass

import numpy as np

SHORTEST = 3
Lengths = tuple[float, float]  # mean and deviation of the logarithm of a length in tokens


@dataclass(frozen=True)
class Group:
    """A prompt and the responses to it, as token ids."""

    prompt: list[int]
    responses: list[list[int]]

    @property
    def tokens(self) -> int:
        """Of all responses."""
        return sum(map(len, self.responses))


@dataclass(frozen=True)
class Shape:
    """The lengths of a corpus; `responses` has an entry for each response to a prompt."""

    prompt: Lengths
    responses: tuple[Lengths, ...]
    longest: int = 1024  # tokens of a prompt and of a response, each at most half of it

    def draw(self, prompts: int, vocabulary: int, seed: int = 0) -> list[Group]:
        """Groups of ids from 3 to `vocabulary` - 1; the same for the same arguments."""
        rng = np.random.default_rng(seed)

        def ids(lengths: Lengths) -> list[int]:
            length = round(float(np.clip(rng.lognormal(*lengths), SHORTEST, self.longest // 2)))
            return rng.integers(3, vocabulary, length).tolist()

        return [Group(ids(self.prompt), [ids(each) for each in self.responses]) for _ in range(prompts)]


SHAPES = {
    "hh": Shape((4.38, 0.99), ((3.40, 0.97),) * 2),
    "rm-bench": Shape(
        (3.07, 0.82), ((3.65, 0.34), (5.72, 0.34), (5.84, 0.33), (3.64, 0.34), (5.98, 0.26), (6.12, 0.25)), longest=1200
    ),
    "best-of-16": Shape((np.log(600), 0.0), ((np.log(40), 0.0),) * 16, longest=1280),
}
