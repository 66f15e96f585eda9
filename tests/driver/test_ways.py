"""What led to a peer is kept in the home, and is there when the next program starts."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

import tunnel
from tests.driver.meeting import Heard, a_server, echo, homes, shout
from tunnel.setup.ways import WayKeeper
from tunnel.shell.endpoint import CandidateKind, Remembered
from tunnel.state.home import Home
from tunnel.state.peers import Peer
from tunnel.units import Address, Seconds

WAY = Remembered(Address("192.88.99.9", 5000), CandidateKind.SERVER_REFLEXIVE, "birthday", True, Seconds(12.0))
STATIC = b"a" * 32


def keeper_of(path: Path, network: bytes = b"n" * 16) -> WayKeeper:
    home = Home(path)
    home.save_peer(Peer(name="home", static=STATIC, psk=b"b" * 32))
    return WayKeeper(home, lambda secret: network)


async def test_what_is_noted_is_written_a_moment_later_and_read_in_the_same_network_only(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    keeper = keeper_of(tmp_path)
    assert keeper.load() == {}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.run)
        keeper.note(STATIC, WAY)
        assert keeper_of(tmp_path).load() == {}
        await trio.sleep(1.5)
        while not Home(tmp_path).ways():  # noqa: ASYNC110
            await trio.sleep(0.1)
        nursery.cancel_scope.cancel()
    assert keeper_of(tmp_path).load() == {STATIC: WAY}
    assert keeper_of(tmp_path, b"m" * 16).load() == {}


def test_what_was_not_written_yet_is_when_the_program_ends(tmp_path: Path) -> None:
    keeper = keeper_of(tmp_path)
    keeper.load()
    keeper.note(STATIC, WAY)
    keeper.close()
    assert keeper_of(tmp_path).load() == {STATIC: WAY}
    keeper.note(STATIC, None)
    keeper.close()
    assert keeper_of(tmp_path).load() == {}


@pytest.mark.parametrize("text", ["", "{", '{"ptunnel": "ways", "version": 9}'])
def test_a_file_that_cannot_be_read_is_no_reason_to_fail_and_is_left_alone(tmp_path: Path, text: str) -> None:
    keeper = keeper_of(tmp_path)
    (tmp_path / "ways.json").write_text(text, encoding="ascii")
    assert keeper.load() == {}
    keeper.note(STATIC, WAY)
    keeper.close()
    assert (tmp_path / "ways.json").read_text(encoding="ascii") == text


async def test_peers_of_one_machine_remember_no_way_to_each_other(tmp_path: Path) -> None:
    """Over loopback there is nothing to find."""
    exposer, connector = homes(tmp_path)
    heard = Heard()
    with trio.fail_after(20):
        async with (
            a_server() as server,
            tunnel.expose(["22"], server=server, home=exposer, on_event=heard, handler=echo),
            tunnel.connect(await heard.code(), server=server, home=connector) as link,
        ):
            await link.wait_direct()
            assert await shout(link, b"x") == b"x"
    assert Home(connector).ways() == []
    assert Home(exposer).ways() == []


def test_the_network_is_named_when_something_is_noted_as_its_router_may_not_have_been_spoken_with_before(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.save_peer(Peer(name="home", static=STATIC, psk=b"b" * 32))
    names = iter((b"without a router", b"with its address"))
    keeper = WayKeeper(home, lambda secret: next(names))
    keeper.load()
    keeper.note(STATIC, WAY)
    keeper.close()
    assert [way.network for way in home.ways()] == [b"with its address"]
