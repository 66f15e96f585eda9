"""Two links to one peer, as where both homes have dialed at once: one gives way, and nothing of a local program is lost by it.

Over links that only stand there, in virtual time; then what a forward does with connections that a link has left untouched.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from tests.driver.fake_link import FakeLink, linked_pair
from tests.driver.ups import PATIENCE, until
from tunnel.errors import UnreachableError
from tunnel.node.events import KnownPeer
from tunnel.ports.open import Opened, encode, read_message
from tunnel.ports.serve import Listeners
from tunnel.ports.spec import parse_forwards
from tunnel.ports.unserved import Unserved
from tunnel.up import bond as module
from tunnel.up.bond import AWAKE_PROOF, LINGER, PROOF, Bond

OURS, THEIRS = b"\x05" * 32, b"\x09" * 32  # static keys: the link that we have dialed is the better one


class StandIn:
    """A link as a bond sees it."""

    def __init__(self, *, is_connector: bool) -> None:
        self.is_connector = is_connector
        self.shared = object()  # the peer has said what it shares
        self.is_idle = True
        self.close_reason: str | None = None
        self.peering = SimpleNamespace(is_reachable=True, is_closed=False)
        self.round_trip = 0.01  # seconds; inf: it does not answer

    async def ping(self) -> None:
        if self.close_reason is not None:
            raise UnreachableError("closed")
        await trio.sleep(self.round_trip)

    def close(self, reason: str) -> None:
        self.close_reason = reason


class Doorway:
    """A door that is served."""

    def __init__(self) -> None:
        self.remotes = ()
        self.limit = None
        self.scope: trio.CancelScope | None = None
        self.listeners = self
        self.counters = SimpleNamespace(tcp_active=0)
        self.link: Any = None

    async def serve(self, link: Any, **_options: Any) -> None:
        self.link = link
        await trio.sleep_forever()


class Stage:
    """A bond with one door."""

    def __init__(self, *, is_smaller: bool = True) -> None:
        mine, peers = (OURS, THEIRS) if is_smaller else (THEIRS, OURS)
        core = SimpleNamespace(static_public=mine)
        around: Any = SimpleNamespace(driver=SimpleNamespace(core=core), notice=lambda _text: None, log=None)
        self.bond = Bond(around, KnownPeer(name="ben", static=peers, psk=bytes(32), server=None))
        self.door = Doorway()
        self.bond.add(self.door)  # type: ignore[arg-type]

    def came(self, *, is_connector: bool) -> Any:
        link: Any = StandIn(is_connector=is_connector)
        self.bond.links.append(link)
        self.bond.notify()
        return link


@asynccontextmanager
async def running(stage: Stage) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.bond.run)
        yield
        nursery.cancel_scope.cancel()


async def test_a_link_that_gives_way_stays_open_until_the_other_side_has_turned_to_the_better_one(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stage = Stage(is_smaller=False)
    ours = stage.came(is_connector=True)
    async with running(stage):
        await trio.sleep(1.0)
        assert stage.door.link is ours
        theirs = stage.came(is_connector=False)
        await trio.sleep(0.5)
        assert stage.door.link is theirs
        assert ours.close_reason is None  # the other side may just have opened something there
        ours.is_idle = False
        await trio.sleep(5 * LINGER)
        assert ours.close_reason is None
        ours.is_idle = True
        await trio.sleep(2 * LINGER)
        assert ours.close_reason is not None
        assert theirs.close_reason is None


@pytest.mark.parametrize("what", ["a stream", "a connection that has no stream yet"])
async def test_the_doors_do_not_leave_a_link_on_which_something_is_under_way(
    what: str, autojump_clock: trio.testing.MockClock
) -> None:
    stage = Stage(is_smaller=False)
    ours = stage.came(is_connector=True)
    async with running(stage):
        await trio.sleep(1.0)
        ours.is_idle = what != "a stream"
        stage.door.counters.tcp_active = 1
        theirs = stage.came(is_connector=False)
        await trio.sleep(60.0)
        assert (stage.door.link, ours.close_reason) == (ours, None)
        ours.is_idle, stage.door.counters.tcp_active = True, 0
        await trio.sleep(5.0)
        assert stage.door.link is theirs


async def test_a_peer_that_stands_still_for_a_while_has_not_died(autojump_clock: trio.testing.MockClock) -> None:
    """It answers late on both links, as a process that waits for its disk; what is open stays open."""
    stage = Stage()
    ours = stage.came(is_connector=True)
    ours.is_idle = False
    async with running(stage):
        await trio.sleep(1.0)
        ours.round_trip = PROOF + 0.5
        theirs = stage.came(is_connector=False)
        theirs.round_trip = PROOF - 0.2
        await trio.sleep(PROOF + 0.7)
        ours.round_trip = AWAKE_PROOF / 2
        await trio.sleep(60.0)
        assert (stage.door.link, ours.close_reason) == (ours, None)


async def test_a_turn_of_our_own_that_takes_long_is_not_held_against_the_link(autojump_clock: trio.testing.MockClock) -> None:
    link: Any = StandIn(is_connector=True)
    answers: list[bool] = []
    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            answers.append(await module._answers(link))

        link.round_trip = PROOF / 2
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        autojump_clock.jump(3 * PROOF)  # both the answer and the end of patience are due in the next turn
        await trio.sleep(2 * PROOF)
    assert answers == [True]


@pytest.mark.parametrize("is_known", [True, False])
async def test_a_link_whose_other_end_has_died_makes_room_for_the_new_one(
    is_known: bool, autojump_clock: trio.testing.MockClock
) -> None:
    """As that of a home that was killed and has started again; sooner where no path to the old process works any more."""
    stage = Stage()
    ours = stage.came(is_connector=True)
    ours.is_idle = False
    async with running(stage):
        await trio.sleep(1.0)
        ours.round_trip = float("inf")
        ours.peering.is_reachable = not is_known
        theirs = stage.came(is_connector=False)
        await trio.sleep(0.3 if is_known else PROOF + AWAKE_PROOF + 0.3)
        assert ours.close_reason is not None
        await trio.sleep(0.1)
        assert stage.door.link is theirs  # though the one that has ended is still among the links


async def test_a_link_that_has_ended_serves_nothing(autojump_clock: trio.testing.MockClock) -> None:
    stage = Stage()
    ours, theirs = stage.came(is_connector=True), stage.came(is_connector=False)
    ours.close("the peer has ended")
    async with running(stage):
        await trio.sleep(0.1)
        assert stage.door.link is theirs


# --- connections that a link has left untouched


@asynccontextmanager
async def a_forward() -> AsyncIterator[Listeners]:
    with trio.fail_after(PATIENCE), Listeners(parse_forwards(["127.0.0.1:0:80"])) as listeners:
        yield listeners


def port_of(listeners: Listeners) -> int:
    return int(listeners.ready[0].bind.rpartition(":")[2])


class Deaf(FakeLink):
    """Opens no stream, as a peer that is away."""

    can_open = False

    async def open_stream(self, open_message: bytes = b"") -> Any:
        await trio.sleep_forever()


@pytest.mark.parametrize("ends", ["closed", "left"])
@pytest.mark.parametrize("has_stream", [True, False])
async def test_a_connection_that_a_link_has_left_untouched_is_carried_by_the_next_one(ends: str, has_stream: bool) -> None:
    async with a_forward() as listeners, trio.open_nursery() as nursery:
        near, far = linked_pair()
        first: Any = near if has_stream else Deaf("home")
        scope, over = trio.CancelScope(), trio.Event()

        async def serve() -> None:
            with scope:
                await listeners.serve(first)
            over.set()

        nursery.start_soon(serve)
        async with await trio.open_tcp_stream("127.0.0.1", port_of(listeners)) as client:
            await until(lambda: first.streams if has_stream else listeners.counters.tcp_active)
            if ends == "closed":
                first.close()
            else:
                scope.cancel()
            await over.wait()
            second, other = linked_pair()
            nursery.start_soon(listeners.serve, second)
            stream = None
            async with trio.open_nursery() as serving:

                async def answer(found: Any) -> None:
                    nonlocal stream
                    stream = found
                    await read_message(found)
                    await found.send_all(encode(Opened()) + b"here I am")
                    await trio.sleep_forever()

                serving.start_soon(other.serve_streams, answer)
                await client.send_all(b"hello")
                got = b""
                while got != b"here I am":
                    got += (piece := await client.receive_some())
                    assert piece
                assert stream is not None
                assert listeners.counters.tcp_active == 1
                serving.cancel_scope.cancel()
        del far
        nursery.cancel_scope.cancel()


async def test_a_connection_of_which_something_was_taken_is_not_said_a_second_time() -> None:
    async with a_forward() as listeners, trio.open_nursery() as nursery:
        near, far = linked_pair()
        nursery.start_soon(listeners.serve, near)
        async with await trio.open_tcp_stream("127.0.0.1", port_of(listeners)) as client:
            await client.send_all(b"once")
            await until(lambda: near.streams and b"once" in b"".join(near.streams[0].out.chunks))
            near.close()
            with contextlib.suppress(trio.BrokenResourceError):
                assert await client.receive_some() == b""
        del far
        nursery.cancel_scope.cancel()


async def test_what_waits_for_a_link_ends_with_the_forward() -> None:
    async with a_forward() as listeners, trio.open_nursery() as nursery:
        near, _far = linked_pair()
        nursery.start_soon(listeners.serve, near)
        async with await trio.open_tcp_stream("127.0.0.1", port_of(listeners)) as client:
            await until(lambda: near.streams)
            near.close()
            await until(lambda: not near.streams or listeners.counters.tcp_active)
            await trio.testing.wait_all_tasks_blocked()
            listeners.close()
            with contextlib.suppress(trio.BrokenResourceError):
                assert await client.receive_some() == b""
        nursery.cancel_scope.cancel()


def test_a_socket_that_comes_after_the_end_is_not_kept() -> None:
    unserved = Unserved(socket.socket.close)
    unserved.close()
    one, other = socket.socketpair()
    with one, other:
        assert not unserved.keep(one)
        assert unserved.take() == []
