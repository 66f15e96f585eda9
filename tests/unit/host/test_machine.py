"""What tells this machine from others."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tunnel.host import machine

pytestmark = pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="those have no such file")


def test_the_first_file_that_holds_one_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    monkeypatch.setattr(machine, "FILES", (str(first), str(second)))
    assert machine.machine_id() == b""
    second.write_text("0123456789abcdef0123456789abcdef\n", encoding="ascii")
    assert machine.machine_id() == b"0123456789abcdef0123456789abcdef"
    first.write_text("uninitialized\n", encoding="ascii")  # as in an image that many machines are made of
    assert machine.machine_id() == b"0123456789abcdef0123456789abcdef"
    first.write_text("f" * 1_000_000, encoding="ascii")
    assert machine.machine_id() == b"f" * machine.MAX_SIZE


def test_a_copy_of_a_directory_is_another_place_and_so_is_the_same_one_under_another_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boot, home, copy = tmp_path / "boot_id", tmp_path / "home", tmp_path / "copy"
    monkeypatch.setattr(machine, "BOOT", str(boot))
    monkeypatch.setattr(machine, "FILES", ())
    home.mkdir()
    copy.mkdir()
    (tmp_path / "link").symlink_to(home)
    assert machine.place_id(home) == b"", "nothing tells it from others"
    boot.write_text("85b9f3a6-8c3f-4c36-a3f3-7b8b5d8a0d01\n", encoding="ascii")
    here = machine.place_id(home)
    assert here == machine.place_id(str(tmp_path / "link")) != b""
    assert machine.place_id(copy) != here
    assert machine.place_id(tmp_path / "none") == b""
    boot.write_text("00000000-8c3f-4c36-a3f3-7b8b5d8a0d01\n", encoding="ascii")
    assert machine.place_id(home) != here
