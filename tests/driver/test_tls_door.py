"""The server's door for TLS on loopback: its limits, its certificates, and what strangers cost."""

from __future__ import annotations

import errno
import os
import socket
import ssl
import struct
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.driver.tls import Certificate, make_certificate
from tunnel.doors.tls import server as door
from tunnel.doors.tls.certificates import ALPN, explain
from tunnel.doors.tls.client import TlsSocket, dial
from tunnel.doors.tls.guests import GuestBook
from tunnel.doors.tls.server import BACKLOG, HANDSHAKE_PATIENCE, SILENCE, UNPROVEN, ServerCertificate, TlsListener
from tunnel.errors import ConfigurationError, ServerUnreachableError
from tunnel.units import Address, ReceivedBatch


def spoil(certificate: Certificate) -> None:
    """As a program would that writes a renewed key and has not got far."""
    Path(certificate.key).write_text("half of it is wri", encoding="ascii")


def trust(folder: Path, *certificates: Certificate) -> str:
    """A list of authorities that is these."""
    trusted = folder / "trusted.pem"
    trusted.write_bytes(b"".join(Path(each.certificate).read_bytes() for each in certificates))
    return str(trusted)


async def until(condition: Callable[..., object]) -> None:
    """Counters announce nothing: look at them until they are as wanted."""
    with trio.fail_after(10):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.01)


@asynccontextmanager
async def a_door(certificate: Certificate, host: str = "127.0.0.1", **limits: Any) -> AsyncIterator[TlsListener]:
    """A listener that sends every batch back, and takes what does not begin with `junk` for a session's."""
    listener = TlsListener(host, 0, ServerCertificate(certificate.certificate, certificate.key), **limits)

    async def echo(batch: ReceivedBatch) -> bool:
        listener.send(batch.remote, batch.buffer, batch.stride)
        return bytes(batch.buffer[:4]) != b"junk"

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.serve, echo)
        try:
            yield listener
        finally:
            nursery.cancel_scope.cancel()
            listener.close()


async def receive(client: TlsSocket, size: int, sizes: list[int] | None = None) -> bytes:
    found = bytearray()
    with trio.fail_after(10):
        while len(found) < size:
            batch = client.receive()
            if batch is None:
                await client.wait_readable()
            else:
                found += batch.buffer
                if sizes is not None:
                    sizes.append(len(batch.buffer))
    return bytes(found)


async def wait_closed(client: TlsSocket) -> None:
    with trio.fail_after(10):
        try:
            while True:
                assert client.receive() is None
                await client.wait_readable()
        except trio.ClosedResourceError:
            return


async def test_bursts_go_there_and_back(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path, "127.0.0.1")
    async with a_door(certificate) as listener:
        client = await dial("127.0.0.1", listener.local_address.port, certificate.fingerprint)
        burst = os.urandom(40 * 1_200 + 7)
        assert client.send(client.remote, memoryview(burst), 1_200)
        batches: list[int] = []
        assert await receive(client, len(burst), batches) == burst
        assert client.counters.received_datagrams == 41
        assert len(batches) <= 4  # not datagrams
        assert client.send(Address("192.0.2.1", 1), memoryview(b"x"), 1)
        assert client.send(client.remote, memoryview(bytes(20_000)), 20_000)
        assert client.counters.errors == {"family": 1, "too_long": 1}
        client.close()
        await until(lambda: not len(listener))
        assert listener.send(Address("127.0.0.1", 1), memoryview(b"xy"), 1)
        assert listener.counters.errors["gone"] == 2


async def test_connections_are_limited_in_all_and_for_each_address(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path, "127.0.0.1")
    for limit in ({"max_connections": 3}, {"max_per_address": 3}):
        async with a_door(certificate, book=GuestBook(**limit)) as listener:
            port = listener.local_address.port

            async def join(port: int = port) -> TlsSocket:
                client = await dial("127.0.0.1", port, certificate.fingerprint)
                client.send(client.remote, memoryview(b"of a session"), 12)
                await receive(client, 12)
                return client

            clients = [await join() for _ in range(3)]
            with pytest.raises(ServerUnreachableError):
                await join()
            assert listener.counters.errors["refused"] == 1
            clients.pop().close()
            await until(lambda listener=listener: len(listener) == 2)
            clients.append(await join())
            for client in clients:
                client.close()


async def test_whoever_does_not_shake_hands_or_stays_silent_is_closed(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path, "127.0.0.1")
    async with a_door(certificate, handshake_patience=0.2, silence=0.3) as listener:
        port = listener.local_address.port
        with trio.socket.socket() as mute, trio.socket.socket() as rude:
            await mute.connect(("127.0.0.1", port))
            await rude.connect(("127.0.0.1", port))
            await rude.send(b"GET / HTTP/1.1\r\n\r\n")
            await until(lambda: listener.counters.errors["handshake"] == 2)
        client = await dial("127.0.0.1", port, certificate.fingerprint)
        client.send(client.remote, memoryview(b"of a session"), 12)
        await receive(client, 12)
        half_a_frame = ssl.SSLSocket.send
        half_a_frame(client._tls, b"\x00\x05abc")
        await wait_closed(client)
        assert listener.counters.errors["silent"] == 1
        await until(lambda: not len(listener))


async def soon(condition: Callable[[], object]) -> None:
    """The same where the clock stands still."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        await trio.lowlevel.checkpoint()


async def test_the_door_waits_as_long_as_its_limits_say_and_no_longer(tmp_path: Path, mock_clock: trio.testing.MockClock) -> None:
    certificate = make_certificate(tmp_path, "127.0.0.1")

    async def passes(seconds: float) -> None:
        await trio.testing.wait_all_tasks_blocked(0.01)
        mock_clock.jump(seconds)
        await trio.testing.wait_all_tasks_blocked(0.01)

    async with a_door(certificate) as listener:
        port, errors = listener.local_address.port, listener.counters.errors
        with trio.socket.socket() as mute:
            await mute.connect(("127.0.0.1", port))
            await soon(lambda: len(listener) == 1)
            await passes(HANDSHAKE_PATIENCE - 0.1)
            assert len(listener) == 1
            await passes(0.2)
            await soon(lambda: not len(listener))
            assert errors["handshake"] == 1

        async def says(client: TlsSocket, what: bytes) -> None:
            client.send(client.remote, memoryview(what), len(what))
            assert await receive(client, len(what)) == what

        stranger = await dial("127.0.0.1", port, certificate.fingerprint)
        await passes(UNPROVEN - 0.1)
        await says(stranger, b"junk")
        await passes(0.2)
        await soon(lambda: not len(listener))
        assert errors["unproven"] == 1

        member = await dial("127.0.0.1", port, certificate.fingerprint)
        for _ in range(3):
            await says(member, b"of a session")
            await passes(SILENCE - 0.1)
        await says(member, b"junk")
        assert len(listener) == 1
        await passes(0.2)
        await soon(lambda: not len(listener))
        assert errors["silent"] == 1
        for client in (stranger, member):
            client.close()


@pytest.mark.skipif(sys.platform != "linux", reason="TCP_INFO of a listening socket is Linux's")
def test_the_kernel_holds_so_many_connections_while_the_door_accepts_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    somaxconn = Path("/proc/sys/net/core/somaxconn").read_text(encoding="ascii")
    made = make_certificate(tmp_path, "127.0.0.1")
    certificate = ServerCertificate(made.certificate, made.key)
    listener = TlsListener("127.0.0.1", 0, certificate)
    info = listener._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    (most,) = struct.unpack_from("@I", info, 28)  # tcpi_sacked; of a listening socket its backlog (tcp_get_info)
    assert most == min(BACKLOG, int(somaxconn))
    listener.close()
    monkeypatch.setattr(door, "BACKLOG", 3)
    listener = TlsListener("127.0.0.1", 0, certificate)
    clients = [socket.socket() for _ in range(10)]
    for client in clients:
        client.setblocking(False)
        client.connect_ex(("127.0.0.1", listener.local_address.port))
    connected = [client for client in clients if is_connected(client)]
    assert connected == clients[:4]  # Linux holds one more than it was told
    for client in clients:
        client.close()
    listener.close()


def is_connected(client: socket.socket) -> bool:
    try:
        client.getpeername()
    except OSError:
        return False
    return True


async def test_who_breaks_the_framing_is_closed_and_counted(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path, "127.0.0.1")
    async with a_door(certificate) as listener:
        client = await dial("127.0.0.1", listener.local_address.port, certificate.fingerprint)
        ssl.SSLSocket.send(client._tls, b"\x00\x00")
        await wait_closed(client)
        assert listener.counters.errors["malformed"] == 1


async def test_what_a_reader_does_not_fetch_is_dropped_and_never_holds_up_the_sender(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path, "127.0.0.1")
    async with a_door(certificate) as listener:
        client = await dial("127.0.0.1", listener.local_address.port, certificate.fingerprint)
        client.send(client.remote, memoryview(b"here"), 4)
        await receive(client, 4)
        (remote,) = listener._streams
        burst = memoryview(bytes(50 * 1_200))
        with trio.fail_after(20):
            while listener.counters.errors["late"] < 1_000:
                listener.send(remote, burst, 1_200)
                await trio.sleep(0.001)
        assert listener._streams[remote]._queue.size <= 4 << 20
        client.close()


async def test_a_server_of_other_things_is_told_by_its_refusal(tmp_path: Path) -> None:
    """A web server that knows no `ptunnel/1` says so in the handshake (RFC 7301 §3.2)."""
    certificate = make_certificate(tmp_path, "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate, certificate.key)

    async def answer(stream: trio.SocketStream) -> None:
        secured = trio.SSLStream(stream, context, server_side=True)
        try:
            await secured.do_handshake()
            await secured.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        except trio.BrokenResourceError:
            return

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, answer, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        client = await dial("127.0.0.1", port, certificate.fingerprint)  # this one has not heard of ALPN at all
        await wait_closed(client)
        assert client.counters.errors["malformed"] == 1  # "HT" is no length of a frame
        nursery.cancel_scope.cancel()


async def test_a_renewed_certificate_is_taken_up_and_a_broken_one_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "RELOAD_INTERVAL", 0.0)
    first = make_certificate(tmp_path, "127.0.0.1")
    async with a_door(first) as listener:
        port = listener.local_address.port
        (await dial("127.0.0.1", port, first.fingerprint)).close()
        second = make_certificate(tmp_path, "127.0.0.1")
        (await dial("127.0.0.1", port, second.fingerprint)).close()
        with pytest.raises(ServerUnreachableError, match="not the pinned one"):
            await dial("127.0.0.1", port, first.fingerprint)
        spoil(second)
        (await dial("127.0.0.1", port, second.fingerprint)).close()


def test_files_that_are_no_certificate_are_one_sentence(tmp_path: Path) -> None:
    one, two = make_certificate(tmp_path, "localhost"), make_certificate(tmp_path, "localhost", stem="other")
    (tmp_path / "text").write_text("hello", encoding="ascii")
    for certificate, key, words in (
        (str(tmp_path / "absent"), None, "cannot be read"),
        (one.certificate, str(tmp_path / "absent"), "cannot be read"),
        (one.certificate, two.key, "no certificate with its key"),
        (one.certificate, None, "no certificate with its key"),
        (str(tmp_path / "text"), one.key, "no certificate with its key"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            ServerCertificate(certificate, key)


def test_a_locked_key_is_one_sentence_and_asks_nothing(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    made = make_certificate(tmp_path, "localhost")
    key = serialization.load_pem_private_key(Path(made.key).read_bytes(), None)
    locked = serialization.BestAvailableEncryption(b"secret")
    Path(made.key).write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked)
    )  # fmt: skip
    with pytest.raises(ConfigurationError, match="passphrase"):
        ServerCertificate(made.certificate, made.key)


def test_a_port_that_may_not_be_had_is_one_sentence_that_says_what_to_do(tmp_path: Path) -> None:
    made = make_certificate(tmp_path, "localhost")
    certificate = ServerCertificate(made.certificate, made.key)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigurationError, match="--tls-port"):
        TlsListener("127.0.0.1", taken.getsockname()[1], certificate)
    with pytest.raises(ConfigurationError, match="not an address of this machine"):
        TlsListener("192.0.2.1", 0, certificate)
    refused = door._sentence(Address("0.0.0.0", 443), PermissionError(errno.EACCES, "Permission denied"))
    assert all(word in refused for word in ("setcap", "authbind", "--tls-port"))


async def test_each_way_of_failing_is_a_sentence_with_the_place(tmp_path: Path) -> None:
    with trio.socket.socket() as closed:
        await closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with pytest.raises(ServerUnreachableError, match=f"Nothing listens at TCP port {port} of 127.0.0.1"):
        await dial("127.0.0.1", port, None)
    with pytest.raises(ServerUnreachableError, match=r"The server name no-such-host\.invalid is unknown"):
        await dial("no-such-host.invalid", 443, None)
    assert "hangs up" in str(explain(ConnectionResetError(errno.ECONNRESET, "reset"), "rv", 443))
    assert "not reached: No route to host" in str(explain(OSError(errno.EHOSTUNREACH, "No route to host"), "rv", 443))
    assert "no ptunnel server with TLS" in str(explain(ssl.SSLError(1, "wrong version"), "rv", 443))
    certificate = make_certificate(tmp_path, "another.example")
    async with a_door(certificate) as listener:
        with pytest.raises(ServerUnreachableError, match="is not trusted"):
            await dial("127.0.0.1", listener.local_address.port, None)


@pytest.mark.parametrize(("days", "reason"), [(-400, "expired"), (400, "not yet valid")])
async def test_a_certificate_that_is_out_of_time_may_be_the_fault_of_this_computers_clock(
    days: int, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine without a battery for its clock begins in 1970."""
    certificate = make_certificate(tmp_path, "127.0.0.1", authority=True, days=days)
    monkeypatch.setenv("SSL_CERT_FILE", trust(tmp_path, certificate))
    async with a_door(certificate) as listener:
        with pytest.raises(ServerUnreachableError, match=rf"{reason}; this computer's clock says \d{{4}}-.*set the clock"):
            await dial("127.0.0.1", listener.local_address.port, None)


async def test_a_public_authority_vouches_for_the_name_that_it_wrote_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = make_certificate(tmp_path, "127.0.0.1", authority=True)
    elsewhere = make_certificate(tmp_path, "rv.example.net", stem="elsewhere", authority=True)
    monkeypatch.setenv("SSL_CERT_FILE", trust(tmp_path, certificate, elsewhere))
    async with a_door(certificate) as listener:
        client = await dial("127.0.0.1", listener.local_address.port, None)
        assert client._tls.selected_alpn_protocol() == ALPN
        assert client._tls.version() == "TLSv1.3"
        client.close()
    async with a_door(elsewhere) as listener:
        with pytest.raises(ServerUnreachableError, match=r"not trusted.*name the server as its certificate does"):
            await dial("127.0.0.1", listener.local_address.port, None)
