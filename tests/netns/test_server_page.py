"""docs/server.md as a new operator types it: every command, in its order, on a host with a public address.

A root of its own stands for the machine's: paths lead there.  apt, git, ufw, certbot and systemd are stand-ins that note what
they are asked; the one of systemd runs the unit's command with its options, credentials and READY.
"""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.driver.tls import make_certificate
from tests.netns.kernel import ROOT
from tests.netns.lab import Lab
from tests.netns.programs import Ptunnel, environment, ptunnel
from tests.schema import schema
from tunnel.server_spec import DEFAULT_METRICS_PORT, DEFAULT_PORT

pytestmark = pytest.mark.time_limit(240)
#: The blocks of the page, in their order.
NAMES = (
    "get", "secret", "firewall", "options", "start", "look", "elsewhere", "tls", "changed", "log", "figures", "upgrade", "remove",
)  # fmt: skip
PATHS = re.compile(r"(?<![\w.])(?=/(?:etc|var/lib|run/credentials|usr/local/bin)/)")

NOTES = """#!/bin/sh
echo "$(basename "$0") $*" >> ROOT/asked
"""
GIT = """[ "$1" = clone ] || exit 0
mkdir -p "$3/scripts" && cp -r SOURCE/scripts/units "$3/scripts/" && cp ROOT/install "$3/scripts/install"
"""
INSTALL = """#!/bin/sh
if [ "$1" = remove ]; then rm ROOT/usr/local/bin/ptunnel; exit; fi
mkdir -p ROOT/usr/local/bin
printf '#!/bin/sh\\nexec PYTHON -m tunnel "$@"\\n' > ROOT/usr/local/bin/ptunnel
chmod +x ROOT/usr/local/bin/ptunnel
"""
CERTBOT = "mkdir -p ROOT/etc/letsencrypt/renewal-hooks/deploy && cp -r ROOT/live ROOT/etc/letsencrypt/live\n"
SYSTEMCTL = """
import os, pathlib, re, shutil, signal, socket, subprocess, sys
root, name = pathlib.Path("ROOT"), "ptunnel-serve"
units = root / "etc/systemd/system"
pid_file = root / "pid"
def stop():
    if pid_file.exists():
        pid = int(pid_file.read_text())
        os.kill(pid, signal.SIGTERM)
        while pathlib.Path(f"/proc/{pid}/cmdline").exists() and pathlib.Path(f"/proc/{pid}/cmdline").read_bytes():
            pass
        pid_file.unlink()
def start():
    unit = (units / f"{name}.service").read_text() + "".join(each.read_text() for each in (units / f"{name}.service.d").iterdir())
    default = (root / "etc/default" / name).read_text()
    options = re.search("^OPTIONS=(.*)$", default, re.MULTILINE)[1].split()
    credentials = root / f"run/credentials/{name}.service"
    shutil.rmtree(credentials, ignore_errors=True)
    credentials.mkdir(parents=True)
    for word, path in re.findall("^LoadCredential=(.*?):(.*)$", unit, re.MULTILINE):
        shutil.copy(path, credentials / word)
    command = re.search("^ExecStart=(.*)$", unit, re.MULTILINE)[1].replace("$OPTIONS", " ".join(options)).split()
    ready = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    ready.settimeout(30)
    place = f"@ptunnel-page-{os.getpid()}"
    ready.bind("\\0" + place[1:])
    home = root / "var/lib" / name
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (root / "log").open("ab") as log:
        env = {**os.environ, "PTUNNEL_HOME": str(home), "NOTIFY_SOCKET": place}
        child = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    pid_file.write_text(str(child.pid))
    while b"READY=1" not in ready.recv(4096):
        pass
words = sys.argv[1:]
assert words == ["daemon-reload"] or words[-1] == name, words
if words[0] in ("disable", "restart"):
    stop()
if words[0] in ("enable", "restart"):
    start()
"""


def blocks() -> list[str]:
    """What the page has its reader type."""
    return re.findall(r"^```sh\n(.*?)^```", (ROOT / "docs" / "server.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


class Machine:
    """The host, with a root of its own."""

    def __init__(self, lab: Lab) -> None:
        self.root = lab.folder / "root"
        self.lab = lab
        tools = self.root / "bin"
        tools.mkdir(parents=True)
        for name, more in {"apt-get": "", "git": GIT, "ufw": "", "certbot": CERTBOT, "journalctl": "cat ROOT/log\n"}.items():
            self._write(tools / name, NOTES + more)
        self._write(self.root / "install", INSTALL)
        self._write(tools / "systemctl.py", SYSTEMCTL)
        self._write(tools / "systemctl", NOTES + f'exec {sys.executable} ROOT/bin/systemctl.py "$@"\n')
        for each in ("etc/default", "etc/systemd/system", "var/lib", "live/rv.example.net"):
            (self.root / each).mkdir(parents=True)
        made = make_certificate(self.root, "rv.example.net")
        self.fingerprint = made.fingerprint
        for name, path in (("fullchain", made.certificate), ("privkey", made.key)):
            Path(path).rename(self.root / "live" / "rv.example.net" / f"{name}.pem")
        self.cwd = self.root
        lab.on_close(self._end)

    def _write(self, path: Path, text: str) -> None:
        path.write_text(text.replace("ROOT", str(self.root)).replace("SOURCE", str(ROOT)).replace("PYTHON", sys.executable))
        path.chmod(0o755)

    def _end(self) -> None:
        if (self.root / "pid").exists():
            os.kill(int((self.root / "pid").read_text()), 9)

    def type(self, block: str) -> str:
        """Run a block as root does; its standard output."""
        text = PATHS.sub(str(self.root), block)
        env = environment(self.root / "home", PYTHONPATH=str(ROOT))
        env["PATH"] = f"{self.root}/bin:{self.root}/usr/local/bin:{env['PATH']}"
        script = f"set -e\ncd {self.cwd}\n{text}"
        done = self.lab.server.host.run("bash", "-c", script, env=env, timeout=90, check=False)
        said = (self.root / "log").read_text() if (self.root / "log").exists() else ""
        assert done.returncode == 0, (block, done.stdout, done.stderr, said)
        if (self.root / "ptunnel").exists():
            self.cwd = self.root / "ptunnel"
        return done.stdout

    @property
    def asked(self) -> str:
        return (self.root / "asked").read_text()


def test_the_page_is_typed_from_its_beginning_to_its_end(lab: Lab) -> None:
    machine = Machine(lab)
    home = lab.add_site("home", "prc")
    said: dict[str, str] = {}
    typed = dict(zip(NAMES, blocks(), strict=True))
    for name in ("get", "secret", "firewall", "options", "start", "look"):
        said[name] = machine.type(typed[name])

    first = f"{lab.server.address}:{DEFAULT_PORT}"
    assert f"ufw allow {DEFAULT_PORT}:{DEFAULT_PORT + 1}/udp" in machine.asked
    assert stat.S_IMODE((machine.root / "etc/ptunnel-access").stat().st_mode) == 0o600
    assert "serve  process " in said["look"]
    assert f"ok       UDP 0.0.0.0:{DEFAULT_PORT} is served by ptunnel, process " in said["look"]
    assert "failed" not in said["look"]

    # elsewhere: with the token and without
    token = (machine.root / "etc/ptunnel-access").read_text().split()[1]
    assert ptunnel(home.host, lab.folder / "friend", "config", "server", first).returncode == 0
    done = ptunnel(home.host, lab.folder / "friend", "doctor", "--json", PTUNNEL_ACCESS_TOKEN=token)
    assert json.loads(done.stdout.splitlines()[0])["reached"], done.stderr
    exposing = Ptunnel(lab, home.host, "friend", "expose", "22", "--server", first, PTUNNEL_ACCESS_TOKEN=token)
    exposing.wait_event("code")
    stranger = Ptunnel(lab, home.host, "stranger", "expose", "22", "--server", first)
    assert "token" in stranger.wait_event("error", code="server_unreachable")["message"]
    assert f"127.0.0.1:{DEFAULT_METRICS_PORT}" in typed["options"]
    assert "ptunnel_server_sessions 1.0" in machine.type(typed["figures"])

    # the log, and what is refused in it
    lines = machine.type("journalctl -u ptunnel-serve -o cat").splitlines()
    assert [problem for each in map(json.loads, lines) for problem in schema()._compare(each, schema().objects["log line"])] == []
    assert '"why": "denied"' in machine.type(typed["log"])

    # TLS, which peers reach with the certificate; then the rest
    machine.type(typed["tls"])
    pinned = f"{lab.server.address},pin={machine.fingerprint}"
    done = ptunnel(home.host, lab.folder / "friend", "doctor", "--json", "--server", pinned)
    assert json.loads(done.stdout.splitlines()[0])["tls"]["works"], done.stdout
    for name in ("changed", "upgrade", "look"):
        machine.type(typed[name])
    exposing.interrupt()
    machine.type(typed["remove"])
    left = {each.name for each in (machine.root / "etc").iterdir()} - {"default", "systemd", "letsencrypt"}
    assert left == set()
    assert not (machine.root / "usr/local/bin/ptunnel").exists()
    assert subprocess.run(["pgrep", "-f", str(machine.root / "usr")], capture_output=True, check=False).returncode == 1


def test_there_are_ten_commands_from_nothing_to_a_server_that_runs() -> None:
    """A line each, without what stands in the files that are written."""
    typed = "".join(block for name, block in zip(NAMES, blocks(), strict=True) if NAMES.index(name) < NAMES.index("look"))
    assert len(re.sub(r"<<'END'\n.*?^END$", "", typed, flags=re.MULTILINE | re.DOTALL).splitlines()) == 10
