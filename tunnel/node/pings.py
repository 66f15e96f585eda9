"""Round trips to a peer that somebody asked for, over the control stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tunnel.units import Instant

MAX_PONGS: Final = 64  # pings under way, and answers that nobody has fetched
TOKEN_SIZE: Final = 8  # bytes of chance: else an answer could be sent before the question, and would seem to be quicker


class Pings:
    """Of one peer."""

    def __init__(self, entropy: Callable[[int], bytes]) -> None:
        self._entropy = entropy
        self._asked: dict[bytes, None] = {}  # the oldest first
        self.answers: dict[bytes, Instant] = {}  # when they came, by token

    def ask(self) -> bytes:
        """A token for one more."""
        token = self._entropy(TOKEN_SIZE)
        if len(self._asked) >= MAX_PONGS:
            del self._asked[next(iter(self._asked))]
        self._asked[token] = None
        return token

    def answered(self, now: Instant, token: bytes) -> bool:
        """False when nobody has asked for that."""
        if token not in self._asked:
            return False
        del self._asked[token]
        if len(self.answers) >= MAX_PONGS:
            del self.answers[next(iter(self.answers))]
        self.answers[token] = now
        return True
