"""The library: what the command line itself uses.

    async with tunnel.connect("731-crossover-clockwork", server="rv.example.net") as link:
        stream = await link.open_stream(...)

    async with tunnel.expose(["22"], server="rv.example.net", on_event=print) as exposure:
        await exposure.run()
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from tunnel.driver.events import Event
from tunnel.driver.link import Link

OnEvent = Callable[[Event], None]
LinkHandler = Callable[[Link], Awaitable[None]]


class Exposure:
    """A running `expose`."""

    links: list[Link]  # live ones
    server: str  # host:port as the other side must name it

    async def run(self) -> None:
        """Wait until there is nothing more to wait for: without `keep` and without `to`, until the paired peer has left."""
        raise NotImplementedError

    async def wait_link(self) -> Link:
        """The first live link."""
        raise NotImplementedError

    def new_code(self) -> None:
        """Ask for one more code now; it arrives as a CodeReady event."""
        raise NotImplementedError


@asynccontextmanager
async def connect(
    code: str | None = None,
    *,
    peer: str | None = None,
    server: str | None = None,
    home: Path | str | None = None,
    path: str = "auto",
    name: str | None = None,
    on_event: OnEvent | None = None,
    handler: LinkHandler | None = None,
) -> AsyncIterator[Link]:
    """Connect by a pairing code, or to the remembered peer `peer` (the only one there is where none is named).

    The link is connected when the block is entered, over the relay at least; it heals by itself until the block is left.
    `server` is host or host:port; None means the remembered peer's, else the one configured.  `home` None means PTUNNEL_HOME.
    `path` is auto, direct or relay.  `name` is how we introduce ourselves.  `handler(link)` runs beside the block.
    No time-out: `with trio.move_on_after(...)` around the `async with` statement's entry is the caller's.
    Raises ConfigurationError, StateError, PairingError, ServerUnreachableError, UnreachableError.
    """
    raise NotImplementedError
    yield


@asynccontextmanager
async def expose(
    grants: Sequence[str] = (),
    *,
    server: str | None = None,
    home: Path | str | None = None,
    keep: bool = False,
    to: Sequence[str] = (),
    path: str = "auto",
    name: str | None = None,
    on_event: OnEvent | None = None,
    handler: LinkHandler | None = None,
) -> AsyncIterator[Exposure]:
    """Let peers reach `grants` ("22", "53/udp", "nas=192.168.1.5:445") of this machine.

    With grants and without `to`, a code is made (CodeReady event) for one new peer; with `keep`, a fresh one after each.
    `to` grants them to remembered peers instead.  Without grants the saved ones are served.  Remembered peers are always served.
    With no server configured one is embedded for our own codes only; the Listening event carries its address.
    `handler(link)` runs for each link as long as it lives; None means: carry forwards as the grants allow.
    Raises ConfigurationError, StateError, AlreadyRunningError.
    """
    raise NotImplementedError
    yield
