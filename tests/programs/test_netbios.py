"""NetBIOS, Windows' way before mDNS: a real nmbd is found by the broadcast of its name, on an ethernet and in a room."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.netns.kernel import LabError, Namespace
from tests.netns.lab import Lab, eventually
from tests.netns.programs import Program, is_real_root
from tests.netns.rooms import Room
from tests.programs.homes import SLOW_S, needs

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.time_limit(240),
    needs("nmbd", "nmblookup"),
    pytest.mark.skipif(not is_real_root(), reason="nmbd takes port 137 and changes its user"),
]

SETTINGS = """[global]
workgroup = HOMES
netbios name = %(name)s
private dir = %(folder)s
lock directory = %(folder)s
state directory = %(folder)s
cache directory = %(folder)s
pid directory = %(folder)s
ncalrpc dir = %(folder)s/ncalrpc
"""


def settings(lab: Lab, name: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="ptunnel-nmb-", dir="/tmp"))  # short, as it holds sockets
    lab.on_close(lambda: shutil.rmtree(folder, ignore_errors=True))
    (folder / "smb.conf").write_text(SETTINGS % {"name": name, "folder": folder}, encoding="ascii")
    return folder / "smb.conf"


def serve(lab: Lab, space: Namespace, name: str) -> None:
    """nmbd under this name, which it holds once the network has had a chance to object."""
    config = settings(lab, name)
    space.run("mkdir", "-p", "/run/samba")
    daemon = Program(
        lab, space, f"nmbd-{name}", ["nmbd", "--foreground", "--debug-stdout", "--no-process-group", f"--configfile={config}"]
    )
    try:
        eventually(f"{name} has its name", lambda: look_up(space, config, name, "127.0.0.1"), SLOW_S, 0.5)
    except LabError as error:
        raise daemon.trouble(str(error)) from None


def look_up(space: Namespace, config: Path, name: str, whom: str = "") -> set[str]:
    """The addresses that answer to `name`; asked are all networks by broadcast, or `whom`."""
    words = ["--unicast", whom, "--recursion"] if whom else []
    said = space.run("nmblookup", f"--configfile={config}", *words, name, check=False, timeout=SLOW_S).stdout
    return set(re.findall(rf"^(\S+) {name}<00>$", said, re.MULTILINE))


def test_a_name_is_found_by_broadcast_on_a_plain_ethernet(lab: Lab) -> None:
    home = lab.add_site("home", "prc", hosts=2)
    host, friend = home.hosts
    for name, space in (("host", host), ("friend", friend)):
        space.be_a_machine(name, lab.folder / f"etc-{name}")
    serve(lab, host, "NAS")
    config = settings(lab, "FRIEND")
    eventually("the name", lambda: look_up(friend, config, "NAS") == {home.addresses[0]}, SLOW_S)


def test_a_name_is_found_by_broadcast_in_a_room(room: Room) -> None:
    host, friend = room.members
    serve(room.lab, host.space, "NAS")
    config = settings(room.lab, "FRIEND")
    eventually("the name", lambda: host.ipv4 in look_up(friend.space, config, "NAS"), SLOW_S)
