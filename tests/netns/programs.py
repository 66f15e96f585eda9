"""Programs that run inside the laboratory: ptunnel itself, and the real ones that go through its tunnel."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.netns.kernel import ROOT, LabError, Namespace, python_module
from tests.netns.lab import Lab, Site, eventually
from tests.schema import schema

Event = dict[str, Any]
SERVER_PORT = 24531
START_S = 20.0
"""Seconds within which a program must have said that it is ready."""


def environment(home: Path, **more: str) -> dict[str, str]:
    """What a program in the laboratory sees: no terminal, no colours, nothing of the person who runs the tests."""
    home.mkdir(parents=True, exist_ok=True)
    kept = {key: value for key, value in os.environ.items() if key in {"PATH", "LANG", "LC_ALL", "PYTHONDONTWRITEBYTECODE"}}
    kept["PATH"] = kept.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"
    return {**kept, "HOME": str(home), "PTUNNEL_HOME": str(home / "ptunnel"), "TERM": "dumb", **more}


class Program:
    """A program that runs on beside the test; its output is kept in a file and shown when something goes wrong."""

    def __init__(
        self,
        lab: Lab,
        space: Namespace,
        name: str,
        arguments: Sequence[str | Path],
        *,
        env: dict[str, str] | None = None,
        stdin: int = subprocess.DEVNULL,
        stdout: int | None = None,
        cwd: Path = ROOT,
    ) -> None:
        self.name = name
        self.log = lab.folder / f"{name}-{time.monotonic_ns()}.log"
        self._file = self.log.open("wb")
        self.process = space.popen(arguments, env=env, cwd=cwd, stdin=stdin, stdout=stdout or self._file, stderr=self._file)
        lab.on_close(self.end)

    @property
    def pid(self) -> int:
        return self.process.pid

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def trouble(self, what: str) -> LabError:
        state = "still runs" if self.process.poll() is None else f"ended with {self.process.returncode}"
        return LabError(f"{what}\n{self.name} ({state}) said:\n{self.said()[-4000:]}")

    def wait_said(self, text: str, timeout: float = START_S) -> None:
        try:
            eventually(text, lambda: text in self.said() or self.process.poll() is not None, timeout)
        except LabError as error:
            raise self.trouble(str(error)) from None
        if text not in self.said():
            raise self.trouble(f"ended without saying {text!r}")

    def wait(self, timeout: float) -> int:
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise self.trouble(f"{self.name} did not end within {timeout} s") from None

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """As a crash would."""
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(2)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()
        if not self._file.closed:
            self._file.close()


class Ptunnel(Program):
    """`ptunnel ... --json`, with its event lines read as they come."""

    def __init__(
        self, lab: Lab, space: Namespace, name: str, *words: str, home: Path | None = None, module: str = "tunnel", **more: str
    ) -> None:
        """`more` is its environment."""
        self.home = home or lab.folder / f"home-{name}"
        self.events: list[Event] = []
        self.problems: list[str] = []  # lines that are not as docs/json.md says
        self._lines: queue.Queue[Event | None] = queue.Queue()
        super().__init__(
            lab,
            space,
            name,
            python_module(module, *words, "--json"),
            env=environment(self.home, **more),
            stdout=subprocess.PIPE,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                event = json.loads(line)
            except ValueError:
                event = {"event": "not json", "line": line}
            if line.endswith("\n"):  # whoever is killed may leave a half
                self.problems += schema().line_problems(line)
            event["heard_at"] = time.monotonic()
            self._lines.put(event)
        self._lines.put(None)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(2)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._reader.join(5)
        super().end()

    def trouble(self, what: str) -> LabError:
        error = super().trouble(what)
        events = "\n".join(json.dumps(event) for event in self.events[-20:])
        return LabError(f"{error}\nits events:\n{events}")

    def collect(self) -> list[Event]:
        """All events so far."""
        if self.problems:
            raise self.trouble(f"not as docs/json.md says: {self.problems}")
        while True:
            try:
                event = self._lines.get_nowait()
            except queue.Empty:
                return self.events
            if event is not None:
                self.events.append(event)

    def wait_event(self, event_name: str, timeout: float = START_S, /, *, after: int = 0, **fields: Any) -> Event:
        """The first event of this kind with these fields, from the `after`th event on, whether it came already or comes yet."""
        end = time.monotonic() + timeout

        def fits(event: Event) -> bool:
            return event.get("event") == event_name and all(event.get(key) == value for key, value in fields.items())

        for heard in self.collect()[after:]:
            if fits(heard):
                return heard
        while True:
            try:
                event = self._lines.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                raise self.trouble(f"no event {event_name} {fields} within {timeout} s") from None
            if event is None:
                raise self.trouble(f"{self.name} ended without an event {event_name} {fields}")
            self.events.append(event)
            if fits(event) and len(self.events) > after:
                return event

    def kinds(self) -> list[str]:
        return [event["event"] for event in self.collect()]


def ptunnel(
    space: Namespace, home: Path, *words: str, timeout: float = 30, stdin: str | None = None, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run `ptunnel` to its end and return what it said and its exit code."""
    return space.run(*python_module("tunnel", *words), env=environment(home, **more), timeout=timeout, stdin=stdin, check=False)


def start_server(lab: Lab, *words: str) -> Ptunnel:
    """`ptunnel serve` on the laboratory's server, on IPv4 and IPv6."""
    server = Ptunnel(
        lab,
        lab.server.host,
        "serve",
        "serve",
        "--listen",
        f"{lab.server.address}:{SERVER_PORT}",
        "--listen",
        f"[{lab.server.address6}]:{SERVER_PORT}",
        *words,
    )
    server.wait_event("listening")
    return server


def server_address(lab: Lab) -> str:
    return f"{lab.server.address}:{SERVER_PORT}"


class Pair:
    """One who exposes and one who connects, paired by a code; the usual beginning of a test."""

    def __init__(
        self,
        lab: Lab,
        home: Site,
        friend: Site,
        *,
        expose: Sequence[str],
        forward: Sequence[str],
        path: str = "auto",
        ready_s: float = START_S,
        server: str = "",
    ) -> None:
        self.lab = lab
        self.home = home
        self.friend = friend
        self.server_word = server or server_address(lab)
        self.exposer = Ptunnel(
            lab,
            home.host,
            f"expose-{home.name}",
            "expose",
            *expose,
            "--server",
            self.server_word,
            "--path",
            path,
            "--name",
            "home",
        )
        self.code: str = self.exposer.wait_event("code")["code"]
        words = ["connect", "--server", self.server_word, "--path", path]
        for spec in forward:
            words += ["--forward", spec]
        self.connector = Ptunnel(lab, friend.host, f"connect-{friend.name}", *words, PTUNNEL_CODE=self.code)
        self.connector.wait_event("paired", ready_s)
        for _ in forward:
            self.connector.wait_event("forward", ready_s)

    def wait_direct(self, timeout: float = 20) -> Event:
        return self.connector.wait_event("path", timeout, kind="direct")

    def went_direct(self) -> int:
        """UDP bytes that crossed the core between the two sites."""
        return self.lab.udp_bytes_both_ways(self.home, self.friend)

    def went_relayed(self) -> int:
        """UDP bytes between the friend's site and the server."""
        return self.lab.udp_bytes_both_ways(self.friend, self.lab.server)


# ---------------------------------------------------------------- real programs


ORDINARY = ["unshare", "--user", "--map-user=1000", "--map-group=1000"]
"""Before a program that would change its user id, which cannot be where there is one only: it sees that it is not root."""


def is_real_root() -> bool:
    """Whether user 0 in here is user 0 of the machine, with all other users beside it."""
    with open("/proc/self/uid_map", encoding="ascii") as file:
        fields = file.read().split()
    return os.geteuid() == 0 and fields[:2] == ["0", "0"] and int(fields[2]) > 1


class Sshd(Program):
    """A real sshd on a port of its own, with keys and an account that exist only for the test."""

    def __init__(self, lab: Lab, space: Namespace, port: int = 2022, *, address: str = "127.0.0.1") -> None:
        self.folder = lab.folder / "sshd"
        self.folder.mkdir(exist_ok=True)
        self.port = port
        self.user = "visitor"
        self.key = self.folder / "key"
        self.home = self.folder / "home"
        self.home.mkdir(exist_ok=True)
        for name in ("key", "host_key"):
            if not (self.folder / name).exists():
                subprocess.run(
                    ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", self.folder / name],
                    check=True,
                    timeout=20,
                    stdin=subprocess.DEVNULL,
                )
        # In an unprivileged user namespace there is one user id only.  There sshd runs as an ordinary user (in one more
        # namespace, where that id has another number), which it then lets in; as root it is root.  Either way the account
        # stands in copies of passwd and shadow that only this sshd sees.
        mapped = not is_real_root()
        number = 1000 if mapped else 0
        account = f"{self.user}:x:{number}:{number}:visitor:{self.home}:/bin/sh\n"
        passwd, shadow = self.folder / "passwd", self.folder / "shadow"
        passwd.write_text(account + Path("/etc/passwd").read_text(encoding="utf-8"), encoding="utf-8")
        shadow.write_text(f"{self.user}:*:19000:0:99999:7:::\nsshd:*:19000:0:99999:7:::\n", encoding="utf-8")
        authorized = self.folder / "authorized_keys"
        authorized.write_text((self.folder / "key.pub").read_text(encoding="utf-8"), encoding="utf-8")
        config = self.folder / "sshd_config"
        config.write_text(
            f"Port {port}\nListenAddress {address}\nHostKey {self.folder / 'host_key'}\nPidFile none\n"
            f"AuthorizedKeysFile {authorized}\nStrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
            "PermitRootLogin yes\nUsePAM no\nPrintMotd no\nPrintLastLog no\nUseDNS no\nMaxStartups 200\nLogLevel VERBOSE\n"
            "Subsystem sftp internal-sftp\n",
            encoding="utf-8",
        )
        if not mapped:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        enter = ORDINARY if mapped else []
        script = 'mount --bind "$1" /etc/passwd && mount --bind "$2" /etc/shadow && shift 2 && exec "$@"'
        private: list[str | Path] = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "_", passwd, shadow]
        super().__init__(lab, space, "sshd", [*private, *enter, "/usr/sbin/sshd", "-D", "-e", "-f", config])
        self.wait_said("Server listening on")

    def options(self) -> list[str]:
        """For ssh and scp alike; neither reads or writes anything of the person who runs the tests."""
        return [
            "-F", "none", "-i", str(self.key), "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes",
            "-o", f"UserKnownHostsFile={self.folder / 'known_hosts'}", "-o", "GlobalKnownHostsFile=none",
            "-o", "StrictHostKeyChecking=accept-new", "-o", "HostKeyAlias=lab", "-o", "ConnectTimeout=10", "-o", "LogLevel=ERROR",
        ]  # fmt: skip

    def ssh(
        self, space: Namespace, port: int, *words: str, options: Iterable[str] = (), timeout: float = 30
    ) -> subprocess.CompletedProcess[str]:
        return space.run(
            "ssh", *self.options(), *options, "-p", str(port), f"{self.user}@127.0.0.1", *words, check=False, timeout=timeout
        )

    def scp_words(self, port: int, source: str, target: str) -> list[str]:
        return ["scp", *self.options(), "-q", "-P", str(port), source, target]

    def remote(self, path: Path) -> str:
        return f"{self.user}@127.0.0.1:{path}"


def http_server(lab: Lab, space: Namespace, folder: Path, port: int = 8000, bind: str = "127.0.0.1") -> Program:
    """Serves a folder by HTTP, many connections at once."""
    script = (
        "import sys, functools, http.server as h\n"
        "class Server(h.ThreadingHTTPServer): request_queue_size = 512\n"
        "class Quiet(h.SimpleHTTPRequestHandler):\n"
        "    def log_message(self, *words): pass\n"
        f"server = Server(({bind!r}, {port}), functools.partial(Quiet, directory={str(folder)!r}))\n"
        "print('serving', flush=True)\n"
        "server.serve_forever()\n"
    )
    program = Program(lab, space, "http", [sys.executable, "-c", script])
    program.wait_said("serving")
    return program


class UdpEcho:
    """Answers every datagram with itself, from inside the test's own process."""

    def __init__(self, lab: Lab, space: Namespace, port: int = 7007, host: str = "127.0.0.1") -> None:
        self.socket = space.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self.socket.bind((host, port))
        self.socket.settimeout(0.2)
        self.heard: list[tuple[str, int]] = []  # who spoke, each once
        self._stop = False
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        lab.on_close(self.end)

    def _serve(self) -> None:
        while not self._stop:
            try:
                data, remote = self.socket.recvfrom(65_536)
            except TimeoutError:
                continue
            except OSError:
                return
            if remote not in self.heard:
                self.heard.append(remote)
            try:
                self.socket.sendto(data, remote)
            except OSError:
                continue

    def end(self) -> None:
        self._stop = True
        self._thread.join(5)
        self.socket.close()


class Capture:
    """Everything that crosses one device, from now on; `bytes()` ends it."""

    ALL = 0x0003  # ETH_P_ALL
    SO_RCVBUFFORCE = 33

    def __init__(self, lab: Lab, space: Namespace, device: str) -> None:
        self._seen: list[bytes] = []

        def listen() -> socket.socket:
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(self.ALL))
            sock.bind((device, self.ALL))
            return sock

        self._socket = space.inside(listen)
        for option, size in ((socket.SO_RCVBUF, 8 << 20), (self.SO_RCVBUFFORCE, 64 << 20)):
            with contextlib.suppress(PermissionError):
                self._socket.setsockopt(socket.SOL_SOCKET, option, size)
        self._socket.settimeout(0.2)
        self._stop = False
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        lab.on_close(self.end)

    def _listen(self) -> None:
        while not self._stop:
            with contextlib.suppress(TimeoutError):
                self._seen.append(self._socket.recv(65_536 + 64))

    def end(self) -> None:
        self._stop = True
        self._thread.join(5)
        self._socket.close()

    def bytes(self) -> bytes:
        time.sleep(0.3)  # what is under way now is still seen
        self.end()
        return b"".join(self._seen)


def random_file(path: Path, size: int) -> str:
    """Write `size` random bytes and return their SHA-256."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        while size > 0:
            block = os.urandom(min(size, 1 << 20))
            digest.update(block)
            file.write(block)
            size -= len(block)
    return digest.hexdigest()


def checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
