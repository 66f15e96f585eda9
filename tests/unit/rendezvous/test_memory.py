"""The memory of a client that waits in three rooms: bounded by the sum of what is kept of it."""

from __future__ import annotations

import tracemalloc

from tests.unit.rendezvous.world import SOCKETS, V4, entropy_of
from tunnel.core import prefixes
from tunnel.rendezvous import messages
from tunnel.rendezvous.limits import ServerConfig
from tunnel.rendezvous.server import Server
from tunnel.units import Address, Instant

CLIENTS = 300
MOST = 1_800  # bytes of objects; with what the allocator and the growth of tables take, less than 2,048 of the process
CALENDAR = 1_800_000_000


def test_a_client_that_waits_takes_less_than_two_kilobytes() -> None:
    entropy = entropy_of(3)
    server = Server(ServerConfig(), sockets=SOCKETS, now=Instant(1000.0), entropy=entropy, unix_time=lambda: CALENDAR)
    now = 1000.0

    def ask(number: int, session: bytes, message: messages.RequestMessage, cookie: bytes = b"") -> messages.ResponseMessage:
        source = Address(f"{20 + number % 100}.{number // 100}.5.7", 1_000 + number)
        data = messages.encode_request(number + 1, session, message, cookie=cookie)
        answer = server.refreshed(Instant(now), V4, source, memoryview(data))
        if answer is None:
            server.handle_batch(Instant(now), V4, source, memoryview(data), len(data))
            transmit = server.poll_transmit(Instant(now))
            assert transmit is not None
            answer = bytes(transmit.buffer)
        return messages.decode_response(answer).message

    sessions = [entropy(16) for _ in range(CLIENTS)]
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number, session in enumerate(sessions):
            retry = ask(number, session, messages.Hello())
            assert isinstance(retry, messages.Retry)
            rooms = tuple(entropy(16) for _ in range(3))
            assert ask(number, session, messages.Join(messages.Role.LISTEN, rooms), retry.cookie) == messages.Done(0b111)
        cookies = [b""] * CLIENTS
        for _ in range(48):  # six minutes
            now += 7.5
            for number, session in enumerate(sessions):
                answer = ask(number, session, messages.Refresh(), cookies[number])
                assert isinstance(answer, messages.Welcome | messages.Retry)
                cookies[number] = answer.cookie
        server.load._recent.clear()  # these are bounded, whatever waits
        server.load._earlier.clear()
        prefixes.prefixes.cache_clear()
        prefixes.around.cache_clear()
        messages.pack_host.cache_clear()
        server._cookies._known.clear()
        taken = (tracemalloc.get_traced_memory()[0] - before) / CLIENTS
    finally:
        tracemalloc.stop()
    assert len(server.registry.sessions) == CLIENTS
    assert taken < MOST
