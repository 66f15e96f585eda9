"""The door for TLS with real sockets while strangers crowd it: who comes with a session gets in, and junk keeps nobody there."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.driver.test_tls_door import a_door, receive, until, wait_closed
from tests.driver.tls import Certificate, make_certificate
from tunnel.doors.tls import guests
from tunnel.doors.tls.client import TlsSocket, dial
from tunnel.doors.tls.guests import Guest, GuestBook
from tunnel.doors.tls.server import TlsListener

SMALL = {"max_connections": 100, "max_per_address": 12, "max_strangers": 80, "strangers_per_address": 5, "max_handshakes": 16,
         "handshakes_per_address": 1}  # fmt: skip


async def connect(source: str, listener: TlsListener) -> trio.socket.SocketType:
    """A TCP connection from that address of loopback, which says nothing."""
    sock = trio.socket.socket()
    try:
        await sock.bind((source, 0))
        await sock.connect(("127.0.0.1", listener.local_address.port))
    except BaseException:
        sock.close()
        raise
    return sock


@asynccontextmanager
async def crowd(sources: list[str], listener: TlsListener, words: bytes = b"") -> AsyncIterator[list[trio.socket.SocketType]]:
    """Connections from there, each of which says `words` and nothing more."""
    socks: list[trio.socket.SocketType] = []
    try:
        for source in sources:
            socks.append(await connect(source, listener))
            if words:
                await socks[-1].send(words)
        yield socks
    finally:
        for sock in socks:
            sock.close()


def client_hello() -> bytes:
    """The beginning of a handshake that is never finished."""
    outgoing = ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    tls = context.wrap_bio(ssl.MemoryBIO(), outgoing)
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("it cannot have ended")


async def join(listener: TlsListener, certificate: Certificate) -> TlsSocket:
    """As an honest client: handshake, and something of a session."""
    client = await dial("127.0.0.1", listener.local_address.port, certificate.fingerprint)
    client.send(client.remote, memoryview(b"of a session"), 12)
    await receive(client, 12)
    return client


async def test_silent_connections_of_one_address_shut_nobody_out(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path, "127.0.0.1")
    async with a_door(certificate) as listener, crowd(["127.9.9.9"] * 300, listener):
        with trio.fail_after(5):
            for _ in range(5):
                (await join(listener, certificate)).close()
        assert listener.counters.errors["refused"] >= 200  # an address has 64 that have proven nothing


async def test_unfinished_handshakes_of_one_address_shut_nobody_out(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path, "127.0.0.1")
    async with a_door(certificate) as listener, crowd(["127.9.9.9"] * 60, listener, client_hello()) as socks:
        with trio.fail_after(5):
            for sock in socks[:8]:
                assert await sock.recv(100)  # an answer to each, as far as its turns go
            for _ in range(5):
                (await join(listener, certificate)).close()


async def test_a_door_that_strangers_of_many_sites_fill_lets_a_session_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guests, "GRACE", 0.2)
    certificate = make_certificate(tmp_path, "127.0.0.1")
    sources = [f"127.9.{number}.1" for number in range(20) for _ in range(6)]
    for words in (b"", client_hello()):
        async with a_door(certificate, book=GuestBook(**SMALL)) as listener, crowd(sources, listener, words):
            await until(lambda listener=listener: len(listener) >= 80)
            with trio.fail_after(8):
                client = await join(listener, certificate)
            assert listener.counters.errors["displaced"] >= 1
            client.close()


async def test_who_is_sent_off_before_its_task_began_is_closed_at_once(tmp_path: Path) -> None:
    """As when no descriptor is left just then."""

    class Relieving(GuestBook):
        def arrive(self, now: float, host: str) -> Guest | None:
            guest = super().arrive(now, host)
            self.relieve(now)
            return guest

    certificate = make_certificate(tmp_path, "127.0.0.1")
    async with a_door(certificate, book=Relieving(), handshake_patience=1_000.0) as listener:
        async with crowd(["127.9.9.9"], listener) as (sock,):
            with trio.fail_after(20):
                assert await sock.recv(100) == b""
        await until(lambda: not len(listener))
        assert listener.counters.errors["displaced"] == 1


async def test_two_hundred_that_come_at_once_all_get_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a restart of the server: each from a site of its own.  None goes on, so 72 have to give way."""
    monkeypatch.setattr(guests, "GRACE", 0.2)
    certificate = make_certificate(tmp_path, "127.0.0.1")
    hello = client_hello()
    answered = 0
    async with a_door(certificate) as listener, trio.open_nursery() as nursery:

        async def come(number: int) -> None:
            nonlocal answered
            sock = await connect(f"127.8.{number}.1", listener)
            with sock:
                await sock.send(hello)
                data = await sock.recv(4_096)
                answered += bool(data)
                if answered == 200:
                    nursery.cancel_scope.cancel()
                await trio.sleep_forever()

        nursery.cancel_scope.deadline = trio.current_time() + 20
        for number in range(200):
            nursery.start_soon(come, number)
    assert answered == 200
    assert not listener.counters.errors["refused"]


async def test_junk_does_not_keep_a_connection(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path, "127.0.0.1")
    async with a_door(certificate, unproven=0.4, silence=0.4) as listener, trio.open_nursery() as nursery:
        stranger = await dial("127.0.0.1", listener.local_address.port, certificate.fingerprint)
        member = await join(listener, certificate)

        async def chatter(client: TlsSocket) -> None:
            while not client.is_ended:
                client.send(client.remote, memoryview(b"junk"), 4)
                while client.receive() is not None:
                    pass
                await trio.sleep(0.02)

        nursery.start_soon(chatter, stranger)
        nursery.start_soon(chatter, member)
        await until(lambda: not len(listener))
        assert listener.counters.errors["unproven"] == 1
        assert listener.counters.errors["silent"] == 1


async def test_what_a_reader_does_not_fetch_is_held_for_a_moment_only(tmp_path: Path) -> None:
    """Nothing follows the burst, and the reader reads nothing."""
    certificate = make_certificate(tmp_path, "127.0.0.1")
    async with a_door(certificate) as listener:
        readers = [await join(listener, certificate) for _ in range(4)]
        burst = memoryview(bytes(50 * 1_200))
        for _ in range(200):  # far more than TCP takes on its own
            for remote in list(listener._streams):
                listener.send(remote, burst, 1_200)
        assert listener._budget.used > 1 << 20
        await until(lambda: not listener._budget.used)
        assert listener.counters.errors["late"] > 1_000
        for stream in listener._streams.values():
            unsent = stream._unsent
            assert unsent is None or len(unsent) == len(memoryview(unsent.obj))  # no whole burst is kept for its rest
        for reader in readers:
            reader.close()


async def test_a_member_that_reads_again_gets_what_is_sent_then(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path, "127.0.0.1")
    async with a_door(certificate) as listener:
        reader = await join(listener, certificate)
        (remote,) = listener._streams
        for _ in range(400):
            listener.send(remote, memoryview(bytes(50 * 1_200)), 1_200)
        await until(lambda: not listener._budget.used)
        with trio.fail_after(10):
            found = b""
            while not found.endswith(b"at last"):
                while (batch := reader.receive()) is not None:
                    found = bytes(batch.buffer[-7:])
                listener.send(remote, memoryview(b"at last"), 7)
                await trio.sleep(0.01)
        reader.close()
        await wait_closed(reader)
