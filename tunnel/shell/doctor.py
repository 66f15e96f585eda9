"""`ptunnel doctor` under trio: examines both address families at once from sockets of its own, and asks the router for a port."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import trio

from tunnel.doors.tls.client import TlsSocket, dial
from tunnel.doors.udp.socket import UdpSocket, open_socket
from tunnel.errors import ConfigurationError, MalformedPacket, ServerUnreachableError, UntrustedServerError
from tunnel.faults import Faults
from tunnel.host.clock import boottime
from tunnel.host.gateway import default_gateway, is_translated
from tunnel.host.interfaces import ANYWHERE, source_address
from tunnel.nat.report import Findings, PortMapFindings, advise, describe, describe_portmap, prospects
from tunnel.node.clocks import spoken
from tunnel.node.diagnosis import SOCKETS, Diagnosis
from tunnel.rendezvous import messages
from tunnel.server_spec import TlsOptions, parse_server, tls_options
from tunnel.shell.outside import servers_named
from tunnel.shell.places import NO_NETWORK
from tunnel.shell.portmap import PortMapKeeper, is_reachable_from_everywhere
from tunnel.shell.sockets import OpenSocket
from tunnel.units import Address, Seconds, SocketId

__all__ = ["Examination", "advise", "examine"]

LONGEST_SLEEP: Final = 1.0  # seconds
PORTMAP_PATIENCE: Final = 3.0  # seconds for a router to map a port
REFUSAL_PATIENCE: Final = 0.5  # seconds for "nobody listens here"
TCP_PATIENCE: Final = 2.0  # seconds for the server's machine to answer TCP, with whatever
TCP_PORT: Final = 443  # the last one that networks close
TLS_LOOK: Final = 5.0  # seconds for all of TLS: longer than what is asked over UDP takes
CLOCK_TOLERANCE: Final = 60.0  # seconds by which two clocks may differ without a word about it
TLS_PATIENCE: Final = 3.0  # seconds for the server to answer, once the connection stands


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFindings:
    """The findings over TLS."""

    port: int
    works: bool
    is_there: bool = False  # something answers there
    is_pinned: bool = False
    valid_until: float | None = None  # Unix time at which a certificate ends that public authorities vouch for
    trouble: str = ""  # a sentence, where it does not work

    @property
    def words(self) -> str:
        """For a table."""
        if not self.works:
            return self.trouble.rstrip(".") if self.is_there else "not there"
        if self.is_pinned:
            return "pinned"
        return "trusted" if self.valid_until is None else f"trusted, valid until {_date(self.valid_until)}"

    def to_dict(self) -> dict[str, object]:
        until = None if self.valid_until is None else _date(self.valid_until)
        found = {"port": self.port, "works": self.works, "trouble": self.trouble}
        return {**found, "pinned": self.is_pinned, "valid_until": until}


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherServer:
    """One that stands beside the examined one in a list."""

    server: str
    is_reached: bool  # it answers over UDP
    round_trip: Seconds | None

    @classmethod
    def of(cls, server: str, found: Examination | None) -> OtherServer:
        """None: nobody tells where its name leads."""
        families = () if found is None else (found.ipv4, found.ipv6)
        trips = [each.round_trip for each in families if each.round_trip is not None]
        return cls(server=server, is_reached=found is not None and found.is_reached, round_trip=min(trips, default=None))

    @property
    def sentence(self) -> str:
        host, _ = parse_server(self.server, "server")
        if not self.is_reached:
            return f"{host}, another server of the list, does not answer over UDP."
        after = "" if self.round_trip is None else f" after {self.round_trip * 1000:.0f} ms"
        return f"{host}, another server of the list, answers{after}."

    def to_dict(self) -> dict[str, Any]:
        return {"server": self.server, "reached": self.is_reached, "rtt_s": self.round_trip}


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """All that was found out."""

    server: str
    ipv4: Findings
    ipv6: Findings
    portmap: PortMapFindings | None  # None: no router of ours translates
    tls: TlsFindings | None = None  # None: switched off
    clock_off_s: float | None = None  # seconds by which this computer's clock is ahead of the server's; None: it does not tell
    others: tuple[OtherServer, ...] = ()  # of a list

    @property
    def asked(self) -> str:
        """The name of those who were asked, for a table."""
        return "server"

    @property
    def can_meet(self) -> bool:
        """Peers can be met by this server, whichever way."""
        return self.is_reached or (self.tls is not None and self.tls.works)

    @property
    def has_network(self) -> bool:
        """This computer has an address that leads anywhere."""
        return self.ipv4.own is not None or self.ipv6.own is not None

    @property
    def is_reached(self) -> bool:
        return self.ipv4.seen is not None or self.ipv6.seen is not None

    @property
    def is_udp_blocked(self) -> bool:
        """The server's machine answers TCP, but nothing came back over UDP."""
        return not self.is_reached and not self.is_refused and bool(self.ipv4.tcp_answers or self.ipv6.tcp_answers)

    @property
    def is_refused(self) -> bool:
        return self.ipv4.is_refused or self.ipv6.is_refused

    @property
    def summary(self) -> str:
        if not self.has_network:
            return NO_NETWORK
        if not self.is_reached and self.tls is not None and self.tls.works:
            return (
                "No UDP gets through to the server: this network blocks it, or the server's firewall does. Peers are met, and "
                f"always relayed, over TLS on TCP port {self.tls.port}, which is slower."
            )
        return prospects(self.ipv4, self.ipv6, self.portmap)

    def sentences(self) -> list[str]:
        """For a person, the most important first."""
        lines = [self.summary, *describe(self.ipv4)]
        if self.ipv4.own is not None:
            lines.append(describe_portmap(self.portmap))
        lines += describe(self.ipv6)
        if not self.is_reached and self.tls is not None and not self.tls.works:
            lines.append(self.tls.trouble)
        if self.clock_off_s is not None and abs(self.clock_off_s) > CLOCK_TOLERANCE:
            direction = "ahead of" if self.clock_off_s > 0 else "behind"
            how = spoken(abs(self.clock_off_s))
            lines.append(f"The clock of this computer is {how} {direction} that of the server. Set it, if it is the wrong one.")
        return lines + [other.sentence for other in self.others]

    def to_dict(self) -> dict[str, Any]:
        return {
            "server": self.server,
            "reached": self.is_reached,
            "udp_blocked": self.is_udp_blocked,
            "ipv4": self.ipv4.to_dict(),
            "ipv6": self.ipv6.to_dict(),
            "portmap": None if self.portmap is None else self.portmap.to_dict(),
            "tls": None if self.tls is None else self.tls.to_dict(),
            "clock_off_s": None if self.clock_off_s is None else round(self.clock_off_s),
            "summary": self.summary,
            "sentences": self.sentences(),
            **({"others": [other.to_dict() for other in self.others]} if self.others else {}),
        }


async def examine_all(servers: Sequence[str], *, tls: TlsOptions | None = None) -> Examination:
    """Examine a list of servers at once: the first that answers is told at length, of the others whether they answer.

    Raises ConfigurationError, ServerUnreachableError (no name is known).
    """
    found: dict[str, Examination] = {}
    errors: list[ServerUnreachableError] = []

    async def look(server: str) -> None:
        try:
            found[server] = await examine(server, tls=tls)
        except ServerUnreachableError as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        for server in servers:
            nursery.start_soon(look, server)
    if not found:
        raise errors[0]
    best = next((each for each in servers if each in found and found[each].can_meet), next(iter(found)))
    return replace(found[best], others=tuple(OtherServer.of(each, found.get(each)) for each in servers if each != best))


async def examine(
    server: str,
    *,
    opener: OpenSocket = open_socket,
    portmap: bool = True,
    tls: TlsOptions | None = None,
    unix_time: Callable[[], float] = time.time,
) -> Examination:
    """Some four seconds.  Raises ConfigurationError, ServerUnreachableError (unknown name).

    `tls` says how the server is reached where UDP is blocked, unless its own word does; None: as everybody does.
    `unix_time` is this computer's clock.
    """
    options = tls_options(server, TlsOptions() if tls is None else tls)
    addresses = await servers_named(server, "server")
    host, _ = parse_server(server, "server")
    results = {family: Findings(is_ipv6=family, own=None, server=addresses.get(family)) for family in (False, True)}
    mapped: list[PortMapFindings | None] = [None]
    over_tls: list[TlsFindings | None] = [None]
    async with trio.open_nursery() as nursery:
        for is_ipv6 in (False, True):
            family = partial(_examine_family, addresses.get(is_ipv6), is_ipv6, opener, results)
            nursery.start_soon(walled, f"ended the look at IPv{6 if is_ipv6 else 4}", family)
        if options.port is not None:
            look = partial(_examine_tls, host, options.port, options.fingerprint, over_tls)
            nursery.start_soon(walled, "ended the look at TLS", look)
        if portmap:
            nursery.start_soon(walled, "ended the look at the router", partial(examine_portmap, opener, mapped))
    calendar = results[False].calendar or results[True].calendar
    ahead = None if calendar is None else unix_time() - (calendar[0] + boottime() - calendar[1])
    return Examination(
        server=server,
        ipv4=results[False],
        ipv6=results[True],
        portmap=mapped[0],
        tls=over_tls[0],
        clock_off_s=ahead,
    )


def _date(unix_time: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(unix_time))


async def walled(what: str, task: Callable[[], Awaitable[None]]) -> None:
    """Run one examination so that its failure does not end the others."""
    with Faults().wall("doctor", what):
        await task()


async def _examine_tls(host: str, port: int, fingerprint: str | None, found: list[TlsFindings | None]) -> None:
    """Does the rendezvous server answer over TLS?  Where UDP gets through, that is good to know for its operator."""
    found[0] = TlsFindings(port=port, works=False, trouble=f"TCP port {port} of {host} does not answer.")
    with trio.move_on_after(TLS_LOOK):
        found[0] = await _look_over_tls(host, port, fingerprint)


async def _look_over_tls(host: str, port: int, fingerprint: str | None) -> TlsFindings:
    try:
        stream = await dial(host, port, fingerprint)
    except UntrustedServerError as error:
        return TlsFindings(port=port, works=False, is_there=True, trouble=str(error))
    except ServerUnreachableError as error:
        return TlsFindings(port=port, works=False, trouble=str(error))
    until = stream.valid_until()
    trouble = f"What listens at TCP port {port} of {host} speaks TLS, but is no ptunnel server."
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.run_writer)
            with trio.move_on_after(TLS_PATIENCE):
                if await _greets(stream):
                    trouble = ""
            nursery.cancel_scope.cancel()
    finally:
        stream.close()
    pinned = fingerprint is not None
    return TlsFindings(port=port, works=not trouble, is_there=True, is_pinned=pinned, valid_until=until, trouble=trouble)


async def _greets(stream: TlsSocket) -> bool:
    hello = messages.encode_request(1, os.urandom(messages.SESSION_SIZE), messages.Hello(), cookie=b"", access_token=b"")
    stream.send(stream.remote, memoryview(hello), len(hello))
    while True:
        try:
            await stream.wait_readable()
        except trio.ClosedResourceError:
            return False
        batch = stream.receive()
        if batch is not None:
            try:
                return isinstance(messages.decode_response(batch.buffer[: batch.stride]).message, messages.Retry)
            except MalformedPacket:
                return False


def own_address(towards: Address | None, is_ipv6: bool) -> str | None:
    """Ours, as it leads there, or where None is said to anywhere; None: none of that family does."""
    own = source_address(towards.host if towards is not None else ANYWHERE[is_ipv6])
    if own is None and towards is not None and towards.host.startswith("127."):
        return towards.host
    return own


async def _examine_family(server: Address | None, is_ipv6: bool, opener: OpenSocket, results: dict[bool, Findings]) -> None:
    own = own_address(server, is_ipv6)
    results[is_ipv6] = found = Findings(is_ipv6=is_ipv6, own=own, server=server)
    if server is None or own is None:
        return
    sockets: list[UdpSocket] = []
    try:
        try:
            sockets += (opener("::" if is_ipv6 else "0.0.0.0", 0) for _ in range(SOCKETS))
        except ConfigurationError:
            return
        ports = tuple(each.local_address.port for each in sockets)
        diagnosis = Diagnosis(server=server, own=own, ports=ports, now=boottime(), entropy=os.urandom)
        async with trio.open_nursery() as nursery:
            wake: list[trio.Event] = [trio.Event()]
            for number, each in enumerate(sockets):
                nursery.start_soon(_receive, each, SocketId(number), diagnosis, wake)
            await _drive(diagnosis, sockets, wake)
            nursery.cancel_scope.cancel()
        found = diagnosis.findings
    finally:
        for each in sockets:
            each.close()
    if found.seen is None:
        found = replace(found, is_refused=await _is_refused(server), tcp_answers=await _answers_tcp(server))
    results[is_ipv6] = found


async def _receive(sock: UdpSocket, socket_id: SocketId, diagnosis: Diagnosis, wake: list[trio.Event]) -> None:
    while True:
        await sock.wait_readable()
        while (batch := sock.receive()) is not None:
            for at in range(0, len(batch.buffer), batch.stride):
                diagnosis.handle_datagram(boottime(), socket_id, batch.buffer[at : at + batch.stride])
            wake[0].set()


async def _drive(diagnosis: Diagnosis, sockets: list[UdpSocket], wake: list[trio.Event]) -> None:
    while not diagnosis.is_done:
        wake[0] = trio.Event()
        now = boottime()
        diagnosis.handle_timeout(now)
        while (ready := diagnosis.poll_transmit()) is not None:
            socket_id, remote, datagram = ready
            sockets[socket_id].send(remote, memoryview(datagram), len(datagram))
        deadline = diagnosis.poll_timeout()
        if deadline is None:
            return
        with trio.move_on_after(min(LONGEST_SLEEP, max(0.001, deadline - boottime()))):
            await wake[0].wait()


async def _is_refused(server: Address) -> bool:
    """Does the server's machine say that nobody listens there?  Only a connected socket is told."""
    family = trio.socket.AF_INET6 if server.is_ipv6 else trio.socket.AF_INET
    with trio.socket.socket(family, trio.socket.SOCK_DGRAM) as sock, trio.move_on_after(REFUSAL_PATIENCE):
        try:
            await sock.connect((server.host, server.port))
            await sock.send(bytes(1))
            await sock.recv(1)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False


async def _answers_tcp(server: Address) -> bool:
    """Accepted or refused, either is an answer."""
    family = trio.socket.AF_INET6 if server.is_ipv6 else trio.socket.AF_INET
    with trio.socket.socket(family, trio.socket.SOCK_STREAM) as sock, trio.move_on_after(TCP_PATIENCE):
        try:
            await sock.connect((server.host, TCP_PORT))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
        return True
    return False


async def examine_portmap(opener: OpenSocket, mapped: list[PortMapFindings | None]) -> None:
    """The mapping that is made is taken back at once."""
    gateway = default_gateway()
    if gateway is None or not is_translated(gateway.own):
        return
    try:
        sock = opener("0.0.0.0", 0)
    except ConfigurationError:
        return
    port = sock.local_address.port
    done = trio.Event()

    def changed(_port: int, external: Address | None) -> None:
        if external is not None and not done.is_set():
            mapping = keeper.mappings[port]
            public = is_reachable_from_everywhere(external)
            mapped[0] = PortMapFindings(protocol=mapping.protocol.value, external=external, is_public=public)
            done.set()

    keeper = PortMapKeeper(on_change=changed)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(keeper.run, (port,)))
            with trio.move_on_after(PORTMAP_PATIENCE):
                await done.wait()
            if mapped[0] is None:
                mapped[0] = PortMapFindings(trouble=keeper.why_unmapped(port))
            nursery.cancel_scope.cancel()
    finally:
        sock.close()
