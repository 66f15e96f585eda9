"""A room of sixteen members behind routers of several kinds, each pair with a way of its own."""

from __future__ import annotations

import itertools

import pytest

from tests.netns.lab import Lab, eventually
from tests.netns.many_members import HARD, KINDS, Member
from tests.netns.programs import start_server

ALL_MET_S = 60.0
"""Seconds until every pair must have a way; sixteen interpreters start on the machine meanwhile."""
CUT_OFF_S = 25.0
"""Seconds until a crash must be noticed: nobody said goodbye, and the path is asked every fifteen seconds."""


@pytest.mark.time_limit(300)
def test_sixteen_members_reach_one_another_and_go_on_without_the_creator(lab: Lab) -> None:
    start_server(lab)
    members = [Member(lab, number, kind) for number, kind in enumerate(KINDS)]
    creator, *others = members
    creator.start("create", "--name", "full")
    code = creator.program.wait_event("code")["code"]
    for member in others:
        member.start("join", code=code)
    for member in members:
        eventually(f"{member.name} sees all others", lambda m=member: m.sees([o for o in members if o is not m]), ALL_MET_S, 0.5)
    for member in members:
        member.address = creator.states()[member.name]["address"]
    assert len({member.address for member in members}) == 16
    assert len({member.address.rpartition(".")[0] for member in members}) == 1

    # Every pair has packets; those whose routers allow it have them on a path of their own.
    for member in members:
        wanted = {other.name for other in members if other is not member}
        eventually(f"{member.name} reaches all others", lambda m=member, w=wanted: m.reaches(members) >= w, 30, 0.5)
    for one, other in itertools.combinations(members, 2):
        if one.kind not in HARD and other.kind not in HARD:
            eventually(
                f"{one.name} ({one.kind}) and {other.name} ({other.kind}) meet directly",
                lambda a=one, b=other: a.states()[b.name]["kind"] == b.states()[a.name]["kind"] == "direct",
                30,
                0.5,
            )
    hard = [member for member in members if member.kind in HARD]
    for one, other in itertools.combinations(hard, 2):
        told = one.states()[other.name]
        assert told["kind"] == "relay"
        assert told["why"]

    # Somebody crashes, somebody's router forgets all, the creator leaves: the others play on.
    crashed, moved, stays = members[3], members[4], members[10]
    crashed.program.kill()
    moved.site.forget_mappings()
    creator.program.process.terminate()
    assert creator.program.wait(10) == 0
    left = [member for member in members if member not in (creator, crashed)]
    eventually("the crash is noticed", lambda: stays.states()[crashed.name]["state"] == "offline", CUT_OFF_S, 0.5)
    for member in (moved, stays):
        wanted = {other.name for other in left if other is not member}
        eventually(f"{member.name} reaches all who are left", lambda m=member, w=wanted: m.reaches(left) >= w, 30, 0.5)
