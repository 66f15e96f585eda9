"""UPnP-IGD, the little of it that maps a UDP port: SSDP discovery, HTTP, and SOAP, each cut to size and bounded.

Answers come from whatever stands at the gateway's address, so nothing is trusted: every length has a limit, of an address that
an answer names only the port and the path are read, and no general XML parser sees a byte of it.  A text between two tags is all
we need.

Source: UPnP Device Architecture 1.1 §1.3, §2; WANIPConnection:1 §2.4.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from tunnel.errors import MalformedPacket
from tunnel.units import Buffer

if TYPE_CHECKING:
    import h11  # most routers answer PCP or nothing, so it is read when the first one wants HTTP

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

#: An address with any host: a name, IPv4, or IPv6 in brackets.
_URL: Final = re.compile(
    rf"http://(?:[0-9A-Za-z._-]{{1,253}}|\[[0-9A-Za-z:.%]{{2,64}}\])(?::([0-9]{{1,5}}))?(/[!-~]{{0,{MAX_PATH - 1}}})?\Z"
)
_PATH: Final = re.compile(rf"/[!-~]{{0,{MAX_PATH - 1}}}\Z")
_FOUND: Final = re.compile(rb"HTTP/1\.[01] 200(?: |\Z)")
_GATEWAY_DEVICE: Final = b":device:InternetGatewayDevice:"
_PORT: Final = re.compile(r"[0-9]{1,5}\Z")
_SECONDS: Final = re.compile(r"[0-9]{1,10}\Z")
_AFTER_NAME: Final = (">", " ", "\t", "\r", "\n")
_ENTITIES: Final = (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&apos;", "'"), ("&amp;", "&"))


class Place(NamedTuple):
    """Where something of the gateway is asked for by HTTP; the host is always the gateway, whatever an answer says."""

    port: int
    path: str


class Service(NamedTuple):
    """The gateway's service that maps ports."""

    place: Place
    kind: str  # one of SERVICES


class Entry(NamedTuple):
    """A mapping as the gateway keeps it: the arguments of AddPortMapping."""

    client: str
    port: int
    lifetime: int  # seconds that are left; 0: until it is removed


class HttpAnswer(NamedTuple):
    status: int
    body: bytes


# --- discovery


def encode_search(target: str) -> bytes:
    """M-SEARCH, to be sent to the group and to the gateway itself."""
    lines = ("M-SEARCH * HTTP/1.1", f"HOST: {SSDP_GROUP}:{SSDP_PORT}", 'MAN: "ssdp:discover"', "MX: 1", f"ST: {target}", "", "")
    return "\r\n".join(lines).encode()


def decode_search_answer(data: Buffer) -> Place:
    """Where the description is.  Raises MalformedPacket."""
    if len(data) > MAX_SEARCH_ANSWER:
        raise MalformedPacket(f"an SSDP answer of {len(data)} bytes")
    head, *lines = (line.removesuffix(b"\r") for line in bytes(data).split(b"\n"))
    if not _FOUND.match(head):
        raise MalformedPacket("not an SSDP answer")
    for line in lines:
        name, colon, value = line.partition(b":")
        if colon and name.strip().lower() == b"location":
            return _place_in(_text(value).strip())
    raise MalformedPacket("an SSDP answer without a location")


def is_of_a_gateway(data: Buffer) -> bool:
    """Does this answer to a search come from a router, rather than from a printer or a television set?"""
    return _GATEWAY_DEVICE in bytes(data)


def _place_in(url: str) -> Place:
    found = _URL.match(url)
    port = int(found[1] or 80) if found is not None else 0
    if found is None or not 0 < port <= 0xFFFF:
        raise MalformedPacket("not a plain http address")
    return Place(port, found[2] or "/")


# --- HTTP


class Exchange:
    """One question and its answer: send `request`, `feed` until it gives True or the connection ends, then `answer`."""

    __slots__ = ("_body", "_fed", "_http", "_is_whole", "_status", "request")

    def __init__(self, gateway: str, place: Place, headers: Sequence[tuple[str, str]] = (), body: bytes = b"") -> None:
        """GET, or POST where there is a `body`."""
        import h11

        common = [("Host", f"{gateway}:{place.port}"), ("User-Agent", "ptunnel"), ("Connection", "close")]
        if body:
            common.append(("Content-Length", str(len(body))))
        self._http: h11.Connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HTTP_HEADER)
        head = h11.Request(method="POST" if body else "GET", target=place.path, headers=[*common, *headers])
        parts = (head, h11.Data(data=body), h11.EndOfMessage()) if body else (head, h11.EndOfMessage())
        self.request = b"".join(self._http.send(part) or b"" for part in parts)
        self._fed = 0
        self._status = 0  # until the header is there
        self._body = bytearray()
        self._is_whole = False

    def feed(self, data: Buffer) -> bool:
        """True when the answer is complete.  `data` is empty when the connection has ended.  Raises MalformedPacket."""
        import h11

        self._fed += len(data)
        if self._fed > MAX_HTTP:
            raise MalformedPacket(f"an HTTP answer beyond {MAX_HTTP} bytes")
        try:
            self._http.receive_data(bytes(data))
            while not self._is_whole:
                match self._http.next_event():
                    case h11.Response(status_code=status):
                        self._status = status
                        if self._fed - len(self._http.trailing_data[0]) > MAX_HTTP_HEADER:
                            raise MalformedPacket(f"an HTTP header beyond {MAX_HTTP_HEADER} bytes")
                    case h11.Data(data=part):
                        self._body += part
                    case h11.EndOfMessage():
                        self._is_whole = True
                    case h11.InformationalResponse():
                        pass  # some say "100 Continue" first
                    case _:
                        break
        except h11.RemoteProtocolError as error:
            raise MalformedPacket(f"no HTTP: {error}") from None
        return self._is_whole

    def answer(self) -> HttpAnswer:
        """Raises MalformedPacket when what has come is no whole answer."""
        if not self._is_whole and not self.feed(b""):
            raise MalformedPacket("an HTTP answer cut short")
        return HttpAnswer(self._status, bytes(self._body))


# --- the description


def decode_description(data: bytes, place: Place) -> tuple[Service, ...]:
    """The services of the description that was fetched from `place`, the best first; one at least.  Raises MalformedPacket.

    A router with two uplinks describes one for each, and only one of them may be up.
    """
    text = _text(data[:MAX_HTTP])
    port, folder = place.port, place.path.partition("?")[0].rpartition("/")[0]
    base = _element(text, "URLBase", 0)
    if base is not None and base[0].strip():
        root = _place_in(base[0].strip())
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
        found.append(Service(_control_place(control[0].strip(), port, folder), kind[0].strip()))
    if not found:
        raise MalformedPacket("the gateway describes no service that maps ports")
    return tuple(sorted(dict.fromkeys(found), key=lambda service: SERVICES.index(service.kind)))


def _control_place(text: str, port: int, folder: str) -> Place:
    for entity, character in _ENTITIES:
        text = text.replace(entity, character)
    if text.startswith("http:"):
        return _place_in(text)
    path = text if text.startswith("/") else f"{folder}/{text}"
    if not _PATH.match(path):
        raise MalformedPacket("a control address that is none")
    return Place(port, path)


# --- SOAP


def add_mapping(gateway: str, service: Service, own: str, internal_port: int, external_port: int, lifetime: int) -> Exchange:
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


def delete_mapping(gateway: str, service: Service, external_port: int) -> Exchange:
    return _soap(gateway, service, "DeletePortMapping", _key(external_port))


def get_mapping(gateway: str, service: Service, external_port: int) -> Exchange:
    return _soap(gateway, service, "GetSpecificPortMappingEntry", _key(external_port))


def get_external(gateway: str, service: Service) -> Exchange:
    return _soap(gateway, service, "GetExternalIPAddress", ())


def _key(external_port: int) -> Sequence[tuple[str, str]]:
    return (("NewRemoteHost", ""), ("NewExternalPort", str(external_port)), ("NewProtocol", "UDP"))


def decode_external(answer: HttpAnswer) -> str:
    """The address outside, canonical.  Raises MalformedPacket."""
    found = _element(_text(answer.body), "NewExternalIPAddress", 0)
    if answer.status != 200 or found is None:
        raise MalformedPacket("the gateway does not tell its address")
    try:
        return str(ipaddress.IPv4Address(found[0].strip()))
    except ValueError:
        raise MalformedPacket("the gateway's address is none") from None


def decode_entry(answer: HttpAnswer) -> Entry:
    """Raises MalformedPacket, also where there is no such mapping."""
    text = _text(answer.body)
    client, port, lifetime = (
        (_element(text, name, 0) or ("", 0))[0].strip() for name in ("NewInternalClient", "NewInternalPort", "NewLeaseDuration")
    )
    if answer.status != 200 or not _PORT.match(port):
        raise MalformedPacket("the gateway does not tell whose the port is")
    return Entry(client, int(port), int(lifetime) if _SECONDS.match(lifetime) else 0)


def decode_error(answer: HttpAnswer) -> int:
    """0 for success, else UPnP's error code, which some send with HTTP's 200, or HTTP's status where there is none."""
    found = _element(_text(answer.body), "errorCode", 0)
    digits = found[0].strip() if found is not None else ""
    if digits.isascii() and digits.isdecimal() and 0 < len(digits) <= 4 and int(digits):
        return int(digits)
    return 0 if answer.status == 200 else answer.status


def _soap(gateway: str, service: Service, action: str, arguments: Sequence[tuple[str, str]]) -> Exchange:
    inner = "".join(f"<{name}>{value}</{name}>" for name, value in arguments)
    body = (
        '<?xml version="1.0"?>\r\n'
        '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" '
        's:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/">'
        f'<s:Body><u:{action} xmlns:u="{service.kind}">{inner}</u:{action}></s:Body></s:Envelope>\r\n'
    )
    headers = (("Content-Type", 'text/xml; charset="utf-8"'), ("SOAPAction", f'"{service.kind}#{action}"'))
    return Exchange(gateway, service.place, headers, body.encode())


def _text(data: bytes) -> str:
    """Every byte is a character: whatever is no ASCII is refused where it would matter."""
    return data.decode("latin-1")


def _element(text: str, name: str, position: int) -> tuple[str, int] | None:
    """Return the text of the next element of that name, whatever its attributes, and where it ends.  Linear in the text."""
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
