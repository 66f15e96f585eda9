"""The unit of `ptunnel up` on this machine: written, started, and removed."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from tunnel.errors import ConfigurationError, StateError
from tunnel.setup.units import UP, up_unit, up_unit_of_user

PATIENCE: Final = 100.0  # seconds for systemctl: a start may wait for a network, up to 90
SYSTEM_FOLDER: Final = Path("/etc/systemd/system")

Systemctl = Callable[[Sequence[str]], None]


def program() -> str:
    """The path of the command that runs now, which the unit starts.  Raises ConfigurationError."""
    found = shutil.which(sys.argv[0])
    if found is None or Path(found).name.startswith("python"):
        found = shutil.which("ptunnel")
    if found is None:
        raise ConfigurationError("No program 'ptunnel' is found in PATH, which the service could start: install it first.")
    return str(Path(found).absolute())


def unit_path(*, is_system: bool) -> Path:
    """Where it is written."""
    if is_system:
        return SYSTEM_FOLDER / UP
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "systemd" / "user" / UP


def unit_text(home: Path, owner: str, *, is_system: bool, is_usual: bool, has_room: bool = False) -> str:
    """It runs `up` with this PTUNNEL_HOME; `is_usual`: the one that the program takes by itself.

    `has_room`: with what an interface needs, which only the service of the machine can have.
    """
    if is_system:
        return up_unit(program(), owner=(owner, str(home)), has_room=has_room)
    return up_unit_of_user(program(), home=None if is_usual else str(home))


def make_home(path: Path, owner: str) -> None:
    """See that PTUNNEL_HOME is there, and the folders above it, as the service may make none outside.  They are its user's.

    Raises StateError.
    """
    import pwd

    entry = pwd.getpwnam(owner)
    missing = [each for each in (path, *path.parents) if not each.exists()]
    try:
        for each in reversed(missing):
            each.mkdir(mode=0o700)
            os.chown(each, entry.pw_uid, entry.pw_gid)
    except OSError as error:
        raise StateError(f"{path} cannot be made: {error.strerror}.") from None


def install(text: str, *, is_system: bool, systemctl: Systemctl | None = None) -> Path:
    """Write the unit and start it, now and with the system.  Raises ConfigurationError, StateError; nothing is left then."""
    run = systemctl or _systemctl(is_system=is_system)
    path = unit_path(is_system=is_system)
    before = path.read_text(encoding="utf-8") if path.exists() else None
    _write(path, text)
    try:
        run(["daemon-reload"])
        run(["enable", "--now", UP] if before is None else ["restart", UP])
    except ConfigurationError:
        if before is None:
            with contextlib.suppress(ConfigurationError):
                run(["disable", "--now", UP])  # it would be tried again and again
            path.unlink(missing_ok=True)
        else:
            _write(path, before)
        raise
    return path


def remove(*, is_system: bool, systemctl: Systemctl | None = None) -> Path:
    """Stop it and take the unit away.  Raises ConfigurationError, StateError."""
    run = systemctl or _systemctl(is_system=is_system)
    path = unit_path(is_system=is_system)
    if not path.exists():
        raise ConfigurationError(f"There is no service to remove: {path} is not there.")
    run(["disable", "--now", UP])
    try:
        path.unlink()
    except OSError as error:
        raise StateError(f"{path} cannot be removed: {error.strerror}.") from None
    run(["daemon-reload"])
    return path


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.new")
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(path)
    except OSError as error:
        raise StateError(f"{path} cannot be written: {error.strerror}.") from None


def _systemctl(*, is_system: bool) -> Systemctl:
    """Raises ConfigurationError where there is none."""
    path = shutil.which("systemctl")
    if path is None:
        raise ConfigurationError("This machine has no systemd: have its own service manager start 'ptunnel up'.")

    def run(words: Sequence[str]) -> None:
        command = [path, *([] if is_system else ["--user"]), *words]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
        except (OSError, subprocess.TimeoutExpired):
            raise ConfigurationError(f"'{' '.join(command)}' does not answer: try it by hand.") from None
        if done.returncode:
            told = [line for line in done.stderr.strip().splitlines() if not line.startswith("Created symlink")]
            why = (told or ["it does not say why"])[0]
            raise ConfigurationError(f"'{' '.join(command)}' has failed: {why}")

    return run
