"""Any bytes to any decoder of the rendezvous room: a value or MalformedPacket, nothing else; any bytes to client and server."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.rendezvous.world import SOCKETS, V4, entropy_of
from tunnel.errors import ConfigurationError, MalformedPacket
from tunnel.node.stun_codec import ServerStun
from tunnel.rendezvous import messages as m
from tunnel.rendezvous.access import AccessList
from tunnel.rendezvous.client import Client
from tunnel.rendezvous.limits import ServerConfig
from tunnel.rendezvous.server import Server
from tunnel.units import Address, Instant, SocketId

NOW = Instant(10.0)
A = Address("198.18.0.1", 1000)
DECODERS: list[Callable[[bytes], object]] = [
    m.decode_request,
    m.decode_request_head,
    m.decode_response,
    m.decode_push,
    m.decode_push_ack,
    m.unpack_address,
    m.unpack_host,
]

msgpackish = st.recursive(
    st.one_of(
        st.integers(0, 2**64 - 1).map(lambda n: b"\xcf" + n.to_bytes(8, "big")),
        st.integers(0, 127).map(lambda n: bytes((n,))),
        st.binary(max_size=40).map(lambda b: b"\xc4" + bytes((len(b),)) + b),
        st.binary(max_size=31).map(lambda b: bytes((0xA0 | len(b),)) + b),  # strings of any bytes
        st.sampled_from([b"\xc0", b"\xc2", b"\xc3", b"\xff", b"\xcb" + bytes(8)]),
    ),
    lambda inner: st.lists(inner, max_size=8).map(lambda items: bytes((0x90 | len(items),)) + b"".join(items)),
    max_leaves=12,
)
tagged = st.tuples(st.integers(0, 80), st.lists(msgpackish, max_size=6)).map(
    lambda pair: bytes((0x90 | (len(pair[1]) + 1), pair[0])) + b"".join(pair[1])
)
bodies = st.one_of(st.binary(max_size=80), tagged)
requests = st.builds(
    lambda head, cookie, proof, body: (
        head + bytes((len(cookie),)) + cookie + bytes((len(proof),)) + proof + len(body).to_bytes(2, "big") + body
    ).ljust(512, b"\0"),
    st.binary(min_size=24, max_size=24).map(lambda b: b"\x40\x01" + b),
    st.binary(max_size=40),
    st.sampled_from([b"", bytes(16), bytes(15)]),
    bodies,
)
responses = st.builds(lambda head, body: b"\x41\x01" + head + body, st.binary(min_size=8, max_size=8), bodies)
pushes = st.builds(lambda head, body: b"\x42\x01" + head + body, st.binary(min_size=24, max_size=24), bodies)
datagrams = st.one_of(st.binary(max_size=100), requests, responses, pushes)


@settings(max_examples=300, deadline=None)
@given(datagrams)
def test_any_bytes_are_a_value_or_malformed(data: bytes) -> None:
    for decode in DECODERS:
        for buffer in (data, memoryview(data)):
            with contextlib.suppress(MalformedPacket):
                decode(buffer)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "body", [b"\x91" * 1000, b"\x93\x25\x01\xa2\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b""]
)
def test_deep_endless_and_ill_encoded_bodies_are_malformed(body: bytes) -> None:
    with pytest.raises(MalformedPacket):
        m.decode_response(b"\x41\x01" + bytes(8) + body)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.booleans(), datagrams), max_size=12), st.integers(1, 200))
def test_no_bytes_trouble_the_server(inputs: list[tuple[bool, bytes]], stride: int) -> None:
    server = Server(ServerConfig(open_directory=True), sockets=SOCKETS, now=NOW, entropy=entropy_of(3), stun=ServerStun())
    for as_batch, data in inputs:
        if data:
            server.handle_batch(NOW, V4, A, memoryview(data), stride if as_batch else len(data))
        server.handle_timeout(NOW)
        while (transmit := server.poll_transmit(NOW)) is not None:
            assert len(transmit.buffer) <= 1200
    assert server.counters()["sessions"] == 0


@settings(max_examples=100, deadline=None)
@given(st.lists(tagged, max_size=8))
def test_no_proven_client_troubles_the_server(inputs: list[bytes]) -> None:
    """The cookie is right, the body anything."""
    server = Server(ServerConfig(), sockets=SOCKETS, now=NOW, entropy=entropy_of(3))
    server.handle_datagram(NOW, V4, A, m.encode_request(1, bytes(16), m.Hello()))
    transmit = server.poll_transmit(NOW)
    assert transmit is not None
    retry = m.decode_response(transmit.buffer).message
    assert isinstance(retry, m.Retry)
    for number, body in enumerate(inputs):
        head = b"\x40\x01" + number.to_bytes(8, "big") + bytes(16) + bytes((len(retry.cookie),)) + retry.cookie
        server.handle_datagram(NOW, V4, A, (head + b"\0" + len(body).to_bytes(2, "big") + body).ljust(512, b"\0"))
        while server.poll_transmit(NOW) is not None:
            pass
    server.handle_timeout(Instant(NOW + 1000))
    server.handle_timeout(Instant(NOW + 2000))
    assert server.counters()["sessions"] == 0


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.booleans(), bodies), max_size=8))
def test_no_server_troubles_a_client(inputs: list[tuple[bool, bytes]]) -> None:
    """A hostile server knows transaction and session, and says anything."""
    home = Address("192.88.99.1", 24531)
    client = Client(servers=[(SocketId(1), home)], now=NOW, rng=random.Random(1), entropy=entropy_of(5))
    client.listen(NOW, [bytes(16)])
    client.dial(NOW, [bytes(16)])
    client.allocate(NOW)
    client.claim(NOW, 5, b"")
    now = NOW
    for is_push, body in inputs:
        now = Instant(now + 6)
        client.handle_timeout(now)
        seen = []
        while (out := client.poll_transmit(now)) is not None:
            if out[2][0] == m.REQUEST:
                seen.append(m.decode_request(out[2]))
        for request in seen[-3:]:
            if is_push:
                data = b"\x42\x01" + request.session + bytes(7) + bytes((len(seen),)) + body
            else:
                data = b"\x41\x01" + request.transaction.to_bytes(8, "big") + body
            client.handle_datagram(now, SocketId(1), home, data)
        while client.poll_event() is not None:
            pass


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_any_access_file_is_a_list_or_a_sentence(text: str) -> None:
    with contextlib.suppress(ConfigurationError):
        AccessList.parse(text)
