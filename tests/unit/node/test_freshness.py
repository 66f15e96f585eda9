"""Inits whose timestamps do not grow: a challenge lets in who is there now, and nobody else."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.sim.cast import Cast
from tests.sim.peers import FIRST, PeerNode
from tests.unit.node.test_clocks import FIFTY_YEARS, TO_1970, told
from tunnel.node.events import Problem
from tunnel.node.freshness import CHALLENGE_LIFETIME, MAX_USES, Freshness, Refused
from tunnel.node.peering import Peering
from tunnel.transport.crypto.challenge import CHALLENGE
from tunnel.transport.crypto.handshake import INIT, INIT_SIZE, Pattern
from tunnel.units import Address, Instant

STRANGER = Address("198.51.100.66", 6)
IK_INIT = bytes((INIT, Pattern.IK))
HOURS = 1 / 24
MEETS = 1.0  # seconds: dial, init, challenge, init, response
KEY, OTHER = b"k" * 32, b"o" * 32
T = Instant(1000.0)
HOUR_NS = 3600 * 10**9


def freshness() -> Freshness:
    return Freshness(random.Random(1).randbytes)


# --- the judge ----------------------------------------------------------------------------------------------------------------


def test_what_is_newer_counts_and_the_same_again_does_not() -> None:
    judge = freshness()
    assert judge.judge(T, KEY, 50, 1, b"").is_new
    assert judge.judge(T, OTHER, 40, 1, b"").is_new
    assert judge.judge(T, KEY, 51, 1, b"").is_new
    for stale in (51, 50, 0):
        assert not judge.judge(T, KEY, stale, 1, b"").is_new
    judge.forget(KEY)
    assert judge.judge(T, KEY, 1, 1, b"").is_new


def test_a_challenge_that_comes_back_counts_once_for_each_init() -> None:
    judge = freshness()
    judge.judge(T, KEY, 10 * HOUR_NS, 1, b"")
    asked = judge.judge(Instant(T + 3600), KEY, 9 * HOUR_NS, 1, b"")
    assert (asked.is_new, asked.behind) == (False, 2 * HOUR_NS)
    assert judge.judge(T, KEY, 5, 1, b"").challenge == asked.challenge, "an old init sent again takes nothing from the owner's"
    assert not judge.judge(T, KEY, 9 * HOUR_NS + 1, 1, b"x" * 16).is_new
    assert judge.judge(T, KEY, 9 * HOUR_NS + 2, 1, asked.challenge).is_new
    assert not judge.judge(T, KEY, 9 * HOUR_NS + 2, 1, asked.challenge).is_new
    assert not judge.judge(T, KEY, 9 * HOUR_NS + 1, 1, asked.challenge).is_new
    assert judge.judge(T, KEY, 9 * HOUR_NS + 1, 2, asked.challenge).is_new, "another process of the same home"
    assert judge.judge(T, KEY, 9 * HOUR_NS + 3, 1, asked.challenge).is_new, "keys are renewed"
    assert not judge.judge(T, OTHER, 1, 1, asked.challenge).challenge
    assert not judge.judge(T, OTHER, 1, 1, asked.challenge).is_new, "it is one key's"


def test_a_challenge_is_good_for_a_minute_and_for_as_many_connections_as_a_peer_may_have() -> None:
    judge = freshness()
    judge.judge(T, KEY, 10**6, 1, b"")
    first = judge.judge(T, KEY, 1, 1, b"").challenge
    half = Instant(T + CHALLENGE_LIFETIME / 2)
    second = judge.judge(half, KEY, 1, 1, b"").challenge
    assert second != first
    assert judge.judge(half, KEY, 1, 1, first).is_new, "it was under way"
    late = Instant(T + CHALLENGE_LIFETIME)
    assert not judge.judge(late, KEY, 2, 1, first).is_new
    assert all(judge.judge(half, KEY, 1, instance, second).is_new for instance in range(MAX_USES))
    full = judge.judge(half, KEY, 1, MAX_USES, second)
    assert not full.is_new
    assert full.challenge not in (first, second)
    assert judge.judge(half, KEY, 1, MAX_USES, full.challenge).is_new


def test_an_owner_that_shows_itself_in_another_way_counts_from_what_was_refused() -> None:
    judge = freshness()
    judge.judge(T, KEY, 10 * HOUR_NS, 1, b"")
    refused = Refused(8 * HOUR_NS, T)
    assert judge.alive(T, OTHER, refused) is None
    assert judge.alive(T, KEY, refused) == 2 * HOUR_NS
    assert not judge.judge(T, KEY, 8 * HOUR_NS, 1, b"").is_new
    assert judge.judge(Instant(T + 1), KEY, 8 * HOUR_NS + 1, 1, b"").is_new
    assert judge.alive(Instant(T + 2), KEY, refused) is None, "a newer one came since"
    assert not judge.judge(T, KEY, 8 * HOUR_NS + 1, 1, b"").is_new


# --- peers ----------------------------------------------------------------------------------------------------------------------


def connect(party: Cast, limit: float = 10.0) -> tuple[Peering, float]:
    peering = party.friend.dial(party.home)
    took = party.world.run_until(lambda: peering.connection is not None, limit)
    party.echoed(peering, b"hello")
    return peering, took


def restart(party: Cast, person: PeerNode, days_ahead: float) -> None:
    """The program ends, and runs again under another calendar."""
    for peering in person.endpoint.peerings:
        peering.close(party.world.now, 0, "bye")
    person.endpoint.close(party.world.now)
    party.world.touch(person.host)
    party.world.run(1.0)
    person.days_ahead = days_ahead
    person.boot()
    person.meet(party.server)
    if person is party.home:
        person.listen()


@contextmanager
def acquainted() -> Iterator[Cast]:
    with Cast() as party:
        party.acquaint()
        yield party


@pytest.mark.parametrize("ahead", [2 * HOURS, 12 * HOURS, 1.0, 3.0, FIFTY_YEARS])
def test_a_calendar_that_was_ahead_once_costs_one_more_round_trip(ahead: float) -> None:
    with acquainted() as party:
        party.friend.days_ahead = ahead
        _, at_first = connect(party)
        restart(party, party.friend, 0.0)
        party.world.run(1.0)
        peering, took = connect(party)
        assert took < at_first + 0.1
        hours = round(24 * ahead)
        span = f"{hours} hours" if hours < 48 else f"{round(ahead)} days"
        assert told(party.friend, Problem.CLOCK_OFF) == [
            f"The clock of this computer is {span} behind what it showed home before. Set it, if it is wrong now."
        ]
        assert told(party.home, Problem.CLOCK_OFF) == [
            f"The clock of friend is {span} behind what it showed before: let in all the same."
        ]
        for _ in range(4):  # keys are renewed, and people are told once
            party.world.run(130.0)
            party.echoed(peering, b"still here")
        connect(party)
        assert len(party.friend.problems) == len(party.home.problems) == 1


@pytest.mark.parametrize("back", [-2 * HOURS, -3.0, TO_1970])
def test_a_calendar_that_went_back_costs_one_more_round_trip(back: float) -> None:
    with acquainted() as party:
        connect(party)
        restart(party, party.friend, back)
        party.world.run(1.0)
        _, took = connect(party)
        assert took < MEETS
        assert any("behind what it showed home before" in text for text in told(party.friend, Problem.CLOCK_OFF))


def test_two_processes_of_one_home_one_of_which_saw_the_clock_go_back() -> None:
    with acquainted() as party:
        party.friend.days_ahead = 12 * HOURS
        first, _ = connect(party)
        party.friend.days_ahead = 0.0  # set right under the first one, which goes on counting from where it was
        peering = another_process(party, "second").dial(party.home)
        assert party.world.run_until(lambda: peering.connection is not None, 10) < MEETS
        for _ in range(6):  # both renew their keys in turn
            party.world.run(100.0)
            party.echoed(first, b"first")
            assert peering.connection is not None
            assert not peering.is_closed
            assert not peering.connection.is_closed
        assert len(party.home.endpoint.peerings) == 2


def another_process(party: Cast, name: str) -> PeerNode:
    """Of friend's home, on the same machine."""
    person = PeerNode(party.world, party.world.host(name, party.friend_site), "friend", static=party.friend.static_key)
    person.saved = dict(party.friend.saved)
    person.boots = 100 * len(party.world.hosts)  # so that chance is another
    person.boot()
    person.meet(party.server)
    return person


def test_many_processes_with_a_clock_that_is_behind_come_at_once() -> None:
    with acquainted() as party:
        party.friend.days_ahead = 1.0
        connect(party)
        restart(party, party.friend, 0.0)
        dials = [another_process(party, f"process {number}").dial(party.home) for number in range(15)]
        assert party.world.run_until(lambda: all(peering.connection is not None for peering in dials), 10) < MEETS


def test_an_exposer_whose_clock_went_back_renews_keys_too() -> None:
    with acquainted() as party:
        peering, _ = connect(party)
        party.world.run(130.0)
        party.home.days_ahead = -2.0
        party.friend.days_ahead = -1.0
        for _ in range(5):
            party.world.run(150.0)
            party.echoed(peering, b"still here")


def record(party: Cast, inits: list[bytes]) -> None:
    """Somebody on the way keeps every init that passes."""

    def keep(sender: object, destination: object, datagram: bytes) -> bool:
        if datagram[8:10] == IK_INIT:
            inits.append(datagram)
        return True

    party.world.filter = keep


def send_again(party: Cast, datagram: bytes) -> bytes | None:
    """What home answers."""
    home = party.home.endpoint
    before = len(home._context.out)
    home.handle_batch(party.world.now, FIRST, STRANGER, memoryview(datagram), len(datagram))
    answers = [home._context.out.pop()[1] for _ in range(len(home._context.out) - before)]
    assert len(answers) <= 1
    return answers[0] if answers else None


def test_an_old_init_gains_nothing_however_often_it_is_sent_again() -> None:
    with acquainted() as party:
        inits: list[bytes] = []
        record(party, inits)
        party.friend.days_ahead = 1.0
        connect(party)
        restart(party, party.friend, 0.0)
        party.world.run(1.0)
        connect(party)
        party.world.run(300.0)
        assert len(inits) >= 6, "of both calendars, with challenges and without"
        for _ in range(3):
            party.world.run(40.0)
            answers = [send_again(party, datagram) for datagram in inits]
            assert all(answer is not None and answer[0] == CHALLENGE and len(answer) < INIT_SIZE / 5 for answer in answers)
            assert not party.home.endpoint._meetings._responder.pending
        _, took = connect(party)
        assert took < MEETS
        assert len(told(party.home, Problem.CLOCK_OFF)) == 1


def test_nobody_is_kept_out_by_old_inits_that_are_sent_again_all_the_time() -> None:
    with acquainted() as party:
        inits: list[bytes] = []
        record(party, inits)
        party.friend.days_ahead = 1.0
        connect(party)
        restart(party, party.friend, 0.0)
        party.world.run(1.0)

        def again() -> None:
            for datagram in inits[:4]:  # below the rate at which everybody is asked for a cookie first
                send_again(party, datagram)
            party.world.call_later(0.1, again)

        party.world.call_later(0.0, again)
        for _ in range(5):
            _, took = connect(party)
            assert took < MEETS


def test_an_older_initiator_is_let_in_after_a_question_of_identity() -> None:
    """One that knows no challenge.  It asks by XX who is there, and so shows that it is there itself."""
    with acquainted() as party:
        party.friend.is_hybrid = False  # as such versions are
        party.friend.days_ahead = 1.0
        connect(party)
        restart(party, party.friend, 0.0)
        party.world.run(1.0)
        party.world.filter = lambda sender, destination, datagram: datagram[8:9] != bytes((CHALLENGE,))
        _, took = connect(party, 30)
        assert took < 8
        assert len(told(party.home, Problem.CLOCK_OFF)) == 1


@pytest.mark.parametrize("is_hybrid", [False, True])
@pytest.mark.parametrize("is_on_channel", [False, True])
def test_who_loses_the_owners_inits_and_sends_old_ones_does_not_make_old_ones_count(is_hybrid: bool, is_on_channel: bool) -> None:
    """The owner, unanswered, asks who is there: that makes new what came late on that channel, of versions without challenges."""
    with acquainted() as party:
        party.friend.is_hybrid = is_hybrid
        inits: list[bytes] = []
        record(party, inits)
        for _ in range(2):
            restart(party, party.friend, 0.0)
            connect(party)
            party.world.run(20.0)
        first = inits[0]
        restart(party, party.friend, 0.0)
        channels: list[bytes] = []

        def lose(sender: object, destination: object, datagram: bytes) -> bool:
            if datagram[8:10] == IK_INIT:
                channels.append(datagram[:8])
                return False
            return True

        party.world.filter = lose
        peering = party.friend.dial(party.home)
        alive = party.home.endpoint._meetings._on_alive
        shown: list[bool] = []
        answerer = party.home.endpoint._meetings._listener.answerer

        def on_alive(*arguments: Any) -> None:
            shown.append(True)
            alive(*arguments)

        answerer.alive = on_alive
        party.world.run_until(lambda: bool(channels), 5)
        send_again(party, (channels[0] if is_on_channel else b"\x60channel") + first[8:])
        party.world.run_until(lambda: bool(shown), 20)
        answers = [send_again(party, datagram) for datagram in inits[:-1]]
        refuses = all(answer is not None and answer[0] == CHALLENGE for answer in answers)
        assert refuses != (is_on_channel and not is_hybrid)
        peering.close(party.world.now, 0, "bye")
