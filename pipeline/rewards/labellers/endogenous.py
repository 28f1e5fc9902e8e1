"""The endogenous reward of each response: its own tokens under the model's own logits (arXiv 2506.23235, eq. 11)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.corpus import NumberedRow, Shape, Shard
from pipeline.errors import RowError
from pipeline.models.scores import Scores
from pipeline.rewards.labellers.base import Labeller
from pipeline.rewards.labelling import Prepared, finish, prepare
from pipeline.store.schema import Failure, Label


@dataclass(frozen=True)
class Endogenous(Labeller):
    """What `label` runs."""

    name = "endogenous"
    sees = True

    def settings(self) -> dict[str, Any]:
        reward = self.config.reward.described()
        sampled = self.config.tokens.sampled
        return reward if sampled == "exact" else {**reward, "tokens.sampled": sampled}

    def prepare(self, shard: Shard, generation: int, rows: Iterable[NumberedRow], shape: Shape) -> Prepared:
        return prepare(shard, generation, rows, shape, self.renderer, self.config.input.turns)

    def finish(self, prepared: Prepared, answers: Sequence[Scores | RowError]) -> tuple[list[Label], list[Failure]]:
        return finish(prepared, answers, self.config.reward)
