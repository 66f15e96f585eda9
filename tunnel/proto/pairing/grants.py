"""Grants: what one peer may reach through us.  Everything that is not granted is denied."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, get_args

from tunnel.errors import ConfigurationError, StateError

Protocol = Literal["tcp", "udp"]
PROTOCOLS: Final[tuple[Protocol, ...]] = get_args(Protocol)

_PROTOCOL_WORDS: Final = frozenset(("tcp", "udp", "tcp+udp", "udp+tcp"))

THIS_MACHINE: Final = "127.0.0.1"
_PORTS: Final = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", re.ASCII)
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,31}", re.ASCII)
_HOST: Final = re.compile(r"(?:[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?|[0-9A-Fa-f:.]{2,45}(?:%[A-Za-z0-9_.-]{1,15})?)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Ports `first` to `last` of `host`; without a `name` it is this machine, and the peer asks by port number."""

    protocol: Protocol
    host: str
    first: int
    last: int
    name: str | None = None

    def __str__(self) -> str:
        """For people: `tcp/22`, `udp/5000-5010`, `tcp/nas (192.168.1.5:445)`."""
        ports = f"{self.first}" if self.first == self.last else f"{self.first}-{self.last}"
        if self.name is None:
            return f"{self.protocol}/{ports}"
        return f"{self.protocol}/{self.name} ({_bracketed(self.host)}:{ports})"

    @property
    def place(self) -> tuple[str | None, str]:
        """Where the ports are: the name by which the peer asks, and the machine."""
        return (self.name.lower() if self.name is not None else None), self.host.lower()

    def cut(self, first: int, last: int) -> tuple[tuple[Grant, ...], Grant | None]:
        """What is left without the ports `first` to `last`, and what they take from it; None: nothing."""
        low, high = max(self.first, first), min(self.last, last)
        if low > high:
            return (self,), None
        ends = ((self.first, low - 1), (high + 1, self.last))
        rest = tuple(replace(self, first=start, last=end) for start, end in ends if start <= end)
        return rest, replace(self, first=low, last=high)

    def to_dict(self) -> dict[str, Any]:
        return {"protocol": self.protocol, "name": self.name, "host": self.host, "first": self.first, "last": self.last}


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def parse_grant(text: str) -> tuple[Grant, ...]:
    """Read `22`, `53/udp`, `5000-5010`, `22/tcp+udp`, `nas=192.168.1.5:445` or `web=host:80/tcp`; also `tcp/22`, as it is shown.

    One grant for each protocol.  Raises ConfigurationError.
    """
    rest, protocols = _split_protocols(text)
    protocols = protocols or ("tcp",)
    name: str | None = None
    host = THIS_MACHINE
    ports = rest
    if "=" in rest:
        name, _, place = rest.partition("=")
        host, colon, ports = place.rpartition(":")
        if name.lower() == "localhost":
            raise ConfigurationError(f"{text!r}: that name would be taken for a machine: choose another one, as in web={place}.")
        if _NAME.fullmatch(name) is None:
            raise ConfigurationError(f"{text!r}: the name before the equals sign has letters, digits, dots and hyphens only.")
        if not colon or not host:
            raise ConfigurationError(f"{text!r}: after the equals sign stands HOST:PORT, as in nas=192.168.1.5:445.")
        host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        if _HOST.fullmatch(host) is None:
            raise ConfigurationError(f"{text!r}: {host!r} is neither an address nor a host name.")
    elif ":" in rest:
        raise ConfigurationError(f"{text!r}: another machine needs a name here, as in {_with_name(rest)}.")
    first, last = _parse_ports(text, ports)
    return tuple(Grant(protocol=protocol, name=name, host=host, first=first, last=last) for protocol in protocols)


def _with_name(place: str) -> str:
    """How HOST:PORT, or NAME:HOST:PORT, is written; an example where it is neither."""
    head, _, tail = place.partition(":")
    for suggestion in (f"{head}={tail}", f"nas={place}"):
        try:
            parse_grant(suggestion)
        except ConfigurationError:
            continue
        return suggestion
    return "nas=192.168.1.5:445"


def _split_protocols(text: str) -> tuple[str, tuple[Protocol, ...]]:
    """What stands beside the slash, and the protocols; () where none is said.  Raises ConfigurationError."""
    head, slash, tail = text.strip().partition("/")
    if not slash:
        return head, ()
    rest, words = (tail, head) if head.lower() in _PROTOCOL_WORDS else (head, tail)
    protocols: tuple[Protocol, ...] = tuple(known for known in PROTOCOLS if known in words.lower().split("+"))
    if words.lower() not in _PROTOCOL_WORDS:
        raise ConfigurationError(f"{text!r}: after the slash stands tcp, udp or tcp+udp.")
    return rest, protocols


def _parse_ports(text: str, ports: str) -> tuple[int, int]:
    match = _PORTS.fullmatch(ports)
    if match is None:
        raise ConfigurationError(f"{text!r}: a port is a number from 1 to 65535, or a range as in 5000-5010.")
    first, last = int(match[1]), int(match[2] or match[1])
    if not 1 <= first <= last <= 65_535:
        raise ConfigurationError(f"{text!r}: ports go from 1 to 65535, and a range from its lower to its higher end.")
    return first, last


class GrantSet:
    """The grants of one peer."""

    __slots__ = ("_grants",)

    def __init__(self, grants: Iterable[Grant] = ()) -> None:
        self._grants = tuple(dict.fromkeys(grants))

    @classmethod
    def parse(cls, *texts: str) -> GrantSet:
        """Raises ConfigurationError, also when one name would mean two places."""
        grants = [grant for text in texts for grant in parse_grant(text)]
        places: dict[tuple[str, str], Grant] = {}
        for grant in grants:
            if grant.name is not None and places.setdefault((grant.protocol, grant.name.lower()), grant) != grant:
                raise ConfigurationError(f"The name {grant.name!r} is given to two places; choose another for one of them.")
        return cls(grants)

    @classmethod
    def from_dicts(cls, records: Iterable[Mapping[str, Any]]) -> GrantSet:
        """Raises StateError for anything to_dicts() would not have written."""
        return cls(_grant_from(record) for record in records)

    def to_dicts(self) -> list[dict[str, Any]]:
        return [grant.to_dict() for grant in self._grants]

    def __iter__(self) -> Iterator[Grant]:
        return iter(self._grants)

    def __len__(self) -> int:
        return len(self._grants)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GrantSet) and self._grants == other._grants

    def __hash__(self) -> int:
        return hash(self._grants)

    def __repr__(self) -> str:
        return f"GrantSet({', '.join(map(str, self._grants))})"

    def union(self, newer: GrantSet) -> GrantSet:
        """Both; where both give the same name, the newer one counts."""
        taken = {(grant.protocol, grant.name.lower()) for grant in newer if grant.name is not None}
        kept = (grant for grant in self if grant.name is None or (grant.protocol, grant.name.lower()) not in taken)
        return GrantSet((*kept, *newer))

    def without(self, text: str) -> tuple[GrantSet, GrantSet]:
        """(what is left, what was taken) when this is taken back: `22`, `5000-5010`, `nas`, `nas:445`, `nas=192.168.1.5:445`.

        With a protocol (`53/udp` or `udp/53`) that one alone, else both.  A port inside of a granted range leaves the rest of it.
        Raises ConfigurationError for what cannot be read, and where nothing of it was granted.
        """
        rest, protocols = _split_protocols(text)
        head, colon, ports = rest.partition(":")
        if _NAME.fullmatch(head):
            named = [grant for grant in self if grant.name is not None and grant.name.lower() == head.lower()]
            first, last = _parse_ports(text, ports) if colon else (1, 65_535)
            wanted = tuple(replace(grant, first=first, last=last) for grant in named)
        else:
            wanted = parse_grant(f"{rest}/tcp+udp")
        left: list[Grant] = []
        taken: list[Grant] = []
        for grant in self:
            pieces = [grant]
            for each in wanted:
                if grant.place == each.place and grant.protocol == each.protocol and grant.protocol in (protocols or PROTOCOLS):
                    cuts = [piece.cut(each.first, each.last) for piece in pieces]
                    taken += [cut for _, cut in cuts if cut is not None]
                    pieces = [rest for rests, _ in cuts for rest in rests]
            left += pieces
        if not taken:
            shared = ", ".join(map(str, self)) or "nothing"
            raise ConfigurationError(f"{text!r} is not shared anyway; shared is {shared}.")
        return GrantSet(left), GrantSet(taken)

    def allows(self, protocol: str, target: int | str) -> tuple[str, int] | None:
        """Where a stream or flow to `target` shall go: a port of this machine, NAME, or NAME:port.  None: denied.

        Takes whatever the peer sent.
        """
        name: str | None = None
        port: int | None
        if isinstance(target, str):
            head, colon, tail = target.rpartition(":")
            if colon:
                name, port = head, _port(tail)
                if port is None:
                    return None
            else:
                port = _port(target)
                name = target if port is None else None
        else:
            port = target
        for grant in self._grants:
            if grant.protocol != protocol or (grant.name is None) != (name is None):
                continue
            if name is not None and grant.name is not None and grant.name.lower() != name.lower():
                continue
            if port is None:
                return grant.host, grant.first
            if grant.first <= port <= grant.last:
                return grant.host, port
        return None


def _port(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 5 else None


def _grant_from(record: Mapping[str, Any]) -> Grant:
    try:
        protocol, name, host = record["protocol"], record["name"], record["host"]
        first, last = record["first"], record["last"]
    except (KeyError, TypeError):
        raise StateError("A saved grant is incomplete.") from None
    sound = (
        protocol in PROTOCOLS
        and (name is None or (isinstance(name, str) and _NAME.fullmatch(name) is not None))
        and isinstance(host, str)
        and (_HOST.fullmatch(host) is not None)
        and type(first) is type(last) is int
        and 1 <= first <= last <= 65_535
    )
    if not sound:
        raise StateError("A saved grant makes no sense.")
    return Grant(protocol=protocol, name=name, host=host, first=first, last=last)
