"""One meeting: who has its secret is found in the DHT, checked, and spoken to on the path that both sides have opened.

    both announce, both look     addresses
    check, nonce             →   each side from the socket that announced; NATs let in what answers
    ←        check, nonce, echo  an echo of our nonce: we are heard there
    message, mailbox         →   repeated until its receipt comes

Whoever is announced under the same infohash gets checks, too, and may forward them, to be between the two.  So a check says
from which host it was sent, as nodes see that, and a path from another host opens only where no straight one does.

An address that a node told of may be anybody's.  So each is checked a few times, a host that says nothing gets no more than
MAX_CHECKS datagrams, and what has the right MAC is answered where it came from, with as many bytes.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from tunnel.core.timers import earliest
from tunnel.core.trace import Drops
from tunnel.dht.checks import CHECK, HOST_SIZE, MAILBOX_SIZE, MESSAGE, NONCE_SIZE, RECEIPT, Keys, pack_host
from tunnel.dht.ids import network_of
from tunnel.dht.krpc import MARKER_PORT
from tunnel.dht.ledger import MIN_PORT, Ledger
from tunnel.dht.lookup import IPV6_NETWORK_BITS, NETWORK_BITS
from tunnel.units import Address, Buffer, Instant, Seconds, SocketId

CHECK_TIMES: Final = (0.0, 0.1, 0.25, 0.5, 0.9, 1.4, 2.0, 3.0, 4.5, 6.5)  # seconds after an address was found
FRESH_CHECKS: Final = 6  # the first of them: in two seconds, by when both sides mostly know of each other ...
KEPT: Final = 24  # ... and so many datagrams to a host are kept for these, as its newest port may be told of last
RECHECK: Final = Seconds(15.0)  # before a check after those, and each time twice as long: most that were in vain stay so, ...
MAX_DOUBLINGS: Final = 2  # ... up to a minute
GONE_AFTER: Final = Seconds(60.0)  # of silence, and an address that was met gives way as any other: its owner may have a new port
MAX_CHECKS: Final = 60  # datagrams to a host that has said nothing with the right MAC, in ten minutes
MAX_CHECKS_IN_WINDOW: Final = 80  # datagrams to a host in 10 s, though it answers
MAX_CANDIDATES: Final = 64  # addresses under check; one that fewer nodes tell of, or that was checked in vain, gives way
MAX_TOLD: Final = 1_024  # addresses of which it is counted who tells of them; the one told of longest ago goes
MAX_VOICES: Final = 8  # that are counted
MAX_PORT: Final = 65_535  # the highest there is
MAX_PORTS: Final = 4  # of them, of one host: a NAT that shows more cannot be reached at any
#: After so many checks in vain of a port, which may have been foretold, so many behind it are checked (others have taken it
#: meanwhile), or before it (it was foretold when more had been taken already).
FORETOLD: Final = {4: range(1, 9), 6: range(-1, -13, -1), 8: range(9, 17)}
MAX_PATHS: Final = 128  # addresses that speak with the right MAC; the one longest silent goes
MAX_UNSENT: Final = 64  # messages without a receipt; the oldest goes
DETOUR_WAIT: Final = Seconds(
    4.0
)  # for a straight path, before one from another host than the sender's own opens: longer than a poll
REPEAT: Final = Seconds(0.25)  # before a message without a receipt is said again, doubled each time ...
LONGEST_REPEAT: Final = Seconds(2.0)  # ... up to this
MESSAGE_LIFETIME: Final = Seconds(20.0)  # of a message without a receipt
MAX_HEARD: Final = 64  # messages that are known to have come, so that a repeat is not told again

Way: TypeAlias = "tuple[SocketId, Address]"  # which socket of ours, which address of theirs


@dataclass(frozen=True, slots=True)
class Opened:
    """Both sides hear each other there."""

    way: Way


@dataclass(frozen=True, slots=True)
class Heard:
    """The other side says something through a mailbox, whose name it chose."""

    way: Way
    mailbox: bytes
    body: bytes


class _Candidate:
    __slots__ = ("checks", "due_at", "found_at")

    def __init__(self, now: Instant) -> None:
        self.found_at = self.due_at = now
        self.checks = 0


class _Path:
    __slots__ = ("heard_at", "hears_us", "is_open", "nonce", "opens_at", "theirs")

    def __init__(self, nonce: bytes) -> None:
        self.nonce = nonce
        self.theirs = bytes(NONCE_SIZE)
        self.hears_us = False  # an echo has come
        self.is_open = False
        self.opens_at: Instant | None = None  # unless a straight one does before
        self.heard_at = Instant(0.0)


class _Message:
    __slots__ = ("due_at", "pause", "sealed", "until", "way")

    def __init__(self, way: Way, sealed: bytes, now: Instant) -> None:
        self.way = way
        self.sealed = sealed
        self.due_at = now
        self.pause = REPEAT
        self.until = Instant(now + MESSAGE_LIFETIME)


class Meeting:
    """Of one secret.  `side` 0 waits for whoever comes, 1 comes; both do the same."""

    def __init__(
        self,
        secret: bytes,
        side: int,
        *,
        entropy: Callable[[int], bytes],
        ledger: Ledger,
        drops: Drops,
        own_host: Callable[[SocketId], str | None],
    ) -> None:
        """`own_host`: where nodes see that socket of ours; None: not known."""
        self.keys = Keys(secret, side)
        self._own_host = own_host
        self.side = side
        self.found_at: Instant | None = None  # when somebody's address was seen first
        self.is_marked = False  # the other side says that its router uses ports by chance
        self.events: deque[Opened | Heard] = deque()
        self._entropy = entropy
        self._ledger = ledger
        self._drops = drops
        self._candidates: dict[Way, _Candidate] = {}
        self._voices: OrderedDict[Way, set[int]] = OrderedDict()
        self._in_vain: OrderedDict[Way, None] = OrderedDict()  # that were checked and gave way
        self._paths: OrderedDict[Way, _Path] = OrderedDict()
        self._unsent: OrderedDict[tuple[bytes, int], _Message] = OrderedDict()
        self._heard: OrderedDict[tuple[bytes, int], None] = OrderedDict()
        self._count = 0
        self._out: deque[tuple[SocketId, Address, bytes]] = deque()

    @property
    def has_candidates(self) -> bool:
        """Somebody was found, whether anything gets through or not."""
        return bool(self._candidates) or self.is_marked

    @property
    def open_ways(self) -> list[Way]:
        return [way for way, path in self._paths.items() if path.is_open]

    # --- verbs

    def found(self, now: Instant, socket_id: SocketId, address: Address, node: str) -> None:
        """The node at the host `node` says that somebody has announced this address."""
        self.found_at = now if self.found_at is None else self.found_at
        if address.port == MARKER_PORT:
            self.is_marked = True
            return
        way = (socket_id, address)
        voices = self._hear_of(way, node)
        if way in self._candidates:
            return
        voices = 0 if way in self._in_vain else voices
        same = [each for each in self._candidates if each[1].host == address.host]
        is_crowded = len(same) >= MAX_PORTS
        if is_crowded or len(self._candidates) >= MAX_CANDIDATES:
            patience = FRESH_CHECKS if is_crowded else len(CHECK_TIMES)
            gone = min(same if is_crowded else self._candidates, key=lambda each: self._worth(now, each, patience))
            if self._worth(now, gone, patience) >= voices:
                self._drops["DHT peers more than are checked"] += 1
                return
            self._give_way(gone)
        self._candidates[way] = candidate = _Candidate(now)
        if way in self._in_vain:
            candidate.checks, candidate.due_at = len(CHECK_TIMES), Instant(now + RECHECK)

    def _give_way(self, way: Way) -> None:
        del self._candidates[way]
        self._in_vain[way] = None
        while len(self._in_vain) > MAX_TOLD:
            self._in_vain.popitem(last=False)

    def _hear_of(self, way: Way, node: str) -> int:
        """How many networks of nodes tell of it: a liar has one voice, and strangers that it makes up have no other."""
        voices = self._voices.setdefault(way, set())
        self._voices.move_to_end(way)
        if len(voices) < MAX_VOICES:
            voices.add(network_of(node, NETWORK_BITS, IPV6_NETWORK_BITS))
        while len(self._voices) > MAX_TOLD:
            self._voices.popitem(last=False)
        return len(voices)

    def _worth(self, now: Instant, way: Way, patience: int) -> int:
        """Of a candidate: whoever was met goes for nobody, and whoever was checked in vain for anybody."""
        path = self._paths.get(way)
        if path is not None and path.is_open and now - path.heard_at < GONE_AFTER:
            return MAX_VOICES + 1
        return 0 if self._candidates[way].checks > patience else len(self._voices.get(way, ()))

    def look_again(self, now: Instant) -> None:
        """Check all that are known once more: what was open may be closed."""
        for path in self._paths.values():
            path.is_open = path.hears_us = False
            path.nonce = self._entropy(NONCE_SIZE)
            path.theirs = bytes(NONCE_SIZE)  # whoever sees no echo answers each time
            path.opens_at = None
        for way, candidate in self._candidates.items():
            candidate.found_at = candidate.due_at = now
            candidate.checks = 0
            self._path(way)

    def say(self, now: Instant, way: Way, mailbox: bytes, body: bytes) -> None:
        """Until a receipt comes, or for MESSAGE_LIFETIME."""
        self._count += 1
        while len(self._unsent) >= MAX_UNSENT:
            self._unsent.popitem(last=False)
        sealed = self.keys.seal(MESSAGE, mailbox + bytes((self._count & 0xFF,)) + body)
        self._unsent[mailbox, self._count & 0xFF] = _Message(way, sealed, now)

    def forget(self, mailbox: bytes) -> None:
        """Say nothing more through it."""
        for key in [key for key in self._unsent if key[0] == mailbox]:
            del self._unsent[key]

    # --- inputs and outputs

    def handle_datagram(self, now: Instant, way: Way, data: Buffer) -> None:
        """One with our tag."""
        said = self.keys.open(data)
        if said is None:
            self._drops["meeting datagram not authentic"] += 1
        elif said.kind == CHECK and len(said.body) == 2 * NONCE_SIZE + HOST_SIZE:
            self._ledger.answered(way[1].host)
            echo, host = said.body[NONCE_SIZE : 2 * NONCE_SIZE], said.body[2 * NONCE_SIZE :]
            self._on_check(now, way, said.body[:NONCE_SIZE], echo, is_straight=host == pack_host(way[1].host))
        elif said.kind == MESSAGE and len(said.body) > MAILBOX_SIZE:
            self._ledger.answered(way[1].host)
            self._on_message(now, way, said.body[:MAILBOX_SIZE], said.body[MAILBOX_SIZE], said.body[MAILBOX_SIZE + 1 :])
        elif said.kind == RECEIPT and len(said.body) == MAILBOX_SIZE + 1:
            self._unsent.pop((said.body[:MAILBOX_SIZE], said.body[MAILBOX_SIZE]), None)
        else:
            self._drops["meeting datagram malformed"] += 1

    def handle_timeout(self, now: Instant) -> None:
        for way, candidate in self._candidates.items():
            if now >= candidate.due_at:
                self._check(now, way, candidate)
        for way, path in self._paths.items():
            if path.opens_at is not None and now >= path.opens_at:
                path.opens_at = None
                if not self.open_ways:
                    path.is_open = True
                    self.events.append(Opened(way))
        for key, message in list(self._unsent.items()):
            if now >= message.until:
                del self._unsent[key]
            elif now >= message.due_at:
                message.due_at = Instant(now + message.pause)
                message.pause = min(Seconds(2 * message.pause), LONGEST_REPEAT)
                self._send(now, message.way, message.sealed)

    def poll_timeout(self) -> Instant | None:
        checks = min((each.due_at for each in self._candidates.values()), default=None)
        detours = min((each.opens_at for each in self._paths.values() if each.opens_at is not None), default=None)
        return earliest(checks, detours, min((each.due_at for each in self._unsent.values()), default=None))

    def poll_transmit(self) -> tuple[SocketId, Address, bytes] | None:
        return self._out.popleft() if self._out else None

    # --- inside

    def _path(self, way: Way) -> _Path:
        path = self._paths.get(way)
        if path is None:
            while len(self._paths) >= MAX_PATHS:
                gone = next((each for each, known in self._paths.items() if not known.is_open), next(iter(self._paths)))
                del self._paths[gone]
            path = self._paths[way] = _Path(self._entropy(NONCE_SIZE))
        self._paths.move_to_end(way)
        return path

    def _check(self, now: Instant, way: Way, candidate: _Candidate) -> None:
        candidate.checks += 1
        done = candidate.checks
        candidate.due_at = (
            Instant(candidate.found_at + CHECK_TIMES[done])
            if done < len(CHECK_TIMES)
            else Instant(now + RECHECK * 2 ** min(done - len(CHECK_TIMES), MAX_DOUBLINGS))
        )
        path = self._path(way)
        # Also where it is open here: the echo that would open it there may have been lost.
        self._send_check(now, way, path.nonce + path.theirs, KEPT if done > FRESH_CHECKS else 0)
        if not path.hears_us:
            for step in FORETOLD.get(done, ()):
                near = (way[0], Address(way[1].host, way[1].port + step))
                if MIN_PORT <= near[1].port <= MAX_PORT:
                    self._send_check(now, near, self._path(near).nonce + bytes(NONCE_SIZE), KEPT)

    def _send_check(self, now: Instant, way: Way, nonces: bytes, kept: int = 0) -> None:
        self._send(now, way, self.keys.seal(CHECK, nonces + pack_host(self._own_host(way[0]))), kept)

    def _on_check(self, now: Instant, way: Way, nonce: bytes, echo: bytes, *, is_straight: bool) -> None:
        path = self._path(way)
        is_news = not path.hears_us or nonce != path.theirs
        path.theirs, path.heard_at = nonce, now
        self._in_vain.pop(way, None)
        hears_us = echo == path.nonce
        if hears_us:
            path.hears_us = True
            if is_straight and not path.is_open:
                path.is_open, path.opens_at = True, None
                self.events.append(Opened(way))
            elif not path.is_open and path.opens_at is None:
                path.opens_at = Instant(now + DETOUR_WAIT)
        if is_news or not hears_us:
            self._send_check(now, way, path.nonce + nonce)

    def _on_message(self, now: Instant, way: Way, mailbox: bytes, number: int, body: bytes) -> None:
        self._send(now, way, self.keys.seal(RECEIPT, mailbox + bytes((number,))))
        if (mailbox, number) in self._heard:
            return
        while len(self._heard) >= MAX_HEARD:
            self._heard.popitem(last=False)
        self._heard[mailbox, number] = None
        self.events.append(Heard(way, mailbox, body))

    def _send(self, now: Instant, way: Way, datagram: bytes, kept: int = 0) -> None:
        if self._ledger.take(now, way[1].host, kept):
            self._out.append((*way, datagram))
        else:
            self._drops["meeting datagram too many to a host"] += 1
