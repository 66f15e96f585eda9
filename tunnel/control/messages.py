"""The messages on a process's control socket: one JSON object a line in each direction.

A request has its verb in `do`; each answer has `event` first, and the last one of a request is `done` or `error`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, TypeAlias

import msgspec

from tunnel.errors import MalformedPacket
from tunnel.units import Buffer

MAX_REQUEST: Final = 4 * 1024  # bytes of a line
MAX_ANSWER: Final = 1024 * 1024  # bytes of a line; 1,024 forwards with their names fit

PeerName = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]  # a name or a fingerprint
Word = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]  # a port, a forward or a code, as a command line has it
Duration = Annotated[float, msgspec.Meta(ge=0, le=86_400)]  # seconds


class Status(msgspec.Struct, frozen=True, tag_field="do", tag="status"):
    """Ask for the process's role and the state of its links.  Answered by one `status`."""


class Ping(msgspec.Struct, frozen=True, tag_field="do", tag="ping"):
    """Round trips through the tunnel to `peer` (None: the only one), each answered by a `ping`.

    `until_direct` ends at the first one over a direct path, or with an error after `limit_s` seconds; else `count` ends it.
    """

    peer: PeerName | None = None
    count: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 4
    interval_s: Annotated[float, msgspec.Meta(ge=0.01, le=3_600)] = 1.0
    until_direct: bool = False
    limit_s: Duration = 60.0


class Check(msgspec.Struct, frozen=True, tag_field="do", tag="check"):
    """Whether the path to `peer` (None: to every one) is direct, waiting up to `wait_s` for it.  One `check` for each link."""

    peer: PeerName | None = None
    wait_s: Duration = 0.0


class Bench(msgspec.Struct, frozen=True, tag_field="do", tag="bench"):
    """Measure the link to `peer` (None: the only one), each transfer for `seconds`.  Answered by a `bench` for each result."""

    peer: PeerName | None = None
    seconds: Annotated[float, msgspec.Meta(ge=0.1, le=30)] = 3.0


class Forget(msgspec.Struct, frozen=True, tag_field="do", tag="forget"):
    """Cut the links to `peer` now and take no more from it.  Answered by one `forgotten`."""

    peer: PeerName


class Remove(msgspec.Struct, frozen=True, tag_field="do", tag="remove"):
    """Send `member` away from the room `room` (None: the only one).  Answered by one `removed`, by nothing where it is no room of
    that name that this process has created."""

    member: PeerName
    room: PeerName | None = None


class Grant(msgspec.Struct, frozen=True, tag_field="do", tag="grant"):
    """Let these remembered peers reach `grants` too, or with `only` nothing else: all of them or none.

    Answered by a `granted` for each peer, with all that it may reach then; by nothing where the process exposes nothing.
    """

    peers: Annotated[list[PeerName], msgspec.Meta(min_length=1)]
    grants: Annotated[list[str], msgspec.Meta(min_length=1)]
    only: bool = False


class Look(msgspec.Struct, frozen=True, tag_field="do", tag="look"):
    """Tell the process to read the remembered peers again, as they have changed.

    Answered by one `looked`; its `revoked` counts the streams and flows that ended because a grant was taken back, ever.  By
    nothing where the process exposes nothing.
    """


class Reach(msgspec.Struct, frozen=True, tag_field="do", tag="reach"):
    """Have another server write to each UDP socket of this server unasked.  Answered by a `view` for each.

    By nothing where the process is no server.
    """

    server: Annotated[str, msgspec.Meta(min_length=1, max_length=300)]


class AddForward(msgspec.Struct, frozen=True, tag_field="do", tag="add_forward"):
    """Forward a port to `peer` from now on; `save`: in config.toml, too.  Answered by a `forward` for each port.

    This and the requests that follow are answered by `ptunnel up` alone; any other process says nothing.
    """

    peer: PeerName
    spec: Word
    save: bool = False


class RemoveForward(msgspec.Struct, frozen=True, tag_field="do", tag="remove_forward"):
    """End a forward to `peer`; `save`: take it out of config.toml, too.  Answered by one `forward_removed`."""

    peer: PeerName
    spec: Word
    save: bool = False


class Give(msgspec.Struct, frozen=True, tag_field="do", tag="give"):
    """Let `peer` reach `what` too; `save`: by config.toml.  Answered by one `granted`."""

    peer: PeerName
    what: Annotated[list[Word], msgspec.Meta(min_length=1)]
    save: bool = False


class Revoke(msgspec.Struct, frozen=True, tag_field="do", tag="revoke"):
    """Take `what` back from `peer`, or all; `save`: out of config.toml, too.  Answered by one `revoked`."""

    peer: PeerName
    what: list[Word] = []
    save: bool = False


class Invite(msgspec.Struct, frozen=True, tag_field="do", tag="invite"):
    """A code for one new peer, who may reach `what`; or that of a room which this process has created, for everybody.

    Answered by one `code`, with the `server` that belongs to it.
    """

    what: list[Word] = []
    room: PeerName | None = None


class Join(msgspec.Struct, frozen=True, tag_field="do", tag="join"):
    """Pair by a code and forward ports to that peer.  Answered by one `paired`, and a `forward` for each port."""

    code: Word
    forwards: list[Word] = []
    save: bool = False


class Reload(msgspec.Struct, frozen=True, tag_field="do", tag="reload"):
    """Go by config.toml as it is now.  Answered by one `reloaded`."""


class FindPage(msgspec.Struct, frozen=True, tag_field="do", tag="find_page"):
    """Ask for the address of the page, with its token.  Answered by one `page`."""


class Share(msgspec.Struct, frozen=True, tag_field="do", tag="share"):
    """As Invite, for as long as this conversation lasts: whoever comes by its codes may reach `what` until then.

    Answered by the events of `expose`, until the client leaves.
    """

    what: Annotated[list[Word], msgspec.Meta(min_length=1)]
    keep: bool = False


class Carry(msgspec.Struct, frozen=True, tag_field="do", tag="carry"):
    """Forward ports to a peer, or to whom `code` leads, for as long as this conversation lasts.

    Answered by the events of `connect`, until the client leaves.
    """

    forwards: Annotated[list[Word], msgspec.Meta(min_length=1)]
    peer: PeerName | None = None
    code: Word | None = None


class Close(msgspec.Struct, frozen=True, tag_field="do", tag="close"):
    """End the process as Ctrl-C would.  Answered by one `closing`."""


Request: TypeAlias = (
    Status | Ping | Bench | Check | Forget | Remove | Grant | Look | Reach | Close
    | AddForward | RemoveForward | Give | Revoke | Invite | Join | Reload | FindPage | Share | Carry
)  # fmt: skip
#: Those that last as long as the client stays.
HELD: Final = (Share, Carry)
Answer: TypeAlias = dict[str, Any]

_decoder: Final[msgspec.json.Decoder[Request]] = msgspec.json.Decoder(Request)


def encode_line(message: Request | Mapping[str, Any]) -> bytes:
    return msgspec.json.encode(message) + b"\n"


def decode_request(line: Buffer) -> Request:
    """Raises MalformedPacket."""
    try:
        return _decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedPacket(f"control request: {error}") from None


def decode_answer(line: Buffer) -> Answer:
    """Raises MalformedPacket."""
    try:
        answer = msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedPacket(f"control answer: {error}") from None
    if not isinstance(answer.get("event"), str):
        raise MalformedPacket("control answer without an event")
    return answer


def error(code: str, message: str) -> Answer:
    return {"event": "error", "code": code, "message": message}
