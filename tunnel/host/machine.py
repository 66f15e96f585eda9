"""Identifiers of this machine, for as long as it is installed, and of this copy of a directory, for as long as it runs."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import sys
from contextlib import suppress
from typing import Final

FILES: Final = ("/etc/machine-id", "/var/lib/dbus/machine-id")  # machine-id(5)
BOOT: Final = "/proc/sys/kernel/random/boot_id"  # random(4); of the kernel, so containers share it
MAX_SIZE: Final = 64  # bytes of it that count


def machine_id() -> bytes:
    """Secret enough not to be told as it is; empty where the system has none, as in most containers."""
    if sys.platform == "win32":
        return _from_registry()
    if sys.platform == "darwin":
        return _from_hardware()
    for name in FILES:
        with suppress(OSError), open(name, "rb") as file:
            found = file.read(MAX_SIZE).strip()
            if len(found) >= 32:  # "uninitialized" stands there in images of machines
                return found
    return b""


def place_id(directory: str | os.PathLike[str]) -> bytes:
    """Return an identifier that a copy of this directory, in use on another machine or in a container, does not have.

    It changes when the machine starts anew.  Empty where nothing tells that.
    """
    kernel = b""
    with suppress(OSError), open(BOOT, "rb") as file:
        kernel = file.read(MAX_SIZE).strip()
    kernel = kernel or machine_id()
    if not kernel:
        return b""
    try:
        found = os.stat(directory)
    except OSError:
        return b""
    return b"%b %d %d" % (kernel, found.st_dev, found.st_ino)


def _from_registry() -> bytes:
    if sys.platform == "win32":
        import winreg

        with suppress(OSError), winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, r"SOFTWARE\Microsoft\Cryptography") as key:
            return str(winreg.QueryValueEx(key, "MachineGuid")[0]).encode()[:MAX_SIZE]
    return b""


def _from_hardware() -> bytes:
    """gethostuuid(3)."""
    found, patience = ctypes.create_string_buffer(16), (ctypes.c_long * 2)(1, 0)
    with suppress(OSError, AttributeError):
        if ctypes.CDLL(ctypes.util.find_library("c")).gethostuuid(found, patience) == 0:
            return found.raw
    return b""
