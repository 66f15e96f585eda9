"""Reverse forwards: the peer listens, where it has allowed that, and nowhere else."""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from tests.driver.fake_link import FakeLink, linked_pair
from tests.driver.programs import Lab, echo_through
from tunnel.errors import ConfigurationError
from tunnel.pairing.grants import GrantSet
from tunnel.ports import remote, serve
from tunnel.ports.counters import Notices
from tunnel.ports.open import Accepted, Listen, decode_open, encode, read_message
from tunnel.ports.rate import MIN_BURST, Limit
from tunnel.ports.remote import FIRST_PAUSE, LONGEST_PAUSE, MAX_LISTENING, Remote, Remotes, keep_remote, parse_remotes
from tunnel.ports.serve import Exposed
from tunnel.shell.stream import StreamCode, StreamResetError


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as placeholder:
        return int(placeholder.getsockname()[1])


def listens(host: str, port: int) -> bool:
    """Whether somebody does at this very address: LISTEN is 0A (proc(5))."""
    address = f"{int.from_bytes(socket.inet_aton(host), 'little'):08X}:{port:04X}"
    return f"{address} 00000000:0000 0A" in Path("/proc/net/tcp").read_text(encoding="ascii")


class Bench:
    def __init__(self, exposed: Exposed, near: FakeLink, ready: list[Remote], here: list[str], there: list[str]) -> None:
        self.exposed = exposed
        self.near = near
        self.ready = ready
        self.here = here
        self.there = there


@asynccontextmanager
async def asked(grants: Callable[[], GrantSet], *remotes: str, rate: float | None = None) -> AsyncIterator[Bench]:
    """`here` is said to who connects, `there` to who exposes; `rate` is of the first of `remotes`."""
    near, far = linked_pair()
    ready: list[Remote] = []
    here: list[str] = []
    there: list[str] = []
    parsed = parse_remotes(remotes)
    exposed = Exposed(far, lambda kind, target: grants().allows(kind, target), notice=there.append, grants=grants)
    places = Remotes()
    places.add(parsed)
    if rate is not None:
        places.add(parsed[:1], Limit(rate))
    ours = Exposed(near, lambda _kind, _target: None, remotes=places)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(far.serve_streams, exposed.handle)
        nursery.start_soon(near.serve_streams, ours.handle)
        for each in parsed:
            nursery.start_soon(partial(keep_remote, near, each, ready.append, Notices(here.append)))
        with trio.fail_after(60):
            yield Bench(exposed, near, ready, here, there)
        nursery.cancel_scope.cancel()


async def shout(stream: trio.SocketStream) -> None:
    async with stream:
        with suppress(trio.BrokenResourceError):
            async for chunk in stream:
                await stream.send_all(chunk.upper())


@asynccontextmanager
async def program() -> AsyncIterator[int]:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, shout, [listener])
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await trio.lowlevel.checkpoint()


async def exchange(port: int, host: str = "127.0.0.1") -> bytes:
    async with await trio.open_tcp_stream(host, port) as client:
        await client.send_all(b"hello")
        await client.send_eof()
        return b"".join([chunk async for chunk in client])


SIZE = 300_000
SLOW = 400_000.0  # bytes per second


async def whole(port: int) -> float:
    """For how many seconds SIZE goes there and comes back."""
    began, received = time.monotonic(), 0
    async with await trio.open_tcp_stream("127.0.0.1", port) as client, trio.open_nursery() as nursery:

        async def send() -> None:
            await client.send_all(bytes(SIZE))
            await client.send_eof()

        nursery.start_soon(send)
        async for chunk in client:
            received += len(chunk)
    assert received == SIZE
    return time.monotonic() - began


async def test_what_comes_in_there_is_as_slow_as_it_was_told_and_loses_nothing() -> None:
    """By the real clock, with nothing asserted of it but how long it takes at least."""
    there = free_port()
    grants = GrantSet.parse(f"remote/{there}")
    async with program() as here, asked(lambda: grants, f"{there}:{here}", rate=SLOW) as bench:
        await until(lambda: bench.ready)
        assert await whole(there) > 0.95 * (SIZE - MIN_BURST) / SLOW


async def test_what_is_dropped_and_comes_back_without_a_rate_has_none() -> None:
    places, asked_for = Remotes(), parse_remotes(["8080:3000"])
    limit = Limit(SLOW)
    places.add(asked_for, limit)
    assert places.limit("127.0.0.1", 8080) is limit
    places.drop(asked_for)
    places.add(asked_for)
    assert places.limit("127.0.0.1", 8080) is None


async def test_what_connects_there_reaches_a_program_here_over_loopback_alone() -> None:
    there = free_port()
    grants = GrantSet.parse(f"remote/{there}")
    async with program() as here, asked(lambda: grants, f"{there}:{here}") as bench:
        await until(lambda: bench.ready)
        assert await exchange(there) == b"HELLO"
        if socket.has_ipv6:
            assert await exchange(there, "localhost") == b"HELLO"
        assert bench.there == [f"friend listens at 127.0.0.1:{there} of this machine now."]
        assert listens("127.0.0.1", there)
        assert not listens("0.0.0.0", there)
    with pytest.raises(OSError):
        await trio.open_tcp_stream("127.0.0.1", there)


async def test_where_it_was_not_allowed_nobody_listens() -> None:
    """Another port, another address, all addresses, and by other kinds of grants for the same port."""
    there, other = free_port(), free_port()
    grants = GrantSet.parse(f"remote/{there}", str(other), f"net/127.0.0.1:{other}")
    _near, far = linked_pair()
    exposed = Exposed(far, grants.allows, grants=lambda: grants)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(far.serve_streams, exposed.handle)
        for host, port in (("127.0.0.1", other), ("*", there), ("0.0.0.0", there), ("::1", there), ("127.0.0.2", there)):
            stream = await far.peer.open_stream(encode(Listen(host, port)))
            with trio.fail_after(30), pytest.raises(StreamResetError) as caught:
                await read_message(stream)
            assert caught.value.code == StreamCode.DENIED
        nursery.cancel_scope.cancel()
    assert exposed.counters.tcp_denied == 5


async def test_all_addresses_are_listened_at_where_that_was_said_on_both_sides() -> None:
    there = free_port()
    grants = GrantSet.parse(f"remote/*:{there}")
    async with program() as here, asked(lambda: grants, f"*:{there}:{here}") as bench:
        await until(lambda: bench.ready)
        assert await exchange(there) == b"HELLO"
        assert listens("0.0.0.0", there)


async def test_a_refusal_is_a_sentence_on_both_sides_and_is_asked_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.01)
    there = free_port()
    grants = GrantSet()
    async with program() as here, asked(lambda: grants, f"{there}:{here}") as bench:
        await until(lambda: bench.here)
        assert bench.here == [
            f"home does not listen at 127.0.0.1:{there} for this machine: "
            f"ask there for 'ptunnel expose --allow-remote {there} --to NAME'."
        ]
        [said] = bench.there
        assert said.startswith(f"friend asked to listen at port {there} here, which is not allowed to them: ")
        grants = GrantSet.parse(f"remote/{there}")
        await until(lambda: bench.ready)
        assert await exchange(there) == b"HELLO"


async def test_a_grant_that_is_taken_back_ends_what_is_open_and_the_listening() -> None:
    there = free_port()
    grants = GrantSet.parse(f"remote/{there}", "22")
    async with program() as here, asked(lambda: grants, f"{there}:{here}") as bench:
        await until(lambda: bench.ready)
        async with await trio.open_tcp_stream("127.0.0.1", there) as client:
            await client.send_all(b"x")
            assert await client.receive_some() == b"X"
            grants, taken = grants.without(f"remote/{there}")
            assert len(taken) == 1
            bench.exposed.look_again()
            with pytest.raises(trio.BrokenResourceError):
                await client.receive_some()
        await until(lambda: bench.here)
        with pytest.raises(OSError):
            await trio.open_tcp_stream("127.0.0.1", there)


async def test_whoever_wants_it_no_longer_ends_the_listening_and_nothing_else() -> None:
    """Be it by a reset, as a connecting side that leaves does."""
    there = free_port()
    grants = GrantSet.parse(f"remote/{there}")
    near, far = linked_pair()
    exposed = Exposed(far, grants.allows, grants=lambda: grants)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(far.serve_streams, exposed.handle)
        with trio.fail_after(30):
            for end in ("reset", "finish"):
                stream = await near.open_stream(encode(Listen("127.0.0.1", there)))
                await read_message(stream)
                assert listens("127.0.0.1", there)
                if end == "reset":
                    stream.reset(StreamCode.CANCELLED)
                else:
                    stream.finish()
                await until(lambda: not listens("127.0.0.1", there))
        nursery.cancel_scope.cancel()


async def test_a_port_that_is_taken_there_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        there = other.getsockname()[1]
        grants = GrantSet.parse(f"remote/{there}")
        async with asked(lambda: grants, f"{there}:22") as bench:
            await until(lambda: bench.here)
            assert bench.here == [f"home does not listen at 127.0.0.1:{there} for this machine: another program listens there."]
            assert bench.there[0].startswith(f"friend asked to listen at 127.0.0.1:{there} here: Another program already uses")


async def test_who_has_asked_for_nothing_is_connected_to_nothing() -> None:
    """The exposing side cannot reach programs here by saying that they were asked for."""
    near, _far = linked_pair()
    ours = Exposed(near, lambda _kind, _target: None, remotes={("127.0.0.1", 8080): ("127.0.0.1", 22)})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(near.serve_streams, ours.handle)
        for host, port in (("127.0.0.1", 22), ("127.0.0.1", 8081), ("*", 8080)):
            stream = await near.peer.open_stream(encode(Accepted(host, port)))
            with trio.fail_after(30), pytest.raises(StreamResetError) as caught:
                await read_message(stream)
            assert caught.value.code == StreamCode.DENIED
        nursery.cancel_scope.cancel()
    assert ours.counters.tcp_denied == 3


async def test_one_link_has_us_listen_on_so_many_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "MAX_LISTENING", 1)
    first, second = free_port(), free_port()
    grants = GrantSet.parse(f"remote/{first}", f"remote/{second}")
    async with asked(lambda: grants, f"{first}:22") as bench:
        await until(lambda: bench.ready)
        stream = await bench.near.open_stream(encode(Listen("127.0.0.1", second)))
        with pytest.raises(StreamResetError) as caught:
            await read_message(stream)
        assert caught.value.code == StreamCode.INTERNAL


async def test_an_older_exposer_is_spoken_of_and_asked_ever_less_often(autojump_clock: trio.testing.MockClock) -> None:
    near, far = linked_pair()
    times: list[float] = []

    async def old(stream: Any) -> None:
        await read_message(stream)
        times.append(trio.current_time())
        stream.reset(StreamCode.INTERNAL)
        stream.stop(StreamCode.INTERNAL)

    said: list[str] = []
    with trio.move_on_after(300):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(far.serve_streams, old)
            [one] = parse_remotes(["8080:3000"])
            nursery.start_soon(partial(keep_remote, near, one, lambda _remote: None, Notices(said.append)))
    assert said[0] == "home does not listen at 127.0.0.1:8080 for this machine: it is an older ptunnel."
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert pauses[0] == pytest.approx(FIRST_PAUSE, abs=0.1)
    assert max(pauses) == pytest.approx(LONGEST_PAUSE, abs=0.1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8080", Remote("127.0.0.1", 8080, ("127.0.0.1", 8080))),
        ("8080:3000", Remote("127.0.0.1", 8080, ("127.0.0.1", 3000))),
        ("*:8080:3000", Remote("*", 8080, ("127.0.0.1", 3000))),
        ("[::1]:8080:3000", Remote("::1", 8080, ("127.0.0.1", 3000))),
        ("8080:localhost:3000", Remote("127.0.0.1", 8080, ("localhost", 3000))),
        ("8080:192.168.1.5:80", Remote("127.0.0.1", 8080, ("192.168.1.5", 80))),
        ("0.0.0.0:8080:printer.lan:80", Remote("0.0.0.0", 8080, ("printer.lan", 80))),
        ("8080:[fd00::1]:80", Remote("127.0.0.1", 8080, ("fd00::1", 80))),
        ("8080:unix:/run/app.sock", Remote("127.0.0.1", 8080, ("unix:/run/app.sock", 0))),
    ],
)
def test_a_remote_means(text: str, expected: Remote) -> None:
    assert parse_remotes([text]) == [expected]
    assert decode_open(encode(Listen(expected.host, expected.port))[2:]) == Listen(expected.host, expected.port)


@pytest.mark.parametrize(
    "text", ["", "x", "0:80", "unix:/x:80", "53/udp", "8080:nas", "1:2:3:4:5", "8080:", "70000", "8080:x y:1"]
)
def test_what_is_no_remote_gets_one_sentence(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_remotes([text])
    assert "\n" not in str(caught.value)


def test_one_place_leads_to_one_program_and_there_are_so_many() -> None:
    with pytest.raises(ConfigurationError, match="a second time"):
        parse_remotes(["8080:1", "8080:2"])
    with pytest.raises(ConfigurationError, match=f"More than {MAX_LISTENING} ports"):
        parse_remotes([f"5000-{5000 + MAX_LISTENING}"])


@given(st.text(alphabet="0123456789:[]-/*.ntcpudas+% \x00é", max_size=40))
def test_any_text_is_a_remote_or_a_configuration_error(text: str) -> None:
    try:
        found = parse_remotes([text])
    except ConfigurationError:
        return
    assert all(1 <= each.port <= 65_535 for each in found)


def test_the_bytes_are_those_of_the_protocol_page() -> None:
    assert encode(Listen("127.0.0.1", 8080))[2:].hex() == "93a66c697374656ea93132372e302e302e31cd1f90"
    assert encode(Accepted("127.0.0.1", 8080))[2:].hex() == "94a86163636570746564a93132372e302e302e31cd1f9000"


# -- the program itself


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    lab.close()


def test_a_person_is_shown_a_program_of_somebody_elses(lab: Lab) -> None:
    there = free_port()
    exposing = lab.expose("--allow-remote", str(there))
    code = exposing.wait("code")["code"]
    options = ("--server", lab.server, "--remote", f"{there}:{lab.port}")
    connecting = lab.run(lab.connector, "connect", *options, PTUNNEL_CODE=code)
    connecting.wait("shared", shares=[f"remote/{there}"])
    connecting.wait("remote", bind=f"127.0.0.1:{there}", target=f"127.0.0.1:{lab.port}")
    assert echo_through(f"127.0.0.1:{there}", b"hello") == b"hello"
    exposing.wait("connection", target=f"remote/{there}", state="closed")
    revoked = lab.ask(lab.exposer, "revoke", exposing.wait("paired")["peer"], f"remote/{there}", "--json")
    assert revoked.returncode == 0, revoked.stderr


def test_a_page_is_read_through_the_door_of_the_program(lab: Lab) -> None:
    exposing = lab.expose("--net", f"127.0.0.1:{lab.port}")
    code = exposing.wait("code")["code"]
    connecting = lab.run(lab.connector, "connect", "--server", lab.server, "--socks", "0", PTUNNEL_CODE=code)
    bind = connecting.wait("forward", target="socks")["bind"]
    host, _, port = bind.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as client:
        client.sendall(b"\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01" + lab.port.to_bytes(2, "big"))
        heard = b""
        while len(heard) < 12:
            heard += client.recv(100)
        assert heard[3] == 0
        client.sendall(b"hello")
        assert client.recv(100) == b"hello"
