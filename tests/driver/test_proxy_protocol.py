"""The PROXY header: its bytes, and that a program gets it in front of everything else, where that was asked for."""

from __future__ import annotations

import ipaddress
import socket
import struct
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.driver.fake_link import linked_pair
from tunnel.errors import ConfigurationError
from tunnel.notation import with_proxy
from tunnel.pairing.grants import GrantSet
from tunnel.ports.open import Open, encode, read_message
from tunnel.ports.proxy_protocol import SIGNATURE, header
from tunnel.ports.serve import Exposed


def read(data: bytes) -> tuple[int, list[str], list[int]]:
    """Family, both addresses and both ports; by the specification's figures, not by ours."""
    assert data[:12] == bytes.fromhex("0d0a0d0a000d0a515549540a")
    assert data[12] == 0x21
    assert int.from_bytes(data[14:16], "big") == len(data) - 16
    size = {0x11: 4, 0x21: 16, 0x00: 0}[data[13]]
    hosts = [str(ipaddress.ip_address(data[16 + size * index : 16 + size * (index + 1)])) for index in (0, 1)] if size else []
    return data[13], hosts, list(struct.unpack(">HH", data[16 + 2 * size :])) if size else []


@pytest.mark.parametrize(
    ("source", "destination", "expected"),
    [
        (("203.0.113.5", 4199), ("127.0.0.1", 80), (0x11, ["203.0.113.5", "127.0.0.1"], [4199, 80])),
        (("2001:db8::5", 4199), ("::1", 80), (0x21, ["2001:db8::5", "::1"], [4199, 80])),
        (("2001:db8::5", 4199), ("127.0.0.1", 80), (0x21, ["2001:db8::5", "::ffff:127.0.0.1"], [4199, 80])),
        (("203.0.113.5", 4199), ("::1", 80), (0x21, ["::ffff:203.0.113.5", "::1"], [4199, 80])),
        (("::ffff:203.0.113.5", 4199), ("127.0.0.1", 80), (0x11, ["203.0.113.5", "127.0.0.1"], [4199, 80])),
        (("fe80::1%eth0", 4199), ("fe80::2%eth0", 80), (0x21, ["fe80::1", "fe80::2"], [4199, 80])),
        (("203.0.113.5", 4199), None, (0x11, ["203.0.113.5", "0.0.0.0"], [4199, 0])),
        (("2001:db8::5", 4199), None, (0x21, ["2001:db8::5", "::"], [4199, 0])),
        (None, ("127.0.0.1", 80), (0x00, [], [])),
    ],
)
def test_the_header_says(
    source: tuple[str, int] | None, destination: tuple[str, int] | None, expected: tuple[int, list[str], list[int]]
) -> None:
    assert read(header(source, destination)) == (
        expected[0],
        [str(ipaddress.ip_address(each)) for each in expected[1]],
        expected[2],
    )


@given(st.ip_addresses().map(str), st.integers(0, 65_535), st.ip_addresses().map(str), st.integers(0, 65_535))
def test_any_two_ends_make_a_header_of_the_length_that_it_says(host: str, port: int, other: str, other_port: int) -> None:
    family, _hosts, ports = read(header((host, port), (other, other_port)))
    assert family in (0x11, 0x21)
    assert ports == [port, other_port]


async def heard_by_program(grants: GrantSet, target: int | str, remote: tuple[str, int] | None, listener: socket.socket) -> bytes:
    """All that the program gets of a peer that says hello at once."""
    _near, far = linked_pair()
    far.direct_remote = remote
    exposed = Exposed(far, grants.allows, grants=lambda: grants)
    heard = b""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(far.serve_streams, exposed.handle)
        with trio.fail_after(30):
            stream = await far.peer.open_stream(encode(Open("tcp", target)) + b"hello")
            stream.finish()
            listener.setblocking(False)
            await trio.lowlevel.wait_readable(listener)
            with trio.socket.from_stdlib_socket(listener.accept()[0]) as program:
                while data := await program.recv(4096):
                    heard += data
                await read_message(stream)
        nursery.cancel_scope.cancel()
    return heard


async def test_a_program_reads_who_connects_before_what_the_peer_says() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        grants = GrantSet.parse(with_proxy(str(port)))
        data = await heard_by_program(grants, port, ("203.0.113.5", 4199), listener)
        assert read(data.removesuffix(b"hello")) == (0x11, ["203.0.113.5", "127.0.0.1"], [4199, port])
        assert data.endswith(b"hello")


async def test_over_a_relay_the_source_is_not_made_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert await heard_by_program(GrantSet.parse(f"{port}/tcp+proxy"), port, None, listener) == SIGNATURE + b"\x21\0\0\0hello"


async def test_who_did_not_ask_for_it_gets_nothing_but_the_peers_bytes() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert await heard_by_program(GrantSet.parse(str(port)), port, ("203.0.113.5", 4199), listener) == b"hello"


async def test_a_program_behind_a_unix_socket_reads_it_too(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "app"))
        listener.listen()
        grants = GrantSet.parse(with_proxy(f"app=unix:{tmp_path}/app"))
        data = await heard_by_program(grants, "app", ("203.0.113.5", 4199), listener)
        assert read(data.removesuffix(b"hello")) == (0x11, ["203.0.113.5", "0.0.0.0"], [4199, 0])


@pytest.mark.parametrize(
    "text", ["22", "5000-5010", "nas=192.168.1.5:445", "unix:/run/app.sock", "pg=unix:/run/pg", "tcp/22", "ssh"]
)
def test_what_is_saved_with_it_is_read_with_it(text: str) -> None:
    [grant] = GrantSet.parse(with_proxy(text))
    assert grant.proxy
    assert GrantSet.from_dicts(GrantSet((grant,)).to_dicts()) == GrantSet((grant,)) == GrantSet.parse(str(grant))
    assert len(GrantSet((grant,)).without(text)[0]) == len(GrantSet((grant,)).without(str(grant))[0]) == 0


@pytest.mark.parametrize("text", ["53/udp", "udp/53", "53/tcp+udp"])
def test_it_goes_with_tcp_alone(text: str) -> None:
    with pytest.raises(ConfigurationError, match="goes with tcp alone"):
        with_proxy(text)


def test_the_newer_word_counts_for_the_ports_that_it_names() -> None:
    grants = GrantSet.parse("8000-8010").union(GrantSet.parse("8005/tcp+proxy"))
    assert [str(each) for each in grants] == ["tcp/8000-8004", "tcp/8006-8010", "tcp+proxy/8005"]
    assert grants.announces("tcp", 8005)
    assert not grants.announces("tcp", 8004)
    assert [str(each) for each in grants.union(GrantSet.parse("8005"))] == ["tcp/8000-8004", "tcp/8006-8010", "tcp/8005"]
