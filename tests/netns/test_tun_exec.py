"""A command with a network of its own: it sees the tunnel and nothing else, as its own user, and changes nothing about it."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.netns.kernel import Namespace
from tests.netns.lab import eventually
from tests.netns.test_tun import config

#: An ordinary user: without any capability, in whatever namespace the tests run.
ORDINARY = ("unshare", "--user", "--map-user=1000", "--map-group=1000")
PROGRAM = """
import json, sys, threading, time, trio
from tunnel.errors import ConfigurationError
from tunnel.doors.tun.config import InterfaceConfig
from tunnel.doors.tun.namespace import CommandNotRunError, open_namespace_interface
from tunnel.doors.tun.tap import MAX_FRAME

orders = json.loads(sys.argv[1])
def tell(**facts):
    print(json.dumps(facts), file=sys.stderr, flush=True)

async def echo(device):
    "A member at 10.77.1.9 that answers UDP with the same payload."
    view = memoryview(bytearray(MAX_FRAME))
    while True:
        await device.wait_readable()
        while length := device.read_into(view):
            frame = bytearray(view[:length])
            if frame[22:24] == b"\\x08\\x00" and frame[33] == 17 and frame[40:44] == bytes((10, 77, 1, 9)):
                frame[:10] = bytes(10)
                frame[36:44] = frame[40:44] + frame[36:40]
                frame[44:48] = frame[46:48] + frame[44:46]
                frame[50:52] = bytes(2)
                device.writev([frame])

async def main():
    idle = threading.Thread(target=time.sleep, args=(60,), daemon=True)   # nothing of ours needs a process of one thread
    idle.start()
    started = time.perf_counter()
    interface = await open_namespace_interface(InterfaceConfig.from_json(orders["config"]), orders["command"])
    tell(ms=(time.perf_counter() - started) * 1e3, name=interface.name, facts=interface.facts, pid=interface._child.pid,
         offloads=interface.device.offloads, pyroute2="pyroute2" in sys.modules)
    try:
        await interface.set_names({"Home PC": ["10.77.1.1", "fd12:3456:789a::1"]})
        if orders.get("leave"):
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo, interface.device)
            async def change():
                for mtu in orders.get("mtus", []):
                    await interface.set_mtu(mtu)
                if "names" in orders:
                    await interface.set_names(orders["names"])
            async def forward(task_status):
                with trio.open_signal_receiver(2, 15) as signals:
                    task_status.started()
                    async for number in signals:
                        tell(signal=number)
                        if number == 15:
                            interface.send_signal(number)
            await nursery.start(forward)
            await interface.start_command()
            nursery.start_soon(change)
            code = await interface.wait_command()
            nursery.cancel_scope.cancel()
        sys.exit(code)
    finally:
        await interface.close()

try:
    trio.run(main)
except* CommandNotRunError as group:
    tell(error=str(group.exceptions[0]), code=group.exceptions[0].code)
except* ConfigurationError as group:
    tell(error=str(group.exceptions[0]))
except* SystemExit as group:
    sys.exit(group.exceptions[0].code)
"""
#: What a command says of its surroundings.
LOOK = """
import json, os, socket, subprocess
def announce(host):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        return s.sendto(b"any server?", (host, 7000))
def run(*words):
    done = subprocess.run(words, capture_output=True, text=True)
    return [done.returncode, done.stdout.strip()]
def status(field):
    return next(line.split()[1] for line in open("/proc/self/status") if line.startswith(field + ":"))
def reach(address):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(5)
        try:
            s.sendto(b"hello", address)
            return s.recv(100).decode()
        except OSError as error:
            return type(error).__name__ if isinstance(error, TimeoutError) else error.strerror
def pry():
    keepers = []
    for pid in os.listdir("/proc"):
        try:  # processes come and go
            words = open(f"/proc/{pid}/cmdline", "rb").read() if pid.isdigit() and int(pid) != os.getpid() else b""
            if b"tunnel.doors.tun.inside import main" in words:
                keepers.append(pid)
        except OSError:
            continue
    opened = []
    for pid in [str(os.getppid()), *keepers]:
        for what in ("mem", "ns/net", "root/etc/hosts", "environ", *(f"fd/{number}" for number in range(32))):
            try:
                os.close(os.open(f"/proc/{pid}/{what}", os.O_RDONLY))
            except OSError:
                continue
            opened.append(what)
    return [len(keepers) > 0, opened]
print(json.dumps({
    "pry": pry(),
    "links": sorted(link["ifname"] for link in json.loads(run("ip", "-j", "link")[1])),
    "addresses": sorted(a["local"] for link in json.loads(run("ip", "-j", "addr")[1]) for a in link["addr_info"]),
    "sys": sorted(os.listdir("/sys/class/net")), "uid": os.getuid(), "gid": os.getgid(),
    "caps": [int(status(field), 16) for field in ("CapInh", "CapPrm", "CapEff", "CapAmb")], "nnp": status("NoNewPrivs"),
    "owner": os.stat("/proc/self").st_uid, "pgrp": os.getpgrp(), "ppid": os.getppid(), "fds": len(os.listdir("/proc/self/fd")),
    "set": run("ip", "link", "set", "lan0", "mtu", "1300")[0], "add": run("ip", "addr", "add", "10.9.9.9/24", "dev", "lan0")[0],
    "nested": run("unshare", "-Ur", "ip", "link", "set", "lan0", "mtu", "1300")[0],
    "outside": run("nsenter", "-t", str(os.getppid()), "-n", "true")[0],
    "children": open(f"/proc/self/task/{os.getpid()}/children").read(),
    "member": reach(("10.77.1.9", 7000)), "host": reach(("192.168.7.2", 7000)), "world": reach(("192.88.99.1", 7000)),
    "announced": [announce(host) for host in ("255.255.255.255", "10.77.1.255", "239.255.255.250", "224.0.2.60")],
    "getent": run("getent", "hosts", "home-pc.ptunnel")[1].split(), "ping": run("ping", "-c1", "-W5", "127.0.0.1")[0],
    "resolv": open("/etc/resolv.conf").read() if os.path.exists("/etc/resolv.conf") else "",
}))
raise SystemExit(7)
"""


class Exec:
    """The program above with a command, in a namespace that plays the host."""

    def __init__(
        self, space: Namespace, command: list[str], prefix: tuple[str, ...] = (), terminal: int | None = None, **orders: Any
    ) -> None:
        words = [
            *prefix,
            sys.executable,
            "-c",
            PROGRAM,
            json.dumps({"config": config(3).to_json(), "command": command, **orders}),
        ]
        stream: Any = subprocess.PIPE if terminal is None else terminal
        self.process = space.popen(words, stdin=stream, stdout=stream, stderr=subprocess.PIPE, start_new_session=terminal is None)

    def told(self) -> dict[str, Any]:
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        assert line.startswith("{"), line + self.process.stderr.read()
        return dict(json.loads(line))

    def finish(self) -> tuple[int, str]:
        """Exit code and standard output."""
        out, self.errors = self.process.communicate(timeout=30)
        return self.process.returncode, out or ""

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()


Starter = Callable[..., Exec]


@pytest.fixture
def space() -> Iterator[Namespace]:
    """A host with an ethernet of its own and somebody listening on it."""
    space = Namespace("exec")
    space.ip(
        "link set lo up\nlink add eth0 type veth peer name far\nlink set eth0 up\nlink set far up\n"
        "addr add 192.168.7.2/24 dev eth0"
    )
    with space.socket() as listener:
        listener.bind(("0.0.0.0", 7000))
        yield space
    space.close()


@pytest.fixture
def start(space: Namespace) -> Iterator[Starter]:
    started: list[Exec] = []

    def start(*command: str, **options: Any) -> Exec:
        started.append(Exec(space, list(command), **options))
        return started[-1]

    yield start
    for one in started:
        one.kill()


def processes_of(pid: int) -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit() and _parent(path) == pid]


def _parent(path: Path) -> int:
    try:
        return int((path / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1])
    except OSError:
        return -1


@pytest.mark.parametrize("user", ["root", "ordinary"])
def test_a_command_sees_the_tunnel_and_nothing_else(start: Starter, user: str) -> None:
    prefix = ORDINARY if user == "ordinary" else ()
    program = start(sys.executable, "-c", LOOK, prefix=prefix)
    first = program.told()
    assert (first["name"], first["facts"], first["pyroute2"]) == ("lan0", [], False)
    assert first["offloads"]
    code, out = program.finish()
    assert code == 7, program.errors
    seen = json.loads(out)
    assert seen["links"] == seen["sys"] == ["lan0", "lo"]
    assert {"10.77.1.3", "fd12:3456:789a::3", "fe80::7074:0:0:3"} <= set(seen["addresses"])
    assert (seen["uid"], seen["gid"]) == ((1000, 1000) if prefix else (0, 0))
    assert seen["owner"] == seen["uid"], "its files are its own"
    assert seen["caps"] == [0] * 4
    assert seen["nnp"] == "1"
    assert seen["fds"] <= 4, "standard input, output, error, and the folder that is being listed"
    assert 0 not in [seen[what] for what in ("set", "add", "nested", "outside")], "it can change nothing, nor look outside"
    assert seen["pry"] == [True, []], "neither who carries its packets nor the keeper shows it descriptors or memory"
    assert seen["children"] == "", "it has no child that it did not start"
    assert seen["member"] == "hello"
    assert seen["host"] == seen["world"] == "Network is unreachable"
    assert seen["announced"] == [11] * 4, "without a default route, broadcast and multicast have one of their own"
    assert seen["getent"][-1] == "home-pc.ptunnel"
    assert seen["ping"] == 0
    assert "nameserver" not in seen["resolv"]
    print(f"{user}: ready in {first['ms']:.0f} ms")


def test_names_and_mtu_change_while_it_runs_and_the_hosts_own_file_does_not(start: Starter) -> None:
    before = Path("/etc/hosts").read_bytes()
    script = (
        "import socket, time\nend = time.monotonic() + 20\nfound = ()\n"
        "while found != ('10.77.1.2', '1372') and time.monotonic() < end:\n"
        "    time.sleep(0.02)\n"
        "    try:\n        found = socket.gethostbyname('laptop.ptunnel'), open('/sys/class/net/lan0/mtu').read().strip()\n"
        "    except OSError:\n        pass\n"
        "print(*found, 'home-pc' in open('/etc/hosts').read())"
    )
    program = start(sys.executable, "-c", script, mtus=[1280, 1372], names={"laptop": ["10.77.1.2"]})
    assert program.finish() == (0, "10.77.1.2 1372 False\n")
    assert Path("/etc/hosts").read_bytes() == before


def test_a_command_that_asks_for_its_machines_own_name_gets_the_address_in_the_room(start: Starter) -> None:
    script = (
        "import socket, time\nend = time.monotonic() + 20\nfound = ''\n"
        "while found != '10.77.1.3' and time.monotonic() < end:\n"
        "    time.sleep(0.02)\n"
        "    try:\n        found = socket.gethostbyname(socket.gethostname())\n"
        "    except OSError:\n        pass\n"
        "print(found)"
    )
    assert start(sys.executable, "-c", script).finish() == (0, "10.77.1.3\n")


def test_output_ends_when_the_command_ends(start: Starter) -> None:
    """The keeper that stays behind holds no pipe open."""
    program = start("sh", "-c", "echo done")
    started = time.monotonic()
    assert program.finish() == (0, "done\n")
    assert time.monotonic() - started < 20


def test_a_command_that_is_killed_gives_a_shells_exit_code(start: Starter) -> None:
    program = start("sh", "-c", "kill -KILL $$")
    assert program.finish()[0] == 128 + signal.SIGKILL, program.errors


def test_a_signal_is_passed_on(start: Starter) -> None:
    program = start("sh", "-c", "trap 'echo ended; exit 5' TERM; echo ready; for n in $(seq 400); do sleep 0.05; done")
    assert program.process.stdout is not None
    assert program.process.stdout.readline() == "ready\n"
    program.process.send_signal(signal.SIGTERM)
    assert program.finish() == (5, "ended\n")


@pytest.mark.parametrize(("command", "code"), [("no-such-command", 127), ("/etc/passwd", 126)])
def test_a_command_that_cannot_be_run_is_told(start: Starter, command: str, code: int) -> None:
    program = start(command)
    program.told()
    told = program.told()
    assert told["code"] == code
    assert told["error"].startswith(f"{command} cannot be run: ")


def test_a_command_never_started_leaves_nothing(start: Starter) -> None:
    program = start("sh", "-c", "echo never", leave=True)
    pid = program.told()["pid"]
    assert program.finish() == (0, "")
    assert not Path(f"/proc/{pid}").exists()


def test_when_we_are_killed_the_keeper_and_the_interface_go(start: Starter) -> None:
    program = start("sh", "-c", "echo ready; exec sleep 30")
    pid = program.told()["pid"]
    assert program.process.stdout is not None
    program.process.stdout.readline()
    namespace = os.readlink(f"/proc/{pid}/ns/net")

    def inhabitants() -> list[str]:
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if os.readlink(path / "ns/net") == namespace:
                    found.append(path.name)
            except OSError:
                continue
        return found

    assert len(inhabitants()) == 2, "the command and its keeper"
    program.process.kill()
    program.process.wait()
    eventually("the keeper has ended", lambda: inhabitants() == [str(pid)])
    devices = Path(f"/proc/{pid}/net/dev").read_text(encoding="ascii")
    os.kill(pid, signal.SIGKILL)
    assert "lan0" not in devices


def test_the_terminal_and_its_process_group_are_the_commands(start: Starter) -> None:
    """Under a terminal of our own: the command is in the foreground, and Ctrl-C reaches it."""
    ours, theirs = pty.openpty()
    script = (
        "import os, signal, sys, time\n"
        "try:\n    print('foreground', os.isatty(0) and os.tcgetpgrp(0) == os.getpgrp(), flush=True)\n    time.sleep(20)\n"
        "except KeyboardInterrupt:\n    print('interrupted', flush=True)\n    sys.exit(3)\n"
    )
    program = start(sys.executable, "-c", script, terminal=theirs, prefix=("setsid", "--ctty", "--wait"))
    os.close(theirs)
    program.told()
    seen = b""

    def wait_for(words: bytes) -> None:
        nonlocal seen
        while words not in seen:
            seen += os.read(ours, 1000)

    wait_for(b"foreground True")
    os.write(ours, b"\x03")
    wait_for(b"interrupted")
    assert program.process.wait(20) == 3
    os.close(ours)


# ------------------------------------------------------------ where namespaces are refused


LIMITED = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'


def test_where_user_namespaces_are_refused_the_sentence_says_what_to_do(start: Starter) -> None:
    prefix = (
        "unshare",
        "--user",
        "--map-root-user",
        "sh",
        "-c",
        LIMITED,
        "sh",
        "setpriv",
        "--bounding-set=-all",
        "--inh-caps=-all",
    )
    told = start("true", prefix=prefix).told()
    assert "sudo sysctl -w user.max_user_namespaces=10000" in told["error"]
    assert "sudo." in told["error"]


def test_root_needs_no_user_namespace(start: Starter) -> None:
    prefix = ("unshare", "--user", "--map-root-user", "--net", "sh", "-c", LIMITED, "sh")
    program = start(sys.executable, "-c", LOOK, prefix=prefix)
    program.told()
    code, out = program.finish()
    seen = json.loads(out)
    assert (code, seen["links"], seen["caps"], seen["member"]) == (7, ["lan0", "lo"], [0] * 4, "hello")
    assert 0 not in [seen[what] for what in ("set", "add", "outside")]
