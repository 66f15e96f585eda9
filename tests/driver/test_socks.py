"""The SOCKS door, with curl and with bytes of our own; and what the other side lets be reached through it."""

from __future__ import annotations

import errno
import ipaddress
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from tests.driver.fake_link import FakeLink, linked_pair
from tunnel.errors import ConfigurationError
from tunnel.pairing.grants import GrantSet
from tunnel.ports import names, nets, socks
from tunnel.ports.nets import MAX_LOOKUPS, OutsideError, allowed_places, find_places
from tunnel.ports.open import Reach, decode_open, encode, read_message
from tunnel.ports.serve import Exposed, Listeners
from tunnel.ports.socks_messages import FAILED
from tunnel.ports.spec import parse_door
from tunnel.shell.stream import StreamCode, StreamResetError

HERE = "198.51.100.7"  # what this machine is called by its interfaces, in these tests


@pytest.fixture(autouse=True)
def _own_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nets, "own_addresses", lambda: [HERE, "192.168.1.2", "fd00::2", "127.0.0.1", "::1"])


# -- what may be reached


def reaches(grant: str, address: str, port: int = 80, protocol: str = "tcp") -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    place = (family, (address, port))
    return allowed_places([place], GrantSet.parse(f"net/{grant}").nets(protocol, port)) == [place]


@pytest.mark.parametrize(
    ("grant", "address", "is_reached"),
    [
        ("192.168.1.0/24:80", "192.168.1.77", True),
        ("192.168.1.0/24:80", "192.168.2.77", False),
        ("192.168.1.0/24:80", "::ffff:192.168.1.77", True),
        ("192.168.1.0/24:443", "192.168.1.77", False),
        ("192.168.1.0/24:80/udp", "192.168.1.77", False),
        ("192.168.1.77:80", "192.168.1.77", True),
        ("[fd00::]/64:80", "fd00::77", True),
        ("[fd00::]/64:80", "fd01::77", False),
        ("0.0.0.0/0:80", "203.0.113.7", True),
        # this machine belongs to no network that is shared, unless it is named
        ("0.0.0.0/0:80", "127.0.0.1", False),
        ("0.0.0.0/0:80", "127.9.9.9", False),
        ("[::]/0:80", "::1", False),
        ("[::]/0:80", "::ffff:127.0.0.1", False),
        ("127.0.0.0/8:80", "127.0.0.1", True),
        ("127.0.0.1:80", "127.0.0.1", True),
        ("[::1]:80", "::1", True),
        ("192.168.1.0/24:80", "192.168.1.2", False),
        ("192.168.1.2:80", "192.168.1.2", True),
        ("0.0.0.0/0:80", HERE, False),
        ("[fd00::]/64:80", "fd00::2", False),
        ("0.0.0.0/0:80", "0.0.0.0", False),
        ("[::]/0:80", "::", False),
        # nor does what is nobody's: metadata, link-local, multicast, broadcast
        ("0.0.0.0/0:80", "169.254.169.254", False),
        ("169.254.0.0/16:80", "169.254.169.254", True),
        ("169.254.169.254:80", "169.254.169.254", True),
        ("128.0.0.0/1:80", "169.254.169.254", False),
        ("[::]/0:80", "fd00:ec2::254", False),
        ("[fd00::]/8:80", "fd00:ec2::254", False),
        ("0.0.0.0/0:80", "100.100.100.200", False),
        ("0.0.0.0/0:80", "168.63.129.16", False),
        ("0.0.0.0/0:80", "224.0.0.1", False),
        ("0.0.0.0/0:80", "255.255.255.255", False),
        ("[::]/0:80", "fe80::1", False),
        ("[::]/0:80", "64:ff9b::7f00:1", False),  # NAT64 of 127.0.0.1
        ("[::]/0:80", "64:ff9b::a9fe:a9fe", False),
        ("[::]/0:80", "2002:7f00:1::", False),  # 6to4 of it
        ("[::]/0:80", "::127.0.0.1", False),
        ("[::]/0:80", "fe80::1%lo", False),
    ],
)
def test_a_network_that_is_shared_reaches(grant: str, address: str, is_reached: bool) -> None:
    assert reaches(grant, address) is is_reached


@given(st.ip_addresses(v=4).map(str) | st.ip_addresses(v=6).map(str))
def test_everything_shared_is_still_nothing_special(address: str) -> None:
    found = ipaddress.ip_address(address)
    if reaches("0.0.0.0/0:*", address) or reaches("[::]/0:*", address):
        assert not found.is_loopback
        assert not found.is_link_local
        assert not found.is_multicast
        assert not found.is_unspecified
        assert address not in (HERE, "192.168.1.2", "fd00::2")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "192.168.1.0/24",
        "192.168.1.0/24:",
        "192.168.1.0/33:80",
        "192.168.1.5/24:80",
        "x:80",
        "::/0:80",
        "10.0.0.0/8:0",
        "1.2.3.4:9-8",
    ],
)
def test_what_is_no_network_gets_one_sentence(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        GrantSet.parse(f"net/{text}")
    assert str(caught.value).endswith(".")


@given(
    st.one_of(
        st.tuples(st.ip_addresses(v=4).map(str), st.integers(0, 32)),
        st.tuples(st.ip_addresses(v=6).map("[{}]".format), st.integers(0, 128)),
    ),
    st.lists(st.integers(1, 65_535), min_size=1, max_size=5),
    st.sampled_from(["", "/udp", "/tcp+udp"]),
)
def test_what_is_shared_is_saved_shown_and_taken_back_as_it_was_typed(
    place: tuple[str, int], ports: list[int], protocols: str
) -> None:
    host, bits = place
    network = ipaddress.ip_network(f"{host.strip('[]')}/{bits}", strict=False)
    written = f"[{network.network_address}]/{bits}" if network.version == 6 else str(network)
    grants = GrantSet.parse(f"net/{written}:{','.join(map(str, ports))}{protocols}")
    assert GrantSet.from_dicts(grants.to_dicts()) == grants == GrantSet.parse(*map(str, grants))
    for grant in grants:
        left, taken = grants.without(str(grant))
        assert list(taken) == [grant]
        assert len(left) == len(grants) - 1
    assert grants.allows("tcp", ports[0]) is None  # it opens no port of this machine


def test_an_older_ptunnel_reads_a_saved_network_as_nothing() -> None:
    """It knows tcp and udp, and refuses what is neither."""
    assert [each["protocol"] for each in GrantSet.parse("net/10.0.0.0/8:80/tcp+udp", "remote/8080").to_dicts()] == [
        "net/tcp",
        "net/udp",
        "remote/tcp",
    ]


# -- names


async def test_a_name_is_looked_up_once_and_what_was_looked_at_is_what_is_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that changes (DNS rebinding) leads nowhere."""
    answers = iter([[("192.168.1.77", 0), ("127.0.0.1", 0)], [("127.0.0.1", 0)]])

    async def ask(*_words: Any, **_options: Any) -> Any:
        return [(socket.AF_INET, None, None, "", each) for each in next(answers)]

    monkeypatch.setattr(trio.socket, "getaddrinfo", ask)
    grants = GrantSet.parse("net/192.168.1.0/24:80")
    assert await find_places("web.lan", 80, lambda: grants.nets("tcp", 80)) == [(socket.AF_INET, ("192.168.1.77", 80))]
    with pytest.raises(OutsideError) as caught:
        await find_places("web.lan", 80, lambda: grants.nets("tcp", 80))
    assert caught.value.errno == errno.EACCES


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST.", "x.localhost"])
async def test_localhost_is_loopback_for_everybody(name: str) -> None:
    grants = GrantSet.parse("net/0.0.0.0/0:80", "net/[::]/0:80")
    with pytest.raises(OSError):
        await find_places(name, 80, lambda: grants.nets("tcp", 80))


async def test_without_a_network_no_name_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask(*_words: Any, **_options: Any) -> Any:
        raise AssertionError("somebody was asked")

    monkeypatch.setattr(trio.socket, "getaddrinfo", ask)
    grants = GrantSet.parse("80", "web=web.lan:80", "net/10.0.0.0/8:81")
    _near, far = linked_pair()
    exposed = Exposed(far, grants.allows, grants=lambda: grants)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(far.serve_streams, exposed.handle)
        stream = await far.peer.open_stream(encode(Reach("tcp", "web.lan", 80)))
        with trio.fail_after(30), pytest.raises(StreamResetError) as caught:
            await read_message(stream)
        assert caught.value.code == StreamCode.DENIED
        nursery.cancel_scope.cancel()
    assert exposed.counters.tcp_denied == 1


async def test_dead_names_take_no_more_than_their_share_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = trio.Event()

    async def ask(*_words: Any, **_options: Any) -> Any:
        await asked.wait()
        raise socket.gaierror(socket.EAI_AGAIN, "dead")

    monkeypatch.setattr(trio.socket, "getaddrinfo", ask)
    grants = GrantSet.parse("net/0.0.0.0/0:80")
    failed: list[str] = []

    async def find(name: str) -> None:
        try:
            await find_places(name, 80, lambda: grants.nets("tcp", 80))
        except OSError:
            failed.append(name)

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for number in range(MAX_LOOKUPS):
                nursery.start_soon(find, f"dead{number}.lan")
            while names.lookups_under_way() < MAX_LOOKUPS:
                await trio.lowlevel.checkpoint()
            await find("one-more.lan")
            assert failed == ["one-more.lan"]
            asked.set()
    assert len(failed) == MAX_LOOKUPS + 1
    assert names.lookups_under_way() == 0


# -- whole, through a link


class Bench:
    def __init__(self, port: int, exposed: Exposed, listeners: Listeners, near: FakeLink, said: list[str]) -> None:
        self.port = port
        self.exposed = exposed
        self.listeners = listeners
        self.near = near
        self.said = said


@asynccontextmanager
async def door(grants: GrantSet | Callable[[], GrantSet]) -> AsyncIterator[Bench]:
    near, far = linked_pair()
    said: list[str] = []

    def now() -> GrantSet:
        return grants if isinstance(grants, GrantSet) else grants()

    exposed = Exposed(far, lambda kind, target: now().allows(kind, target), notice=said.append, grants=now)
    with Listeners(parse_door("127.0.0.1:0")) as listeners:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(far.serve_streams, exposed.handle)
            nursery.start_soon(partial(listeners.serve, near, notice=said.append))
            with trio.fail_after(60):
                yield Bench(int(listeners.ready[0].bind.rpartition(":")[2]), exposed, listeners, near, said)
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def web(text: bytes = b"a page") -> AsyncIterator[int]:
    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text))
        await stream.aclose()

    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is missing; scripts/test says how to install it")


async def curl(port: int, url: str, kind: str = "socks5h") -> subprocess.CompletedProcess[bytes]:
    words = ["curl", "--silent", "--show-error", "--max-time", "30", "--proxy", f"{kind}://127.0.0.1:{port}", url]
    return await trio.run_process(words, capture_stdout=True, capture_stderr=True, check=False)


@needs_curl
async def test_curl_reads_a_page_by_address_and_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask(host: str, *_words: Any, **_options: Any) -> Any:
        assert host == "web.lan"  # it was looked up there, not by curl
        return [(socket.AF_INET, None, None, "", ("127.0.0.1", 0))]

    async with web() as port, door(GrantSet.parse(f"net/127.0.0.1:{port}")) as bench:
        assert (await curl(bench.port, f"http://127.0.0.1:{port}/")).stdout == b"a page"
        monkeypatch.setattr(trio.socket, "getaddrinfo", ask)
        assert (await curl(bench.port, f"http://web.lan:{port}/")).stdout == b"a page"
        assert bench.exposed.counters.tcp_opened == 2
        assert bench.said == []


@needs_curl
async def test_curl_is_told_why_not() -> None:
    """97: it got no connection by the proxy; the reply's number is in its words."""
    with socket.create_server(("127.0.0.1", 0)) as placeholder:
        closed = placeholder.getsockname()[1]
    async with web() as port, door(GrantSet.parse(f"net/0.0.0.0/0:{port}", f"net/127.0.0.1:{closed}")) as bench:
        for url, reply, sentence in (
            (f"http://127.0.0.1:{port}/", b"(2)", f"home refused tcp/127.0.0.1:{port}: that is not shared with you."),
            (f"http://127.0.0.1:{closed}/", b"(5)", f"home refused tcp/127.0.0.1:{closed}: nothing listens there."),
            ("http://127.0.0.1:7/", b"(2)", "home refused tcp/127.0.0.1:7: that is not shared with you."),
        ):
            done = await curl(bench.port, url)
            assert done.returncode == 97
            assert reply in done.stderr
            assert sentence in bench.said
        assert "friend asked for tcp/127.0.0.1:7, which is not shared with them: " in " ".join(bench.said)
        assert bench.exposed.counters.tcp_opened == 0
        assert (await curl(bench.port, "http://127.0.0.1:7/", "socks4")).returncode == 97
        assert "A program speaks SOCKS 4 at the door: set it to SOCKS 5." in bench.said
        assert (await curl(bench.port, "http://127.0.0.1:7/", "http")).returncode != 0
        assert any("not to an HTTP proxy" in text for text in bench.said)
        assert bench.listeners.counters.socks_refused == 5


async def test_a_grant_that_is_taken_back_cuts_what_goes_through_the_door() -> None:
    grants = GrantSet()
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    grants = GrantSet.parse(f"net/127.0.0.1:{port}", f"net/127.0.0.0/8:{port}")
    async with door(lambda: grants) as bench, listener:
        client = await trio.open_tcp_stream("127.0.0.1", bench.port)
        await client.send_all(b"\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01" + port.to_bytes(2, "big"))
        program = await listener.accept()
        grants, _ = grants.without(f"net/127.0.0.1:{port}")
        bench.exposed.look_again()
        await program.send_all(b"still")
        heard = b""
        while not heard.endswith(b"still"):
            heard += await client.receive_some()
        assert heard == b"\x05\x00\x05\x00\x00\x01\0\0\0\0\0\0still"
        grants = GrantSet()
        bench.exposed.look_again()
        with pytest.raises(trio.BrokenResourceError):
            await client.receive_some()
        assert bench.exposed.counters.revoked == 1
        await client.aclose()
        await program.aclose()


@needs_curl
async def test_an_older_exposer_is_spoken_of() -> None:
    """It cannot read the opening, and resets the stream with its code for that."""
    near, far = linked_pair()

    async def old(stream: Any) -> None:
        body, _rest = await read_message(stream)
        assert isinstance(decode_open(body), Reach)
        stream.reset(StreamCode.INTERNAL)
        stream.stop(StreamCode.INTERNAL)

    said: list[str] = []
    with Listeners(parse_door("127.0.0.1:0")) as listeners:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(far.serve_streams, old)
            nursery.start_soon(partial(listeners.serve, near, notice=said.append))
            with trio.fail_after(60):
                done = await curl(int(listeners.ready[0].bind.rpartition(":")[2]), "http://10.0.0.1/")
            assert done.returncode == 97
            assert said == ["home does not know how to reach 10.0.0.1:80: is its ptunnel older than networks that are shared?"]
            nursery.cancel_scope.cancel()


async def test_nothing_of_this_machines_own_ports_opens_by_a_network_nor_a_network_by_a_port() -> None:
    grants = GrantSet.parse("80", "nas=192.168.1.5:445", "net/10.0.0.0/8:81")
    _near, far = linked_pair()
    exposed = Exposed(far, grants.allows, grants=lambda: grants)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(far.serve_streams, exposed.handle)
        for opening in (
            Reach("tcp", "127.0.0.1", 80), Reach("tcp", "192.168.1.5", 445),
            Reach("udp", "10.0.0.1", 81), Reach("tcp", "10.0.0.1", 80),
        ):  # fmt: skip
            stream = await far.peer.open_stream(encode(opening))
            with trio.fail_after(30), pytest.raises(StreamResetError) as caught:
                await read_message(stream)
            assert caught.value.code == StreamCode.DENIED
        nursery.cancel_scope.cancel()
    assert (exposed.counters.tcp_denied, exposed.counters.udp_denied) == (3, 1)


@asynccontextmanager
async def udp_echo() -> AsyncIterator[int]:
    sock = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    await sock.bind(("127.0.0.1", 0))

    async def serve() -> None:
        while True:
            data, client = await sock.recvfrom(65_535)
            await sock.sendto(data.upper(), client)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        yield sock.getsockname()[1]
        nursery.cancel_scope.cancel()
    sock.close()


async def test_datagrams_go_by_an_association_which_is_its_clients_alone() -> None:
    async with udp_echo() as port, door(GrantSet.parse(f"net/127.0.0.1:{port}/udp")) as bench:
        client = await trio.open_tcp_stream("127.0.0.1", bench.port)
        await client.send_all(b"\x05\x01\x00\x05\x03\x00\x01" + bytes(6))
        heard = b""
        while len(heard) < 12:
            heard += await client.receive_some()
        assert heard[:8] == b"\x05\x00\x05\x00\x00\x01\x7f\x00"
        there = ("127.0.0.1", int.from_bytes(heard[10:12], "big"))
        header = b"\0\0\0\x01\x7f\0\0\x01" + port.to_bytes(2, "big")
        with (
            trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours,
            trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as others,
        ):
            for each in (ours, others):
                await each.bind(("127.0.0.1", 0))
            await ours.sendto(header + b"hello", there)
            assert await ours.recv(100) == header + b"HELLO"
            await others.sendto(header + b"stolen", there)  # who else sends there
            await ours.sendto(b"\0\0\x01" + header[3:] + b"fragment", there)
            await ours.sendto(header[:-2] + b"\0\x07denied", there)
            await ours.sendto(header + b"again", there)
            assert await ours.recv(100) == header + b"AGAIN"
            counters = bench.listeners.counters
            assert counters.socks_dropped == 2
            while not any("refused udp/127.0.0.1:7" in text for text in bench.said):
                await trio.lowlevel.checkpoint()
        await client.aclose()
        while counters.tcp_active or counters.udp_flows_active:
            await trio.lowlevel.checkpoint()


async def test_so_many_associations_are_open_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socks, "MAX_ASSOCIATIONS", 2)
    async with door(GrantSet()) as bench:
        clients = [await trio.open_tcp_stream("127.0.0.1", bench.port) for _ in range(3)]
        for client in clients:
            await client.send_all(b"\x05\x01\x00\x05\x03\x00\x01" + bytes(6))
            heard = b""
            while len(heard) < 12:
                heard += await client.receive_some()
            assert heard[3] == (FAILED if client is clients[2] else 0)
        for client in clients:
            await client.aclose()


async def test_who_says_nothing_is_not_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    """By the test's own clock."""
    async with door(GrantSet()) as bench:
        client = await trio.open_tcp_stream("127.0.0.1", bench.port)
        began = trio.current_time()
        assert await client.receive_some() == b""
        assert trio.current_time() - began == pytest.approx(socks.PATIENCE, abs=1.0)
        await client.aclose()
