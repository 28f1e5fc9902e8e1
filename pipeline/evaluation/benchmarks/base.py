"""What a benchmark is: a published layout, and its authors' figures. One small file each; `__init__` lists them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.config import EvaluateConfig, InputConfig
from pipeline.corpus import Choice, Shape, detect
from pipeline.corpus.columns import RawRow, lookup
from pipeline.errors import ConfigError, InputError, RowError
from pipeline.evaluation.benchmarks.figures import Figures
from pipeline.evaluation.benchmarks.items import Item


class Benchmark:
    """Base of all benchmarks. A subclass sets the class attributes and gives `figures`; `left_out`, `shape`, `check` and
    `requires` where a copy holds more than the benchmark, where the layout is not one that `label` recognises, where items
    can be malformed, where a run can lack something."""

    name: ClassVar[str]
    about: ClassVar[str]  # one sentence for people
    source: ClassVar[str | None] = None  # where its authors publish it, as a path for --input
    fields: ClassVar[tuple[str, ...]] = ()  # columns that the published layout has; `a.b` is `b` within `a`
    choice: ClassVar[Choice] = Choice()  # what it is of a folder that holds several configurations or splits
    by_prompt: ClassVar[bool] = False  # whether its items need to know their prompts
    by_step: ClassVar[bool] = False  # whether it is of the reward of each step, by its tokens, and not of a response's
    knows_preferences: ClassVar[bool] = True  # whether items have chosen and rejected responses

    def requires(self, config: EvaluateConfig) -> None:
        """Raises ConfigError, before anything is read, where this run cannot give the figures."""
        if not self.knows_preferences and "judge-pairwise" in config.evaluate.rewards:
            raise ConfigError(
                f"{self.name} has no chosen and rejected responses for judge-pairwise to compare; use judge-pointwise"
            )

    def left_out(self, names: Sequence[str]) -> dict[str, str]:
        """Of the input's files those that its layout has beside the benchmark, or that hold items again: reason by name."""
        return {}

    def shape(self, head: Sequence[RawRow], config: InputConfig, file: str) -> Shape:
        """Which columns hold what, from a file's first rows. Raises InputError that names file and missing field."""
        self.require_fields(head, file)
        return detect(list(head), config, file)

    def require_fields(self, head: Sequence[RawRow], file: str) -> None:
        """Raises InputError, naming file and missing field, unless each of a file's first rows has all of `fields`."""
        for row in head:
            for name in self.fields:
                try:
                    lookup(row, name)
                except RowError:
                    raise InputError(
                        f"{file}: not the layout of {self.name}: a row has no field {name!r} "
                        f"(it has {', '.join(sorted(map(str, row)))}); give the file that its authors publish"
                    ) from None

    def check(self, item: Item) -> str | None:
        """Why a complete item cannot be evaluated (it is then counted as incomplete for this reason), or None."""
        return None

    def chance(self, figures: Figures) -> float | None:
        """What a reward that knows nothing would get as the main figure; None where there is no such number."""
        return 0.5 if self.knows_preferences else None

    def figures(self, items: Sequence[Item]) -> Figures:
        """The authors' figures from complete, checked items; at least one."""
        raise NotImplementedError


def item_name(item: Item) -> str:
    """An item's name in `Figures.items`."""
    return f"{item.id}@{item.rubric}" if item.rubric else item.id


def count_ties(items: Iterable[Item]) -> tuple[int, int]:
    """Ties, and comparisons of a better with a worse response."""
    margins = [margin for item in items for *_, margin in item.pairs()]
    return margins.count(0), len(margins)


def first_right(item: Item) -> bool:
    """Whether a pair's chosen response is above the rejected one; a tie is not."""
    return item.margin(0, 0) > 0


def strata_of(names: Sequence[str], present: Sequence[str]) -> NDArray[np.int64]:
    """[n] names as positions in `present`."""
    positions: Mapping[str, int] = {name: index for index, name in enumerate(present)}
    return np.array([positions[name] for name in names], np.int64)


def listed(names: Iterable[str]) -> str:
    """Names for a sentence: `a, b and c`."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
