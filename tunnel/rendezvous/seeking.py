"""Which of several servers behind one name has a code: those that know nothing of each other are asked one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from tunnel.core.timers import earliest
from tunnel.rendezvous.addresses import ServerAddress
from tunnel.rendezvous.events import Hearer
from tunnel.rendezvous.messages import Claim, RefusalCode, Refused
from tunnel.units import Address, Instant, Seconds

ELSEWHERE: Final = frozenset({RefusalCode.UNKNOWN_NAMEPLATE, RefusalCode.WRONG_SERVER})  # another server may know it
PATIENCE: Final = Seconds(1.0)  # for addresses of the name that have not answered yet
LED_PATIENCE: Final = Seconds(3.0)  # for a server that a claim was led to; then whoever led there is asked again ...
LED_FOR: Final = Seconds(15.0)  # ... so long: a code whose server was killed is at another one after some seconds


class Search:
    """For one code."""

    __slots__ = ("claim", "ends_at", "hearer", "is_asking", "led", "refusal", "tried", "until")

    def __init__(self, now: Instant, claim: Claim, hearer: Hearer | None, refusal: Refused) -> None:
        self.claim = claim
        self.hearer = hearer
        self.refusal = refusal  # what a person is told if nobody knows it
        self.tried: set[int | None] = set()  # servers, by their instance
        self.until = Instant(now + PATIENCE)
        self.ends_at = Instant(now + LED_FOR)
        self.is_asking = False  # the next one has the claim
        self.led: list[Address] = []  # where it is, as the last one has said

    def refused(self, now: Instant, instance: int | None, refusal: Refused, led: Sequence[Address]) -> None:
        self.is_asking = False
        self.tried.add(instance)
        self.led = list(led)
        if led:
            self.until = Instant(now + PATIENCE)
        if refusal.code != RefusalCode.WRONG_SERVER:  # says more: it could have been there
            self.refusal = refusal

    def ask(self, now: Instant) -> None:
        """The claim goes to the next one."""
        self.is_asking = True
        if self.led:
            self.until = Instant(now + LED_PATIENCE)

    def goes_back(self, now: Instant, homes: Iterable[ServerAddress]) -> bool:
        """Whether the server that it was led to is silent, so that the one in use may know better by now."""
        if not self.led or not self.until <= now < self.ends_at:
            return False
        return not any(home.instance in self.tried for home in homes if home.address in self.led)

    def begin_again(self) -> None:
        self.led = []
        self.tried.clear()
        self.is_asking = True

    def next(self, homes: Iterable[ServerAddress]) -> ServerAddress | None:
        """An address of a server that has not been asked."""
        known = (home for home in homes if home.is_up and home.instance is not None and self._is_meant(home))
        return next((home for home in known if home.instance not in self.tried), None)

    def is_over(self, now: Instant, homes: Iterable[ServerAddress]) -> bool:
        """Nobody is left to be asked, nor to be waited for."""
        return now >= self.until or not any(home.is_up and home.instance is None and self._is_meant(home) for home in homes)

    def _is_meant(self, home: ServerAddress) -> bool:
        return not self.led or home.address in self.led


class Searches(dict[int, Search]):
    """By nameplate."""

    def refused(
        self,
        now: Instant,
        claim: Claim,
        hearer: Hearer | None,
        instance: int | None,
        refusal: Refused,
        led: Sequence[Address] = (),
    ) -> None:
        """`led`: where the server that refused says that it is."""
        search = self.get(claim.nameplate)
        if search is None:
            search = self[claim.nameplate] = Search(now, claim, hearer, refusal)
        search.refused(now, instance, refusal, led)

    def poll_timeout(self) -> Instant | None:
        return earliest(*(search.until for search in self.values() if not search.is_asking or search.led))
