"""A command that fails has changed nothing: PTUNNEL_HOME is byte for byte what it was, at whatever step it failed."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.driver.lan import FakeInterface
from tests.unit.cli.test_lan import keep
from tunnel.cli.main import run
from tunnel.errors import ConfigurationError, PermissionDeniedError
from tunnel.pairing.grants import GrantSet
from tunnel.state.home import Home
from tunnel.state.peers import Peer
from tunnel.state.rooms import Rooms

CODE, ROOM_CODE = "731-garden-violin", "731-garden-violin-zoo"
NOWHERE = "127.0.0.1:9"  # nothing answers there


def contents(home: Path) -> dict[str, bytes]:
    """Everything that is remembered; not the locks, nor the sockets of whoever runs."""
    return {
        path.relative_to(home).as_posix(): path.read_bytes()
        for path in sorted(home.rglob("*"))
        if path.is_file() and path.suffix != ".lock" and path.name != "lock" and "run" not in path.relative_to(home).parts
    }


@pytest.fixture
def used(home: Path) -> Path:
    """A home with two peers and two rooms."""
    for name, grants in (("ben", ("22", "nas=a:445")), ("cleo", ("8080",))):
        static = name.encode().ljust(32, b".")
        record = Peer(name=name, static=static, psk=bytes(32), server=NOWHERE, grants=GrantSet.parse(*grants).to_dicts())
        Home(home).save_peer(record)
    keep(home, "game")
    keep(home, "mine", is_creator=True)
    return home


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("ports.connecting", "setup.servers"):
        monkeypatch.setattr(f"tunnel.{module}.SERVER_PATIENCE", 0.2)
    monkeypatch.setattr("tunnel.room.verbs.require_host_interface", lambda: None)
    monkeypatch.setattr("tunnel.room.verbs._host_routes", lambda *_: lambda _interface: [])

    async def fake(config: Any) -> FakeInterface:
        return FakeInterface(config)

    monkeypatch.setattr("tunnel.room.verbs.open_on_host", fake)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as held:
        yield held


Break = Callable[[Path, pytest.MonkeyPatch, ExitStack], None]


def nothing(_home: Path, _patch: pytest.MonkeyPatch, _stack: ExitStack) -> None:
    pass


def disk_full(_home: Path, patch: pytest.MonkeyPatch, _stack: ExitStack) -> None:
    def refuse(*_arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    patch.setattr("tunnel.state.files.os.fsync", refuse)


def expose_runs(home: Path, _patch: pytest.MonkeyPatch, stack: ExitStack) -> None:
    stack.callback(Home(home).lock_expose().release)


def room_runs(home: Path, _patch: pytest.MonkeyPatch, stack: ExitStack) -> None:
    for room in Rooms(Home(home)).all():
        stack.callback(Rooms(Home(home)).hold(room.room).release)


def no_sockets(_home: Path, patch: pytest.MonkeyPatch, _stack: ExitStack) -> None:
    def refuse(**_options: Any) -> Any:
        raise ConfigurationError("There is no address to send from.")

    for module in ("ports.connecting", "ports.exposing", "room.verbs"):
        patch.setattr(f"tunnel.{module}.EndpointDriver", refuse)


def no_interface(_home: Path, patch: pytest.MonkeyPatch, _stack: ExitStack) -> None:
    async def refuse(_config: Any) -> Any:
        raise PermissionDeniedError("The interface was refused.")

    patch.setattr("tunnel.room.verbs.open_on_host", refuse)


def unreadable(home: Path, _patch: pytest.MonkeyPatch, _stack: ExitStack) -> None:
    (home / "peers.json").write_text("{damaged")


#: arguments, what is broken, exit codes, PTUNNEL_CODE
CASES: list[tuple[list[str], Break, set[int], str]] = [
    (["expose", "3389", "--to", "ben"], expose_runs, {8}, ""),
    (["expose", "3389", "--to", "ben", "--only"], expose_runs, {8}, ""),
    (["expose", "3389", "--to", "ben", "--to", "nobody"], nothing, {2}, ""),
    (["expose", "3389", "0", "--to", "ben"], nothing, {2}, ""),
    (["expose", "3389", "--to", "ben", "--to", "cleo"], disk_full, {7}, ""),
    (["expose", "3389", "--to", "ben", "--server", NOWHERE], no_sockets, {2}, ""),
    (["expose", "3389", "--to", "ben"], unreadable, {7}, ""),
    (["expose", "3389", "--server", NOWHERE], nothing, {3}, ""),
    (["expose", "3389", "--server", NOWHERE], expose_runs, {8}, ""),
    (["connect", "--server", NOWHERE], nothing, {3}, CODE),
    (["connect", "--server", NOWHERE], no_sockets, {2}, CODE),
    (["connect", "--server", NOWHERE], nothing, {2}, ROOM_CODE),
    (["connect", "--server", "unknown.invalid"], nothing, {3}, CODE),
    (["connect", "nobody"], nothing, {2}, ""),
    (["lan", "create", "--name", "new", "--keep", "--server", NOWHERE], nothing, {3}, ""),
    (["lan", "create", "--name", "new", "--keep", "--server", NOWHERE], no_interface, {6}, ""),
    (["lan", "create", "--name", "new", "--keep", "--to", "nobody"], nothing, {2}, ""),
    (["lan", "create", "--name", "new", "--keep", "--server", NOWHERE], no_sockets, {2}, ""),
    (["lan", "join", "--keep", "--server", NOWHERE], nothing, {3}, ROOM_CODE),
    (["lan", "join", "--keep", "--server", NOWHERE], no_interface, {6}, ROOM_CODE),
    (["lan", "join", "--keep", "--server", NOWHERE], nothing, {2}, CODE),
    (["lan", "join", "other"], nothing, {2}, ""),
    (["lan", "remove", "ben"], nothing, {2}, ""),
    (["lan", "forget", "other"], nothing, {2}, ""),
    (["lan", "forget", "game"], room_runs, {8}, ""),
    (["exec", "--keep", "--server", NOWHERE, "--", "no-such-command"], nothing, {127}, ROOM_CODE),
    (["exec", "--keep", "--server", NOWHERE, "--", "/etc/passwd"], nothing, {126}, ROOM_CODE),
    (["peers", "rename", "ben", "cleo"], nothing, {2}, ""),
    (["peers", "rename", "nobody", "x"], nothing, {2}, ""),
    (["peers", "rename", "ben", "dan"], disk_full, {7}, ""),
    (["peers", "forget", "ben", "nobody"], nothing, {2}, ""),
    (["peers", "forget", "ben", "cleo"], disk_full, {7}, ""),
    (["revoke", "nobody"], nothing, {2}, ""),
    (["revoke", "ben", "22", "23"], nothing, {2}, ""),
    (["revoke", "ben"], disk_full, {7}, ""),
    (["revoke", "ben", "22"], unreadable, {7}, ""),
]


@pytest.mark.parametrize(
    ("arguments", "break_it", "codes", "code"), CASES, ids=[f"{' '.join(case[0])}, {case[1].__name__}" for case in CASES]
)
def test_a_command_that_fails_has_changed_nothing(
    arguments: list[str],
    break_it: Break,
    codes: set[int],
    code: str,
    used: Path,
    stack: ExitStack,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if code:
        monkeypatch.setenv("PTUNNEL_CODE", code)
    break_it(used, monkeypatch, stack)
    before = contents(used)
    assert run(arguments) in codes, capsys.readouterr().err
    assert contents(used) == before


def test_a_port_in_use_is_found_before_anything_is_sent_or_kept(
    used: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PTUNNEL_CODE", CODE)
    before = contents(used)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert run(["connect", "--server", NOWHERE, "--forward", f"{taken.getsockname()[1]}:22"]) == 2
    assert "already uses" in capsys.readouterr().err
    assert contents(used) == before


def test_a_port_in_use_is_said_before_anybody_is_asked_for_a_code(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("tunnel.cli.prompt.can_ask", lambda: True)
    monkeypatch.setattr("tunnel.cli.prompt.ask_code", lambda: asked.append("code") or CODE)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert run(["connect", "--server", NOWHERE, "--forward", f"{taken.getsockname()[1]}:22"]) == 2
    assert "already uses" in capsys.readouterr().err
    assert not asked


@pytest.mark.parametrize(
    "arguments",
    [["peers", "rename", "a", "b"], ["peers", "forget", "a"], ["revoke", "a"], ["expose", "22", "--to", "a"], ["connect"]],
)
def test_what_cannot_be_done_in_an_empty_home_makes_none(arguments: list[str], home: Path) -> None:
    assert run(arguments) == 2
    assert not home.exists()
