"""What announces itself by mDNS and is found by it: real avahi daemons, and a real samba server that they speak for."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from tests.netns.kernel import Namespace
from tests.netns.lab import Lab, eventually
from tests.netns.programs import Program, environment, is_real_root

DBUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*" eavesdrop="true"/>
<allow receive_sender="*"/></policy></busconfig>
"""
AVAHI = """[server]
host-name=%s
use-ipv4=yes
use-ipv6=yes
ratelimit-interval-usec=1000000
ratelimit-burst=1000
[publish]
publish-workstation=no
publish-hinfo=no
"""
SMB = """[global]
server role = standalone server
netbios name = %(name)s
map to guest = bad user
guest account = root
disable netbios = yes
smb ports = 445
load printers = no
log level = 1
private dir = %(folder)s/private
lock directory = %(folder)s/lock
state directory = %(folder)s/state
cache directory = %(folder)s/cache
pid directory = %(folder)s/pid
ncalrpc dir = %(folder)s/ncalrpc
[%(share)s]
path = %(shared)s
guest ok = yes
read only = %(read_only)s
"""


class Responder:
    """An avahi daemon with a message bus of its own, on a machine of its own (`Namespace.be_a_machine`)."""

    def __init__(self, lab: Lab, space: Namespace, name: str) -> None:
        self.space = space
        self.name = name
        self.home = lab.folder / f"avahi-{name}"
        self.home.mkdir()
        bus, settings = self.home / "dbus.conf", self.home / "avahi.conf"
        bus.write_text(DBUS, encoding="ascii")
        settings.write_text(AVAHI % name, encoding="ascii")
        space.run("mkdir", "-p", "/run/dbus", "/run/avahi-daemon")
        if not is_real_root():  # then there is one user only, and avahi's has to be that one
            space.run("sed", "-i", "-E", "s/^avahi:x:[0-9]+(:[0-9]+)?/avahi:x:0:0/", "/etc/passwd", "/etc/group")
        self.bus = Program(lab, space, f"dbus-{name}", ["dbus-daemon", f"--config-file={bus}", "--nofork", "--nopidfile"])
        eventually("a message bus", lambda: space.run("test", "-S", "/run/dbus/system_bus_socket", check=False).returncode == 0)
        words = ["--no-drop-root", "--no-chroot", "--no-rlimits", "--no-proc-title"]
        self.daemon = Program(lab, space, f"avahi-{name}", ["avahi-daemon", "--file", settings, *words])
        self.daemon.wait_said("Server startup complete")

    def interfaces(self) -> set[str]:
        """Where it takes part in mDNS, such as `eth0.IPv4`."""
        found: set[str] = set()
        for line in self.daemon.said().splitlines():
            if line.startswith("New relevant interface "):
                found.add(line.split()[3])
            elif line.startswith("Interface ") and line.endswith(" no longer relevant for mDNS."):
                found.discard(line.split()[1])
        return found

    def services(self, kind: str) -> list[tuple[str, str, str, str]]:
        """(interface, name, host name, address) of each answer to a search of the networks for services of this kind."""
        shown = self.space.run(
            "avahi-browse", "--resolve", "--parsable", "--terminate", kind, env=environment(self.home), check=False, timeout=20
        )
        fields = (line.split(";") for line in shown.stdout.splitlines() if line.startswith("="))
        return [(field[1], field[3], field[6], field[7]) for field in fields]

    def announce(self, lab: Lab, name: str, kind: str, port: int) -> None:
        """Have it announce a service until the laboratory closes."""
        words = ["avahi-publish", "-s", name, kind, str(port)]
        Program(lab, self.space, f"announce-{self.name}", words, env=environment(self.home)).wait_said("Established")


class Share:
    """A samba server with one folder that anybody may read; an avahi daemon beside it, if there is one, announces it."""

    def __init__(self, lab: Lab, space: Namespace, name: str, share: str, *, read_only: bool = True) -> None:
        # Short, as it holds sockets (108 bytes of path), and open to the guest's user, as the laboratory's folder need not be.
        self.folder = Path(tempfile.mkdtemp(prefix="ptunnel-smb-", dir="/tmp"))
        self.folder.chmod(0o755)
        lab.on_close(lambda: shutil.rmtree(self.folder, ignore_errors=True))
        self.shared = self.folder / "shared"
        for folder in ("shared", "private", "lock", "state", "cache", "pid", "ncalrpc"):
            (self.folder / folder).mkdir(parents=True)
        names = {"name": name, "folder": self.folder, "share": share, "shared": self.shared}
        names["read_only"] = "yes" if read_only else "no"
        settings = self.folder / "smb.conf"
        settings.write_text(SMB % names, encoding="ascii")
        self.server = Program(
            lab,
            space,
            f"smbd-{name}",
            ["smbd", "--foreground", "--debug-stdout", "--configfile", settings],
        )
        eventually("smbd", lambda: ":445 " in space.run("ss", "-lnt").stdout, 20)


def fetch(space: Namespace, home: Path, address: str, share: str, name: str) -> bytes:
    """Read a file from a share at this address, as a guest."""
    target = home / f"fetched-{name}"
    space.run(
        *("smbclient", "--configfile=/dev/null", "--no-pass", f"//{address}/{share}", "--command", f"get {name} {target}"),
        env=environment(home),
        timeout=40,
    )
    return target.read_bytes()
