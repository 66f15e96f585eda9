"""A code is for one thing: whoever wants another is refused before anything is sent or kept."""

from __future__ import annotations

from typing import Any

import pytest

from tests.sim.cast import Cast
from tests.sim.lan import MemberNode
from tests.sim.peers import SERVER
from tunnel.errors import ConfigurationError
from tunnel.node import meetings
from tunnel.node.endpoint import Endpoint
from tunnel.node.events import PeerPaired, Troubled
from tunnel.node.flows.claim_code import OTHER_PURPOSE
from tunnel.node.flows.expose_code import FOR_MANY
from tunnel.pairing.code import Purpose
from tunnel.room.core.events import EntryUnanswered
from tunnel.room.core.room import ENTER_PATIENCE


def says(endpoint: Endpoint, purpose: int) -> None:
    """Have it say that it wants that, whatever it checks; 0: as an older version, which says nothing."""
    context = endpoint._context
    plain = context.params

    def params(instance: int, resume: int = 0, *, purpose: Any = None) -> Any:
        from dataclasses import replace

        return replace(plain(instance, resume), purpose=wanted if purpose is not None else 0)

    wanted = purpose
    context.params = params  # type: ignore[method-assign]


def sentences(told: list[Any]) -> list[str]:
    return [event.text for event in told if isinstance(event, Troubled)]


@pytest.mark.parametrize(("code", "purpose"), [("731-zoo-zoo", Purpose.ROOM), ("731-zoo-zoo-zoo", Purpose.PORTS)])
def test_the_wrong_kind_of_code_is_refused_before_anything_is_sent(code: str, purpose: Purpose) -> None:
    with Cast() as party:
        party.friend.meet(party.server)
        party.world.run(1.0)
        client = party.friend.endpoint._context.clients[SERVER]
        before = len(client._requests)
        with pytest.raises(ConfigurationError, match="This is the code of"):
            party.friend.endpoint.claim_code(party.world.now, SERVER, code, purpose=purpose)
        assert len(client._requests) == before


def claim_as(party: Cast, monkeypatch: pytest.MonkeyPatch, purpose: Purpose) -> None:
    """Past the look at the words, as a version that counts none would."""
    monkeypatch.setattr(meetings, "require_purpose", lambda *_: None)
    party.home.meet(party.server)
    party.friend.meet(party.server)
    party.home.offer()
    party.world.run_until(lambda: bool(party.home.codes))
    party.friend.endpoint.claim_code(party.world.now, SERVER, party.home.codes[0], purpose=purpose)
    party.world.touch(party.friend.host)


def test_a_connector_of_another_purpose_does_not_complete_and_nobody_keeps_anything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Cast() as party:
        claim_as(party, monkeypatch, Purpose.ROOM)
        party.world.run_until(lambda: bool(sentences(party.friend.told) and sentences(party.home.told)))
        party.world.run(20.0)
        assert sentences(party.friend.told) == [OTHER_PURPOSE]
        assert (party.friend.saved, party.home.saved) == ({}, {})
        assert not [event for event in (*party.home.told, *party.friend.told) if isinstance(event, PeerPaired)]


def test_an_exposer_refuses_a_connector_that_does_not_look(monkeypatch: pytest.MonkeyPatch) -> None:
    with Cast() as party:
        says(party.friend.endpoint, Purpose.ROOM.value)
        claim_as(party, monkeypatch, Purpose.PORTS)
        party.world.run_until(lambda: bool(sentences(party.home.told)))
        party.world.run(20.0)
        assert sentences(party.home.told)[0].startswith("Somebody wanted something else by the code")
        assert party.home.saved == {}


@pytest.mark.parametrize("older", [(True, False), (False, True), (True, True)])
def test_an_older_version_that_says_no_purpose_pairs_as_before(older: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    with Cast() as party:
        for person, is_older in zip((party.home, party.friend), older, strict=True):
            if is_older:
                says(person.endpoint, 0)
        claim_as(party, monkeypatch, Purpose.PORTS)
        party.world.run_until(lambda: bool(party.friend.peerings and party.home.peerings))
        assert len(party.home.saved) == len(party.friend.saved) == 1


def test_who_tries_a_wrong_word_at_a_rooms_code_hears_that_it_still_works() -> None:
    with Cast() as party:
        party.home.meet(party.server)
        party.friend.meet(party.server)
        party.home.endpoint.offer_code(party.world.now, SERVER, grants=(), keep=True, terms=FOR_MANY)
        party.world.touch(party.home.host)
        party.world.run_until(lambda: bool(party.home.codes))
        nameplate = party.home.codes[0].partition("-")[0]
        for _ in range(2):
            party.friend.endpoint.claim_code(party.world.now, SERVER, f"{nameplate}-zoo-zoo-zoo", purpose=Purpose.ROOM)
            party.world.touch(party.friend.host)
            heard = len(sentences(party.friend.told))
            party.world.run_until(lambda heard=heard: len(sentences(party.friend.told)) > heard, 120.0)
        told = sentences(party.friend.told)
        assert set(told) == {
            "The code was wrong. Check it with whoever opened the room: it still works, until five wrong ones were tried."
        }
        party.friend.endpoint.claim_code(party.world.now, SERVER, party.home.codes[0], purpose=Purpose.ROOM)
        party.world.touch(party.friend.host)
        party.world.run_until(lambda: bool(party.friend.peerings))
        assert len(party.home.codes) == 1, "and it does"


def test_entering_a_room_where_there_is_none_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with an exposer of an older version, which says no purpose and knows no room."""
    monkeypatch.setattr(meetings, "require_purpose", lambda *_: None)
    with Cast() as party:
        says(party.home.endpoint, 0)
        party.home.meet(party.server)
        party.home.offer()
        party.world.run_until(lambda: bool(party.home.codes))
        ben = MemberNode(party.world, party.world.host("ben"), party.server, "ben")
        ben.boot()
        says(ben.endpoint, 0)
        ben.claim(party.home.codes[0])
        party.world.run_until(lambda: bool(party.home.peerings))
        met = party.world.now
        party.world.run_until(lambda: any(isinstance(event, EntryUnanswered) for event in ben.heard), 60.0)
        assert ENTER_PATIENCE - 1.0 < party.world.now - met < ENTER_PATIENCE + 1.0
        assert ben.room.peers() == []
