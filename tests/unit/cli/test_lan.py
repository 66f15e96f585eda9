"""What `lan` and `exec` choose and show, without a network."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
from click.testing import CliRunner

from tests.schema import schema
from tests.unit.state.test_rooms import ROOM
from tunnel.cli import prompt
from tunnel.cli.lan import Playing, choose
from tunnel.cli.main import group, run
from tunnel.cli.members import table
from tunnel.cli.render import Output
from tunnel.cli.status import page
from tunnel.doors.tun import inside
from tunnel.errors import ConfigurationError
from tunnel.settings import Settings
from tunnel.shell.events import CodeReady, Listening, MemberReport
from tunnel.state.home import Home
from tunnel.state.rooms import Rooms, SavedRoom

WHY = {126: "Permission denied", 127: "No such file or directory"}
MEMBERS = [
    {"peer": "anna", "address": "10.1.2.1", "online": True, "self": True, "creator": True},
    {"peer": "ben", "address": "10.1.2.2", "online": True, "self": False, "creator": False, "kind": "relay", "rtt_s": 0.0305,
     "packets_sent": 200, "packets_lost": 1, "send_rate": 1200.0, "receive_rate": 5.0, "why": "both NATs vary their ports"},
    {"peer": "cleo", "address": "10.1.2.3", "online": False, "self": False, "creator": False},
]  # fmt: skip


def keep(home: Path, name: str, *, is_creator: bool = False) -> None:
    saved = SavedRoom(
        name=name, member_name="x", room=name.encode().ljust(32), private_key=b"k" * 32 if is_creator else None,
        secret=ROOM.secret, epoch=1, roster=ROOM.roster, psks={}, former=(), highest=1, server="rv", saved_at=0.0,
    )  # fmt: skip
    Rooms(Home(home)).save(saved)


def chosen(home: Path, given: str | None = None, peer: str | None = None, **settings: str | bool) -> dict[str, str]:
    return choose(Home(home), Settings(**settings), given, peer)  # type: ignore[arg-type]


def test_a_code_a_room_or_a_peer_is_the_way_in(home: Path, remember: object) -> None:
    remember("friend")  # type: ignore[operator]
    keep(home, "game")
    assert chosen(home, "731 garden violin zoo", server="rv") == {"code": "731 garden violin zoo"}
    assert chosen(home, code="731-garden-violin-zoo", server="rv") == {"code": "731-garden-violin-zoo"}
    assert chosen(home, "game", code="731-garden-violin-zoo") == {"room": "game"}
    assert chosen(home, peer="FRIEND") == {"peer": "friend"}
    assert chosen(home) == {"room": "game"}  # the only one, and nobody can be asked
    with pytest.raises(ConfigurationError, match="kept are game"):
        chosen(home, "friend")
    with pytest.raises(ConfigurationError, match="leave one of them out"):
        chosen(home, "game", "friend")


def test_without_a_way_in_it_is_one_sentence(home: Path) -> None:
    with pytest.raises(ConfigurationError, match="PTUNNEL_CODE"):
        chosen(home)
    keep(home, "mine", is_creator=True)
    with pytest.raises(ConfigurationError, match="PTUNNEL_CODE"):
        chosen(home)
    for name in ("one", "two"):
        keep(home, name)
    with pytest.raises(ConfigurationError, match="There are one, two"):
        chosen(home)
    with pytest.raises(ConfigurationError, match="--server"):
        chosen(home, "731-garden-violin-zoo")


def test_at_a_terminal_the_code_is_asked_for(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt, "can_ask", lambda: True)
    monkeypatch.setattr(prompt, "_read_line", lambda text, candidates: "731-garden-violin-zoo")
    assert chosen(home, server="rv") == {"code": "731-garden-violin-zoo"}


def test_the_table_says_who_where_how_and_why() -> None:
    lines = table(MEMBERS)
    assert lines[0].split() == ["MEMBER", "ADDRESS", "PATH", "RTT", "LOSS", "UP", "DOWN"]
    assert "anna *" in lines[1]
    assert "this machine" in lines[1]
    assert lines[2].split("  ")[0] == "ben"
    assert "relay" in lines[2]
    assert "30 ms" in lines[2]
    assert "0.5 %" in lines[2]
    assert lines[2].endswith("both NATs vary their ports")
    assert "away" in lines[3]


def test_status_shows_a_room_by_its_members() -> None:
    answer = {
        "event": "status", "pid": 7, "role": "lan", "uptime_s": 120.0, "room": "game", "subnet": "10.1.2.0/24",
        "members": [{key: member[key] for key in ("peer", "address", "online", "self", "creator")} for member in MEMBERS],
        "links": [MEMBERS[1]],
    }  # fmt: skip
    lines = page([answer])
    assert lines[0].startswith("lan game  process 7")
    assert "30 ms" in lines[3]
    idle = [{**MEMBERS[1], "kind": "direct", "rtt_age_s": 14.2}]
    assert "30 ms (14 s ago)" in table(idle)[1]
    assert page([{"event": "status", "pid": 7, "role": "lan", "uptime_s": 1.0, "links": []}])[1].strip() == "entering the room"


def said(capsys: pytest.CaptureFixture[str], *events: CodeReady | MemberReport) -> list[str]:
    async def happen() -> None:
        playing = Playing(Home("nowhere"), Settings(server="rv.example.net:24531"), Output(), None)
        for event in events:
            playing._handle(event)

    trio.run(happen)
    return capsys.readouterr().err.splitlines()


def report(state: str, kind: str | None = None, why: str = "", *, name: str = "ben", is_me: bool = False) -> MemberReport:
    return MemberReport(peer=name, address="10.1.2.2", ipv6="fd00::2", state=state, kind=kind, why=why, is_me=is_me)


def test_each_change_of_a_member_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(
        capsys,
        report("online", is_me=True, name="anna"),
        report("offline"),
        report("online", "relay", "a direct path is still looked for"),
        report("online", "direct"),
        report("online", "direct"),
        report("offline"),
        report("removed"),
    )
    assert [line[21:] for line in lines] == [  # behind the time
        "ben came (10.1.2.2, relay, a direct path is still looked for).",
        "The path to 'ben' is now direct.",
        "ben left.",
        "ben is no longer in the room.",
    ]


def test_a_code_comes_with_what_to_run_and_a_fresh_one_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys, *(CodeReady(code=f"{n}-zoo-zoo-zoo", expires_s=None) for n in (731, 732)))
    assert lines[0].endswith("ptunnel lan join --server rv.example.net")
    assert lines[1].endswith("731-zoo-zoo-zoo")
    assert "as long as this runs" in lines[2]
    assert "fresh code" in lines[3]
    assert lines[5].endswith("732-zoo-zoo-zoo")
    assert CodeReady(code="x", expires_s=None).to_dict() == {"event": "code", "code": "x", "expires_s": None}


def test_whoever_is_not_root_is_told_how_to_see_roots_rooms(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (1000, 0):
        monkeypatch.setattr("tunnel.cli.lan.os", SimpleNamespace(geteuid=lambda number=number: number))
        assert run(["lan"]) == 0
        assert ("'sudo ptunnel lan'" in capsys.readouterr().err) == (number != 0)


def test_list_and_forget_without_anything_running(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["lan", "list"]) == 0
    assert "No room is kept" in capsys.readouterr().err
    assert run(["lan", "forget", "game", "--json"]) == 2
    capsys.readouterr()
    keep(home, "game")
    assert run(["lan", "list", "--json"]) == 7  # its roster is none
    assert "damaged" in json.loads(capsys.readouterr().out)["message"]
    assert run(["lan", "forget", "game", "--json"]) == 0
    assert json.loads(capsys.readouterr().out).items() >= {"event": "forgotten", "room": "game"}.items()
    assert run(["lan", "remove", "ben", "--json"]) == 2
    assert "No room of this home runs" in json.loads(capsys.readouterr().out)["message"]


@pytest.mark.parametrize("name", ["create", "join", "remove", "list", "forget"])
def test_every_part_of_lan_explains_itself(name: str) -> None:
    shown = CliRunner().invoke(group, ["lan", name, "--help"], prog_name="ptunnel")
    assert shown.exit_code == 0
    assert "--json" in shown.output


def test_exec_takes_a_commands_own_options_as_they_are() -> None:
    shown = CliRunner().invoke(group, ["exec", "--room", "731-zoo-zoo-zoo", "ls", "--server"], prog_name="ptunnel")
    assert "No such option" not in shown.output
    assert run(["exec", "--room", "nowhere"]) == 2


def test_exec_asks_for_no_code_where_the_command_gets_no_network(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(inside, "why_not", lambda: "You may not open /dev/net/tun: sudo chmod 666 /dev/net/tun.")
    monkeypatch.setattr(prompt, "ask_code", lambda *_: pytest.fail("a code was asked for"))
    assert run(["exec", "--server", "rv.example.net", "--", "true"]) == 2
    assert "chmod 666" in capsys.readouterr().err
    assert run(["exec", "--server", "rv.example.net", "--", "no-such-command"]) == 127


def test_exec_says_that_it_needs_linux_before_it_asks_for_anything(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(prompt, "ask_code", lambda *_: pytest.fail("a code was asked for"))
    for words in (["--server", "rv.example.net"], []):
        assert run(["exec", *words, "--", "true"]) == 2
        assert capsys.readouterr().err == "ptunnel: A network of its own for a command needs Linux: run it there.\n"


@pytest.mark.parametrize(
    ("word", "code", "name"), [("no-such-command", 127, "command_not_found"), ("/etc/passwd", 126, "command_not_run")]
)
@pytest.mark.parametrize("options", [["exec", "--json"], ["--json", "exec"], ["exec"]])
def test_a_command_that_cannot_be_run_is_an_error_object_for_whoever_asked(
    options: list[str], word: str, code: int, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*options, "--server", "rv.example.net", "--", word]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    [line] = shown.err.splitlines()
    if "--json" in options:
        assert schema().line_problems(line) == []
        assert (json.loads(line)["code"], json.loads(line)["message"]) == (name, f"{word} cannot be run: {WHY[code]}.")
    else:
        assert line == f"ptunnel: {word} cannot be run: {WHY[code]}."


def test_the_live_picture_waits_until_there_is_somebody() -> None:
    playing = Playing(Home("nowhere"), Settings(), Output(), None)
    assert playing._lines() == [("Entering the room ... (Ctrl-C ends it)", True)]

    class Member:
        def __init__(self, shown: dict[str, object]) -> None:
            self.to_dict = lambda: shown

    class Room:
        def __init__(self, count: int) -> None:
            self.members = lambda: [Member(shown) for shown in MEMBERS[:count]]

    playing._room = Room(1)  # type: ignore[assignment]
    assert playing._lines()[-1] == ("Waiting for others ... (Ctrl-C ends it)", True)
    playing._room = Room(3)  # type: ignore[assignment]
    assert [spins for _, spins in playing._lines()] == [False] * 4


def test_a_server_that_only_this_machine_reaches_is_for_no_friend_until_a_network_comes(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    playing = Playing(Home(home), Settings(), Output(), None)
    playing._handle(Listening(bind="127.0.0.1:24531", embedded=True, public=None))
    playing._handle(CodeReady(code="731-garden-violin-zoo", expires_s=None))
    said = capsys.readouterr().err
    assert "In another window here run:     ptunnel exec --server 127.0.0.1 -- COMMAND\n" in said
    assert "friend" not in said
    playing._handle(Listening(bind="192.168.1.5:24531", embedded=True, public=None))
    said = capsys.readouterr().err
    assert "Each friend runs:               sudo ptunnel lan join --server 192.168.1.5\n" in said
    assert said.endswith("and types the code:             731-garden-violin-zoo\n")
