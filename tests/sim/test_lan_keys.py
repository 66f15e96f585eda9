"""Keys of a room's links: safe before a word about the room is said, over restarts, removals and older versions."""

from __future__ import annotations

import pytest

from tests.sim.lan import MemberNode, Party
from tunnel.node.context import Context
from tunnel.node.peering import CONTROL_ROOM, Peering


def links(party: Party) -> list[Peering]:
    return [peering for member in party.everybody for peering in member.endpoint.peerings if peering.connection is not None]


def watch_words(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the link was safe, for each message about the room that a member sends, and for each that one takes."""
    found: list[bool] = []
    say, hear = Peering.send_message, Peering._on_control

    def spoken(peering: Peering, kind: int, body: bytes) -> None:
        found.append(peering.hybrid.is_reached)
        say(peering, kind, body)

    def heard(peering: Peering, now: object, data: bytes) -> None:
        if data[:1] == bytes((CONTROL_ROOM,)):
            found.append(peering.hybrid.is_reached)
        hear(peering, now, data)  # type: ignore[arg-type]

    monkeypatch.setattr(Peering, "send_message", spoken)
    monkeypatch.setattr(Peering, "_on_control", heard)
    return found


def test_nothing_about_a_room_is_said_over_a_link_that_is_not_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    """The secret of the room is, and those of all pairs follow from it."""
    words = watch_words(monkeypatch)
    with Party(keeps=True) as party:
        party.gather(4)
        party.world.run(5.0)
        party.creator.remove("friend0")
        party.friends.pop(0)
        party.world.run(5.0)
        party.friends[0].kill()
        party.world.run(5.0)
        party.friends[0].boot()
        party.world.run_until(party.is_whole, 120)
        party.world.run(300.0)
        assert party.is_whole()
        assert all(peering.hybrid.is_reached for peering in links(party))
    assert len(words) > 50
    assert all(words)


def test_members_of_older_versions_are_in_the_room_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    init = Context.__init__
    older: set[str] = {"friend0"}

    def begin(context: Context, **options: object) -> None:
        init(context, **options)  # type: ignore[arg-type]
        if context.config.name in older:
            context.hybrid = 0

    monkeypatch.setattr(Context, "__init__", begin)
    with Party() as party:
        party.gather(3)
        party.world.run(300.0)
        assert party.is_whole()
        for member in party.everybody:
            for peering in member.endpoint.peerings:
                is_old = bool({name_of(party, peering), member.name} & older)
                assert peering.hybrid.is_reached is not is_old


def name_of(party: Party, peering: Peering) -> str:
    found: MemberNode = next(each for each in party.everybody if each.endpoint.static_public == peering.peer.static)
    return found.name
