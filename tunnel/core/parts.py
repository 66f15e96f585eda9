"""Tables in parts: a dict that grows is written anew in one go, and where it has 200,000 entries that takes 10 ms.

Those that have an entry for each client would all do so at the same client.  In parts, each does so by itself, at its own moment.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Generic, TypeVar, overload

Value = TypeVar("Value")
Other = TypeVar("Other")


class Parts(MutableMapping[bytes, Value], Generic[Value]):
    """A dict of random keys in 256 parts, by their last byte: entries are in the order of their coming within a part only.

    An empty one is never there.  Who chooses his keys alike has them in one part, which then grows as the whole table would.
    """

    __slots__ = ("parts",)

    def __init__(self) -> None:
        self.parts: tuple[dict[bytes, Value], ...] = tuple({} for _ in range(256))

    def of(self, key: bytes) -> dict[bytes, Value]:
        """The part that this key is in, or would be."""
        return self.parts[key[-1]]

    @overload
    def get(self, key: bytes, /) -> Value | None: ...
    @overload
    def get(self, key: bytes, default: Value | Other, /) -> Value | Other: ...
    def get(self, key: bytes, default: Value | Other | None = None, /) -> Value | Other | None:
        return self.parts[key[-1]].get(key, default) if key else default

    def __getitem__(self, key: bytes) -> Value:
        return self.parts[key[-1]][key]

    def __setitem__(self, key: bytes, value: Value) -> None:
        self.parts[key[-1]][key] = value

    def __delitem__(self, key: bytes) -> None:
        del self.parts[key[-1]][key]

    def __contains__(self, key: object) -> bool:
        return isinstance(key, bytes) and key != b"" and key in self.parts[key[-1]]

    def __iter__(self) -> Iterator[bytes]:
        for part in self.parts:
            yield from part

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __bool__(self) -> bool:
        return any(self.parts)
