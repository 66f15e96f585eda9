"""What `--forward` means: `[BIND:]LOCAL[:REMOTE][/tcp|/udp|/tcp+udp]`.

LOCAL is a port or a range.  REMOTE is a port or a range on the exposing side, or an exposed NAME, or NAME:PORT; without it,
the same ports as LOCAL.  BIND is an IP address of this computer (IPv6 in brackets), `localhost`, or `*` for all of IPv4.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from tunnel.errors import ConfigurationError

LOOPBACK: Final = "127.0.0.1"
MAX_FORWARDS: Final = 1_024  # ports of all --forward together: each is a listening socket or two
_PORTS = re.compile(r"[0-9]+(-[0-9]*)?\Z")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}\Z|[0-9]{1,3}(\.[0-9]{1,3}){3}\Z")
_SHAPE: Final = "[BIND:]LOCAL[:REMOTE][/tcp|/udp|/tcp+udp], as in 8080, 2222:22 or 5353:53/udp"


@dataclass(frozen=True, slots=True)
class Forward:
    """One local port carried to one target.  `local` 0 lets the system choose a port."""

    bind: str  # numeric address
    local: int
    target: int | str  # a port, NAME or NAME:PORT
    protocol: str  # "tcp" or "udp"
    has_bind: bool = False  # BIND was given: exactly there, not on both loopback addresses

    def __str__(self) -> str:
        host = f"[{self.bind}]" if ":" in self.bind else self.bind
        return f"{host}:{self.local} -> {self.protocol}/{self.target}"


def parse_forwards(texts: Iterable[str]) -> list[Forward]:
    """All of the command line's --forward, checked against one another.  Raises ConfigurationError."""
    forwards: list[Forward] = []
    taken: dict[tuple[str, int, str], str] = {}
    for text in texts:
        for forward in parse_forward(text):
            key = (forward.bind, forward.local, forward.protocol)
            if forward.local and key in taken:
                raise ConfigurationError(
                    f"--forward {text} wants {forward.protocol} port {forward.local}, which --forward {taken[key]} has already."
                )
            taken[key] = text
            forwards.append(forward)
        if len(forwards) > MAX_FORWARDS:
            raise ConfigurationError(f"More than {MAX_FORWARDS} ports are forwarded: leave some out.")
    return forwards


def parse_forward(text: str) -> list[Forward]:
    """One --forward; ranges and tcp+udp make several.  Raises ConfigurationError with one sentence."""
    protocols, rest = _split_protocol(text)
    bind, has_bind, fields = _split_bind(text, rest)
    local = _parse_ports(text, fields[0], zero_allowed=True)
    targets = _parse_target(text, local, fields[1:])
    return [
        Forward(bind, port, target, protocol, has_bind)
        for protocol in protocols
        for port, target in zip(local, targets, strict=True)
    ]


def parse_target(text: str) -> int | str:
    """What --stdio takes: a port, NAME or NAME:PORT.  Raises ConfigurationError."""
    fields = text.split(":")
    if len(fields) == 1 and _PORTS.match(text):
        ports = _parse_ports(text, text)
        if len(ports) != 1:
            raise ConfigurationError(f"“{text}” is a range: give one port.")
        return ports[0]
    return _parse_target(text, range(1, 2), fields)[0]


def _split_protocol(text: str) -> tuple[tuple[str, ...], str]:
    rest, slash, protocol = text.strip().partition("/")
    if not slash:
        return ("tcp",), rest
    match protocol.lower():
        case "tcp":
            return ("tcp",), rest
        case "udp":
            return ("udp",), rest
        case "tcp+udp" | "udp+tcp":
            return ("tcp", "udp"), rest
        case _:
            raise ConfigurationError(f"“/{protocol}” in “{text}” is no protocol: write /tcp, /udp or /tcp+udp.")


def _split_bind(text: str, rest: str) -> tuple[str, bool, list[str]]:
    """BIND as a numeric address, whether it was given, and the other fields, of which there is at least one."""
    if rest.startswith("["):
        host, bracket, rest = rest[1:].partition("]")
        if not bracket or not rest.startswith(":"):
            raise ConfigurationError(f"“{text}” needs a port behind the bracket: write [{host.strip('[]')}]:LOCAL[:REMOTE].")
        return _parse_bind(text, host), True, rest[1:].split(":")
    fields = rest.split(":")
    if fields == [""]:
        raise ConfigurationError(f"--forward needs a port: write {_SHAPE}.")
    if len(fields) > 4 or "" in fields[:-1]:
        try:
            ipaddress.IPv6Address(rest.rpartition(":")[0])
        except ValueError:
            raise ConfigurationError(f"“{text}” cannot be read: write {_SHAPE}.") from None
        raise ConfigurationError(f"“{text}” is ambiguous: put the IPv6 address in brackets, as in [::1]:8080.")
    if _PORTS.match(fields[0]) or len(fields) == 1:
        return LOOPBACK, False, fields
    return _parse_bind(text, fields[0]), True, fields[1:]


def _parse_bind(text: str, host: str) -> str:
    if host == "*":
        return "0.0.0.0"
    if host == "localhost":
        return LOOPBACK
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        raise ConfigurationError(
            f"“{host}” in “{text}” is no IP address: BIND is one of this computer, such as 127.0.0.1 or [::1], or localhost or *."
        ) from None


def _parse_ports(text: str, field: str, *, zero_allowed: bool = False) -> range:
    match = _PORTS.match(field)
    if match is None:
        if field:
            raise ConfigurationError(f"“{field}” in “{text}” is no port: a port is a number from 1 to 65535, a range 5000-5010.")
        raise ConfigurationError(f"A port is missing in “{text}”: write {_SHAPE}.")
    low, dash, high = field.partition("-")
    if dash and not high:
        raise ConfigurationError(f"The range “{field}” has no end: write it as 5000-5010.")
    if len(low) > 5 or len(high) > 5:
        raise ConfigurationError(f"Port {max(low, high, key=len)} in “{text}” is out of range: ports go from 1 to 65535.")
    first, last = int(low), int(high) if dash else int(low)
    for port in (first, last):
        if port > 65_535 or (port == 0 and not (zero_allowed and not dash)):
            raise ConfigurationError(f"Port {port} in “{text}” is out of range: ports go from 1 to 65535.")
    if last < first:
        raise ConfigurationError(f"The range “{field}” runs backwards: write {last}-{first}.")
    if last - first >= MAX_FORWARDS:
        raise ConfigurationError(f"The range “{field}” has {last - first + 1} ports: at most {MAX_FORWARDS} can be forwarded.")
    return range(first, last + 1)


def _parse_target(text: str, local: range, fields: list[str]) -> list[int | str]:
    """A target for each local port."""
    match fields:
        case []:
            if local[0] == 0:
                raise ConfigurationError(f"“{text}” does not say which port of the peer is meant: write 0:PORT.")
            return list(local)
        case [ports] if _PORTS.match(ports) or not ports:
            remote = _parse_ports(text, ports)
            _match_lengths(text, local, remote)
            return list(remote)
        case [name]:
            if len(local) > 1:
                raise ConfigurationError(
                    f"“{text}” forwards a range to the name “{name}”: say its ports too, as in {name}:5000-5010."
                )
            return [_parse_name(text, name)]
        case ["localhost" | "127.0.0.1", ports]:
            ends = f"{local[0]}-{local[-1]}" if len(local) > 1 else str(local[0])
            raise ConfigurationError(f"The other side decides where a port leads, so “{text}” is written {ends}:{ports}.")
        case [name, ports]:
            remote = _parse_ports(text, ports)
            _match_lengths(text, local, remote)
            checked = _parse_name(text, name)
            return [f"{checked}:{port}" for port in remote]
        case _:
            raise ConfigurationError(f"“{text}” has too many parts: write {_SHAPE}.")


def _parse_name(text: str, name: str) -> str:
    if _NAME.match(name) is None:
        raise ConfigurationError(
            f"“{name}” in “{text}” is neither a port nor a name: a name is letters, digits, dots and dashes, a letter first."
        )
    return name


def _match_lengths(text: str, local: range, remote: range) -> None:
    if len(local) != len(remote):
        raise ConfigurationError(
            f"The two ranges in “{text}” differ in length ({len(local)} and {len(remote)} ports): make them equal."
        )
