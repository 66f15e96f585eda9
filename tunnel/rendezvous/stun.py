"""The server as a plain STUN server: which of its sockets answers, and with which addresses (RFC 8489, RFC 5780).

Reading and writing STUN messages belongs to another room; the driver hands a StunCodec in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from tunnel.units import Address, Buffer, SocketId

WILDCARDS = frozenset({"0.0.0.0", "::"})


class ServerSocket(NamedTuple):
    """One socket of a server.  `second` is the one that differs in port (or address), to show clients their mapping."""

    socket_id: SocketId
    local: Address
    second: SocketId | None = None


class StunQuestion(NamedTuple):
    """The facts about a binding request that its answer needs; `request` is the codec's own."""

    request: object
    change_address: bool
    change_port: bool
    wants_origin: bool  # asked for RFC 5780 behaviour discovery, or an RFC 3489 client, which counts on these addresses


class StunCodec(Protocol):
    def read(self, datagram: Buffer) -> StunQuestion | None:
        """None for what is no binding request.  Raises MalformedPacket."""

    def answer(self, question: StunQuestion, mapped: Address, origin: Address | None, other: Address | None) -> bytes: ...


class StunDesk:
    """Finds the socket that must answer.  One that we do not have means no answer at all, which is RFC 5780's own signal."""

    def __init__(self, sockets: Sequence[ServerSocket], codec: StunCodec) -> None:
        self._codec = codec
        self._sockets = {each.socket_id: each for each in sockets}
        self._elsewhere: dict[SocketId, SocketId] = {}  # same role on another address of the same family
        primaries = [each for each in sockets if each.second is not None and _is_first(each, self._sockets)]
        for each in primaries:
            for other in primaries:
                if other.local.host == each.local.host or other.local.is_ipv6 != each.local.is_ipv6:
                    continue
                assert each.second is not None
                assert other.second is not None
                self._elsewhere[each.socket_id] = other.socket_id
                self._elsewhere[each.second] = other.second
                break

    def add(self, socket: ServerSocket) -> None:
        """One more address of ours; it is told to nobody as another one."""
        self._sockets[socket.socket_id] = socket

    def answer(self, socket_id: SocketId, remote: Address, datagram: Buffer) -> tuple[SocketId, bytes] | None:
        """(socket to answer from, datagram); None when there is no answer.  Raises MalformedPacket."""
        question = self._codec.read(datagram)
        here = self._sockets.get(socket_id)
        if question is None or here is None:
            return None
        source: SocketId | None = socket_id
        if question.change_address:
            source = self._elsewhere.get(socket_id)
        if question.change_port and source is not None:
            source = self._sockets[source].second
        if source is None:
            return None
        origin = other = None
        if question.wants_origin:
            origin = _concrete(self._sockets[source].local)
            far = self._sockets[self._elsewhere.get(socket_id, socket_id)].second
            other = _concrete(self._sockets[far].local) if far is not None else None
        return source, self._codec.answer(question, remote, origin, other)


def _is_first(socket: ServerSocket, sockets: dict[SocketId, ServerSocket]) -> bool:
    assert socket.second is not None
    return socket.socket_id < socket.second


def _concrete(address: Address) -> Address | None:
    """An address worth telling; a wildcard is not."""
    return None if address.host in WILDCARDS else address
