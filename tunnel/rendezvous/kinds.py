"""The numbers by which messages of the rendezvous protocol say what is meant."""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class Role(IntEnum):
    """The role of a registrant: what it waits for."""

    LISTEN = 0
    DIAL = 1


NOT_LISTED: Final = "this server's operator lets only listed clients in"  # the text of DENIED by the access list


class RefusalCode(IntEnum):
    """Why a request was turned down."""

    VERSION = 1  # the server does not speak this version
    DENIED = 2  # the server's access list does not name this client
    UNKNOWN_NAMEPLATE = 3  # nobody allocated this code, or it has expired
    SPENT = 4  # somebody claimed this code before
    LOCKED_OUT = 5  # too many claims on codes nobody allocated
    FULL = 6  # a limit of the server, the address or the room
    QUOTA = 7  # no more relaying for this pair or address for now
    UNKNOWN_CHANNEL = 8  # the server forgot it: Restore
    BAD_MAC = 9  # a Rebind or Restore with the wrong token or an old counter
    UNKNOWN_MAILBOX = 10
    SLOW_DOWN = 11  # too many requests a second
    TAKEN = 12  # the wanted nameplate is somebody else's, or none of this server's
    CLOSING = 13  # the server is shutting down
    WRONG_SERVER = 14  # another server has this nameplate: of the same name, or where Refused says


class GoneKind(IntEnum):
    CHANNEL = 1
    MAILBOX = 2


class GoneReason(IntEnum):
    LEFT = 1  # the other side said so
    EXPIRED = 2  # the other side fell silent
    QUOTA = 3  # bytes of this pair used up
    UNKNOWN = 4  # the server does not know this channel, or not from this address
