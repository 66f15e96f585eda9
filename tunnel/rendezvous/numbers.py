"""Which numbers a server gives, and how the owner of one shows after a restart of the server that it was its own.

Several servers may stand behind one name and know nothing of each other.  So each gives one number in SHARE only, by its secret,
and can tell a claim that belongs to another server from a guess.

A number that is given is one that nobody has.  Whoever asked often enough would know the others by what is missing; so an
address draws from a few numbers in ten minutes, which only the server can work out.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Collection
from hashlib import sha256
from typing import Final

from tunnel.rendezvous.limits import ServerConfig
from tunnel.rendezvous.messages import MAC_SIZE, MAX_NAMEPLATE
from tunnel.units import Instant, Seconds

SHARE: Final = 16  # of so many numbers one is a given server's own, where its secret is kept over restarts
DRAW_EPOCH: Final = Seconds(600.0)  # an address draws from the same numbers for so long, a code's lifetime
DRAWN_NUMBERS: Final = 16  # numbers that an address can learn to be free in that time; claims cost it the lock-out after five
DRAWS: Final = 64  # tries; a tenth of the numbers is taken, beside those of the address itself


class Numbers:
    """Without a secret that outlives the process every number may be given, and tickets end with it."""

    __slots__ = ("_density", "_digits", "_draws", "_entropy", "_of", "_share", "_tickets")

    def __init__(self, config: ServerConfig, entropy: Callable[[int], bytes], secret: bytes | None, share: int = SHARE) -> None:
        self._entropy = entropy
        self._digits = config.first_nameplate_digits
        self._density = config.nameplate_density
        master = entropy(32) if secret is None else secret
        self._tickets = hmac.digest(master, b"ptunnel tickets", sha256)
        self._draws = hmac.digest(master, b"ptunnel draws", sha256)
        self._share = hmac.digest(master, b"ptunnel numbers", sha256) if secret is not None else None
        self._of = share if secret is not None else 1  # of so many numbers one is ours

    def may_be_ours(self, number: int) -> bool:
        """Whether this server could have given it."""
        return number == self._own(number)

    def _own(self, number: int) -> int:
        """Ours of the sixteen numbers around this one."""
        if self._share is None:
            return number
        block = number // self._of
        return block * self._of + hmac.digest(self._share, block.to_bytes(4, "big"), sha256)[0] % self._of

    def draw(self, now: Instant, key: str, held: int, taken: Collection[int], but: int = 0) -> int | None:
        """A number for the address `key`, which holds so many: not `but`, and of as many digits as keep guesses wrong nine
        times in ten."""
        digits = self._digits
        while len(taken) * self._of >= self._density * 9 * 10 ** (digits - 1):
            digits += 1
        lowest: int = 10 ** (digits - 1)
        choices = DRAWN_NUMBERS + 2 * held
        for _ in range(DRAWS):
            choice = int.from_bytes(self._entropy(8), "big") % choices
            text = f"{int(now // DRAW_EPOCH)} {digits} {choice} {key}".encode()
            drawn = int.from_bytes(hmac.digest(self._draws, text, sha256)[:8], "big")
            number = self._own(lowest + drawn % (9 * lowest))
            if lowest <= number < 10 * lowest and number not in taken and number != but and number <= MAX_NAMEPLATE:
                return number
        return None

    def ticket(self, instance: int, session: bytes, number: int) -> bytes:
        """For the owner of a number: only who named this session then may have it back from a later instance."""
        head = instance.to_bytes(8, "big")
        text = b"ptunnel ticket" + head + session + number.to_bytes(4, "big")
        return head + hmac.digest(self._tickets, text, sha256)[:MAC_SIZE]

    def is_ticket(self, ticket: bytes, instance: int, session: bytes, number: int) -> bool:
        """Whether it shows that the number was this session's when another instance than this one served it.

        In our own time the number would still be its own, so a ticket of ours shows nothing.
        """
        before = int.from_bytes(ticket[:8], "big")
        return before != instance and hmac.compare_digest(ticket, self.ticket(before, session, number))
