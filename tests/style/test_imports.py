"""The arrows between the folders: who may import whom, and what from outside."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Iterable

from tests.style.source import ROOT, Import, Module, modules

# A folder is named without `tunnel.`; the longest name that fits is a module's folder.
BASE = {"units", "errors", "notation", "ends"}
WALLS = {"faults", *BASE}
SETTINGS = {"settings", "server_spec"}

#: The sans-IO core: bytes and `now` in; datagrams, a deadline and events out.
SANS_IO = {"core", "transport", "nat", "rendezvous", "pairing", "dht", "node", "room.core", "room.ip"}

#: folder -> the folders that it may import, besides itself.
ARROWS: dict[str, set[str]] = {
    "": {"ports", "server_spec", "shell", "events", "lan", *BASE},  # tunnel/__init__.py: the public API, re-exported
    "__main__": {"cli"},
    "events": {"shell"},  # public names
    "lan": {"room"},  # the same
    # the core
    "core": BASE,
    "transport": {"core", *BASE},
    "nat": {"core", *BASE},
    "rendezvous": {"core", *BASE},
    "pairing": {"core", *BASE},
    "dht": {"core", "rendezvous", *BASE},
    "node": {"core", "transport", "nat", "rendezvous", "pairing", *BASE},
    "room.core": {"core", "node", "pairing", "transport", *BASE},
    "room.ip": {"core", *BASE},
    # the machine
    "doors.udp": BASE,
    "doors.tls": {"core", *WALLS},
    "doors.tun": {"core", *WALLS},
    "state": {"room.core", *BASE},
    "host": {"core", *BASE},
    "telemetry": {"core", "disk", *WALLS},
    # trio around the core
    "shell": {
        "core", "transport", "nat", "pairing", "node", "rendezvous", "dht", "doors.udp", "doors.tls", "host", *SETTINGS,
        *WALLS,
    },
    # what people use
    "setup": {"shell", "node", "pairing", "state", "host", "telemetry", "disk", *SETTINGS, *WALLS},
    "ports": {"setup", "shell", "pairing", "core", "doors.udp", "host", "state", *SETTINGS, *WALLS},
    "room": {"room.core", "room.ip", "ports", "setup", "shell", "node", "pairing", "doors.tun", "state", *SETTINGS, *WALLS},
    "fleet": {"rendezvous", "shell", "core", "host", *BASE},
    "control": {"shell", *WALLS},
    "up": {"control", "room", "ports", "setup", "shell", "pairing", "host", "state", *SETTINGS, *WALLS},
    "page": {"page.place", "ports", *WALLS},
    "page.place": BASE,
    "cli": {
        "examples", "up", "page", "page.place",
        "room", "room.core", "ports", "setup", "control", "shell", "pairing", "host", "state", "telemetry", "fleet",
        *SETTINGS,
        *WALLS,
    },
    # modules of their own
    "faults": set(),
    "disk": BASE,
    "settings": {"page.place", "server_spec", "state", *BASE},
    "server_spec": BASE,
    "units": set(),
    "errors": set(),
    "ends": {"errors"},
    "notation": {"ends", "errors"},
    "examples": set(),
}  # fmt: skip

#: Inside the transport only `connection` composes the others, which never import one another.
TRANSPORT: dict[str, set[str]] = {
    "connection": {"stream", "packet", "recovery", "crypto"},
    "stream": set(),
    "packet": set(),
    "recovery": set(),
    "crypto": set(),
}

#: folder -> the packages from outside the standard library that it may import.
PACKAGES: dict[str, set[str]] = {
    "cli": {"click", "rich", "segno", "trio", "msgspec"},
    "fleet": {"trio", "coredis", "anyio"},
    "control": {"trio", "msgspec"},
    "page": {"h11", "msgspec", "segno", "trio"},
    "ports": {"trio", "msgspec"},
    "room": {"trio", "msgspec"},
    "room.core": {"msgspec", "cryptography"},
    "up": {"trio", "msgspec", "tomlkit"},
    "setup": {"trio"},
    "shell": {"trio"},
    "doors.udp": {"trio"},
    "doors.tls": {"trio", "cryptography"},
    "doors.tun": {"trio", "pyroute2"},
    "state": {"platformdirs", "msgspec"},
    "host": {"ifaddr", "pyroute2", "trio"},
    "settings": {"msgspec"},
    "telemetry": {"prometheus_client", "trio", "h11"},
    "nat": {"h11"},
    "pairing": {"spake2", "cryptography"},
    "rendezvous": {"msgspec"},
    "node": {"msgspec", "cryptography"},
    "transport": {"cryptography", "msgspec"},
}

#: What would bring a clock, chance, sockets, files or threads into the core.
NOT_IN_THE_CORE = {
    "asyncio", "datetime", "logging", "os", "pathlib", "random", "secrets", "select", "selectors", "shutil", "signal",
    "socket", "socketserver", "ssl", "subprocess", "tempfile", "threading", "time", "trio", "urllib", "uuid",
}  # fmt: skip

#: Modules that Windows or macOS lack.
NOT_EVERYWHERE = {"fcntl", "grp", "pwd", "pyroute2", "resource", "termios", "tty", "pty", "syslog", "spwd", "readline"}
ONLY_ON_LINUX = (
    "tunnel.doors.udp.linux",
    "tunnel.doors.udp.many",
    "tunnel.doors.udp.mmsg",
    "tunnel.doors.udp.run",
    "tunnel.doors.tun",
)


def folder_of(name: str) -> str:
    inner = name.removeprefix("tunnel").removeprefix(".")
    while inner and inner not in ARROWS:
        inner = inner.rpartition(".")[0]
    return inner


def is_known(name: str) -> bool:
    """Whether the table knows this module: all but `tunnel` itself and the front of the doors need a line of their own."""
    return name in {"tunnel", "tunnel.doors"} or folder_of(name) != ""


def test_every_module_is_in_a_folder_of_the_table() -> None:
    assert [module.name for module in modules() if not is_known(module.name)] == []


def wrong_arrows(module: Module) -> Iterable[str]:
    folder = folder_of(module.name)
    for found in module.imports:
        top = found.target.split(".")[0]
        place = f"{module.relative}:{found.line}"
        if top == "tunnel":
            target = folder_of(found.target)
            if target != folder and target not in ARROWS[folder]:
                yield f"{place}: {folder or 'tunnel'} may not import {found.target}"
        elif top not in sys.stdlib_module_names and top not in PACKAGES.get(folder, set()):
            yield f"{place}: {folder or 'tunnel'} may not import {found.target}"


def test_imports_follow_the_arrows() -> None:
    assert "\n".join(line for module in modules() for line in wrong_arrows(module)) == ""


def test_the_parts_of_the_transport_are_composed_by_the_connection_alone() -> None:
    wrong = [
        f"{module.relative}:{found.line}: {found.target}"
        for module in modules()
        if module.name.startswith("tunnel.transport.")
        for found in module.imports
        if found.target.startswith("tunnel.transport.")
        for here, there in [(module.name.split(".")[2], found.target.split(".")[2])]
        if here != there and there not in TRANSPORT[here]
    ]
    assert wrong == []


def test_the_core_has_no_clock_no_chance_and_no_sockets() -> None:
    wrong = [
        f"{module.relative}:{found.line}: {found.target}"
        for module in modules()
        if folder_of(module.name) in SANS_IO
        for found in module.imports
        if found.target.split(".")[0] in NOT_IN_THE_CORE and not found.for_typing
    ]
    assert wrong == []


def test_coverage_is_taken_of_the_core() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["coverage"]
    assert {folder.removeprefix("tunnel/").replace("/", ".") for folder in settings["run"]["source"]} == SANS_IO
    assert settings["report"]["fail_under"] > 90


def test_only_pake_knows_spake2() -> None:
    users = {module.name for module in modules() for found in module.imports if found.target.split(".")[0] == "spake2"}
    assert users <= {"tunnel.pairing.pake"}


def test_no_import_cycles() -> None:
    names = {module.name for module in modules()}
    edges = {
        module.name: sorted({
            found.target
            for found in module.imports
            if found.target in names and found.at_module_level and not found.for_typing and found.target != module.name
        })
        for module in modules()
    }  # fmt: skip
    finished: set[str] = set()
    cycles: list[str] = []

    def visit(name: str, trail: list[str]) -> None:
        if name in trail:
            cycles.append(" -> ".join([*trail[trail.index(name) :], name]))
        elif name not in finished:
            for target in edges[name]:
                visit(target, [*trail, name])
            finished.add(name)

    for name in sorted(names):
        visit(name, [])
    assert cycles == []


def test_no_linux_only_import_at_module_level() -> None:
    def is_wrong(found: Import) -> bool:
        if not found.at_module_level or found.for_typing or found.guarded:
            return False
        return found.target.split(".")[0] in NOT_EVERYWHERE or found.target.startswith(ONLY_ON_LINUX)

    wrong = [
        f"{module.relative}:{found.line}: {found.target}"
        for module in modules()
        if not module.name.startswith(ONLY_ON_LINUX)
        for found in module.imports
        if is_wrong(found)
    ]
    assert wrong == []


ELSEWHERE = """
import builtins, importlib, socket, os
import trio, click, rich.console, rich.live, cryptography.hazmat.primitives.ciphers.aead     # these mind their own platform

absent = set({absent!r})
real_import = builtins.__import__
def guarded(name, globals=None, locals=None, fromlist=(), level=0):
    if globals and str(globals.get("__name__", "")).startswith("tunnel") and name.split(".")[0] in absent and not level:
        raise ModuleNotFoundError(f"No module named {{name!r}} on this system", name=name)
    return real_import(name, globals, locals, fromlist, level)
builtins.__import__ = guarded
for name in ("AF_UNIX", "AF_NETLINK", "AF_PACKET", "CMSG_SPACE", "CMSG_LEN", "SO_REUSEPORT", "SO_PEERCRED",
             "MSG_DONTWAIT", "SCM_RIGHTS", "SO_BINDTODEVICE", "SO_MARK", "IP_RECVTOS"):
    if hasattr(socket, name):
        delattr(socket, name)
for name in ("getuid", "geteuid", "fork", "O_CLOEXEC", "O_NONBLOCK", "O_NOFOLLOW", "O_DIRECTORY",
             "sched_getaffinity", "getresuid"):
    if hasattr(os, name):
        delattr(os, name)
for name in {names!r}:
    importlib.import_module(name)
"""


def test_everything_imports_where_linux_is_not() -> None:
    names = [
        module.name for module in modules() if not module.name.startswith(ONLY_ON_LINUX) and module.name != "tunnel.__main__"
    ]
    script = ELSEWHERE.format(absent=sorted(NOT_EVERYWHERE), names=names)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
