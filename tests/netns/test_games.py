"""Games find one another: on a plain LAN, which shows that the games are driven rightly, and in a room."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.games import GAMES, Freeciv, Game, OpenTTD, Teeworlds
from tests.netns.kernel import Namespace, python_module
from tests.netns.lab import Lab, eventually
from tests.netns.programs import is_real_root, server_address
from tests.netns.rooms import Member, Room
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
    share = Share(lab, host, "host", "music")
    (share.shared / "song").write_bytes(b"la la la")
    found = eventually("the share", lambda: [one for one in responders[1].services("_smb._tcp") if one[3] == home.addresses[0]])
    assert found == [("eth0", "HOST", "host.local", home.addresses[0])]
    assert fetch(friend, lab.folder / "fetching", found[0][3], "music", "song") == b"la la la"


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    with Lab(tmp_path_factory.mktemp("room")) as lab:
        yield Room(lab, ("prc", "prc"))


@pytest.mark.parametrize("game", GAMES, ids=lambda game: game.name)
def test_a_game_finds_the_server_in_a_room(room: Room, game: Game) -> None:
    host, friend = room.members
    with room.lab.scene():
        if isinstance(game, Freeciv):  # its server tells a name, and this is the one that the others can resolve
            game = Freeciv(identity=f"{host.name}.ptunnel")
        server = game.serve(room.lab, host.space)
        screen = Screen(room.lab, friend.space, f"{game.name}-room")
        with screen.shown():
            assert game.join(room.lab, friend.space, screen, server) in {friend.ipv4, f"{friend.name}.ptunnel"}


def _exec(room: Room, name: str) -> list[str]:
    """The words in front of a command whose only network is the room."""
    return python_module("tunnel", "exec", "--room", room.code, "--as", name, "--server", server_address(room.lab), "--")


@pytest.mark.parametrize("game", [OpenTTD(), Teeworlds()], ids=lambda game: game.name)
def test_a_game_in_ptunnel_exec_finds_the_server(room: Room, game: Game) -> None:
    """Without root, and on a machine that has its own member beside it; the game sees no other network."""
    host, friend = room.members
    name = f"{game.name}-player"
    with room.lab.scene():
        server = game.serve(room.lab, host.space)
        screen = Screen(room.lab, friend.space, f"{game.name}-exec")
        with screen.shown():
            joined = game.join(room.lab, friend.space, screen, server, _exec(room, name))
        assert host.program is not None
        assert joined == host.program.wait_event("member", peer=name)["address"]


def test_a_game_served_in_ptunnel_exec_is_found(room: Room) -> None:
    host, friend = room.members
    game = Teeworlds()
    with room.lab.scene():
        server = game.serve(room.lab, friend.space, _exec(room, "server"))
        screen = Screen(room.lab, host.space, f"{game.name}-served")
        with screen.shown():
            assert game.join(room.lab, host.space, screen, server) == host.ipv4


@needs_root
def test_a_share_in_the_room_and_a_printer_at_home_are_found_by_mdns(lab: Lab) -> None:
    """Avahi runs on all machines before they hear of the room, and after; what is on one's ethernet is nobody else's business."""
    at: dict[str, Responder] = {}

    def prepare(member: Member) -> None:
        member.neighbour.be_a_machine(f"{member.name}s-printer", lab.folder / f"etc-{member.name}s-printer")
        at[member.name] = Responder(lab, member.space, member.name)
        printer = Responder(lab, member.neighbour, f"{member.name}s-printer")
        printer.announce(lab, f"printer of {member.name}", "_ipp._tcp", 631)

    def finds_its_printer(member: Member) -> None:
        """It, and no other one."""
        wanted = ("eth0", rf"printer\032of\032{member.name}", f"{member.name}s-printer.local", member.site.addresses[1])
        found = eventually("a printer", lambda: at[member.name].services("_ipp._tcp"))
        assert wanted in found
        assert {name for _, name, _, _ in found} == {wanted[1]}

    members = Room(lab, ("prc", "prc"), prepare).members
    host, friend = members
    share = Share(lab, host.space, host.name, "music")
    (share.shared / "song").write_bytes(b"la la la")
    wanted = (friend.interface, host.name.upper(), f"{host.name}.local", host.ipv4)
    eventually("the share", lambda: wanted in at[friend.name].services("_smb._tcp"))
    assert fetch(friend.space, lab.folder / "fetching", wanted[3], "music", "song") == b"la la la"
    for member in members:
        finds_its_printer(member)

    for member in members:
        assert member.program is not None
        member.program.interrupt()
        member.program.wait(10)
        eventually(f"no trace at {member.name}", member.left_nothing)
        finds_its_printer(member)


def _responder(lab: Lab, space: Namespace, name: str) -> Responder:
    space.be_a_machine(name, lab.folder / f"etc-{name}")
    return Responder(lab, space, name)
