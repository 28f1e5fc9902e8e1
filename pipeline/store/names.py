"""Names of very many shards, `<file>-<index>`, as a set of a byte each."""

from collections.abc import Iterable, Iterator, Set

from pipeline.store.commit import indexed_name

LARGEST = 1 << 24
"""Indices below it have a byte; a set of its own holds other names."""


class ShardNames(Set[str]):
    """Iterated in the order of the names. Other sets combine with it as with any set."""

    def __init__(self, names: Iterable[str] = ()):
        self._flags: dict[str, bytearray] = {}  # by file: of each index, whether it is here
        self._others: set[str] = set()
        self._count = 0
        for name in names:
            self.add(name)

    @classmethod
    def _from_iterable(cls, names: Iterable[str]) -> "ShardNames":  # type: ignore[override]
        return cls(names)

    def add(self, name: str) -> None:
        place = _place(name)
        if place is None:
            self._others.add(name)
            return
        file, index = place
        flags = self._flags.setdefault(file, bytearray())
        if index >= len(flags):
            flags.extend(bytes(index + 1 - len(flags)))
        self._count += not flags[index]
        flags[index] = 1

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        place = _place(name)
        if place is None:
            return name in self._others
        flags = self._flags.get(place[0], b"")
        return place[1] < len(flags) and bool(flags[place[1]])

    def __len__(self) -> int:
        return self._count + len(self._others)

    def __iter__(self) -> Iterator[str]:
        if self._others or any(len(flags) > 1_000_000 for flags in self._flags.values()):
            return iter(sorted([*self._plain(), *self._others]))  # a digit more does not sort as a number
        return self._plain()

    def _plain(self) -> Iterator[str]:
        for file in sorted(self._flags):
            flags = self._flags[file]
            at = flags.find(1)
            while at >= 0:
                yield indexed_name(file, at)
                at = flags.find(1, at + 1)


def _place(name: str) -> tuple[str, int] | None:
    """File and index of a name that `indexed_name` gives."""
    file, _, digits = name.rpartition("-")
    if not (digits.isascii() and digits.isdigit()):
        return None
    index = int(digits) if len(digits) <= 8 else LARGEST
    return (file, index) if index < LARGEST and indexed_name(file, index) == name else None
