"""The things that a person does on the page: one JSON object an action, answered as the control socket answers, by one object.

All of it is so after a restart, too: grants are remembered with the peer, forwards stand in config.toml.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final, TypeAlias, assert_never

import msgspec

from tunnel.errors import MalformedPacket, TunnelError
from tunnel.page.home import Home

MAX_WORDS: Final = 64  # ports or forwards of one action
QUIET: Final = 4  # modules of quiet around a QR code on a screen, as ISO/IEC 18004 §6.3.8 asks for

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Word = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Words = Annotated[list[Word], msgspec.Meta(min_length=1, max_length=MAX_WORDS)]


class AddForward(msgspec.Struct, frozen=True, tag_field="do", tag="add_forward", forbid_unknown_fields=True):
    """Let a local port lead to the peer."""

    peer: Name
    spec: Word


class RemoveForward(msgspec.Struct, frozen=True, tag_field="do", tag="remove_forward", forbid_unknown_fields=True):
    """Take a forward away."""

    peer: Name
    spec: Word


class Grant(msgspec.Struct, frozen=True, tag_field="do", tag="grant", forbid_unknown_fields=True):
    """Let the peer reach more here."""

    peer: Name
    what: Words


class Revoke(msgspec.Struct, frozen=True, tag_field="do", tag="revoke", forbid_unknown_fields=True):
    """Take back what the peer may reach."""

    peer: Name
    what: Words


class Invite(msgspec.Struct, frozen=True, tag_field="do", tag="invite", forbid_unknown_fields=True):
    """Make a code for somebody new, who may reach this."""

    what: Words


class Join(msgspec.Struct, frozen=True, tag_field="do", tag="join", forbid_unknown_fields=True):
    """Use a code that somebody else has shown."""

    code: Word
    forwards: Annotated[list[Word], msgspec.Meta(max_length=MAX_WORDS)] = []


#: (code, what it lets somebody reach) -> the other side's command, and for how many seconds the code is good.
Offer: TypeAlias = Callable[[str, Sequence[str]], tuple[str, float]]
Action: TypeAlias = AddForward | RemoveForward | Grant | Revoke | Invite | Join
_decoder: Final[msgspec.json.Decoder[Action]] = msgspec.json.Decoder(Action)


def decode_action(body: bytes) -> Action:
    """Raises MalformedPacket."""
    try:
        return _decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedPacket(f"an action of the page: {error}") from None


async def do(home: Home, offer: Offer, action: Action) -> dict[str, Any]:
    """Do it; the answer has a `message` for the person.  What the home refuses is an answer, too, with `event` error."""
    try:
        match action:
            case AddForward(peer=peer, spec=spec):
                await home.add_forward(peer, spec, saves=True)
                return _done(f"{spec} leads to {peer} now.")
            case RemoveForward(peer=peer, spec=spec):
                await home.remove_forward(peer, spec, saves=True)
                return _done(f"{spec} leads to {peer} no more.")
            case Grant(peer=peer, what=what):
                await home.grant(peer, what)
                return _done(f"{peer} may reach {', '.join(what)} now.")
            case Revoke(peer=peer, what=what):
                await home.revoke(peer, what, saves=True)
                return _done(f"{peer} may not reach {', '.join(what)} any more.")
            case Invite(what=what):
                code = await home.invite(what)
                return _invitation(code, *offer(code, what))
            case Join(code=code, forwards=forwards):
                return _done(f"You have met {await home.join(code, forwards, saves=True)}.")
            case _:
                assert_never(action)
    except TunnelError as error:
        return {"event": "error", "message": str(error)}


def _done(message: str) -> dict[str, Any]:
    return {"event": "done", "message": message}


def _invitation(code: str, command: str, lifetime: float) -> dict[str, Any]:
    """The code with the command for the other side, and that command as a picture for a telephone's camera."""
    import segno

    picture = segno.make(command, error="m", micro=False).svg_data_uri(border=QUIET, dark="#000", light="#fff", scale=4)
    minutes = max(1, round(lifetime / 60))
    return {**_done(f"The code works once, for {minutes} minutes."), "code": code, "command": command, "picture": picture}
