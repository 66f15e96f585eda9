"""The open directory: `ip ver` ("give IP" in Turkish) is answered with the other clients that said so lately.

The protocol of the tutorial that this project grew from.  Plain text, no proof of address, hence off by default, rate-limited
by the server and never longer than MAX_ANSWER bytes.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from tunnel.units import Address, Buffer, Instant, Seconds

QUESTION: Final = b"ip ver"
MAX_ANSWER: Final = 1024  # bytes, what the tutorial's clients read
MAX_QUESTION: Final = 64  # bytes, with white space around


def is_question(datagram: Buffer) -> bool:
    return len(datagram) <= MAX_QUESTION and bytes(datagram).strip() == QUESTION


class Directory:
    """Clients by when they last spoke, oldest first; bounded, the oldest goes."""

    __slots__ = ("_clients", "_lifetime", "_size")

    def __init__(self, *, lifetime: Seconds, size: int) -> None:
        self._lifetime = lifetime
        self._size = size
        self._clients: OrderedDict[Address, Instant] = OrderedDict()

    def __len__(self) -> int:
        return len(self._clients)

    def ask(self, now: Instant, client: Address) -> bytes:
        """Note the asker and list the others, newest first, as many as fit."""
        self._clients[client] = now
        self._clients.move_to_end(client)
        while len(self._clients) > self._size or now - next(iter(self._clients.values())) > self._lifetime:
            self._clients.popitem(last=False)
        entries: list[str] = []
        length = 2
        for other in reversed(self._clients):
            if other == client:
                continue
            host = other.host.partition("%")[0]
            entry = f'["{host}", {other.port}]'
            length += len(entry) + (2 if entries else 0)
            if length > MAX_ANSWER:
                break
            entries.append(entry)
        return ("[" + ", ".join(entries) + "]").encode()
