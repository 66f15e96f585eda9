"""The price of asking for numbers of codes: learning which are in use costs as much as the lock-out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from tunnel.core.prefixes import limits
from tunnel.rendezvous.admission import Lockouts, TreeBuckets
from tunnel.rendezvous.limits import ServerConfig
from tunnel.rendezvous.messages import Claim, Places, RefusalCode
from tunnel.rendezvous.numbers import Numbers
from tunnel.rendezvous.registry import Nameplate, Registry, Session
from tunnel.units import Instant

if TYPE_CHECKING:
    from tunnel.core.prefixes import Prefixes
    from tunnel.rendezvous.fleet.fleet import Fleet

CLAIM_AGAIN: Final = 2  # seconds after which a claim that was one too many is repeated


class Refusal(NamedTuple):
    code: RefusalCode
    text: str
    retry_after_s: int = 0
    at: Places = ()


class Codes:
    """Every answer that depends on somebody else's number is given here, after its price was paid."""

    __slots__ = ("_claim_rate", "_config", "_lockouts", "_numbers", "_registry", "fleet")

    def __init__(self, config: ServerConfig, registry: Registry, numbers: Numbers, entropy: Callable[[int], bytes]) -> None:
        self._config = config
        self._registry = registry
        self._numbers = numbers
        self.fleet: Fleet | None = None
        self._claim_rate = TreeBuckets(config.claim_rate, config.claim_burst, entropy(16))
        self._lockouts = Lockouts(
            limit=config.wrong_claims,
            refill=config.wrong_claim_refill,
            duration=config.lockout,
            size=config.max_lockouts,
        )

    def sweep(self, now: Instant) -> None:
        self._lockouts.sweep(now)

    def want(self, now: Instant, session: Session, wanted: int, ticket: bytes, instance: int) -> Refusal | None:
        """Before a certain number is asked of the registry.  None: it may be, and then it is the session's if it is free.

        One's own costs nothing.  Who had it from an earlier instance pays for it only where it is taken.  Anybody else pays as
        for a wrong claim, but is not locked out for that: several honest clients may sit behind one address.
        """
        known = self._registry.nameplates.get(wanted)
        if known is not None and known.owner is session:
            return None
        if self.fleet is None:
            has_ticket = self._numbers.is_ticket(ticket, instance, session.id, wanted)
        else:
            has_ticket = self.fleet.codes.is_ticket(wanted, ticket)
            if known is not None and self.fleet.codes.is_of(wanted, ticket):  # in another session
                self._registry.remove_nameplate(wanted)
                known = None
        if not self._numbers.may_be_ours(wanted) and not has_ticket:
            return Refusal(RefusalCode.TAKEN, "this server gives no such codes")
        if self.is_locked_out(now, session) or (not has_ticket and self._lockouts.is_last(now, session.keys)):
            return Refusal(RefusalCode.LOCKED_OUT, "too many codes were asked for by their number, from this address")
        if known is not None or not has_ticket:
            self._count(now, session.keys)
        is_free = known is None and (self.fleet is None or has_ticket)
        return None if is_free else Refusal(RefusalCode.TAKEN, "that code belongs to somebody else now")

    def claim(self, now: Instant, session: Session, message: Claim) -> Nameplate | Refusal:
        """The nameplate, if it may be claimed.  What does not depend on the number is looked at first."""
        config = self._config
        if self.is_locked_out(now, session):
            left = int(self._lockouts.remaining(now, session.keys)) + 1
            return Refusal(RefusalCode.LOCKED_OUT, "too many claims on codes that do not exist, from this address", left)
        nameplate = self._registry.nameplates.get(message.nameplate)
        if nameplate is not None and nameplate.owner is session:
            return Refusal(RefusalCode.UNKNOWN_NAMEPLATE, "this is your own code")
        if not self._registry.may_open_mailbox(session):
            return Refusal(RefusalCode.FULL, "the server is busy", 10)
        if not self._claim_rate.take(now, session.keys):
            return Refusal(RefusalCode.SLOW_DOWN, "many codes are claimed from this address", math.ceil(1 / config.claim_rate))
        if nameplate is None and self.fleet is not None:
            refusal = self.fleet.codes.elsewhere(now, message)
            if refusal is not None:
                return refusal
        elif nameplate is None and not self._numbers.may_be_ours(message.nameplate):
            if message.may_move:
                return Refusal(RefusalCode.WRONG_SERVER, "this server gives no such codes")
            return Refusal(RefusalCode.UNKNOWN_NAMEPLATE, "nobody is waiting with this code")
        if nameplate is None or not nameplate.left:
            self._count(now, session.keys)
            if nameplate is None:
                return Refusal(RefusalCode.UNKNOWN_NAMEPLATE, "nobody is waiting with this code")
            return Refusal(RefusalCode.SPENT, "this code has been used")
        if nameplate.is_for_many and not self._has_room_beside(nameplate, session):
            return Refusal(RefusalCode.SLOW_DOWN, "many are claiming this code: once more in a moment", CLAIM_AGAIN)
        return nameplate

    def _count(self, now: Instant, keys: Prefixes) -> None:
        """One more wrong guess, at all servers of a fleet."""
        self._lockouts.count(now, keys)
        if self.fleet is not None:
            self.fleet.codes.guessed(now, keys)

    def count_elsewhere(self, now: Instant, keys: Prefixes) -> None:
        """Another server of the fleet has seen a wrong guess."""
        self._lockouts.count(now, keys)

    def is_locked_out(self, now: Instant, session: Session) -> bool:
        return self._lockouts.remaining(now, session.keys) > 0.0

    def _has_room_beside(self, nameplate: Nameplate, session: Session) -> bool:
        """Nobody keeps the others of a room out by many claims at once."""
        config, claims = self._config, nameplate.claims.values()
        most = limits(config.claims_at_once_per_address, config.claims_at_once)
        return len(claims) < config.claims_at_once and all(
            sum(key in each for each in claims) < limit for key, limit in zip(session.keys, most, strict=False)
        )
