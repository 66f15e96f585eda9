"""What the commands say and choose, without a network."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.lowlevel
from click.testing import CliRunner

from tests.unit.cli.terminal import screen_of
from tunnel.cli import prompt
from tunnel.cli.expose import qr_picture, who_can_reach
from tunnel.cli.main import COMMANDS, TABLE, group, report, run
from tunnel.cli.meant import choose
from tunnel.cli.offers import forwards_for, other_command
from tunnel.cli.render import Output, columns, duration, listing, path_line, size
from tunnel.cli.running import ending_signals
from tunnel.cli.status import no_process
from tunnel.errors import (
    AlreadyRunningError,
    ConfigurationError,
    PairingError,
    PeerError,
    PermissionDeniedError,
    ServerUnreachableError,
    StateError,
    UnreachableError,
)
from tunnel.pairing.grants import GrantSet
from tunnel.server_spec import parse_server
from tunnel.settings import Settings, load
from tunnel.state.home import Home

Remember = Callable[..., object]


def test_help_reads_like_a_page() -> None:
    shown = CliRunner().invoke(group, ["--help"], prog_name="ptunnel")
    assert shown.exit_code == 0
    for part in ("ptunnel serve", "ptunnel connect home --stdio 22", "Exit codes:", "130", "PTUNNEL_HOME", "_PTUNNEL_COMPLETE"):
        assert part in shown.output
    assert max(map(len, shown.output.splitlines())) <= 100


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_with_examples(name: str) -> None:
    shown = CliRunner().invoke(group, [name, "--help"], prog_name="ptunnel")
    assert shown.exit_code == 0
    assert "Examples:" in shown.output
    assert "--json" in shown.output


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; from tunnel.cli.main import run; run(['--help']);"
        "print(*sorted({'trio', 'rich', 'segno', 'cryptography', 'msgspec', 'spake2'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert done.stderr.strip() == ""


#: What `connect` to a remembered peer over UDP needs not: other commands, pairing, TLS, rooms, the DHT, the page, measuring.
NOT_FOR_CONNECT = (
    "spake2", "h11", "segno", "prometheus_client", "tomlkit", "pyroute2", "_ssl", "idna.core", "statistics", "difflib",
    "encodings.idna", "tunnel.pairing.words", "tunnel.cli.bench",
    "tunnel.dht.client", "tunnel.doors.tls.client", "tunnel.page.server", "tunnel.rendezvous.server", "tunnel.room.core.room",
    "tunnel.up",
)  # fmt: skip


def test_connect_imports_nothing_that_it_does_not_need() -> None:
    script = (
        "from tunnel.cli.later import LATER, put_off; put_off(*LATER);"
        "import sys, tunnel.cli.main, tunnel.cli.connect, tunnel.ports.connecting, tunnel.control.server, tunnel.ports.stdio;"
        "from tunnel.doors.udp.socket import open_socket; open_socket('127.0.0.1', 0).close();"
        f"print(*sorted(set({NOT_FOR_CONNECT!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    ("problem", "code"),
    [
        (StateError("s"), 7), (AlreadyRunningError("s"), 8), (ConfigurationError("s"), 2), (PairingError("s"), 4),
        (PermissionDeniedError("s"), 6), (ServerUnreachableError("s"), 3), (UnreachableError("s"), 5), (PeerError("s"), 5),
        (KeyboardInterrupt(), 130), (ZeroDivisionError("s"), 1), (OSError(24, "too many"), 1), (BrokenPipeError(), 0),
        (ExceptionGroup("g", [ExceptionGroup("h", [PairingError("s")])]), 4),
        (ExceptionGroup("g", [ValueError("x"), PairingError("s")]), 4),
    ],
)  # fmt: skip
def test_every_exception_has_its_exit_code(
    problem: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tunnel.cli.main._silence_stdout", lambda: None)
    assert report(problem) == code
    assert "Traceback" not in capsys.readouterr().err


def test_the_table_goes_from_narrow_to_wide() -> None:
    kinds = [row[0] for row in TABLE]
    for rank, kind in enumerate(kinds):
        assert not any(issubclass(kind, earlier) for earlier in kinds[:rank])


# -- whom to connect to


@pytest.fixture
def person(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Somebody at the terminal, with answers to give."""
    answers: list[str] = []
    monkeypatch.setattr(prompt, "can_ask", lambda: True)
    monkeypatch.setattr(prompt, "_read_line", lambda text, candidates: answers.pop(0))
    return answers


def chosen(
    home: Path, given: str | None = None, *, is_new: bool = False, **settings: str | bool
) -> tuple[str | None, str | None]:
    return choose(Home(home), Settings(**settings), given, is_new=is_new, may_ask=True)  # type: ignore[arg-type]


def test_the_only_remembered_peer_is_meant(home: Path, remember: Remember) -> None:
    remember("home")
    assert chosen(home) == ("home", None)


def test_several_peers_are_asked_for(home: Path, remember: Remember, person: list[str]) -> None:
    remember("home")
    remember("office")
    person += ["nobody", "", "2"]
    assert chosen(home) == ("office", None)
    person.append("731-garden-violin")
    assert chosen(home) == (None, "731-garden-violin")


def test_without_peers_a_code_is_asked_for(home: Path, person: list[str]) -> None:
    person += ["731-gardn-violin", "731 garden violin"]
    assert chosen(home, server="rv") == (None, "731 garden violin")


def test_another_server_than_the_remembered_peers_is_a_reason_to_ask(home: Path, remember: Remember, person: list[str]) -> None:
    remember("home", server="old.example.net")
    person.append("731-garden-violin")
    assert chosen(home, server="new.example.net", is_server_given=True) == (None, "731-garden-violin")
    assert chosen(home, server="old.example.net", is_server_given=True) == ("home", None)


def test_a_code_by_argument_or_environment_needs_nobody(home: Path, remember: Remember) -> None:
    remember("home")
    assert chosen(home, "731-garden-violin") == (None, "731-garden-violin")
    assert chosen(home, code="731-garden-violin") == (None, "731-garden-violin")
    assert chosen(home, "HOME", code="731-garden-violin") == ("home", None)


def test_five_useless_answers_end_the_questions(home: Path, person: list[str]) -> None:
    person += ["x"] * 5
    with pytest.raises(ConfigurationError, match="No usable answer"):
        chosen(home, server="rv")


# -- what expose says


@pytest.mark.parametrize(
    ("grants", "forwards"),
    [
        (["22"], "2222:22"),
        (["8080"], "8080"),
        (["53/udp"], "5353:53/udp"),
        (["25565/tcp+udp"], "25565/tcp+udp"),
        (["5000-5010"], "5000-5010"),
        (["80-90"], "10080-10090:80-90"),
        (["nas=192.168.1.5:445"], "1445:nas"),
        (["games=10.0.0.2:7000-7002/udp"], "7000-7002:games:7000-7002/udp"),
        (["999"], "10999:999"),
    ],
)
def test_the_other_sides_command_uses_ports_that_anybody_may_open(grants: list[str], forwards: str) -> None:
    from tunnel.ports.spec import parse_forwards

    texts = forwards_for(list(GrantSet.parse(*grants)))
    assert " ".join(texts) == forwards
    assert parse_forwards(texts)


def test_the_other_sides_command_names_the_server_shortly() -> None:
    grants = list(GrantSet.parse("22"))
    assert other_command("rv.example.net", grants) == "ptunnel connect --server rv.example.net --forward 2222:22"
    assert "--server 192.168.1.5 " in other_command("192.168.1.5:24531", grants)
    assert "--server 192.168.1.5:9999 " in other_command("192.168.1.5:9999", grants)
    assert "--server '[2001:db8::1]:24531' " in other_command("[2001:db8::1]:24531", grants)
    for server in ("rv.example.net", "[2001:db8::1]:24531", "2001:db8::1"):
        parse_server(server)


def test_who_can_reach_an_embedded_server() -> None:
    assert who_can_reach("127.0.0.1:1") == "only this computer can reach it"
    assert "same network" in who_can_reach("192.168.1.5:24531")
    assert "whoever" in who_can_reach("8.8.8.8:24531")


def test_a_qr_code_is_drawn_where_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.get_terminal_size", lambda **_: (80, 50))
    assert "▄" in (qr_picture("ptunnel connect", "731-garden-violin") or "")
    monkeypatch.setattr("shutil.get_terminal_size", lambda **_: (80, 12))
    assert qr_picture("ptunnel connect", "731-garden-violin") is None


# -- peers


def test_peers_are_listed_renamed_and_forgotten(remember: Remember, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    remember("home")
    assert run(["peers"]) == 0
    heading, row = capsys.readouterr().out.splitlines()
    assert heading.split()[:1] == ["NAME"]
    assert row.startswith("home  tcp/22")
    assert run(["peers", "list", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["event"], record["peer"], record["grants"]) == ("peer", "home", ["tcp/22"])
    assert run(["peers", "rename", "home", "attic"]) == 0
    assert run(["peers", "forget", "attic"]) == 0
    assert "'attic' is forgotten." in capsys.readouterr().err
    assert Home(home).peers() == []


def test_names_of_peers_are_completed(remember: Remember) -> None:
    remember("home")
    remember("office")
    environment = {"_PTUNNEL_COMPLETE": "bash_complete", "COMP_WORDS": "ptunnel connect ho", "COMP_CWORD": "2"}
    shown = CliRunner().invoke(group, [], prog_name="ptunnel", env=environment)
    assert "home" in shown.output
    assert "office" not in shown.output


# -- settings


def test_flags_go_before_the_environment_and_that_before_the_file() -> None:
    file = {"server": "file.example.net", "path": "relay"}
    assert load(file, {}).server == "file.example.net"
    assert load(file, {"PTUNNEL_SERVER": "env.example.net"}).server == "env.example.net"
    settings = load(file, {"PTUNNEL_SERVER": "env.example.net"}, {"server": "flag.example.net", "path": None})
    assert (settings.server, settings.given_server, settings.path) == ("flag.example.net", "flag.example.net", "relay")
    assert load(file, {}).given_server is None


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("rv.example.net", ("rv.example.net", 24_531)),
        ("rv:1", ("rv", 1)),
        ("192.0.2.1:5", ("192.0.2.1", 5)),
        ("[2001:db8::1]:5", ("2001:db8::1", 5)),
        ("2001:db8::1", ("2001:db8::1", 24_531)),
        ("[fe80::1%eth0]:7", ("fe80::1%eth0", 7)),
    ],
)
def test_servers_are_read(text: str, server: tuple[str, int]) -> None:
    assert parse_server(text) == server


# -- figures


def test_figures_are_short() -> None:
    assert (size(999), size(1000), size(1_234_567), size(2e12)) == ("999 B", "1.0 kB", "1.2 MB", "2000 GB")
    assert (duration(600), duration(60), duration(7200)) == ("10 minutes", "60 seconds", "2 hours")
    assert (listing([]), listing(["a"]), listing(["a", "b", "c"])) == ("nothing", "a", "a, b and c")
    path = {"kind": "direct", "remote": "198.51.100.7:41641", "rtt_s": 0.023, "mtu": 1472}
    assert path_line(path) == "direct  udp 198.51.100.7:41641  rtt 23 ms  mtu 1472"
    idle = [path_line({**path, "rtt_age_s": age}).split("  ")[2] for age in (4.9, 12.4, 121.0, 7300.0)]
    assert idle == ["rtt 23 ms", "rtt 23 ms (12 s ago)", "rtt 23 ms (2 min ago)", "rtt 23 ms (2 h ago)"]
    assert columns([("A", "B"), ("long", "x")]) == ["A     B", "long  x"]


def test_json_leaves_stderr_alone(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(is_json=True)
    output.emit({"event": "renamed", "old": "home", "peer": "office"})
    output.say("for people")
    output.warn("for people")
    shown = capsys.readouterr()
    assert re.fullmatch(
        r'\{"event": "renamed", "old": "home", "peer": "office", "time": "2\d{3}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"\}\n',
        shown.out,
    )
    assert shown.err == ""


def test_without_a_terminal_nothing_is_live(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output()

    async def body() -> None:
        async with output.live(lambda: [("never shown", True)]):
            output.say("a line")
            output.warn("the same")
            output.warn("the same")

    trio.run(body)
    assert re.fullmatch(r"a line\n\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  the same\n", capsys.readouterr().err)


@pytest.mark.parametrize("is_early", [True, False])
def test_the_picture_goes_with_the_command_and_what_was_said_stays(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, is_early: bool
) -> None:
    """A link that is shown as direct below the last sentence is none any more."""
    monkeypatch.setenv("FORCE_COLOR", "1")  # by which rich takes the captured stream for a terminal
    monkeypatch.setenv("TERM", "xterm")
    output = Output()
    output.is_live = True

    async def body() -> None:
        async with output.live(lambda: [("ben  direct", False), ("Waiting for others", True)]):
            await trio.sleep(0.01)
            output.say("ben came.")
            if is_early:
                output.clear()
                output.say("ben left.")

    trio.run(body)
    shown = screen_of(capsys.readouterr().err)
    assert shown == ["ben came.", *(["ben left."] if is_early else [])]


@pytest.mark.parametrize(("handler", "ends"), [(signal.SIG_DFL, True), (signal.SIG_IGN, False)])
def test_nohup_is_heeded(handler: signal.Handlers, ends: bool) -> None:
    before = signal.signal(signal.SIGHUP, handler)
    try:
        assert (signal.SIGHUP in ending_signals()) is ends
        assert ending_signals() >= {signal.SIGINT, signal.SIGTERM}
        assert signal.SIGHUP in ending_signals(outlives_terminal=True), "a server has a use for it"
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        (["peers", "forget", "nobody", "--json"], "out"),
        (["exec", "--json", "--room", "nowhere", "--", "true"], "err"),
        (["exec", "--room", "nowhere", "--", "true", "--json"], ""),
    ],
)
def test_an_error_is_told_where_the_events_are_told_and_only_to_whoever_asked(
    arguments: list[str], where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Behind -- stands another program's command line; with `exec` standard output is that program's."""
    assert run(arguments) != 0
    shown = capsys.readouterr()
    objects = {name: [json.loads(line) for line in text.splitlines() if line.startswith("{")] for name, text in
               (("out", shown.out), ("err", shown.err))}  # fmt: skip
    assert [each["event"] for each in objects["out"]] == (["error"] if where == "out" else [])
    assert [each["event"] for each in objects["err"]] == (["error"] if where == "err" else [])


def test_a_process_that_does_not_answer_is_a_warning_and_the_others_are_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def ask_all(_run_dir: Path, _request: object, on_answer: Callable[[int, dict[str, Any]], None]) -> int:
        on_answer(7, {"event": "error", "code": "process_silent", "message": "Process 7 does not answer."})
        on_answer(8, {"event": "status", "pid": 8, "role": "connect", "uptime_s": 1.0, "links": []})
        return 2

    monkeypatch.setattr("tunnel.control.client.ask_all", ask_all)
    assert run(["status", "--json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(each["event"], each.get("code")) for each in events] == [("warning", "process_silent"), ("status", None)]


@pytest.mark.parametrize("words", [["status", "--check", "direct"], ["ping"], ["bench"]])
def test_where_running_commands_cannot_be_asked_that_is_said_and_not_that_none_runs(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Windows, where Python has no UNIX sockets."""
    for module in ("sockets", "client"):
        monkeypatch.setattr(f"tunnel.control.{module}.has_control_sockets", lambda: False)
    assert run(words) == 5
    assert "UNIX sockets, which Python does not have on Windows" in capsys.readouterr().err


def test_whoever_is_not_root_is_told_how_to_see_what_was_started_with_sudo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "'sudo ptunnel status'" in no_process()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "sudo" not in no_process()
