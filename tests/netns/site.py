"""A site of the laboratory: what stands behind one connection to the core, and what its router can tell and do."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from tests.netns.kernel import ROOT, LabError, Namespace, python_module

if TYPE_CHECKING:
    from tests.netns.lab import Lab

Kind = Literal[
    "open", "fw", "prc", "prcrace", "sym", "symblock", "upnp", "short", "tcp443",  # nftables
    "full", "restricted", "uprc", "symseq", "symad", "user",  # our own NAT; "user" is told its rules
    "cgn", "cgnsym", "quota", "block512", "block2048",  # prc, behind a carrier's NAT of our own
]  # fmt: skip
T = TypeVar("T")

RULES: dict[str, dict[str, Any]] = {
    "full": {"filtering": "E"},
    "restricted": {"filtering": "A"},
    "uprc": {},
    "symseq": {"mapping": "AP", "ports": "sequential"},
    "symad": {"mapping": "A", "filtering": "A"},
}
"""What our own NAT does in a home; ports are random where nothing else is said (usernat.Rules)."""

CARRIERS: dict[str, dict[str, Any]] = {
    "cgn": {"quota": 128},
    "cgnsym": {"mapping": "AP", "quota": 128},
    "quota": {"mapping": "AP", "quota": 64},
    "block512": {"mapping": "AP", "block": 512, "reuses": True, "quota": 4_000, "rate": 700},
    "block2048": {"mapping": "AP", "block": 2_048, "reuses": True, "quota": 8_000, "rate": 700},
}
"""The same in a carrier's network; the quota is of mappings a home."""

SITES_IN_A_ROW = 16  # that share a /24: half of it, since a server lets neighbours together have only so much
SHORT_LIFE = 10  # seconds that a mapping of a `short` site lives
MINIUPNPD_SETTINGS = """
ext_ifname=wan
listening_ip=lan
http_port=5000
ipv6_disable=yes
enable_upnp=%(upnp)s
enable_natpmp=%(natpmp)s
min_lifetime=2
max_lifetime=86400
secure_mode=yes
system_uptime=no
notify_interval=3600
uuid=12345678-1234-1234-1234-123456789abc
allow 1024-65535 0.0.0.0/0 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
"""


def eventually(what: str, condition: Callable[..., T | None], timeout: float = 10, step: float = 0.05) -> T:
    """Wait until `condition` gives something true and return that; LabError with `what` when it does not come in time."""
    end = time.monotonic() + timeout
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() >= end:
            raise LabError(f"not within {timeout} s: {what}")
        time.sleep(step)


class Site:
    """A home, a firm or a lone host: what stands behind one connection to the core."""

    def __init__(self, lab: Lab, index: int, name: str, kind: Kind, ipv4: bool, ipv6: bool, behind: Site | None) -> None:
        self.lab = lab
        self.index = index
        self.name = name
        self.kind: Kind = kind
        self.ipv4 = ipv4
        self.ipv6 = ipv6
        self.behind = behind  # the carrier's site, if this home hangs on one
        self.gateway: Namespace | None = None
        self.hosts: list[Namespace] = []
        row, self.first = index // SITES_IN_A_ROW, 8 * (index % SITES_IN_A_ROW)  # the latter: the last byte of its prefix
        self.net = f"44.128.{row}" if kind == "upnp" else f"192.88.{99 + row}"
        self.prefix: str = f"{self.net}.{self.first}/29" if behind is None else behind.prefix
        self.prefix6 = f"3fff:{index:x}::/32"
        self.line = f"{self.net}.{self.first + 1}"  # the address of the border's own device towards the core
        self.pool: tuple[str, ...] = ()  # of our own NAT: addresses that are no device's
        self.wan: str = self.line if behind is None else behind.wan  # the address at which the world sees a site with one
        self.wan6 = f"3fff:{index:x}:ff::2"
        self.addresses: list[str] = []  # of the hosts, as they know them
        self.addresses6: list[str] = []
        self.emulator: int | None = None  # the process that is the site's line
        self._nat: subprocess.Popen[str] | None = None
        self._miniupnpd: subprocess.Popen[str] | None = None

    @property
    def outermost(self) -> Site:
        """The site whose prefix the core sees."""
        return self if self.behind is None else self.behind.outermost

    @property
    def host(self) -> Namespace:
        return self.hosts[0]

    @property
    def address(self) -> str:
        return self.addresses[0]

    @property
    def address6(self) -> str:
        return self.addresses6[0]

    def _gateway(self) -> Namespace:
        if self.gateway is None:
            raise LabError(f"{self.name} is an open site and has no gateway")
        return self.gateway

    def turn(self) -> None:
        """Begin a spell in which the line takes longer, or end it."""
        assert self.emulator is not None
        os.kill(self.emulator, signal.SIGUSR1)

    def start_nat(self, lan: str, rules: dict[str, Any]) -> None:
        """Our own NAT between the LAN (its first three bytes) and the addresses of `pool`."""
        gateway = self._gateway()
        settings = {"inside": f"{lan}.0/24", "pool": self.pool, **rules}
        gateway.sysctl("net.ipv4.conf.all.rp_filter", 0)
        fd = gateway.tap("nat", tun=True)
        lines = ["link set nat txqueuelen 10000 up", "rule add iif lan lookup 100", "route add default dev nat table 100"]
        gateway.ip("\n".join(lines + [f"route add {address}/32 dev nat" for address in self.pool]))
        words = python_module("tests.netns.usernat", str(fd), json.dumps(settings), str(self.index))
        self._nat = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *words],
            pass_fds=[fd],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        os.close(fd)
        self.ask_nat("drops")  # it runs

    def ask_nat(self, command: str) -> Any:
        """What our own NAT says to one of its commands."""
        assert self._nat is not None
        assert self._nat.stdin is not None
        assert self._nat.stdout is not None
        self._nat.stdin.write(command + "\n")
        self._nat.stdin.flush()
        return json.loads(self._nat.stdout.readline())

    def stop_nat(self) -> None:
        if self._nat is not None:
            self._nat.kill()
            self._nat.communicate()
            self._nat = None

    def thrown_away(self) -> int:
        """Datagrams from outside that nobody inside had asked for, by the gateway's own counter."""
        if self._nat is not None:
            drops: dict[str, int] = self.ask_nat("drops")
            return drops.get("no mapping", 0) + drops.get("filtered", 0)
        return self._gateway().counter("firewall", "thrown_away")[0]

    def let_in(self) -> int:
        """IP packets from outside that the gateway let through to a host inside, by its own counter."""
        if self._nat is not None:
            return int(self.ask_nat("passed")["in"])
        return self._gateway().counter("firewall", "let_in")[0]

    def watch(self, other: Site) -> None:
        """Have the gateway count apart what comes from another site's public address; see `seen_from`."""
        source = f'iifname "wan" ip saddr {other.wan} meta l4proto udp'
        self._gateway().nft(
            f"add counter inet firewall thrown_from_{other.name}\nadd counter inet firewall let_in_from_{other.name}\n"
            f"insert rule inet firewall forward {source} counter name let_in_from_{other.name}\n"
            f"insert rule inet firewall input {source} ct state new counter name thrown_from_{other.name}"
        )

    def seen_from(self, other: Site) -> tuple[int, int]:
        """(datagrams thrown away, IP packets let in) from the other site's public address since `watch`."""
        gateway = self._gateway()
        thrown = gateway.counter("firewall", f"thrown_from_{other.name}")[0]
        return thrown, gateway.counter("firewall", f"let_in_from_{other.name}")[0]

    def mappings(self) -> list[dict[str, str]]:
        """The gateway's UDP mappings: src, dst, sport, dport as inside; rsrc, rdst, rsport, rdport as outside."""
        found = []
        if self._nat is not None:
            for protocol, inner, outer in self.ask_nat("mappings"):
                if protocol == socket.IPPROTO_UDP:
                    found.append({"src": inner[0], "sport": str(inner[1]), "rdst": outer[0], "rdport": str(outer[1])})
            return found
        for line in self._gateway().run("conntrack", "-L", "-p", "udp").stdout.splitlines():
            fields: dict[str, str] = {}
            for word in line.split():
                key, equals, value = word.partition("=")
                if equals and key in {"src", "dst", "sport", "dport"}:
                    fields["r" + key if key in fields else key] = value
            found.append(fields)
        return found

    def start_miniupnpd(self, *, upnp: bool = True, natpmp: bool = True) -> None:
        """Have the router map ports on request; NAT-PMP brings PCP along.  Starting it again is a restart that forgets all."""
        self.stop_miniupnpd()
        gateway, folder = self._gateway(), self.lab.folder
        settings = folder / f"miniupnpd-{self.name}.conf"
        words = {True: "yes", False: "no"}
        settings.write_text(MINIUPNPD_SETTINGS % {"upnp": words[upnp], "natpmp": words[natpmp]}, encoding="ascii")
        with (folder / f"miniupnpd-{self.name}.log").open("ab") as log:
            self._miniupnpd = gateway.popen(
                ["miniupnpd", "-d", "-f", settings, "-P", folder / f"miniupnpd-{self.name}.pid"], stdout=log, stderr=log
            )
        for asked, port in ((upnp, 1900), (natpmp, 5351)):
            if asked:
                eventually(f"miniupnpd at {self.name}", lambda port=port: f":{port} " in gateway.run("ss", "-lnu").stdout)

    def stop_miniupnpd(self) -> None:
        if self._miniupnpd is not None:
            self._miniupnpd.kill()
            self._miniupnpd.wait()
            self._miniupnpd = None
            self._gateway().nft("flush chain inet filter prerouting_miniupnpd\nflush chain inet filter miniupnpd")

    def mapped_ports(self) -> dict[int, str]:
        """What the router has mapped on request: the port outside, and host:port inside."""
        listing = self._gateway().run("nft", "-n", "list", "chain", "inet", "filter", "prerouting_miniupnpd").stdout
        found = re.findall(r"th dport (\d+) .*dnat ip to ([0-9.]+:\d+)", listing)
        return {int(port): inside for port, inside in found}

    def forget_mappings(self) -> None:
        """The router restarts: every mapping is gone; the carrier's too, if there is one."""
        if self._nat is not None:
            self.ask_nat("flush")
        else:
            self._gateway().run("conntrack", "-F", check=False)
        if self.behind is not None:
            self.behind.forget_mappings()
