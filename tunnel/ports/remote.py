"""Reverse forwards: the peer listens, where it has allowed that, and what connects to it there is carried to a program here.

As `ssh -R` has it: loopback there unless another address is said.  The connecting side asks with a stream, which lasts as long as
the peer listens; for each connection the peer opens a stream of its own.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final, NamedTuple

import trio

from tunnel.ends import UNIX, shown
from tunnel.errors import ConfigurationError, TunnelError, command_word
from tunnel.notation import HOST, read_forward
from tunnel.ports.counters import Notices
from tunnel.ports.link import Link, Stream
from tunnel.ports.local import PortTakenError, open_listeners
from tunnel.ports.loops import mark_of_accepted
from tunnel.ports.open import Accepted, Listen, Opened, decode_opened, encode, read_message
from tunnel.ports.rate import Limit
from tunnel.ports.refusals import REFUSALS
from tunnel.ports.spec import LOOPBACK, MAX_FORWARDS, Forward
from tunnel.ports.tcp import TcpForward, code_of, refuse
from tunnel.shell.lasting import last
from tunnel.shell.stream import StreamCode

MAX_LISTENING: Final = 64  # ports on which one link has us listen at a time: each is a descriptor or two
FIRST_PAUSE: Final = 1.0  # seconds before a peer is asked again that refused or no longer listens, doubling ...
LONGEST_PAUSE: Final = 30.0  # ... up to this


class Remote(NamedTuple):
    """One --remote: the peer listens at `host` and `port`, for what is at `place` here."""

    host: str  # numeric address, or * for all of them
    port: int
    place: tuple[str, int]  # host and port, or unix:/PATH and 0

    @property
    def bind(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def target(self) -> str:
        """Where it leads here, as people read it."""
        host, port = self.place
        if host.startswith(UNIX):
            return host
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_remotes(texts: Iterable[str]) -> list[Remote]:
    """All of the command line's --remote: [BIND:]PORT[:PORT | :HOST:PORT | :unix:/PATH].  Raises ConfigurationError."""
    found: dict[tuple[str, int], Remote] = {}
    for text in texts:
        for remote in _parse(text):
            if (remote.host, remote.port) in found:
                raise ConfigurationError(f"--remote {text} has the peer listen at {remote.bind} a second time: leave one out.")
            found[remote.host, remote.port] = remote
    if len(found) > MAX_LISTENING:
        raise ConfigurationError(f"More than {MAX_LISTENING} ports are asked for with --remote: leave some out.")
    return list(found.values())


def _parse(text: str) -> list[Remote]:
    host_text, colon, port_text = text.strip().rpartition(":")
    before, _, host = host_text.rpartition(":")
    is_v6 = host_text.endswith("]") and ":[" in host_text
    if is_v6:
        before, _, host = host_text.rpartition(":[")
        host = host.removesuffix("]")
    if colon and before and HOST.fullmatch(host) and not host.isdecimal() and port_text.isdecimal() and UNIX not in text:
        # PORT:HOST:PORT, where HOST is anything that is reached from here
        spec = read_forward(f"{before}:{port_text}")
        places = [(host, port) for port in spec.targets]
    else:
        spec = read_forward(text)
        places = [(LOOPBACK if isinstance(each, int) else each, each if isinstance(each, int) else 0) for each in spec.targets]
    if spec.path or spec.protocols != ("tcp",) or spec.local[0] == 0 or len(spec.local) > MAX_FORWARDS:
        raise ConfigurationError(f"{shown(text)}: --remote takes a tcp port there and what it leads to here, as in 8080:3000.")
    found = []
    for port, (place, number) in zip(spec.local, places, strict=True):
        if isinstance(number, str) or (not number and not place.startswith(f"{UNIX}/")):
            raise ConfigurationError(f"{shown(text)}: what it leads to here is PORT, HOST:PORT or unix:/PATH, as in 8080:3000.")
        found.append(Remote(LOOPBACK if spec.bind in (None, "localhost") else spec.bind, port, (place, number)))
    return found


class RemoteForward(TcpForward):
    """The exposing side of one: accepts connections here, and opens a stream to the peer for each."""

    place: tuple[str, int] = (LOOPBACK, 0)  # where this listens, as the peer has asked for it

    @property
    def _shown(self) -> str:
        return f"remote/{self.place[1]}"

    def _opening(self, sock: socket.socket) -> bytes:
        return encode(Accepted(*self.place, mark_of_accepted(sock)))


async def serve_remote(
    stream: Stream, opening: Listen, make: Callable[[socket.socket], RemoteForward], notices: Notices, peer: str
) -> None:
    """The exposing side of a Listen that was granted: listen until the stream ends, or this is cancelled."""
    forward = Forward(opening.host, opening.port, opening.port, "tcp", opening.host != LOOPBACK)
    where = Remote(opening.host, opening.port, (LOOPBACK, 0)).bind
    try:
        sockets = open_listeners(forward)
    except ConfigurationError as error:
        notices.say(f"remote {where}", f"{peer} asked to listen at {where} here: {error}")
        refuse(stream, StreamCode.TAKEN if isinstance(error, PortTakenError) else StreamCode.UNREACHABLE)
        return
    try:
        await stream.send_all(encode(Opened()))
        notices.say(f"remote {where}", f"{peer} listens at {where} of this machine now.")
        async with trio.open_nursery() as nursery:
            for sock in sockets:
                nursery.start_soon(make(sock).run)
            with contextlib.suppress(TunnelError):  # the peer wants it no longer, or the link has ended
                while await stream.receive_chunks():
                    pass
            nursery.cancel_scope.cancel()
    except TunnelError:
        pass  # before it was told
    finally:
        for sock in sockets:
            sock.close()
        refuse(stream, StreamCode.CANCELLED)


class Remotes(dict[tuple[str, int], tuple[str, int]]):
    """Where a peer listens for us, and where that leads here."""

    def __init__(self, places: Mapping[tuple[str, int], tuple[str, int]] | None = None) -> None:
        super().__init__(places or {})
        self._entered: dict[trio.CancelScope, tuple[str, int]] = {}
        self._limits: dict[tuple[str, int], Limit] = {}

    def add(self, remotes: Iterable[Remote], limit: Limit | None = None) -> None:
        """`limit`: of the bytes of what comes in there, of all of them together."""
        for each in remotes:
            self[each.host, each.port] = each.place
            if limit is not None:
                self._limits[each.host, each.port] = limit

    def limit(self, host: str, port: int) -> Limit | None:
        return self._limits.get((host, port))

    def drop(self, remotes: Iterable[Remote]) -> None:
        """End what came in by them, too."""
        for each in remotes:
            self.pop((each.host, each.port), None)
            self._limits.pop((each.host, each.port), None)
            for scope, place in self._entered.items():
                if place == (each.host, each.port):
                    scope.cancel()

    @contextlib.contextmanager
    def entered(self, host: str, port: int) -> Iterator[trio.CancelScope]:
        """Around a connection that came in there: cancelled when that is dropped."""
        with trio.CancelScope() as scope:
            self._entered[scope] = (host, port)
            try:
                yield scope
            finally:
                del self._entered[scope]


async def keep_remotes(link: Link, remotes: Sequence[Remote], ready: Callable[[Remote], None], notices: Notices) -> None:
    """Have the peer listen at all of these, until cancelled: see keep_remote."""
    async with trio.open_nursery() as nursery:
        for each in remotes:
            nursery.start_soon(
                last, link.faults, "forward", f"ended {each.bind}", partial(keep_remote, link, each, ready, notices)
            )


async def keep_remote(link: Link, remote: Remote, ready: Callable[[Remote], None], notices: Notices) -> None:
    """Have the peer listen as long as this runs: asked again when it refuses, or listens no more.  `ready` is told each time."""
    pause = FIRST_PAUSE
    while True:
        stream: Stream | None = None
        try:
            stream = await link.open_stream(encode(Listen(remote.host, remote.port)))
            body, _rest = await read_message(stream)
            decode_opened(body)
            ready(remote)
            pause = FIRST_PAUSE
            while await stream.receive_chunks():
                pass
        except TunnelError as error:
            _say(notices, link.peer_name, remote, code_of(error))
        finally:
            if stream is not None:
                refuse(stream, StreamCode.CANCELLED)
        await trio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def _say(notices: Notices, peer: str, remote: Remote, code: int) -> None:
    match code:
        case StreamCode.CANCELLED:
            return  # the link has ended, or begins anew; that is told elsewhere
        case StreamCode.DENIED:
            place = str(remote.port) if remote.host == LOOPBACK else command_word(remote.bind)
            why = f"ask there for 'ptunnel expose --allow-remote {place} --to NAME'"
        case StreamCode.TAKEN:
            why = "another program listens there"
        case StreamCode.UNREACHABLE:
            why = "it cannot listen there, and has said to its user why"
        case StreamCode.INTERNAL:
            why = "it is an older ptunnel"
        case _:
            why = REFUSALS.get(code, f"code {code}")
    notices.say(f"remote {remote.bind} {code}", f"{peer} does not listen at {remote.bind} for this machine: {why}.")
