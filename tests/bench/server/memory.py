"""The memory of clients that wait, and the longest that one message of theirs takes: the core alone, without sockets."""

from __future__ import annotations

import gc
import os
import time
from hashlib import blake2b
from typing import Final

from tests.bench.server.crowd import address
from tests.bench.server.host import LIMITS
from tunnel.host.chance import Chance
from tunnel.host.collector import tamed
from tunnel.rendezvous import messages
from tunnel.rendezvous.limits import ServerConfig
from tunnel.rendezvous.server import Server
from tunnel.rendezvous.stun import ServerSocket
from tunnel.units import Address, Instant, SocketId

HERE: Final = SocketId(0)
PORT: Final = 40_000
REST: Final = 7.0  # seconds between two words of a client
ROOMS: Final = 3
PAUSE: Final = 0.02  # seconds; nothing shall take longer


def memory(peers: int) -> dict[str, str]:
    """In a process of its own, as what another one left would be used again."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            with tamed():
                os.write(writing, repr(_fill(peers)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read().decode()
    os.waitpid(child, 0)
    resident, longest, sweep = (float(each) for each in told.strip("()").split(","))
    return {
        "peers": f"{peers:,}",
        "bytes a peer": f"{resident / peers:,.0f}",
        "longest message ms": f"{1e3 * longest:.1f}",
        "longest sweep ms, all expire": f"{1e3 * sweep:.1f}",
    }


def _resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _fill(peers: int) -> tuple[float, float, float]:
    now = 1_000.0
    server = Server(
        ServerConfig(**LIMITS),  # type: ignore[arg-type]
        sockets=[ServerSocket(HERE, Address("192.0.2.1", 1), None)],
        now=Instant(now),
        entropy=Chance(),
        unix_time=lambda: 1_800_000_000 + int(now),
    )
    longest = 0.0

    def ask(number: int, message: messages.RequestMessage, cookie: bytes = b"") -> messages.ResponseMessage:
        nonlocal longest
        session = blake2b(b"%d" % number, digest_size=16).digest()
        remote = Address(address(number), PORT)
        data = memoryview(messages.encode_request(number + 1, session, message, cookie=cookie))
        began = time.thread_time()
        answer = server.refreshed(Instant(now), HERE, remote, data)
        if answer is None:
            server.handle_batch(Instant(now), HERE, remote, data, len(data))
        longest = max(longest, time.thread_time() - began)
        if answer is None:
            ((_, _, answer),) = server.answers()
        return messages.decode_response(answer).message

    gc.collect()
    before = _resident()
    for number in range(peers):
        retry = ask(number, messages.Hello())
        assert isinstance(retry, messages.Retry)
        rooms = tuple(blake2b(b"%d %d" % (number, each), digest_size=16).digest() for each in range(ROOMS))
        ask(number, messages.Join(messages.Role.LISTEN, rooms), retry.cookie)
    for _ in range(40):  # some five minutes, in which each has another cookie twice; most are quick
        now += REST
        if int(now) % 60 >= REST:
            for session in server.registry.sessions.values():
                session.seen_at = Instant(now)
            continue
        for number in range(peers):
            welcome = ask(number, messages.Refresh())
            assert isinstance(welcome, messages.Retry | messages.Welcome)
            ask(number, messages.Refresh(), welcome.cookie)
    resident = _resident() - before
    now += 1_000.0
    sweep = 0.0
    while server.registry.sessions:
        due = server.poll_timeout()
        now = max(now, due or now)
        began = time.thread_time()
        server.handle_timeout(Instant(now))
        sweep = max(sweep, time.thread_time() - began)
    return float(resident), longest, sweep
