"""Which rows end the process that works on them, by bisection.

A row is blamed only after it has ended a fresh process three times alone. The work is done in a process beside this one
(`pipeline.apart`), so what ends this one instead, a lost node, a drain or Ray's memory monitor, ends the count with it and
blames nobody.
"""

import contextlib
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from pipeline.apart import Died
from pipeline.errors import RowError, RunError

Value = TypeVar("Value")

DEATHS = 3  # alone, each in a fresh process, before a row is blamed
HOPELESS = 3  # rows blamed while none has ever come through


@dataclass
class Bisection(Generic[Value]):
    """Work on rows, repeated without those that end its process.

    Args:
        work: on rows by their positions, in the process beside this one. Raises Died.
        renew: makes the next work begin in a fresh process.
        what: the rows, for messages.
        lived: whether the process has ever come through with other rows; of a process that never has, no row is to blame.
    """

    work: Callable[[Sequence[int]], Value]
    renew: Callable[[], None]
    what: str
    lived: bool = False
    deaths: list[str] = field(default_factory=list)  # what ended the process, each time
    killers: dict[int, str] = field(default_factory=dict)  # by position: how it ended its process alone

    def run(self, count: int) -> Value:
        """What the work gives on all of `count` rows but `killers`.

        Raises:
            RunError: where the rows end their process together and no one does alone, or each one does.
        """
        rest = list(range(count))
        fruitless = 0
        with contextlib.suppress(Died):
            return self._try(rest)
        while True:
            self.renew()  # what earlier rows left behind in the process may have been it
            try:
                return self._try(rest)
            except Died as death:
                before = len(self.killers)
                self._search(rest)
                rest = [position for position in rest if position not in self.killers]
                fruitless = fruitless + 1 if len(self.killers) == before else 0
                if fruitless == DEATHS:
                    raise RunError(
                        f"{self.what} end their process together ({death.how}), and none of them does alone: mostly memory; "
                        "take a larger machine, a lower scorer.budget_tokens, or another output with a lower input.shard_rows"
                    ) from None

    def _try(self, positions: Sequence[int]) -> Value:
        try:
            value = self.work(positions)
        except Died as death:
            self.deaths.append(death.how)
            raise
        self.lived = self.lived or bool(positions)
        return value

    def _lives(self, positions: Sequence[int]) -> bool:
        try:
            self._try(positions)
        except Died:
            return False
        return True

    def _search(self, positions: Sequence[int]) -> None:
        """Find those among rows that ended their process together."""
        if len(positions) == 1:
            self._blame(positions[0])
            return
        left, right = positions[: len(positions) // 2], positions[len(positions) // 2 :]
        left_lives = self._lives(left)
        if not left_lives:
            self._search(left)
        if left_lives or not self._lives(right):
            self._search(right)

    def _blame(self, position: int) -> None:
        for _ in range(DEATHS):
            self.renew()
            if self._lives([position]):
                return
        self.killers[position] = self.deaths[-1]
        if len(self.killers) >= HOPELESS and not self.lived:
            raise RunError(
                f"{self.what}: {len(self.killers)} of them each ended their process {DEATHS} times ({self.deaths[-1]}) and "
                "not one came through: it is not the rows but the model, the tokenizer, a library or too little memory"
            )

    def notes(self, doing: str) -> list[str]:
        """What a person should know of it; `doing` is what the process did."""
        if self.killers:
            return [
                f"{len(self.killers):,} of {self.what} end the process that is {doing} them: error rows killed_process"
            ]
        if self.deaths:
            return [f"the process that was {doing} {self.what} ended ({self.deaths[0]}) and was started again"]
        return []


def killed(how: str, doing: str) -> RowError:
    """The error of a row that was blamed, which ended its process by `how` while it was `doing` something."""
    memory = how == f"signal {signal.SIGKILL.name}"
    why = ", mostly for want of memory" if memory else ""
    where = "a machine with more memory or with a lower scorer.budget_tokens" if memory else "with other versions"
    return RowError(
        "killed_process",
        f"it ended the process that was {doing} it {DEATHS} times alone, by {how}{why}; drop the row, or try again {where}: "
        "--retry-errors",
    )
