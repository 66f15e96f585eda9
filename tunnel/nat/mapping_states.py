"""How far each protocol has come with a mapping, what moves it on, and what is to be done over HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final, TypeAlias

from tunnel.units import Address, Instant, Seconds


class Protocol(Enum):
    """The best first: PCP's mappings cannot be taken by a neighbour, and NAT-PMP tells when the router forgets."""

    PCP = "PCP"
    NAT_PMP = "NAT-PMP"
    UPNP = "UPnP"


class Stage(Enum):
    """How far one protocol has come."""

    PROBING = "probing"  # does the router speak it?
    READY = "ready"  # it does
    MAPPING = "mapping"  # asked for a mapping
    HELD = "held"
    RENEWING = "renewing"  # asked again, while the lease still runs
    FAILED = "failed"
    REMOVING = "removing"
    REMOVED = "removed"


class Cue(Enum):
    """The events that change a mapping's state."""

    ANSWERED = "answered"
    CHOSEN = "chosen"
    GRANTED = "granted"
    RENEWAL_DUE = "renewal due"
    UNANSWERED = "unanswered"  # but the lease still runs
    FORGOTTEN = "forgotten"  # the router lost its memory
    GAVE_UP = "gave up"
    AGAIN = "again"
    CLOSED = "closed"


TRANSITIONS: Final[Mapping[Stage, Mapping[Cue, Stage]]] = {
    Stage.PROBING: {Cue.ANSWERED: Stage.READY, Cue.GAVE_UP: Stage.FAILED, Cue.CLOSED: Stage.REMOVED},
    Stage.READY: {
        Cue.CHOSEN: Stage.MAPPING,
        Cue.AGAIN: Stage.PROBING,
        Cue.GAVE_UP: Stage.FAILED,
        Cue.CLOSED: Stage.REMOVED,
    },
    # A request may be on its way to the router: take back what it may yet grant.
    Stage.MAPPING: {Cue.GRANTED: Stage.HELD, Cue.GAVE_UP: Stage.FAILED, Cue.CLOSED: Stage.REMOVING},
    Stage.HELD: {
        Cue.RENEWAL_DUE: Stage.RENEWING,
        Cue.FORGOTTEN: Stage.MAPPING,
        Cue.GAVE_UP: Stage.FAILED,
        Cue.CLOSED: Stage.REMOVING,
    },
    Stage.RENEWING: {
        Cue.GRANTED: Stage.HELD,
        Cue.UNANSWERED: Stage.HELD,
        Cue.FORGOTTEN: Stage.MAPPING,
        Cue.GAVE_UP: Stage.FAILED,
        Cue.CLOSED: Stage.REMOVING,
    },
    Stage.FAILED: {Cue.AGAIN: Stage.PROBING, Cue.CLOSED: Stage.REMOVED},
    Stage.REMOVING: {Cue.GAVE_UP: Stage.REMOVED},
    Stage.REMOVED: {},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PortMapping:
    """A mapping that the router granted: datagrams to `external` come to our port."""

    protocol: Protocol
    internal_port: int
    external: Address
    lifetime: Seconds
    expires_at: Instant


@dataclass(frozen=True, slots=True)
class SearchRouter:
    """Find the gateway's UPnP service; then upnp_found or upnp_failed."""


@dataclass(frozen=True, slots=True)
class MapPort:
    """AddPortMapping and GetExternalIPAddress; then upnp_mapped or upnp_failed.  `lifetime` in seconds, 0: until removed."""

    external_port: int
    lifetime: int


@dataclass(frozen=True, slots=True)
class LookUpPort:
    """GetSpecificPortMappingEntry and GetExternalIPAddress: whose is it?  Then upnp_looked_up or upnp_failed."""

    external_port: int


@dataclass(frozen=True, slots=True)
class UnmapPort:
    """DeletePortMapping; then upnp_removed."""

    external_port: int


UpnpTask: TypeAlias = SearchRouter | MapPort | LookUpPort | UnmapPort


class Way:
    """One protocol's progress."""

    __slots__ = ("epoch", "epoch_at", "external_host", "next_at", "protocol", "stage", "tries", "watch_at")

    def __init__(self, protocol: Protocol, now: Instant) -> None:
        self.protocol = protocol
        self.stage = Stage.PROBING
        self.next_at: Instant | None = now  # of the next transmission, or of the renewal
        self.tries = 0
        self.watch_at: Instant | None = None
        self.epoch: int | None = None
        self.epoch_at = now
        self.external_host = ""  # NAT-PMP tells it apart from the mapping

    def move(self, now: Instant, cue: Cue) -> bool:
        """The one function that applies the table; False where the cue means nothing any more."""
        after = TRANSITIONS[self.stage].get(cue)
        if after is None:
            return False
        self.stage = after
        self.tries = 0
        is_sending = after in (Stage.PROBING, Stage.MAPPING, Stage.RENEWING, Stage.REMOVING)
        self.next_at = now if is_sending else None
        if after is not Stage.HELD:
            self.watch_at = None
        return True

    def is_epoch_sound(self, now: Instant, epoch: int) -> bool:
        """Has the router remembered us since the last answer?  RFC 6887 §8.5; RFC 6886 §3.6."""
        before, passed = self.epoch, now - self.epoch_at
        self.epoch, self.epoch_at = epoch, now
        if before is None:
            return True
        gained = epoch - before
        if self.protocol is Protocol.NAT_PMP:
            return gained >= passed * 7 / 8 - 2
        if gained < -1:
            return False
        return passed + 2 >= gained - gained / 16 and gained + 2 >= passed - passed / 16
