"""The version under trial, put in the place of the one around these tests before anything of it is imported."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Final

OURS: Final = Path(__file__).resolve().parents[3]
TREE: Final = Path(os.environ.get("PTUNNEL_TREE") or OURS).resolve()
IS_OURS: Final = TREE == OURS

#: Where a module or folder lay before the folders were cut by feature; the longest name that fits counts.
FORMERLY: Final = {
    "tunnel.transport": "tunnel.proto",
    "tunnel.core": "tunnel.proto",
    "tunnel.core.prefixes": "tunnel.prefixes",
    "tunnel.nat": "tunnel.proto.nat",
    "tunnel.rendezvous": "tunnel.proto.rendezvous",
    "tunnel.pairing": "tunnel.proto.pairing",
    "tunnel.node": "tunnel.proto.endpoint",
    "tunnel.node.handshakes": "tunnel.proto.connection.handshakes",
    "tunnel.room": "tunnel.proto",
    "tunnel.room.core": "tunnel.proto.lan",
    "tunnel.room.core.membership": "tunnel.proto.endpoint.membership",
    "tunnel.room.ip": "tunnel.proto.ip",
    "tunnel.ports": "tunnel.forward",
    "tunnel.shell": "tunnel.driver",
    "tunnel.doors": "tunnel",
}


class Former(MetaPathFinder, Loader):
    """Finds a module of an older version under the name that it has today."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        fits = [name for name in FORMERLY if fullname == name or fullname.startswith(f"{name}.")]
        return ModuleSpec(fullname, self, is_package=True) if fits else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        name = max((name for name in FORMERLY if spec.name == name or spec.name.startswith(f"{name}.")), key=len)
        return importlib.import_module(FORMERLY[name] + spec.name.removeprefix(name))

    def exec_module(self, module: ModuleType) -> None:
        """It has run under its former name."""


def choose() -> None:
    """Import `tunnel` from TREE.  Raises ImportError where another one was imported before."""
    if IS_OURS:
        return
    sys.path.insert(0, str(TREE))
    if (TREE / "tunnel" / "proto").is_dir():
        sys.meta_path.insert(0, Former())
    import tunnel

    if not Path(tunnel.__file__).resolve().is_relative_to(TREE):
        raise ImportError(f"{tunnel.__file__} is not of PTUNNEL_TREE ({TREE}): run the tests of this folder alone")


def environment(**more: str) -> dict[str, str]:
    """For a process of that version."""
    return {**os.environ, "PYTHONPATH": str(TREE), "PYTHONDONTWRITEBYTECODE": "1", **more}
