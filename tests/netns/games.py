"""Games from Debian's packages whose LAN browser is driven without a person: who serves, who searches, and how that is seen."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tests.netns.kernel import LabError, Namespace
from tests.netns.lab import Lab, eventually
from tests.netns.programs import ORDINARY, Program, environment
from tests.netns.screen import Screen, until

PLAYER = "alice"
ROOM = "ptunnel laboratory"
TEAL = (80, 140, 160)  # of the windows of OpenTTD


class Game(Protocol):
    """One game: its server without a screen, and its client, of which only the LAN browser is used and no address is typed.

    An ordinary user runs both, `around` in front of them: nothing, or `ptunnel exec`.
    """

    @property
    def name(self) -> str: ...

    def serve(self, lab: Lab, space: Namespace, around: Sequence[str] = ()) -> Program:
        """Start the server and wait until it is ready to be found."""
        ...

    def join(self, lab: Lab, space: Namespace, screen: Screen, server: Program, around: Sequence[str] = ()) -> str:
        """Search the LAN, join what was found as PLAYER, and return from where the server saw that: an address, or its name."""
        ...


def _address(server: Program, pattern: str) -> str:
    found = re.search(pattern, server.said())
    return found[1] if found else ""


@dataclass(frozen=True)
class OpenTTD:
    """Asks the broadcast address of every interface that has one; the answer is unicast, the game TCP."""

    name: str = "openttd"

    _settings = (
        f"[network]\nserver_name = {ROOM}\nserver_game_type = local\nclient_name = %s\n[misc]\nvideo_hw_accel = false\n"
        "[gui]\nautosave = off\nrefresh_rate = 10\n[game_creation]\nmap_x = 6\nmap_y = 6\n"
    )
    _joined = rf"Client #\d+ \(([0-9a-f.:]+)\) joined as {PLAYER}"

    def _program(self, lab: Lab, space: Namespace, around: Sequence[str], who: str, env: dict[str, str], *words: str) -> Program:
        settings = lab.folder / f"openttd-{who}.cfg"
        settings.write_text(self._settings % who, encoding="ascii")
        arguments = [*ORDINARY, *around, "/usr/games/openttd", "-c", str(settings), "-x", "-d", "net=5", *words]
        return Program(lab, space, f"openttd-{who}", arguments, env=env)

    def serve(self, lab: Lab, space: Namespace, around: Sequence[str] = ()) -> Program:
        server = self._program(lab, space, around, "host", environment(lab.folder / "openttd-host"), "-D")
        server.wait_said("Map generated, starting game")
        return server

    def join(self, lab: Lab, space: Namespace, screen: Screen, server: Program, around: Sequence[str] = ()) -> str:
        env = screen.environment(lab.folder / f"openttd-{PLAYER}")
        size = "640x480"
        client = self._program(lab, space, around, PLAYER, env, "-v", "sdl", "-s", "null", "-m", "null", "-r", size)

        def search() -> None:
            screen.click(398, 187)  # Multiplayer; the window that it opens has nothing at this place
            screen.click(191, 462)  # Search LAN

        until("the LAN search of OpenTTD", lambda: "Broadcasting to" in client.said(), search)
        until("an answer", lambda: "Server response from" in client.said(), lambda: screen.click(191, 462))

        def enter() -> None:
            screen.click(576, 439)  # Refresh server: it counts as offline where a busy machine has answered late
            screen.click(100, 62, times=2)

        until("the player in the game", lambda: _address(server, self._joined), enter)
        eventually("the map", lambda: screen.count((12, 380, 372, 410), _is_teal) < 1000)  # it covers the list
        return _address(server, self._joined)


@dataclass(frozen=True)
class Freeciv:
    """Asks a multicast group, joined on the interface of the default route; the answer goes to the same group, the game is TCP.

    `identity` is what the server says of itself: a name that the client can resolve, or `none`, whereupon the client takes the
    source address of the answer.
    """

    name: str = "freeciv"
    identity: str = "none"

    _joined = rf"{PLAYER} has connected from (\S+)\.\n"
    _group = "010101E1"  # 225.1.1.1, as the kernel shows it
    _row = (104, 97, 330, 112)

    def serve(self, lab: Lab, space: Namespace, around: Sequence[str] = ()) -> Program:
        home = lab.folder / "freeciv-host"
        server = Program(
            lab,
            space,
            "freeciv-host",
            [
                *ORDINARY,
                *around,
                "/usr/games/freeciv-server",
                "--identity",
                self.identity,
                "--port",
                "5556",
                "--saves",
                str(home),
            ],
            env=environment(home),
            stdin=subprocess.PIPE,  # its end would be the end of the game
        )
        server.wait_said("Now accepting new client connections")
        return server

    def join(self, lab: Lab, space: Namespace, screen: Screen, server: Program, around: Sequence[str] = ()) -> str:
        env = screen.environment(lab.folder / f"freeciv-{PLAYER}")
        Program(
            lab,
            space,
            f"freeciv-{PLAYER}",
            [*ORDINARY, *around, "/usr/games/freeciv-gtk3.22", "--name", PLAYER, "--Plugin", "none"],
            env=env,
        )

        def open_page() -> None:
            screen.click(431, 317)  # Connect to Network Game; where it was, the page that opens has nothing

        until("the LAN page of Freeciv", lambda: self._group in space.run("cat", "/proc/net/igmp").stdout, open_page)
        until("a server in the list", lambda: screen.count(self._row, _is_dark) > 40, lambda: screen.click(146, 408), every=6)
        until("the server chosen", lambda: screen.count(self._row, _is_blue) > 500, lambda: screen.click(130, 104))
        until("the player in the game", lambda: _address(server, self._joined), lambda: screen.click(493, 408))
        eventually("the page of the game", lambda: not screen.count(self._row, _is_blue))
        return _address(server, self._joined)


def _is_dark(red: int, green: int, blue: int) -> bool:
    return max(red, green, blue) < 100


def _is_blue(red: int, green: int, blue: int) -> bool:
    return blue > 180 and red < 100


def _is_bright(red: int, green: int, blue: int) -> bool:
    return min(red, green, blue) > 200


def _is_red(red: int, green: int, blue: int) -> bool:
    return red > 180 and max(green, blue) < 90


def _is_teal(red: int, green: int, blue: int) -> bool:
    return (red, green, blue) == TEAL


@dataclass(frozen=True)
class Teeworlds:
    """Asks 255.255.255.255 and ff02::1, eight ports each at once; everything else is unicast UDP."""

    name: str = "teeworlds"

    _joined = r"player has entered the game\. ClientID=\d+ addr=\[?([0-9a-f.:]+?)\]?:\d+\n"
    _row = (80, 112, 180, 126)
    _client = (
        f"player_name {PLAYER}", "gfx_screen_width 640", "gfx_screen_height 480", "gfx_fullscreen 0", "gfx_borderless 0",
        "gfx_vsync 0", "gfx_limitfps 1", "gfx_maxfps 30", "gfx_asyncrender 0", "cl_cpu_throttle 50", "snd_enable 0",
        "cl_show_welcome 0", "cl_skip_start_menu 1", "ui_browser_page 6",
    )  # fmt: skip
    # One list, of all servers, unfolded.
    _lists = (
        '{"settings": {"sidebar_active": 0, "sidebar_tab": 0, "filters": [0, 0]}, "filter": [{"All": {"type": 1, "settings": '
        '{"filter_hash": 2060, "filter_gametype": [], "filter_ping": 999, "filter_serverlevel": 0, "filter_address": "", '
        '"filter_country": -1}}}]}'
    )

    def serve(self, lab: Lab, space: Namespace, around: Sequence[str] = ()) -> Program:
        home = lab.folder / "teeworlds-host"
        arguments = [*ORDINARY, *around, "/usr/games/teeworlds-server", f"sv_name {ROOM}", "sv_register 0", "sv_map dm1"]
        server = Program(lab, space, "teeworlds-host", arguments, env=environment(home))
        server.wait_said("server name is")
        return server

    def join(self, lab: Lab, space: Namespace, screen: Screen, server: Program, around: Sequence[str] = ()) -> str:
        home = lab.folder / f"teeworlds-{screen.name}"  # a fresh one: it would choose the server of the last time by itself
        kept = home / ".local/share/teeworlds"
        kept.mkdir(parents=True)
        (kept / "ui_settings.json").write_text(self._lists, encoding="ascii")
        arguments = [*ORDINARY, *around, "/usr/games/teeworlds", *self._client]
        Program(lab, space, f"teeworlds-{PLAYER}", arguments, env=screen.environment(home))
        screen.focus("Teeworlds")
        # It searches when its page opens.  To press F5 meanwhile would empty the list for good, so it is the last resort.
        with contextlib.suppress(LabError):
            eventually("a server in the list", lambda: screen.count(self._row, _is_bright) > 60, 15)
        until("a server in the list", lambda: screen.count(self._row, _is_bright) > 60, lambda: screen.press("F5"))
        until("the player in the game", lambda: _address(server, self._joined), lambda: screen.press("Down", "Return"))
        eventually("the player's hearts", lambda: screen.count((0, 0, 220, 30), _is_red) > 100)
        return _address(server, self._joined)


GAMES: tuple[Game, ...] = (OpenTTD(), Freeciv(), Teeworlds())
