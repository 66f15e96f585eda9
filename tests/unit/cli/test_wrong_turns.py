"""What people type who have not read the page, as it was seen: the exit code, and the sentence that leads on."""

from __future__ import annotations

import io
import json
import re
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tunnel.cli import prompt
from tunnel.cli.expose import Exposing
from tunnel.cli.habits import HABITS, joined_code
from tunnel.cli.lan import Playing
from tunnel.cli.main import COMMANDS, run
from tunnel.cli.render import Output
from tunnel.control.server import Process, serve_control
from tunnel.pairing.code import looks_like_code, parse_code, split_server
from tunnel.pairing.grants import GrantSet
from tunnel.settings import Settings
from tunnel.shell.events import CodeReady, Listening
from tunnel.state.home import Home
from tunnel.units import Instant

Remember = Callable[..., object]
CODE, ROOM = "731-garden-violin", "731-garden-violin-zoo"
NO_SERVER = "A first meeting needs the server that the other side's command names: add --server HOST or set PTUNNEL_SERVER."
NO_ROOM_SERVER = "A code needs the server that the creator's command names: add --server HOST or set PTUNNEL_SERVER."
IS_ROOM = "This is the code of a room: run 'sudo ptunnel lan join --server {}'."

NEEDS = "What is forwarded needs --forward: write 'ptunnel connect {}'."
NO_USERS = "--server names a server, and a server has no users: write 'rv.example.net', without what is before it."

#: What was typed, with one peer called home remembered; exit code; the sentence, or how it begins.
TURNS = [
    # a port for a friend
    ("connect home 2222:22", 2, NEEDS.format("home --forward 2222:22")),
    ("connect 2222:22 home", 2, NEEDS.format("home --forward 2222:22")),
    ("connect home 2222:22 53/udp", 2, NEEDS.format("home --forward 2222:22 --forward 53/udp")),
    ("connect 22", 2, NEEDS.format("--forward 22")),
    (f"connect {CODE} 2222:22", 2, NEEDS.format("CODE --forward 2222:22")),
    ("connect home office", 2, "Connect reaches one peer, and 'office' is a second word: leave it out, or quote the name."),
    ("connect stranger -L 2222:localhost:22", 2, "No peer called 'stranger' is remembered: known are home."),
    ("connect stranger --forward 8081:22/tpc", 2, "'8081:22/tpc': '/tpc' is no protocol"),
    ("connect home --forward web=localhost:7001", 2, "'web=localhost:7001': a share is written like that; here it is LOCAL:NAME"),
    ("connect home --stdio 2222:22", 2, "'2222:22': --stdio takes the peer's port alone: write 22."),
    ("expose ssh=22", 2, "'ssh=22': after the equals sign stands HOST:PORT, as in ssh=localhost:22."),
    ("expose nas:192.168.1.5:445", 2, "'nas:192.168.1.5:445': another machine needs a name here, as in nas=192.168.1.5:445."),
    ("expose nas=3000:3000", 2, "'nas=3000:3000': '3000' is neither an address nor a host name."),
    ("expose 8080:3000", 2, "'8080:3000': write 3000: the other side chooses its own port, with --forward 8080:3000."),
    ("expose 22 rv.example.net", 2, "'rv.example.net': a port is a number, as in 22; a server is named by --server rv"),
    ("expose 22 home", 2, "'home': a port is a number, as in 22; a remembered peer is named by --to home."),
    ("expose 22,80", 2, "'22,80': write several with blanks between them, as in 22 80."),
    ("connect 452nucleardigital", 2, NO_SERVER),
    ("connect CODE.", 2, NO_SERVER),
    ("connect “CODE”", 2, NO_SERVER),
    ("connect 731 garden violin --forward 2222:22", 2, NO_SERVER),
    (CODE, 2, NO_SERVER),
    ("731 GARDEN VIOLIN", 2, NO_SERVER),
    ("--jason peers", 2, "No such option '--jason'."),
    ("expose", 2, "You share nothing with home. To share: 'ptunnel expose PORT --to home'. To reach it: 'ptunnel connect home"),
    ("connect 731-diagra-violin", 2, "No code has the word 'diagra' in it; did you mean 'diagram'?"),
    ("connect --server https://me@rv.example.net x", 2, NO_USERS),
    ("connect --server home@rv.example.net x", 2, NO_USERS),
    (f"connect {ROOM} --server https://rv.example.net", 2, IS_ROOM.format("rv.example.net")),
    (f"connect {ROOM} --server rv.example.net/", 2, IS_ROOM.format("rv.example.net")),
    (f"connect {ROOM}@https://rv.example.net/", 2, IS_ROOM.format("rv.example.net")),
    (ROOM, 2, IS_ROOM.format("HOST")),
    # every day
    ("peers delete home", 2, "There is no command 'peers delete'; did you mean 'ptunnel peers forget'?"),
    ("peers mv home office", 2, "There is no command 'peers mv'; did you mean 'ptunnel peers rename'?"),
    ("forget home", 2, "There is no command 'forget'; did you mean 'ptunnel peers forget'?"),
    ("share 22", 2, "There is no command 'share'; did you mean 'ptunnel expose'?"),
    ("versoin", 2, "There is no command 'versoin'; did you mean 'ptunnel version'?"),
    ("--versio", 2, "No such option '--versio'. Did you mean '--version'? See 'ptunnel --help'."),
    ("help nonsense", 2, "There is no command 'nonsense'; there are serve,"),
    # a LAN for a game
    ("join", 2, "Missing argument 'CODE[@SERVER]'."),
    ("lan crete", 2, "There is no command 'lan crete'; did you mean 'ptunnel lan create'?"),
    ("lan leave", 2, "There is no command 'lan leave'; Ctrl-C in its window ends a command, and 'ptunnel status' shows"),
    ("lan kick ben", 2, "There is no command 'lan kick'; did you mean 'ptunnel lan remove'?"),
    ("lan nonsense", 2, "There is no command 'lan nonsense'; there are create, join, remove, list, forget."),
    ("lan create game --name other", 2, "The room has two names, 'game' and --name other: leave one of them out."),
    (f"lan create {ROOM}", 2, "A new room has no code yet: to enter the one of that code, run 'sudo ptunnel lan join'."),
    ("lan join 731 garden violin zoo", 2, NO_ROOM_SERVER),
    (f"lan join {CODE}", 2, "This is the code of 'ptunnel expose', and of no room: run 'ptunnel connect"),
    # a server of one's own
    ("serve --tls-key key.pem", 2, "--tls-key needs its certificate: name it with --tls-cert."),
    ("serve --listen rv.example.net:99999", 2, "--listen: '99999' in 'rv.example.net:99999' is no port"),
    # scripts
    ("connect home --stdio 22 --json", 2, ""),
    ("connect home --timeout 0", 2, "Invalid value for '--timeout': 0.0 is not in the range x>=0.1."),
]  # fmt: skip


@pytest.mark.parametrize(("typed", "code", "sentence"), TURNS, ids=[turn[0] for turn in TURNS])
def test_a_wrong_turn_is_answered_by_one_sentence(
    typed: str,
    code: int,
    sentence: str,
    home: Path,
    remember: Remember,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tunnel.room.verbs.require_host_interface", lambda: None)
    monkeypatch.setattr("tunnel.room.verbs.lacks_privilege", lambda: False)
    monkeypatch.setattr("tunnel.shell.endpoint.EndpointDriver.__init__", lambda *_all, **_more: pytest.fail("it went on"))
    remember("home", server="")
    if typed == "expose":  # on the side that only ever connected
        Home(home).change_grants(("home",), lambda _peer: [])
    assert run([word.replace("CODE", CODE) for word in typed.split(" ")]) == code
    said = capsys.readouterr().err.splitlines()
    if not sentence:
        return
    assert len(said) == 1
    assert said[0].startswith(f"ptunnel: {sentence}")


@pytest.mark.parametrize(("group", "word"), [(group, word) for group, words in HABITS.items() for word in words])
def test_each_habit_leads_to_a_command_that_is_there(group: str, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    meant = HABITS[group][word]
    assert run(["help", *meant.split()]) == 0
    assert "Usage: ptunnel" in capsys.readouterr().out
    assert run([word] if group == "ptunnel" else [group, word]) == 2
    assert f"did you mean 'ptunnel {meant}'?" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_is_its_own(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["help", name]) == 0
    shown = capsys.readouterr().out
    assert run([name, "--help"]) == 0
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize("typed", ["--json peers", "peers --json", "peers --json list", "--json peers list", "peers list --json"])
def test_json_may_stand_before_the_command(typed: str, remember: Remember, capsys: pytest.CaptureFixture[str]) -> None:
    remember("home")
    assert run(typed.split()) == 0
    assert json.loads(capsys.readouterr().out)["event"] == "peer"


@pytest.mark.parametrize(
    ("server", "where"),
    [
        ("127.0.0.1:24531", "In another window here run:"),
        ("[::1]:9", "In another"),
        ("192.168.1.5:24531", "On the other computer"),
    ],
)
def test_a_server_that_only_this_machine_reaches_is_for_no_other_computer(
    server: str, where: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"\n{where}" in code_shown(capsys, home, server)


def test_a_code_that_waits_is_said_anew_with_the_address_that_its_server_has_now(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = Exposing(Home(home), Settings(), ["22"], list(GrantSet.parse("22")), [], False, Output())
    one._handle(Listening(bind="127.0.0.1:24531", embedded=True, public=None))
    one._handle(CodeReady(code=CODE, expires_s=600.0))
    one._handle(Listening(bind="127.0.0.1:24531", embedded=True, public="203.0.113.5:24531"))
    assert capsys.readouterr().err.count("--server 127.0.0.1 --forward") == 1, "it has not moved"
    one._handle(Listening(bind="192.168.1.5:24531", embedded=True, public=None))
    said = capsys.readouterr().err
    assert "On the other computer run:      ptunnel connect --server 192.168.1.5 --forward 2222:22\n" in said
    assert f"and type the code:              {CODE}\n" in said


def test_without_a_network_it_is_said_why_nobody_else_can_come() -> None:
    from tunnel.cli.expose import why_embedded

    assert why_embedded("127.0.0.1:9") == "This computer is not connected to a network, and no server is configured"
    assert why_embedded("192.168.1.5:9") == "No server is configured"


def test_help_and_version_are_words_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["help"]) == 0
    shown = capsys.readouterr().out
    assert run(["--help"]) == 0
    assert capsys.readouterr().out == shown
    assert run(["version"]) == 0
    shown = capsys.readouterr().out
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == shown


def test_the_manual_page_is_made_from_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["man"]) == 0
    page = capsys.readouterr().out
    plain = page.replace(r"\-", "-").replace(r"\(aq", "'").replace(r"\(ga", "`")
    for words in (*([name] for name in COMMANDS), ["lan", "create"], ["lan", "join"], ["peers", "forget"]):
        assert run(["help", *words]) == 0
        shown = capsys.readouterr().out
        assert f".SS ptunnel {' '.join(words)} " in plain
        for option in re.findall(r"^  (-[^ ,]*(?:, --[^ ]+)?)", shown, re.MULTILINE):
            assert "--help" in option or f".B {option}" in plain
    assert "Exit codes:" in plain
    assert "\b" not in page
    assert not re.search(r"^['.](?!TH|SH|SS|TP|PP|nf|fi|B )", page, re.MULTILINE)


def test_each_command_has_a_manual_page_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["man", "--into", str(tmp_path)]) == 0
    assert capsys.readouterr().out == ""
    pages = {path.stem: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    assert pages.keys() == {"ptunnel", *(f"ptunnel-{name}" for name in COMMANDS)}
    for name, page in pages.items():
        assert page.startswith(f".TH {name.upper()} 1 ")
        assert "\b" not in page
        assert not re.search(r"^['.](?!TH|SH|SS|TP|PP|nf|fi|B |BR )", page, re.MULTILINE)
    assert ".BR ptunnel\\-connect (1)" in pages["ptunnel"]
    assert ".SS ptunnel forward add " in pages["ptunnel-forward"].replace("\\-", "-")
    assert ".B \\-\\-socks" in pages["ptunnel-connect"]
    assert run(["man", "--into", str(tmp_path / "nowhere")]) == 2
    assert "takes no manual page" in capsys.readouterr().err


# -- a code, however it is typed

quotes = st.sampled_from(
    ("{}", " {} ", "'{}'", '"{}"', "“{}”", "„{}“", "«{}»", "‘{}’", "({})", "{}.", "“{}”.", "`{}`", "<{}>", "{},")
)
gaps = st.sampled_from(("-", " ", "--", "\u2013", "\u2011", ". ", "_", "\u00a0", ""))


@given(quotes, gaps, st.booleans(), st.sampled_from(("", "@rv.example.net", " @ rv.example.net", "@rv.example.net:99")))
def test_a_code_is_taken_however_a_chat_or_a_person_writes_it(quote: str, gap: str, is_loud: bool, server: str) -> None:
    typed = gap.join(("731", "garden", "violin"))
    typed = quote.format((typed.upper() if is_loud else typed) + server)
    assert looks_like_code(typed)
    assert str(parse_code(typed)) == "731-garden-violin"
    assert split_server(typed)[1] == (server.strip(" @") or None)


def test_a_code_in_several_words_is_one_and_nothing_else_is_joined() -> None:
    assert joined_code(["731", "Garden", "violin", "--server", "rv"]) == ["731 Garden violin", "--server", "rv"]
    assert joined_code(["--server", "rv", "731", "garden", "violin", "zoo"]) == ["--server", "rv", "731 garden violin zoo"]
    for words in (["expose", "22", "8080"], ["connect", "home"], ["731", "garden"], ["--timeout", "731", "garden", "violin"]):
        assert joined_code(words) == words


def test_a_code_in_the_environment_may_be_quoted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PTUNNEL_CODE", f'"{ROOM}@rv.example.net".')
    assert run(["connect"]) == 2
    assert capsys.readouterr().err == f"ptunnel: {IS_ROOM.format('rv.example.net')}\n"


def test_the_prompt_says_where_a_code_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def read_line(text: str, _candidates: object) -> str:
        asked.append(text)
        return "„731 garden violin“."

    monkeypatch.setattr(prompt, "_read_line", read_line)
    for completes in (True, False):
        monkeypatch.setattr(prompt, "_completes", lambda completes=completes: completes)
        parse_code(prompt.ask_code())
    assert asked == ["Code (the other computer shows it; Tab completes): ", "Code (the other computer shows it): "]


# -- what is said unasked


def test_expose_says_what_nobody_listens_on_yet(capsys: pytest.CaptureFixture[str]) -> None:
    from tunnel.cli.expose import warn_of_silence
    from tunnel.host.listening import listening

    if listening() is None:
        pytest.skip("what listens here cannot be known")
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # taken, so that nobody comes to listen there
        loud, quiet = server.getsockname()[1], silent.getsockname()[1]
        warn_of_silence(list(GrantSet.parse(str(loud), str(quiet), f"web=192.168.1.5:{quiet}")), Output())
        assert capsys.readouterr().err == f"Nothing listens on tcp/{quiet} here yet.\n"
        warn_of_silence(list(GrantSet.parse(str(loud), f"{min(loud, quiet)}-{max(loud, quiet)}")), Output())
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize("keep", [True, False])
def test_a_room_that_is_kept_tells_friends_to_keep_it(keep: bool, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    playing = Playing(Home(home), Settings(server="rv.example.net"), Output(), None, is_kept=keep)
    playing._handle(CodeReady(code=ROOM, expires_s=None))
    option = " --keep" if keep else ""
    assert f"sudo ptunnel lan join{option} --server rv.example.net\n" in capsys.readouterr().err


def test_a_port_that_another_connect_of_ours_has_is_named_with_its_process(
    home: Path, remember: Remember, capsys: pytest.CaptureFixture[str]
) -> None:
    remember("home")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        up, over = threading.Event(), threading.Event()

        async def other() -> None:
            process = Process(
                role="connect", links=list, close=lambda: None, details=lambda: {"forwards": [{"bind": f"127.0.0.1:{port}"}]}
            )
            async with serve_control(Home(home).run_dir(), process):
                up.set()
                await trio.to_thread.run_sync(over.wait)

        thread = threading.Thread(target=trio.run, args=(other,))
        thread.start()
        try:
            assert up.wait(20)
            assert run(["connect", "home", "--forward", f"{port}:22"]) == 2
        finally:
            over.set()
            thread.join(20)
    said = capsys.readouterr().err
    assert said.startswith("ptunnel: Another 'ptunnel connect' of yours (process ")
    assert f") has port {port}: end that one, or choose another port, as in " in said


def code_shown(capsys: pytest.CaptureFixture[str], home: Path, server: str, **more: Any) -> str:

    one = Exposing(Home(home), Settings(server=server), ["22"], list(GrantSet.parse("22")), [], False, Output(), **more)
    one._handle(CodeReady(code=CODE, expires_s=600.0))
    return capsys.readouterr().err


@pytest.mark.parametrize("server", ["rv.example.net", "rv.example.net:99", "[2001:db8::1]:24531", f"rv,pin={'ab' * 32}"])
def test_the_line_for_a_chat_is_taken_as_it_stands(server: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shlex

    from tunnel.cli.options import with_server_of

    shown = code_shown(capsys, home, server)
    [line] = [line for line in shown.splitlines() if "for a chat" in line]
    words = shlex.split(line.partition(":  ")[2] or line.partition("chat:")[2])
    assert words[:2] == ["ptunnel", "connect"]
    assert words[3:] == ["--forward", "2222:22"]
    code, settings = with_server_of(words[2], Settings())
    assert str(parse_code(code or "")) == CODE
    assert (settings.server or "").removesuffix(":24531") in (server, server.removesuffix(":24531"))


def test_a_qr_code_is_drawn_when_it_is_asked_for(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.get_terminal_size", lambda **_: (120, 60))
    assert "▄" not in code_shown(capsys, home, "rv.example.net")
    shown = code_shown(capsys, home, "rv.example.net", has_picture=True)
    assert "That line, to be scanned:\n" in shown
    assert "▄" in shown
    monkeypatch.setattr("shutil.get_terminal_size", lambda **_: (80, 12))
    assert "larger window" in code_shown(capsys, home, "rv.example.net", has_picture=True)


def test_nobody_at_the_terminal_is_asked_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("731-garden-violin\n"))
    assert run(["connect"]) == 2
    assert "run it on a terminal" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("by_peer", "reason"), [(False, "you have forgotten it"), (True, "you were removed from the peer's list")]
)
def test_who_forgets_a_peer_is_not_told_to_have_been_forgotten(by_peer: bool, reason: str) -> None:
    from types import SimpleNamespace

    from tunnel.node.events import PeeringClosed
    from tunnel.shell.events import Closed
    from tunnel.shell.reports import to_event
    from tunnel.transport.connection.events import CloseCode, CloseReason

    peering: Any = SimpleNamespace(peer=SimpleNamespace(name="bob"))
    closed = CloseReason(CloseCode.FORGOTTEN, "you were removed from the peer's list", by_peer)
    assert to_event(PeeringClosed(peering=peering, reason=closed), Instant(0.0)) == Closed(reason=reason, peer="bob")
