"""The laboratory: sites behind NATs and firewalls of several kinds, around a core that is several routers wide.

    host -- gateway -- hop -- hop -- hop -- core -- hop -- hop -- hop -- server

Addresses come from prefixes that count as global (192.88.99.0/24, 3fff::/20), so that nothing treats them as private.
Each site has 192.88.99.(8i)/29 and 3fff:i::/32; miniupnpd counts the former as reserved, so a upnp site has 44.128.0.(8i)/29,
from a prefix that radio amateurs keep for tests and that is routed nowhere.  The core counts the UDP bytes from each site to
each other one, so whether two peers speak directly or over the server is seen without asking ptunnel.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Literal, TypeVar

from tests.netns.kernel import ROOT, LabError, Namespace, python_module

Kind = Literal["open", "fw", "prc", "prcrace", "sym", "upnp"]
T = TypeVar("T")

DEFAULT_HOPS = 3
"""Routers between a site's gateway and the core: a datagram with a TTL of 5 dies before the far gateway."""

FIREWALL = """
table inet firewall {
    counter thrown_away { }
    counter let_in { }
    chain input {
        type filter hook input priority 0; policy accept;
        iifname "wan" ct state established,related accept
        %(input)s
    }
    chain forward {
        type filter hook forward priority 0; policy accept;
        iifname "wan" ct state established,related counter name let_in accept
        %(forward)s
    }
}
"""
DROP = 'iifname "wan" meta l4proto udp counter name thrown_away drop'
DROP_ALL = 'iifname "wan" meta l4proto { tcp, udp } counter name thrown_away drop'
NAT = """
table ip nat {
    chain postrouting {
        type nat hook postrouting priority srcnat; policy accept;
        oifname "wan" masquerade %s
    }
}
"""
# What miniupnpd writes into; it makes none of it itself.
MINIUPNPD_CHAINS = """
table inet filter {
    chain miniupnpd { }
    chain prerouting_miniupnpd { }
    chain postrouting_miniupnpd { }
    chain forward { type filter hook forward priority 0; policy accept; jump miniupnpd; }
    chain prerouting { type nat hook prerouting priority -100; policy accept; jump prerouting_miniupnpd; }
    chain postrouting { type nat hook postrouting priority 90; policy accept; jump postrouting_miniupnpd; }
}
"""
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


def eventually(what: str, condition: Callable[[], T], timeout: float = 10, step: float = 0.05) -> T:
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

    def __init__(self, lab: Lab, index: int, name: str, kind: Kind, ipv4: bool, ipv6: bool) -> None:
        self.lab = lab
        self.index = index
        self.name = name
        self.kind: Kind = kind
        self.ipv4 = ipv4
        self.ipv6 = ipv6
        self.gateway: Namespace | None = None
        self.hosts: list[Namespace] = []
        self.net = "44.128.0" if kind == "upnp" else "192.88.99"
        self.prefix = f"{self.net}.{8 * index}/29"
        self.prefix6 = f"3fff:{index:x}::/32"
        self.wan = f"{self.net}.{8 * index + 1}"  # the address at which the world sees a site with one
        self.wan6 = f"3fff:{index:x}:ff::2"
        self.addresses: list[str] = []  # of the hosts, as they know them
        self.addresses6: list[str] = []
        self._miniupnpd: subprocess.Popen[str] | None = None

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

    def thrown_away(self) -> int:
        """Datagrams from outside that nobody inside had asked for, by the gateway's own counter."""
        return self._gateway().counter("firewall", "thrown_away")[0]

    def let_in(self) -> int:
        """IP packets from outside that the gateway let through to a host inside, by its own counter."""
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
        """The router restarts: every mapping is gone."""
        self._gateway().run("conntrack", "-F", check=False)


class Lab:
    """All namespaces of one test.  Use as a context manager; nothing outlives it, nor its process."""

    def __init__(self, folder: Path, *, hops: int = DEFAULT_HOPS) -> None:
        self.folder = folder
        self.hops = hops
        self.sites: dict[str, Site] = {}
        self._namespaces: list[Namespace] = []
        self._unsettled: list[Namespace] = []
        self._closers: list[Callable[[], None]] = []
        self.core = self._namespace("core", router=True)
        self.core.nft("table inet account { chain forward { type filter hook forward priority 0; policy accept; }; }")
        self.core.nft("table inet hole { chain forward { type filter hook forward priority -10; policy accept; }; }")
        self.server = self.add_site("server", "open", ipv6=True)
        # A second address, so that behaviour discovery has something to compare with.
        self.second_address = f"192.88.99.{8 * self.server.index + 2}"
        self.server.host.ip(f"addr add {self.second_address}/32 dev eth0")

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def on_close(self, action: Callable[[], None]) -> None:
        self._closers.append(action)

    def close(self) -> None:
        while self._closers:
            self._closers.pop()()
        while self._namespaces:
            self._namespaces.pop().close()

    # ------------------------------------------------------------ building

    def _namespace(self, name: str, *, router: bool = False) -> Namespace:
        space = Namespace(f"{os.getpid()}-{name}")
        self._namespaces.append(space)
        self._unsettled.append(space)
        for scope in ("all", "default"):
            space.sysctl(f"net.ipv6.conf.{scope}.accept_dad", 0)
            space.sysctl(f"net.ipv6.conf.{scope}.accept_ra", 0)
            if router:
                space.sysctl(f"net.ipv6.conf.{scope}.forwarding", 1)
        if router:
            space.sysctl("net.ipv4.ip_forward", 1)
            space.sysctl("net.ipv4.icmp_ratelimit", 0)
        space.ip("link set lo up")
        return space

    def _cable(self, one: Namespace, one_name: str, other: Namespace, other_name: str, shape: tuple[float, float, float]) -> None:
        delay, rate, loss = shape
        if not any(shape):
            one.ip(f"link add dev {one_name} type veth peer name {other_name} netns {other.path}")
            return
        try:
            fds = [one.tap(one_name), other.tap(other_name)]
        except PermissionError:
            import pytest  # the demo builds laboratories without it

            pytest.skip("/dev/net/tun may not be opened here, and links with a delay, rate or loss are made of it")
        for space, name in ((one, one_name), (other, other_name)):
            space.ip(f"link set {name} txqueuelen 10000")
        numbers = [str(number) for number in (*fds, delay, rate, loss, 7)]
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *python_module("tests.netns.emulator", *numbers)],
            pass_fds=fds,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
        )
        for fd in fds:
            os.close(fd)

        def stop() -> None:
            process.kill()
            process.wait()

        self.on_close(stop)

    def add_site(
        self,
        name: str,
        kind: Kind,
        *,
        hosts: int = 1,
        hops: int | None = None,
        ipv4: bool = True,
        ipv6: bool = False,
        lan: str | None = None,
        mapping_life: int | None = None,
        delay: float = 0.0,
        rate: float = 0.0,
        loss: float = 0.0,
    ) -> Site:
        """Build one site and connect it to the core.

        `lan` is the first three bytes of the private network (default 192.168.(10+i)).  `mapping_life` is in seconds.
        `delay` (s, one way), `rate` (bit/s) and `loss` (0 to 1) are of the link between the site and its first router.
        """
        index = len(self.sites)
        site = Site(self, index, name, kind, ipv4, ipv6)
        hops = self.hops if hops is None else hops
        shape = (delay, rate, loss)

        # From the core outwards: each router has `north` towards the core and `south` (`s<i>` at the core) towards the site.
        edge, edge_device = self.core, f"s{index}"
        for number in range(hops):
            hop = self._namespace(f"{name}-hop{hops - number}", router=True)
            self._cable(hop, "north", edge, edge_device, (0, 0, 0))
            first, second = f"100.64.{index}.{2 * number}", f"100.64.{index}.{2 * number + 1}"
            first6, second6 = f"3fff:{2048 + index:x}:{number:x}::1", f"3fff:{2048 + index:x}:{number:x}::2"
            edge.ip(
                f"addr add {first}/31 dev {edge_device}\naddr add {first6}/64 dev {edge_device} nodad\n"
                f"link set {edge_device} up\n"
                f"route add {site.prefix} via {second}\nroute add {site.prefix6} via {second6}"
            )
            hop.ip(
                f"addr add {second}/31 dev north\naddr add {second6}/64 dev north nodad\nlink set north up\n"
                f"route add default via {first}\nroute add default via {first6}"
            )
            edge, edge_device = hop, "south"

        outer = f"{site.net}.{8 * index}"
        outer6 = f"3fff:{index:x}:ff::1"
        if kind == "open":
            border = self._namespace(name)
            device = "eth0"
            site.hosts.append(border)
            site.addresses.append(site.wan)
            site.addresses6.append(site.wan6)
        else:
            border = self._namespace(f"{name}-gateway", router=True)
            device = "wan"
            site.gateway = border
        self._cable(border, device, edge, edge_device, shape)
        downwards = [f"link set {edge_device} up"]
        upwards = [f"link set {device} up"]
        if ipv4:
            downwards += [
                f"addr add {outer}/31 dev {edge_device}",
                f"route replace {site.prefix} via {site.wan} dev {edge_device}",
            ]
            upwards += [f"addr add {site.wan}/31 dev {device}", f"route add default via {outer}"]
        if ipv6:
            downwards += [
                f"addr add {outer6}/64 dev {edge_device} nodad",
                f"route replace {site.prefix6} via {site.wan6} dev {edge_device}",
            ]
            upwards += [f"addr add {site.wan6}/64 dev {device} nodad", f"route add default via {outer6}"]
        edge.ip("\n".join(downwards))
        border.ip("\n".join(upwards))
        if kind != "open":
            self._furnish(site, border, hosts, lan)
            if mapping_life is not None:
                border.sysctl("net.netfilter.nf_conntrack_udp_timeout", mapping_life)
                border.sysctl("net.netfilter.nf_conntrack_udp_timeout_stream", mapping_life)
        self.sites[name] = site
        self._account(site)
        self._unsettled.append(self.core)
        self._settle()
        return site

    def _settle(self) -> None:
        """Wait until the kernel has noticed that every cable is plugged in at both ends; it takes up to a second over that."""
        while self._unsettled:
            space = self._unsettled[-1]
            eventually(
                f"carrier in {space.name}",
                lambda space=space: (
                    " state DOWN " not in (shown := space.run("ip", "-o", "link").stdout) and "NO-CARRIER" not in shown
                ),
                step=0.01,
            )
            self._unsettled.pop()

    def _furnish(self, site: Site, gateway: Namespace, hosts: int, lan: str | None) -> None:
        """Give a gateway its LAN, its hosts and its rules."""
        natted = site.kind in ("prc", "prcrace", "sym", "upnp")
        if natted:
            lan = lan or f"192.168.{10 + site.index}"
            inner, mask, first = f"{lan}.1", 24, 10
        else:
            lan = "192.88.99"
            inner, mask, first = f"{lan}.{8 * site.index + 5}", 30, 8 * site.index + 6
            hosts = 1  # the site's own prefix holds no more
        inner6 = f"3fff:{site.index:x}:1::1"
        gateway.ip("link add lan type bridge mcast_snooping 0\nlink set lan up")
        if site.ipv4:
            gateway.ip(f"addr add {inner}/{mask} dev lan")
        if site.ipv6:
            gateway.ip(f"addr add {inner6}/64 dev lan nodad")
        for number in range(hosts):
            host = self._namespace(site.name if hosts == 1 else f"{site.name}-{number}")
            gateway.ip(f"link add dev port{number} type veth peer name eth0 netns {host.path}")
            gateway.ip(f"link set port{number} master lan\nlink set port{number} up")
            lines = ["link set eth0 up"]
            if site.ipv4:
                site.addresses.append(f"{lan}.{first + number}")
                lines += [f"addr add {site.addresses[-1]}/{mask} dev eth0", f"route add default via {inner}"]
            if site.ipv6:
                site.addresses6.append(f"3fff:{site.index:x}:1::{16 + number:x}")
                lines += [f"addr add {site.addresses6[-1]}/64 dev eth0 nodad", f"route add default via {inner6}"]
            host.ip("\n".join(lines))
            site.hosts.append(host)

        # IPv6 passes a stateful firewall wherever there is a gateway.  prcrace answers unasked datagrams with an ICMP error,
        # and by that makes the conntrack entry that moves its own mapping to another port.
        forward = DROP_ALL if not natted else f"meta nfproto ipv6 {DROP_ALL}"
        unasked = "" if site.kind == "prcrace" else DROP
        gateway.nft(FIREWALL % {"input": unasked, "forward": forward})
        if natted:
            gateway.nft(NAT % ("fully-random" if site.kind in ("sym", "upnp") else ""))
        if site.kind == "upnp":
            gateway.nft(MINIUPNPD_CHAINS)
            site.start_miniupnpd()
            self.on_close(site.stop_miniupnpd)

    def _account(self, site: Site) -> None:
        """Have the core count UDP between this site and every other."""
        rules = []
        for other in self.sites.values():
            for one, two in ((site, other), (other, site)):
                if one is two:
                    continue
                name = f"{one.name}_to_{two.name}"
                rules.append(f"add counter inet account {name}")
                for which in (f"ip saddr {one.prefix} ip daddr {two.prefix}", f"ip6 saddr {one.prefix6} ip6 daddr {two.prefix6}"):
                    rules.append(f"add rule inet account forward {which} meta l4proto udp counter name {name}")
        if rules:
            self.core.nft("\n".join(rules))

    # ------------------------------------------------------------ watching and harming

    def udp_bytes(self, source: Site, target: Site) -> int:
        """UDP bytes (with headers) that went over the core from one site to another so far."""
        return self.core.counter("account", f"{source.name}_to_{target.name}")[1]

    def udp_bytes_both_ways(self, one: Site, other: Site) -> int:
        return self.udp_bytes(one, other) + self.udp_bytes(other, one)

    def black_hole(self, source: Site, target: Site) -> None:
        """From now on whatever goes from `source` to `target` vanishes without a word; the other way still works."""
        self.core.nft(
            f"add rule inet hole forward ip saddr {source.prefix} ip daddr {target.prefix} drop\n"
            f"add rule inet hole forward ip6 saddr {source.prefix6} ip6 daddr {target.prefix6} drop"
        )

    def heal(self) -> None:
        """Close every black hole."""
        self.core.nft("flush chain inet hole forward")
