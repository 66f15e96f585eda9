"""The unit of `ptunnel up` is written, started and removed, and nothing is left of what fails."""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path

import pytest

from tunnel.cli.main import run
from tunnel.state.home import Home
from tunnel.up.config import read_wishes
from tunnel.up.service import make_home, unit_text

SYSTEMCTL = '#!/bin/sh\necho "$@" >> "$LOG"\n[ "$1 $2" != "--user $FAILS" ] || { echo "no bus" >&2; exit 1; }\n'


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A systemctl that notes what it is told, a ptunnel to be started, and a home that is not the usual one."""
    (tmp_path / "bin").mkdir()
    for name, text in (("systemctl", SYSTEMCTL), ("ptunnel", "#!/bin/sh\n")):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(stat.S_IRWXU)
    for variable, value in {
        "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin",
        "LOG": str(tmp_path / "log"),
        "FAILS": "",
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "PTUNNEL_HOME": str(tmp_path / "a home"),
    }.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr("sys.argv", ["ptunnel"])
    return tmp_path / "log"


def test_a_service_is_installed_and_removed(tmp_path: Path, log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unit = tmp_path / "config" / "systemd" / "user" / "ptunnel.service"
    assert run(["service", "install"]) == 0
    text = unit.read_text()
    assert f"ExecStart={tmp_path / 'bin' / 'ptunnel'} up" in text
    assert f'Environment="PTUNNEL_HOME={tmp_path / "a home"}"' in text
    assert log.read_text().splitlines() == ["--user daemon-reload", "--user enable --now ptunnel.service"]
    assert run(["service", "install"]) == 0  # once more, as after an upgrade
    assert log.read_text().splitlines()[-1] == "--user restart ptunnel.service"
    assert run(["service", "remove", "--json"]) == 0
    assert not unit.exists()
    assert log.read_text().splitlines()[-2:] == ["--user disable --now ptunnel.service", "--user daemon-reload"]
    assert run(["service", "remove"]) == 2
    assert "There is no service to remove" in capsys.readouterr().err


def test_what_systemd_refuses_leaves_no_unit(
    tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAILS", "enable")
    assert run(["service", "install"]) == 2
    assert "has failed: no bus" in capsys.readouterr().err
    assert "--user disable --now ptunnel.service" in log.read_text().splitlines(), "it would be tried again and again"
    assert not (tmp_path / "config" / "systemd" / "user" / "ptunnel.service").exists()


def test_a_file_that_cannot_be_read_is_told_before_anything_is_installed(
    tmp_path: Path, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a home").mkdir(mode=0o700)
    (tmp_path / "a home" / "config.toml").write_text("[[forward]]\npeers = 1\n")
    assert run(["service", "install"]) == 2
    assert "config.toml:" in capsys.readouterr().err
    assert not log.exists()


def test_a_room_in_the_file_has_the_service_of_the_machine_open_interfaces(tmp_path: Path, log: Path) -> None:
    (tmp_path / "a home").mkdir(mode=0o700)
    config = tmp_path / "a home" / "config.toml"
    for text, is_so in (
        ("", False),
        ('[[room]]\nname = "friends"\n', True),
        ('[[room]]\nname = "friends"\ninterface = false\n', False),
    ):
        config.write_text(text)
        has_room = read_wishes(Home(config.parent).config()).interfaces > 0
        unit = unit_text(config.parent, "ben", is_system=True, is_usual=False, has_room=has_room)
        assert ("AmbientCapabilities=CAP_NET_ADMIN" in unit) is is_so


def test_a_room_stays_closed_in_a_service_of_one_user_which_is_said(
    tmp_path: Path, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a home").mkdir(mode=0o700)
    (tmp_path / "a home" / "config.toml").write_text('[[room]]\nname = "friends"\n')
    assert run(["service", "install"]) == 0
    assert "sudo ptunnel service install --system" in capsys.readouterr().err


def test_the_home_of_a_service_is_made_with_the_folders_above_it(tmp_path: Path) -> None:
    """The walls of the unit let it make none."""
    owner = pwd.getpwuid(os.geteuid()).pw_name
    home = tmp_path / ".local" / "state" / "ptunnel"
    for _ in range(2):  # the second time it is there
        make_home(home, owner)
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
        assert home.parent.stat().st_uid == os.geteuid()
