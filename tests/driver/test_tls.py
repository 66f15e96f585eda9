"""Meeting and relaying over TLS, on real loopback connections."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

import tunnel
from tests.driver.meeting import Heard, echo, homes, shout
from tests.driver.tls import Certificate, Firewall, make_certificate
from tunnel.config import TlsOptions
from tunnel.driver.events import PathReport
from tunnel.driver.rendezvous import RunningServer, TlsConfig, serve
from tunnel.errors import ServerUnreachableError


@asynccontextmanager
async def a_tls_server(certificate: Certificate) -> AsyncIterator[tuple[RunningServer, str, int]]:
    """The server, host:port of its UDP side, and its TCP port."""
    config = TlsConfig(certificate=certificate.certificate, key=certificate.key, port=0)
    async with trio.open_nursery() as nursery:

        async def run(*, task_status: trio.TaskStatus[RunningServer]) -> None:
            await serve([("127.0.0.1", 0)], tls=config, task_status=task_status)

        running: RunningServer = await nursery.start(run)
        yield running, str(running.addresses[0]), running.tls_addresses[0].port
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool]) -> None:
    """Counters announce nothing: look at them until they are as wanted.  The caller limits the time."""
    while not condition():  # noqa: ASYNC110
        await trio.sleep(0.05)


def behind(firewall: Firewall) -> dict[str, Any]:
    return {"opener": firewall.open, "bind": ("127.0.0.1",), "hosts": lambda: ["127.0.0.1"]}


async def test_two_peers_whose_networks_block_udp_meet_and_talk_over_tls(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path, "127.0.0.1")
    exposer, connector = homes(tmp_path)
    heard, told = Heard(), Heard()
    with trio.fail_after(20):
        async with a_tls_server(certificate) as (running, server, port):
            tls = TlsOptions(port, certificate.fingerprint)
            async with (
                tunnel.expose(
                    ["22"], server=server, home=exposer, on_event=heard, handler=echo, tls=tls, seams=behind(Firewall())
                ),
                tunnel.connect(
                    await heard.code(), server=server, home=connector, on_event=told, tls=tls, seams=behind(Firewall())
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


async def test_one_side_over_tls_and_the_other_over_udp_and_udp_takes_over_when_it_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunnel.proto.rendezvous.tls.TLS_LINGER", 1.0)
    certificate = make_certificate(tmp_path, "127.0.0.1")
    exposer, connector = homes(tmp_path)
    heard, firewall = Heard(), Firewall()
    with trio.fail_after(40):
        async with a_tls_server(certificate) as (running, server, port):
            tls = TlsOptions(port, certificate.fingerprint)
            async with (
                tunnel.expose(["22"], server=server, home=exposer, on_event=heard, handler=echo),
                tunnel.connect(await heard.code(), server=server, home=connector, tls=tls, seams=behind(firewall)) as link,
            ):
                assert await shout(link, b"x" * 300_000) == b"x" * 300_000
                assert "TLS" in link.status().why
                assert running.counters()["tls_connections"] == 1
                firewall.blocks = False
                with trio.fail_after(8):
                    await link.wait_direct()
                assert await shout(link, b"y" * 300_000) == b"y" * 300_000
                await until(lambda: not running.counters()["tls_connections"])  # it lingers a while


async def test_a_certificate_that_nobody_vouches_for_is_refused_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunnel.api.exposing.SERVER_PATIENCE", 2.0)
    certificate = make_certificate(tmp_path, "127.0.0.1")
    async with a_tls_server(certificate) as (running, server, port):
        for tls, words in (
            (TlsOptions(port, None), "not trusted"),
            (TlsOptions(port, "0" * 64), "not the pinned one"),
            (TlsOptions(1, None), "Nothing listens at TCP port 1"),
        ):
            with trio.fail_after(15), pytest.raises(ServerUnreachableError, match=words):
                async with tunnel.expose(["22"], server=server, home=tmp_path / "h", tls=tls, seams=behind(Firewall())):
                    raise AssertionError
        assert running.counters().get("did_retry", 0) == 0  # not one datagram went over an unverified connection
