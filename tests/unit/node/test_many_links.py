"""What happens to one link concerns no other: a datagram costs the same beside one link and beside a hundred."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pytest

from tests.star import Star
from tests.unit.connection.pair import keypairs
from tests.work import instructions
from tunnel.transport.connection.connection import Connection
from tunnel.transport.connection.events import PathKind
from tunnel.transport.stream.streams import CONTROL_STREAM
from tunnel.units import Address, Instant, PathKey, SocketId

MANY: Final = 100
#: What an endpoint may ask of a connection; each is work for every connection that is asked.
QUESTIONS: Final = ("handle_datagrams", "handle_timeout", "poll_transmit", "poll_event", "poll_timeout")


@pytest.fixture(autouse=True)
def everybody_is_asked() -> None:
    """Not here, where it is counted who is asked."""


class Asked:
    """Which connections of the endpoint are asked anything."""

    def __init__(self, star: Star, monkeypatch: pytest.MonkeyPatch) -> None:
        self.connections: list[Connection] = []
        near = {peering.connection for peering in star.near}
        for name in QUESTIONS:
            monkeypatch.setattr(Connection, name, self._noting(getattr(Connection, name), near))

    def _noting(self, whole: Callable[..., Any], near: set[Connection | None]) -> Callable[..., Any]:
        def note(connection: Connection, *arguments: Any) -> Any:
            if connection in near:
                self.connections.append(connection)
            return whole(connection, *arguments)

        return note


def at_rest(count: int) -> Star:
    star = Star(count)
    star.run(30.0)
    star.arrive(0, star.datagram(0))  # what is made once
    assert star.take(0) == 1
    star.run(1.0)  # with what is due of others by then
    star.flush()
    return star


def test_a_datagram_is_the_affair_of_one_link(monkeypatch: pytest.MonkeyPatch) -> None:
    star = at_rest(MANY)
    asked = Asked(star, monkeypatch)
    sealed = star.datagram(7)
    star.arrive(7, sealed)
    assert star.take(7) == 1
    assert set(asked.connections) == {star.near[7].connection}
    assert len(asked.connections) < 20


def test_a_datagram_costs_the_same_beside_one_link_and_beside_a_hundred() -> None:
    spent = []
    for count in (2, MANY):
        star = at_rest(count)
        sealed = star.datagram(0)
        spent.append(instructions(lambda star=star, sealed=sealed: star.arrive(0, sealed)))
        assert star.take(0) == 1
    assert spent[0] == spent[1]


def test_what_one_link_writes_is_the_affair_of_that_link(monkeypatch: pytest.MonkeyPatch) -> None:
    star = at_rest(MANY)
    asked = Asked(star, monkeypatch)
    connection = star.near[3].connection
    assert connection is not None
    stream = connection.open_stream()
    assert connection.stream_write(stream, b"hello") == 5
    star.flush()
    assert b"".join(star.far[3].stream_read(stream)) == b"hello"
    assert set(asked.connections) == {connection}


def test_a_deadline_is_the_affair_of_whoever_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a minute at rest, twice as many links ask for twice as much, not four times."""
    counts = []
    for count in (10, 20, 40):
        star = at_rest(count)
        with monkeypatch.context() as patch:
            asked = Asked(star, patch)
            star.run(60.0)
        counts.append(len(asked.connections) / count)
    assert counts[0] > 10  # they do live
    assert max(counts) < 1.2 * min(counts)


def test_links_that_all_have_much_to_send_take_turns() -> None:
    star = at_rest(8)
    for peering in star.near:
        assert peering.connection is not None
        stream = peering.connection.open_stream()
        assert peering.connection.stream_write(stream, bytes(100_000)) > 50_000
    out = bytearray(65_536)
    served = []
    while (burst := star.endpoint.poll_transmit(star.now, out)) is not None:
        served.append(burst.remote)
    first = served[:8]
    assert len(set(first)) == 8
    assert served[8:16] == first[: len(served[8:16])]


# --- the verbs of a connection say that they were called

ELSEWHERE: Final = PathKey(SocketId(0), Address("192.0.2.9", 9), b"")
STANDING: Final = PathKey(SocketId(0), Address("192.0.2.1", 1), b"")

#: Each verb that may leave something to send or to tell, or another deadline.
VERBS: Final[dict[str, Callable[[Connection, Instant], object]]] = {
    "add_relay": lambda c, now: c.add_relay(now, ELSEWHERE),
    "challenge": lambda c, now: c.challenge(now, ELSEWHERE, PathKind.DIRECT),
    "close": lambda c, now: c.close(now, 0, "bye"),
    "drop_path": lambda c, now: c.drop_path(now, STANDING),
    "expect_relay": lambda c, now: c.expect_relay(now, ELSEWHERE),
    "give_up_keys": lambda c, now: c.give_up_keys(now),
    "hold": lambda c, now: c.hold(),
    "install_keypair": lambda c, now: c.install_keypair(now, keypairs(c._shared._rng, 500)[0], True),
    "leave_path": lambda c, now: c.leave_path(now, STANDING),
    "migrate": lambda c, now: c.migrate(now, ELSEWHERE, PathKind.DIRECT),
    "open_stream": lambda c, now: c.open_stream(),
    "ping": lambda c, now: c.ping(now),
    "release": lambda c, now: c.release(now),
    "remember_keepalive": lambda c, now: c.remember_keepalive(now, c.keepalive),
    "send_control": lambda c, now: c.send_control(b"x"),
    "send_datagrams": lambda c, now: c.send_datagrams(now, 1, [b"x"]),
    "set_policy": lambda c, now: c.set_policy(now, "direct"),
    "set_stream_source": lambda c, now: c.set_stream_source(stream_of(c), len),
    "stream_commit": lambda c, now: c.stream_commit(stream_of(c), 1),
    "stream_finish": lambda c, now: c.stream_finish(stream_of(c)),
    "stream_reset": lambda c, now: c.stream_reset(stream_of(c), 1),
    "stream_stop": lambda c, now: c.stream_stop(stream_of(c), 1),
    "stream_write": lambda c, now: c.stream_write(stream_of(c), b"x"),
    "verify_path": lambda c, now: c.verify_path(now, c.current_path.key),
    "verify_paths": lambda c, now: c.verify_paths(now),
}

#: What the owner calls and looks after by itself; what only reads; and what only notes a wish of the caller.
OTHERS: Final = {
    *QUESTIONS,
    *(
        "can_open_stream",
        "channels",
        "close_reason",
        "direct_path",
        "current_path",
        "datagram_backlog",
        "drops",
        "handshake_paths",
        "has_path",
        "has_sent_all",
        "indices",
        "is_closed",
    ),
    *(
        "is_confirmed",
        "is_drained",
        "is_mute",
        "is_path",
        "is_sound",
        "keepalive",
        "knows_path",
        "last_heard",
        "packets",
        "paths",
    ),
    *("receive_datagrams", "stats", "relay_paths", "stream_at_end", "stream_is_acked", "streams_accepted", "used_sockets"),
    *("set_packet_sink", "set_stream_sink", "stream_space", "stream_want_space"),
    *("peer_takes", "set_repair", "set_repeat"),  # of datagrams yet to come
    "stream_read",  # see below
}


def stream_of(connection: Connection) -> Any:
    return max(connection._shared.streams.sending)


def test_every_verb_of_a_connection_is_in_one_of_the_lists() -> None:
    names = {name for part in Connection.__mro__[:-1] for name in vars(part) if not name.startswith("_")}
    assert names == set(VERBS) | OTHERS
    assert not set(VERBS) & OTHERS


@pytest.mark.parametrize("verb", VERBS)
def test_a_connection_says_that_a_verb_was_called(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunnel.transport.stream.streams.MANY", 1)
    star = Star(1)
    star.run(5.0)
    connection, endpoint = star.near[0].connection, star.endpoint
    assert connection is not None
    stream = connection.open_stream()
    if verb == "stream_commit":
        connection.stream_space(stream)[:1] = b"x"
    star.flush()
    if verb == "set_stream_source":  # another stream has something to send
        connection._shared.streams.scheduler.wake(connection._shared.streams.sending[CONTROL_STREAM])
    assert not endpoint._agenda.ready
    assert not endpoint._agenda.untold
    VERBS[verb](connection, star.now)
    assert list(endpoint._agenda.ready) == list(endpoint._agenda.untold) == [star.near[0]]
    assert star.near[0].entry.is_in_doubt


def test_a_connection_says_that_a_stream_was_read_where_there_was_something() -> None:
    star = Star(1)
    star.run(5.0)
    stream = star.far[0].open_stream()
    star.far[0].stream_write(stream, b"hello")
    star.flush_far(0)
    connection = star.near[0].connection
    assert connection is not None
    assert not star.endpoint._agenda.ready
    assert connection.stream_read(stream) == [b"hello"]
    assert list(star.endpoint._agenda.ready) == [star.near[0]]
    star.flush()
    assert connection.stream_read(stream) == []
    assert not star.endpoint._agenda.ready
