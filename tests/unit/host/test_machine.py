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
