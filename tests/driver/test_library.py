"""The programs of docs/library.md do what the page says, as processes of their own; its names are the public ones."""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

import tunnel
from tests.driver.meeting import Heard, a_server
from tests.driver.programs import PATIENCE_S, Lab, echo_through, pair
from tests.style.source import ROOT

PAGE = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
PROGRAMS = dict(re.findall(r"^```python\n# (\w+\.py)[^\n]*\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
#: In the place of the interface that a room opens, which needs privilege.
WITHOUT_PRIVILEGE = """
import runpy, sys
from tests.driver.lan import FakeInterface
import tunnel.room.verbs
async def open_on_host(config): return FakeInterface(config)
tunnel.room.verbs.open_on_host = open_on_host
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    for name, text in PROGRAMS.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    lab = Lab(tmp_path)
    yield lab
    lab.close()


class Running:
    """One program of the page, whose lines are read as they come."""

    def __init__(self, lab: Lab, home: Path, name: str, *arguments: str, before: tuple[str, ...] = ()) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, *before, str(lab.exposer.parent / name), *arguments],
            env={**os.environ, "PTUNNEL_HOME": str(home), "PTUNNEL_SERVER": lab.server, "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._limit = threading.Timer(2 * PATIENCE_S, self.process.kill)
        self._limit.start()

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def rest(self) -> list[str]:
        """Until it has ended, well."""
        assert self.process.stdout is not None
        lines = self.process.stdout.read().splitlines()
        assert self.process.wait() == 0, self.name
        return lines

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self._limit.cancel()
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def udp_echo() -> Iterator[int]:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    sock.settimeout(4 * PATIENCE_S)

    def serve() -> None:
        while True:
            try:
                data, sender = sock.recvfrom(65_536)
                sock.sendto(data, sender)
            except OSError:
                return
            if not data:
                return

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    port = sock.getsockname()[1]
    yield port
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
        last.sendto(b"", ("127.0.0.1", port))
    thread.join(PATIENCE_S)
    sock.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def test_the_page_has_programs() -> None:
    assert sorted(PROGRAMS) == ["ask.py", "forward.py", "offer.py", "reach.py", "room.py", "share.py", "talk.py"]


def test_ports_of_a_remembered_peer_are_reached_and_refusals_are_exceptions(lab: Lab, udp_echo: int) -> None:
    closed = free_port()
    _exposing, connecting, _bind = pair(lab)
    connecting.end()
    granted = lab.ask(lab.exposer, "expose", str(closed), f"{udp_echo}/udp", "--to", "friend", "--json")
    assert granted.returncode == 0, granted
    for port, lines in ((lab.port, ["hello"]), (closed, ["nothing listens there"]), (1, ["home does not share that port"])):
        with Running(lab, lab.connector, "reach.py", str(port)) as program:
            assert program.rest() == lines
    with Running(lab, lab.connector, "ask.py", str(udp_echo)) as program:
        assert program.rest() == ["hello"]


def test_a_port_is_forwarded_as_long_as_the_block_runs(lab: Lab) -> None:
    exposing, connecting, _bind = pair(lab)
    connecting.end()
    with Running(lab, lab.connector, "forward.py", f"0:{lab.port}") as program:
        assert echo_through(program.line(), b"hello") == b"hello"
        assert program.line().startswith("direct ")
        exposing.end()
        assert program.line().startswith("ended: ")
        assert program.rest() == []


def test_a_port_is_shared_and_events_are_typed(lab: Lab) -> None:
    with Running(lab, lab.exposer, "share.py", str(lab.port)) as program:
        word, code = program.line().split()
        assert word == "code"
        friend = lab.run(lab.connector, "connect", "--server", lab.server, "--forward", f"0:{lab.port}", PTUNNEL_CODE=code)
        assert echo_through(friend.wait("forward")["bind"], b"hello") == b"hello"
        assert program.line().startswith("paired ")


def test_two_programs_talk_without_any_grant(lab: Lab) -> None:
    with Running(lab, lab.exposer, "offer.py") as offering:
        code = offering.line()
        with Running(lab, lab.connector, "talk.py", code) as talking:
            assert talking.rest() == ["HELLO"]
        assert '"grants": []' in (lab.exposer / "peers.json").read_text()
        with Running(lab, lab.connector, "talk.py", code) as again:
            [sentence] = again.rest()
            assert "code" in sentence


def test_a_room_is_opened(lab: Lab) -> None:
    with Running(lab, lab.exposer, "room.py", "game", before=("-c", WITHOUT_PRIVILEGE)) as program:
        said = [program.line() for _ in range(3)]
        assert any(line.startswith("code ") for line in said)
        assert "anna True True" in said
        assert any(re.fullmatch(r"anna 10\.[\d.]+ online", line) for line in said)


def public_names() -> set[str]:
    names = {*tunnel.__all__, *tunnel.events.__all__}
    names |= {f"lan.{name}" for name in tunnel.lan.__all__ if name[0].islower()}
    return names | {name for name in tunnel.lan.__all__ if name[0].isupper()}


def test_every_public_name_is_on_the_page_and_has_its_docstring() -> None:
    for name in public_names():
        assert re.search(rf"\b{re.escape(name)}\b", PAGE), name
    for name in tunnel.__all__:
        assert inspect.getdoc(getattr(tunnel, name)), name
    for kind in (tunnel.Link, tunnel.Exposure, tunnel.TunnelStream, tunnel.UdpFlow, tunnel.lan.LanRoom):
        for name, member in inspect.getmembers(kind):
            if not name.startswith("_") and (callable(member) or isinstance(member, property)):
                assert inspect.getdoc(member), f"{kind.__name__}.{name}"


def test_dir_and_help_list_the_public_names_and_nothing_else() -> None:
    assert set(dir(tunnel)) == {*tunnel.__all__, "__version__"}
    for verb in (tunnel.connect, tunnel.expose, tunnel.lan.create, tunnel.lan.join):
        hidden = [name for name in inspect.signature(verb).parameters if "seams" in name or name == "traces"]
        assert hidden == []
    for kind in (tunnel.Exposure, tunnel.lan.LanRoom):
        assert {"handle_event", "set_public", "set_place", "tell_listening"} & set(dir(kind)) == set()


def test_the_rooms_can_be_imported_as_a_module() -> None:
    code = "import tunnel.lan, tunnel.events; tunnel.lan.create; tunnel.events.Event; from tunnel import lan; print(lan.__name__)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    assert found.stdout == "tunnel.lan\n"


@pytest.mark.parametrize(
    "what", ["tunnel.connect(peer='home')", "tunnel.expose(['22'])", "tunnel.lan.join('a')", "tunnel.lan.create()"]
)
def test_under_asyncio_it_says_that_it_runs_under_trio(what: str) -> None:
    import asyncio

    async def main() -> None:
        async with eval(what):
            pass

    with pytest.raises(tunnel.ConfigurationError, match=r"^The library runs under trio: trio\.run\(main\)\.$"):
        asyncio.run(main())


async def test_who_reads_no_datagrams_loses_those_beyond_the_limit(tmp_path: Path, udp_echo: int) -> None:
    from tunnel.ports.public_link import MAX_UNREAD

    heard = Heard()
    with trio.fail_after(50):
        async with (
            a_server() as server,
            tunnel.expose([f"{udp_echo}/udp"], server=server, home=tmp_path / "home", on_event=heard),
            tunnel.connect(await heard.code(), server=server, home=tmp_path / "friend") as link,
            await link.open_udp(udp_echo) as flow,
        ):
            flow._take([b"x"] * (MAX_UNREAD + 7))
            assert flow.lost == 7
            assert [await flow.receive() for _ in range(MAX_UNREAD)] == [b"x"] * MAX_UNREAD
            await flow.aclose()
            for use in (flow.receive, lambda: flow.send(b"x")):
                with pytest.raises(tunnel.UnreachableError, match="has ended"):
                    await use()


async def test_what_cannot_be_opened_is_refused_by_its_own_exception(tmp_path: Path) -> None:
    heard = Heard()
    with trio.fail_after(50):
        async with (
            a_server() as server,
            tunnel.expose([str(closed := free_port())], server=server, home=tmp_path / "home", on_event=heard) as exposure,
            tunnel.connect(await heard.code(), server=server, home=tmp_path / "friend") as link,
        ):
            with pytest.raises(tunnel.RefusedError, match="nothing listens there"):
                await link.open_tcp(closed)
            with pytest.raises(tunnel.PermissionDeniedError, match="not shared with you"):
                await link.open_udp("nas")
            with pytest.raises(tunnel.ConfigurationError):
                await link.open_tcp("no target at all")
            with pytest.raises(tunnel.ConfigurationError, match="already uses"):
                async with link.forward(f"127.0.0.1:{server.rpartition(':')[2]}:22/udp"):
                    pass
            exposure.links[0].close("that was all")
            await link.closed()
            with pytest.raises(tunnel.UnreachableError):
                await link.open_tcp(closed)


async def test_the_other_ends_of_a_forward(tmp_path: Path) -> None:
    """A Unix socket, a machine in a network that is shared, a SOCKS door, and the peer listening for us; with a rate."""

    async def shout(stream: trio.SocketStream) -> None:
        async with stream:
            with contextlib.suppress(trio.BrokenResourceError):
                async for data in stream:
                    await stream.send_all(data.upper())

    async def exchange(stream: trio.abc.HalfCloseableStream) -> bytes:
        async with stream:
            await stream.send_all(b"hello")
            await stream.send_eof()
            return b"".join([data async for data in stream])

    heard = Heard()
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port, there = listener.socket.getsockname()[1], free_port()
    grants = [f"net/127.0.0.1:{port}", f"remote/{there}", str(port)]
    with trio.fail_after(50):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, shout, [listener])
            async with (
                a_server() as server,
                tunnel.expose(grants, server=server, home=tmp_path / "home", on_event=heard, rate="10M"),
                tunnel.connect(await heard.code(), server=server, home=tmp_path / "friend") as link,
            ):
                assert await exchange(await link.reach("127.0.0.1", port)) == b"HELLO"
                with pytest.raises(tunnel.PermissionDeniedError):
                    await link.reach("127.0.0.1", there)
                for host in ("", "a b", "x" * 300):
                    with pytest.raises(tunnel.ConfigurationError):
                        await link.reach(host, port)
                async with link.forward(f"unix:{tmp_path}/s:{port}", rate=1_000_000) as forward:
                    assert forward.addresses == (f"unix:{tmp_path}/s",)
                    assert await exchange(await trio.open_unix_socket(f"{tmp_path}/s")) == b"HELLO"
                async with link.socks("0") as door:
                    assert [each.target for each in door.forwards] == ["socks"]
                async with link.remote(f"{there}:{port}"):
                    assert await exchange(await trio.open_tcp_stream("127.0.0.1", there)) == b"HELLO"
            nursery.cancel_scope.cancel()


@pytest.mark.time_limit(600)
def test_the_programs_of_the_page_pass_a_strict_type_check(tmp_path: Path) -> None:
    for name, text in PROGRAMS.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--cache-dir", str(tmp_path / "cache")]
    found = subprocess.run(
        [*command, *(str(tmp_path / name) for name in sorted(PROGRAMS))],
        env={**os.environ, "MYPYPATH": str(ROOT)}, cwd=tmp_path, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout
