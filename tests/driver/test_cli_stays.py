"""How long `connect` waits for a peer, in virtual time and without a network."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import tunnel.ports.connecting
import tunnel.ports.exposing
import tunnel.room.verbs
from tunnel.cli import lan
from tunnel.cli.connect import Connecting
from tunnel.cli.expose import Exposing
from tunnel.cli.options import with_last_server
from tunnel.cli.render import Output
from tunnel.cli.running import Ending
from tunnel.errors import ConfigurationError, OfflineError, ServerUnreachableError, UnreachableError
from tunnel.ports.serve import Listeners
from tunnel.settings import Settings
from tunnel.setup import machine, servers
from tunnel.shell import places
from tunnel.state.home import Home
from tunnel.state.peers import Peer

TIMEOUT, USED = 10.0, 25.0  # seconds
CODE = "731-crossover-clockwork"


@pytest.mark.parametrize("ends_by", ["its end", "a lost link"])
@pytest.mark.parametrize("away", [5.0, 50.0])
async def test_a_timeout_is_for_each_connection_and_not_for_all_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock, ends_by: str, away: float
) -> None:
    dials = 0

    @asynccontextmanager
    async def connect(*_arguments: Any, **_named: Any) -> AsyncIterator[None]:
        nonlocal dials
        dials += 1
        if dials > 1:
            await trio.sleep(away)
        yield None

    async def use(_self: Connecting, _link: Any) -> bool:
        if dials > 1:
            return True
        await trio.sleep(USED)
        if ends_by == "its end":
            return False
        raise UnreachableError("The link has ended.")

    monkeypatch.setattr(tunnel.ports.connecting, "connect", connect)
    monkeypatch.setattr(places, "has_network", lambda _server: True)
    monkeypatch.setattr(Connecting, "_use", use)
    with Listeners([]) as listeners:
        settings = Settings(server="rv")
        one = Connecting(Home(tmp_path), settings, "home", None, listeners, Output(), TIMEOUT, None, stays=True)
        if away < TIMEOUT:
            assert await one._stay(trio.Event()) == 0
        else:
            with pytest.raises(UnreachableError, match="within 10 seconds"):
                await one._stay(trio.Event())
            assert trio.current_time() >= USED + TIMEOUT
    assert dials == 2


@pytest.mark.parametrize("stays", [True, False])
async def test_a_code_waits_for_a_network_and_for_names_which_is_said_once_but_for_no_server_that_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock, capsys: pytest.CaptureFixture[str], stays: bool
) -> None:
    """`stays` False: as with --once."""
    dials: list[str | None] = []

    @asynccontextmanager
    async def connect(code: str | None, **_named: Any) -> AsyncIterator[None]:
        dials.append(code)
        if trio.current_time() < 1_200.0:
            raise OfflineError("Nobody tells where the server name rv leads: no name server (DNS) answers.")
        raise ServerUnreachableError("No ptunnel server answers at rv.")
        yield None

    monkeypatch.setattr(tunnel.ports.connecting, "connect", connect)
    monkeypatch.setattr(places, "has_network", lambda _server: trio.current_time() >= 600.0)
    with Listeners([]) as listeners:
        one = Connecting(Home(tmp_path), Settings(server="rv"), None, CODE, listeners, Output(), math.inf, None, stays=stays)
        wanted = "No ptunnel server answers" if stays else "not connected to a network"
        with pytest.raises(UnreachableError, match=wanted):
            await one._stay(trio.Event())
    said = capsys.readouterr().err.splitlines()
    if stays:
        assert trio.current_time() >= 1_200.0
        assert [line.partition(":")[0] for line in said] == [
            "This computer is not connected to a network", "Nobody tells where the server name rv leads",
        ]  # fmt: skip
        assert set(dials) == {CODE}
    else:
        assert (trio.current_time() < 1.0, said, dials) == (True, [], [])


@pytest.mark.parametrize("is_ours", [True, False])
async def test_the_server_of_last_time_is_told_from_our_own_once_there_is_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock, capsys: pytest.CaptureFixture[str], is_ours: bool
) -> None:
    """A home server that starts before its network: no address is its own yet, the one that peers know it by neither."""
    Home(tmp_path).save_peer(Peer(name="ben", static=b"\x09" + bytes(31), psk=bytes(32), server="192.0.2.7:24531", last_seen=1.0))
    used: list[str | None] = []

    @asynccontextmanager
    async def expose(*_arguments: Any, settings: Settings, **_named: Any) -> AsyncIterator[None]:
        used.append(settings.server)
        raise OfflineError("far enough")
        yield None

    def hosts() -> list[str]:
        own = ["192.0.2.7"] if is_ours else ["192.0.2.8"]
        return own if trio.current_time() >= 600.0 else []

    monkeypatch.setattr(tunnel.ports.exposing, "expose", expose)
    monkeypatch.setattr(servers, "has_network", lambda *_arguments: bool(hosts()))
    monkeypatch.setattr(machine, "machine_hosts", hosts)
    given = Settings()
    settings, _last = with_last_server(Home(tmp_path), given)
    assert settings.server == "192.0.2.7:24531"
    one = Exposing(Home(tmp_path), given, [], [], (), False, Output(), waits=True)
    with pytest.raises(OfflineError, match="far enough"):
        await one.run(Ending())
    assert used == [None if is_ours else "192.0.2.7:24531"]
    assert trio.current_time() >= 600.0
    assert capsys.readouterr().err.splitlines() == ["This computer is not connected to a network: waiting for one."]


@pytest.mark.parametrize("is_ours", [True, False])
async def test_a_code_before_the_network_is_no_former_server_of_this_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock, capsys: pytest.CaptureFixture[str], is_ours: bool
) -> None:
    Home(tmp_path).save_peer(Peer(name="ben", static=b"\x09" + bytes(31), psk=bytes(32), server="192.0.2.7:24531", last_seen=1.0))
    used: list[str | None] = []

    @asynccontextmanager
    async def connect(*_arguments: Any, settings: Settings, **_named: Any) -> AsyncIterator[None]:
        used.append(settings.server)
        raise ServerUnreachableError("No ptunnel server answers at rv.")
        yield None

    def hosts() -> list[str]:
        own = ["192.0.2.7"] if is_ours else ["192.0.2.8"]
        return own if trio.current_time() >= 600.0 else []

    monkeypatch.setattr(tunnel.ports.connecting, "connect", connect)
    monkeypatch.setattr(places, "has_network", lambda *_arguments: bool(hosts()))
    monkeypatch.setattr(machine, "machine_hosts", hosts)
    given = Settings()
    settings, _last = with_last_server(Home(tmp_path), given)
    with Listeners([]) as listeners:
        one = Connecting(Home(tmp_path), settings, None, CODE, listeners, Output(), math.inf, None, stays=True, given=given)
        with pytest.raises(ConfigurationError if is_ours else ServerUnreachableError, match="add --server" if is_ours else "rv"):
            await one._stay(trio.Event())
    said = capsys.readouterr().err
    assert ("Using the server 192.0.2.7:24531" in said) == (not is_ours)
    assert used == ([] if is_ours else ["192.0.2.7:24531"])


@pytest.mark.parametrize("is_ours", [True, False])
async def test_a_new_room_before_the_network_is_at_no_former_server_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock, is_ours: bool
) -> None:
    """`lan create` at boot: the server of last time may be one that ran here, at an address that this machine has not got yet."""
    monkeypatch.setenv("PTUNNEL_HOME", str(tmp_path))
    monkeypatch.delenv("PTUNNEL_SERVER", raising=False)
    Home(tmp_path).save_peer(Peer(name="ben", static=b"\x09" + bytes(31), psk=bytes(32), server="192.0.2.7:24531", last_seen=1.0))
    used: list[str | None] = []
    entering: list[Any] = []

    @asynccontextmanager
    async def create(*_arguments: Any, settings: Settings, **_named: Any) -> AsyncIterator[None]:
        used.append(settings.server)
        yield None

    def hosts() -> list[str]:
        own = ["192.0.2.7"] if is_ours else ["192.0.2.8"]
        return own if trio.current_time() >= 600.0 else []

    def keep_enter(_home: Home, _settings: Settings, _is_json: bool, _verbose: int, enter: Any, **_named: Any) -> int:
        entering.append(enter)
        return 0

    monkeypatch.setattr(tunnel.room.verbs, "create", create)
    monkeypatch.setattr(servers, "has_network", lambda *_arguments: bool(hosts()))
    monkeypatch.setattr(machine, "machine_hosts", hosts)
    monkeypatch.setattr(lan, "require_interface", lambda: None)
    monkeypatch.setattr(lan, "_run", keep_enter)
    lan.create_command.main(["game"], standalone_mode=False)
    heard: list[Any] = []
    said: list[str] = []
    async with entering[0](said.append, heard.append):
        assert trio.current_time() >= 600.0
    assert [event.code for event in heard] == ["no_network"]
    assert used == [None if is_ours else "192.0.2.7:24531"]
    assert len(said) == (not is_ours)
