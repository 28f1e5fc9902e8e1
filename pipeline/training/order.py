"""Which examples a step sees: a function of numbers alone, the same everywhere. Any step is found without those before it, so
a run goes on inside an epoch.

The random numbers are the raw ones of PCG64, which NumPy keeps as they are from version to version (its permutations it
does not), and a shuffle is a stable sort by them.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError

Numbers = NDArray[np.int64]
PARTS, EXAMPLES = 0, 1  # streams of an epoch's random numbers
EPOCHS_HELD = 2  # a step may see the end of one and the beginning of the next


class Order:
    """All examples once an epoch, in another order each time.

    In each epoch the parts are shuffled, cut into windows of `shuffle_parts`, and the examples shuffled within each
    window: whoever follows needs the parts of one window, where windows meet of two. Epochs follow one another without
    a gap, and steps are cut from all of it: every step has `batch_size` examples, and an epoch's remainder begins a step
    that the next one fills (an example may then stand in it twice).

    Args:
        part: which part each example is in, [E].

    Memory: 24 bytes an example. Raises ConfigError where there are fewer examples than a step takes.
    """

    def __init__(self, part: NDArray[np.integer[Any]], batch_size: int, seed: int, shuffle_parts: int):
        if batch_size > len(part):
            raise ConfigError(
                f"train.batch_size = {batch_size} is more than the {len(part):,} examples there are to learn from; "
                "lower it, or add labels"
            )
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle_parts = shuffle_parts
        self._parts, self._part = np.unique(part, return_inverse=True)
        self._epochs: dict[int, Numbers] = {}

    @property
    def steps_per_epoch(self) -> float:
        return len(self._part) / self.batch_size

    def steps(self, epochs: float) -> int:
        """Steps after which each example was seen `epochs` times, at least one."""
        return max(1, math.ceil(round(epochs * self.steps_per_epoch, 9)))

    def step(self, k: int) -> Numbers:
        """The examples of step k, counted from 0 over all epochs: [batch_size]."""
        begin, end = k * self.batch_size, (k + 1) * self.batch_size
        epoch, start = divmod(begin, len(self._part))
        here = self.epoch(epoch)[start : start + self.batch_size]
        return (
            here if len(here) == end - begin else np.append(here, self.epoch(epoch + 1)[: self.batch_size - len(here)])
        )

    def epoch(self, number: int) -> Numbers:
        """All examples in the order of this epoch: [E]."""
        if number not in self._epochs:
            places = np.argsort(np.argsort(self._random(number, PARTS, len(self._parts)), kind="stable"))
            windows = places[self._part] // self.shuffle_parts
            order = np.lexsort((self._random(number, EXAMPLES, len(self._part)), windows))
            self._epochs = {n: held for n, held in self._epochs.items() if abs(n - number) < EPOCHS_HELD}
            self._epochs[number] = order
        return self._epochs[number]

    def _random(self, epoch: int, stream: int, size: int) -> NDArray[np.uint64]:
        return np.random.PCG64(np.random.SeedSequence([self.seed, epoch, stream])).random_raw(size)
