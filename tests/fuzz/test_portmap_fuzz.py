"""Any bytes from the router: a value or MalformedPacket, and a machine that neither raises nor grows nor spins."""

from __future__ import annotations

import contextlib
import random
import sys

from hypothesis import given, settings
from hypothesis import strategies as st

from tunnel.errors import MalformedPacket
from tunnel.host.gateway import gateways_in
from tunnel.nat import pcp, upnp
from tunnel.nat.mapping_states import LookUpPort, SearchRouter, Stage, UnmapPort
from tunnel.nat.portmap import PortMapper
from tunnel.nat.upnp import Entry, Exchange, Place
from tunnel.units import Address, Instant

GATEWAY, OWN, PORT = "192.168.1.1", "192.168.1.10", 40_000
NONCE = b"n" * 12


@st.composite
def replies(draw: st.DrawFn) -> bytes:
    """Shaped like answers, so that they get past the first look."""
    version = draw(st.sampled_from([0, 2]) | st.integers(0, 255))
    opcode = draw(st.sampled_from([128, 129]) | st.integers(0, 255))
    result = draw(st.sampled_from([0, 0, 0, 1, 2, 13]) | st.integers(0, 255))
    word = st.integers(0, 2**32 - 1).map(lambda number: number.to_bytes(4, "big"))
    host = draw(st.sampled_from([bytes((44, 128, 0, 1)), bytes(4), b"\xff" * 4]) | st.binary(min_size=4, max_size=4))
    port = draw(st.integers(0, 0xFFFF)).to_bytes(2, "big")
    if version == 0:
        tail = host if opcode == 128 else PORT.to_bytes(2, "big") + port + draw(word)
        return bytes((version, opcode, 0, result)) + draw(word) + tail
    head = bytes((version, opcode, 0, result)) + draw(word) + draw(word) + bytes(12)
    body = (
        draw(st.sampled_from([NONCE, bytes(12)]))
        + b"\x11\0\0\0"
        + PORT.to_bytes(2, "big")
        + port
        + bytes(10)
        + b"\xff\xff"
        + host
    )
    return head + draw(st.sampled_from([body, b"", body[:12]]))


TAGS = [
    b"<service>", b"</service>", b"<serviceType>", b"</serviceType>", b"<controlURL>", b"</controlURL>", b"<URLBase>",
    b"</URLBase>", upnp.SERVICES[0].encode(), b"/ctl", b"http://192.168.1.1:80/", b"http://evil/", b"&amp;", b"<errorCode>",
    b"</errorCode>", b"718", b"<NewExternalIPAddress>", b"</NewExternalIPAddress>", b"44.128.0.1", b"<!ENTITY", b"]]>",
]  # fmt: skip
LINES = [
    b"HTTP/1.1 200 OK\r\n", b"HTTP/1.0 500 x\r\n", b"Content-Length: 4\r\n", b"Content-Length: 70000\r\n", b"\r\n",
    b"Transfer-Encoding: chunked\r\n", b"4\r\nbody\r\n", b"0\r\n\r\n", b"Location: http://192.168.1.1:5000/x\r\n", b"FFFFF\r\n",
]  # fmt: skip
markup = st.lists(st.sampled_from(TAGS) | st.binary(max_size=8), max_size=40).map(b"".join)
http = st.lists(st.sampled_from(LINES) | st.binary(max_size=300), max_size=30)


@given(st.binary(max_size=1200) | replies())
def test_router_datagrams(data: bytes) -> None:
    with contextlib.suppress(MalformedPacket):
        reply = pcp.decode_reply(data)
        assert 0 <= reply.external_port <= 0xFFFF


@given(st.binary(max_size=5000) | http.map(b"".join))
def test_search_answers(data: bytes) -> None:
    with contextlib.suppress(MalformedPacket):
        place = upnp.decode_search_answer(data)
        assert 0 < place.port <= 0xFFFF
        assert b"\r" not in Exchange(GATEWAY, place).request.split(b"\r\n")[0]


@given(st.binary(max_size=3000) | markup)
def test_descriptions(data: bytes) -> None:
    with contextlib.suppress(MalformedPacket):
        service = upnp.decode_description(data, Place(80, "/a/b"))[0]
        assert service.kind in upnp.SERVICES
        assert upnp.delete_mapping(GATEWAY, service, 1).request.count(b"\r\n\r\n") == 1
        assert service.place.path.isprintable()
        assert " " not in service.place.path


@given(markup, st.integers(0, 999))
def test_soap_answers(data: bytes, status: int) -> None:
    answer = upnp.HttpAnswer(status, data)
    assert 0 <= upnp.decode_error(answer) <= 9999
    with contextlib.suppress(MalformedPacket):
        upnp.decode_external(answer)
    with contextlib.suppress(MalformedPacket):
        assert 0 <= upnp.decode_entry(answer).port < 100_000


@given(http)
def test_http_is_bounded(pieces: list[bytes]) -> None:
    reader = Exchange(GATEWAY, Place(80, "/"))
    with contextlib.suppress(MalformedPacket):
        for piece in pieces:
            if reader.feed(piece):
                break
        assert len(reader.answer().body) <= upnp.MAX_HTTP


def test_an_endless_answer_is_cut_off() -> None:
    reader = Exchange(GATEWAY, Place(80, "/"))
    reader.feed(b"HTTP/1.1 200 OK\r\n\r\n")
    fed = 0
    with contextlib.suppress(MalformedPacket):
        while fed < 10 * upnp.MAX_HTTP:
            reader.feed(b"x" * 1000)
            fed += 1000
    assert fed < upnp.MAX_HTTP


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.floats(0, 4000, allow_nan=False),
            replies() | st.binary(max_size=80) | st.integers(0, 6),
            st.integers(-1, 0xFFFF),
        ),
        max_size=60,
    ),
    st.booleans(),
)
def test_no_router_crashes_the_machine_or_makes_it_spin(steps: list[tuple[float, bytes | int, int]], closes: bool) -> None:
    now = 50.0
    mapper = PortMapper(own=OWN, port=PORT, now=Instant(now), rng=random.Random(1), entropy=lambda size: b"n" * size)
    for passed, event, number in steps:
        now += passed
        at = Instant(now)
        sent = 0
        mapper.handle_timeout(at)
        while mapper.poll_transmit(at) is not None:
            sent += 1
            assert sent <= 8
        task = mapper.poll_upnp(at)
        if isinstance(event, bytes):
            mapper.handle_datagram(at, event)
        elif event == 0:
            mapper.upnp_found(at)
        elif event == 1:
            mapper.upnp_mapped(at, Address("44.128.0.1", number % 65_536), number)
        elif event == 2:
            mapper.upnp_failed(at, max(number, 0), "fuzz")
        elif event == 3:
            mapper.upnp_removed(at, number)
        elif event == 4:
            mapper.upnp_failed(at, upnp.CONFLICT, "taken")
        elif event == 5:
            entry = Entry((OWN, "192.168.1.66")[number % 2], PORT, number) if number >= 0 else None
            mapper.upnp_looked_up(at, Address("44.128.0.1", task.external_port if isinstance(task, LookUpPort) else 1), entry)
        if isinstance(task, SearchRouter):
            mapper.upnp_failed(at, 0, "nothing")
        mapping = mapper.mapping
        assert mapping is None or (mapping.external.port and mapping.expires_at > now)
        deadline = mapper.poll_timeout()
        assert deadline is None or deadline < now + 200_000
    assert len(mapper.drops) <= 2
    if closes:
        mapper.close(Instant(now))
        for _ in range(200):
            now += 0.25
            mapper.handle_timeout(Instant(now))
            while mapper.poll_transmit(Instant(now)) is not None:
                pass
            if isinstance(task := mapper.poll_upnp(Instant(now)), UnmapPort):
                mapper.upnp_removed(Instant(now), task.external_port)
        assert mapper.is_finished
        assert all(mapper.stage(way.protocol) is Stage.REMOVED for way in mapper._ways.values())


@given(
    st.text(max_size=300)
    | st.lists(st.sampled_from(["eth0", "00000000", "0101A8C0", "0003", "0", "\t", "\n", "zz"])).map("\t".join)
)
def test_routing_tables(text: str) -> None:
    for gateway in gateways_in(text):
        assert gateway.count(".") == 3


def test_a_routing_table() -> None:
    order = (lambda text: text) if sys.byteorder == "little" else (lambda text: bytes.fromhex(text)[::-1].hex())
    rows = [
        ("tun0", "00000000", "00000000", "0001", "50", "00000000"),  # no gateway
        ("wlan0", "00000000", "0102A8C0", "0003", "600", "00000000"),
        ("eth0", "00000000", "0101A8C0", "0003", "100", "00000000"),
        ("eth0", "0001A8C0", "00000000", "0001", "100", "00FFFFFF"),
    ]
    table = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n" + "".join(
        f"{name}\t{order(destination)}\t{order(gateway)}\t{flags}\t0\t0\t{metric}\t{order(mask)}\t0\t0\t0\n"
        for name, destination, gateway, flags, metric, mask in rows
    )
    assert gateways_in(table) == ["192.168.1.1", "192.168.2.1"]
