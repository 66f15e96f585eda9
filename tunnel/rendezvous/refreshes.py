"""The word of those who only wait: nine of ten requests to a server are the Refresh of a client that is known from there.

Each is answered alike until something changes.  So the answer is kept, but for the calendar in it, and given again to whoever
shows the cookie that stands in it, from the same address, at the pace of a client at rest.  Everything else takes the long way,
and so does each of them every two minutes or three: nothing is decided here that was not decided there a moment before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from tunnel.rendezvous import messages
from tunnel.rendezvous.admission import COOKIE_EPOCH, COOKIE_SIZE
from tunnel.rendezvous.pushes import MAX_CREDIT
from tunnel.rendezvous.registry import Registry, Session
from tunnel.units import Address, Buffer, Instant, Seconds, SocketId

PACE: Final = Seconds(5.0)  # between two of a session; a client at rest takes 6.3 at least, and whoever is faster is counted
SPREAD: Final = Seconds(60.0)  # over which those of one cookie epoch take the long way again; half of an epoch, so all are good
PHASES: Final = 16  # of that time

_COOKIE_AT: Final = 27  # in a request, behind its head and the cookie's length
_COOKIE_END: Final = _COOKIE_AT + COOKIE_SIZE
_PLAIN: Final = b"\0\0\2\x91\2"  # no proof, and a message of two bytes: Refresh
_LENGTH_AT: Final = _COOKIE_END + 2  # the low byte of the message's length, where there is no proof
_PROVEN: Final = b"\0\2\x91\2"  # behind a proof, which was tried when the answer was made
_PROOF_END: Final = _COOKIE_END + 1 + messages.PROOF_SIZE
_HEAD: Final = _PROOF_END + len(_PROVEN)
_ANSWER_HEAD: Final = bytes((messages.RESPONSE, messages.VERSION))
_BODY_AT: Final = 10  # in an answer, behind its head
_TOLD_COOKIE: Final = 4  # where the cookie is in a Welcome: behind array, tag and length
_CALENDAR: Final = 5  # bytes of it, as long as it takes 32 bits
_FIRST, _LAST = 1 << 16, (1 << 32) - 1  # so it does in these
_MARKS: Final = (0x10101010, 0xEFEFEFEF)  # calendars without a byte in common
MAX_PLACES: Final = 64  # lengths of answers; all IPv4 clients have one, all IPv6 clients another


class Refreshes:
    """The answers are kept in the sessions."""

    __slots__ = ("_calendar", "_ends", "_epoch", "_fleet", "_places", "_rest", "_sessions", "_told", "_unix_time", "answered")

    def __init__(self, registry: Registry, unix_time: Callable[[], int]) -> None:
        self._sessions = registry.sessions
        self._unix_time = unix_time
        self._epoch = -1
        self._ends: list[Instant] = []  # by phase
        self._places: dict[tuple[int, int], int] = {}  # where the calendar begins, by lengths
        self._told = -1  # the calendar, and ...
        self._calendar = b""  # ... as it is written
        self._rest = b""  # what follows it, which all are told alike: ...
        self._fleet = 0  # ... the epoch of the fleet
        self.answered = 0

    def answer(self, now: Instant, socket_id: SocketId, remote: Address, request: Buffer, fleet: int = 0) -> bytes | None:
        """None: it is to take the long way, whatever it is.  `fleet`: the epoch that clients are told now."""
        if len(request) < messages.MIN_REQUEST or (request[_LENGTH_AT] != 2 and request[_COOKIE_END] != messages.PROOF_SIZE):
            return None  # most other requests
        head = bytes(request[:_HEAD])
        if (
            len(request) > messages.MAX_DATAGRAM
            or head[1] != messages.VERSION
            or head[_COOKIE_AT - 1] != COOKIE_SIZE
            or (
                head[_COOKIE_END : _COOKIE_END + len(_PLAIN)] != _PLAIN
                and (head[_COOKIE_END] != messages.PROOF_SIZE or head[_PROOF_END:] != _PROVEN)
            )
        ):
            return None
        identifier = head[10:26]
        sessions = self._sessions.of(identifier)
        session = sessions.get(identifier)
        if (
            session is None
            or fleet != self._fleet
            or now >= session.welcome_until
            or now - session.seen_at < PACE
            or session.welcome[_TOLD_COOKIE : _TOLD_COOKIE + COOKIE_SIZE] != head[_COOKIE_AT:_COOKIE_END]
            or session.remote != remote
            or session.socket_id != socket_id
        ):
            return None
        told = self._unix_time()
        if told != self._told:
            if not _FIRST <= told <= _LAST:
                return None
            self._told, self._calendar = told, b"\xce" + told.to_bytes(4, "big")
        session.seen_at = now
        sessions[identifier] = sessions.pop(identifier)
        answer = _ANSWER_HEAD + head[2:10] + session.welcome + self._calendar + self._rest
        session.credit = min(MAX_CREDIT, session.credit + len(request)) - len(answer)
        self.answered += 1
        return answer

    def keep(self, now: Instant, session: Session, welcome: messages.Welcome, answer: bytes) -> None:
        """It was told this just now, and would be told it again."""
        lengths = (len(welcome.you), len(answer))
        place = self._places.get(lengths) or self._find(lengths, welcome)
        if len(welcome.cookie) != COOKIE_SIZE or not _FIRST <= welcome.unix_time <= _LAST:
            return
        epoch = int(now // COOKIE_EPOCH)
        if epoch != self._epoch:
            end = (epoch + 1) * COOKIE_EPOCH
            self._epoch, self._ends = epoch, [Instant(end + each * SPREAD / PHASES) for each in range(PHASES)]
        session.welcome = answer[_BODY_AT:place]
        session.welcome_until = self._ends[session.id[0] % PHASES]
        self._rest, self._fleet = answer[place + _CALENDAR :], welcome.epoch

    def _find(self, lengths: tuple[int, int], welcome: messages.Welcome) -> int:
        one, other = (messages.encode_response(0, msgspec.structs.replace(welcome, unix_time=mark)) for mark in _MARKS)
        if len(self._places) >= MAX_PLACES:
            self._places.clear()
        place = next(at for at, (byte, another) in enumerate(zip(one, other, strict=True)) if byte != another) - 1
        self._places[lengths] = place
        return place

    def forget_all(self) -> None:
        """Others than before may be served now."""
        for session in self._sessions.values():
            session.welcome = b""
