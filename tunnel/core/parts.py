"""Tables in parts: a dict that grows is written anew in one go, and where it has 200,000 entries that takes 10 ms.

Those that have an entry for each client would all do so at the same client.  In parts, each does so by itself, at its own moment.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, MutableMapping
from typing import Final, TypeVar, overload

Key = TypeVar("Key")
Value = TypeVar("Value")
Other = TypeVar("Other")

PARTS: Final = 16
SHIFT: Final = sys.hash_info.width - 4  # the upper bits of a hash: a dict goes by the lower ones


class Parts(MutableMapping[Key, Value]):
    """A dict in PARTS parts: entries are in the order of their coming within a part only."""

    __slots__ = ("parts",)

    def __init__(self) -> None:
        self.parts: tuple[dict[Key, Value], ...] = tuple({} for _ in range(PARTS))

    def of(self, key: Key) -> dict[Key, Value]:
        """The part that this key is in, or would be."""
        return self.parts[hash(key) >> SHIFT]  # -8 to 7, and so each of them

    @overload
    def get(self, key: Key, /) -> Value | None: ...
    @overload
    def get(self, key: Key, default: Value | Other, /) -> Value | Other: ...
    def get(self, key: Key, default: Value | Other | None = None, /) -> Value | Other | None:
        return self.parts[hash(key) >> SHIFT].get(key, default)

    def __getitem__(self, key: Key) -> Value:
        return self.parts[hash(key) >> SHIFT][key]

    def __setitem__(self, key: Key, value: Value) -> None:
        self.parts[hash(key) >> SHIFT][key] = value

    def __delitem__(self, key: Key) -> None:
        del self.parts[hash(key) >> SHIFT][key]

    def __contains__(self, key: object) -> bool:
        return key in self.parts[hash(key) >> SHIFT]

    def __iter__(self) -> Iterator[Key]:
        for part in self.parts:
            yield from part

    def __len__(self) -> int:
        return sum(map(len, self.parts))
