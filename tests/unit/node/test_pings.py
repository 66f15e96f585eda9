"""Pings: only who has heard the question can answer it, so nobody seems quicker than he is."""

from __future__ import annotations

from tests.sim.cast import Cast
from tunnel.node.peering import CONTROL_PONG, Peering
from tunnel.node.pings import MAX_PONGS


def home_of(party: Cast) -> Peering:
    return party.home.peerings[0]


def test_an_answer_that_comes_before_the_question_is_dropped() -> None:
    with Cast() as party:
        friend = party.pair()
        home = home_of(party)
        assert friend.connection is not None
        for guess in range(100):
            friend.connection.send_control(bytes((CONTROL_PONG,)) + guess.to_bytes(8, "big"))
        party.world.touch(party.friend.host)
        party.world.run(1.0)
        assert not home.pings.answers
        assert party.home.endpoint.drops["pong that nobody asked for"] == 100
        asked = party.world.now
        token = home.send_ping()
        party.world.touch(party.home.host)
        party.world.run_until(lambda: token in home.pings.answers, 5.0)
        assert home.pings.answers[token] - asked > 0.019  # two times 10 ms of the way


def test_tokens_cannot_be_foretold_and_each_is_answered_once() -> None:
    with Cast() as party:
        friend = party.pair()
        home = home_of(party)
        tokens = [home.send_ping() for _ in range(8)]
        assert len(set(tokens)) == 8
        assert min(tokens) > bytes(6) + bytes((1, 1))
        party.world.touch(party.home.host)
        party.world.run_until(lambda: len(home.pings.answers) == 8, 5.0)
        first = home.pings.answers.pop(tokens[0])
        assert friend.connection is not None
        friend.connection.send_control(bytes((CONTROL_PONG,)) + tokens[0])
        party.world.touch(party.friend.host)
        party.world.run(1.0)
        assert first
        assert tokens[0] not in home.pings.answers


def test_what_is_remembered_of_pings_is_bounded() -> None:
    with Cast() as party:
        party.pair()
        home = home_of(party)
        for _ in range(3 * MAX_PONGS):
            home.send_ping()
        assert len(home.pings._asked) == MAX_PONGS
        party.world.touch(party.home.host)
        party.world.run(5.0)
        assert len(home.pings.answers) <= MAX_PONGS
