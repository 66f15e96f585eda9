"""An exception in one connection, flow or question on the control socket ends that one; the ones beside it go on."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.driver import forwarding as over_tcp
from tests.driver import test_forward_udp as over_udp
from tests.driver.test_control import FakeLink, asked
from tunnel.control import client as control_client
from tunnel.control.messages import Answer, Bench, Check, Forget, Ping, Remove, Request, Status, encode_line
from tunnel.control.server import Process, serve_control
from tunnel.control.sockets import connect, socket_path
from tunnel.faults import Faults
from tunnel.host.gateway import Gateway
from tunnel.ports import outward, tcp, udp
from tunnel.ports.outlet import Outlet
from tunnel.ports.udp import UdpForward
from tunnel.shell import portmap
from tunnel.shell.portmap import PortMapKeeper


class Fault(Exception):
    """Nobody expects it."""


def fails(*_arguments: Any, **_named: Any) -> Any:
    raise Fault("in a test")


@pytest.fixture(autouse=True)
def over_the_core(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (over_tcp, over_udp):
        monkeypatch.setitem(module.IS_CORE, "core", True)


async def until(condition: Any) -> None:
    with trio.fail_after(10):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.002)


# --- connections


class Nth:
    """The call of `owner.name` after `skip` others fails; only calls after begin() count."""

    def __init__(self, patch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        self.left = -1
        whole = getattr(owner, name)

        def call(*arguments: Any, **named: Any) -> Any:
            self.left -= 1
            return fails() if self.left == 0 else whole(*arguments, **named)

        patch.setattr(owner, name, call)

    def begin(self, skip: int = 0) -> None:
        self.left = skip + 1


class Limit:
    def __ge__(self, count: int) -> bool:
        return count <= 1_024


async def echo(stream: trio.SocketStream) -> None:
    with contextlib.suppress(trio.BrokenResourceError):
        await over_tcp.echo(stream)


@pytest.mark.parametrize(
    "name", ["_upload_all", "_download", "IOV_MAX", "set_up", "serve_tcp", "read_message", "_abort", "write_chunks"]
)
async def test_a_fault_in_one_tcp_connection_cuts_that_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner: Any = tcp.Relay if name in ("_upload_all", "_download", "_abort") else tcp
    if name == "IOV_MAX":  # which the sink compares with
        monkeypatch.setattr(tcp, name, Limit())
        owner, name = Limit, "__ge__"
    if name in ("serve_tcp", "read_message"):
        from tunnel.ports import serve as owner
    met = Nth(monkeypatch, owner, name)
    async with over_tcp.forwarded(echo) as bench:
        async with await bench.connect() as steady:
            for _ in range(3):
                await steady.send_all(b"tick")
                assert await steady.receive_some() == b"tick"
            met.begin()
            async with await bench.connect() as other:
                try:
                    with trio.move_on_after(1):
                        await other.send_all(b"hello")
                        while await other.receive_some():
                            await other.send_all(b"hello" * 10_000)
                            if name == "_abort":
                                other.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, tcp.LINGER_RST)
                                other.socket.close()
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    pass
            await until(lambda: met.left <= 0)
            met.left = -1
            for _ in range(3):
                await steady.send_all(b"tock")
                assert await steady.receive_some() == b"tock"
        async with await bench.connect() as fresh:
            await fresh.send_all(b"hello")
            assert await fresh.receive_some() == b"hello"
        faults = bench.near.faults.counts + bench.exposed._link.faults.counts
        assert faults.total() == 1
        await until(lambda: bench.listeners.counters.tcp_active == 1)  # of `steady`, which has said no more


async def test_a_fault_in_one_udp_flow_ends_that_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    async with over_udp.forwarded(idle=0.8) as bench:
        with await bench.client() as steady, await bench.client() as other:
            await steady.send(b"tick")
            assert await steady.recv(100) == b"tick"
            await other.send(b"hello")
            assert await other.recv(100) == b"hello"
            theirs = other.getsockname()
            whole = Outlet.send
            monkeypatch.setattr(Outlet, "send", lambda self, batch: fails() if self._address == theirs else whole(self, batch))
            await other.send(b"hello")
            await until(lambda: bench.near.faults.counts)
            for _ in range(20):
                await steady.send(b"tock")
                assert await steady.recv(100) == b"tock"
            assert bench.near.faults.counts == {"flow": 1}


@pytest.mark.parametrize("name", ["_drain", "_pass_on", "_start", "_carry", "serve_udp", "_return_datagrams"])
async def test_a_fault_in_the_udp_forward_leaves_the_flows_beside_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner: Any = UdpForward if name in ("_drain", "_pass_on", "_start", "_carry") else udp
    if name == "_return_datagrams":
        owner = outward.Outward
    if name == "serve_udp":
        from tunnel.ports import serve as owner
    met = Nth(monkeypatch, owner, name)
    async with over_udp.forwarded() as bench:
        with await bench.client() as steady, await bench.client() as other:
            await steady.send(b"tick")
            assert await steady.recv(100) == b"tick"
            met.begin()
            await other.send(b"hello")
            await until(lambda: met.left <= 0)
            for _ in range(20):
                await steady.send(b"tock")
                assert await steady.recv(100) == b"tock"
            with await bench.client() as fresh:
                await fresh.send(b"hello")
                assert await fresh.recv(100) == b"hello"
        faults = bench.near.faults.counts + bench.exposed._link.faults.counts
        assert faults.total() == 1


# --- the control socket


def links(link: Any) -> Callable[[], list[Any]]:
    return lambda: [link]


class Failing(FakeLink):
    """Whatever is asked of it."""

    def status(self) -> Any:
        return fails()

    async def ping(self) -> float:
        return float(fails())

    async def wait_direct(self) -> None:
        fails()

    def close(self, reason: str, code: int) -> None:
        fails()


async def measure_nothing(_link: object, _seconds: float, say: Any) -> None:
    await say({"what": "stream"})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        round(float("inf"))  # OverflowError


QUESTIONS: dict[str, Request] = {
    "status": Status(),
    "ping": Ping(count=1),
    "bench": Bench(),
    "check": Check(),
    "forget": Forget("home"),
    "remove": Remove("ben"),
}


@pytest.mark.parametrize("verb", QUESTIONS)
async def test_a_question_that_meets_a_fault_is_answered_so_and_the_service_goes_on(verb: str, tmp_path: Path) -> None:
    told: list[str] = []
    process = Process(role="connect", links=links(Failing()), bench=measure_nothing, remove=fails, faults=Faults(told.append))
    async with serve_control(tmp_path, process):
        answers = await asked(tmp_path, QUESTIONS[verb])
        assert (answers[-1]["event"], answers[-1]["code"]) == ("error", "internal")
        assert "its links go on" in answers[-1]["message"]
        assert process.faults.counts == {"control": 1}
        assert told == [
            f"A fault in ptunnel left a question for {verb} unanswered; all else goes on. Please report it: details with -v."
        ]
        process.links = links(FakeLink())
        [status] = await asked(tmp_path, Status())
        assert status["event"] == "status"


async def test_a_client_that_leaves_in_the_middle_of_an_answer_is_no_fault(tmp_path: Path) -> None:
    begun, left = trio.Event(), trio.Event()

    async def measure(_link: object, _seconds: float, say: Any) -> None:
        begun.set()
        await left.wait()
        for _ in range(10_000):
            await say({"what": "stream", "padding": "x" * 1000})

    process = Process(role="connect", links=links(FakeLink()), bench=measure)
    async with serve_control(tmp_path, process):
        [pid] = control_client.processes(tmp_path)
        sock = connect(socket_path(tmp_path, pid))
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        await stream.send_all(encode_line(Bench()))
        await begun.wait()
        await stream.aclose()
        left.set()
        [status] = await asked(tmp_path, Status())
        assert status["event"] == "status"
        assert not process.faults.counts


async def test_an_answer_that_cannot_be_taken_becomes_an_error_and_the_others_are_heard(tmp_path: Path) -> None:
    answers: list[Answer] = []

    def take(_pid: int, answer: Answer) -> None:
        if answer["event"] == "status":
            answer["no such key"]  # as a command does that knows other answers
        answers.append(answer)

    async with serve_control(tmp_path, Process(role="connect", links=list)):
        await control_client.ask_all(tmp_path, Status(), take)
    assert [answer["code"] for answer in answers] == ["bad_answer"]


# --- the router


async def test_a_fault_with_one_port_at_the_router_leaves_the_other_port_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that met it is asked for anew in a moment."""
    asked_for: list[int] = []
    monkeypatch.setattr(portmap, "is_translated", lambda _host: True)
    whole = PortMapKeeper._serve

    async def serve(self: PortMapKeeper, mapper: Any, sock: Any, gateway: Any, port: int, upnp: Any) -> None:
        asked_for.append(port)
        if port == 1 and asked_for.count(1) < 3:
            fails()
        await whole(self, mapper, sock, gateway, port, upnp)

    monkeypatch.setattr(PortMapKeeper, "_serve", serve)
    monkeypatch.setattr("tunnel.shell.lasting.FIRST_PAUSE", 0.01)
    faults = Faults()
    keeper = PortMapKeeper(on_change=lambda *_: None, gateway=lambda: Gateway("127.0.0.1", "127.0.0.1"), faults=faults)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.run, (1, 2))
        await until(lambda: asked_for.count(1) >= 3)
        assert asked_for.count(2) == 1
        assert 2 in keeper._mappers
        nursery.cancel_scope.cancel()
    assert set(faults.counts) == {"port mapping"}
