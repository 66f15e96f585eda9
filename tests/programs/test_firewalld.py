"""firewalld, as Fedora has it: a room opens behind it, and the command that a person is told lets the room in."""

from __future__ import annotations

import shlex

import pytest

from tests.netns.kernel import LabError
from tests.netns.lab import Lab, eventually
from tests.netns.programs import Program, environment, is_real_root
from tests.netns.rooms import Member, Room
from tests.netns.sharing import DBUS
from tests.programs.homes import SLOW_S, needs
from tests.programs.test_ufw import commands, hears

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.time_limit(240),
    needs("firewalld", "firewall-cmd", "dbus-daemon"),
    pytest.mark.skipif(not is_real_root(), reason="it looks at who owns its files"),
]


def firewall_cmd(member: Member, *words: str) -> str:
    env = environment(member.lab.folder / "firewalld")
    done = member.space.run("firewall-cmd", *words, env=env, check=False, timeout=SLOW_S)
    return done.stdout.strip()


def switch_on(member: Member) -> None:
    """As systemd would, whose link says to everybody that it is on."""
    lab, space, name = member.lab, member.space, member.name
    link = member.etc / "systemd/system/multi-user.target.wants/firewalld.service"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to("/lib/systemd/system/firewalld.service")
    settings = lab.folder / f"dbus-{name}.conf"
    settings.write_text(DBUS, encoding="ascii")
    space.run("mkdir", "-p", "/run/dbus", "/run/firewalld")
    Program(lab, space, f"dbus-{name}", ["dbus-daemon", f"--config-file={settings}", "--nofork", "--nopidfile"])
    eventually(
        "a message bus", lambda: space.run("test", "-S", "/run/dbus/system_bus_socket", check=False).returncode == 0, SLOW_S
    )
    daemon = Program(
        lab, space, f"firewalld-{name}", ["firewalld", "--nofork", "--nopid"], env=environment(lab.folder / "firewalld")
    )
    try:
        eventually(f"firewalld of {name}", lambda: firewall_cmd(member, "--state") == "running", SLOW_S, 0.5)
    except LabError as error:
        raise daemon.trouble(str(error)) from None


def test_a_room_behind_it_is_let_in_by_the_command_that_is_printed(lab: Lab) -> None:
    members = Room(lab, ("prc", "prc"), switch_on).members
    one, other = members
    for member, peer in ((one, other), (other, one)):
        assert member.program is not None
        member.program.wait_event("path", SLOW_S, peer=peer.name, kind="direct")
    for member in members:
        told = eventually(f"{member.name} is told", lambda member=member: commands(member), SLOW_S)
        assert len(told) == 1, told
        assert not hears(other if member is one else one, member)
        program, *words = shlex.split(told[0])
        assert program == "firewall-cmd"
        assert firewall_cmd(member, *words) == "success"
        eventually("the room is let in", lambda member=member: hears(other if member is one else one, member), SLOW_S)
