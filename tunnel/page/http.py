"""One client's connection to the page: HTTP/1.1 by h11, each part within its bounds (RFC 9110, 9112)."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import h11
import trio

MAX_HEAD: Final = 8 * 1024  # bytes of a request's line and fields; a browser sends 1,000
MAX_BODY: Final = 16 * 1024  # bytes of an action
IDLE_LIMIT: Final = 30.0  # seconds between an answer and the next request; a browser then connects anew
REQUEST_LIMIT: Final = 10.0  # seconds from the first byte of a request to its last
WRITE_LIMIT: Final = 10.0  # seconds for a client to take an answer, or an event of a stream
RECEIVE_SIZE: Final = 4 * 1024  # bytes taken from the socket at once

#: With every answer: nothing comes from elsewhere or is kept, nobody shows the page in a frame, and no text becomes markup.
SAFE_HEADERS: Final = (
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    ),
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)


class Refused(Exception):
    """Raised for a request that is not fulfilled; `why` is a sentence for the person, `kind` the name of its counter."""

    def __init__(self, status: int, kind: str, why: str) -> None:
        super().__init__(why)
        self.status = status
        self.kind = kind


class Gone(Exception):
    """The client has left, or takes nothing more."""


@dataclass(frozen=True, slots=True)
class Request:
    """A whole request; `fields` by lower-case name, those of one name joined by commas."""

    method: str
    path: str
    fields: Mapping[str, str]
    body: bytes


class Conversation:
    """Requests in, answers out.  Every method raises Gone when there is nobody to speak to any more."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        self._method = b""

    async def next(self) -> Request | None:
        """The next request; None where none comes.  Raises Refused, after which the connection ends."""
        with trio.move_on_after(IDLE_LIMIT) as idle:
            if not await self._await_data():
                return None
        if idle.cancelled_caught:
            return None
        try:
            with trio.fail_after(REQUEST_LIMIT):
                return await self._read()
        except trio.TooSlowError:
            raise Refused(408, "slow", "The request did not come to its end.") from None
        except h11.RemoteProtocolError as error:
            raise Refused(error.error_status_hint, "request", "This is no request that a browser sends.") from None

    async def _await_data(self) -> bool:
        """Whether something of a request is there; it may have come with the one before."""
        if self._http.trailing_data[0]:
            return True
        return await self._receive()

    async def _receive(self) -> bool:
        try:
            data = await self._stream.receive_some(RECEIVE_SIZE)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise Gone from None
        self._http.receive_data(bytes(data))
        return bool(data)

    async def _read(self) -> Request | None:
        head: h11.Request | None = None
        body = bytearray()
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                if self._http.they_are_waiting_for_100_continue:
                    await self._send(h11.InformationalResponse(status_code=100, headers=[]))
                await self._receive()
            elif isinstance(event, h11.Request):
                head = event
                self._method = event.method
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > MAX_BODY:
                    raise Refused(413, "request", "The request is too large.")
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                return _request(head, bytes(body))
            else:  # the end of the connection
                return None

    async def answer(self, status: int, kind: str, body: bytes) -> bool:
        """Send a whole answer.  Whether a further request may follow."""
        fields = [("Content-Type", kind), ("Content-Length", str(len(body))), *SAFE_HEADERS]
        states = self._http.states
        if states[h11.SERVER] not in (h11.IDLE, h11.SEND_RESPONSE):
            return False
        is_over = states[h11.CLIENT] is not h11.DONE  # we have not read to the end, or nothing more may come
        if is_over:
            fields.append(("Connection", "close"))
        await self._send(h11.Response(status_code=status, headers=fields))
        if body and self._method != b"HEAD":
            await self._send(h11.Data(data=body))
        await self._send(h11.EndOfMessage())
        if is_over or self._http.our_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        self._method = b""
        return True

    async def begin_stream(self) -> None:
        """Begin an answer of server-sent events (HTML Standard §9.2)."""
        fields = [("Content-Type", "text/event-stream"), *SAFE_HEADERS, ("Connection", "close")]
        await self._send(h11.Response(status_code=200, headers=fields))

    async def send_event(self, data: bytes) -> None:
        """`data` has no line break."""
        await self._send(h11.Data(data=b"data: " + data + b"\n\n"))

    async def wait_left(self) -> None:
        """Until the client closes the connection, or says something, which it has no reason to."""
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self._stream.receive_some(1)

    async def _send(self, event: h11.Event) -> None:
        data = self._http.send(event)
        if not data:
            return
        try:
            with trio.fail_after(WRITE_LIMIT):
                await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            raise Gone from None


def _request(head: h11.Request, body: bytes) -> Request:
    fields: dict[str, str] = {}
    for raw_name, raw in head.headers:
        name, value = raw_name.decode("ascii"), raw.decode("latin-1")
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    return Request(head.method.decode("ascii"), head.target.decode("ascii"), fields, body)
