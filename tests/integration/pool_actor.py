"""What the pool's tests run as an actor, in a module that workers can import."""

import os
import signal
from pathlib import Path

import ray

from jobs.label.work import Headway


class Doubler:
    """Doubles numbers. -1 ends its process, the first `deaths` times that any actor meets it."""

    def __init__(self, folder: str, deaths: int):
        self.folder, self.deaths = Path(folder), deaths
        self.done = 0

    def place(self) -> str:
        return str(ray.get_runtime_context().get_node_id())

    def headway(self) -> Headway:
        return Headway(self.done)

    def label(self, numbers: list[int], begin: int, end: int, again: bool) -> list[int]:
        for number in numbers[begin:end]:
            if number == -1 and len(list(self.folder.iterdir())) < self.deaths:
                (self.folder / str(os.getpid())).touch()
                os.kill(os.getpid(), signal.SIGKILL)
        self.done += end - begin
        return [2 * number for number in numbers[begin:end]]
