"""The bytes of SOCKS version 5 (RFC 1928), without authentication: what a client asks, and how it is answered."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

VERSION: Final = 5
NO_AUTHENTICATION: Final = 0
NO_METHOD: Final = 0xFF
CONNECT: Final = 1
UDP_ASSOCIATE: Final = 3
_IPV4, _NAME, _IPV6 = 1, 3, 4

SUCCEEDED: Final = 0
FAILED: Final = 1
NOT_ALLOWED: Final = 2
HOST_UNREACHABLE: Final = 4
REFUSED: Final = 5
NO_SUCH_COMMAND: Final = 7
NO_SUCH_ADDRESS: Final = 8

#: Exactly so many bytes of what a client says.
Reader = Callable[[int], Awaitable[bytes]]


class SocksError(Exception):
    """A client that cannot be served; `reply` is the last it hears, and `text` the sentence for the person, or ""."""

    def __init__(self, reply: bytes = b"", text: str = "") -> None:
        super().__init__(text)
        self.reply = reply
        self.text = text


class Request(NamedTuple):
    """`host` is an address or a host name."""

    command: int
    host: str
    port: int


async def read_greeting(read: Reader) -> None:
    """Raises SocksError."""
    version, count = await read(2)
    if version == 4:
        raise SocksError(b"\0\x5b" + bytes(6), "A program speaks SOCKS 4 at the door: set it to SOCKS 5.")
    if version != VERSION:
        raise SocksError(text="A program at the SOCKS door speaks something else: set it to SOCKS 5, not to an HTTP proxy.")
    if NO_AUTHENTICATION not in await read(count):
        raise SocksError(bytes((VERSION, NO_METHOD)), "A program wants a password at the SOCKS door: set it to none.")


async def read_request(read: Reader) -> Request:
    """Raises SocksError."""
    version, command, _reserved, kind = await read(4)
    if version != VERSION:
        raise SocksError()
    if kind not in (_IPV4, _NAME, _IPV6):
        raise SocksError(reply(NO_SUCH_ADDRESS))
    size = {_IPV4: 4, _IPV6: 16}.get(kind) or (await read(1))[0]
    host = _host(kind, await read(size))
    port = int.from_bytes(await read(2), "big")
    if command not in (CONNECT, UDP_ASSOCIATE):
        raise SocksError(reply(NO_SUCH_COMMAND))
    if host is None:
        raise SocksError(reply(HOST_UNREACHABLE))
    return Request(command, host, port)


def reply(code: int, host: str = "0.0.0.0", port: int = 0) -> bytes:
    """`host` and `port`: where we listen or come from, as far as that is told."""
    address = ipaddress.ip_address(host)
    return bytes((VERSION, code, 0, _IPV4 if address.version == 4 else _IPV6)) + address.packed + port.to_bytes(2, "big")


def unwrap(data: bytes) -> tuple[str, int, bytes, bytes] | None:
    """Host, port, header and payload of a datagram from a client; None: it makes no sense, or is a fragment."""
    if len(data) < 5 or data[2] != 0:
        return None
    kind = data[3]
    start = 5 if kind == _NAME else 4
    size = data[4] if kind == _NAME else {_IPV4: 4, _IPV6: 16}.get(kind)
    if size is None or len(data) < start + size + 2:
        return None
    host = _host(kind, data[start : start + size])
    end = start + size + 2
    port = int.from_bytes(data[end - 2 : end], "big")
    return None if host is None or not port else (host, port, b"\0\0\0" + data[3:end], data[end:])


def _host(kind: int, data: bytes) -> str | None:
    if kind != _NAME:
        return str(ipaddress.ip_address(data))
    try:
        name = data.decode("ascii")
    except UnicodeDecodeError:
        return None
    return name if name and all(letter.isalnum() or letter in "-_.:" for letter in name) else None
