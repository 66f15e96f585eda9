"""Interfaces whose names are no ASCII, nor any text: Linux takes all bytes but a slash and blanks.  Every command works there."""

from __future__ import annotations

import os

import pytest

from tests.netns.lab import Lab
from tests.netns.programs import Pair, start_server
from tests.netns.rooms import Member, Room
from tests.netns.site import eventually

NAMES = ("b\u00fcro0", os.fsdecode(b"\xff\xfe0"))


def rename(member: Member, name: str) -> None:
    """The member's ethernet has this name from now on."""
    addresses = [line.split()[3] for line in member.space.run("ip", "-o", "-4", "address", "show", "eth0").stdout.splitlines()]
    router = member.space.run("ip", "route", "show", "default").stdout.split()[2]
    for words in ("set eth0 down", f"set eth0 name {name}", f"set {name} up"):
        member.space.run("ip", "link", *words.split(" "))
    for address in addresses:
        member.space.run("ip", "address", "replace", address, "broadcast", "+", "dev", name)
    member.space.run("ip", "route", "replace", "default", "via", router)


@pytest.mark.parametrize("name", NAMES, ids=["umlaut", "no text"])
def test_a_room_opens_on_a_machine_whose_ethernet_has_such_a_name(lab: Lab, name: str) -> None:
    one, other = Room(lab, ("prc", "prc"), lambda member: rename(member, name)).members
    assert one.program is not None
    one.program.wait_event("path", 60, peer=other.name, kind="direct")


@pytest.mark.parametrize("name", NAMES, ids=["umlaut", "no text"])
def test_two_meet_where_an_interface_has_such_a_name(lab: Lab, name: str) -> None:
    home, friend = lab.add_site("home", "prc"), lab.add_site("friend", "prc")
    for site in (home, friend, lab.server):
        site.host.run("ip", "link", "add", name, "type", "veth", "peer", "name", "other")
        site.host.run("ip", "link", "set", "other", "up")
        site.host.run("ip", "address", "add", "10.99.0.1/24", "dev", name)
        site.host.run("ip", "link", "set", name, "up")
        eventually("its addresses", lambda site=site: "10.99.0.1" in site.host.run("ip", "-4", "address").stdout)
    start_server(lab)
    pair = Pair(lab, home, friend, expose=["8000"], forward=["8000"])
    pair.wait_direct(60)
