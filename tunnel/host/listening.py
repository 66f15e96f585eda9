"""Which local ports somebody listens on, without asking them: a connection would use a one-shot server up.  Linux only."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final, NamedTuple

MAX_TABLE: Final = 4 << 20  # bytes of one table that are read: 25,000 sockets; with more, nothing is known
_LISTENS: Final = {"tcp": "0A", "udp": "07"}  # TCP_LISTEN; a UDP socket without a peer is TCP_CLOSE (include/net/tcp_states.h)
#: Local addresses that a connection to 127.0.0.1 or ::1 reaches, as /proc/net writes them on a little-endian machine: any of
#: both families, ::1, and IPv4 loopback as such or mapped.
_REACHED: Final = ("00000000", "0" * 32, "00000000000000000000000001000000")
_LOOPBACK_ENDS: Final = "7F"  # the last byte of a word is the first of an address


class Listening(NamedTuple):
    """Ports by protocol."""

    tcp: frozenset[int]
    udp: frozenset[int]

    def on(self, protocol: str, first: int, last: int) -> bool:
        """Whether anybody listens on one of these."""
        return any(first <= port <= last for port in (self.tcp if protocol == "tcp" else self.udp))


def listening(proc: Path = Path("/proc/net")) -> Listening | None:
    """The ports that are reached by loopback; None where that cannot be known."""
    if sys.platform != "linux" or sys.byteorder != "little":
        return None
    found: dict[str, frozenset[int]] = {}
    for protocol, state in _LISTENS.items():
        ports: set[int] = set()
        for name in (protocol, f"{protocol}6"):
            try:
                with (proc / name).open(encoding="ascii") as table:
                    text = table.read(MAX_TABLE + 1)
            except FileNotFoundError:
                continue  # no IPv6
            except (OSError, ValueError):
                return None
            if len(text) > MAX_TABLE:
                return None
            ports |= _read(text, state)
        found[protocol] = frozenset(ports)
    return Listening(**found)


def _read(text: str, state: str) -> set[int]:
    ports = set()
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 4 or fields[3] != state:
            continue
        address, _, port = fields[1].partition(":")
        if address in _REACHED or address.endswith(_LOOPBACK_ENDS):
            ports.add(int(port, 16))
    return ports
