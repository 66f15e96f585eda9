"""The floods.  To add one: write a generator that sends one step whenever it is advanced, and put it into FLOODS.

All come from addresses of 127.0.0.0/8, so none is forged in truth: a forger is one who never reads what comes back.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import socket
import ssl
import struct
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, TypeAlias

from tunnel.errors import MalformedPacket
from tunnel.nat import stun
from tunnel.rendezvous import messages
from tunnel.rendezvous.messages import RefusalCode

SOURCES: Final = 4_000  # addresses that forgers use
GUESSERS: Final = 100  # addresses that read the answers
HELD: Final = 4_000  # connections that a flood of the TLS door keeps
PEERS_ROOM: Final = b"a peer's own room"[: messages.ROOM_SIZE]  # in which an honest client listens for a peer that is none
STEP: Final = 0.002  # seconds between two bursts
IP_PKTINFO: Final = 8  # linux/in.h; the module socket of Python 3.11 lacks it
IN_PKTINFO: Final = struct.Struct("@i4s4s")  # ip(7): interface, source address, header's destination


@dataclass(frozen=True)
class Target:
    """The server under attack."""

    host: str
    port: int
    tls_port: int = 0  # where --tls-cert is among the flood's options

    @property
    def udp(self) -> tuple[str, int]:
        return self.host, self.port


#: Makes an endless generator; each advance is one datagram (or connection) sent.  It may count what it learned.
Attack: TypeAlias = Callable[[Target, Counter[str]], Iterator[None]]


@dataclass(frozen=True)
class Flood:
    name: str
    what: str
    attack: Attack
    rate: float = 3_000.0  # advances a second
    options: tuple[str, ...] = ()  # of `ptunnel serve`


def flood(target: Target, attack: Attack, rate: float, seconds: float) -> Counter[str]:
    """Advance it at that rate for so long, as far as this machine can; returns what was counted, `sent` among it."""
    counts: Counter[str] = Counter()
    began = time.monotonic()
    running = attack(target, counts)
    while (elapsed := time.monotonic() - began) < seconds:
        for _ in range(min(int(elapsed * rate) - counts["sent"], 1_000)):
            next(running)
            counts["sent"] += 1
        time.sleep(STEP)
    return counts


def address(number: int, network: int = 64) -> str:
    """The numberth of the addresses of a flood; those of the honest are below 127.32.0.0."""
    return f"127.{network + number // 62_500}.{number // 250 % 250}.{1 + number % 250}"


class Forger:
    """Sends from any address of 127.0.0.0/8 and listens at none."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def send(self, data: bytes, source: str, target: tuple[str, int]) -> None:
        info = IN_PKTINFO.pack(0, socket.inet_aton(source), bytes(4))
        with suppress(OSError):  # a full queue is lost, as on any line
            self._socket.sendmsg([data], [(socket.IPPROTO_IP, IP_PKTINFO, info)], 0, target)


class Guesser:
    """One address that has proven itself, and asks by hand."""

    def __init__(self, number: int, target: Target, source: str = "") -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((source or address(250 * number, 32), 0))  # each in another /24, unless said
        self._socket.connect(target.udp)
        self._socket.setblocking(False)
        self._session = os.urandom(messages.SESSION_SIZE)
        self._cookie = b""
        self._asked: dict[int, messages.RequestMessage] = {}
        self.channel = b""  # the last that it was led to
        self.ask(messages.Hello())

    def ask(self, message: messages.RequestMessage) -> None:
        transaction = random.getrandbits(64)
        self._asked[transaction] = message
        data = messages.encode_request(transaction, self._session, message, cookie=self._cookie)
        with suppress(OSError):
            self._socket.send(data)

    def another(self) -> None:
        """From now on it is another client at the same address."""
        self._session = os.urandom(messages.SESSION_SIZE)

    def relay(self, payload: bytes) -> None:
        with suppress(OSError):
            self._socket.send(self.channel + payload)

    def heard(self) -> Iterator[tuple[messages.RequestMessage | None, messages.ResponseMessage]]:
        """Question and answer."""
        while True:
            try:
                data = self._socket.recv(2_048)
            except OSError:
                return
            try:
                if data[0] == messages.PUSH:
                    push = messages.decode_push(data)
                    if isinstance(push.message, messages.Introduced):
                        self.channel = push.message.channel
                    self._socket.send(messages.encode_push_ack(self._session, push.push_id))
                    continue
                transaction, answer = messages.decode_response(data)
            except (MalformedPacket, OSError):
                continue
            if isinstance(answer, messages.Retry):
                self._cookie = answer.cookie
            yield self._asked.pop(transaction, None), answer


def sweep(target: Target, counts: Counter[str]) -> Iterator[None]:
    """Ask for every number by name and give it back; claim those that are taken."""
    guessers = [Guesser(number, target) for number in range(GUESSERS)]
    numbers = itertools.cycle(random.sample(range(100, 10_000), 9_900))
    taken: list[int] = []
    for guesser in itertools.cycle(guessers):
        for asked, answer in guesser.heard():
            match answer:
                case messages.Allocated(nameplate=number):
                    guesser.ask(messages.Release(number))
                case messages.ClaimAccepted():
                    counts["codes spent"] += 1
                case messages.Refused(code=RefusalCode.TAKEN, text="that code belongs to somebody else now"):
                    counts["numbers found taken"] += 1
                    if isinstance(asked, messages.Allocate):
                        taken.append(asked.wanted)
                case _:
                    pass
        if taken:
            guesser.ask(messages.Claim(taken.pop(), b"x"))
        else:
            guesser.ask(messages.Allocate(next(numbers)))
        yield


def guesses(target: Target, counts: Counter[str]) -> Iterator[None]:
    """Claim numbers at random."""
    guessers = [Guesser(number, target) for number in range(GUESSERS)]
    for guesser in itertools.cycle(guessers):
        counts["codes spent"] += sum(isinstance(answer, messages.ClaimAccepted) for _, answer in guesser.heard())
        guesser.ask(messages.Claim(random.randrange(100, 10_000), b"x"))
        yield


def questions(target: Target, counts: Counter[str]) -> Iterator[None]:
    """The shortest STUN questions, each in another's name, and every tenth in one victim's."""
    forger = Forger()
    for number in itertools.count():
        source = "127.1.0.1" if number % 10 == 0 else address(number % SOURCES)
        forger.send(stun.encode_binding_request(random.randbytes(12)), source, target.udp)
        yield


def directory(target: Target, counts: Counter[str]) -> Iterator[None]:
    forger = Forger()
    for number in itertools.count():
        forger.send(b"ip ver", address(number % SOURCES), target.udp)
        yield


def junk(target: Target, counts: Counter[str]) -> Iterator[None]:
    forger = Forger()
    for number in itertools.count():
        forger.send(random.randbytes(random.randrange(1, 1_200)), address(number % SOURCES), target.udp)
        yield


def unproven(target: Target, counts: Counter[str]) -> Iterator[None]:
    """Requests with a cookie that never was."""
    forger = Forger()
    for number in itertools.count():
        data = messages.encode_request(number, random.randbytes(16), messages.Refresh(), cookie=random.randbytes(17))
        forger.send(data, address(number % SOURCES), target.udp)
        yield


def _connections(target: Target, words: bytes) -> Iterator[None]:
    """To the TLS door, from few addresses and then from many, each of which says so much and no more."""
    held: deque[socket.socket] = deque()
    for number in itertools.count():
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.settimeout(0.05)
        with suppress(OSError):
            source = address(0) if number % 2 else address(250 * (number // 2 % 200))
            sock.bind((source, 0))
            sock.connect((target.host, target.tls_port))
            if words:
                sock.send(words)
        held.append(sock)
        if len(held) > HELD:
            held.popleft().close()
        yield


def silent(target: Target, counts: Counter[str]) -> Iterator[None]:
    return _connections(target, b"")


def hellos(target: Target, counts: Counter[str]) -> Iterator[None]:
    outgoing = ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
    return _connections(target, outgoing.read())


def dialer(target: Target, counts: Counter[str]) -> Iterator[None]:
    """A peer that was let in once dials an honest listener and begins no handshake."""
    guesser = Guesser(0, target)
    for number in itertools.count():
        for _, answer in guesser.heard():
            counts["dials refused"] += isinstance(answer, messages.Refused)
        if number % 4 == 3:
            guesser.another()
        guesser.ask(messages.Join(messages.Role.DIAL, (PEERS_ROOM,)))
        yield


def tables(target: Target, counts: Counter[str]) -> Iterator[None]:
    """40 sites of 50 addresses take all sessions, rooms and channels that they get."""
    return _take_all(target, counts, [f"127.48.{site}.{1 + number}" for number in range(50) for site in range(40)])


def _take_all(target: Target, counts: Counter[str], sources: list[str]) -> Iterator[None]:
    guessers = [Guesser(0, target, source) for source in sources]
    for turn in itertools.count():
        for guesser in guessers:
            for _, answer in guesser.heard():
                if isinstance(answer, messages.Done):
                    counts["entries taken"] += answer.granted.bit_count()
                counts["refused"] += isinstance(answer, messages.Refused)
            if turn % 2:
                rooms = tuple(os.urandom(messages.ROOM_SIZE) for _ in range(messages.MAX_ROOMS))
                guesser.ask(messages.Join(messages.Role.LISTEN, rooms))
            else:
                guesser.another()
                guesser.ask(messages.Restore(bytes((0xC0,)) + os.urandom(7), 1, bytes(messages.TOKEN_SIZE)))
            yield


def crowd(target: Target, counts: Counter[str]) -> Iterator[None]:
    """The same from 2,000 sites in 100 networks of /16: no prefix holds them together."""
    return _take_all(target, counts, [f"127.{64 + number % 100}.{number // 100}.9" for number in range(2_000)])


def pair(target: Target, counts: Counter[str]) -> Iterator[None]:
    """Two who met in a room send all they can."""
    listener, other = Guesser(0, target), Guesser(1, target)
    room = os.urandom(messages.ROOM_SIZE)
    for number in itertools.count():
        if number % 1_000 == 0 or not (listener.channel and other.channel):
            for guesser, role in ((listener, messages.Role.LISTEN), (other, messages.Role.DIAL)):
                list(guesser.heard())
                if not guesser.channel:
                    guesser.ask(messages.Join(role, (room,)))
                    time.sleep(0.01)
        else:
            (listener if number % 2 else other).relay(b"\x80" + bytes(150))
        yield


FLOODS: Final[list[Flood]] = [
    Flood("sweep", "100 addresses ask for every number by name, and claim what is taken", sweep),
    Flood("guesses", "100 addresses claim numbers at random", guesses),
    Flood("questions", "forged STUN questions of 20 bytes", questions),
    Flood("directory", "forged `ip ver`, with a log", directory, options=("--open-directory", "-v")),
    Flood("junk", "datagrams of any bytes, forged", junk),
    Flood("unproven", "forged requests of 512 bytes", unproven),
    Flood("silent", "connections to the TLS door that say nothing, half of them of one address", silent, 500.0, ("--tls",)),
    Flood("hellos", "handshakes with the TLS door that are never finished, likewise", hellos, 500.0, ("--tls",)),
    Flood("dialer", "a peer that dials an honest listener over and over", dialer, 90.0),
    Flood("tables", "2,000 addresses of 40 sites take sessions, rooms and channels", tables),
    Flood("crowd", "the same from 2,000 sites of 100 networks", crowd),
    Flood("pair", "a pair of addresses relays small datagrams", pair, 30_000.0),
]


if __name__ == "__main__":  # NAME HOST PORT TLS-PORT RATE SECONDS
    chosen = next(each for each in FLOODS if each.name == sys.argv[1])
    place = Target(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    print(json.dumps(flood(place, chosen.attack, float(sys.argv[5]) or chosen.rate, float(sys.argv[6]))))
