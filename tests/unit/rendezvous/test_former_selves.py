"""A process that was killed says no goodbye: the next one of its home says it, before the server leads anybody there."""

from __future__ import annotations

import pytest

from tests.unit.rendezvous.introductions import ROOMS
from tests.unit.rendezvous.world import Host, World
from tunnel.rendezvous import messages
from tunnel.rendezvous.contact import PARTINGS
from tunnel.rendezvous.limits import ServerConfig


def killed(world: World, host: Host) -> bytes:
    """The session that it leaves."""
    world.hosts.remove(host)
    return host.client.session


def start(world: World, name: str, former: tuple[bytes, ...] = ()) -> Host:
    """A process of one home, which waits for its peer and calls it, as `ptunnel up` does."""
    host = world.host(name, "198.18.9.9", former=former)
    host.client.listen(world.now, ROOMS)
    host.client.dial(world.now, ROOMS)
    world.run(0.5)
    return host


def test_a_home_that_is_killed_again_and_again_is_there_once() -> None:
    world = World(config=ServerConfig(channels_per_address=3))
    peer = world.host("peer")
    peer.client.listen(world.now, ROOMS)
    world.run(0.5)
    former: tuple[bytes, ...] = ()
    for number in range(12):
        home = start(world, f"home {number}", former)
        assert len(home.of(messages.Introduced)) == 1  # to the peer, and not to itself
        assert not home.of(messages.Refused)
        counters = world.server.counters()
        assert (counters["sessions"], counters["channels"], counters["rooms"]) == (2, 1, len(ROOMS))
        former = (killed(world, home),)
    assert len(peer.of(messages.Introduced)) == 12
    assert len(peer.of(messages.Gone)) == 11  # at once, and not when the server has missed the dead one for a while
    assert len(peer.client.channels) == 1


def test_without_a_goodbye_it_meets_itself() -> None:
    """So that the test above can fail; this is how an older client has it."""
    world = World()
    killed(world, start(world, "home 1"))
    home = start(world, "home 2")
    assert len(home.of(messages.Introduced)) == 2  # the dead one called, and waits
    assert world.server.counters()["sessions"] == 2


@pytest.mark.parametrize("seed", range(5))
def test_a_goodbye_that_is_lost_is_said_again(seed: int) -> None:
    world = World(seed)
    first, second = killed(world, start(world, "home 1")), killed(world, start(world, "home 2"))
    world.loss = 0.3
    home = start(world, "home 3", (second, first))
    world.run(10.0)
    assert list(world.server.registry.sessions) == [home.client.session]


def test_goodbye_is_said_so_often_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    gone = killed(world, start(world, "home 1"))
    said: list[bytes] = []
    emit = messages.encode_request

    def note(transaction: int, session: bytes, message: messages.RequestMessage, **more: bytes) -> bytes:
        if isinstance(message, messages.Goodbye):
            said.append(session)
        return emit(transaction, session, message, **more)

    monkeypatch.setattr(messages, "encode_request", note)
    start(world, "home 2", (gone,))
    world.run(60.0)
    assert said == [gone] * PARTINGS
