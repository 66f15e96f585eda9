"""Forwards as a whole: the connecting side's listeners, and the exposing side's answer to every stream."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
import trio

from tunnel.errors import MalformedPacket, TunnelError, command_word
from tunnel.notation import SERVICES
from tunnel.ports.access import AccessLog
from tunnel.ports.bench import ALLOWANCES, Allowance, serve_bench
from tunnel.ports.counters import ForwardCounters, Notices
from tunnel.ports.flows import FlowTable
from tunnel.ports.link import Allow, Link, Notice, Stream
from tunnel.ports.local import half_bound, open_listeners
from tunnel.ports.loops import OWN
from tunnel.ports.open import Bench, Open, decode_open, read_message
from tunnel.ports.spec import Forward
from tunnel.ports.tcp import TcpForward, refuse, serve_tcp
from tunnel.ports.udp import UdpForward, serve_udp
from tunnel.shell.lasting import last
from tunnel.shell.stream import StreamCode

if TYPE_CHECKING:
    from tunnel.shell.link import Link as DriverLink

OPEN_TIMEOUT: Final = 10.0  # seconds for the first message of a stream that the peer opened


class Ready(NamedTuple):
    """One forward that local programs can use now; `bind` is host:port, `binds` all of them."""

    bind: str
    target: str  # as tcp/22 or udp/nas:53
    binds: tuple[str, ...] = ()


class Listeners:
    """The local sockets of `--forward`: bound once, before anybody is waited for; they outlive links.

    Connections that arrive while no link serves them wait in the kernel's queue.
    """

    def __init__(self, forwards: Sequence[Forward]) -> None:
        """Raises ConfigurationError, with nothing left open."""
        self._open: list[tuple[Forward, list[socket.socket]]] = []
        self.counters = ForwardCounters()
        try:
            for forward in forwards:
                self._open.append((forward, open_listeners(forward)))
        except BaseException:
            self.close()
            raise

    @property
    def ready(self) -> list[Ready]:
        found = []
        for forward, sockets in self._open:
            binds = tuple(map(_address_text, sockets))
            found.append(Ready(binds[0], f"{forward.protocol}/{forward.target}", binds))
        return found

    def warnings(self) -> list[str]:
        """Sentences about forwards of which only a part could be opened."""
        return [text for forward, sockets in self._open if (text := half_bound(forward, sockets))]

    @property
    def targets(self) -> list[tuple[str, int | str]]:
        """(protocol, what the other side is asked for) of each."""
        return [(forward.protocol, forward.target) for forward, _sockets in self._open]

    async def serve(self, link: Link, *, notice: Notice | None = None, log: AccessLog | None = None) -> None:
        """Carry what arrives to `link`'s peer until the link closes or this is cancelled.  `notice` takes sentences, `log` what
        is opened and closed."""
        notices = Notices(notice)
        async with trio.open_nursery() as nursery:
            for forward, sockets in self._open:
                for sock in sockets:
                    if forward.protocol == "tcp":
                        tcp = TcpForward(sock, forward.target, link=link, counters=self.counters, notices=notices, log=log)
                        self._keep(nursery, link, tcp.run, sock)
                    else:
                        udp = UdpForward(sock, forward.target, link=link, counters=self.counters, notices=notices, log=log)
                        self._keep(nursery, link, udp.run, sock)
            await link.closed()
            nursery.cancel_scope.cancel()

    @staticmethod
    def _keep(nursery: trio.Nursery, link: Link, run: Callable[[], Awaitable[None]], sock: socket.socket) -> None:
        nursery.start_soon(last, link.faults, "forward", f"interrupted the forward of {_address_text(sock)}", run)

    def close(self) -> None:
        for _forward, sockets in self._open:
            for sock in sockets:
                sock.close()
        self._open.clear()

    def __enter__(self) -> Listeners:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def _address_text(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class _Served(NamedTuple):
    """A stream that was granted, and what it was granted for."""

    stream: Stream
    kind: str
    target: int | str
    address: tuple[str, int]


class Exposed:
    """The exposing side for one link: each stream's Open is checked against the grants of that moment, then served.

    `look_again` has to be called when they change: what is under way is checked anew then.
    """

    def __init__(
        self,
        link: Link,
        allow: Allow,
        *,
        counters: ForwardCounters | None = None,
        notice: Notice | None = None,
        allowance: Allowance | None = None,
        log: AccessLog | None = None,
    ) -> None:
        self._log = log or AccessLog()
        self._link = link
        self._allow = allow
        self._notices = Notices(notice)
        self.counters = counters or ForwardCounters()
        self._table = FlowTable(self.counters)
        self._allowance = allowance or Allowance()
        self._served: dict[trio.CancelScope, _Served] = {}

    async def handle(self, stream: Stream) -> None:
        """One stream from its first byte to its end.  Never raises for what the peer or a local program did."""
        try:
            with trio.move_on_after(OPEN_TIMEOUT) as limit:
                body, early = await read_message(stream)
                opening = decode_open(body)
            if limit.cancelled_caught:
                refuse(stream, StreamCode.TIMED_OUT)
                return
        except MalformedPacket:
            self.counters.malformed_opens += 1
            refuse(stream, StreamCode.INTERNAL)
            return
        except TunnelError:
            refuse(stream, StreamCode.CANCELLED)
            return
        if isinstance(opening, Bench):
            await serve_bench(stream, early, opening, flows=self._link.flows, allowance=self._allowance)
            return
        address = self._allow(opening.kind, opening.target)
        if address is None and (port := SERVICES.get(str(opening.target).lower())) is not None:  # nothing here has that name
            opening = msgspec.structs.replace(opening, target=port)
            address = self._allow(opening.kind, port)
        if address is None:
            self._deny(stream, opening)
            return
        if opening.mark and opening.mark in OWN:
            self._refuse_loop(stream, opening)
            return
        # This machine is 127.0.0.1 and ::1: many programs listen on one of them alone.
        place = ("localhost", address[1]) if isinstance(opening.target, int) else address
        access = self._log.access(self._link.peer_name, f"{opening.kind}/{opening.target}")
        with trio.CancelScope() as scope:
            self._served[scope] = _Served(stream, opening.kind, opening.target, address)
            try:
                if opening.kind == "tcp":
                    await serve_tcp(
                        stream,
                        early,
                        place,
                        counters=self.counters,
                        notices=self._notices,
                        asked=self._asked(opening),
                        access=access,
                    )
                else:
                    await serve_udp(
                        stream,
                        opening.flow,
                        place,
                        flows=self._link.flows,
                        table=self._table,
                        counters=self.counters,
                        notices=self._notices,
                        asked=self._asked(opening),
                        access=access,
                    )
            finally:
                del self._served[scope]

    def look_again(self) -> None:
        """The grants have changed: what leads where it may not any more ends now, and nothing else does."""
        cut = 0
        for scope, served in list(self._served.items()):
            if self._allow(served.kind, served.target) != served.address:
                refuse(served.stream, StreamCode.DENIED)
                scope.cancel()
                cut += 1
        if cut:
            self.counters.revoked += cut
            what = "An open connection" if cut == 1 else f"{cut} open connections"
            self._notices.say("revoked", f"{what} of {self._link.peer_name} ended, as the grant was taken back.")

    def _asked(self, opening: Open) -> str:
        """How a sentence about it begins."""
        return f"{self._link.peer_name} asked for {opening.kind}/{opening.target}"

    def _refuse_loop(self, stream: Stream, opening: Open) -> None:
        self.counters.loops += 1
        text = f"{self._asked(opening)}, which leads to a forward of its own, on this machine: nothing else listens there."
        self._notices.say(f"loop {opening.target}", text)
        refuse(stream, StreamCode.LOOP)

    def _deny(self, stream: Stream, opening: Open) -> None:
        if opening.kind == "tcp":
            self.counters.tcp_denied += 1
        else:
            self.counters.udp_denied += 1
        name = f"{opening.kind}/{opening.target}"
        who = self._link.peer_name
        text = f"{who} asked for {name}, which is not shared with them"
        if isinstance(opening.target, int):
            port = f"{opening.target}{'' if opening.kind == 'tcp' else '/udp'}"
            text += f": 'ptunnel expose {port} --to {command_word(who)}' would do that"
        self._notices.say(f"denied {name}", f"{text}.")
        refuse(stream, StreamCode.DENIED)


async def serve_link(
    link: DriverLink,
    *,
    counters: ForwardCounters | None = None,
    notice: Callable[[str], None] | None = None,
    log: AccessLog | None = None,
) -> None:
    """Answer the peer's streams against `link.grants`, read anew for each, until the link closes."""
    exposed = Exposed(
        link,
        lambda protocol, target: link.grants.allows(protocol, target),
        counters=counters,
        notice=notice,
        allowance=ALLOWANCES.of(link.fingerprint),
        log=log,
    )

    def changed() -> None:
        exposed.look_again()
        link.share()

    link.on_grants = changed
    link.share()
    try:
        await link.serve_streams(exposed.handle)
    finally:
        link.on_grants = None


async def serve_nothing(link: DriverLink) -> None:
    """The connecting side's answer to streams of its peer: measurements, and no access whatever was granted elsewhere."""
    exposed = Exposed(link, lambda _protocol, _target: None, allowance=ALLOWANCES.of(link.fingerprint))
    await link.serve_streams(exposed.handle)
