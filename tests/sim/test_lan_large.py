"""A room of more than sixteen: `python -m tests.sim.large_room` plays a full one, which takes minutes."""

from __future__ import annotations

import pytest

from tests.sim.lan import MemberNode, Party
from tests.sim.large_room import come
from tests.work import instructions
from tunnel.room.core.addresses import MEMBERS_UNSAID
from tunnel.room.core.events import MemberOffline

MEMBERS = MEMBERS_UNSAID + 4


@pytest.mark.time_limit(200)
def test_more_than_sixteen_join_one_is_removed_and_one_leaves_and_nobody_else_loses_anybody() -> None:
    with Party(kind="open") as party:
        come(party, MEMBERS - 1)
        assert len(party.creator.roster.members) == MEMBERS
        assert all(len(each.online) == MEMBERS - 1 for each in party.everybody)
        removed, leaver = party.friends.pop(), party.friends.pop(0)
        party.creator.remove(removed.name)
        party.world.run_until(party.is_whole, 30)
        leaver.quit()
        party.world.run_until(lambda: party.creator.roster.epoch == 3 and party.is_whole(), 30)
        lost = {event.member.name for each in party.everybody for event in each.of(MemberOffline)}  # type: ignore[union-attr]
        assert lost <= {removed.name, leaver.name}
        assert not any(each.room.drops["room messages too fast"] for each in party.everybody)


def pump_of(member: MemberNode) -> int:
    """Python instructions that it takes to find that an input was no news of the room."""
    return instructions(lambda: member.members.pump(member.world.now))


def test_what_is_no_news_of_a_room_costs_a_member_the_same_in_a_large_one() -> None:
    costs: list[int] = []
    for friends in (2, MEMBERS_UNSAID):
        with Party(kind="open") as party:
            party.gather(friends)
            costs.append(sum(pump_of(each) for each in (party.creator, *party.friends[:2])))
    assert costs[1] <= 1.1 * costs[0]
