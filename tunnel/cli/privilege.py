"""The command to suggest where a network interface needs root."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from typing import Final

#: Where sudo looks for commands, on Debian and its kin (secure_path of sudoers).
KNOWN_TO_SUDO: Final = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")


def require_interface() -> None:
    """Raises ConfigurationError; where only privilege is missing, with the command that has it and the one that needs none."""
    from tunnel.errors import ConfigurationError
    from tunnel.room import verbs as lan

    if lan.lacks_privilege():
        raise ConfigurationError(
            f"Making a network interface needs root. Run:  {with_sudo()}  or, without root:  {without_root()}"
        )
    lan.require_host_interface()


def without_root() -> str:
    """How a program alone enters the room that this command is about."""
    kept = []
    for word, behind in zip(sys.argv[1:], [*sys.argv[2:], ""], strict=True):
        name, equals, _ = word.partition("=")
        if name in ("--server", "--peer"):
            kept += [word] if equals else [word, behind]
    return shlex.join(["ptunnel", "exec", *kept, "--", "YOUR-GAME"])


def with_sudo() -> str:
    """This very command as root runs it: sudo does not look where virtual environments are."""
    program, *words = sys.argv
    if os.path.basename(program) == "__main__.py":
        return shlex.join(["sudo", sys.executable, "-m", "tunnel", *words])
    found = shutil.which(program) or program
    is_known = os.path.dirname(found) in KNOWN_TO_SUDO
    return shlex.join(["sudo", os.path.basename(found) if is_known else os.path.abspath(found), *words])
