"""Which of several servers behind one name has a code: those that know nothing of each other are asked one after the other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from tunnel.core.timers import earliest
from tunnel.rendezvous.addresses import ServerAddress
from tunnel.rendezvous.events import Hearer
from tunnel.rendezvous.messages import Claim, RefusalCode, Refused
from tunnel.units import Instant, Seconds

ELSEWHERE: Final = frozenset({RefusalCode.UNKNOWN_NAMEPLATE, RefusalCode.WRONG_SERVER})  # another server may know it
PATIENCE: Final = Seconds(1.0)  # for addresses of the name that have not answered yet


class Search:
    """For one code."""

    __slots__ = ("claim", "hearer", "is_asking", "refusal", "tried", "until")

    def __init__(self, now: Instant, claim: Claim, hearer: Hearer | None, refusal: Refused) -> None:
        self.claim = claim
        self.hearer = hearer
        self.refusal = refusal  # what a person is told if nobody knows it
        self.tried: set[int | None] = set()  # servers, by their instance
        self.until = Instant(now + PATIENCE)
        self.is_asking = False  # the next one has the claim

    def refused(self, instance: int | None, refusal: Refused) -> None:
        self.is_asking = False
        self.tried.add(instance)
        if refusal.code != RefusalCode.WRONG_SERVER:  # says more: it could have been there
            self.refusal = refusal

    def next(self, homes: Iterable[ServerAddress]) -> ServerAddress | None:
        """An address of a server that has not been asked."""
        known = (home for home in homes if home.is_up and home.instance is not None)
        return next((home for home in known if home.instance not in self.tried), None)

    def is_over(self, now: Instant, homes: Iterable[ServerAddress]) -> bool:
        """Nobody is left to be asked, nor to be waited for."""
        return now >= self.until or not any(home.is_up and home.instance is None for home in homes)


class Searches(dict[int, Search]):
    """By nameplate."""

    def refused(self, now: Instant, claim: Claim, hearer: Hearer | None, instance: int | None, refusal: Refused) -> None:
        search = self.get(claim.nameplate)
        if search is None:
            search = self[claim.nameplate] = Search(now, claim, hearer, refusal)
        search.refused(instance, refusal)

    def poll_timeout(self) -> Instant | None:
        return earliest(*(search.until for search in self.values() if not search.is_asking))
