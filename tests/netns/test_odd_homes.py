"""Homes on mounts that can only be read, as whole processes: what needs no writing works, and the rest is one sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.driver.programs import PATIENCE_S, Lab, echo_through, pair

READ_ONLY = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
NOWHERE = """
for place in / /tmp /var/tmp /dev/shm; do
    [ -d $place ] && mount --bind $place $place && mount -o remount,ro,bind $place
done
cd / && exec "$@"
"""


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    lab.close()


def reading(home: Path) -> list[str]:
    """What runs a command with this home on a file system that it can only read."""
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", READ_ONLY, str(home)]


def test_peers_meet_from_homes_that_can_only_be_read_and_a_new_one_is_not_remembered(lab: Lab, tmp_path: Path) -> None:
    for program in pair(lab)[1::-1]:
        program.end()
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    options = ("--server", lab.server)
    exposing = lab.run(
        lab.exposer, "expose", str(lab.port), *options, wrapper=reading(lab.exposer), TMPDIR=str(temporary),
    )  # fmt: skip
    code = exposing.wait("code")["code"]
    connecting = lab.run(
        lab.connector, "connect", "--forward", f"0:{lab.port}", wrapper=reading(lab.connector), TMPDIR=str(temporary),
    )  # fmt: skip
    assert echo_through(connecting.wait("forward")["bind"], b"hello") == b"hello"
    assert "warning" not in [event["event"] for event in connecting.events]

    again = lab.run(lab.exposer, "expose", *options, wrapper=reading(lab.exposer), TMPDIR=str(temporary))
    assert again.join() == 8
    asked = subprocess.run(
        [*reading(lab.connector), sys.executable, "-m", "tunnel", "ping", "home", "--json"],
        env={**os.environ, "PTUNNEL_HOME": str(lab.connector), "TMPDIR": str(temporary)},
        capture_output=True, text=True, timeout=PATIENCE_S * 2, check=False,
    )  # fmt: skip
    assert (asked.returncode, json.loads(asked.stdout.splitlines()[0])["event"]) == (0, "ping"), asked

    third = lab.run(tmp_path / "third", "connect", *options, "--forward", f"0:{lab.port}", "--name", "third", PTUNNEL_CODE=code)
    assert echo_through(third.wait("forward")["bind"], b"me too") == b"me too"
    said = exposing.wait("warning", code="not_saved")["message"]
    assert said.startswith("third is connected but cannot be remembered. ")
    assert said.endswith("peers.json cannot be written: Read-only file system.")


def test_where_nothing_at_all_can_be_written_a_server_serves_and_a_known_peer_exposes(lab: Lab, tmp_path: Path) -> None:
    """A container whose root is read-only: there is no place even for temporary files."""
    for program in pair(lab)[1::-1]:
        program.end()
    wrapper = ["unshare", "--mount", "--propagation", "private", "sh", "-c", NOWHERE, "sh"]
    serving = lab.run(tmp_path / "another", "serve", "--listen", "127.0.0.1:0", wrapper=wrapper)
    assert serving.wait("listening")["bind"]
    exposing = lab.run(lab.exposer, "expose", str(lab.port), "--server", lab.server, wrapper=wrapper)
    assert exposing.wait("code")["code"]
    asked = subprocess.run(
        [*wrapper, sys.executable, "-m", "tunnel", "status", "--json"],
        env={**os.environ, "PTUNNEL_HOME": str(lab.exposer)},
        capture_output=True, text=True, timeout=PATIENCE_S * 2, check=False,
    )  # fmt: skip
    assert asked.returncode == 7, asked
    assert "Read-only file system" in asked.stdout
