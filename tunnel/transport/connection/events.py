"""Events of a connection for its owner, and the small values it shows.  All frozen; match on all of them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any, Final, TypeAlias

from msgspec import Struct

from tunnel.units import Address, Instant, PathKey, Seconds, StreamId


class PathKind(Enum):
    """How a path carries: straight to the peer, or through the rendezvous server's relay."""

    DIRECT = "direct"
    RELAY = "relay"


class CloseReason(Struct, frozen=True):
    """Why a connection ended: `code` is one of CloseCode, `text` a sentence for a person."""

    code: int
    text: str
    by_peer: bool


class StreamOpened(Struct, frozen=True):
    """The peer opened a stream; it may be readable already."""

    stream_id: StreamId


class StreamReadable(Struct, frozen=True):
    """stream_read has something, or the peer's FIN came."""

    stream_id: StreamId


class StreamWritable(Struct, frozen=True):
    """stream_space has room again after it was empty, or everything written was acknowledged."""

    stream_id: StreamId


class StreamReset(Struct, frozen=True):
    """The peer gave up sending (RESET); `code` is a StreamCode.  What came in order before can still be read."""

    stream_id: StreamId
    code: int


class StreamsAllowed(Struct, frozen=True):
    """open_stream works again: the peer has raised a limit that was reached."""


class StreamStopped(Struct, frozen=True):
    """The peer will read no more (STOP_SENDING); our sending half has been reset with the same code."""

    stream_id: StreamId
    code: int


class DatagramsReceived(Struct, frozen=True):
    """receive_datagrams has something."""


class ControlReceived(Struct, frozen=True):
    """One whole message of the control stream."""

    data: bytes


class PathValidated(Struct, frozen=True):
    """The peer answered our PATH_CHALLENGE there: both directions work.  RFC 9000 §8.2."""

    key: PathKey
    kind: PathKind
    rtt: Seconds


class PathProbed(Struct, frozen=True):
    """Something authenticated came from an address that is no path yet (peer-reflexive, RFC 8445 §7.3.1.3)."""

    key: PathKey


class PathChanged(Struct, frozen=True):
    """Data goes here until the next PathChanged."""

    key: PathKey
    kind: PathKind
    remote: Address
    rtt: Seconds
    mtu: int
    why: str


class PathLost(Struct, frozen=True):
    """A path that worked fell silent; it is probed no more unless someone challenges it again."""

    key: PathKey
    kind: PathKind


class PathInDoubt(Struct, frozen=True):
    """The current path has left the first challenges unanswered: it may be about to fail."""


class RekeyDue(Struct, frozen=True):
    """The keypair is old or worn (REKEY_AFTER): make a new handshake over the current path."""


class AllPathsLost(Struct, frozen=True):
    """Nothing can be sent on any path any more; the owner should meet the peer again.

    `no_keys`: the keypair has come to its end, though the peer was heard until now: handshakes are lost and data is not.
    """

    no_keys: bool = False


class ConnectionClosed(Struct, frozen=True):
    """The last event."""

    reason: CloseReason


ConnectionEvent: TypeAlias = (
    StreamOpened
    | StreamReadable
    | StreamWritable
    | StreamReset
    | StreamStopped
    | StreamsAllowed
    | DatagramsReceived
    | ControlReceived
    | PathValidated
    | PathProbed
    | PathChanged
    | PathLost
    | PathInDoubt
    | RekeyDue
    | AllPathsLost
    | ConnectionClosed
)

#: Come with each batch of bytes, and concern nobody but the user of that stream.
OF_STREAMS: Final[frozenset[type]] = frozenset({StreamReadable, StreamWritable})
#: Of what programs carry: these change nothing of the connection.
OF_PROGRAMS: Final[frozenset[type]] = OF_STREAMS | {StreamOpened, StreamReset, StreamStopped, StreamsAllowed, DatagramsReceived}


class CloseCode:
    """Codes of the CLOSE frame."""

    NO_ERROR = 0
    PROTOCOL_VIOLATION = 1
    FLOW_CONTROL = 2
    STREAM_LIMIT = 3
    FORGOTTEN = 4  # the peer has removed us from its remembered peers
    PATH_POLICY = 5  # `--path direct` met `--path relay`
    IDLE = 6
    REPLACED = 7
    INTERNAL = 8
    KEYS = 9  # the post-quantum keys that were agreed on, or could be, are missing


class StreamCode:
    """Codes of RESET and STOP_SENDING: what became of the local connection behind a stream."""

    NO_ERROR = 0
    REFUSED = 1
    RESET = 2
    DENIED = 3
    UNREACHABLE = 4
    TIMED_OUT = 5
    INTERNAL = 6
    CANCELLED = 7
    LOOP = 8
    TAKEN = 9


class PathView(Struct, frozen=True):
    """The current path as `status` shows it.  `mtu` is the largest UDP payload in bytes, as sent today.

    `newest_rtt` is the newest sample, taken at `measured_at`; None before there was one, when all three are a guess.
    """

    key: PathKey
    kind: PathKind
    smoothed_rtt: Seconds
    min_rtt: Seconds
    newest_rtt: Seconds
    measured_at: Instant | None
    mtu: int
    why: str


@dataclass(slots=True, kw_only=True)
class ConnectionStats:
    """Counters of a connection since it began, which go on counting; bytes are of UDP payload.

    A field is all that a new number takes: `status` has it under its name (docs/json.md), whatever it is.
    """

    sent_bytes: int = 0
    received_bytes: int = 0
    packets_sent: int = 0
    packets_received: int = 0
    repeated: int = 0  # packets of small datagrams that were sent twice
    repaired: int = 0  # of the peer, which came as a copy only
    duplicates: int = 0  # of the peer, which had come already
    resent: int = 0  # IP packets that were lost, and were sent again
    packets_lost: int = 0
    streams: int = 0  # open now
    drops: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """By name, those of a subclass too."""
        return {each.name: getattr(self, each.name) for each in fields(self)}
