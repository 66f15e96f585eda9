"""The page's server: its socket, how many may be connected at once, and who gets what.

Whoever has not shown the token gives way: when all places are taken, the connection that has stood longest without it is closed
for a newcomer.  So another user of this machine, who can connect as well, keeps nobody out who has the token.
"""

from __future__ import annotations

import contextlib
import socket
import sys
from collections import Counter
from importlib import resources
from typing import Any, Final

import msgspec
import trio

from tunnel.errors import ConfigurationError, MalformedPacket
from tunnel.faults import Faults
from tunnel.page.actions import Offer, decode_action, do
from tunnel.page.gate import Gate
from tunnel.page.home import Home
from tunnel.page.http import Conversation, Gone, Refused, Request
from tunnel.page.place import USUAL_PORT, Place
from tunnel.ports.unix import open_unix_listener

MAX_CONNECTIONS: Final = 32  # at once; a browser opens six
MAX_STREAMS: Final = 8  # tabs that are kept up to date at once
ACTION_LIMIT: Final = 180.0  # seconds for an action: whoever joins waits for the other side
UPDATE_INTERVAL: Final = 1.0  # seconds between two states of the page
BACKLOG: Final = 64
SHED_PAUSE: Final = 0.1  # seconds of rest after descriptors ran out

_TEXT: Final = "text/plain; charset=utf-8"
_JSON: Final = "application/json"
#: Path -> file and its type.  They are the same for everybody and hold nothing of a home.
_FILES: Final = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/talk.js": ("talk.js", "text/javascript; charset=utf-8"),
    "/show.js": ("show.js", "text/javascript; charset=utf-8"),
    "/plot.js": ("plot.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}


class Guest:
    """One connection."""

    __slots__ = ("has_token", "scope")

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.has_token = False


class Page:
    """The server of one home's page."""

    def __init__(self, home: Home, offer: Offer, gate: Gate, faults: Faults) -> None:
        self._home = home
        self._offer = offer
        self._gate = gate
        self._faults = faults
        self.refused: Counter[str] = Counter()  # by reason
        self._guests: dict[Guest, None] = {}  # the longest there first
        self._streams = 0
        self._newest = b""  # state, for all streams
        self._fresh = trio.Event()  # there is a newer one
        self._watched = trio.Event()  # somebody wants to see it
        self._acted = trio.Event()  # something was done, and is shown at once
        files = resources.files("tunnel.page") / "site"
        self._files = {path: ((files / name).read_bytes(), kind) for path, (name, kind) in _FILES.items()}

    async def run(self, listener: socket.socket) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.look)
            while True:
                try:
                    await trio.lowlevel.wait_readable(listener)
                    sock, _address = listener.accept()
                except BlockingIOError:
                    continue
                except OSError:  # out of descriptors: whoever asks has to wait
                    await trio.sleep(SHED_PAUSE)
                    continue
                sock.setblocking(False)
                guest = self.admit()
                if guest is None:
                    sock.close()
                else:
                    nursery.start_soon(self.serve, trio.SocketStream(trio.socket.from_stdlib_socket(sock)), guest)

    def admit(self) -> Guest | None:
        """A place for a newcomer; None where all are taken by those who have the token."""
        if len(self._guests) >= MAX_CONNECTIONS:
            self.refused["crowded"] += 1
            stranger = next((each for each in self._guests if not each.has_token), None)
            if stranger is None:
                return None
            del self._guests[stranger]
            stranger.scope.cancel()
        guest = Guest()
        self._guests[guest] = None
        return guest

    async def serve(self, stream: trio.abc.Stream, guest: Guest) -> None:
        """Until the connection ends, or has to."""
        try:
            with guest.scope, self._faults.wall("page", "ended a connection to the page"):
                async with stream:
                    await self._converse(Conversation(stream), guest)
        finally:
            self._guests.pop(guest, None)

    async def _converse(self, conversation: Conversation, guest: Guest) -> None:
        is_open = True
        while is_open:
            try:
                request = await conversation.next()
                if request is None:
                    return
                is_open = await self._answer(request, conversation, guest)
            except Gone:
                return
            except Refused as problem:
                self.refused[problem.kind] += 1
                try:
                    is_open = await conversation.answer(problem.status, _TEXT, f"{problem}\n".encode())
                except Gone:
                    return

    async def _answer(self, request: Request, conversation: Conversation, guest: Guest) -> bool:
        self._gate.check_site(request)
        if request.path in self._files:
            if request.method not in ("GET", "HEAD"):
                raise Refused(405, "request", "This can only be looked at.")
            body, kind = self._files[request.path]
            return await conversation.answer(200, kind, body)
        self._gate.check_token(request)
        guest.has_token = True
        match request.method, request.path:
            case "GET", "/events":
                await self._stream(conversation)
                return False
            case "POST", "/do":
                self._gate.check_action(request)
                return await conversation.answer(200, _JSON, msgspec.json.encode(await self._do(request.body)))
            case _:
                raise Refused(404, "request", "There is nothing at this address.")

    async def _do(self, body: bytes) -> dict[str, Any]:
        try:
            action = decode_action(body)
        except MalformedPacket as problem:
            raise Refused(400, "request", f"{problem}.") from None
        answer: dict[str, Any] = {"event": "error", "message": "The other side has not answered: try again."}
        with trio.move_on_after(ACTION_LIMIT), self._faults.wall("page", "left a request of the page undone") as wall:
            answer = await do(self._home, self._offer, action)
        self._acted.set()
        if wall.error is not None:
            answer = {"event": "error", "message": "A fault in ptunnel kept it from doing that; all else goes on."}
        return answer

    # -- the state, once for all who look

    async def _stream(self, conversation: Conversation) -> None:
        if self._streams >= MAX_STREAMS:
            raise Refused(503, "streams", f"This page is open in {MAX_STREAMS} places already: close one of them.")
        self._streams += 1
        self._watched.set()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._until_left, conversation, nursery.cancel_scope)
                with contextlib.suppress(Gone):
                    await self._tell(conversation)
                nursery.cancel_scope.cancel()
        finally:
            self._streams -= 1
            if not self._streams:
                self._watched = trio.Event()
                self._newest = b""

    async def _tell(self, conversation: Conversation) -> None:
        await conversation.begin_stream()
        sent = b""
        while True:
            fresh = self._fresh
            if not self._newest or self._newest is sent:
                await fresh.wait()
            else:  # whoever reads slowly misses some
                sent = self._newest
                await conversation.send_event(sent)

    async def _until_left(self, conversation: Conversation, scope: trio.CancelScope) -> None:
        await conversation.wait_left()
        scope.cancel()

    async def look(self) -> None:
        """Nothing is looked at while no tab is open."""
        while True:
            await self._watched.wait()
            with self._faults.wall("page", "kept the page from being up to date"):
                self._newest = msgspec.json.encode(self._home.status())
            self._fresh.set()
            self._fresh = trio.Event()
            self._acted = trio.Event()
            with trio.move_on_after(UPDATE_INTERVAL):
                await self._acted.wait()


def address_of(place: Place, token: str) -> str:
    """The address that a person opens; the token is behind the `#`, which the browser keeps for itself.

    Of a Unix socket it is the address by way of a port that leads there, which the person has to choose.
    """
    host = f"[{place.host}]" if ":" in place.host else place.host
    return f"http://{f'{host}:{place.port}' if not place.path else f'localhost:{USUAL_PORT}'}/#{token}"


def open_listener(place: Place) -> socket.socket:
    """Raises ConfigurationError."""
    if place.path:
        return open_unix_listener(place.path, BACKLOG)
    listener = socket.socket(socket.AF_INET6 if ":" in place.host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        if sys.platform != "win32":  # where it would let two programs have one port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((place.host, place.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        where, why = f"{place.host}:{place.port}", error.strerror or error
        raise ConfigurationError(f"The page cannot be at {where} ({why}): choose another port for page in config.toml.") from None
    except BaseException:
        listener.close()
        raise
    return listener
