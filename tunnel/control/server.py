"""The control socket of one running process: `run/PID.sock` in PTUNNEL_HOME, for this user and root only."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

import trio

from tunnel.control.messages import (
    HELD,
    MAX_REQUEST,
    Answer,
    Bench,
    Check,
    Close,
    Forget,
    Grant,
    Look,
    Ping,
    Reach,
    Remove,
    Request,
    Status,
    decode_request,
    encode_line,
    error,
)
from tunnel.control.sockets import Lines, has_control_sockets, is_ours, leave, short_path, socket_path, sweep
from tunnel.errors import MalformedPacket, StateError, TunnelError, code_of
from tunnel.faults import Faults
from tunnel.shell.link import CloseCode, Link

MAX_CLIENTS: Final = 16  # at once; more are told to come again
MAX_HELD: Final = 256  # clients besides for whom something lasts as long as they stay: foreground commands, one a window
REQUEST_TIMEOUT: Final = 10.0  # seconds for the next request
WRITE_TIMEOUT: Final = 10.0  # seconds for a client to take an answer
PING_TIMEOUT: Final = 5.0  # seconds until a ping counts as lost
BACKLOG: Final = 32
SHED_PAUSE: Final = 0.1  # seconds of rest after descriptors ran out


#: How it shows that the client has gone.
_GONE: Final = (trio.BrokenResourceError, trio.ClosedResourceError)


#: What a request that failed is called.
_FAILURES: Final[dict[type, str]] = {Remove: "not_removed", Grant: "not_granted", Look: "not_looked"}


Say: TypeAlias = Callable[[Mapping[str, Any]], Awaitable[None]]
Verb: TypeAlias = Callable[[Any, Say], Awaitable[None]]  # answers a request by saying events


def _nothing(*_arguments: object) -> None:
    pass


@dataclass(slots=True, kw_only=True)
class Process:
    """The part of a process that the control socket shows and commands."""

    role: str  # "connect", "expose", "lan"
    links: Callable[[], Sequence[Link]]
    members: Callable[[], Sequence[Link]] = tuple  # links besides, which `status` shows elsewhere: to members of rooms
    forget: Callable[[str], None] = _nothing  # drop the peer's key and grants; its links are cut here afterwards
    close: Callable[[], None] = _nothing  # end as Ctrl-C would
    #: (member, room or None) -> (room, member) that was sent away; None where that is no room of ours.  Raises TunnelError.
    remove: Callable[[str, str | None], tuple[str, str] | None] | None = None
    #: (peers, grants, only) -> for each peer the keys of its `granted`.  Raises TunnelError, and then nothing was granted.
    grant: Callable[[Sequence[str], Sequence[str], bool], Awaitable[Sequence[Mapping[str, Any]]]] | None = None
    absent: Callable[[str], str | None] = _nothing  # why there is no link to somebody whom the process knows
    look: Callable[[], Awaitable[int]] | None = None  # go by what is remembered now; how many streams were ever cut for that
    #: What another server sees of our sockets.  Raises TunnelError.
    reach: Callable[[str], Awaitable[Sequence[Mapping[str, Any]]]] | None = None
    verbs: Mapping[type, Verb] = field(default_factory=dict)  # what only some processes answer, by the type of request
    #: Measures a link for so many seconds a transfer and hands out each result.
    bench: Callable[[Any, float, Callable[[dict[str, Any]], Awaitable[None]]], Awaitable[None]] | None = None
    details: Callable[[], Mapping[str, Any]] = field(default=dict)  # further keys of `status`: forwards, counters
    faults: Faults = field(default_factory=Faults)  # whose walls stand around each conversation
    notice: Callable[[str], None] = _nothing  # takes a sentence for the person
    started: float = field(default_factory=time.monotonic)


def status_of(process: Process) -> Answer:
    """The event `status`."""
    return {
        "event": "status",
        "pid": os.getpid(),
        "role": process.role,
        "uptime_s": round(time.monotonic() - process.started, 3),
        "links": [link.status().to_dict() for link in process.links()],
        **process.details(),
    }


@asynccontextmanager
async def serve_control(run_dir: Path | Callable[[], Path], process: Process) -> AsyncIterator[None]:
    """Answer on `run_dir`/PID.sock while the block runs.  Where there are no UNIX sockets, nothing happens.

    Where the socket cannot be made, a sentence says so, and the block runs without it: the tunnel does not need it.
    """
    if not has_control_sockets():
        yield
        return
    try:
        folder, path, listener = _open(run_dir)
    except (OSError, StateError) as problem:
        why = str(problem) if isinstance(problem, StateError) else f"{problem.strerror or problem}."
        process.notice(f"'ptunnel status' and 'ping' will not find this one, as it has no control socket: {why}")
        yield
        return
    inode = path.stat().st_ino
    problem_inside: BaseException | None = None
    try:
        with listener:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_accept, listener, process)
                try:
                    yield
                except trio.Cancelled:
                    raise
                except BaseException as problem:  # passed on as it is: the nursery would wrap it in a group
                    problem_inside = problem
                nursery.cancel_scope.cancel()
        if problem_inside is not None:
            raise problem_inside
    finally:
        with contextlib.suppress(OSError):
            if path.stat().st_ino == inode:
                path.unlink()
        leave(folder)


def _open(run_dir: Path | Callable[[], Path]) -> tuple[Path, Path, socket.socket]:
    """The directory, the socket's path, the socket.  Raises OSError, StateError."""
    for is_last in (False, False, True):
        folder = run_dir if isinstance(run_dir, Path) else run_dir()
        path = socket_path(folder, os.getpid())
        try:
            return folder, path, _open_listener(folder, path)
        except FileNotFoundError:  # whoever ended just now took the directory away
            if is_last:
                raise
    raise AssertionError


def _open_listener(run_dir: Path, path: Path) -> socket.socket:
    """It gets its name only once it listens, and never stands open to others."""
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    sweep(run_dir)
    unnamed = path.with_name(f".{path.name}.new")
    unnamed.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        mask = os.umask(0o177)
        try:
            with short_path(unnamed) as spelling:
                listener.bind(spelling)
        finally:
            os.umask(mask)
        os.chmod(unnamed, 0o600)
        listener.listen(BACKLOG)
        os.replace(unnamed, path)
    except BaseException:
        listener.close()
        unnamed.unlink(missing_ok=True)
        raise
    return listener


@dataclass(slots=True)
class Crowd:
    """How many clients there are."""

    asking: int = 0
    held: int = 0


async def _accept(listener: socket.socket, process: Process) -> None:
    crowd = Crowd()

    async def serve(sock: socket.socket) -> None:
        crowd.asking += 1
        try:
            with process.faults.wall("control", "ended a conversation on the control socket"):
                async with trio.SocketStream(trio.socket.from_stdlib_socket(sock)) as stream:
                    with contextlib.suppress(*_GONE, MalformedPacket):
                        await _Conversation(stream, process, crowd).run()
        finally:
            crowd.asking -= 1

    async with trio.open_nursery() as nursery:
        while True:
            await trio.lowlevel.wait_readable(listener)
            try:
                sock, _address = listener.accept()
            except BlockingIOError:
                continue
            except OSError:  # out of descriptors: whoever asks has to wait
                await trio.sleep(SHED_PAUSE)
                continue
            try:
                is_welcome = is_ours(sock)
            except OSError:  # gone again
                is_welcome = False
            if is_welcome:
                nursery.start_soon(serve, sock)
            else:
                sock.close()


class _Conversation:
    """One client: requests in, answers out."""

    def __init__(self, stream: trio.SocketStream, process: Process, crowd: Crowd) -> None:
        self._crowd = crowd
        self._stream = stream
        self._process = process

    async def run(self) -> None:
        if self._crowd.asking > MAX_CLIENTS:
            await self._say_busy()
            return
        lines = Lines(self._stream, MAX_REQUEST)
        while True:
            with trio.move_on_after(REQUEST_TIMEOUT) as limit:
                line = await lines.next()
            if limit.cancelled_caught or line is None:
                return
            try:
                request = decode_request(line)
            except MalformedPacket as problem:
                await self._say(error("bad_request", str(problem)))
                continue
            if isinstance(request, HELD) and type(request) in self._process.verbs:
                await self._hold(request, lines)
                return
            await self._answer(request)

    async def _say_busy(self) -> None:
        await self._say(error("busy", "Too many programs are asking this process: try again."))

    async def _hold(self, request: Request, lines: Lines) -> None:
        """Answer until the client leaves: then what it asked for ends."""
        crowd = self._crowd
        if crowd.held >= MAX_HELD:
            await self._say_busy()
            return
        crowd.held += 1
        crowd.asking -= 1
        try:
            async with trio.open_nursery() as nursery:

                async def answer() -> None:
                    await self._answer(request)
                    nursery.cancel_scope.cancel()

                nursery.start_soon(answer)
                with contextlib.suppress(*_GONE, MalformedPacket):
                    await lines.next()
                nursery.cancel_scope.cancel()
        finally:
            crowd.held -= 1
            crowd.asking += 1

    async def _say(self, answer: Mapping[str, Any]) -> None:
        with trio.move_on_after(WRITE_TIMEOUT) as limit:
            await self._stream.send_all(encode_line(answer))
        if limit.cancelled_caught:
            raise trio.BrokenResourceError("the client does not listen")

    async def _answer(self, request: Request) -> None:
        """Whatever answering meets, is this client's affair."""
        verb = type(request).__name__.lower()
        with self._process.faults.wall("control", f"left a question for {verb} unanswered", *_GONE) as wall:
            await self._do(request)
        if wall.error is not None:
            text = f"A fault in ptunnel kept process {os.getpid()} from answering; its links go on. Its own output says more."
            await self._say(error("internal", text))

    async def _do(self, request: Request) -> None:
        verb = self._process.verbs.get(type(request))
        try:
            match request:
                case _ if verb is not None:
                    await verb(request, self._say)
                case Status():
                    await self._say(status_of(self._process))
                case Ping():
                    if not await self._ping(request):
                        return
                case Bench():
                    if not await self._bench(request):
                        return
                case Check():
                    await self._check(request)
                case Forget(peer=peer):
                    await self._say({"event": "forgotten", "peer": peer, "links": self._forget(peer)})
                case Remove(member=member, room=room):
                    removed = self._process.remove(member, room) if self._process.remove is not None else None
                    if removed is not None:
                        await self._say({"event": "removed", "room": removed[0], "peer": removed[1]})
                case Grant(peers=peers, grants=grants, only=only) if self._process.grant is not None:
                    for granted in await self._process.grant(peers, grants, only):
                        await self._say({"event": "granted", **granted, "pid": os.getpid()})
                case Look() if self._process.look is not None:
                    await self._say({"event": "looked", "revoked": await self._process.look()})
                case Reach(server=server) if self._process.reach is not None:
                    for view in await self._process.reach(server):
                        await self._say({"event": "view", **view})
                case Grant() | Look() | Reach():
                    pass
                case Close():
                    await self._say({"event": "closing", "pid": os.getpid()})
                    self._process.close()
                case _:
                    pass
        except TunnelError as problem:
            code = "state_unusable" if isinstance(problem, StateError) else _FAILURES.get(type(request), "link_lost")
            await self._say(error(code if verb is None else code_of(problem), str(problem)))
        else:
            await self._say({"event": "done"})

    def _find(self, peer: str | None) -> list[Link]:
        """Those to `peer`, by name or fingerprint; None for all."""
        links = (*self._process.links(), *self._process.members())
        return [link for link in links if peer is None or peer in (link.peer_name, link.fingerprint)]

    def _forget(self, peer: str) -> int:
        links = self._find(peer)  # before the name is gone
        self._process.forget(peer)
        for link in links:
            link.close("you were removed from the peer's list", CloseCode.FORGOTTEN)
        return len(links)

    async def _find_one(self, peer: str | None) -> Link | None:
        """None when an error was said."""
        links = self._find(peer)
        if not links:
            if peer is not None and (why := self._process.absent(peer)) is not None:
                await self._say(error("absent", why))
            else:
                await self._say(error("no_link", f"This process has no link to {peer or 'anybody'} now."))
            return None
        if len({link.peer_name for link in links}) > 1:
            names = ", ".join(sorted(link.peer_name for link in links))
            await self._say(error("several_peers", f"Several peers are connected: name one of {names}."))
            return None
        return links[0]

    async def _bench(self, request: Bench) -> bool:
        """False when an error was said."""
        link = await self._find_one(request.peer)
        if link is None:
            return False
        if self._process.bench is None:
            await self._say(error("no_bench", "This process measures nothing."))
            return False

        async def say(result: Mapping[str, Any]) -> None:
            await self._say({"event": "bench", "peer": link.peer_name, **result})

        await self._process.bench(link, request.seconds, say)
        return True

    async def _ping(self, request: Ping) -> bool:
        """False when an error was said."""
        link = await self._find_one(request.peer)
        if link is None:
            return False
        number = 0
        with trio.move_on_after(request.limit_s if request.until_direct else float("inf")) as limit:
            while request.until_direct or number < request.count:
                number += 1
                begun = trio.current_time()
                await self._say(await self._ping_once(link, number))
                if request.until_direct and link.is_direct:
                    return True
                if request.until_direct or number < request.count:
                    await self._pause(link, request, begun)
        if limit.cancelled_caught:
            why = link.status().why
            text = f"The path to {link.peer_name} is still relayed after {request.limit_s:g} s" + (f": {why}" if why else ".")
            await self._say(error("not_direct", text))
            return False
        return True

    async def _pause(self, link: Link, request: Ping, begun: float) -> None:
        """Until the next ping is due, or the path became direct where that is awaited."""
        with trio.move_on_at(begun + request.interval_s):
            if request.until_direct:
                await link.wait_direct()
            else:
                await trio.sleep_forever()

    async def _ping_once(self, link: Link, number: int) -> Answer:
        rtt: float | None = None
        with trio.move_on_after(PING_TIMEOUT):
            rtt = await link.ping()
        status = link.status()
        return {
            "event": "ping",
            "peer": link.peer_name,
            "n": number,
            "rtt_s": None if rtt is None else round(rtt, 6),
            "kind": status.kind,
            "remote": status.remote,
        }

    async def _check(self, request: Check) -> None:
        links = self._find(request.peer)
        with trio.move_on_after(request.wait_s):
            for link in links:
                with contextlib.suppress(TunnelError):  # one that closes meanwhile is told as it is
                    await link.wait_direct()
        for link in links:
            status = link.status()
            await self._say(
                {
                    "event": "check",
                    "peer": link.peer_name,
                    "direct": link.is_direct,
                    "kind": status.kind,
                    "remote": status.remote,
                    "why": status.why,
                }
            )
