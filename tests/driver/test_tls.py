"""Meeting and relaying over TLS, on real loopback connections."""

from __future__ import annotations

import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

import tunnel
from tests.driver.meeting import Heard, echo, homes, on, shout
from tests.driver.tls import Certificate, Firewall, make_certificate
from tunnel.doors.tls.client import dial
from tunnel.errors import ServerUnreachableError
from tunnel.host.clock import boottime
from tunnel.rendezvous.client import Client
from tunnel.rendezvous.events import Lost
from tunnel.rendezvous.server import Server
from tunnel.server_spec import TlsOptions, parse_server
from tunnel.setup.machine import Machine
from tunnel.shell.events import PathReport, Trouble
from tunnel.shell.serve import RunningServer, TlsConfig, serve
from tunnel.shell.server_loop import ServerLoop
from tunnel.units import ReceivedBatch, SocketId


@asynccontextmanager
async def a_tls_server(
    certificate: Certificate, host: str = "127.0.0.1", port: int = 0, tls_port: int = 0
) -> AsyncIterator[tuple[RunningServer, str, int]]:
    """The server, host:port of its UDP side, and its TCP port."""
    config = TlsConfig(certificate=certificate.certificate, key=certificate.key, port=tls_port)
    async with trio.open_nursery() as nursery:

        async def run(*, task_status: trio.TaskStatus[RunningServer]) -> None:
            await serve([(host, port)], tls=config, task_status=task_status)

        running: RunningServer = await nursery.start(run)
        yield running, str(running.addresses[0]), running.tls_addresses[0].port
        nursery.cancel_scope.cancel()


async def until(condition: Callable[..., bool]) -> None:
    """Counters announce nothing: look at them until they are as wanted.  The caller limits the time."""
    while not condition():  # noqa: ASYNC110
        await trio.sleep(0.05)


def behind(firewall: Firewall) -> Machine:
    return Machine(opener=firewall.open, bind=("127.0.0.1",), hosts=lambda: ["127.0.0.1"])


async def test_two_peers_whose_networks_block_udp_meet_and_talk_over_tls(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path, "127.0.0.1")
    exposer, connector = homes(tmp_path)
    heard, told = Heard(), Heard()
    with trio.fail_after(20):
        async with a_tls_server(certificate) as (running, server, port):
            tls = TlsOptions(port, certificate.fingerprint)
            async with (
                on(behind(Firewall()), tunnel.expose(["22"], server=server, home=exposer, on_event=heard, handler=echo, tls=tls)),
                on(
                    behind(Firewall()), tunnel.connect(await heard.code(), server=server, home=connector, on_event=told, tls=tls)
                ) as link,
            ):
                assert await shout(link, b"hello" * 100_000) == b"hello" * 100_000
                status = link.status()
                assert status.kind == "relay"
                assert status.remote == f"127.0.0.1:{port}"
                assert "TLS" in status.why
                path = await told.wait(lambda event: isinstance(event, PathReport))
                assert "TLS" in path.to_dict()["why"]
                assert running.counters()["tls_connections"] == 2


async def test_who_is_connected_over_tls_hears_that_the_server_ends(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path, "127.0.0.1")
    with trio.fail_after(20):
        async with a_tls_server(certificate) as (running, _, port):
            socket = await dial("127.0.0.1", port, certificate.fingerprint)
            client = Client(
                servers=[(SocketId(100), socket.remote)], now=boottime(), rng=random.Random(1), entropy=random.Random(2).randbytes
            )
            client.listen(boottime(), [b"r" * 16])
            while not any(isinstance(event, Lost) for event in iter(client.poll_event, None)):
                while (out := client.poll_transmit(boottime())) is not None:
                    socket.send(socket.remote, memoryview(out[2]), len(out[2]))
                while (batch := socket.receive()) is not None:
                    for at in range(0, len(batch.buffer), batch.stride):
                        client.handle_datagram(boottime(), SocketId(100), socket.remote, batch.buffer[at : at + batch.stride])
                if running.counters()["rooms"]:
                    running.stop()
                await trio.sleep(0.01)
            socket.close()


async def test_one_side_over_tls_and_the_other_over_udp_and_udp_takes_over_when_it_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunnel.rendezvous.fallback.FALLBACK_LINGER", 1.0)
    certificate = make_certificate(tmp_path, "127.0.0.1")
    exposer, connector = homes(tmp_path)
    heard, firewall = Heard(), Firewall()
    with trio.fail_after(40):
        async with a_tls_server(certificate) as (running, server, port):
            tls = TlsOptions(port, certificate.fingerprint)
            async with (
                tunnel.expose(["22"], server=server, home=exposer, on_event=heard, handler=echo),
                on(behind(firewall), tunnel.connect(await heard.code(), server=server, home=connector, tls=tls)) as link,
            ):
                assert await shout(link, b"x" * 300_000) == b"x" * 300_000
                assert "TLS" in link.status().why
                assert running.counters()["tls_connections"] == 1
                firewall.blocks = False
                with trio.fail_after(8):
                    await link.wait_direct()
                assert await shout(link, b"y" * 300_000) == b"y" * 300_000
                await until(lambda: not running.counters()["tls_connections"])  # it lingers a while


async def test_a_server_that_falls_silent_over_tls_is_found_where_its_name_leads_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunnel.rendezvous.contact.REFRESH_INTERVAL", 1.0)
    monkeypatch.setattr("tunnel.shell.servers.FIRST_LOOK", 0.5)
    name = "rv.example.net"
    certificate = make_certificate(tmp_path, name)
    places = {"name leads to": "127.0.0.1"}
    deaf: list[Server] = []
    handle = ServerLoop.handle

    async def handle_unless_deaf(loop: ServerLoop, socket_id: SocketId, batch: ReceivedBatch) -> None:
        if loop._server not in deaf:
            await handle(loop, socket_id, batch)

    class Names(trio.abc.HostnameResolver):
        async def getaddrinfo(
            self,
            host: Any,
            port: Any,
            family: int = 0,
            type: int = 0,  # noqa: A002
            proto: int = 0,
            flags: int = 0,
        ) -> list[Any]:
            await trio.lowlevel.checkpoint()
            return [(socket.AF_INET, type, 0, "", (places["name leads to"], port))]

        async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
            raise NotImplementedError

    monkeypatch.setattr(ServerLoop, "handle", handle_unless_deaf)
    trio.socket.set_custom_hostname_resolver(Names())
    heard = Heard()
    with trio.fail_after(30):
        async with a_tls_server(certificate) as (running, server, port):
            udp_port = parse_server(server)[1]
            tls = TlsOptions(port, certificate.fingerprint)
            async with on(
                behind(Firewall()),
                tunnel.expose(["22"], server=f"{name}:{udp_port}", home=tmp_path / "h", on_event=heard, tls=tls),
            ):
                await heard.code()
                async with a_tls_server(certificate, "127.0.0.2", udp_port, port) as (moved, _, _):
                    deaf.append(running._server)  # the connection to it stands, as to a machine that has lost its address
                    places["name leads to"] = "127.0.0.2"
                    await heard.wait(lambda event: isinstance(event, Trouble) and event.code == "server_back")
                    assert moved.counters()["tls_connections"] == 1
                    await until(lambda: moved.counters()["sessions"] == 1)  # a round trip after it was heard again


async def test_a_certificate_that_nobody_vouches_for_is_refused_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunnel.setup.servers.SERVER_PATIENCE", 2.0)
    certificate = make_certificate(tmp_path, "127.0.0.1")
    async with a_tls_server(certificate) as (running, server, port):
        for tls, words in (
            (TlsOptions(port, None), "not trusted"),
            (TlsOptions(port, "0" * 64), "not the pinned one"),
            (TlsOptions(1, None), "Nothing listens at TCP port 1"),
        ):
            with trio.fail_after(15), pytest.raises(ServerUnreachableError, match=words):
                async with on(behind(Firewall()), tunnel.expose(["22"], server=server, home=tmp_path / "h", tls=tls)):
                    raise AssertionError
        assert running.counters().get("did_retry", 0) == 0  # not one datagram went over an unverified connection
