"""What the tests of `ptunnel up` share: homes that know one another, and programs behind them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from tunnel.pairing.grants import GrantSet
from tunnel.state.home import Home as StateHome
from tunnel.state.peers import Peer
from tunnel.up.home import Home

PATIENCE = 20.0  # seconds for what takes one at most, on a slow machine


def public_key(home: Path) -> bytes:
    return X25519PrivateKey.from_private_bytes(StateHome(home).identity()).public_key().public_bytes_raw()


def acquaint(server: str, **homes: Path) -> None:
    """Have all of these remember one another by these names, as if they had paired at that server."""
    for name, home in homes.items():
        for other, there in homes.items():
            if other != name:
                psk = bytes.fromhex("".join(sorted((public_key(home).hex()[:32], public_key(there).hex()[:32]))))
                StateHome(home).save_peer(Peer(name=other, static=public_key(there), psk=psk, server=server))


def configure(home: Path, text: str) -> None:
    home.mkdir(mode=0o700, exist_ok=True)
    (home / "config.toml").write_text(text, encoding="utf-8")


def remembered(home: Path, peer: str) -> list[str]:
    return [str(each) for each in GrantSet.from_dicts(StateHome(home).peer(peer).grants)]


@asynccontextmanager
async def echo() -> AsyncIterator[int]:
    """A TCP port of this machine that echoes."""

    async def serve(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for data in stream:
                await stream.send_all(data)

    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield int(listener.socket.getsockname()[1])
        nursery.cancel_scope.cancel()


def local(home: Home, peer: str) -> list[int]:
    """The local ports of the forwards to a peer."""
    return [int(each["bind"].rpartition(":")[2]) for each in home.forwards() if each["peer"] == peer]


async def talk(port: int) -> trio.SocketStream:
    """A connection over which something has gone there and back."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    await echoed(stream)
    return stream


async def echoed(stream: trio.SocketStream, data: bytes = b"hello") -> None:
    await stream.send_all(data)
    got = bytearray()
    while len(got) < len(data):
        got += (piece := await stream.receive_some())
        assert piece
    assert bytes(got) == data


async def is_refused(port: int) -> bool:
    try:
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(b"hello")
            return not await stream.receive_some()
    except (OSError, trio.BrokenResourceError):
        return True


async def until(is_so: Callable[[], object]) -> None:
    while not is_so():  # noqa: ASYNC110 -- whatever it is that changes
        await trio.sleep(0.01)


def states(home: Home) -> dict[str, str]:
    return {each["peer"]: each["state"] for each in home.details()["peers"]}


def peers_linked(homes: Sequence[Home]) -> list[list[str]]:
    return [[link.peer_name for link in home.links] for home in homes]
