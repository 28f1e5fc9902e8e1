"""A generator that a thread draws from ahead of whoever needs what it gives, until it is closed."""

import contextlib
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import CancelledError
from typing import Generic, TypeVar

Item = TypeVar("Item")

ENDS_WITHIN_S = 10.0  # a thread, once what it waits for is closed


class Ahead(Generic[Item]):
    """Gives each time all that is there by then, at least one item, in order; an error comes after what came before it.

    Args:
        items: are drawn in the thread, which begins as the first is asked for and closes the generator at the end.
        most: items that wait.
    """

    def __init__(self, items: Generator[Item], most: int):
        self.items, self.most = items, most
        self._changed = threading.Condition()  # of what follows
        self._waiting: list[Item] = []
        self._ended = self._closed = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._draw, daemon=True)  # no one waits for it as the interpreter ends

    def __iter__(self) -> Iterator[list[Item]]:
        """Raises what the generator raises, and CancelledError once it is closed."""
        if not self._closed:
            self._thread.start()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._ended or self._waiting)
                if self._closed:
                    raise CancelledError
                drawn, self._waiting = self._waiting, []
                self._changed.notify_all()
            if drawn:
                yield drawn
            elif self._error is not None:
                raise self._error
            else:
                return

    def close(self) -> None:
        """Nothing is drawn any more. Waits for the thread: what keeps the generator itself has to be ended before."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(ENDS_WITHIN_S)

    def _draw(self) -> None:
        try:
            with contextlib.closing(self.items):
                for item in self.items:
                    with self._changed:
                        self._waiting.append(item)
                        self._changed.notify_all()
                        self._changed.wait_for(lambda: self._closed or len(self._waiting) < self.most)
                        if self._closed:
                            return
        except BaseException as error:
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()
