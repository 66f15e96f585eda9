"""UPnP-IGD, the little of it that maps a UDP port: SSDP discovery, HTTP, and SOAP, each cut to size and bounded.

Answers come from whatever stands at the gateway's address, so nothing is trusted: every length has a limit, addresses that an
answer names must be the gateway's own, and no general XML parser sees a byte of it.  A text between two tags is all we need.

Source: UPnP Device Architecture 1.1 §1.3, §2; WANIPConnection:1 §2.4.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from tunnel.errors import MalformedPacket
from tunnel.units import Buffer

SSDP_GROUP: Final = "239.255.255.250"
SSDP_PORT: Final = 1900
#: Version 1 is what every later one answers to as well; some answer only to the last.  UDA 1.1 §1.3.2.
SEARCH_TARGETS: Final = ("urn:schemas-upnp-org:device:InternetGatewayDevice:1", "upnp:rootdevice")
MAX_SEARCH_ANSWER: Final = 4_096  # bytes
MAX_HTTP: Final = 65_536  # bytes of one answer with its header
MAX_HTTP_HEADER: Final = 8_192
MAX_PATH: Final = 512  # characters of a path that the gateway names, and that we ask it for
MAX_SERVICES: Final = 32  # looked at in one description

#: The services that can map a port, the best first.
SERVICES: Final = (
    "urn:schemas-upnp-org:service:WANIPConnection:2",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
)

# Error codes of WANIPConnection §2.4.16 and WANIPConnection:2 §2.5.16.
CONFLICT: Final = 718
ONLY_PERMANENT: Final = 725
CONFLICT_WITH_OTHER: Final = 729
NO_PORTS: Final = 728
INVALID_ARGS: Final = 402
ACTION_FAILED: Final = 501
INVALID_VALUE: Final = 600  # UDA 1.1 §3.2.2, and the next two
VALUE_OUT_OF_RANGE: Final = 601
NOT_IMPLEMENTED: Final = 602
SAME_PORT: Final = 724  # a router that maps a port to the same one only
NO_CODE: Final = 500  # HTTP's, where a router says nothing but that it failed
#: What routers answer that grant no lease, only mappings that last: the code for it, and those that some give instead.
NO_LEASES: Final = frozenset(
    {ONLY_PERMANENT, INVALID_ARGS, ACTION_FAILED, INVALID_VALUE, VALUE_OUT_OF_RANGE, NOT_IMPLEMENTED, NO_CODE}
)

_URL: Final = re.compile(rf"http://([0-9.]{{7,15}})(?::([0-9]{{1,5}}))?(/[!-~]{{0,{MAX_PATH - 1}}})?\Z")
_PATH: Final = re.compile(rf"/[!-~]{{0,{MAX_PATH - 1}}}\Z")
_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([0-9]{3})(?: |\r|\Z)")
_AFTER_NAME: Final = (">", " ", "\t", "\r", "\n")
_ENTITIES: Final = (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&apos;", "'"), ("&amp;", "&"))


class Place(NamedTuple):
    """Where something of the gateway is asked for by HTTP; its host is the gateway."""

    port: int
    path: str


class Service(NamedTuple):
    """The gateway's service that maps ports."""

    place: Place
    kind: str  # one of SERVICES


class HttpAnswer(NamedTuple):
    status: int
    body: bytes


# --- discovery


def encode_search(target: str) -> bytes:
    """M-SEARCH, to be sent to the group and to the gateway itself."""
    lines = ("M-SEARCH * HTTP/1.1", f"HOST: {SSDP_GROUP}:{SSDP_PORT}", 'MAN: "ssdp:discover"', "MX: 1", f"ST: {target}", "", "")
    return "\r\n".join(lines).encode()


def decode_search_answer(data: Buffer, gateway: str) -> Place:
    """Where the gateway's description is.  Raises MalformedPacket, also when it names another host than the gateway."""
    if len(data) > MAX_SEARCH_ANSWER:
        raise MalformedPacket(f"an SSDP answer of {len(data)} bytes")
    head, *lines = bytes(data).split(b"\r\n")
    status = _STATUS.match(head)
    if status is None or status[1] != b"200":
        raise MalformedPacket("not an SSDP answer")
    for line in lines:
        name, colon, value = line.partition(b":")
        if colon and name.strip().lower() == b"location":
            return _place_in(_text(value).strip(), gateway)
    raise MalformedPacket("an SSDP answer without a location")


def _place_in(url: str, gateway: str) -> Place:
    found = _URL.match(url)
    if found is None:
        raise MalformedPacket("not a plain http address")
    port = int(found[2] or 80)
    if found[1] != gateway or not 0 < port <= 0xFFFF:
        raise MalformedPacket("an address that is not the gateway's own")
    return Place(port, found[3] or "/")


# --- HTTP


class HttpReader:
    """Collects one answer.  `feed` until it gives True or the connection ends, then `answer`."""

    __slots__ = ("_body_at", "_buffer", "_chunked", "_length")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._body_at = 0  # 0 while the header is not complete
        self._length: int | None = None
        self._chunked = False

    def feed(self, data: Buffer) -> bool:
        """True when the answer is complete.  Raises MalformedPacket beyond MAX_HTTP."""
        before = len(self._buffer)
        if before + len(data) > MAX_HTTP:
            raise MalformedPacket(f"an HTTP answer beyond {MAX_HTTP} bytes")
        self._buffer += data
        if not self._body_at:
            end = self._buffer.find(b"\r\n\r\n", max(0, before - 3))
            if end < 0 and len(self._buffer) <= MAX_HTTP_HEADER:
                return False
            if not 0 <= end <= MAX_HTTP_HEADER:
                raise MalformedPacket("an HTTP header without an end")
            self._body_at = end + 4
            self._read_header(bytes(self._buffer[:end]))
        if self._chunked:
            is_empty = len(self._buffer) - self._body_at == 5
            return self._buffer.endswith(b"0\r\n\r\n" if is_empty else b"\r\n0\r\n\r\n")
        return self._length is not None and len(self._buffer) - self._body_at >= self._length

    def _read_header(self, header: bytes) -> None:
        for line in header.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            value = value.strip().lower()
            match name.strip().lower():
                case b"content-length":
                    if not value.isdigit() or len(value) > 6:
                        raise MalformedPacket("an HTTP answer of unknown length")
                    self._length = int(value)
                case b"transfer-encoding":
                    self._chunked = value == b"chunked"

    def answer(self) -> HttpAnswer:
        """Raises MalformedPacket when what has come is no whole answer."""
        status = _STATUS.match(self._buffer)
        if not self._body_at or status is None:
            raise MalformedPacket("not an HTTP answer")
        body = bytes(self._buffer[self._body_at :])
        if self._chunked:
            body = _unchunk(body)
        elif self._length is not None:
            if len(body) < self._length:
                raise MalformedPacket("an HTTP answer cut short")
            body = body[: self._length]
        return HttpAnswer(int(status[1]), body)


def _unchunk(body: bytes) -> bytes:
    """RFC 9112 §7.1."""
    out, position = bytearray(), 0
    while True:
        end = body.find(b"\r\n", position, position + 64)
        digits = body[position:end].partition(b";")[0].strip() if end >= 0 else b""
        if not 0 < len(digits) <= 5 or not all(digit in b"0123456789abcdefABCDEF" for digit in digits):
            raise MalformedPacket("a bad chunk")
        size = int(digits, 16)
        if size == 0:
            return bytes(out)
        position = end + 2 + size + 2
        if position > len(body):
            raise MalformedPacket("a chunk cut short")
        out += body[end + 2 : position - 2]


def encode_get(gateway: str, place: Place) -> bytes:
    lines = (f"GET {place.path} HTTP/1.1", f"Host: {gateway}:{place.port}", "User-Agent: ptunnel", "Connection: close", "", "")
    return "\r\n".join(lines).encode()


# --- the description


def decode_description(data: bytes, gateway: str, place: Place) -> tuple[Service, ...]:
    """The services of the description that was fetched from `place`, the best first; one at least.  Raises MalformedPacket.

    A router with two uplinks describes one for each, and only one of them may be up.
    """
    text = _text(data[:MAX_HTTP])
    port, folder = place.port, place.path.partition("?")[0].rpartition("/")[0]
    base = _element(text, "URLBase", 0)
    if base is not None and base[0].strip():
        root = _place_in(base[0].strip(), gateway)
        port, folder = root.port, root.path.rpartition("/")[0]
    found: list[Service] = []
    position = 0
    for _ in range(MAX_SERVICES):
        block = _element(text, "service", position)
        if block is None:
            break
        inner, position = block
        kind = _element(inner, "serviceType", 0)
        control = _element(inner, "controlURL", 0)
        if kind is None or control is None or kind[0].strip() not in SERVICES:
            continue
        found.append(Service(_control_place(control[0].strip(), gateway, port, folder), kind[0].strip()))
    if not found:
        raise MalformedPacket("the gateway describes no service that maps ports")
    return tuple(sorted(dict.fromkeys(found), key=lambda service: SERVICES.index(service.kind)))


def _control_place(text: str, gateway: str, port: int, folder: str) -> Place:
    for entity, character in _ENTITIES:
        text = text.replace(entity, character)
    if text.startswith("http:"):
        return _place_in(text, gateway)
    path = text if text.startswith("/") else f"{folder}/{text}"
    if not _PATH.match(path):
        raise MalformedPacket("a control address that is none")
    return Place(port, path)


# --- SOAP


def encode_add(gateway: str, service: Service, own: str, internal_port: int, external_port: int, lifetime: int) -> bytes:
    """AddPortMapping for UDP; `lifetime` 0 means until it is removed."""
    return _soap(
        gateway,
        service,
        "AddPortMapping",
        (
            ("NewRemoteHost", ""),
            ("NewExternalPort", str(external_port)),
            ("NewProtocol", "UDP"),
            ("NewInternalPort", str(internal_port)),
            ("NewInternalClient", own),
            ("NewEnabled", "1"),
            ("NewPortMappingDescription", "ptunnel"),
            ("NewLeaseDuration", str(lifetime)),
        ),
    )


def encode_delete(gateway: str, service: Service, external_port: int) -> bytes:
    arguments = (("NewRemoteHost", ""), ("NewExternalPort", str(external_port)), ("NewProtocol", "UDP"))
    return _soap(gateway, service, "DeletePortMapping", arguments)


def encode_get_external(gateway: str, service: Service) -> bytes:
    return _soap(gateway, service, "GetExternalIPAddress", ())


def decode_external(answer: HttpAnswer) -> str:
    """The address outside, canonical.  Raises MalformedPacket."""
    found = _element(_text(answer.body), "NewExternalIPAddress", 0)
    if answer.status != 200 or found is None:
        raise MalformedPacket("the gateway does not tell its address")
    try:
        return str(ipaddress.IPv4Address(found[0].strip()))
    except ValueError:
        raise MalformedPacket("the gateway's address is none") from None


def decode_error(answer: HttpAnswer) -> int:
    """0 for success, else UPnP's error code, or HTTP's status where there is none."""
    if answer.status == 200:
        return 0
    found = _element(_text(answer.body), "errorCode", 0)
    digits = found[0].strip() if found is not None else ""
    return int(digits) if digits.isascii() and digits.isdecimal() and 0 < len(digits) <= 4 and int(digits) else answer.status


def _soap(gateway: str, service: Service, action: str, arguments: Sequence[tuple[str, str]]) -> bytes:
    inner = "".join(f"<{name}>{value}</{name}>" for name, value in arguments)
    body = (
        '<?xml version="1.0"?>\r\n'
        '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" '
        's:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/">'
        f'<s:Body><u:{action} xmlns:u="{service.kind}">{inner}</u:{action}></s:Body></s:Envelope>\r\n'
    )
    lines = (
        f"POST {service.place.path} HTTP/1.1",
        f"Host: {gateway}:{service.place.port}",
        "User-Agent: ptunnel",
        'Content-Type: text/xml; charset="utf-8"',
        f'SOAPAction: "{service.kind}#{action}"',
        f"Content-Length: {len(body)}",
        "Connection: close",
        "",
        body,
    )
    return "\r\n".join(lines).encode()


def _text(data: bytes) -> str:
    """Every byte is a character: whatever is no ASCII is refused where it would matter."""
    return data.decode("latin-1")


def _element(text: str, name: str, position: int) -> tuple[str, int] | None:
    """What stands in the next element of that name, whatever its attributes, and where it ends.  Linear in the text."""
    while True:
        found = text.find(f"<{name}", position)
        if found < 0:
            return None
        position = found + 1 + len(name)
        if text[position : position + 1] in _AFTER_NAME:
            break  # else another name that begins alike
    first, last = text.find(">", position), text.find(f"</{name}>", position)
    if first < 0 or last < first:
        return None
    return text[first + 1 : last], last + len(name) + 3
