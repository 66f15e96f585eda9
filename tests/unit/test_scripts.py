"""What a machine is told on which ptunnel is to be installed, with interpreters that only look like some."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.style.source import ROOT

#: An interpreter of a version, as far as the scripts ask.
FAKE = """#!/bin/bash
case "$1 $2" in
    "-V ") echo "Python {version}" ;;
    "-c import sys; sys.exit(sys.version_info < (3, 11))") exit {is_old} ;;
    "-m venv") mkdir -p "$4/bin"; cp "$0" "$4/bin/python"; cp {program} "$4/bin/ptunnel" ;;
    "-m pip") echo pip >> {log}; exit {pip_fails} ;;
esac
"""
PROGRAM = """#!/bin/bash
case "$1" in
    --version) echo "ptunnel 1.2.3" ;;
    man) for name in ptunnel ptunnel-connect; do echo ".TH PTUNNEL 1" > "$3/$name.1"; done ;;
    "") echo "$_PTUNNEL_COMPLETE" ;;
esac
"""

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="the scripts are bash's")


class Machine:
    """A PATH with the usual tools and these interpreters, and a copy of the project, in which the scripts make things."""

    def __init__(self, folder: Path, pip_fails: int = 0, **versions: str) -> None:
        self.log, program = folder / "log", folder / "program"
        self.log.touch()
        program.write_text(PROGRAM)
        program.chmod(0o755)
        self.project = folder / "project"
        shutil.copytree(ROOT / "scripts", self.project / "scripts")
        shutil.copy(ROOT / "pyproject.toml", self.project)
        self.bin = folder / "bin"
        self.bin.mkdir()
        for tool in ("bash", "dirname", "readlink", "mkdir", "touch", "cp", "rm", "ln", "timeout", "cat", "sha256sum", "cut",
                     "flock", "sleep", "head", "stat"):  # fmt: skip
            if (found := shutil.which(tool)) is not None:
                (self.bin / tool).symlink_to(found)
        for name, version in versions.items():
            path = self.bin / name.replace("_", ".")
            is_old = int(tuple(map(int, version.split(".")[:2])) < (3, 11))
            path.write_text(FAKE.format(version=version, is_old=is_old, program=program, log=self.log, pip_fails=pip_fails))
            path.chmod(0o755)

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", *words],
            cwd=self.project,
            env={"PATH": str(self.bin), **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )


@pytest.mark.parametrize(
    ("versions", "chosen"),
    [
        ({"python3": "3.12.1"}, "python3"),
        ({"python3": "3.10.13", "python3_11": "3.11.4"}, "python3.11"),
        ({"python3": "3.6.9", "python3_11": "3.11.4", "python3_13": "3.13.0"}, "python3.13"),
        ({"python3_12": "3.12.1"}, "python3.12"),
    ],
)
def test_the_interpreter_is_one_that_ptunnel_runs_on(versions: dict[str, Any], chosen: str, tmp_path: Path) -> None:
    done = Machine(tmp_path, **versions).run("-c", 'source scripts/python; echo "$python"')
    assert done.stdout.strip().endswith(f"/{chosen}")
    assert done.stderr == ""


@pytest.mark.parametrize(("shut", "chosen"), [("python3", "python3.11"), ("python3.11", "python3"), (None, "python3")])
def test_what_is_for_everybody_runs_on_an_interpreter_that_everybody_may_run(shut: str | None, chosen: str) -> None:
    """Root's own, as pyenv makes them, lie in a folder that nobody else may enter."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        machine = Machine(folder, python3="3.12.1", python3_11="3.11.4")
        if shut is not None:
            (folder / "root").mkdir(mode=0o700)
            (machine.bin / shut).rename(folder / "root" / shut)
            (machine.bin / shut).symlink_to(folder / "root" / shut)
        done = machine.run("-c", 'for_everybody=yes; source scripts/python; echo "$python"; everybody_runs "$python" && echo yes')
        assert done.stdout.split() == [str(machine.bin / chosen), "yes"]
        done = machine.run("-c", 'source scripts/python; echo "$python"')
        assert done.stdout.strip() == str(machine.bin / "python3"), "where it is for one user, as ever"


def test_what_is_installed_can_be_read_by_all_whatever_the_umask(tmp_path: Path) -> None:
    machine = Machine(tmp_path, python3="3.11.4")
    command = tmp_path / "usr" / "bin" / "ptunnel"
    command.parent.mkdir(parents=True)
    place = {"PTUNNEL_INSTALL_TO": str(tmp_path / "opt"), "PTUNNEL_INSTALL_COMMAND": str(command)}
    assert machine.run("-c", "umask 077; scripts/install", **place).returncode == 0
    for path in (tmp_path / "opt", tmp_path / "opt" / "bin", command, tmp_path / "usr" / "share" / "man" / "man1" / "ptunnel.1"):
        assert path.stat().st_mode & 0o004, path


@pytest.mark.parametrize("script", ["scripts/venv", "scripts/install"])
def test_an_interpreter_that_is_too_old_is_said_at_once(script: str, tmp_path: Path) -> None:
    machine = Machine(tmp_path, python3="3.10.13")
    done = machine.run(script, PTUNNEL_INSTALL_TO=str(tmp_path / "to"), PTUNNEL_INSTALL_COMMAND=str(tmp_path / "ptunnel"))
    assert done.returncode == 1
    assert done.stderr == (
        "ptunnel needs Python 3.11 or newer; this is Python 3.10.13. On Ubuntu 22.04: sudo apt install python3.11-venv\n"
    )
    assert machine.log.read_text() == "", "pip is not asked, nor asked again"


def test_what_is_installed_is_the_command_with_its_manual_and_both_go_again(tmp_path: Path) -> None:
    machine = Machine(tmp_path, python3="3.11.4")
    command = tmp_path / "usr" / "bin" / "ptunnel"
    command.parent.mkdir(parents=True)
    place = {"PTUNNEL_INSTALL_TO": str(tmp_path / "opt"), "PTUNNEL_INSTALL_COMMAND": str(command)}
    done = machine.run("scripts/install", **place)
    assert (done.returncode, done.stderr) == (0, "scripts/install: installed: ptunnel 1.2.3, for everybody, with sudo too\n")
    manual = tmp_path / "usr" / "share" / "man" / "man1" / "ptunnel.1"
    assert os.readlink(command) == str(tmp_path / "opt" / "bin" / "ptunnel")
    pages = [manual, manual.with_name("ptunnel-connect.1")]
    assert [page.read_text() for page in pages] == [".TH PTUNNEL 1\n"] * 2
    places = {
        "bash_source": "bash-completion/completions/ptunnel",
        "zsh_source": "zsh/site-functions/_ptunnel",
        "fish_source": "fish/vendor_completions.d/ptunnel.fish",
    }
    for what, name in places.items():
        assert (tmp_path / "usr" / "share" / name).read_text() == f"{what}\n"
    assert machine.run("scripts/install", "remove", **place).returncode == 0
    assert not command.exists()
    assert [page for page in pages if page.exists()] == []
    assert [name for name in places.values() if (tmp_path / "usr" / "share" / name).exists()] == []
    assert not (tmp_path / "opt").exists()
