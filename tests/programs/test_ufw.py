"""ufw: a room opens behind it directly, a person is told what it keeps out, and the command that they are told lets it in."""

from __future__ import annotations

import shlex

import pytest

from tests.netns.lab import Lab, eventually
from tests.netns.programs import environment, is_real_root
from tests.netns.rooms import Member, Room, open_socket
from tests.programs.homes import SLOW_S, needs

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.time_limit(240),
    needs("ufw", "iptables"),
    pytest.mark.skipif(not is_real_root(), reason="it looks at who owns its files"),
]

PORT = 7777
TOLD = "A firewall of this machine keeps out"
COMMAND = "To let all of it in:  sudo "


def ufw(member: Member, *words: str) -> str:
    return member.space.run("ufw", *words, env=environment(member.lab.folder / "ufw"), timeout=SLOW_S).stdout


def hears(speaker: Member, listener: Member) -> bool:
    """Whether what one says to everybody in the room arrives at the other, within a second."""
    with open_socket(listener.space, port=PORT) as ear, open_socket(speaker.space) as mouth:
        ear.settimeout(1)
        mouth.sendto(b"is there a game?", ("255.255.255.255", PORT))
        try:
            return ear.recvfrom(100) == (b"is there a game?", (speaker.ipv4, mouth.getsockname()[1]))
        except TimeoutError:
            return False


def commands(member: Member) -> list[str]:
    """Those that a person has been told to let the room in with."""
    assert member.program is not None
    warned = [event["message"] for event in member.program.collect() if event["event"] == "warning"]
    return [message.partition(COMMAND)[2] for message in warned if message.startswith(TOLD)]


def test_a_room_behind_it_is_let_in_by_the_command_that_is_printed(lab: Lab) -> None:
    def prepare(member: Member) -> None:
        assert "Firewall is active" in ufw(member, "--force", "enable")

    members = Room(lab, ("prc", "prc"), prepare).members
    one, other = members
    for member, peer in ((one, other), (other, one)):
        assert member.program is not None
        member.program.wait_event("path", SLOW_S, peer=peer.name, kind="direct")
    for member in members:
        told = eventually(f"{member.name} is told", lambda member=member: commands(member), SLOW_S)
        assert len(told) == 1, told
        assert not hears(other if member is one else one, member)
        program, *words = shlex.split(told[0])
        assert program == "ufw"
        assert "Rule added" in ufw(member, *words)
        eventually("the room is let in", lambda member=member: hears(other if member is one else one, member), SLOW_S)
