"""Every decoder of bytes or text that are not ours: a value or the one documented exception."""

from __future__ import annotations

import contextlib
import tomllib
from collections.abc import Callable
from typing import Any

from tests.fuzz.engine import Episode, Machine
from tests.fuzz.test_crypto_decoders import GENUINE, HERE
from tests.fuzz.test_lan_fuzz import STATE
from tests.unit.ip.packets import Flow
from tunnel.cli.offers import forwards_for, other_command
from tunnel.control import messages as control
from tunnel.doors.tls.framing import MAX_FRAME, Framing
from tunnel.errors import ConfigurationError, MalformedPacket, PeerError
from tunnel.host.gateway import gateways_in
from tunnel.nat import pcp, stun, upnp
from tunnel.nat.behaviour import Mapping
from tunnel.nat.candidate import (
    CandidateKind,
    Offer,
    decode_candidates,
    decode_offer,
    encode_candidates,
    encode_offer,
    make_candidate,
)
from tunnel.nat.hints import OpenPool, PredictedPorts
from tunnel.node.servers import host_of
from tunnel.pairing.code import complete, looks_like_code, parse_code
from tunnel.pairing.grants import GrantSet
from tunnel.pairing.identity import sanitise_name
from tunnel.ports import open as opening
from tunnel.ports.spec import parse_forwards, parse_target
from tunnel.rendezvous import messages as m
from tunnel.rendezvous.access import AccessList
from tunnel.room.core import messages as room
from tunnel.room.core.roster import decode_roster, is_signed, make_label
from tunnel.room.ip import header, offload
from tunnel.server_spec import parse_server
from tunnel.settings import load
from tunnel.transport.connection.control import ControlReader
from tunnel.transport.crypto.handshake import parse_init, parse_response
from tunnel.transport.crypto.params import decode_params, encode_params
from tunnel.transport.packet import frames
from tunnel.units import Address, SocketId

GATEWAY = "192.168.1.1"


def _stun(data: bytes) -> None:
    message = stun.decode(memoryview(data))
    for name in ("mapped_address", "other_address", "response_origin", "change_request", "unknown_required"):
        with contextlib.suppress(MalformedPacket):
            getattr(message, name)
    stun.decode(stun.encode_binding_response(message, Address("192.0.2.1", 7)))


def _offer(data: bytes) -> None:
    offer = decode_offer(memoryview(data))
    assert decode_offer(encode_offer(offer)) == offer


def _measured(data: bytes) -> None:
    found = opening.decode_measured(data)
    assert found.bytes * 8 / (found.seconds or 1) < 1e18


def _tls(data: bytes) -> None:
    reader = Framing()
    for at in range(0, len(data), 7):
        reader.feed(data[at : at + 7])
        while reader.decode_run() is not None:
            pass
        assert reader.held <= MAX_FRAME + 9


def _control_stream(data: bytes) -> None:
    reader = ControlReader()
    with contextlib.suppress(PeerError):
        for at in range(0, len(data), 11):
            list(reader.feed(data[at : at + 11]))


def _http(data: bytes) -> None:
    reader = upnp.Exchange(GATEWAY, upnp.Place(80, "/"))
    for at in range(0, len(data), 50):
        if reader.feed(data[at : at + 50]):
            break
    answer = reader.answer()
    assert 0 <= upnp.decode_error(answer) <= 9999
    upnp.decode_external(answer)


def _inner(data: bytes) -> None:
    inner = header.parse(memoryview(data), 0, len(data))
    assert inner.total_size <= len(data)


def _code(text: str) -> None:
    looks_like_code(text)
    complete(text)
    with contextlib.suppress(ConfigurationError):
        parse_code(text)


def _grants(text: str) -> None:
    found = GrantSet.parse(*text.split())
    assert GrantSet.from_dicts(found.to_dicts()) == found
    forwards_for(list(found))
    other_command("rv.example.net", list(found))
    for target in (22, "nas", "nas:445"):
        found.allows("tcp", target)


def _names(text: str) -> None:
    assert sanitise_name(text).isprintable()
    assert make_label(text).isascii()
    host_of(text)


def _config(text: str) -> None:
    with contextlib.suppress(tomllib.TOMLDecodeError):
        load(tomllib.loads(text), {})


def _text(decode: Callable[[str], Any], errors: str = "surrogateescape") -> Callable[[bytes], None]:
    """As it comes from a command line; files are read with `errors` that leave no surrogates."""

    def call(data: bytes) -> None:
        with contextlib.suppress(ConfigurationError):
            decode(data.decode("utf-8", errors))

    return call


CANDIDATES = tuple(
    make_candidate(kind, Address(f"192.0.2.{number + 1}", 4000 + number), SocketId(0))
    for number, kind in enumerate(CandidateKind)
)
OFFER = Offer(
    7, CANDIDATES, Mapping.ENDPOINT_INDEPENDENT, True, False, False, (PredictedPorts("192.0.2.9", 4000, 2, 8), OpenPool(4000))
)
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 96\r\n\r\n<NewExternalIPAddress>44.128.0.1</NewExternalIPAddress>" + bytes(41)
SSDP = b"HTTP/1.1 200 OK\r\nLOCATION: http://192.168.1.1:5000/root.xml\r\nST: upnp:rootdevice\r\n\r\n"
DESCRIPTION = (
    f"<URLBase>http://{GATEWAY}:80/</URLBase><service><serviceType>{upnp.SERVICES[1]}</serviceType>"
    "<controlURL>/ctl&amp;x</controlURL></service>"
).encode()
REQUESTS: list[m.RequestMessage] = [
    m.Hello(),
    m.Refresh(),
    m.Allocate(7, 1000, b"t" * 24),
    m.Release(7),
    m.Claim(123, b"p" * 33),
    m.Post(b"m" * 8, b"x" * 60),
    m.Join(0, (b"r" * 16, b"s" * 16)),
    m.Leave((b"r" * 16,), (b"c" * 8,), (b"m" * 8,)),
    m.Rebind(b"c" * 8, 1, 9, b"k" * 16),
    m.Restore(b"c" * 8, 0, b"t" * 16),
    m.Goodbye(),
]
YOU = m.pack_address(Address("192.0.2.1", 4000))
RESPONSES: list[m.ResponseMessage] = [
    m.Retry(b"k" * 17, YOU, 24_532, b"", 5),
    m.Welcome(b"k" * 17, YOU, 90, True, 5, "ptunnel"),
    m.Allocated(731, 600, b"t" * 24),
    m.ClaimAccepted(b"m" * 8, b"c" * 8, b"t" * 16, 1),
    m.Done(3),
    m.Refused(12, "taken", 30),
]
PUSHES: list[m.PushMessage] = [
    m.ClaimReceived(731, b"m" * 8, b"p" * 33, b"c" * 8, b"t" * 16, 0),
    m.Posted(b"m" * 8, b"x" * 60),
    m.Introduced(b"r" * 16, b"c" * 8, b"t" * 16, 0),
    m.Gone(1, b"c" * 8, 2),
    m.Bye(),
]
OPENINGS: list[Any] = [
    opening.Open("tcp", 22),
    opening.Open("udp", "nas:53", 7),
    opening.Bench("datagram sink", 3.0, 1200, 2),
    opening.Open("tcp", "unix:/run/app.sock"),
    opening.Reach("udp", "fd00::1", 53, 2),
    opening.Listen("*", 8080),
    opening.Accepted("127.0.0.1", 8080, 5),
]
MEASURED = [opening.Measured(10**9, 10**6, 3.0), opening.Measured(1, 1, 1e-6), opening.Measured(0, 0, 0.0)]
ASKED: list[control.Request] = [
    control.Status(),
    control.Ping("home", 4),
    control.Bench(None, 3.0),
    control.Check("home", 1.0),
    control.Forget("home"),
    control.Remove("ben", "game"),
    control.Close(),
]
ROOM: list[Any] = [
    room.Hello(b"r" * 32, 7, "anna", True, (b"\xc0\xa8\1\0\x18",)),
    room.State(STATE.roster, STATE.secret),
    room.Have(9),
    room.Told(()),
    room.Refused(1),
    room.Leave(),
]
ROUTES = b"Iface\tDestination\tGateway\tFlags\neth0\t00000000\t0101A8C0\t0003\n"

#: What decodes, and real bytes for it.
TABLE: list[tuple[Callable[[bytes], object], list[bytes]]] = [
    (m.decode_request, [m.encode_request(9, b"s" * 16, each, cookie=b"k" * 17, access_token=b"a") for each in REQUESTS]),
    (m.decode_request_head, [m.encode_request(9, b"s" * 16, m.Hello())]),
    (m.decode_response, [m.encode_response(9, each) for each in RESPONSES]),
    (m.decode_push, [m.encode_push(b"s" * 16, 3, each) for each in PUSHES]),
    (m.decode_push_ack, [m.encode_push_ack(b"s" * 16, 3)]),
    (m.unpack_address, [YOU]),
    (m.unpack_host, [YOU[:4], bytes(16)]),
    (
        _stun,
        [
            stun.encode_binding_request(b"t" * 12, padding_to=100),
            stun.encode_binding_response(
                stun.decode(stun.encode_binding_request(b"t" * 12)),
                Address("192.0.2.1", 4),
                other_address=Address("192.0.2.2", 5),
            ),
        ],
    ),
    (_offer, [encode_offer(OFFER)]),
    (lambda data: decode_candidates(memoryview(data)), [encode_candidates(CANDIDATES)]),
    (parse_init, list(GENUINE.values())),
    (parse_response, list(GENUINE.values())),
    (decode_params, [encode_params(HERE)]),
    (opening.decode_open, [opening.encode(each)[2:] for each in OPENINGS]),
    (opening.decode_opened, [opening.encode(opening.Opened())[2:]]),
    (_measured, [opening.encode(each)[2:] for each in MEASURED]),
    (control.decode_request, [control.encode_line(each) for each in ASKED]),
    (control.decode_answer, [b'{"event":"done"}', b'{"event":"error","code":"busy","message":"x"}']),
    (room.decode_message, [room.encode(each) for each in ROOM]),
    (decode_roster, [STATE.roster]),
    (lambda data: is_signed(data, STATE.room), [STATE.roster]),
    (_tls, [b"\0\5hello\0\5world\0\3end" * 3]),
    (_control_stream, [b"\0\5hello\0\0\0\1x" * 4]),
    (
        pcp.decode_reply,
        [
            b"\0\x81\0\0\0\0\0\7\x9c\x40\x9c\x40\0\0\x0e\x10",
            b"\0\x80\0\0\0\0\0\7\x2c\x80\0\1",
            b"\2\x81\0\0\0\0\x0e\x10\0\0\0\7" + bytes(12) + b"n" * 12 + b"\x11\0\0\0\x9c\x40\x9c\x40" + bytes(16),
        ],
    ),
    (upnp.decode_search_answer, [SSDP]),
    (lambda data: upnp.decode_description(data, upnp.Place(80, "/a/b")), [DESCRIPTION]),
    (_http, [ANSWER, b"HTTP/1.1 500 x\r\nTransfer-Encoding: chunked\r\n\r\n1b\r\n<errorCode>718</errorCode>\r\n0\r\n\r\n"]),
    (lambda data: frames.decode_ack(data, 0, len(data)), [frames._ACK_HEAD.pack(2, 9, 1, 100, 3) + frames._ACK_RANGE.pack(2, 5)]),
    (lambda data: frames.decode_close(data, 0, len(data)), [frames.encode_close(8, "a fault")]),
    (_inner, [Flow(protocol=17).packet(b"hello"), Flow(version=6, protocol=6).packet(b"hello")]),
    (lambda data: offload.decode_offload(memoryview(data), 0), [bytes(10), b"\1\1\x28\0\xb0\5\x22\0\x10\0"]),
    (_text(_code), [b"731-crossover-clockwork", b"7 CROSS clock-work"]),
    (_text(_grants), [b"22 53/udp 5000-5010/tcp+udp nas=192.168.1.5:445", b"a=[fe80::1]:80"]),
    (_text(_names), ["Anna's PC \u2028\x1b[2J".encode(), b"home"]),
    (_text(lambda text: parse_server(text)), [b"rv.example.net:24531,tls=443", b"[2001:db8::1]:7", b"::1"]),
    (_text(lambda text: parse_forwards(text.split())), [b"2222:22 *:8080 127.0.0.1:5000-5010/tcp+udp 1445:nas"]),
    (_text(parse_target), [b"22", b"nas:445"]),
    (_text(AccessList.parse, "replace"), [b"192.0.2.0/24\n2001:db8::/32\ntoken abcdefghijklmnop\n# x\n"]),
    (_text(_config, "replace"), [b'server = "rv.example.net"\npath = "relay"\ntls_port = "off"\nname = "x"\nportmap = "off"\n']),
    (_text(gateways_in, "replace"), [ROUTES]),
]


class _Decoders:
    def feed(self, data: bytes) -> None:
        if data:
            with contextlib.suppress(MalformedPacket):
                TABLE[data[0] % len(TABLE)][0](data[1:])

    def end(self) -> None:
        pass


def corpus() -> list[bytes]:
    return [bytes((number,)) + each for number, (_, real) in enumerate(TABLE) for each in real]


def begin(_seed: int) -> Episode:
    return _Decoders()


MACHINES = [Machine("decoders", corpus, begin, length=2_000)]
