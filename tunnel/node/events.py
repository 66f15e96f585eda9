"""Events of an endpoint for its driver.  All frozen; match on all of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeAlias

from msgspec import Struct

from tunnel.transport.connection.events import CloseReason, ConnectionEvent
from tunnel.units import Address

if TYPE_CHECKING:
    from tunnel.nat.memory import Remembered
    from tunnel.node.peering import Peering


@dataclass(frozen=True, slots=True)
class KeptPsk:
    """A psk that a hybrid step made and that is kept for later connections; `is_shown`: the peer has kept it too."""

    psk: bytes = field(repr=False)
    is_shown: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownPeer:
    """A remembered peer, as far as the core needs it.  `grants` is what the peer may reach on our side, as plain dicts.

    `psk` comes from the pairing and stays: by it the two meet.  `kept` came after it, the newest last.  `is_hybrid`: a psk of
    those was shown once, and a connection without one is refused from then on.
    """

    name: str
    static: bytes
    psk: bytes = field(repr=False)
    server: str | None
    grants: tuple[dict[str, Any], ...] = ()
    lent: tuple[dict[str, Any], ...] = ()  # what it may reach besides, for as long as this process says so: nobody remembers it
    is_awaited: bool = True  # by whoever listens: False where only we dial
    machines: tuple[bytes, ...] = ()  # on which it was met, the last one last
    kept: tuple[KeptPsk, ...] = ()
    is_hybrid: bool = False

    @property
    def reach(self) -> tuple[dict[str, Any], ...]:
        """All that it may reach now."""
        return self.grants + self.lent


class Problem(Enum):
    """Codes of Trouble in the machine interface."""

    WRONG_CODE = "wrong_code"
    CODE_EXPIRED = "code_expired"
    CODE_UNANSWERED = "code_unanswered"
    CODE_UNKNOWN = "code_unknown"
    CODE_SPENT = "code_spent"
    SERVER_UNREACHABLE = "server_unreachable"
    SERVER_LOST = "server_lost"
    SERVER_REFUSED = "server_refused"
    PEER_ABSENT = "peer_absent"
    PEER_LOST = "peer_lost"
    PEER_SILENT = "peer_silent"
    KEY_CHANGED = "key_changed"
    PATH_POLICY = "path_policy"
    NO_DIRECT = "no_direct"
    NO_KEYS = "no_keys"
    KEYS_GIVEN_UP = "keys_given_up"
    POST_QUANTUM = "post_quantum"
    INTERNAL = "internal"
    CLOCK_OFF = "clock_off"
    OTHER_MACHINE = "other_machine"
    TOO_MANY_PEERS = "too_many_peers"
    STRANGERS = "strangers"


class ServerReached(Struct, frozen=True, kw_only=True):
    """The rendezvous server answers; it sees us at these addresses.  `is_again`: after it was told to be lost."""

    server: str
    reflexive: tuple[Address, ...]
    is_again: bool = False


class CodeIssued(Struct, frozen=True, kw_only=True):
    """Tell this code to one person, or where it never expires, to all who may join; it replaces any earlier one of this flow."""

    code: str
    expires_s: float | None  # None: good for many, as long as we run


class PeerPaired(Struct, frozen=True, kw_only=True):
    """A code led to this peer, who is remembered from now on."""

    peer: KnownPeer


class PeeringStarted(Struct, frozen=True, kw_only=True):
    """A peering has its first connection: bytes may flow."""

    peering: Peering


class PeeringRestarted(Struct, frozen=True, kw_only=True):
    """The connection was lost on one side or on both; a new one stands in the same peering, and the old streams are gone."""

    peering: Peering


class PeeringClosed(Struct, frozen=True, kw_only=True):
    """The peering is over."""

    peering: Peering
    reason: CloseReason


class PeeringEvent(Struct, frozen=True):
    """Something happened on the connection of a peering."""

    peering: Peering
    event: ConnectionEvent


class PeerBack(Struct, frozen=True, kw_only=True):
    """Something gets through to the peer again, after no path did."""

    peering: Peering


class Troubled(Struct, frozen=True, kw_only=True):
    """Something a person should know.  `is_final`: retrying cannot heal it, the flow that met it has ended."""

    problem: Problem
    text: str
    is_final: bool = False


class Faulted(Struct, frozen=True, kw_only=True):
    """An exception that nobody foresaw, raised at `place`; `what` it did, as in `ended the link to ben`."""

    place: str
    what: str
    error: Exception


class WayLearned(Struct, frozen=True, kw_only=True):
    """The way that led directly to a peer from the present network; hand it in by set_memory the next time.

    None: what was remembered led nowhere.
    """

    static: bytes
    way: Remembered | None


EndpointEvent: TypeAlias = (
    ServerReached
    | CodeIssued
    | PeerPaired
    | PeerBack
    | PeeringStarted
    | PeeringRestarted
    | PeeringClosed
    | PeeringEvent
    | WayLearned
    | Troubled
    | Faulted
)
