"""Network namespaces without names: each is an open descriptor, gone when the laboratory's process is gone."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWNET = 0x2_0000, 0x400_0000, 0x4000_0000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x4_0000
TUNSETIFF, IFF_TUN, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x1, 0x2, 0x1000
ROOT = Path(__file__).resolve().parents[2]

TOOLS = (
    "nft", "ip", "setpriv", "nsenter", "unshare", "prlimit", "ss", "conntrack", "sshd", "ssh", "scp", "ssh-keygen", "curl",
    "iperf3", "tcpdump", "dnsmasq", "dig", "stun", "turnserver", "turnutils_stunclient", "turnutils_natdiscovery",
    "miniupnpd", "timeout", "stdbuf",
)  # fmt: skip
"""What the laboratory and its tests call."""

# An ordinary user's PATH lacks the folders where half of them are.
os.environ["PATH"] = os.pathsep.join(
    dict.fromkeys([*os.environ.get("PATH", "/usr/bin:/bin").split(os.pathsep), "/usr/sbin", "/sbin"])
)

_libc = ctypes.CDLL(None, use_errno=True)
T = TypeVar("T")


class LabError(Exception):
    """The laboratory could not be built, or something in it did not come in time."""


def _in_thread(prepare: Callable[[], None], action: Callable[[], T]) -> T:
    """Run `action` in a thread of its own, whose namespace `prepare` changes; the thread is thrown away."""
    result: list[T] = []
    trouble: list[BaseException] = []

    def body() -> None:
        try:
            prepare()
            result.append(action())
        except BaseException as error:
            trouble.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if trouble:
        raise trouble[0]
    return result[0]


def _call(name: str, *arguments: int | bytes | None) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def why_unavailable() -> str | None:
    """None if this process may make namespaces and has what furnishes them, else the reason in one sentence."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} is missing; scripts/test says how to install it"
    try:
        Namespace("probe").close()
    except OSError as error:
        return f"no network namespaces may be made here ({error.strerror}); run scripts/test, or it under sudo"
    return None


def why_no_tap() -> str | None:
    """None if TAP devices may be made here, else the reason in one sentence: some containers lack the device file."""
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"/dev/net/tun may not be opened here ({error.strerror}), and these tests are of what is made of it"
    return None


class Namespace:
    """One network namespace, with what is needed to furnish it and to run programs in it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.fd = _in_thread(
            lambda: _call("unshare", CLONE_NEWNET), lambda: os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        )
        self.path = f"/proc/{os.getpid()}/fd/{self.fd}"
        self._own: dict[str, int] = {}  # namespaces of other kinds, by the word that nsenter has for them

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        while self._own:
            os.close(self._own.popitem()[1])

    def be_a_machine(self, name: str, folder: Path) -> None:
        """From now on programs in here see a hostname of their own, an /etc that they may change (`folder`, a copy), an empty
        /run and the network devices in /sys: as much of a machine as programs need that look for one another.
        """
        folder.mkdir()
        kept = "--preserve=mode,links,ownership" if os.access("/etc/shadow", os.R_OK) else "--preserve=mode,links"
        subprocess.run(["cp", "-r", "--no-dereference", kept, "/etc/.", folder], stderr=subprocess.DEVNULL, check=False)
        (folder / "hosts").unlink(missing_ok=True)
        (folder / "hosts").write_text(f"127.0.0.1\tlocalhost\n127.0.1.1\t{name}\n::1\tlocalhost ip6-localhost\n")
        (folder / "hostname").write_text(f"{name}\n")
        (folder / "resolv.conf").unlink(missing_ok=True)
        (folder / "resolv.conf").write_text("options timeout:1 attempts:1\n")  # nobody to ask here: refused at once

        def prepare() -> None:
            _call("setns", self.fd, CLONE_NEWNET)
            _call("unshare", CLONE_NEWNS | CLONE_NEWUTS)
            _call("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)
            _call("mount", os.fsencode(folder), b"/etc", None, MS_BIND, None)
            _call("mount", b"none", b"/run", b"tmpfs", 0, b"mode=755")
            os.mkdir("/run/sshd", 0o755)
            with contextlib.suppress(OSError):  # some containers allow none
                _call("mount", b"none", b"/sys", b"sysfs", 0, None)
            socket.sethostname(name)

        def keep() -> dict[str, int]:
            kinds = {"mount": "mnt", "uts": "uts"}
            return {word: os.open(f"/proc/thread-self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for word, kind in kinds.items()}

        self._own = _in_thread(prepare, keep)

    def inside(self, action: Callable[..., T]) -> T:
        """Run a short function in here: whatever socket or /proc/sys/net file it opens is this namespace's."""
        return _in_thread(lambda: _call("setns", self.fd, CLONE_NEWNET), action)

    # ------------------------------------------------------------ programs

    def command(self, arguments: Sequence[str | Path]) -> list[str]:
        """The words that run `arguments` in here, in the same process, ended when the laboratory's process ends."""
        own = [f"--{word}=/proc/self/fd/{fd}" for word, fd in self._own.items()]
        if own:
            own.append(f"--wdns={ROOT}")  # it would find itself in / otherwise
        return ["setpriv", "--pdeathsig", "KILL", "nsenter", f"--net=/proc/self/fd/{self.fd}", *own, "--", *map(str, arguments)]

    def popen(self, arguments: Sequence[str | Path], **options: Any) -> subprocess.Popen[str]:
        options.setdefault("stdin", subprocess.DEVNULL)
        pass_fds = [self.fd, *self._own.values(), *options.pop("pass_fds", ())]
        return subprocess.Popen(self.command(arguments), pass_fds=pass_fds, text=True, **options)

    def run(
        self,
        *arguments: str | Path,
        stdin: str | None = None,
        check: bool = True,
        timeout: float = 30,
        env: dict[str, str] | None = None,
        stdout: int | IO[Any] = subprocess.PIPE,
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(arguments),
            pass_fds=[self.fd, *self._own.values()],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            errors="surrogateescape",
            timeout=timeout,
            check=False,
            env=env,
        )
        if check and done.returncode:
            words = " ".join(map(str, arguments))
            raise LabError(f"{self.name}: {words}: exit {done.returncode}\n{stdin or ''}\n{done.stdout or ''}{done.stderr}")
        return done

    # ------------------------------------------------------------ furniture

    def ip(self, batch: str) -> None:
        """Run `ip` commands, one a line."""
        self.run("ip", "-batch", "-", stdin=batch)

    def nft(self, rules: str) -> None:
        self.run("nft", "-f", "-", stdin=rules)

    def sysctl(self, name: str, value: int | str) -> None:
        path = "/proc/sys/" + name.replace(".", "/")

        def write() -> None:
            with open(path, "w", encoding="ascii") as file:
                file.write(str(value))

        self.inside(write)

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_DGRAM) -> socket.socket:
        return self.inside(lambda: socket.socket(family, kind))

    def tap(self, name: str, *, tun: bool = False) -> int:
        """Make a tap device in here and return its descriptor: frames come and go whole, checksummed, no longer than the MTU.

        `tun`: a device for IP packets instead, with no frames around them.
        """
        flags = (IFF_TUN if tun else IFF_TAP) | IFF_NO_PI

        def make() -> int:
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
            return fd

        return self.inside(make)

    def counter(self, table: str, name: str) -> tuple[int, int]:
        """(packets, bytes) of a named nft counter."""
        words = self.run("nft", "list", "counter", "inet", table, name).stdout.split()
        return int(words[words.index("packets") + 1]), int(words[words.index("bytes") + 1])

    def device_bytes(self, device: str) -> tuple[int, int]:
        """(received, sent) by a network device, as the kernel counts."""

        def read() -> str:
            with open("/proc/thread-self/net/dev", encoding="ascii") as file:
                return file.read()

        for line in self.inside(read).splitlines():
            name, colon, numbers = line.partition(":")
            if colon and name.strip() == device:
                fields = numbers.split()
                return int(fields[0]), int(fields[8])
        raise LabError(f"{self.name} has no device {device}")


def python_module(module: str, *arguments: str) -> list[str]:
    """The words that run one of our own modules."""
    return [sys.executable, "-m", module, *arguments]
