"""A server and the DHT under one name, with doubles of both: which of them is asked, and when."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from tests.unit.dht.test_route import OF_A_SERVER
from tunnel.node.alternatives import ABSENT_AFTER, HEAD_START, LONG_NUMBERS, Alternatives
from tunnel.rendezvous.client import Client
from tunnel.rendezvous.events import ChannelMoved, FallbackWanted, RelayChannel, Told
from tunnel.rendezvous.messages import Introduced
from tunnel.units import Address, Instant, PathKey, Seconds, SocketId

START = Instant(100.0)
ROOM, OTHER = b"r" * 16, b"s" * 16
MAILBOX = b"m" * 16
SERVER, DHT = "rv.example.net", "dht"
SHORT, LONG = 731, LONG_NUMBERS[5]


class Double:
    """Writes down what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.is_reached = True
        self.reflexive: dict[SocketId, Address] = {}
        self.mapping_varies: bool | None = None
        self.round_trip: Seconds | None = None
        self.hearer: Any = None
        self.mailboxes: set[bytes] = set()

    def knows_mailbox(self, mailbox: bytes) -> bool:
        return mailbox in self.mailboxes

    def carries(self, channel: RelayChannel, path: PathKey) -> bool:
        self.asked.append(("carries",))
        return True

    def __getattr__(self, verb: str) -> Any:
        def note(_now: Instant, *what: Any, **_how: Any) -> None:
            self.hearer = next((each for each in what if hasattr(each, "hear")), self.hearer)
            self.asked.append((verb, *(each for each in what if not hasattr(each, "hear"))))

        return note

    def take(self) -> list[tuple[Any, ...]]:
        asked, self.asked = self.asked, []
        return asked


class Hears:
    def __init__(self) -> None:
        self.heard: list[tuple[Any, Any]] = []

    def hear(self, now: Instant, client: Any, event: Told | ChannelMoved) -> None:
        self.heard.append((client, event))


class Both:
    """The two, of which each may be left out."""

    def __init__(self, *, server: bool = True, dht: bool = True) -> None:
        self.server, self.dht = Double(), Double()
        self.clients: dict[str, Any] = {}
        self.clients.update({SERVER: self.server} if server else {}, **({DHT: self.dht} if dht else {}))
        self.part = Alternatives(self.clients, (SERVER, DHT), START)
        self.me = Hears()

    def appear(self, name: str, now: Instant = START) -> None:
        self.clients[name] = self.server if name == SERVER else self.dht
        self.part.appeared(now, name)

    def wait(self, seconds: float = HEAD_START) -> None:
        """So long, by its own deadlines."""
        now = START + seconds
        while (at := self.part.poll_timeout()) is not None and at <= now:
            self.part.handle_timeout(at)

    def wants_dht(self) -> bool:
        return self.part.poll_event() == FallbackWanted()


def test_it_has_the_face_of_a_client() -> None:
    for name, verb in inspect.getmembers(Client):
        if name.startswith("_") or name in OF_A_SERVER:
            continue
        ours = getattr(Alternatives, name, None)
        assert ours is not None, name
        if callable(verb):
            assert list(inspect.signature(ours).parameters) == list(inspect.signature(verb).parameters), name


def test_whoever_waits_does_so_at_both() -> None:
    both = Both(dht=False)
    both.part.listen(START, [ROOM], both.me)
    assert both.wants_dht()
    assert both.server.take() == [("listen", [ROOM])]
    both.appear(DHT)
    assert both.dht.take() == [("listen", [ROOM])]
    both.part.leave(START, [ROOM], both.me)
    assert (both.server.take(), both.dht.take()) == ([("leave", [ROOM])], [("leave", [ROOM])])
    both.appear(DHT)
    assert both.dht.take() == []


def test_whoever_comes_asks_the_server_and_strangers_later() -> None:
    both = Both(dht=False)
    both.part.dial(START, [ROOM], both.me)
    both.wait(HEAD_START - 0.01)
    assert not both.wants_dht()
    both.wait()
    assert both.wants_dht()
    assert both.server.take() == [("dial", [ROOM])]
    both.appear(DHT)
    assert both.dht.take() == [("dial", [ROOM])]
    assert both.part.poll_timeout() is None


@pytest.mark.parametrize("by", [SERVER, DHT])
def test_whoever_was_led_to_a_peer_hears_it_of_the_common_name_and_asks_nobody_else(by: str) -> None:
    both = Both()
    both.part.dial(START, [ROOM], both.me)
    if by == DHT:
        both.wait()
    double = both.server if by == SERVER else both.dht
    event = Told(Introduced(ROOM, b"", b"", 1))
    double.hearer.hear(START, double, event)
    assert both.me.heard == [(both.part, event)]
    both.dht.take()
    both.wait()
    assert both.dht.take() == []


def test_a_spare_room_is_dialed_at_the_server_alone() -> None:
    both = Both()
    both.part.dial(START, [ROOM], both.me, is_spare=True)
    both.wait()
    assert both.server.take() == [("dial", [ROOM])]
    assert both.dht.take() == []


def test_a_server_that_is_gone_when_it_is_dialed_costs_no_more_time() -> None:
    both = Both()
    both.server.is_reached = False
    both.wait()
    both.part.dial(START, [ROOM], both.me)
    both.wait(0.0)
    assert both.dht.take() == [("dial", [ROOM])]


@pytest.mark.parametrize("is_there", [True, False])
def test_a_number_is_the_servers_if_it_answers_and_else_one_of_the_dht(is_there: bool) -> None:
    both = Both()
    both.server.is_reached = False
    both.part.allocate(START, 3, both.me)
    assert both.wants_dht()
    both.server.is_reached = is_there
    both.part.look(START)
    both.wait()
    allocated = [("allocate", 3)]
    assert (both.server.take(), both.dht.take()) == ((allocated, []) if is_there else ([], allocated))


def test_a_number_waits_for_whichever_answers_first_where_neither_does() -> None:
    both = Both(server=False, dht=False)
    both.part.allocate(START, 1, both.me)
    both.wait()
    both.appear(SERVER)
    assert both.server.take() == [("allocate", 1)]
    assert not both.part.poll_timeout()


def test_the_length_of_a_number_tells_where_it_was_made() -> None:
    both = Both(dht=False)
    both.part.claim(START, SHORT, b"body", both.me)
    assert both.server.take() == [("claim", SHORT, b"body")]
    assert not both.wants_dht()
    both.part.claim(START, LONG, b"body", both.me)
    assert both.wants_dht()
    assert both.server.take() == []
    both.appear(DHT)
    assert both.dht.take() == [("claim", LONG, b"body")]
    both.part.look(START)
    assert both.dht.take() == []


def test_a_mailbox_and_a_path_are_those_of_whoever_gave_them() -> None:
    both = Both()
    both.dht.mailboxes.add(MAILBOX)
    both.part.post(START, MAILBOX, b"x")
    both.part.leave_mailbox(START, MAILBOX)
    both.part.post(START, OTHER, b"y")
    both.part.leave_mailbox(START, OTHER)
    assert both.dht.take() == [("post", MAILBOX, b"x"), ("leave_mailbox", MAILBOX)]
    assert both.server.take() == [("post", OTHER, b"y"), ("leave_mailbox", OTHER)]
    remote = Address("198.18.0.9", 4_000)
    for channel, double in ((b"", both.dht), (b"c" * 8, both.server)):
        info = RelayChannel(channel, b"", 0, SocketId(0), remote)
        assert both.part.carries(info, info.path_key)
        assert double.take() == [("carries",)]


def test_both_are_looked_at_for_what_is_known() -> None:
    both = Both()
    here, there = Address("198.18.0.7", 1), Address("198.18.0.7", 2)
    both.dht.reflexive = {SocketId(0): there, SocketId(1): there}
    both.server.reflexive = {SocketId(0): here}
    both.dht.mapping_varies = False
    assert both.part.reflexive == {SocketId(0): here, SocketId(1): there}
    assert both.part.mapping_varies is False
    assert both.part.absent_after == ABSENT_AFTER
    both.server.is_reached = False
    assert both.part.is_reached
    both.dht.is_reached = False
    assert not both.part.is_reached
