"""Forwards as a whole: the connecting side's listeners, and the exposing side's answer to every stream."""

from __future__ import annotations

import errno
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec
import trio

from tunnel.ends import UNIX, is_path
from tunnel.errors import MalformedPacket, TunnelError, command_word
from tunnel.notation import SERVICES
from tunnel.pairing.grants import Grant, GrantSet
from tunnel.ports.access import AccessLog
from tunnel.ports.bench import Allowance, serve_bench
from tunnel.ports.counters import ForwardCounters, Notices
from tunnel.ports.flows import FlowTable
from tunnel.ports.link import Allow, Link, Notice, Stream
from tunnel.ports.local import CONNECT_TIMEOUT, connect_places, half_bound, open_listeners
from tunnel.ports.loops import OWN
from tunnel.ports.names import Place
from tunnel.ports.nets import allowed_places, find_places
from tunnel.ports.open import Accepted, Bench, Listen, Open, Reach, decode_open, read_message
from tunnel.ports.passed import Passed
from tunnel.ports.proxy_protocol import header
from tunnel.ports.rate import Limit, Rates
from tunnel.ports.remote import MAX_LISTENING, RemoteForward, Remotes, serve_remote
from tunnel.ports.socks import SocksDoor
from tunnel.ports.spec import LOOPBACK, Forward
from tunnel.ports.tcp import TcpForward, cut, refuse
from tunnel.ports.tcp_exposed import Head, serve_tcp
from tunnel.ports.udp import UdpForward, serve_udp
from tunnel.ports.unserved import Unserved
from tunnel.shell.lasting import last
from tunnel.shell.stream import StreamCode

OPEN_TIMEOUT: Final = 10.0  # seconds for the first message of a stream that the peer opened


_KINDS: Final[dict[str, type[TcpForward | UdpForward]]] = {"tcp": TcpForward, "udp": UdpForward, "socks": SocksDoor}


class Ready(NamedTuple):
    """One forward that local programs can use now; `bind` is host:port or unix:/PATH, `binds` all of them."""

    bind: str
    target: str  # as tcp/22 or udp/nas:53
    binds: tuple[str, ...] = ()


class Listeners:
    """The local sockets of `--forward`: bound once, before anybody is waited for; they outlive links.

    Connections that arrive while no link serves them wait in the kernel's queue; those that a link has left untouched wait here.
    """

    def __init__(self, forwards: Sequence[Forward], passed: Passed | None = None) -> None:
        """`passed` are sockets that are open already.  Raises ConfigurationError, with nothing left open."""
        passed = passed or Passed()
        self._open: list[tuple[Forward, list[socket.socket]]] = []
        self._unserved: dict[socket.socket, Unserved] = {}
        self.counters = ForwardCounters()
        try:
            for forward in forwards:
                self._open.append((forward, passed.take(forward) or open_listeners(forward)))
            passed.require_none_left()
        except BaseException:
            self.close()
            passed.close()
            raise

    @property
    def ready(self) -> list[Ready]:
        found = []
        for forward, sockets in self._open:
            binds = tuple(map(_address_text, sockets))
            found.append(Ready(binds[0], "socks" if forward.is_door else f"{forward.protocol}/{forward.target}", binds))
        return found

    @property
    def sockets(self) -> list[socket.socket]:
        """All that listen."""
        return [sock for _forward, sockets in self._open for sock in sockets]

    def warnings(self) -> list[str]:
        """Sentences about forwards of which only a part could be opened."""
        return [text for forward, sockets in self._open if (text := half_bound(forward, sockets))]

    @property
    def targets(self) -> list[tuple[str, int | str]]:
        """(protocol, what the other side is asked for) of each."""
        return [(forward.protocol, forward.target) for forward, _sockets in self._open if not forward.is_door]

    @property
    def has_door(self) -> bool:
        """Whether a SOCKS door is among them."""
        return any(forward.is_door for forward, _sockets in self._open)

    async def serve(
        self, link: Link, *, notice: Notice | None = None, log: AccessLog | None = None, rates: Rates | None = None,
        limit: Limit | None = None,
    ) -> None:  # fmt: skip
        """Carry what arrives to `link`'s peer until the link closes or this is cancelled.

        `notice` takes sentences, `log` what is opened and closed; `rates` limit the bytes, and `limit` those of all.
        """
        notices = Notices(notice)
        forwards = [forward for forward, _sockets in self._open]
        limits = (rates or Rates()).limits(forwards, limit)
        async with trio.open_nursery() as nursery:
            for (forward, sockets), pace in zip(self._open, limits, strict=True):
                kind = _KINDS[forward.protocol]
                for sock in sockets:
                    one = kind(
                        sock, forward.target, link=link, counters=self.counters, notices=notices, log=log, pace=pace
                    )  # fmt: skip
                    if isinstance(one, TcpForward):
                        one.unserved = self._unserved.setdefault(sock, Unserved(cut))
                    self._keep(nursery, link, one.run, sock)
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
        for each in self._unserved.values():
            each.close()

    def __enter__(self) -> Listeners:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def _address_text(sock: socket.socket) -> str:
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return f"{UNIX}{sock.getsockname()}"
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class _Served(NamedTuple):
    """A stream that was granted, and whether it still is."""

    stream: Stream
    is_granted: Callable[[], bool]


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
        limit: Limit | None = None,
        limit_of: Callable[[Open | Reach | Listen], Limit | None] | None = None,
        grants: Callable[[], GrantSet] | None = None,
        remotes: Mapping[tuple[str, int], tuple[str, int]] | None = None,
    ) -> None:
        """`limit`: of the bytes to and from this peer; or `limit_of`: of those of one stream.

        `grants` of now: what else they say, beside `allow`.

        `remotes`: where the peer listens for us, and where that leads here.
        """
        self._remotes = remotes if isinstance(remotes, Remotes) else Remotes(remotes or {})
        self._listening = 0
        self._log = log or AccessLog()
        self._limit = limit
        self._limit_of = limit_of or (lambda _opening: limit)
        self._grants = grants or GrantSet
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
        if not isinstance(opening, Open):
            await self._serve_other(stream, early, opening)
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
            self._served[scope] = _Served(stream, lambda: self._allow(opening.kind, opening.target) == address)
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
                        pace=self._limit_of(opening),
                        head=self._head(opening),
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
                        pace=self._limit_of(opening),
                    )
            finally:
                del self._served[scope]

    async def _serve_other(self, stream: Stream, early: list[bytes], opening: Bench | Reach | Listen | Accepted) -> None:
        if isinstance(opening, Bench):
            await serve_bench(stream, early, opening, flows=self._link.flows, allowance=self._allowance)
        elif isinstance(opening, Reach):
            await self._serve_reach(stream, early, opening)
        elif isinstance(opening, Listen):
            await self._serve_listen(stream, opening)
        else:
            await self._serve_accepted(stream, early, opening)

    def look_again(self) -> None:
        """The grants have changed: what leads where it may not any more ends now, and nothing else does."""
        cut = 0
        for scope, served in list(self._served.items()):
            if not served.is_granted():
                refuse(served.stream, StreamCode.DENIED)
                scope.cancel()
                cut += 1
        if cut:
            self.counters.revoked += cut
            what = "An open connection" if cut == 1 else f"{cut} open connections"
            self._notices.say("revoked", f"{what} of {self._link.peer_name} ended, as the grant was taken back.")

    def _head(self, opening: Open) -> Head | None:
        """The PROXY header, where one is wanted: from where the peer's datagrams come, and where the program listens."""
        if not self._grants().announces(opening.kind, opening.target):
            return None

        def head(sock: socket.socket) -> bytes:
            is_port = sock.family in (socket.AF_INET, socket.AF_INET6)
            return header(self._link.direct_remote, sock.getpeername()[:2] if is_port else None)

        return head

    async def _serve_listen(self, stream: Stream, opening: Listen) -> None:
        """A port of this machine on which the peer may have us listen for it."""

        def is_granted() -> bool:
            return self._grants().lets_listen(opening.host, opening.port)

        peer = self._link.peer_name
        if not is_granted():
            self.counters.tcp_denied += 1
            word = str(opening.port) if opening.host == LOOPBACK else command_word(f"{opening.host}:{opening.port}")
            self._notices.say(
                f"denied listen {opening.host} {opening.port}",
                f"{peer} asked to listen at port {opening.port} here, which is not allowed to them: "
                f"'ptunnel expose --allow-remote {word} --to {command_word(peer)}' would do that.",
            )
            refuse(stream, StreamCode.DENIED)
            return
        if self._listening >= MAX_LISTENING:
            self.counters.tcp_capped += 1
            refuse(stream, StreamCode.INTERNAL)
            return

        def make(sock: socket.socket) -> RemoteForward:
            forward = RemoteForward(
                sock, opening.port, link=self._link, counters=self.counters, notices=self._notices, log=self._log,
                pace=self._limit_of(opening),
            )  # fmt: skip
            forward.place = (opening.host, opening.port)
            return forward

        with trio.CancelScope() as scope:
            self._served[scope] = _Served(stream, is_granted)
            self._listening += 1
            try:
                await serve_remote(stream, opening, make, self._notices, peer)
            finally:
                self._listening -= 1
                del self._served[scope]

    async def _serve_accepted(self, stream: Stream, early: list[bytes], opening: Accepted) -> None:
        """A connection to where the peer listens for us."""
        place = self._remotes.get((opening.host, opening.port))
        if place is None:
            self.counters.tcp_denied += 1
            refuse(stream, StreamCode.DENIED)
            return
        if opening.mark and opening.mark in OWN:
            self.counters.loops += 1
            refuse(stream, StreamCode.LOOP)
            return
        with self._remotes.entered(opening.host, opening.port) as scope:
            await serve_tcp(
                stream,
                early,
                ("localhost", place[1]) if place[0] == LOOPBACK else place,
                counters=self.counters,
                notices=self._notices,
                asked=f"{self._link.peer_name} has a connection for you",
                access=self._log.access(self._link.peer_name, f"remote/{opening.port}"),
                pace=self._remotes.limit(opening.host, opening.port) or self._limit,
            )
        if scope.cancelled_caught:
            refuse(stream, StreamCode.CANCELLED)

    async def _serve_reach(self, stream: Stream, early: list[bytes], opening: Reach) -> None:
        """A machine in a network that is shared.  Where none is for this port, no name is looked up."""

        def grants() -> list[Grant]:
            return self._grants().nets(opening.kind, opening.port)

        if not grants():
            self._deny(stream, opening)
            return
        if opening.mark and opening.mark in OWN:
            self._refuse_loop(stream, opening)
            return
        found: list[Place] = []

        async def find() -> list[Place]:
            with trio.move_on_after(CONNECT_TIMEOUT):
                found.extend(await find_places(opening.host, opening.port, grants))
                return found
            raise OSError(errno.ETIMEDOUT, "no answer")

        async def connect() -> socket.socket:
            places = await find()
            with trio.move_on_after(CONNECT_TIMEOUT):
                return await connect_places(places)
            raise OSError(errno.ETIMEDOUT, "no answer")

        address = (opening.host, opening.port)
        access = self._log.access(self._link.peer_name, f"{opening.kind}/{opening.target}")
        with trio.CancelScope() as scope:
            self._served[scope] = _Served(stream, lambda: allowed_places(found, grants()) == found)
            try:
                if opening.kind == "tcp":
                    await serve_tcp(
                        stream,
                        early,
                        address,
                        counters=self.counters,
                        notices=self._notices,
                        asked=self._asked(opening),
                        access=access,
                        pace=self._limit_of(opening),
                        connect=connect,
                    )
                else:
                    await serve_udp(
                        stream,
                        opening.flow,
                        address,
                        flows=self._link.flows,
                        table=self._table,
                        counters=self.counters,
                        notices=self._notices,
                        asked=self._asked(opening),
                        access=access,
                        pace=self._limit_of(opening),
                        find=find,
                    )
            finally:
                del self._served[scope]

    def _asked(self, opening: Open | Reach) -> str:
        """How a sentence about it begins."""
        return f"{self._link.peer_name} asked for {opening.kind}/{opening.target}"

    def _refuse_loop(self, stream: Stream, opening: Open | Reach) -> None:
        self.counters.loops += 1
        text = f"{self._asked(opening)}, which leads to a forward of its own, on this machine: nothing else listens there."
        self._notices.say(f"loop {opening.target}", text)
        refuse(stream, StreamCode.LOOP)

    def _deny(self, stream: Stream, opening: Open | Reach) -> None:
        if opening.kind == "tcp":
            self.counters.tcp_denied += 1
        else:
            self.counters.udp_denied += 1
        name = f"{opening.kind}/{opening.target}"
        who = self._link.peer_name
        text = f"{who} asked for {name}, which is not shared with them"
        if isinstance(opening, Reach):
            word = command_word(f"{opening.target}{'' if opening.kind == 'tcp' else '/udp'}")
            text += f": 'ptunnel expose --net {word} --to {command_word(who)}' would do that"
        elif isinstance(opening.target, int) or is_path(opening.target):
            port = f"{opening.target}{'' if opening.kind == 'tcp' else '/udp'}"
            text += f": 'ptunnel expose {port} --to {command_word(who)}' would do that"
        self._notices.say(f"denied {name}", f"{text}.")
        refuse(stream, StreamCode.DENIED)
