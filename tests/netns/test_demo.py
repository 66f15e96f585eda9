"""scripts/demo, as root and in an unprivileged user namespace."""

from __future__ import annotations

import subprocess

import pytest

from tests.netns.kernel import ROOT


@pytest.mark.parametrize("words", [[], ["--unprivileged"]])
def test_the_demo_fits_on_one_screen_and_succeeds(words: list[str]) -> None:
    done = subprocess.run(
        [ROOT / "scripts" / "demo", *words], capture_output=True, text=True, timeout=110, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) <= 32
    assert max(map(len, lines)) <= 110
    assert "direct path to 192.88.99." in done.stdout
    assert "SHA-256 equal" in done.stdout
    assert "logged in at" in done.stdout
