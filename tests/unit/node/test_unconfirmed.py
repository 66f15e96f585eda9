"""A pairing that the other side never confirms has come to nothing, and nobody is remembered for it."""

from __future__ import annotations

from tests.sim.cast import Cast
from tunnel.node.events import Problem
from tunnel.node.flows.expose_code import ANSWER_TIMEOUT


def half_paired(party: Cast) -> None:
    """The friend has the other side's key, and what it said last is lost with the exposer."""
    party.claim()
    party.world.run_until(lambda: bool(party.friend.saved))
    assert not party.home.saved
    party.home.host.node = None


def test_a_connector_that_hears_nothing_more_forgets_whom_it_has_met() -> None:
    with Cast() as party:
        half_paired(party)
        party.world.run(ANSWER_TIMEOUT + 1.0)
        assert party.friend.problems[-1] is Problem.CODE_UNANSWERED
        assert party.friend.saved == {}
        assert party.friend.endpoint._context.peers == {}


def test_a_connector_that_leaves_at_once_stays_acquainted() -> None:
    """It was told that it has paired, and the exposer may have heard the last word: it is no failure to go then."""
    with Cast() as party:
        half_paired(party)
        party.friend.endpoint.close(party.world.now)
        assert [peer.name for peer in party.friend.saved.values()] == ["home"]


def test_one_that_was_confirmed_stays_remembered_whatever_comes_then() -> None:
    with Cast() as party:
        party.pair()
        party.world.run(1.0)
        party.home.host.node = None
        party.world.run(2 * ANSWER_TIMEOUT)
        party.friend.endpoint.close(party.world.now)
        assert [peer.name for peer in party.friend.saved.values()] == ["home"]
