"""Answers to strangers, who have proven no address: STUN, the open directory, and hints about unknown channels.

An answer no longer than its question costs nobody more than the question did, so nothing limits it: a limit that strangers share
is a switch by which one of them turns it off for the others.  Longer answers are few: per address, and over all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from tunnel.core.trace import Drops
from tunnel.rendezvous import messages
from tunnel.rendezvous.admission import Buckets, address_key
from tunnel.rendezvous.directory import Directory, is_question
from tunnel.rendezvous.limits import ServerConfig
from tunnel.rendezvous.messages import GoneKind, GoneReason
from tunnel.rendezvous.stun import ServerSocket, StunCodec, StunDesk
from tunnel.units import CHANNEL_SIZE, Address, Buffer, Instant, SocketId

SHORTEST_ANSWER: Final = 32  # bytes: STUN's header and an IPv4 address (RFC 8489 §5, §14.2)


class Strangers:
    """Each verb returns the answer, or None after counting why there is none."""

    __slots__ = (
        "_config",
        "_directory_rate",
        "_drops",
        "_hint_rate",
        "_seconds",
        "_sockets",
        "_stun",
        "_stun_rate",
        "_total_rate",
        "access",
        "directory",
    )

    def __init__(
        self,
        config: ServerConfig,
        sockets: Sequence[ServerSocket],
        codec: StunCodec | None,
        entropy: Callable[[int], bytes],
        drops: Drops,
    ) -> None:
        self._config = config
        self.access = config.access
        self._drops = drops
        self._sockets = {each.socket_id: each for each in sockets}
        self._seconds: dict[SocketId, tuple[int, bytes]] = {}
        self._stun = StunDesk(sockets, codec) if codec is not None else None
        self.directory = Directory(lifetime=config.directory_lifetime, size=config.directory_entries)
        salt = entropy(16)
        self._stun_rate = Buckets(config.stun_rate, config.stun_burst, salt)
        self._directory_rate = Buckets(config.directory_rate, config.directory_burst, salt)
        self._hint_rate = Buckets(config.hint_rate, config.hint_burst, salt)
        self._total_rate = Buckets(config.unproven_rate, config.unproven_rate, salt, slots=1)

    def add_socket(self, socket: ServerSocket) -> None:
        self._sockets[socket.socket_id] = socket
        if self._stun is not None:
            self._stun.add(socket)

    def second_of(self, socket_id: SocketId) -> tuple[int, bytes]:
        """Port and, where it differs, address of the other socket that a client may measure with."""
        known = self._seconds.get(socket_id)
        if known is not None:
            return known
        here = self._sockets.get(socket_id)
        second = self._sockets.get(here.second) if here is not None and here.second is not None else None
        if here is None or second is None:
            return 0, b""
        host = b"" if second.local.host == here.local.host else messages.pack_host(second.local.host)
        found = self._seconds[socket_id] = (second.local.port, host)
        return found

    def stun(self, now: Instant, socket_id: SocketId, remote: Address, data: Buffer) -> tuple[SocketId, bytes] | None:
        """(socket to answer from, answer).  Raises MalformedPacket."""
        if self._stun is None or not self.access.allows_host(remote.host):
            self._drops["server_stun_off"] += 1
            return None
        is_short = len(data) < SHORTEST_ANSWER  # the rate is asked before it is read, so that a flood costs little
        if is_short and not self._may_answer(now, self._stun_rate, remote):
            self._drops["server_stun_rate"] += 1
            return None
        answer = self._stun.answer(socket_id, remote, data)
        if answer is None:
            self._drops["server_stun_unanswerable"] += 1
        elif not is_short and len(answer[1]) > len(data) and not self._may_answer(now, self._stun_rate, remote):
            self._drops["server_stun_rate"] += 1
            return None
        return answer

    def may_ask_directory(self, remote: Address, data: Buffer) -> bool:
        """Whether this is a message of the open directory, and that is open to its sender."""
        if not self._config.open_directory or not self.access.allows_host(remote.host):
            self._drops["server_directory_off"] += 1
            return False
        if not is_question(data):
            self._drops["server_type"] += 1
            return False
        return True

    def directory_answer(self, now: Instant, remote: Address) -> bytes | None:
        if not self._may_answer(now, self._directory_rate, remote):
            self._drops["server_directory_rate"] += 1
            return None
        return self.directory.ask(now, remote)

    def hint(self, now: Instant, remote: Address, identifier: bytes, size: int) -> bytes | None:
        """For who relays `size` bytes through a channel that we do not know from there: he moved, or we were restarted.

        Never longer than what caused it.  Who relays much is told now and then; nobody who does not know the channel and the
        sender's port can use that up.
        """
        if len(identifier) != CHANNEL_SIZE:
            return None
        message = messages.Gone(GoneKind.CHANNEL, identifier, GoneReason.UNKNOWN)
        hint = messages.encode_push(bytes(messages.SESSION_SIZE), 0, message)
        if len(hint) > size or not self._hint_rate.take(now, (remote, identifier)):
            return None
        return hint

    def _may_answer(self, now: Instant, rate: Buckets, remote: Address) -> bool:
        return rate.take(now, address_key(remote.host)) and self._total_rate.take(now, "")
