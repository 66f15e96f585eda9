"""What stands on a narrow screen: whole words, commands on lines of their own, the forward and the name first."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from tunnel.cli.connect import forward_line
from tunnel.cli.render import columns, folded, live_lines, short_path

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
