"""The meaning of `--forward`: `[BIND:]LOCAL[:REMOTE][/tcp|/udp|/tcp+udp]`; tunnel.notation reads it.

LOCAL is a port or a range.  REMOTE is a port or a range on the exposing side, or an exposed NAME, or NAME:PORT; without it,
the same ports as LOCAL.  BIND is an IP address of this computer, `localhost`, or `*` for all of them, IPv4 and IPv6.
`unix:/PATH` may stand for [BIND:]LOCAL, and for REMOTE.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from tunnel.ends import UNIX, shown
from tunnel.errors import ConfigurationError
from tunnel.notation import MAX_RANGE, read_forward, read_target

LOOPBACK: Final = "127.0.0.1"
EVERYWHERE: Final = "*"  # all addresses of this computer, of both families
MAX_FORWARDS: Final = MAX_RANGE  # ports of all --forward together


@dataclass(frozen=True, slots=True)
class Forward:
    """One local port, or the Unix socket at `path`, carried to one target.  `local` 0 lets the system choose a port."""

    bind: str  # numeric address, or EVERYWHERE
    local: int
    target: int | str  # a port, NAME, NAME:PORT or unix:/PATH
    protocol: str  # "tcp" or "udp"; "socks" for the door, whose clients name the target
    has_bind: bool = False  # BIND was given: exactly there, not on both loopback addresses
    path: str = ""  # of a Unix socket, in the place of `bind` and `local`

    @property
    def is_door(self) -> bool:
        return self.protocol == "socks"

    def __str__(self) -> str:
        host = f"[{self.bind}]" if ":" in self.bind else self.bind
        return f"{f'{UNIX}{self.path}' if self.path else f'{host}:{self.local}'} -> {self.protocol}/{self.target}"


def parse_forwards(texts: Iterable[str]) -> list[Forward]:
    """All of the command line's --forward, checked against one another.  Raises ConfigurationError."""
    forwards: list[Forward] = []
    taken: dict[tuple[str, int, str], str] = {}
    for text in texts:
        for forward in parse_forward(text):
            key = (forward.path or forward.bind, forward.local, forward.protocol)
            if forward.path and key in taken:
                raise ConfigurationError(f"--forward {text} wants {forward.path}, which --forward {taken[key]} has already.")
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
    spec = read_forward(text)
    bind = LOOPBACK if spec.bind in (None, "localhost") else spec.bind
    return [
        Forward(bind, port, target, protocol, spec.bind is not None, spec.path)
        for protocol in spec.protocols
        for port, target in zip(spec.local, spec.targets, strict=True)
    ]


def parse_door(text: str) -> list[Forward]:
    """Read the value of --socks: [BIND:]PORT or unix:/PATH.  Raises ConfigurationError with one sentence."""
    read = parse_forward(f"{text.strip() or 0}:1")
    if not text.strip() or len(read) != 1 or read[0].protocol != "tcp" or read[0].target != 1:
        raise ConfigurationError(f"{shown(text)}: --socks takes [BIND:]PORT alone, as in 1080.")
    return [replace(read[0], protocol="socks", target="socks")]


def parse_target(text: str) -> int | str:
    """Read the value of --stdio: a port, NAME, NAME:PORT or unix:/PATH.  Raises ConfigurationError."""
    return read_target(text)
