"""What a peer may reach, as the exposing side tells it on the control stream: its own grants, without where they lead."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Final, Literal

import msgspec

from tunnel.errors import MalformedPacket
from tunnel.notation import SERVICES
from tunnel.pairing.grants import THIS_MACHINE, Grant, GrantSet
from tunnel.units import Buffer

MAX_SHARES: Final = 256  # told, and believed; they fit one control message

Port = Annotated[int, msgspec.Meta(ge=1, le=65_535)]
#: As the grant's; no control characters, since it is shown to a person.
Name = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z][A-Za-z0-9_.-]{0,31}\Z")]


class Share(msgspec.Struct, frozen=True, array_like=True):
    """Ports of the other side, or those behind a name that it gave."""

    protocol: Literal["tcp", "udp"]
    first: Port
    last: Port
    name: Name | None = None

    def __str__(self) -> str:
        """`tcp/22`, `udp/5000-5010`, `tcp/nas`, `tcp/games:7000-7002`."""
        ports = f"{self.first}" if self.first == self.last else f"{self.first}-{self.last}"
        place = ports if self.name is None else self.name if self.first == self.last else f"{self.name}:{ports}"
        return f"{self.protocol}/{place}"


class Shares(msgspec.Struct, frozen=True, array_like=True):
    """All of them, unless there were more than MAX_SHARES: then `is_all` is False."""

    is_all: bool
    shares: Annotated[list[Share], msgspec.Meta(max_length=MAX_SHARES)]

    def refused(self, wanted: Iterable[tuple[str, int | str]]) -> list[tuple[str, int | str]]:
        """Those of `wanted` (protocol, target) to which a stream or flow is refused, as far as was told."""
        if not self.is_all:
            return []
        grants = GrantSet(
            Grant(protocol=each.protocol, host=THIS_MACHINE, first=each.first, last=each.last, name=each.name)
            for each in self.shares
        )

        def is_shared(protocol: str, target: int | str) -> bool:
            port = SERVICES.get(str(target).lower(), 0)  # where nothing has that name
            return (grants.allows(protocol, target) or grants.allows(protocol, port)) is not None

        return [each for each in dict.fromkeys(wanted) if not is_shared(*each)]


_encoder = msgspec.msgpack.Encoder()
_decoder: Final[msgspec.msgpack.Decoder[Shares]] = msgspec.msgpack.Decoder(Shares)


def encode_shares(grants: GrantSet) -> bytes:
    found = [Share(each.protocol, each.first, each.last, each.name) for each in grants]
    return _encoder.encode(Shares(len(found) <= MAX_SHARES, found[:MAX_SHARES]))


def decode_shares(body: Buffer) -> Shares:
    """Raises MalformedPacket."""
    try:
        return _decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedPacket(f"shares: {error}") from None
