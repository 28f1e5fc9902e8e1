"""A step's data: from its number to the responses that one worker computes, ready for the objective.

    order      step -> examples                             pipeline.training.order
    plan       examples -> micro-batches of each worker     pipeline.training.balance
    read       rows of the stores -> tokens                 pipeline.training.rows
    reference  stored with the labels, or computed before   pipeline.training.reference
    advantage  of a prompt's responses                      pipeline.training.advantages

All workers make the same plan from the same numbers and read only what is theirs. Nothing is carried from step to step.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.training.advantages import Siblings, advantages
from pipeline.training.balance import atoms_of, plan_step
from pipeline.training.batch import Response, Tokens
from pipeline.training.config import TrainConfig
from pipeline.training.examples import Examples
from pipeline.training.objectives import objective_of
from pipeline.training.objectives.base import Unit
from pipeline.training.order import Numbers, Order
from pipeline.training.reference import References
from pipeline.training.rows import RowReader, TrainingRow


@dataclass(frozen=True)
class StepPart:
    """One worker's part of a step."""

    micro_batches: list[list[Response]]  # as many on every worker
    totals: dict[Unit, int]  # of all workers together
    tokens: int  # prompts and responses of all workers, a shared prompt counted for each


class StepData:
    """The steps of a run, as worker `rank` of `workers` computes them.

    Args:
        references: None where the reference is the stored log-probabilities, or there is none.
        stored: whether the stored log-probabilities are the reference's.
    """

    def __init__(
        self,
        config: TrainConfig,
        examples: Examples,
        reader: RowReader,
        references: References | None,
        stored: bool,
        rank: int,
        workers: int,
    ):
        self.config, self.examples, self.reader = config, examples, reader
        self.references, self.stored = references, stored
        self.rank, self.workers = rank, workers
        self.objective = objective_of(config)

    def order(self) -> Order:
        """Raises ConfigError where there are fewer examples than a step takes."""
        train = self.config.train
        return Order(self.examples.part, train.batch_size, train.seed, train.shuffle_parts)

    def part(self, numbers: Numbers) -> StepPart:
        """These examples as a step. Raises StoreError, ConfigError as `RowReader.read`."""
        atoms = atoms_of(self.examples, numbers)
        plan = plan_step(atoms, self.workers, self.config.learner.micro_tokens)[self.rank]
        mine = [[position for atom in micro for position in atoms[atom].positions] for micro in plan]
        responses = self._responses(sorted({position for micro in mine for position in micro}))
        positions = np.array([position for atom in atoms for position in atom.positions])
        tokens = int(self.examples.tokens[positions].sum())
        return StepPart(
            micro_batches=[[responses[position] for position in micro] for micro in mine],
            totals={"pairs": len(positions) // 2, "responses": len(positions), "tokens": tokens},
            tokens=tokens + int(self.examples.prompt_tokens[positions].sum()),
        )

    def parts(self) -> Iterator[StepPart]:
        """All examples once, in their own order."""
        size = self.config.train.batch_size
        for begin in range(0, len(self.examples), size):
            yield self.part(np.arange(begin, min(begin + size, len(self.examples))))

    def _responses(self, positions: Sequence[int]) -> dict[int, Response]:
        if not positions:
            return {}
        needed = self._with_siblings(positions) if self.objective.uses_advantages else np.array(positions)
        rows = dict(zip(needed.tolist(), self.reader.read(self.examples, needed), strict=True))
        weighed = self._advantages(rows) if self.objective.uses_advantages else {}
        references = self._references(positions, rows)
        return {
            position: Response(
                prompt_ids=rows[position].prompt_ids,
                response_ids=rows[position].response_ids,
                reward=rows[position].reward,
                reference=references.get(position),
                behaviour=rows[position].logprobs if self.objective.uses_behaviour else None,
                advantages=weighed.get(position),
                pictures=self.reader.pictures(rows[position]),
            )
            for position in positions
        }

    def _with_siblings(self, positions: Sequence[int]) -> Numbers:
        """These rows and the others of their examples."""
        return self.examples.positions(np.unique(np.searchsorted(self.examples.offsets, positions, side="right") - 1))

    def _advantages(self, rows: dict[int, TrainingRow]) -> dict[int, Tokens]:
        offsets = self.examples.offsets
        weighed: dict[int, Tokens] = {}
        for example in np.unique(np.searchsorted(offsets, list(rows), side="right") - 1).tolist():
            members = range(*offsets[example : example + 2].tolist())
            siblings = Siblings(
                rewards=[rows[m].reward for m in members],
                lengths=[len(rows[m].response_ids) for m in members],
                token_rewards=_of_all([rows[m].token_rewards for m in members]),
                token_values=_of_all([rows[m].values for m in members]),
            )
            weighed |= zip(members, advantages(self.config, siblings, self._gamma(example)), strict=True)
        return weighed

    def _gamma(self, example: int) -> float:
        """The discount of rewards to go: as configured, else as the example's labels were made."""
        source = self.examples.sources[self.examples.parts[self.examples.part[example]].source]
        gamma = self.config.advantage.gamma
        return source.description.get("reward.gamma", 1.0) if gamma is None else gamma

    def _references(self, positions: Sequence[int], rows: dict[int, TrainingRow]) -> dict[int, Tokens]:
        if self.stored:
            return {position: stored for position in positions if (stored := rows[position].logprobs) is not None}
        if self.references is None:
            return {}
        return self.references.read(self.examples, positions)


def _of_all(columns: Sequence[Tokens | None]) -> Sequence[Tokens]:
    """None at all where one is missing."""
    there = [column for column in columns if column is not None]
    return there if len(there) == len(columns) else ()


def check_step(config: TrainConfig, examples: Examples, reader: RowReader) -> None:
    """Make the data of one example, so that labels which lack what the settings weigh responses by fail before a run starts:
    kept rollouts hold V only where a reward had one. Raises ConfigError, StoreError."""
    StepData(config, examples, reader, None, False, 0, 1).part(np.arange(1))
