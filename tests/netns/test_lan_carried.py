"""Two homes that no direct path joins, in a room whose server is gone: a member without an interface carries for them."""

from __future__ import annotations

import pytest

from tests.netns.lab import Lab, eventually
from tests.netns.many_members import Member
from tests.netns.programs import start_server

MET_S = 60.0
CARRIED_S = 60.0
"""The server is missed after one keepalive and some challenges, and then the other one for some seconds."""


@pytest.mark.time_limit(240)
def test_a_creator_without_an_interface_carries_for_two_homes_when_the_server_is_gone(lab: Lab) -> None:
    server = start_server(lab)
    keeper, *homes = Member(lab, 0, "open"), Member(lab, 1, "sym"), Member(lab, 2, "sym")
    keeper.start("create", "--name", "kept", "--no-interface", "--relay")
    code = str(keeper.program.wait_event("code", 30)["code"])
    for home in homes:
        home.start("join", code=code)
    everybody = [keeper, *homes]
    for member in everybody:
        others = [other for other in everybody if other is not member]
        eventually(f"{member.name} sees all", lambda m=member, o=others: m.sees(o), MET_S, 0.5)
    for home in homes:
        eventually(f"{home.name} reaches the keeper directly", lambda h=home: h.is_direct([keeper]) == 1, MET_S, 0.5)
        home.address = keeper.states()[home.name]["address"]
    one, other = homes
    eventually("they reach each other by the server", lambda: one.reaches([other]) == {other.name}, 30, 0.5)
    assert keeper.site.host.run("ip", "-br", "link").stdout.count("ptunnel") == 0
    server.kill()

    def is_carried() -> bool:
        told = one.states()[other.name]
        is_told = told["state"] == "online" and f"by way of {keeper.name}" in told.get("why", "")
        return is_told and one.reaches([other]) == {other.name}

    eventually("the keeper carries", is_carried, CARRIED_S, 1.0)
    assert other.reaches([one]) == {one.name}
