"""How an end of a forward is written that is no port, and how fast a forward may be.

    unix:/PATH      a stream socket (unix(7)), as in unix:/run/postgresql/.s.PGSQL.5432
    NETWORK:PORTS   what a SOCKS door may reach there, as in 192.168.1.0/24:80,443 or [fd00::]/64:53/udp
    RATE            bytes a second, as in 10M or 500k; or bits, as in 80Mbit

A path has no colon, as one stands behind it in a forward; a path of two folders and more is known without `unix:`.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final, NamedTuple

from tunnel.errors import ConfigurationError

UNIX: Final = "unix:"
MAX_PATH: Final = 107  # bytes of a path: sun_path has 108, and a zero ends it (unix(7))
MAX_SHOWN: Final = 80  # characters of what was typed that a sentence repeats

#: `unix:445` is port 445 of what a peer calls unix; `unix:///run/x` is how some programs write it.
_PATH: Final = re.compile(r"(?:unix:(?![0-9]+(?:-[0-9]+)?(?:/|$))(?://(?=/))?|(?=/[^/:=]+/))(?P<path>[^:]*)", re.IGNORECASE)
_PORT_BEHIND: Final = re.compile(r"\.([1-9][0-9]{3,4})", re.ASCII)
_WITHOUT_PORT: Final = 1  # for sockets of which no port is known; nobody else listens there


MAX_PORT: Final = 65_535
_FIELD: Final = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*)(:|$)")
_PROXY: Final = re.compile(r"^(tcp)\+proxy(?=/)|(?<=/)(tcp)\+proxy$", re.IGNORECASE)
_NET: Final = re.compile(
    r"(?:\[(?P<six>[0-9a-fA-F:.]{2,45})(?P<inner>/[0-9]{1,3})?\]|(?P<four>[0-9.]{7,15}))(?P<bits>/[0-9]{1,3})?"
    r":(?P<ports>\*|[0-9]{1,5}(?:-[0-9]{1,5})?(?:,[0-9]{1,5}(?:-[0-9]{1,5})?){0,63})"
    r"(?:/(?P<protocols>tcp|udp|tcp\+udp|udp\+tcp))?",
    re.IGNORECASE | re.ASCII,
)
MIN_RATE: Final = 1_000  # bytes per second: a terminal is still usable
MAX_RATE: Final = 10**12
_RATE: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([kmgt]?)(b|bit|bits|bytes)?(?:/s|ps)?", re.IGNORECASE | re.ASCII)
_FACTORS: Final = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


class Found(NamedTuple):
    """A path, and what stands around it, without the colons between."""

    before: str
    path: str
    behind: str | None  # None: nothing, not even a colon


def find_path(text: str) -> Found | None:
    """The first path in a text of fields, checked.  Raises ConfigurationError for one that cannot be a socket's."""
    for place in (0, *(index + 1 for index, letter in enumerate(text) if letter in ":=")):
        match = _PATH.match(text, place)
        if match is not None:
            end = match.end()
            return Found(text[:place], checked_path(text, match["path"]), text[end + 1 :] if end < len(text) else None)
    return None


def checked_path(text: str, path: str) -> str:
    """Raises ConfigurationError."""
    if not path.startswith("/"):
        raise ConfigurationError(f"{shown(text)}: a Unix socket is written with its whole path, as in unix:/run/app.sock.")
    if not path.isprintable():
        raise ConfigurationError(f"{shown(text)}: the path of a socket has letters that can be shown, and nothing else.")
    size = len(path.encode())
    if size > MAX_PATH:
        raise ConfigurationError(
            f"The path of a Unix socket has {MAX_PATH} bytes at most, and {shown(path)} has {size}: choose a shorter one."
        )
    return path


def is_path(host: str) -> bool:
    """Whether a place is a Unix socket's: `unix:/run/app.sock`; `unix:445` is a port of what is called unix."""
    return host.startswith(f"{UNIX}/")


def path_of(host: str) -> str:
    return host.removeprefix(UNIX)


def can_be_asked(path: str) -> bool:
    """Whether a peer may ask for it by its path: other letters than ASCII need a name."""
    return path.isascii() and path.isprintable()


def port_of(path: str) -> int:
    """The port that a path says, as `.s.PGSQL.5432` does: it is a suggestion for the other side."""
    match = _PORT_BEHIND.search(path, path.rfind("/") + 1)
    return int(match[1]) if match is not None and int(match[1]) <= 65_535 else _WITHOUT_PORT


class Net(NamedTuple):
    """Ports `first` to `last` of every machine in `network`, as CIDR writes it."""

    protocol: str
    network: str
    first: int
    last: int


def read_net(text: str) -> list[Net]:
    """`192.168.1.0/24:80,443`, `192.168.1.5:1-1024/tcp+udp`, `[fd00::]/64:*`; tcp where none is said.

    Raises ConfigurationError with one sentence.
    """
    match = _NET.fullmatch(text.strip())
    if match is None:
        raise ConfigurationError(
            f"{shown(text)}: a network is written with its ports, as in 192.168.1.0/24:80,443 or 192.168.1.5:* for all of them."
        )
    host = (match["six"] or match["four"]) + (match["bits"] or match["inner"] or "")
    try:
        network = str(ipaddress.ip_network(host))
    except ValueError as error:
        try:
            instead = str(ipaddress.ip_network(host, strict=False))
        except ValueError:
            raise ConfigurationError(f"{shown(text)}: {shown(host)} is no network: {error}.") from None
        raise ConfigurationError(f"{shown(text)}: {host} is an address within a network: write {instead}.") from None
    spans = []
    for part in match["ports"].split(","):
        first, _, last = ("1-65535" if part == "*" else part).partition("-")
        spans.append((int(first), int(last or first)))
        if not 1 <= spans[-1][0] <= spans[-1][1] <= MAX_PORT:
            raise ConfigurationError(f"{shown(text)}: ports go from 1 to 65535, and a range from its lower to its higher end.")
    protocols = (match["protocols"] or "tcp").lower().split("+")
    return [Net(each, network, *span) for each in dict.fromkeys(protocols) for span in dict.fromkeys(spans)]


def net_text(protocol: str, network: str, first: int, last: int) -> str:
    """As read_net takes it."""
    address, _, bits = network.partition("/")
    host = f"[{address}]/{bits}" if ":" in address else network
    ports = str(first) if first == last else f"{first}-{last}"
    return f"{host}:{ports}{'' if protocol == 'tcp' else f'/{protocol}'}"


def read_rate(text: str) -> float:
    """Bytes per second.  Raises ConfigurationError."""
    match = _RATE.fullmatch(text.strip())
    if match is None:
        raise ConfigurationError(f"{shown(text)} is no rate: write 10M for ten megabytes a second, 500k, or 80Mbit.")
    rate = float(match[1]) * _FACTORS[match[2].lower()] / (8 if (match[3] or "").lower().startswith("bit") else 1)
    if not MIN_RATE <= rate <= MAX_RATE:
        raise ConfigurationError(f"{shown(text)}: a rate is 1k, which is a thousand bytes a second, or more.")
    return rate


def shown(text: str) -> str:
    """Return the text as a sentence repeats it."""
    return repr(text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}...")


def plain(text: str, otherwise: str) -> str:
    """Return what was typed, where it may stand in a suggestion as it is."""
    return text if re.fullmatch(r"[A-Za-z0-9_.:*%\[\]-]{1,60}", text) else otherwise


def spaced(text: str) -> str:
    """Return the text with a blank behind each comma."""
    parts = [part for part in re.split(r"[,\s]+", text) if re.fullmatch(r"[A-Za-z0-9_.:=\[\]-]{1,40}", part)]
    return " ".join(parts[:8]) if parts else "22 80"


def without_proxy(text: str) -> str:
    """`8080/tcp` of `8080/tcp+proxy`."""
    return _PROXY.sub(r"\1\2", text.strip(), count=1)


def without_tcp(text: str) -> str:
    """`tcp/unix:/run/app.sock` is how ptunnel shows it."""
    text = text.strip()
    return text[4:] if text[:4].lower() == "tcp/" else text


def fields_of(text: str, rest: str) -> list[str]:
    """Return the fields between the colons; colons inside brackets do not count."""
    fields: list[str] = []
    place = 0
    while place <= len(rest):
        match = _FIELD.match(rest, place)
        if match is None:
            raise ConfigurationError(f"{shown(text)} needs a port behind the bracket: write [ADDRESS]:LOCAL[:REMOTE].")
        fields.append(match[1].strip("[]"))
        place = match.end()
        if not match[2]:
            break
    return fields
