"""Walls around traces, a server, its TLS connections and ours."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

import tunnel
from tests.driver.faulty import QUICK, fails
from tests.driver.meeting import Heard, a_server, echo, homes, shout
from tests.driver.tls import make_certificate
from tunnel.doors.tls.client import TlsSocket, dial
from tunnel.doors.tls.server import ServerCertificate, TlsListener
from tunnel.faults import Faults
from tunnel.node.diagnosis import Diagnosis
from tunnel.node.pool import OpenRoute
from tunnel.server_spec import TlsOptions
from tunnel.setup.store import HomeStore
from tunnel.shell import doctor, routes
from tunnel.shell.routes import Routes
from tunnel.units import ReceivedBatch


async def test_a_fault_in_a_trace_ends_the_trace_and_not_the_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exposer, connector = homes(tmp_path)
    heard = Heard()
    told: list[str] = []

    class Trace:
        def event(self, _now: object, name: str, _data: object) -> None:
            told.append(name)
            if len(told) > 3:
                fails()

    class Traces:
        def open(self, *_arguments: object, **_named: object) -> Trace:
            return Trace()

    monkeypatch.setattr(HomeStore, "traces", lambda store: Traces() if store.home.path == exposer else None)
    with trio.fail_after(10):
        async with (
            a_server() as server,
            tunnel.expose(["22"], server=server, home=exposer, on_event=heard, handler=echo) as exposure,
            tunnel.connect(await heard.code(), server=server, home=connector, name="friend") as link,
        ):
            assert await shout(link, b"hello" * 10_000) == b"hello" * 10_000
            assert exposure.driver is not None
            assert exposure.driver.faults.counts == {"trace": 1}
            assert len(told) == 4


async def test_a_server_goes_on_whatever_one_datagram_or_timer_meets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from tunnel.rendezvous.server import Server

    exposer, connector = homes(tmp_path)
    heard = Heard()
    left = {"handle_alone": 3, "handle_timeout": 1, "answers": 3}

    def sometimes(name: str) -> Callable[..., Any]:
        whole = getattr(Server, name)

        def call(self: Server, *arguments: Any) -> Any:
            left[name] -= 1
            return fails() if left[name] in (0, 2) else whole(self, *arguments)

        return call

    for name in left:
        monkeypatch.setattr(Server, name, sometimes(name))
    with trio.fail_after(20), caplog.at_level(logging.WARNING):
        async with (
            a_server() as server,
            tunnel.expose(["22"], server=server, home=exposer, on_event=heard, handler=echo),
            tunnel.connect(await heard.code(), server=server, home=connector) as link,
        ):
            assert await shout(link, b"hello") == b"hello"
            while max(left.values()) > 0:  # noqa: ASYNC110
                await trio.sleep(QUICK)
    reports = [record.getMessage() for record in caplog.records if "Fault: in a test" in record.getMessage()]
    assert len(reports) == 1  # the same line raised each time
    assert any("Please report it: the lines before." in record.getMessage() for record in caplog.records)


async def test_a_fault_with_one_tls_connection_to_a_server_ends_that_one(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path, "127.0.0.1")
    listener = TlsListener("127.0.0.1", 0, ServerCertificate(certificate.certificate, certificate.key))
    faults = Faults()

    async def handle(batch: ReceivedBatch) -> bool:
        if bytes(batch.buffer) == b"fail":
            fails()
        return listener.send(batch.remote, batch.buffer, batch.stride)

    async def says(socket: TlsSocket, data: bytes) -> bytes:
        socket.send(socket.remote, memoryview(data), len(data))
        while (batch := socket.receive()) is None:
            await socket.wait_readable()
        return bytes(batch.buffer)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.serve, handle, faults)
            steady, broken = [await dial("127.0.0.1", listener.local_address.port, certificate.fingerprint) for _ in range(2)]
            assert await says(steady, b"tick") == b"tick"
            with pytest.raises(trio.ClosedResourceError):
                await says(broken, b"fail")
            assert await says(steady, b"tock") == b"tock"
            steady.close()
            broken.close()
            nursery.cancel_scope.cancel()
    listener.close()
    assert faults.counts == {"tls": 1}


async def test_a_fault_in_a_tls_connection_of_ours_is_followed_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "FIRST_PAUSE", QUICK)
    attempts: list[str] = []

    async def connect(_routes: Routes, door: Any, _kind: object, _server: str) -> None:
        attempts.append(door.name)
        if len(attempts) < 3:
            fails()
        await trio.sleep_forever()

    monkeypatch.setattr(Routes, "_connect", connect)
    faults = Faults()

    async def serve(_socket_id: object) -> None:
        pass

    ours = Routes(
        {}, options=lambda _name: TlsOptions(), serve=serve, up=lambda *_: None, down=lambda *_: None, faults=faults
    )  # fmt: skip
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            ours.nursery = nursery
            ours.fulfil(OpenRoute("rv.example.net"))
            while len(attempts) < 3:  # noqa: ASYNC110
                await trio.sleep(QUICK)
            nursery.cancel_scope.cancel()
    assert faults.counts == {"tls": 2}


async def test_a_fault_in_the_look_at_one_family_does_not_end_doctor(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Diagnosis, "handle_datagram", fails)
    with trio.fail_after(15):
        async with a_server() as server:
            found = await doctor.examine(server, portmap=False, tls=TlsOptions(None, None))
    assert not found.is_reached
    assert found.sentences()
    assert any("ended the look at IPv4" in record.getMessage() for record in caplog.records)
