"""What a remembered peer may reach is given, told and taken back: expose and connect over loopback, with the home on a disk."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio

import tunnel
from tests.driver.meeting import Heard, a_server, homes
from tunnel.node.peering import CONTROL_SHARES, Peering
from tunnel.ports.serve import Listeners
from tunnel.ports.spec import parse_forwards
from tunnel.shell.events import Paired, Serving
from tunnel.shell.link import Link
from tunnel.state.home import Home
from tunnel.state.peers import Peer

SOON = 5.0  # seconds; the second that is promised is held in test_promises.py, by the test's own clock


@asynccontextmanager
async def echoes() -> AsyncIterator[tuple[int, int, int]]:
    """Two TCP ports and a UDP port of this machine that echo."""

    async def serve(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            async for data in stream:
                await stream.send_all(data)

    async def serve_udp(sock: trio.socket.SocketType) -> None:
        while True:
            data, client = await sock.recvfrom(65_535)
            await sock.sendto(data, client)

    async with trio.open_nursery() as nursery:
        ports = []
        for _ in range(2):
            [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
            ports.append(listener.socket.getsockname()[1])
            nursery.start_soon(trio.serve_listeners, serve, [listener])
        with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            await udp.bind(("127.0.0.1", 0))
            nursery.start_soon(serve_udp, udp)
            yield ports[0], ports[1], udp.getsockname()[1]
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def forwards(link: Link, *texts: str) -> AsyncIterator[list[int]]:
    """The local ports of these --forward over `link`."""
    with Listeners(parse_forwards(texts)) as listeners:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listeners.serve, link)
            yield [int(ready.bind.rpartition(":")[2]) for ready in listeners.ready]
            nursery.cancel_scope.cancel()


async def talk(port: int) -> trio.SocketStream:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    await echoed(stream)
    return stream


async def echoed(stream: trio.SocketStream) -> None:
    await stream.send_all(b"hello")
    assert await stream.receive_some() == b"hello"


async def ends(stream: trio.SocketStream) -> None:
    with trio.fail_after(SOON), suppress(trio.BrokenResourceError):
        assert await stream.receive_some() == b""


async def is_refused(port: int) -> None:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await ends(stream)


def acquaint(home: Path, name: str, *grants: str) -> Peer:
    """A peer that was met long ago."""
    from tunnel.pairing.grants import GrantSet

    static = name.encode().ljust(32, b".")
    return Home(home).save_peer(Peer(name=name, static=static, psk=bytes(32), grants=GrantSet.parse(*grants).to_dicts()))


def shared(home: Path, name: str) -> list[str]:
    from tunnel.ports.granting import readable, told

    return list(told(readable(Home(home).peer(name).grants)))


def servings(heard: Heard) -> list[tuple[str, list[str]]]:
    return [(event.peer, list(event.grants)) for event in heard if isinstance(event, Serving)]


async def test_what_is_taken_back_ends_within_a_second_and_nothing_else_does(tmp_path: Path) -> None:
    exposer, connector = homes(tmp_path)
    heard = Heard()
    with trio.fail_after(30):
        async with (
            echoes() as (one, two, three),
            a_server() as server,
            tunnel.expose(
                [f"{one}", f"{two}", f"{three}/udp"], server=server, home=exposer, keep=True, on_event=heard
            ) as exposure,
            tunnel.connect(await heard.code(), server=server, home=connector, name="ben") as bens,
        ):
            paired = heard.index(await heard.wait(lambda event: isinstance(event, Paired)))
            code = await heard.code(after=paired)
            async with (
                tunnel.connect(code, server=server, home=tmp_path / "third", name="cleo") as cleos,
                forwards(bens, f"0:{one}", f"0:{two}", f"0:{three}/udp") as ports,
                forwards(cleos, f"0:{one}", f"0:{three}/udp") as others,
            ):
                await heard.wait(lambda event: isinstance(event, Serving) and event.peer == "cleo")
                streams = [await talk(ports[0]), await talk(ports[1]), await talk(others[0])]
                clients = []
                for port in (ports[2], others[1]):
                    client = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                    await client.connect(("127.0.0.1", port))
                    await client.send(b"1")
                    assert await client.recv(10) == b"1"
                    clients.append(client)

                revoked = await trio.to_thread.run_sync(lambda: tunnel.revoke("ben", str(one), f"{three}/udp", home=exposer))
                assert (revoked.peer, list(revoked.grants)) == ("ben", [f"tcp/{two}"])
                await ends(streams[0])
                with trio.move_on_after(SOON) as silence:
                    while True:
                        with trio.move_on_after(0.1):
                            await clients[0].send(b"2")
                            assert await clients[0].recv(10) == b"2"
                            continue
                        break
                assert not silence.cancelled_caught, "the flow still carries"

                await echoed(streams[1])
                await echoed(streams[2])
                await clients[1].send(b"3")
                assert await clients[1].recv(10) == b"3"
                assert servings(heard)[-1] == ("ben", [f"tcp/{two}"])
                await is_refused(ports[0])

                await trio.to_thread.run_sync(lambda: tunnel.revoke("ben", home=exposer))
                await ends(streams[1])
                await echoed(streams[2])
                assert len(exposure.links) == 2, "ben is still a friend"
                for stream in streams:
                    await stream.aclose()
                for client in clients:
                    client.close()


async def test_more_is_granted_while_it_runs_and_all_of_it_is_told(tmp_path: Path) -> None:
    exposer, connector = homes(tmp_path)
    acquaint(exposer, "cleo", "8080")
    heard = Heard()
    with trio.fail_after(30):
        async with (
            echoes() as (one, two, _),
            a_server() as server,
            tunnel.expose([str(one)], server=server, home=exposer, on_event=heard) as exposure,
            tunnel.connect(await heard.code(), server=server, home=connector, name="ben") as link,
            forwards(link, f"0:{one}", f"0:{two}") as ports,
        ):
            stream = await talk(ports[0])
            assert servings(heard)[0] == ("cleo", ["tcp/8080"])
            await is_refused(ports[1])
            granted = await exposure.grant(["ben"], str(two))
            assert [(each.peer, list(each.grants)) for each in granted] == [("ben", [f"tcp/{one}", f"tcp/{two}"])]
            await (await talk(ports[1])).aclose()
            await echoed(stream)
            assert servings(heard)[-1] == ("ben", [f"tcp/{one}", f"tcp/{two}"])
            await exposure.grant(["ben"], str(two), only=True)
            await ends(stream)
            assert shared(exposer, "ben") == [f"tcp/{two}"]
            for wrong in (["ben", "nobody"], ["nobody"]):
                with pytest.raises(tunnel.ConfigurationError, match="nobody"):
                    await exposure.grant(wrong, "22")
            with pytest.raises(tunnel.ConfigurationError, match="a port is a number"):
                await exposure.grant(["ben"], "22", "x")
            assert shared(exposer, "ben") == [f"tcp/{two}"]
            await stream.aclose()


@pytest.mark.parametrize("only", [False, True])
async def test_expose_to_a_peer_adds_to_what_it_has_or_replaces_it(only: bool, tmp_path: Path) -> None:
    acquaint(tmp_path, "ben", "22", "nas=a:1")
    acquaint(tmp_path, "cleo", "8080")
    heard = Heard()
    async with (
        a_server() as server,
        tunnel.expose(["nas=b:2"], to=["BEN"], only=only, server=server, home=tmp_path, on_event=heard),
    ):
        after = ["tcp/nas=b:2"] if only else ["tcp/22", "tcp/nas=b:2"]
        assert sorted(servings(heard)) == [("ben", after), ("cleo", ["tcp/8080"])]
    assert (shared(tmp_path, "ben"), shared(tmp_path, "cleo")) == (after, ["tcp/8080"])


async def test_beside_a_running_exposer_nothing_is_granted(tmp_path: Path) -> None:
    acquaint(tmp_path, "ben", "22")
    async with a_server() as server, tunnel.expose(server=server, home=tmp_path):
        before = (tmp_path / "peers.json").read_bytes()
        with pytest.raises(tunnel.AlreadyRunningError):
            async with tunnel.expose(["3389"], to=["ben"], server=server, home=tmp_path):
                pass
        assert (tmp_path / "peers.json").read_bytes() == before


@pytest.mark.parametrize(
    ("names", "part"),
    [
        ((), "Say what to expose"),
        (("home",), "You share nothing with home. To share: 'ptunnel expose PORT --to home'. To reach it: 'ptunnel connect home"),
        (("my home", "office"), "nothing with my home, office. To share: 'ptunnel expose PORT --to \"my home\"'"),
    ],
)
async def test_serving_peers_that_may_reach_nothing_is_refused(names: Sequence[str], part: str, tmp_path: Path) -> None:
    for name in names:
        acquaint(tmp_path, name)
    with pytest.raises(tunnel.ConfigurationError, match=part):
        async with tunnel.expose(home=tmp_path):
            pass


@pytest.mark.parametrize(
    ("what", "part"),
    [
        (("23",), "ben: '23' is not shared anyway; shared is tcp/22, udp/53"),
        (("22", "x"), "ben: 'x' is not"),
        (("22", "0"), "1 to"),
    ],
)
async def test_what_cannot_be_taken_back_changes_nothing(what: tuple[str, ...], part: str, tmp_path: Path) -> None:
    acquaint(tmp_path, "ben", "22", "53/udp")
    before = (tmp_path / "peers.json").read_bytes()
    with pytest.raises(tunnel.ConfigurationError, match=part):
        tunnel.revoke("ben", *what, home=tmp_path)
    with pytest.raises(tunnel.ConfigurationError, match="known are ben"):
        tunnel.revoke("nobody", home=tmp_path)
    assert (tmp_path / "peers.json").read_bytes() == before


async def test_grants_that_cannot_be_read_can_still_be_taken_back(tmp_path: Path) -> None:
    damaged: list[dict[str, Any]] = [{"protocol": "tcp", "name": None}]
    Home(tmp_path).save_peer(Peer(name="ben", static=bytes(32), psk=bytes(32), grants=damaged))
    assert tunnel.revoke("ben", home=tmp_path) == ("ben", (), ())
    assert Home(tmp_path).peer("ben").grants == []


def texts(shares: Any) -> list[str]:
    return [str(each) for each in shares.shares]


async def test_who_connects_is_told_its_own_grants_and_every_change_of_them(tmp_path: Path) -> None:
    exposer, connector = homes(tmp_path)
    acquaint(exposer, "cleo", "8080")
    heard = Heard()
    with trio.fail_after(30):
        async with (
            a_server() as server,
            tunnel.expose(["22", "nas=192.168.1.5:445"], server=server, home=exposer, on_event=heard) as exposure,
            tunnel.connect(await heard.code(), server=server, home=connector, name="ben") as link,
        ):
            shared = await link.shares()
            assert texts(shared) == ["tcp/22", "tcp/nas"]
            await heard.wait(lambda event: isinstance(event, Serving) and event.peer == "ben")
            await exposure.grant(["ben"], "53/udp")
            shared = await link.shares(shared)
            assert texts(shared) == ["tcp/22", "tcp/nas", "udp/53"]
            await trio.to_thread.run_sync(lambda: tunnel.revoke("ben", home=exposer))
            assert texts(await link.shares(shared)) == []
            assert link.grants.allows("tcp", 22) is None, "it says nothing of what the other may reach here"


async def test_a_peer_that_is_met_again_is_told_again(tmp_path: Path) -> None:
    exposer, connector = homes(tmp_path)
    heard = Heard()
    with trio.fail_after(30):
        async with a_server() as server, tunnel.expose(["22"], server=server, home=exposer, name="home", on_event=heard):
            async with tunnel.connect(await heard.code(), server=server, home=connector) as link:
                assert texts(await link.shares()) == ["tcp/22"]
            async with tunnel.connect(peer="home", home=connector) as link:
                assert texts(await link.shares()) == ["tcp/22"]


async def test_a_peer_is_not_told_when_only_others_have_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each of them could see when the others come, and what is remembered of them is written."""
    exposer, connector = homes(tmp_path)
    acquaint(exposer, "cleo", "8080")
    sent: list[int] = []
    real = Peering.send_message

    def send(self: Peering, kind: int, body: bytes) -> None:
        sent.append(kind)
        real(self, kind, body)

    monkeypatch.setattr(Peering, "send_message", send)
    heard = Heard()
    with trio.fail_after(30):
        async with (
            a_server() as server,
            tunnel.expose(["22"], server=server, home=exposer, on_event=heard) as exposure,
            tunnel.connect(await heard.code(), server=server, home=connector, name="ben") as link,
        ):
            shared = await link.shares()
            await heard.wait(lambda event: isinstance(event, Serving) and event.peer == "ben")
            await exposure.grant(["cleo"], "9090")
            assert sent == [CONTROL_SHARES]
            await exposure.grant(["ben"], "53/udp")
            await link.shares(shared)
            assert sent == [CONTROL_SHARES] * 2
