"""Server, expose and connect over real loopback sockets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

import tunnel
from tests.driver.meeting import Heard, a_server, echo, homes, on, shout
from tunnel.setup.machine import Machine
from tunnel.shell.events import Closed, CodeReady, Listening, Paired, PathReport, Trouble
from tunnel.shell.link import Link
from tunnel.shell.serve import serve
from tunnel.state.home import Home


async def test_two_peers_pair_by_a_code_and_an_echo_comes_back(tmp_path: Path) -> None:
    exposer, connector = homes(tmp_path)
    heard, told = Heard(), Heard()
    with trio.fail_after(10):
        async with (
            a_server() as server,
            tunnel.expose(["22"], server=server, home=exposer, name="home", on_event=heard, handler=echo),
            tunnel.connect(await heard.code(), server=server, home=connector, name="friend", on_event=told) as link,
        ):
            assert link.peer_name == "home"
            assert await shout(link, b"hello" * 10_000) == b"hello" * 10_000
            assert [event.peer for event in heard if isinstance(event, Paired)] == ["friend"]
            await link.wait_direct()
            assert (await told.wait(lambda event: isinstance(event, PathReport) and event.kind == "direct")) is not None


async def test_a_remembered_peer_is_met_again_without_a_code(tmp_path: Path) -> None:
    exposer, connector = homes(tmp_path)
    heard = Heard()
    with trio.fail_after(20):
        async with (
            a_server() as server,
            tunnel.expose(["22"], server=server, home=exposer, name="home", on_event=heard, handler=echo),
        ):
            async with tunnel.connect(await heard.code(), server=server, home=connector, name="friend") as link:
                assert await shout(link, b"first") == b"first"
            await heard.wait(lambda event: isinstance(event, Closed))
            for said in (b"second", b"third"):
                async with tunnel.connect(peer="home", home=connector) as link:
                    assert await shout(link, said) == said
            async with tunnel.connect(home=connector) as one, tunnel.connect(home=connector) as other:
                assert await shout(one, b"one") == b"one"
                assert await shout(other, b"other") == b"other"
        assert {event.kind for event in heard if isinstance(event, PathReport)} <= {"relay", "direct"}


async def test_a_restarted_exposer_serves_the_peers_it_remembers(tmp_path: Path) -> None:
    exposer, connector = homes(tmp_path)
    heard = Heard()
    with trio.fail_after(20):
        async with a_server() as server:
            async with (
                tunnel.expose(["22"], server=server, home=exposer, name="home", on_event=heard, handler=echo),
                tunnel.connect(await heard.code(), server=server, home=connector),
            ):
                pass
            async with tunnel.expose(home=exposer, handler=echo), tunnel.connect(peer="home", home=connector) as link:
                assert await shout(link, b"again") == b"again"


class Odd(Exception):
    """Raised by a program that stands on the library."""


@pytest.mark.parametrize("error", [Odd("mine"), tunnel.UnreachableError("nothing there"), OSError("disk full")])
async def test_what_a_handler_of_connect_raises_ends_its_link_and_comes_out_as_itself(tmp_path: Path, error: Exception) -> None:
    exposer, connector = homes(tmp_path)
    heard = Heard()
    links: list[Link] = []

    async def fails(link: Link) -> None:
        links.append(link)
        assert await shout(link, b"hello") == b"hello"
        raise error

    async def returns(link: Link) -> None:
        links.append(link)

    with trio.fail_after(60):
        async with (
            a_server() as server,
            tunnel.expose(["22"], server=server, home=exposer, name="home", on_event=heard, handler=echo),
        ):
            with pytest.raises(type(error)) as raised:
                async with tunnel.connect(await heard.code(), server=server, home=connector, handler=fails):
                    await trio.sleep_forever()
            assert raised.value is error
            assert links[0].close_reason is not None
            await heard.wait(lambda event: isinstance(event, Closed))
            async with tunnel.connect(peer="home", home=connector, handler=returns) as link:  # and the exposing side goes on
                assert await shout(link, b"again") == b"again"
    assert len(links) == 2


async def test_a_home_that_is_copied_to_another_machine_is_noticed_by_its_peers_over_restarts(tmp_path: Path) -> None:
    exposer, connector = homes(tmp_path)
    heard = Heard()
    here, there = Machine(machine=lambda: b"a" * 32), Machine(machine=lambda: b"b" * 32)
    with trio.fail_after(20):
        async with a_server() as server:
            async with (
                on(here, tunnel.expose(["22"], server=server, home=exposer, name="home", on_event=heard, handler=echo)),
                tunnel.connect(await heard.code(), server=server, home=connector) as link,
            ):
                assert await shout(link, b"first") == b"first"
            for machine, count, known in ((here, 0, 1), (there, 1, 2), (there, 0, 2), (here, 0, 2)):
                told = Heard()
                async with (
                    on(machine, tunnel.expose(home=exposer, handler=echo)),
                    tunnel.connect(peer="home", home=connector, on_event=told) as link,
                ):
                    assert await shout(link, b"again") == b"again"
                    while len(Home(connector).peers()[0].machines) < known:  # noqa: ASYNC110  # until it is written down
                        await trio.sleep(0.05)
                warnings = [event for event in told if isinstance(event, Trouble) and event.code == "other_machine"]
                assert len(warnings) == count
    assert len(Home(connector).peers()[0].machines) == 2


async def test_a_wrong_code_ends_the_code_and_a_fresh_one_follows_by_itself(tmp_path: Path) -> None:
    exposer, connector = homes(tmp_path)
    heard = Heard()
    with trio.fail_after(20):
        async with a_server() as server, tunnel.expose(["22"], server=server, home=exposer, on_event=heard, handler=echo):
            code = await heard.code()
            nameplate = code.partition("-")[0]
            wrong = f"{nameplate}-abandon-ability" if "abandon" not in code else f"{nameplate}-zoo-zone"
            with pytest.raises(tunnel.PairingError, match="wrong"):
                async with tunnel.connect(wrong, server=server, home=connector):
                    pass
            await heard.wait(lambda event: isinstance(event, Trouble) and event.code == "wrong_code")
            with pytest.raises(tunnel.PairingError):
                async with tunnel.connect(code, server=server, home=connector):
                    pass
            fresh = await heard.code(after=heard.index(await heard.wait(lambda event: isinstance(event, Trouble))))
            assert fresh != code
            async with tunnel.connect(fresh, server=server, home=connector) as link:
                assert await shout(link, b"now") == b"now"


async def test_a_code_works_once(tmp_path: Path) -> None:
    exposer, connector = homes(tmp_path)
    heard = Heard()
    with trio.fail_after(20):
        async with a_server() as server, tunnel.expose(["22"], server=server, home=exposer, on_event=heard, handler=echo):
            code = await heard.code()
            async with tunnel.connect(code, server=server, home=connector):
                with pytest.raises(tunnel.PairingError):
                    async with tunnel.connect(code, server=server, home=tmp_path / "third"):
                        pass
            await trio.sleep(0.05)
            assert sum(isinstance(event, CodeReady) for event in heard) == 1  # without `keep` there is no second one


async def test_with_keep_a_fresh_code_follows_each_pairing(tmp_path: Path) -> None:
    exposer, connector = homes(tmp_path)
    heard = Heard()
    with trio.fail_after(20):
        async with (
            a_server() as server,
            tunnel.expose(["22"], server=server, home=exposer, keep=True, on_event=heard, handler=echo),
            tunnel.connect(await heard.code(), server=server, home=connector, name="friend") as first,
        ):
            paired = heard.index(await heard.wait(lambda event: isinstance(event, Paired)))
            async with tunnel.connect(
                await heard.code(after=paired), server=server, home=tmp_path / "third", name="friend"
            ) as second:
                assert await shout(first, b"1") == b"1"
                assert await shout(second, b"2") == b"2"
        assert [event.peer for event in heard if isinstance(event, Paired)] == ["friend", "friend-2"]


async def test_a_code_nobody_allocated_and_a_server_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunnel.ports.connecting.SERVER_PATIENCE", 0.3)
    with trio.fail_after(20):
        async with a_server() as server:
            with pytest.raises(tunnel.PairingError, match="Nobody waits"):
                async with tunnel.connect("999-abandon-ability", server=server, home=tmp_path):
                    pass
        with pytest.raises(tunnel.ServerUnreachableError):
            async with tunnel.connect("999-abandon-ability", server="127.0.0.1:9", home=tmp_path):
                pass
        with pytest.raises(tunnel.ConfigurationError, match="remembered"):
            async with tunnel.connect(home=tmp_path):
                pass


async def test_a_second_exposer_of_one_home_says_so(tmp_path: Path) -> None:
    async with a_server() as server, tunnel.expose(["22"], server=server, home=tmp_path):
        with pytest.raises(tunnel.AlreadyRunningError):
            async with tunnel.expose(["22"], server=server, home=tmp_path):
                pass


async def test_a_forgotten_peer_is_cut_off_within_a_second(tmp_path: Path) -> None:
    """The second itself is held in test_promises.py."""
    exposer, connector = homes(tmp_path)
    heard = Heard()
    with trio.fail_after(20):
        async with (
            a_server() as server,
            tunnel.expose(["22"], server=server, home=exposer, on_event=heard, handler=echo),
            tunnel.connect(await heard.code(), server=server, home=connector, name="friend") as link,
        ):
            assert await shout(link, b"x") == b"x"
            await heard.wait(lambda event: isinstance(event, Paired))
            stream = await link.open_stream()
            Home(exposer).forget("friend")
            with trio.fail_after(5), pytest.raises(tunnel.TunnelError):
                await stream.receive_chunks()
            reason = await link.closed()
            assert "forgotten" in reason.text


async def test_path_policies_the_stricter_wins_and_opposites_are_an_error(tmp_path: Path) -> None:
    exposer, connector = homes(tmp_path)
    heard, told = Heard(), Heard()
    with trio.fail_after(20):
        async with (
            a_server() as server,
            tunnel.expose(["22"], server=server, home=exposer, name="home", path="relay", on_event=heard, handler=echo),
            tunnel.connect(await heard.code(), server=server, home=connector, on_event=told) as link,
        ):
            assert await shout(link, b"relayed") == b"relayed"
            await trio.sleep(0.5)
            assert not link.is_direct
            with pytest.raises(tunnel.ConfigurationError, match="opposite"):
                async with tunnel.connect(peer="home", home=connector, path="direct"):
                    pass


async def test_without_a_server_one_is_embedded_and_the_event_has_its_address(tmp_path: Path) -> None:
    exposer, connector = homes(tmp_path)
    heard = Heard()
    with trio.fail_after(20):
        async with tunnel.expose(["22"], home=exposer, on_event=heard, handler=echo):
            listening = await heard.wait(lambda event: isinstance(event, Listening))
            assert isinstance(listening, Listening)
            assert listening.embedded
            async with tunnel.connect(await heard.code(), server=listening.bind, home=connector) as link:
                assert await shout(link, b"desk") == b"desk"


async def test_a_live_direct_link_outlives_its_server(tmp_path: Path) -> None:
    exposer, connector = homes(tmp_path)
    heard = Heard()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            running = await nursery.start(serve, [("127.0.0.1", 0)])
            server = str(running.addresses[0])
            async with (
                tunnel.expose(["22"], server=server, home=exposer, on_event=heard, handler=echo),
                tunnel.connect(await heard.code(), server=server, home=connector) as link,
            ):
                await link.wait_direct()
                running.stop()
                await trio.sleep(0.3)
                assert await shout(link, b"still here" * 1000) == b"still here" * 1000
                assert 0 < await link.ping() < 5


@pytest.mark.parametrize("path", ["auto", "relay"])
async def test_whoever_is_cancelled_says_goodbye_and_the_other_side_hears_it_at_once(tmp_path: Path, path: Any) -> None:
    """How soon is held in test_promises.py."""
    exposer, connector = homes(tmp_path)
    heard = Heard()
    with trio.fail_after(20):
        async with (
            a_server() as server,
            tunnel.expose(["22"], server=server, home=exposer, path=path, on_event=heard, handler=echo),
        ):
            with trio.CancelScope() as scope:
                async with tunnel.connect(await heard.code(), server=server, home=connector) as link:
                    assert await shout(link, b"x") == b"x"
                    scope.cancel()
                    await trio.sleep_forever()
            with trio.fail_after(5):
                closed = await heard.wait(lambda event: isinstance(event, Closed))
            assert closed.to_dict()["reason"] == "the connecting side has ended"


async def test_an_embedded_server_stands_again_for_the_peers_that_remember_it(tmp_path: Path) -> None:
    exposer, connector = homes(tmp_path)
    heard = Heard()
    with trio.fail_after(20):
        async with (
            tunnel.expose(["22"], home=exposer, name="home", on_event=heard, handler=echo),
        ):
            listening = await heard.wait(lambda event: isinstance(event, Listening))
            assert isinstance(listening, Listening)
            async with tunnel.connect(await heard.code(), server=listening.bind, home=connector):
                await heard.wait(lambda event: isinstance(event, Paired))
        if not listening.bind.startswith("127."):  # on a machine with no address but loopback nobody else could come
            async with tunnel.expose(home=exposer, handler=echo), tunnel.connect(peer="home", home=connector) as link:
                assert await shout(link, b"again") == b"again"


async def test_an_exposer_serves_peers_of_several_servers_at_once(tmp_path: Path) -> None:
    exposer, connector = homes(tmp_path)
    with trio.fail_after(20):
        async with a_server() as one, a_server() as two:
            for server, home in ((one, connector), (two, tmp_path / "third")):
                heard = Heard()
                async with (
                    tunnel.expose(["22"], server=server, home=exposer, name="home", on_event=heard, handler=echo),
                    tunnel.connect(await heard.code(), server=server, home=home),
                ):
                    await heard.wait(lambda event: isinstance(event, Paired))
            port = two.rpartition(":")[2]
            async with (
                tunnel.expose(server=f"localhost:{port}", home=exposer, handler=echo),
                tunnel.connect(home=connector) as first,
                tunnel.connect(home=tmp_path / "third") as second,
            ):
                assert await shout(first, b"1") == b"1"
                assert await shout(second, b"2") == b"2"
