"""The command that a person is told to type where an interface needs root."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tunnel.cli import privilege
from tunnel.errors import ConfigurationError
from tunnel.room import verbs as lan


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["/home/anna/.venv/bin/ptunnel", "lan", "create"], "sudo /home/anna/.venv/bin/ptunnel lan create"),
        (["/usr/local/bin/ptunnel", "lan", "join", "my game"], "sudo ptunnel lan join 'my game'"),
        (["/somewhere/tunnel/__main__.py", "lan", "create"], f"sudo {sys.executable} -m tunnel lan create"),
    ],
)
def test_the_command_is_the_one_that_sudo_finds(argv: list[str], told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(shutil, "which", lambda program: program)
    assert privilege.with_sudo() == told


def test_without_privilege_both_ways_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(lan, "lacks_privilege", lambda: True)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "ptunnel"), "lan", "create"])
    with pytest.raises(ConfigurationError) as refused:
        privilege.require_interface()
    assert f"sudo {tmp_path / 'ptunnel'} lan create" in str(refused.value)
    assert "ptunnel exec -- YOUR-GAME" in str(refused.value)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["lan", "join", "--server", "rv.example.net"], "ptunnel exec --server rv.example.net -- YOUR-GAME"),
        (["lan", "join", "--server=rv.example.net", "--keep"], "ptunnel exec --server=rv.example.net -- YOUR-GAME"),
        (["lan", "join", "--peer", "my home"], "ptunnel exec --peer 'my home' -- YOUR-GAME"),
    ],
)
def test_the_way_without_root_leads_to_the_same_room(words: list[str], told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/ptunnel", *words])
    assert privilege.without_root() == told
