"""The units for systemd: as systemd reads them, how much they leave open, and that the files are those that the code makes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.style.source import ROOT
from tunnel.host.notify import SIGNS_PER_PATIENCE
from tunnel.setup.units import UP, WATCHDOG, quoted, serve_unit, up_unit, up_unit_of_user

MOST_EXPOSED = 20  # tenths: `systemd-analyze security` gives 0 to 10
PATIENCE_S = 60
pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd reads its own units best")

OF_THE_MACHINE: dict[str, Callable[[str], str]] = {
    "serve": serve_unit,
    "serve, one of many": partial(serve_unit, is_template=True),
    "up": up_unit,
    "up, with a room": partial(up_unit, has_room=True),
    "up, at home": partial(up_unit, owner=("daemon", "/srv/my tunnels")),
}
OF_A_USER: dict[str, Callable[[str], str]] = {
    "usual": up_unit_of_user,
    "with a home": partial(up_unit_of_user, home='/srv/50% "mine"'),
}


def analyze(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", "--no-pager", *words],
        capture_output=True, text=True, timeout=PATIENCE_S, check=False, env={**os.environ, **environment},
    )  # fmt: skip


def made(folder: Path, text: str) -> str:
    path = folder / UP
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("which", OF_THE_MACHINE)
def test_a_unit_of_the_machine_leaves_little_open(which: str, tmp_path: Path) -> None:
    unit = made(tmp_path, OF_THE_MACHINE[which](sys.executable))
    done = analyze("security", "--offline=true", f"--threshold={MOST_EXPOSED}", unit)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Overall exposure level" in done.stdout


@pytest.mark.parametrize("which", OF_THE_MACHINE)
def test_systemd_finds_no_fault_with_a_unit_of_the_machine(which: str, tmp_path: Path) -> None:
    done = analyze("verify", "--man=no", made(tmp_path, OF_THE_MACHINE[which](sys.executable)))
    assert (done.returncode, ours(done.stderr)) == (0, [])


@pytest.mark.parametrize("which", OF_A_USER)
def test_systemd_finds_no_fault_with_a_unit_of_a_user(which: str, tmp_path: Path) -> None:
    done = analyze(
        "--user", "verify", "--man=no", made(tmp_path, OF_A_USER[which](sys.executable)), XDG_RUNTIME_DIR=str(tmp_path)
    )
    assert (done.returncode, ours(done.stderr)) == (0, [])


def ours(text: str) -> list[str]:
    """What is said of our unit; others of the machine may have faults."""
    return [line for line in text.splitlines() if UP in line]


def test_a_fault_of_a_unit_would_be_found(tmp_path: Path) -> None:
    wrong = serve_unit(sys.executable).replace("WatchdogSec=60", "WatchdogSec=often")
    assert ours(analyze("verify", "--man=no", made(tmp_path, wrong)).stderr) != []


@pytest.mark.parametrize(
    ("name", "text"),
    [("ptunnel-serve.service", serve_unit()), ("ptunnel-serve@.service", serve_unit(is_template=True)), (UP, up_unit())],
)
def test_the_units_in_scripts_are_those_that_the_code_makes(name: str, text: str) -> None:
    assert (ROOT / "scripts" / "units" / name).read_text(encoding="utf-8") == text


def test_a_service_waits_for_no_network_and_is_never_given_up() -> None:
    for text in (serve_unit(), up_unit(), up_unit_of_user()):
        assert "network-online" not in text
        assert "StartLimitIntervalSec=0" in text
        assert "Type=notify" in text
        assert f"WatchdogSec={WATCHDOG}" in text
        assert WATCHDOG / SIGNS_PER_PATIENCE >= 10, "a machine that is busy gives its signs late"


def test_a_folder_with_odd_letters_is_one_word() -> None:
    assert quoted("/usr/bin/ptunnel") == "/usr/bin/ptunnel"
    assert quoted('/srv/50% "mine"') == '"/srv/50%% \\"mine\\""'
    assert "ExecStart=/opt/pay$$/ptunnel up\n" in up_unit("/opt/pay$/ptunnel")
    assert 'Environment="PTUNNEL_HOME=/srv/my $HOME"\n' in up_unit_of_user(home="/srv/my $HOME")


def test_root_is_needed_for_a_room_alone() -> None:
    assert "CapabilityBoundingSet=\n" in up_unit()
    assert "tun" not in up_unit().partition("[Service]")[2].replace("ptunnel", "")
    assert "AmbientCapabilities=CAP_NET_ADMIN\n" in up_unit(has_room=True)
    assert "DeviceAllow=/dev/net/tun rw\n" in up_unit(has_room=True)
    assert "ReadWritePaths=/proc/sys/net\n" in up_unit(has_room=True), "the switches of an interface are there"
    filters = [line for line in up_unit(has_room=True).splitlines() if line.startswith("SystemCallFilter=")]
    assert filters[-1] == "SystemCallFilter=capset", "how it gives up what it has; it is one of @privileged"


def test_a_user_whose_files_the_service_of_the_machine_has_may_have_the_program_there_too() -> None:
    text = up_unit("/srv/ben/bin/ptunnel", owner=("ben", "/srv/ben/my tunnels"))
    assert "User=ben\n" in text
    assert "DynamicUser" not in text
    assert 'ProtectHome=read-only\nReadWritePaths="/srv/ben/my tunnels"\n' in text
