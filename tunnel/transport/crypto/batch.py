"""Sealing and opening many datagrams in one go.

A datagram costs about a microsecond in the cipher, and a loop in Python as much again for what is around it.  So the loops over
a burst are `map`s: columns of views go in (slots.py), and the interpreter walks them in C.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from struct import Struct
from typing import Final, TypeAlias

from cryptography.exceptions import InvalidTag

#: (nonce, bytes, associated data, buffer for the result): encrypt_into and decrypt_into.
Crypt: TypeAlias = Callable[[bytes, memoryview, memoryview, memoryview], int]

#: The nonce of a sequence number: four zero bytes and the number.
nonce_of: Final = Struct(">4xQ").pack

#: Run through an iterator for what it does.
run_through: Final = deque[object](maxlen=0).extend


def seal_batch(
    seal: Crypt, first: int, count: int, plains: Iterable[memoryview], headers: Iterable[memoryview], sealed: Iterable[memoryview]
) -> None:
    """Seal `count` datagrams with the sequence numbers from `first` on; `sealed` may lie over `plains`."""
    run_through(map(seal, map(nonce_of, range(first, first + count)), plains, headers, sealed))


def open_batch(
    unseal: Crypt,
    first: int,
    count: int,
    sealed: Iterable[memoryview],
    headers: Iterable[memoryview],
    plains: Iterable[memoryview],
) -> int:
    """Open `count` datagrams that should have the sequence numbers from `first` on; how many did, up to the first that did not.

    The headers need not be read: they are the associated data, and nobody but the peer seals one that says another number,
    type or receiver than it was sealed with.
    """
    opened: list[int] = []
    with suppress(InvalidTag):  # those before it are in the list
        opened.extend(map(unseal, map(nonce_of, range(first, first + count)), sealed, headers, plains))
    return len(opened)
