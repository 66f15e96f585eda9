"""How many a room may have is said once: what follows from it is worked out, so that a room of 72 is a change of one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tunnel.room.core.addresses import LAST_HOST, MAX_MEMBERS
from tunnel.room.core.messages import MAX_BODY
from tunnel.room.core.roster import MAX_ROSTER
from tunnel.transport.connection.control import MAX_MESSAGE

ROOT = Path(__file__).parents[3]
SCRIPT = """
import tunnel.room.core.addresses

tunnel.room.core.addresses.MAX_MEMBERS = 72  # before anything is worked out from it

from click.testing import CliRunner

from tests.unit.room.test_room import T0, a_creator, a_joiner, connect, deliver, events_of
from tunnel.cli import lan, main
from tunnel.room.send import MOST_STUCK
from tunnel.transport.connection.control import MAX_MESSAGE
from tunnel.room.core import creator, discovery, messages, records, roster
from tunnel.room.core.events import JoinRefused

assert roster.MAX_ROSTER + 64 < messages.MAX_BODY < MAX_MESSAGE
assert (creator.MAX_JOINING, creator.ROOM_CHANGES, records.MESSAGE_BURST, MOST_STUCK) == (72, 3 * 72, 4 * 72, 4 * 72)
assert discovery.weight_in(72) == 4.5
assert "Up to 72" in main.PAGE and "up to 72 members" in CliRunner().invoke(lan.command, ["--help"]).output

room = a_creator()
members = [room]
for number in range(71):
    member = a_joiner(f"{'x' * 60}{number:03}", room)
    room.expect(T0, member.static, bytes(32))
    connect(T0, room, member)
    members.append(member)
deliver(T0, *members)  # all come at once
assert len(room.roster.members) == 72 and all(each.roster == room.roster for each in members)
late = a_joiner("late", room)
room.expect(T0, late.static, bytes(32))
connect(T0, room, late)
deliver(T0, *members, late)
assert JoinRefused in [type(event) for event in events_of(late)] and late.roster is None
print("a room of", len(room.roster.members), "whose roster has", len(room.state().roster), "bytes")
"""


def test_a_room_of_72_is_a_change_of_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("a room of 72")


@pytest.mark.parametrize(("part", "whole"), [(MAX_MEMBERS, LAST_HOST), (MAX_ROSTER, MAX_BODY), (MAX_BODY, MAX_MESSAGE)])
def test_what_a_room_says_fits_where_it_travels(part: int, whole: int) -> None:
    assert part < whole
