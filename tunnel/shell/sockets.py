"""The sockets that a driver begins with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, TypeAlias

from tunnel.doors.udp.socket import MAX_BATCH, UdpSocket, open_socket
from tunnel.errors import ConfigurationError

LARGE_BATCH: Final = 2 * MAX_BATCH  # bytes received at once: see outbox.py
OpenSocket: TypeAlias = Callable[[str, int], UdpSocket]  # on a host and port


def open_large(host: str, port: int) -> UdpSocket:
    """A socket that receives much at once.  Raises ConfigurationError."""
    return open_socket(host, port, batch=LARGE_BATCH)


def open_all(bind: Iterable[str], opener: OpenSocket) -> list[UdpSocket]:
    """One for each address; a family that the machine lacks is left out.  Raises ConfigurationError where there is none."""
    found: list[UdpSocket] = []
    problem: ConfigurationError | None = None
    for host in bind:
        try:
            found.append(opener(host, 0))
        except ConfigurationError as error:
            problem = problem or error
    if not found:
        raise problem or ConfigurationError("There is no address to send from.")
    return found


def drops_of(socket: UdpSocket) -> dict[str, int]:
    """Return the socket's losses by reason, with those of the kernel."""
    drops = dict(socket.counters.errors)
    overruns = socket.overruns()
    if overruns:
        drops["overrun"] = drops.get("overrun", 0) + overruns
    return drops
