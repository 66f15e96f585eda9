"""`ptunnel serve --check`: what would keep a server from serving, one sentence each.

What can be looked at here is looked at: ports, certificate, clock, buffers and open files.  Whether a port is reached from
outside only somebody outside can tell: another ptunnel server, which is asked to write to it.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from tunnel.doors.tls.certificates import read_certificate, server_context
from tunnel.doors.tls.guests import MAX_CONNECTIONS, MAX_STRANGERS
from tunnel.doors.tls.server import ServerCertificate, TlsListener
from tunnel.doors.udp.base import RECEIVE_BUFFER
from tunnel.doors.udp.socket import UdpSocket, open_socket
from tunnel.errors import ConfigurationError
from tunnel.host.clock import is_synchronised
from tunnel.host.interfaces import source_address
from tunnel.host.limits import most_descriptors
from tunnel.node.clocks import spoken
from tunnel.shell.doctor import CLOCK_TOLERANCE
from tunnel.shell.outside import View, view_from
from tunnel.shell.serve import TlsConfig, read_access_file
from tunnel.shell.sockets import OpenSocket
from tunnel.units import Address

RENEWAL: Final = 14 * 86_400  # seconds before its end at which a certificate should long have been renewed
OWN_FILES: Final = 64  # descriptors of the process beside those of connections
IN_USE: Final = "in use"  # in the sentence about a port that is taken
LOOPBACK: Final[Mapping[str, str]] = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # where a server is asked that listens everywhere
ANYWHERE: Final[Mapping[bool, str]] = {False: "0.0.0.0", True: "::"}  # to send from
LIMIT_WORDS: Final = "LimitNOFILE= of its systemd unit, or 'ulimit -n'"


class State(StrEnum):
    OK = "ok"
    WARNING = "warning"  # it serves, and something should be better
    FAILED = "failed"  # it does not serve as asked
    UNKNOWN = "unknown"  # it cannot be known from here


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A look at one thing, and its result."""

    what: str  # a word that stays the same
    state: State
    message: str  # one sentence

    def to_dict(self) -> dict[str, str]:
        """As the machine interface has it."""
        return {"event": "finding", "what": self.what, "state": self.state.value, "message": self.message}


async def is_served(where: Address) -> bool:
    """Whether a ptunnel server answers there."""
    try:
        sock = open_socket(ANYWHERE[where.is_ipv6], 0)
    except ConfigurationError:
        return False
    try:
        return any(each.seen is not None for each in await view_from([sock], {where.is_ipv6: where}))
    finally:
        sock.close()


class Ports(NamedTuple):
    """The findings about UDP ports, and the means for further looks."""

    found: list[Finding]
    sockets: list[UdpSocket]  # on those that are free
    pids: set[int]  # servers of ours on the others
    has_strangers: bool  # somebody else's server has one


async def check_udp(
    places: Sequence[tuple[str, int]],
    ours: Mapping[str, int],
    *,
    opener: OpenSocket = open_socket,
    answers: Callable[[Address], Awaitable[bool]] = is_served,
) -> Ports:
    """Ports to listen on, with the second one beside each.

    `ours`: addresses at which a server of this user listens already, with its process.  `answers`: whether some server does.
    """
    ports = Ports([], [], set(), False)
    hosts = {host for host, _ in places}
    for host, port in places:
        where = Address(host, port)
        if (pid := ours.get(str(where))) is not None:
            ports.pids.add(pid)
            ports.found.append(_udp(State.OK, f"UDP {where} is served by ptunnel, process {pid}."))
            continue
        try:
            ports.sockets.append(opener(host, port))
        except ConfigurationError as error:
            if host == "::" and "0.0.0.0" in hosts and "no IPv6" in str(error):
                ports.found.append(_udp(State.OK, "This machine has no IPv6, so the server listens on IPv4 alone."))
            elif IN_USE not in str(error):
                ports.found.append(_udp(State.FAILED, str(error)))
            elif await answers(Address(LOOPBACK.get(host, host), port)):
                ports = ports._replace(has_strangers=True)
                ports.found.append(_udp(State.OK, f"UDP {where} is served by a ptunnel server of another user, or PTUNNEL_HOME."))
            else:
                ports.found.append(_udp(State.FAILED, f"{error} 'ss -ulpn sport = :{port}' names it."))
            continue
        ports.found.append(_udp(State.OK, f"UDP {where} is free."))
        second = Address(host, port + 1 if port < 65_535 else 0)
        try:
            ports.sockets.append(opener(second.host, second.port))
        except ConfigurationError:
            text = f"UDP {second} is taken, so the server takes any free port beside {port}, which a firewall does not know."
            ports.found.append(_udp(State.WARNING, text))
    return ports


def _udp(state: State, message: str) -> Finding:
    return Finding(what="udp_port", state=state, message=message)


def check_tls(tls: TlsConfig, hosts: Sequence[str], ours: Mapping[str, int], now: float) -> list[Finding]:
    """The certificate with its key, and the TCP ports."""
    found = check_certificate(tls, now)
    if any(each.state is State.FAILED for each in found):
        return found
    certificate = ServerCertificate(tls.certificate, tls.key)
    for host in dict.fromkeys(hosts):
        where = Address(host, tls.port)
        if (pid := ours.get(str(where))) is not None:
            found.append(_tcp(State.OK, f"TCP {where} is served by ptunnel, process {pid}."))
            continue
        try:
            TlsListener(host, tls.port, certificate).close()
        except ConfigurationError as error:
            if host == "::" and "0.0.0.0" in hosts and "no IPv6" in str(error):
                continue
            hint = "" if IN_USE not in str(error) else f" 'ss -tlpn sport = :{tls.port}' names it."
            found.append(_tcp(State.FAILED, f"{error}{hint}"))
        else:
            found.append(_tcp(State.OK, f"TCP {where} is free."))
    return found


def _tcp(state: State, message: str) -> Finding:
    return Finding(what="tcp_port", state=state, message=message)


def check_access(path: str) -> Finding:
    """The file of --access."""
    try:
        read_access_file(path)
    except ConfigurationError as error:
        return Finding(what="access", state=State.FAILED, message=str(error))
    return Finding(what="access", state=State.OK, message=f"The access list {path} can be read; nobody else is served.")


def check_certificate(tls: TlsConfig, now: float) -> list[Finding]:
    """Files, names, and from when to when it is good; `now` is Unix time."""

    def say(state: State, message: str) -> Finding:
        return Finding(what="certificate", state=state, message=message)

    try:
        server_context(tls.certificate, tls.key)
        shown = read_certificate(tls.certificate)
    except ConfigurationError as error:
        return [say(State.FAILED, str(error))]
    if now >= shown.ends_at:
        return [say(State.FAILED, f"The certificate ended on {_day(shown.ends_at)}: renew it, and send the server SIGHUP.")]
    if now < shown.begins_at:
        text = f"The certificate begins on {_day(shown.begins_at)}, and this machine's clock says {_day(now)}: set the clock."
        return [say(State.FAILED, text)]
    names = ", ".join(shown.names) or "no name"
    until = f"until {_day(shown.ends_at)}"
    if shown.ends_at - now < RENEWAL:
        days = int((shown.ends_at - now) / 86_400)
        found = [say(State.WARNING, f"The certificate for {names} is good {until}, {days} days: see why it was not renewed.")]
    elif not shown.names or shown.is_own:
        text = f"The certificate for {names} is good {until}; no public authority vouches for it, so peers name its SHA-256."
        found = [say(State.OK, text)]
    else:
        found = [say(State.OK, f"The certificate for {names} is good {until}.")]
    key = tls.key or tls.certificate
    if os.name == "posix" and stat.S_IMODE(os.stat(key).st_mode) & 0o004:
        found.append(say(State.WARNING, f"Every user of this machine can read the key: 'chmod o-r {key}'."))
    return found


def _day(unix_time: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(unix_time))


def check_machine(sockets: Sequence[UdpSocket], has_tls: bool) -> list[Finding]:
    """Receive buffers and open files."""
    found: list[Finding] = []
    if sockets:
        least = min(each.receive_buffer for each in sockets)
        if least < RECEIVE_BUFFER:
            text = (
                f"The kernel holds {least // 1024:,} KiB of datagrams for a socket, and is asked for {RECEIVE_BUFFER // 1024:,}: "
                f"'sysctl -w net.core.rmem_max={RECEIVE_BUFFER}' lets it, so that fewer are lost when many come at once."
            )
            found.append(Finding(what="receive_buffer", state=State.WARNING, message=text))
        else:
            text = f"The kernel holds {least // 1024:,} KiB of datagrams for a socket."
            found.append(Finding(what="receive_buffer", state=State.OK, message=text))
    limit = most_descriptors()
    if limit is not None and has_tls:
        wanted = MAX_CONNECTIONS + MAX_STRANGERS + OWN_FILES
        text = f"The process may open {limit:,} files, and each TLS connection is one"
        state = State.OK if limit >= wanted else State.WARNING
        more = "." if state is State.OK else f": {wanted:,} are for all that it takes ({LIMIT_WORDS})."
        found.append(Finding(what="open_files", state=state, message=text + more))
    return found


def check_clock(views: Sequence[View], synchronised: Callable[[], bool | None] = is_synchronised) -> Finding:
    """Against the server that was asked, else by what the kernel says of its own."""
    ahead = next((each.clock_off_s for each in views if each.clock_off_s is not None), None)
    if ahead is not None:
        server = views[0].server
        if abs(ahead) <= CLOCK_TOLERANCE:
            return Finding(what="clock", state=State.OK, message=f"The clock agrees with that of {server} within a minute.")
        direction = "ahead of" if ahead > 0 else "behind"
        text = f"The clock is {spoken(abs(ahead))} {direction} that of {server}: set it, if it is the wrong one."
        return Finding(what="clock", state=State.WARNING, message=text)
    match synchronised():
        case True:
            return Finding(what="clock", state=State.OK, message="The kernel says that its clock is kept right.")
        case False:
            text = "Nothing keeps the clock right, as the kernel says: install chrony, or switch systemd-timesyncd on."
            return Finding(what="clock", state=State.WARNING, message=text)
    text = "Whether the clock is right cannot be known from here: --from SERVER compares it with another server's."
    return Finding(what="clock", state=State.UNKNOWN, message=text)


def check_outside(
    views: Sequence[View] | None, host_words: str, *, own: Callable[[str], str | None] = source_address
) -> list[Finding]:
    """`views`: what another server sees of each socket; None: none was asked.  `host_words`: how this one is named."""
    if views is None:
        text = (
            "Whether the UDP ports are reached from outside cannot be known from here: 'ptunnel serve --check --from SERVER' has "
            f"another ptunnel server try, and so does 'ptunnel doctor --server {host_words}' on a computer elsewhere."
        )
        return [Finding(what="outside", state=State.UNKNOWN, message=text)]
    if not views:
        text = (
            "No port could be tried from outside: each is another user's, or the server of --from has no address of its family."
        )
        return [Finding(what="outside", state=State.UNKNOWN, message=text)]
    return [_outside(each, own) for each in views]


def _outside(view: View, own: Callable[[str], str | None]) -> Finding:
    def say(state: State, message: str) -> Finding:
        return Finding(what="outside", state=state, message=message)

    host, _, port = view.bind.rpartition(":")
    if view.seen is None:
        text = f"{view.server} does not answer UDP {view.bind}: it does not run, or no way leads there or back."
        return say(State.UNKNOWN, text)
    seen_host, _, seen_port = view.seen.rpartition(":")
    server = view.server.rpartition(":")[0].strip("[]")
    mine = host.strip("[]") if host not in ("0.0.0.0", "[::]") else own(server)
    is_translated = mine is not None and seen_host.strip("[]") != mine
    if not view.has_second:
        return say(State.UNKNOWN, f"{view.server} has no second port to write from, so it cannot tell: name another with --from.")
    if seen_port != port:
        text = (
            f"A router stands before this machine and shows UDP port {port} as {view.seen}: have it forward UDP port {port} here."
        )
        return say(State.FAILED, text)
    if view.is_reached:
        more = f", though a router before this machine translates {mine}" if is_translated else ""
        return say(State.OK, f"UDP port {port} is reached from outside, at {view.seen}{more}.")
    where = "the router before this machine, and its firewall," if is_translated else "the firewall, here or at the provider,"
    text = f"UDP port {port} is not reached from outside at {view.seen}: let it through {where} as docs/server.md shows."
    return say(State.FAILED, text)


def check_tls_outside(port: int, host_words: str) -> Finding:
    text = (
        f"Whether TCP port {port} is reached from outside cannot be known from here: 'ptunnel doctor --server {host_words}' on a "
        "computer elsewhere tries it."
    )
    return Finding(what="tls_outside", state=State.UNKNOWN, message=text)
