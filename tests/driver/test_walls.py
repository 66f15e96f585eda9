"""An exception at any place where something of one source is handled: that one ends, and another link goes on carrying data."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

import tunnel
from tests.driver.faulty import QUICK, fails
from tests.driver.meeting import Heard, a_server, echo, homes, shout
from tunnel.faults import Faults
from tunnel.ports.exposing import Exposure
from tunnel.setup.ways import WayKeeper
from tunnel.shell import lasting
from tunnel.shell.endpoint import EndpointDriver
from tunnel.shell.events import Closed, CodeReady, Event, Trouble
from tunnel.shell.lasting import last
from tunnel.shell.link import CloseCode, Link
from tunnel.shell.stream import StreamCode, StreamResetError, TunnelStream
from tunnel.state.home import Home
from tunnel.state.peers import Peer


@dataclass
class Lab:
    """An exposer with two links; `steady` is counted up by the echo on mate's, one stream from beginning to end."""

    exposure: Exposure
    heard: Heard
    friend: Link
    mate: Link
    patch: pytest.MonkeyPatch
    home: Path
    steady: int = 0

    @property
    def driver(self) -> EndpointDriver:
        assert self.exposure.driver is not None
        return self.exposure.driver

    @property
    def theirs(self) -> Link:
        """The exposer's end of friend's link."""
        return next(link for link in self.exposure.links if link.peer_name == "friend")

    def once(self, owner: Any, name: str, when: Callable[..., bool] = lambda *_arguments, **_named: True) -> trio.Event:
        """The next call of `owner.name` for which `when` holds fails; the event tells that it did."""
        whole, met = getattr(owner, name), trio.Event()

        def sometimes(*arguments: Any, **named: Any) -> Any:
            if not met.is_set() and when(*arguments, **named):
                met.set()
                fails()
            return whole(*arguments, **named)

        self.patch.setattr(owner, name, sometimes)
        return met

    async def carries_on(self, count: int = 5) -> None:
        """So many more answers on mate's stream."""
        before = self.steady
        with trio.fail_after(5):
            while self.steady < before + count:  # noqa: ASYNC110
                await trio.sleep(0.002)

    async def count(self, place: str) -> None:
        """Until a fault was counted there."""
        with trio.fail_after(5):
            while not self.driver.faults.counts[place]:  # noqa: ASYNC110
                await trio.sleep(0.002)


async def keep_talking(lab: Lab) -> None:
    stream = await lab.mate.open_stream(b"")
    while True:
        await stream.send_all(b"tick")
        assert await stream.receive_exactly(4) == b"tick"
        lab.steady += 1
        await trio.sleep(0.001)


def acquaint(server: str, exposer: Path, names: tuple[str, ...]) -> None:
    """Homes of these names beside the exposer's, each known to it and knowing it: no code is needed, and no second waited."""
    statics = {
        name: X25519PrivateKey.from_private_bytes(Home(exposer.parent / name).identity()).public_key().public_bytes_raw()
        for name in (exposer.name, *names)
    }
    for name in names:
        psk = sha256(name.encode()).digest()
        Home(exposer).save_peer(Peer(name=name, static=statics[name], psk=psk, server=server, created=time.time()))
        Home(exposer.parent / name).save_peer(
            Peer(name="home", static=statics[exposer.name], psk=psk, server=server, created=time.time())
        )


@asynccontextmanager
async def a_lab(tmp_path: Path, patch: pytest.MonkeyPatch, handler: Any = echo) -> AsyncIterator[Lab]:
    exposer, heard = tmp_path / "exposer", Heard()
    patch.setattr(lasting, "FIRST_PAUSE", QUICK)
    with trio.fail_after(20):
        async with a_server() as server:
            acquaint(server, exposer, ("friend", "mate", "newcomer"))
            async with (
                tunnel.expose(server=server, home=exposer, name="home", on_event=heard, handler=handler) as exposure,
                tunnel.connect(home=tmp_path / "friend") as friend,
                tunnel.connect(home=tmp_path / "mate") as mate,
                trio.open_nursery() as nursery,
            ):
                lab = Lab(exposure, heard, friend, mate, patch, exposer)
                nursery.start_soon(keep_talking, lab)
                await lab.carries_on()
                yield lab
                await lab.carries_on()
                assert "mate" not in [event.peer for event in heard if isinstance(event, Closed)]
                nursery.cancel_scope.cancel()


async def test_a_fault_in_the_handler_of_a_stream_resets_that_stream_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def handle(stream: TunnelStream) -> None:
        first = await stream.receive_some(4)
        if first == b"fail":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                fails()
        await stream.send_all(first)
        while chunks := await stream.receive_chunks():
            await stream.send_all(b"".join(chunks))
        await stream.send_eof()

    async def handler(link: Link) -> None:
        await link.serve_streams(handle)

    async with a_lab(tmp_path, monkeypatch, handler) as lab:
        beside = await lab.friend.open_stream(b"beside")
        stream = await lab.friend.open_stream(b"fail")
        with pytest.raises(StreamResetError) as reset:
            await stream.receive_some()
        assert reset.value.code == StreamCode.INTERNAL
        assert await beside.receive_exactly(6) == b"beside"
        assert await shout(lab.friend, b"hello") == b"hello"
        assert lab.driver.faults.counts == {"stream": 1}
        trouble = await lab.heard.wait(lambda event: isinstance(event, Trouble))
        assert isinstance(trouble, Trouble)
        assert trouble.code == "internal"
        report = lab.home / "faults.log"
        assert trouble.message == (
            f"A fault in ptunnel ended a stream of the link to friend; all else goes on. Please report it: {report}."
        )
        assert "Fault: in a test" in report.read_text()
        assert report.stat().st_mode & 0o777 == 0o600
        assert lab.driver.counters()["faults"] == {"stream": 1}


async def test_a_fault_in_the_handler_of_a_link_ends_that_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def handler(link: Link) -> None:
        if link.peer_name == "friend":
            await link.accept_stream()
            fails()
        await echo(link)

    async with a_lab(tmp_path, monkeypatch, handler) as lab:
        await lab.friend.open_stream(b"hello")
        reason = await lab.friend.closed()
        assert (reason.code, reason.text, reason.by_peer) == (CloseCode.INTERNAL, "a fault in ptunnel on the other side", True)
        assert lab.driver.faults.counts == {"link": 1}


Place = tuple[str, Callable[[Lab], Awaitable[None]]]


async def link_events(lab: Lab) -> None:
    theirs = lab.theirs
    met = lab.once(Link, "_handle_event", lambda link, _event: link is theirs)
    await lab.friend.open_stream(b"hello")
    await met.wait()
    assert (await lab.friend.closed()).code == CloseCode.INTERNAL


async def a_flow(lab: Lab) -> None:
    lab.theirs.flows.register(2, fails)
    while not lab.driver.faults.counts:
        lab.friend.flows.send(2, [b"hello"])
        lab.friend.flows.flush()
        await trio.sleep(QUICK)
    assert await shout(lab.friend, b"hello") == b"hello"
    assert not lab.friend.close_reason


async def the_end_of_a_stream(lab: Lab) -> None:
    """What is called at once when the peer resets it."""
    stream = await lab.friend.open_stream(b"hello")
    assert await stream.receive_exactly(5) == b"hello"
    theirs = next(iter(lab.theirs._streams.values()))
    theirs.on_abort = fails
    stream.reset(StreamCode.CANCELLED)
    await lab.count("stream")
    assert await shout(lab.friend, b"hello") == b"hello"


async def all_streams_at_the_end_of_their_link(lab: Lab) -> None:
    for _ in range(3):
        await (await lab.friend.open_stream(b"hello")).receive_exactly(5)
    theirs = list(lab.theirs._streams.values())
    ended: list[int] = []
    for number, stream in enumerate(theirs):
        stream.on_abort = fails if number == 1 else ended.append
    lab.friend.close()
    while len(ended) < len(theirs) - 1:  # noqa: ASYNC110
        await trio.sleep(QUICK)


async def what_is_called_before_a_flush(lab: Lab) -> None:
    done: list[int] = []
    lab.driver._before_flush += [fails, lambda: done.append(1)]
    lab.driver.flush()
    assert done == [1]


async def a_new_link(lab: Lab) -> None:
    lab.patch.setattr(lab.driver, "on_link", fails)
    try:
        async with tunnel.connect(home=lab.home.parent / "newcomer") as link:
            assert (await link.closed()).code == CloseCode.INTERNAL
    except tunnel.UnreachableError as error:  # it had ended before the block was entered
        if "a fault in ptunnel on the other side" not in str(error):
            raise
    assert sorted(each.peer_name for each in lab.driver.links.values()) == ["friend", "mate"]


async def whoever_hears_events(lab: Lab) -> None:
    met = lab.once(lab.driver, "on_event")
    lab.friend.close()
    await met.wait()


async def what_follows_events(lab: Lab) -> None:
    met = trio.Event()

    def after() -> None:
        lab.driver.after_events = None
        met.set()
        fails()

    lab.driver.after_events = after
    await lab.friend.open_stream(b"hello")
    await met.wait()


async def the_timers(lab: Lab) -> None:
    await lab.once(lab.driver.core, "handle_timeout").wait()


async def the_sending(lab: Lab) -> None:
    await lab.once(lab.driver.core, "poll_transmit").wait()


async def the_way_out(lab: Lab) -> None:
    await lab.once(lab.driver._outbox, "put").wait()


async def a_batch(lab: Lab) -> None:
    await lab.once(lab.driver.core, "handle_batch").wait()


async def a_socket(lab: Lab) -> None:
    socket = next(iter(lab.driver._sockets.values()))
    await lab.once(socket, "receive").wait()


async def the_network(lab: Lab) -> None:
    met = lab.once(lab.driver, "_hosts")
    with lab.driver.faults.wall("driver", "interrupted the watch over the network"):
        lab.driver._network_changed()
    await met.wait()


async def the_memory_of_ways(lab: Lab) -> None:
    lab.once(WayKeeper, "load")
    lab.driver._network_changed()


async def the_peers_file(lab: Lab) -> None:
    met = lab.once(lab.exposure._store, "news")
    lab.exposure._store._stamp = (1, 1, 1)
    await met.wait()
    await lab.count("state")
    while lab.exposure._store._stamp == (1, 1, 1):  # noqa: ASYNC110  # read at the next look
        await trio.sleep(QUICK)


PLACES: dict[str, Place] = {
    "an event of a link": ("link", link_events),
    "a new link": ("link", a_new_link),
    "a flow": ("flow", a_flow),
    "the end of a stream": ("stream", the_end_of_a_stream),
    "all streams at the end of their link": ("stream", all_streams_at_the_end_of_their_link),
    "what is called before a flush": ("local program", what_is_called_before_a_flush),
    "whoever hears events": ("events", whoever_hears_events),
    "what follows events": ("events", what_follows_events),
    "the timers": ("driver", the_timers),
    "the sending": ("driver", the_sending),
    "the way out": ("driver", the_way_out),
    "a batch": ("datagram", a_batch),
    "a socket": ("socket", a_socket),
    "the network": ("driver", the_network),
    "the memory of ways": ("state", the_memory_of_ways),
    "the peers' file": ("state", the_peers_file),
}


@pytest.mark.parametrize("name", PLACES)
async def test_a_fault_there_leaves_the_other_link_untouched(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, act = PLACES[name]
    async with a_lab(tmp_path, monkeypatch) as lab:
        await act(lab)
        await lab.count(place)
        await lab.carries_on(20)
        assert set(lab.driver.faults.counts) == {place}


async def test_whoever_no_longer_hears_us_ends_the_whole(tmp_path: Path) -> None:
    """A command whose standard output is closed ends, as `ptunnel connect --json | head -1` is expected to."""
    exposer, _ = homes(tmp_path)

    def gone(event: Event) -> None:
        if isinstance(event, CodeReady):
            raise BrokenPipeError

    with trio.fail_after(10):
        async with a_server() as server:
            with pytest.raises(BrokenPipeError):
                async with tunnel.expose(["22"], server=server, home=exposer, on_event=gone) as exposure:
                    await exposure.run()


async def test_a_task_that_is_to_last_begins_anew_later_and_later(autojump_clock: trio.testing.MockClock) -> None:
    begun: list[float] = []
    faults = Faults()

    async def task() -> None:
        begun.append(trio.current_time())
        if len(begun) < 5:
            fails()

    await last(faults, "task", "interrupted it", task)
    pauses = [later - earlier for earlier, later in itertools.pairwise(begun)]
    assert pauses == pytest.approx([0.5, 1, 2, 4])
    assert faults.counts == {"task": 4}
    with trio.move_on_after(1) as limit:
        await last(faults, "task", "interrupted it", trio.sleep_forever)
    assert limit.cancelled_caught
