"""A peer's own grants as the exposing side tells them on the control stream, without where they lead."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated, Final, Literal

import msgspec

from tunnel.errors import ConfigurationError, MalformedPacket
from tunnel.notation import SERVICES
from tunnel.pairing.grants import THIS_MACHINE, Grant, GrantSet, parse_grant
from tunnel.units import Buffer

MAX_SHARES: Final = 256  # told, and believed; they fit one control message
MAX_MORE: Final = 16  # of those that are no port and have no name

Port = Annotated[int, msgspec.Meta(ge=1, le=65_535)]
#: As the grant's; no control characters, since it is shown to a person.
Name = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z][A-Za-z0-9_.-]{0,31}\Z")]


#: As the grant's; the same.
More = Annotated[str, msgspec.Meta(pattern=r"\A[ -~]{1,127}\Z")]


class Share(msgspec.Struct, frozen=True, array_like=True):
    """Ports of the other side, or those behind a name that it gave."""

    protocol: Literal["tcp", "udp"]
    first: Port
    last: Port
    name: Name | None = None

    @property
    def asked(self) -> str | None:
        """By what it is asked for, beside the port."""
        return self.name

    @property
    def kind(self) -> str:
        """As of a grant."""
        return "port"

    def __str__(self) -> str:
        """`tcp/22`, `udp/5000-5010`, `tcp/nas`, `tcp/games:7000-7002`."""
        ports = f"{self.first}" if self.first == self.last else f"{self.first}-{self.last}"
        place = ports if self.name is None else self.name if self.first == self.last else f"{self.name}:{ports}"
        return f"{self.protocol}/{place}"


class Shares(msgspec.Struct, frozen=True, array_like=True):
    """All of them, unless there were more than MAX_SHARES or MAX_MORE: then `is_all` is False.

    `more` is what else is shared, as it is shown and typed: Unix sockets without a name, networks, ports to listen on.
    """

    is_all: bool
    shares: Annotated[list[Share], msgspec.Meta(max_length=MAX_SHARES)]
    more: Annotated[list[More], msgspec.Meta(max_length=MAX_MORE)] = []

    @property
    def texts(self) -> list[str]:
        """All, as people read them."""
        return [*map(str, self.shares), *self.more]

    @property
    def usable(self) -> list[Share | Grant]:
        """All that this version understands."""
        found: list[Share | Grant] = [*self.shares]
        for text in self.more:
            with contextlib.suppress(ConfigurationError):  # of a later version
                found += parse_grant(text)
        return found

    def refused(self, wanted: Iterable[tuple[str, int | str]]) -> list[tuple[str, int | str]]:
        """Those of `wanted` (protocol, target) to which a stream or flow is refused, as far as was told."""
        if not self.is_all:
            return []
        grants = GrantSet(
            Grant(protocol=each.protocol, host=THIS_MACHINE, first=each.first, last=each.last, name=each.name)
            for each in self.shares
        )

        def is_shared(protocol: str, target: int | str) -> bool:
            if f"{protocol}/{target}" in self.more:
                return True
            port = SERVICES.get(str(target).lower(), 0)  # where nothing has that name
            return (grants.allows(protocol, target) or grants.allows(protocol, port)) is not None

        return [each for each in dict.fromkeys(wanted) if not is_shared(*each)]


_encoder = msgspec.msgpack.Encoder()
_decoder: Final[msgspec.msgpack.Decoder[Shares]] = msgspec.msgpack.Decoder(Shares)


def encode_shares(grants: GrantSet) -> bytes:
    """An older peer reads the first two elements; the third is left out where it is empty."""
    others = (each for each in grants if each.kind != "port" or (each.is_socket and each.name is None))
    more = list(dict.fromkeys(str(replace(each, proxy=False)) for each in others))
    found = [
        Share(each.protocol, each.first, each.last, each.name)
        for each in grants
        if each.kind == "port" and (each.name or not each.is_socket)
    ]
    is_all = len(found) <= MAX_SHARES and len(more) <= MAX_MORE
    body: list[object] = [is_all, found[:MAX_SHARES]]
    return _encoder.encode([*body, more[:MAX_MORE]] if more else body)


def decode_shares(body: Buffer) -> Shares:
    """Raises MalformedPacket."""
    try:
        return _decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedPacket(f"shares: {error}") from None
