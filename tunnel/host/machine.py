"""What tells this machine from others, for as long as it is installed."""

from __future__ import annotations

import ctypes
import ctypes.util
import sys
from contextlib import suppress
from typing import Final

FILES: Final = ("/etc/machine-id", "/var/lib/dbus/machine-id")  # machine-id(5)
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
