"""The notation of a rendezvous server, of several that stand in for each other, and of how they are reached over TLS.

HOST[:PORT][,tls=PORT|off][,pin=SHA256][,HOST...][,dht]: a server may carry TLS options of its own, have others beside it, and the
DHT for when all are gone; all of it is one word, and is remembered with a peer like that.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final, NamedTuple

from tunnel.errors import ConfigurationError

DEFAULT_PORT: Final = 24_531
DHT: Final = "dht"  # in place of a server: the nodes of the Mainline DHT
DEFAULT_TLS_PORT: Final = 443  # TCP: the last port that networks close
DEFAULT_METRICS_PORT: Final = 9_464  # TCP: of figures for Prometheus, as other programs have their own there
DHT_PORT: Final = 6_881  # of a node of the DHT, where none is said
OPTIONS: Final = ("tls", "pin")  # of a server, behind it
MAX_SERVERS: Final = 8  # in one list: each is looked up, and greeted every 20 s
MAX_ENTRY: Final = 16  # nodes by which we come into the DHT: all are asked at once
#: They lead whoever is new to other nodes; each is run by somebody who makes a BitTorrent client.
DHT_ENTRY: Final = "router.bittorrent.com:6881,dht.transmissionbt.com:6881,router.utorrent.com:6881,dht.libtorrent.org:25401"
_HOST_NAME: Final = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*\.?\Z"
)
_FINGERPRINT: Final = re.compile(r"[0-9a-f]{64}\Z")
_SCHEME: Final = re.compile(r"\A[a-z]{1,10}://", re.IGNORECASE)  # people copy addresses from browsers
_ZONE: Final = re.compile(r"%[A-Za-z0-9_.-]{1,15}\Z")


class TlsOptions(NamedTuple):
    """How a server is reached over TLS where UDP is blocked."""

    port: int | None = DEFAULT_TLS_PORT  # TCP; None: not at all
    fingerprint: str | None = None  # SHA-256 of its certificate, 64 hex digits; None: public authorities vouch for its name


def parse_server(text: str, place: str = "--server") -> tuple[str, int]:
    """`host`, `host:port`, `1.2.3.4:port`, `[2001:db8::1]:port` or a bare IPv6 address; behind it may stand options for TLS.

    Of a list the first one; the others are checked too.  Raises ConfigurationError.
    """
    places = [_parse_one(member, place) for member in members(text, place)]
    return places[0]


def _parse_one(text: str, place: str) -> tuple[str, int]:
    address, _ = _split_word(text, place)
    host, port = split_host_port(address, place, DEFAULT_PORT)
    if not port:
        raise ConfigurationError(f"{place}: port 0 of {text[:80]!r} is no port to send to.")
    return host, port


def members(word: str, place: str = "--server") -> tuple[str, ...]:
    """The servers of a list, each with its options and once; the DHT beside them is none.  Raises ConfigurationError."""
    found: list[str] = []
    for part in alternatives(word.strip())[0].split(","):
        part = part.strip()
        if found and ("=" in part or part in ("", *OPTIONS)):
            found[-1] += f",{part}"
        else:
            found.append(part)
    found = list(dict.fromkeys(found))
    if len(found) > MAX_SERVERS:
        raise ConfigurationError(f"{place} names {len(found)} servers; {MAX_SERVERS} may stand in for each other.")
    return tuple(found)


def widest(known: str | None, configured: str | None) -> str | None:
    """The list that is configured, where the servers that a peer is known with are among it; else what is known.

    So a server that got others beside it is left for all of them, without a new pairing.
    """
    if known is None or configured is None or DHT in (known, configured):
        return known
    try:
        places = [{_parse_one(each, "server") for each in members(word, "server")} for word in (known, configured)]
    except ConfigurationError:  # remembered by another version
        return known
    has_dht = len(alternatives(known)) <= len(alternatives(configured))
    return configured if has_dht and len(places[1]) > 1 and places[0] <= places[1] else known


def tls_options(word: str, default: TlsOptions, place: str = "--server") -> TlsOptions:
    """Those of a server's word, of a list the first one's; what it does not say is as `default`.  Raises ConfigurationError."""
    _, said = _split_word(members(word, place)[0], place)
    port = read_tls_port(said["tls"], f"{place}: tls=") if "tls" in said else default.port
    return TlsOptions(port, read_fingerprint(said["pin"], f"{place}: pin=") if "pin" in said else default.fingerprint)


def with_tls_options(word: str, options: TlsOptions, place: str = "--server") -> str:
    """The server's word with these options written out, where they are not the usual ones.  Raises ConfigurationError."""
    if word == DHT:
        return word
    first, *others = alternatives(word)
    if others:
        return ",".join((with_tls_options(first, options, place), *others))
    several = members(word, place)
    if len(several) > 1:
        return ",".join(with_tls_options(each, options, place) for each in several)
    chosen = tls_options(word, options, place)
    address, _ = _split_word(word, place)
    if chosen.port != DEFAULT_TLS_PORT:
        address += f",tls={'off' if chosen.port is None else chosen.port}"
    return address if chosen.fingerprint is None else f"{address},pin={chosen.fingerprint}"


def alternatives(word: str) -> tuple[str, ...]:
    """The words of a server and of what stands beside it: `rv.example.net` and `dht` of `rv.example.net,dht`."""
    parts = [part.strip() for part in word.split(",")]
    others = [part for part in parts if part != DHT]
    return (",".join(others), DHT) if others and len(others) < len(parts) else (word,)


def split_entry(text: str, place: str) -> list[tuple[str, int]]:
    """Nodes of the DHT as HOST:PORT, with commas between.  Raises ConfigurationError."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not 0 < len(words) <= MAX_ENTRY:
        raise ConfigurationError(f"{place} names 1 to {MAX_ENTRY} nodes of the DHT, as HOST:PORT with commas between.")
    return [split_host_port(word, place, DHT_PORT) for word in words]


def read_tls_port(text: str, place: str = "--tls-port") -> int | None:
    """A TCP port; None for `off`.  Raises ConfigurationError."""
    text = text.strip()
    if text == "off":
        return None
    if text.isascii() and text.isdecimal() and len(text) <= 5 and 0 < int(text) <= 65_535:
        return int(text)
    raise ConfigurationError(f"{place} is a TCP port from 1 to 65535, or off, not {text[:20]!r}.")


def read_fingerprint(text: str, place: str = "--tls-fingerprint") -> str:
    """SHA-256 of a certificate, as 64 hex digits.  Raises ConfigurationError."""
    digits = text.strip().lower().removeprefix("sha256:").replace(":", "").replace(" ", "")
    if _FINGERPRINT.match(digits) is None:
        raise ConfigurationError(
            f"{place} is the SHA-256 of the server's certificate, 64 hexadecimal digits, as 'ptunnel serve' prints it; "
            f"{text[:20]!r} is not."
        )
    return digits


def _split_word(word: str, place: str) -> tuple[str, dict[str, str]]:
    """Of one server."""
    address, *rest = alternatives(word.strip())[0].split(",")
    address = _bare_address(address, place)
    said: dict[str, str] = {}
    for item in rest:
        key, equals, value = item.strip().partition("=")
        if key not in OPTIONS or not equals:
            raise ConfigurationError(f"{place}: {item[:40]!r} is no option of a server, as tls=PORT, pin=SHA256 and dht are.")
        said[key] = value
    return address, said


def _bare_address(address: str, place: str) -> str:
    """Without what people copy along from a browser or from ssh.  Raises ConfigurationError for a user's name."""
    scheme = _SCHEME.match(address)
    bare = address[scheme.end() :].partition("/")[0] if scheme else address.rstrip("/")
    if "@" in bare:
        host = bare.rpartition("@")[2]
        raise ConfigurationError(
            f"{place} names a server, and a server has no users: write {host[:80]!r}, without what is before it."
        )
    return bare


def split_host_port(text: str, place: str, default_port: int) -> tuple[str, int]:
    """The same with port 0 allowed, for addresses to listen on.  Raises ConfigurationError."""
    text = _SCHEME.sub("", text.strip()).rstrip("/")
    shown = repr(text[:80])
    port_text: str | None
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ConfigurationError(f"{place}: {shown} has no closing bracket before the port: write [ADDRESS]:PORT.")
        port_text = rest[1:] if rest else None
    elif text.count(":") > 1:
        host, port_text = text, None
    else:
        host, colon, rest = text.partition(":")
        port_text = rest if colon else None
    if port_text is None:
        port = default_port
    elif port_text.isascii() and port_text.isdecimal() and len(port_text) <= 5 and int(port_text) <= 65_535:
        port = int(port_text)
    else:
        raise ConfigurationError(f"{place}: {port_text[:20]!r} in {shown} is no port: ports go from 1 to 65535.")
    if not _is_host(host):
        raise ConfigurationError(f"{place}: {shown} is neither a host name nor an address: write HOST or HOST:PORT.")
    return host, port


def split_local_place(text: str, place: str, default_port: int) -> tuple[str, int]:
    """ADDR[:PORT] to listen on; a lone port means this machine alone.  Raises ConfigurationError."""
    port = text.strip().lstrip(":")
    is_port = port.isdecimal() and text.count(":") <= 1
    return split_host_port(f"127.0.0.1:{port}" if is_port else text, place, default_port)


def _is_host(host: str) -> bool:
    try:
        ipaddress.ip_address(_ZONE.sub("", host))
    except ValueError:
        looks_numeric = host.replace(".", "").isdigit()  # 300.1.1.1 is a mistyped address, not a name
        return not looks_numeric and _HOST_NAME.match(host) is not None
    return True
