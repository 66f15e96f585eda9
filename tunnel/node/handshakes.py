"""Noise handshakes over a path: crypto says what the datagrams hold, this file when they are sent and for how long.

The initiator repeats itself: an IK init is a fresh one each time (new ephemeral, new timestamp), an XX init and an XX finish are
the same bytes again.  The responder only ever answers, so its side needs no timer and stays in crypto.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from enum import Enum
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag

from tunnel.core.timers import TimerTable
from tunnel.errors import MalformedPacket
from tunnel.transport.crypto.batch import nonce_of
from tunnel.transport.crypto.challenge import CHALLENGE, receiver_of
from tunnel.transport.crypto.cookie import COOKIE_REPLY, CookieChecker, mac1_key, reply_index, verify_mac1
from tunnel.transport.crypto.handshake import (
    Completed,
    Initiator,
    Pattern,
    parse_response,
)
from tunnel.transport.crypto.keys import Keypair
from tunnel.transport.packet import frames
from tunnel.transport.packet.header import HEADER, HEADER_SIZE, NONCE_PREFIX, OVERHEAD, TRANSPORT
from tunnel.units import Address, Buffer, Instant, PathKey, Seconds

if TYPE_CHECKING:
    from tunnel.node.context import Context
    from tunnel.transport.crypto.noise import Entropy

FIRST_RETRY: Final = Seconds(0.5)
LONGEST_RETRY: Final = Seconds(5.0)
LONGEST_AWAITED_RETRY: Final = Seconds(1.0)  # where somebody waits: in a pairing, where giving up costs a code, or for its step
RETRY_JITTER: Final = 0.1  # each wait is longer by up to this share, so that two peers do not stay in step
FINISH_RETRY: Final = Seconds(0.3)
FINISH_ATTEMPTS: Final = 10  # finishes sent without hearing a transport datagram; then the connection's own probes are alone
MAX_MOVES: Final = 4  # paths of one handshake whose answers still count for them; as many as inits whose answer is welcome
MAX_CHALLENGED: Final = 4  # inits that leave at once because a challenge came; after that they wait for their turn
INITS_UNQUESTIONED: Final = 50  # inits a second that are opened without asking for a cookie; each costs some 150 us


def receiver_index(datagram: Buffer) -> int:
    """Return the receiver index of a response, a finish, a cookie reply or a challenge.  Raises MalformedPacket."""
    kind = datagram[0]
    if kind == CHALLENGE:
        return receiver_of(datagram)
    if kind == COOKIE_REPLY:
        return reply_index(datagram)
    return parse_response(datagram, kind).receiver_index


def seal_close(keypair: Keypair, code: int, text: str) -> bytes:
    """A CLOSE as the only packet that ever goes under these keys, so the same one again is the same bytes."""
    header = HEADER.pack(TRANSPORT, keypair.remote_index, 0)
    return header + keypair.send.encrypt(nonce_of(0), frames.encode_close(code, text), header)


def open_close(keypair: Keypair, datagram: Buffer) -> int | None:
    """The code in what seal_close made; None when it does not authenticate or is something else."""
    data = bytes(datagram)
    if len(data) < OVERHEAD:
        return None
    try:
        body = keypair.receive.decrypt(NONCE_PREFIX + data[HEADER_SIZE - 8 : HEADER_SIZE], data[HEADER_SIZE:], data[:HEADER_SIZE])
        return frames.decode_close(body, 0, len(body))[0] if body[:1] == bytes((frames.Frame.CLOSE,)) else None
    except (InvalidTag, MalformedPacket):
        return None


class _Timer(Enum):
    SEND = "send"
    GIVE_UP = "give up"


class InitiatorHandshake:
    """Our side of a handshake that we began.  Sans IO: poll_transmit gives a datagram for `path`."""

    def __init__(
        self,
        context: Context,
        initiator: Initiator,
        path: PathKey,
        now: Instant,
        *,
        give_up_after: Seconds | None = None,
        others: Iterable[PathKey] = (),
        at_once: bool = False,
        is_awaited: bool = False,
    ) -> None:
        """`give_up_after` None means: never.

        Repetitions go over `path` and `others` in turn; with `at_once` each goes over `path` and one of the others together.
        `is_awaited`: nothing else goes on until it is done.
        """
        self.path = path
        self._paths = list(dict.fromkeys((path, *others)))
        self._next = 0  # of _paths
        self._at_once = at_once
        self.index = initiator.index
        self.completed: Completed | None = None
        self.has_failed = False
        self.attempts = 0
        self.behind = 0  # nanoseconds: by how much the peer finds our clock behind what it showed before
        self._challenged = 0
        self.drops = context.drops
        self._initiator = initiator
        self._timestamp = context.timestamp
        self._rng = context.rng
        self._wait = FIRST_RETRY
        self._longest = LONGEST_AWAITED_RETRY if is_awaited or initiator.pattern is Pattern.XX else LONGEST_RETRY
        self._finishes = 0
        self._sent_on: deque[PathKey] = deque((path,), maxlen=MAX_MOVES)
        self._has_second = False  # the other of two that leave together is still due
        self._timers: TimerTable[_Timer] = TimerTable()
        self._timers.set(_Timer.SEND, now)
        if give_up_after is not None:
            self._timers.set(_Timer.GIVE_UP, Instant(now + give_up_after))

    @property
    def is_over(self) -> bool:
        """Nothing more will be sent."""
        return self.has_failed or (self.completed is not None and self._timers.get(_Timer.SEND) is None)

    def handle_datagram(self, now: Instant, datagram: Buffer) -> Completed | None:
        """A response, a cookie reply or a challenge for our index.  What does not authenticate is counted and dropped."""
        if self.completed is not None or self.has_failed:
            self.drops["handshake already over"] += 1
            return None
        try:
            if datagram[0] == COOKIE_REPLY:
                self._initiator.handle_cookie_reply(datagram)
                return None  # the next repetition carries it: at once would serve a flood
            if datagram[0] == CHALLENGE:
                self._on_challenge(now, datagram)
                return None
            completed = self._initiator.handle_response(bytes(datagram))
        except MalformedPacket:
            self.drops["handshake answer not authentic"] += 1
            return None
        self.completed = completed
        self._timers.clear(_Timer.GIVE_UP)
        if completed.finish is not None:
            self._timers.set(_Timer.SEND, now)
        else:
            self._timers.clear(_Timer.SEND)
        return completed

    def _on_challenge(self, now: Instant, datagram: Buffer) -> None:
        """Only the peer can have made it, so the next init goes at once; a challenge that was sent again changes nothing."""
        before = self._initiator.challenge
        challenge = self._initiator.handle_challenge(datagram)
        self.behind = challenge.behind
        if challenge.value != before and self._challenged < MAX_CHALLENGED:
            self._challenged += 1
            self._timers.set(_Timer.SEND, now)

    def confirm(self) -> None:
        """A transport datagram of the peer authenticated: it has our finish."""
        self._timers.clear(_Timer.SEND)

    def proven(self, path: PathKey) -> PathKey:
        """The path that the completed handshake proved, when its last answer seemed to come over `path`.

        An answer shows that somebody received our init, so only where we sent one; its own source address may be forged.
        """
        return path if path in self._sent_on else self.path

    def uses(self, path: PathKey) -> bool:
        """Whether it goes over that one, among others."""
        return path in self._paths

    def widen(self, paths: Iterable[PathKey]) -> None:
        """Repetitions go over these too from now on."""
        self._paths = list(dict.fromkeys((self._paths[0], *paths, *self._paths)))[:MAX_MOVES]

    def move(self, now: Instant, path: PathKey) -> None:
        """Go on over another path first, at once."""
        if path != self._paths[0] and self.completed is None and not self.has_failed:
            self._paths = [path, *(each for each in self._paths if each != path)][:MAX_MOVES]
            self.path = path
            self._next = 0
            self._has_second = False
            self._wait = FIRST_RETRY
            self._timers.set(_Timer.SEND, now)

    def handle_timeout(self, now: Instant) -> None:
        at = self._timers.get(_Timer.GIVE_UP)
        if at is not None and at <= now:
            self.has_failed = True
            self._timers.clear(_Timer.GIVE_UP)
            self._timers.clear(_Timer.SEND)

    def poll_timeout(self) -> Instant | None:
        return self._timers.next()

    def poll_transmit(self, now: Instant) -> bytes | None:
        """Return the next datagram for `path`; call until None."""
        at = self._timers.get(_Timer.SEND)
        if at is None or at > now or self.has_failed:
            return None
        if self.completed is not None:
            self._finishes += 1
            if self._finishes >= FINISH_ATTEMPTS:
                self._timers.clear(_Timer.SEND)
            else:
                self._timers.set(_Timer.SEND, Instant(now + FINISH_RETRY))
            return self.completed.finish
        self._turn()
        if not self._has_second:
            wait = self._wait * (1.0 + RETRY_JITTER * self._rng.random())
            self._timers.set(_Timer.SEND, Instant(now + wait))
            self._wait = Seconds(min(2 * self._wait, self._longest))
        self.attempts += 1
        return self._initiator.first_datagram(self._timestamp())

    def _turn(self) -> None:
        """Choose the path of the init that leaves now."""
        paths = self._paths
        if self._at_once and len(paths) > 1:
            self._has_second = not self._has_second
            self.path = paths[0] if self._has_second else paths[1 + self._next % (len(paths) - 1)]
            self._next += not self._has_second
        else:
            self.path = paths[self._next % len(paths)]
            self._next += 1
        self._sent_on.append(self.path)


class Gatekeeper:
    """The checks before the costly half of an IK init: mac1 always, a cookie under load.  Holds no state about any sender."""

    def __init__(self, static_public: bytes, entropy: Entropy) -> None:
        self._material = static_public
        self._key = mac1_key(static_public)
        self._checker = CookieChecker(entropy)
        self._second = -1
        self._count = 0

    def check(self, now: Instant, datagram: Buffer, remote: Address) -> tuple[str, bytes | None]:
        """("", None) to go on; else a reason to drop it, and the cookie reply to send where there is one."""
        if not verify_mac1(datagram, self._key):
            return "init with a wrong mac1", None
        if int(now) != self._second:
            self._second, self._count = int(now), 0
        self._count += 1
        if self._count <= INITS_UNQUESTIONED or self._checker.verify_mac2(now, datagram, remote):
            return "", None
        try:
            return "init without a cookie under load", self._checker.make_reply(now, datagram, remote, self._material)
        except MalformedPacket:
            return "init too short", None
