"""What stands on a narrow screen: whole words, commands on lines of their own, the forward and the name first."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len

from tunnel.cli.connect import forward_line
from tunnel.cli.main import report
from tunnel.cli.peers import show
from tunnel.cli.render import FoldedLines, columns, folded, hanging, live_lines, short_path
from tunnel.errors import ServerUnreachableError
from tunnel.pairing.grants import GrantSet
from tunnel.state.home import Home
from tunnel.state.peers import Peer

STATUS = {"kind": "direct", "remote": "203.0.113.18:33982", "rtt_s": 0.022, "mtu": 1472, "send_rate": 113, "receive_rate": 0}


@pytest.mark.parametrize("width", [60, 80])
def test_sentences_break_between_words(width: int) -> None:
    text = "Sharing tcp/22 of this machine with one new peer. The code works once, for 10 minutes. さくら と ばら の にわ です よ"
    lines = folded(text, width)
    assert len(lines) > 1
    assert " ".join(lines) == text
    assert all(cell_len(line) <= width for line in lines)


def test_a_command_that_does_not_fit_behind_its_label_has_a_line_of_its_own() -> None:
    command = "ptunnel connect --server rv.example.net --forward 2222:22"
    text = f"{'On the other computer run:':<32}{command}"
    assert folded(text, 80) == ["On the other computer run:", f"  {command}"]
    assert folded(text, 120) == [text]


def test_a_command_is_not_broken_even_where_it_is_longer_than_the_screen() -> None:
    command = f"  ptunnel connect {'x' * 90} --forward 2222:22"
    assert folded(command, 80) == [command]


def test_columns_are_even_where_a_name_has_wide_letters() -> None:
    heading, ada, sakura = columns([("NAME", "SEEN"), ("ada", "today"), ("さくら", "now")])
    assert cell_len(heading.partition("SEEN")[0]) == cell_len(ada.partition("today")[0]) == cell_len(sakura.partition("now")[0])


def test_the_forward_of_ssh_says_how_it_is_used_and_fits_on_80_columns() -> None:
    line = forward_line("127.0.0.1:2222", "home", "tcp/22")
    assert line == "127.0.0.1:2222 -> home tcp/22      ssh -p 2222 USER@localhost"
    assert folded(line, 60) == ["127.0.0.1:2222 -> home tcp/22", "  ssh -p 2222 USER@localhost"]
    assert forward_line("[::1]:8080", "home", "tcp/80") == "[::1]:8080 -> home tcp/80"
    assert forward_line("192.168.1.5:2222", "home", "tcp/22") == "192.168.1.5:2222 -> home tcp/22", "localhost is not there"
    assert len(line) <= 80


@pytest.mark.parametrize("columns", ["60", "80"])
def test_a_name_of_60_letters_and_its_path_are_both_on_the_screen(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    name = "n" * 60
    lines = [text for text, _spins in live_lines([f"{name}  {short_path(STATUS)}"])]
    assert lines[0].startswith(name)
    assert "direct, 22 ms  up 113 B/s  down 0 B/s" in " ".join(lines)
    assert all(cell_len(line) <= int(columns) for line in lines)


def test_a_command_in_quotes_stays_on_one_line() -> None:
    text = "ptunnel: 'home' has forgotten this machine: ask there for a new code, for 'ptunnel connect --new'. It's gone."
    assert folded(text, 80)[-1] == "'ptunnel connect --new'. It's gone."
    assert " ".join(folded(text, 80)) == text
    assert folded("Nothing of it is  forwarded.", 12) == ["Nothing of", "it is", "forwarded."], "blanks are no words"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_why_a_command_failed_breaks_between_words_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    sentence = (
        "No ptunnel server answers at rv.example.net, UDP port 24531: is 'ptunnel serve' running there, or a firewall between?"
    )
    report(ServerUnreachableError(sentence))
    lines = terminal.getvalue().splitlines()
    assert len(lines) > 1
    assert all(len(line) <= 80 for line in lines)
    assert " ".join(lines) == f"ptunnel: {sentence}"
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stderr", pipe)
    report(ServerUnreachableError(sentence))
    assert pipe.getvalue() == f"ptunnel: {sentence}\n", "in a pipe it stays one line"


def test_peers_with_their_fingerprints_fit_on_80_columns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PTUNNEL_HOME", str(tmp_path))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("friend", "cleo"):
        grants = GrantSet.parse("22", "8080").to_dicts()
        Home(tmp_path).save_peer(
            Peer(name=name, static=name.encode().ljust(32), psk=bytes(32), server="rv.example.net", grants=grants)
        )
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    show(is_json=False)
    lines = screen.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == ["NAME", "cleo", lines[2].strip(), "friend", lines[4].strip()]
    assert all(len(line) <= 80 for line in lines)
    assert lines[2].startswith("  SHA256:")
    monkeypatch.setenv("COLUMNS", "200")
    screen.truncate(0)
    show(is_json=False)
    assert screen.getvalue().splitlines()[0].split()[-1] == "FINGERPRINT"


def test_a_row_that_is_too_long_goes_on_further_in() -> None:
    row = "  laptop-of-my-best-friend-cleo2  direct  udp [2001:db8::1:2:3:4]:17639  rtt 1.0 ms  mtu 1472  loss 0.0 %"
    assert hanging(row, 80) == [
        "  laptop-of-my-best-friend-cleo2  direct  udp [2001:db8::1:2:3:4]:17639  rtt 1.0",
        "      ms  mtu 1472  loss 0.0 %",
    ]
    assert hanging(row, 120) == [row]


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_the_log_of_v_breaks_between_words_on_a_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    one, other = "[2001:db8:1234:5678:9abc:def0:1234:5678]:46712", "[2001:db8:1234:5678:9abc:def0:1234:5679]:4199"
    text = f"Pair 1: {one} met {other} by a code; the relay is open to them."
    lines = FoldedLines("%(message)s").format(logging.makeLogRecord({"msg": text})).split("\n")
    assert " ".join(lines) == text
    assert all(len(line) <= max(columns, len(one)) for line in lines)
