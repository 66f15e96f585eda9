"""A client to which every room costs something, as the DHT: what an endpoint asks of it, and what people hear."""

from __future__ import annotations

import random
from typing import Any, cast

import pytest

from tests.sim.store import PeersInMemory
from tunnel.node.context import EndpointConfig
from tunnel.node.endpoint import Endpoint
from tunnel.node.events import KnownPeer, Problem, Troubled
from tunnel.pairing.identity import DAY, room_id
from tunnel.rendezvous.client import Client
from tunnel.rendezvous.events import NO_PATH, Told
from tunnel.rendezvous.messages import Join, Refused, Role
from tunnel.units import Instant, Seconds

START = Instant(100.0)
TODAY = 20_000
PEER = KnownPeer(name="home", static=b"h" * 32, psk=b"p" * 32, server="dht")
ABSENT_AFTER = Seconds(10.0)


class Costly:
    """Writes down in which rooms it is asked to wait, and in which to meet."""

    def __init__(self) -> None:
        self.listened: dict[bytes, bool] = {}  # whether they are spare
        self.dialed: list[bytes] = []
        self.hearer: Any = None
        self.is_reached = True
        self.absent_after = ABSENT_AFTER
        self.channels: list[Any] = []
        self.drops: dict[str, int] = {}

    def listen(self, now: Instant, rooms: list[bytes], hearer: Any = None, *, is_spare: bool = False) -> None:
        self.listened.update(dict.fromkeys(rooms, is_spare))

    def dial(
        self, now: Instant, rooms: list[bytes], hearer: Any = None, *, is_spare: bool = False, is_wide: bool = False
    ) -> None:
        if not is_spare:
            self.dialed += rooms
            self.hearer = hearer

    def __getattr__(self, name: str) -> Any:
        return lambda *_what, **_how: None


class Party:
    def __init__(self) -> None:
        self.day = TODAY
        self.client = Costly()
        self.endpoint = Endpoint(
            config=EndpointConfig(name="friend", aeads=(1, 2), receive_buffer=212_992, machine_id=b"machine"),
            static_key=bytes(range(32)),
            peers=[PEER],
            store=PeersInMemory(),
            entropy=random.Random(1).randbytes,
            rng=random.Random(1),
            wall_ns=lambda: int((self.day + 0.5) * DAY * 1e9),
        )
        self.endpoint.add_client(START, "dht", cast("Client", self.client), (0x64,), "Strangers see the address.")

    def troubles(self, now: Instant) -> list[Troubled]:
        self.endpoint.handle_timeout(now)
        found = []
        while (event := self.endpoint.poll_event(now)) is not None:
            found += [event] if isinstance(event, Troubled) and event.problem is not Problem.STRANGERS else []
        return found

    def room(self, day: int) -> bytes:
        return room_id(PEER.psk, day)


def test_who_waits_does_so_in_the_room_of_today_and_the_others_are_spare() -> None:
    party = Party()
    party.endpoint.listen(START)
    assert party.client.listened.pop(party.room(TODAY)) is False
    assert set(party.client.listened.values()) == {True}
    party.day += 1
    party.endpoint.set_peers(START, [PEER])
    assert party.client.listened[party.room(TODAY)] is True
    assert party.client.listened[party.room(TODAY + 1)] is False


def test_nothing_that_gets_through_is_told_with_the_peers_name_and_not_as_an_absence() -> None:
    party = Party()
    party.endpoint.dial(START, PEER, "dht")
    rooms = tuple(party.client.dialed)
    assert rooms == (party.room(TODAY),)
    assert party.troubles(Instant(START + 8.0)) == []
    party.client.hearer.hear(START, party.client, Told(Refused(NO_PATH, "Found, and out of reach."), Join(Role.DIAL, rooms)))
    (trouble,) = party.troubles(Instant(START + 8.0))
    assert (trouble.problem, trouble.text, trouble.is_final) == (
        Problem.NO_DIRECT,
        "home: Found, and out of reach. Waiting.",
        False,
    )
    assert party.troubles(Instant(START + 60.0)) == []


@pytest.mark.parametrize(("after", "told"), [(ABSENT_AFTER - 0.1, 0), (ABSENT_AFTER, 1)])
def test_nobody_there_is_told_when_the_client_says_that_it_is_time(after: float, told: int) -> None:
    party = Party()
    party.endpoint.dial(START, PEER, "dht")
    found = party.troubles(Instant(START + after))
    assert [each.problem for each in found] == [Problem.PEER_ABSENT] * told
    assert len(party.client.dialed) > 1  # by now in the rooms of other days too
