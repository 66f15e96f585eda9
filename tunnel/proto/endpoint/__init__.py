"""Many sockets, many peers: the one room that the driver stands on.  Re-exports what it hands out from the rooms below."""

from __future__ import annotations

from tunnel.proto.connection.connection import Connection, StreamSink
from tunnel.proto.connection.events import (
    AllPathsLost,
    CloseCode,
    CloseReason,
    ConnectionClosed,
    ConnectionEvent,
    ConnectionStats,
    ControlReceived,
    DatagramsReceived,
    PathChanged,
    PathKind,
    PathLost,
    PathProbed,
    PathValidated,
    PathView,
    RekeyDue,
    StreamCode,
    StreamOpened,
    StreamReadable,
    StreamReset,
    StreamStopped,
    StreamWritable,
)
from tunnel.proto.connection.handshakes import preferred_aeads
from tunnel.proto.connection.packets import PACKET_PARTIAL, PACKET_ROOM, PacketBurst, PacketRun, PacketSealer, PacketSink
from tunnel.proto.endpoint.context import EndpointConfig, PeerStore
from tunnel.proto.endpoint.endpoint import Endpoint
from tunnel.proto.endpoint.events import (
    CodeIssued,
    EndpointEvent,
    Faulted,
    KnownPeer,
    PeeringClosed,
    PeeringEvent,
    PeeringRestarted,
    PeeringStarted,
    PeerPaired,
    Problem,
    ServerReached,
    Troubled,
    WayLearned,
)
from tunnel.proto.endpoint.pairing import ExposerPairing
from tunnel.proto.endpoint.peering import CONTROL_ROOM, CONTROL_SHARES, Peering
from tunnel.proto.endpoint.pool import CloseSockets, CloseTls, OpenSockets, OpenTls, SocketOrder
from tunnel.proto.endpoint.shares import Share, Shares, decode_shares, encode_shares
from tunnel.proto.nat.candidate import CandidateKind
from tunnel.proto.nat.memory import Remembered
from tunnel.proto.nat.technique import PoolSocket
from tunnel.proto.pairing.code import Code, Purpose, complete, looks_like_code, parse_code, require_purpose, split_server
from tunnel.proto.pairing.grants import Grant, GrantSet
from tunnel.proto.pairing.identity import fingerprint, sanitise_name

__all__ = [
    "Endpoint",
    "EndpointConfig",
    "EndpointEvent",
    "ServerReached",
    "CodeIssued",
    "PeerPaired",
    "PeeringStarted",
    "PeeringRestarted",
    "PeeringClosed",
    "PeeringEvent",
    "Troubled",
    "Faulted",
    "Problem",
    "WayLearned",
    "Remembered",
    "CandidateKind",
    "KnownPeer",
    "PeerStore",
    "Peering",
    "CONTROL_ROOM",
    "CONTROL_SHARES",
    "Share",
    "Shares",
    "decode_shares",
    "encode_shares",
    "OpenSockets",
    "CloseSockets",
    "OpenTls",
    "CloseTls",
    "SocketOrder",
    "PoolSocket",
    "ExposerPairing",
    "Connection",
    "ConnectionEvent",
    "PACKET_PARTIAL",
    "PACKET_ROOM",
    "PacketBurst",
    "PacketRun",
    "PacketSealer",
    "PacketSink",
    "ConnectionStats",
    "ConnectionClosed",
    "CloseCode",
    "CloseReason",
    "AllPathsLost",
    "ControlReceived",
    "DatagramsReceived",
    "PathChanged",
    "PathKind",
    "PathLost",
    "PathProbed",
    "PathValidated",
    "PathView",
    "RekeyDue",
    "StreamCode",
    "StreamOpened",
    "StreamReadable",
    "StreamReset",
    "StreamSink",
    "StreamStopped",
    "StreamWritable",
    "Code",
    "complete",
    "looks_like_code",
    "parse_code",
    "split_server",
    "Purpose",
    "require_purpose",
    "Grant",
    "GrantSet",
    "fingerprint",
    "sanitise_name",
    "preferred_aeads",
]
