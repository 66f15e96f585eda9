"""Games find one another: on a plain LAN, which shows that the games are driven rightly, and in a room."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.netns.games import GAMES, Game
from tests.netns.kernel import Namespace
from tests.netns.lab import Lab, eventually
from tests.netns.programs import is_real_root
from tests.netns.screen import Screen
from tests.netns.sharing import Responder, Share, fetch

GAMES_FOLDER = "/usr/games"  # not in everybody's PATH
NEEDED = (
    "Xvfb", "xdotool", "openttd", "freeciv-server", "freeciv-gtk3.22", "teeworlds", "teeworlds-server",
    "dbus-daemon", "avahi-daemon", "avahi-browse", "avahi-publish", "smbd", "smbclient",
)  # fmt: skip
MISSING = [name for name in NEEDED if shutil.which(name) is None and not Path(GAMES_FOLDER, name).exists()]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} is missing; scripts/test says how to install it")
needs_root = pytest.mark.skipif(not is_real_root(), reason="samba changes its user for every guest, and there is one user only")


@pytest.mark.parametrize("game", GAMES, ids=lambda game: game.name)
def test_a_game_finds_the_server_on_a_plain_ethernet(lab: Lab, game: Game) -> None:
    home = lab.add_site("home", "prc", hosts=2)
    host, friend = home.hosts
    for name, space in (("host", host), ("friend", friend)):
        space.be_a_machine(name, lab.folder / f"etc-{name}")
    server = game.serve(lab, host)
    screen = Screen(lab, friend, f"{game.name}-ethernet")
    with screen.shown():
        assert game.join(lab, friend, screen, server) == home.addresses[1]


@needs_root
def test_a_share_is_found_by_mdns_on_a_plain_ethernet(lab: Lab) -> None:
    home = lab.add_site("home", "prc", hosts=2)
    host, friend = home.hosts
    responders = [_responder(lab, space, name) for name, space in (("host", host), ("friend", friend))]
    share = Share(lab, responders[0], "music")
    (share.shared / "song").write_bytes(b"la la la")
    found = eventually("the share", lambda: [one for one in responders[1].services("_smb._tcp") if one[3] == home.addresses[0]])
    assert found == [("eth0", "HOST", "host.local", home.addresses[0])]
    assert fetch(friend, lab.folder / "fetching", found[0][3], "music", "song") == b"la la la"


def _responder(lab: Lab, space: Namespace, name: str) -> Responder:
    space.be_a_machine(name, lab.folder / f"etc-{name}")
    return Responder(lab, space, name)
