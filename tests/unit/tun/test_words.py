"""The children of this folder run from where this process has `tunnel`, whatever else is installed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import tunnel
from tunnel.doors.tun.process import python_words


def test_a_child_imports_the_package_that_its_parent_runs() -> None:
    words = python_words("json", "ignored")
    assert words[-2] == str(Path(tunnel.__file__).resolve().parents[1])
    script = "import sys; sys.path.insert(0, sys.argv.pop(1)); import tunnel; print(tunnel.__file__)"
    done = subprocess.run([*words[:3], script, words[-2]], capture_output=True, text=True, timeout=20, check=True, cwd="/")
    assert done.stdout.strip() == tunnel.__file__
