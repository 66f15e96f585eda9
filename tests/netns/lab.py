"""The laboratory: sites behind NATs and firewalls of several kinds, around a core that is several routers wide.

    host -- gateway -- hop -- hop -- hop -- core -- hop -- hop -- hop -- server

Addresses come from prefixes that count as global (192.88.99.0/24, 3fff::/20), so that nothing treats them as private.
Each site has 192.88.99.(8i)/29 and 3fff:i::/32; miniupnpd counts the former as reserved, so a upnp site has 44.128.0.(8i)/29,
from a prefix that radio amateurs keep for tests and that is routed nowhere.  After SITES_IN_A_ROW the next /24 follows.
The core counts the UDP bytes from each site to each other one, so whether two peers speak directly or over the server is seen
without asking ptunnel.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.netns.emulator import Shape
from tests.netns.kernel import ROOT, Namespace, python_module
from tests.netns.site import CARRIERS, RULES, SHORT_LIFE, Kind, Site, eventually

__all__ = ["Kind", "Lab", "Site", "eventually"]

DEFAULT_HOPS = 3
"""Routers between a site's gateway and the core: a datagram with a TTL of 5 dies before the far gateway."""

FIREWALL = """
table %(family)s firewall {
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
FIRST_BLOCK, BLOCK = 20_480, 512
"""The ports of the first site of the kind symblock, and how many each has."""
DROP = 'iifname "wan" meta l4proto udp counter name thrown_away drop'
DROP_ALL = 'iifname "wan" meta l4proto { tcp, udp } counter name thrown_away drop'
NAT = """
table ip nat {
    chain postrouting {
        type nat hook postrouting priority srcnat; policy accept;
        oifname "wan" %s
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def on_close(self, action: Callable[[], None]) -> None:
        self._closers.append(action)

    @contextmanager
    def scene(self) -> Iterator[None]:
        """What is started inside ends with it; for laboratories that several tests share."""
        before = len(self._closers)
        try:
            yield
        finally:
            while len(self._closers) > before:
                self._closers.pop()()

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

    def _cable(self, one: Namespace, one_name: str, other: Namespace, other_name: str, shape: Shape) -> int | None:
        """Return the process id of the emulator, if it takes one."""
        if shape == Shape():
            one.ip(f"link add dev {one_name} type veth peer name {other_name} netns {other.path}")
            return None
        try:
            fds = [one.tap(one_name), other.tap(other_name)]
        except PermissionError:
            import pytest  # the demo builds laboratories without it

            pytest.skip("/dev/net/tun may not be opened here, and links with a delay, rate or loss are made of it")
        for space, name in ((one, one_name), (other, other_name)):
            space.ip(f"link set {name} txqueuelen 10000")
        numbers = [str(number) for number in (*fds, 7, *shape)]
        if shape.news:
            numbers += [self.server.address, self.second_address, self.server.address6]
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
        return process.pid

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
        news: float = 0.0,
        spell: float = 0.0,
        rules: dict[str, Any] | None = None,
        behind: Site | None = None,
        isolated: bool = False,
    ) -> Site:
        """Build one site and connect it to the core.

        `lan` is the first three bytes of the private network (default 192.168.(10+i)).  `mapping_life` is in seconds.
        `delay` (s, one way), `rate` (bit/s) and `loss` (0 to 1) are of the link between the site and its first router;
        what the server says comes in `news` (s) later than the rest; Site.turn begins and ends spells of `spell` (s) more.
        `rules` are those of our own NAT, beyond what its kind says (usernat.Rules).  `behind` is the carrier's site that this
        home hangs on; of `hosts` on one LAN that are `isolated` none reaches another there.
        """
        shape = Shape(delay, rate, loss, news=news, spell=spell)
        if kind in CARRIERS and behind is None:
            behind = self.add_site(
                f"{name}-carrier",
                "user",
                hosts=0,
                hops=hops,
                delay=delay,
                rate=rate,
                loss=loss,
                news=news,
                rules=CARRIERS[kind] | (rules or {}),
            )
            shape = Shape()
        index = len(self.sites)
        site = Site(self, index, name, kind, ipv4, ipv6, behind)
        if kind == "open":
            border = self._namespace(name)
            site.hosts.append(border)
            site.addresses.append(site.wan)
            site.addresses6.append(site.wan6)
        else:
            border = site.gateway = self._namespace(f"{name}-gateway", router=True)
        if behind is None:
            self._connect(site, border, "eth0" if kind == "open" else "wan", self.hops if hops is None else hops, shape)
        else:
            self._hang(site, border, behind, shape)
        if site.gateway is not None:
            own = {**RULES.get(kind, {}), **(rules or {})} if kind in RULES or kind == "user" else None
            self._furnish(site, site.gateway, hosts, lan, own, isolated)
            if kind == "short":
                mapping_life = mapping_life or SHORT_LIFE
            if mapping_life is not None and own is None:
                border.sysctl("net.netfilter.nf_conntrack_udp_timeout", mapping_life)
                border.sysctl("net.netfilter.nf_conntrack_udp_timeout_stream", mapping_life)
        self.sites[name] = site
        if behind is None:
            self._account(site)
        self._unsettled.append(self.core)
        self._settle()
        return site

    def _connect(self, site: Site, border: Namespace, device: str, hops: int, shape: Shape) -> None:
        """Lay the line from the core to a site of its own prefix."""
        # From the core outwards: each router has `north` towards the core and `south` (`s<i>` at the core) towards the site.
        index = site.index
        edge, edge_device = self.core, f"s{index}"
        for number in range(hops):
            hop = self._namespace(f"{site.name}-hop{hops - number}", router=True)
            self._cable(hop, "north", edge, edge_device, Shape())
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
        outer = f"{site.net}.{site.first}"
        outer6 = f"3fff:{index:x}:ff::1"
        site.emulator = self._cable(border, device, edge, edge_device, shape)
        downwards = [f"link set {edge_device} up"]
        upwards = [f"link set {device} up"]
        if site.ipv4:
            downwards += [
                f"addr add {outer}/31 dev {edge_device}",
                f"route replace {site.prefix} via {site.line} dev {edge_device}",
            ]
            upwards += [f"addr add {site.line}/31 dev {device}", f"route add default via {outer}"]
        if site.ipv6:
            downwards += [
                f"addr add {outer6}/64 dev {edge_device} nodad",
                f"route replace {site.prefix6} via {site.wan6} dev {edge_device}",
            ]
            upwards += [f"addr add {site.wan6}/64 dev {device} nodad", f"route add default via {outer6}"]
        edge.ip("\n".join(downwards))
        border.ip("\n".join(upwards))

    def _hang(self, site: Site, border: Namespace, carrier: Site, shape: Shape) -> None:
        """Lay the line from a carrier's router to a home.  IPv4 only."""
        assert carrier.gateway is not None
        number = sum(other.behind is carrier for other in self.sites.values())
        self._cable(border, "wan", carrier.gateway, f"home{number}", shape)
        carrier.gateway.ip(f"link set home{number} master lan\nlink set home{number} up")
        lan = f"100.127.{carrier.index}"
        site.line = f"{lan}.{10 + number}"
        border.ip(f"link set wan up\naddr add {site.line}/24 dev wan\nroute add default via {lan}.1")

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

    def _furnish(
        self, site: Site, gateway: Namespace, hosts: int, lan: str | None, rules: dict[str, Any] | None, isolated: bool
    ) -> None:
        """Give a gateway its LAN, its hosts and its rules; `rules`, if any, are those of our own NAT."""
        natted = site.kind != "fw"
        if natted:
            lan = lan or (f"192.168.{10 + site.index}" if hosts else f"100.127.{site.index}")
            inner, mask, first = f"{lan}.1", 24, 10
        else:
            lan = site.net
            inner, mask, first = f"{lan}.{site.first + 5}", 30, site.first + 6
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
            if isolated:
                gateway.ip(f"link set port{number} type bridge_slave isolated on")
            lines = ["link set eth0 up"]
            if site.ipv4:
                site.addresses.append(f"{lan}.{first + number}")
                lines += [f"addr add {site.addresses[-1]}/{mask} broadcast + dev eth0", f"route add default via {inner}"]
            if site.ipv6:
                site.addresses6.append(f"3fff:{site.index:x}:1::{16 + number:x}")
                lines += [f"addr add {site.addresses6[-1]}/64 dev eth0 nodad", f"route add default via {inner6}"]
            host.ip("\n".join(lines))
            site.hosts.append(host)

        if rules is not None:
            addresses = rules.pop("addresses", 1)
            site.pool = tuple(f"{site.net}.{site.first + 2 + number}" for number in range(addresses))
            site.wan = site.pool[0]
            gateway.nft(FIREWALL % {"family": "ip6", "input": "", "forward": DROP_ALL})
            site.start_nat(lan, rules)
            self.on_close(site.stop_nat)
            return
        # IPv6 passes a stateful firewall wherever there is a gateway.  prcrace answers unasked datagrams with an ICMP error,
        # and by that makes the conntrack entry that moves its own mapping to another port.
        forward = DROP_ALL if not natted else f"meta nfproto ipv6 {DROP_ALL}"
        if site.kind == "tcp443":
            forward = f"meta l4proto udp drop\n{forward}"
        unasked = "" if site.kind == "prcrace" else DROP
        gateway.nft(FIREWALL % {"family": "inet", "input": unasked, "forward": forward})
        if natted:
            masquerade = "masquerade fully-random" if site.kind in ("sym", "upnp") else "masquerade"
            if site.kind == "symblock":
                first = FIRST_BLOCK + BLOCK * site.index
                masquerade = (
                    f'meta l4proto udp masquerade to :{first}-{first + BLOCK - 1} fully-random\n        oifname "wan" masquerade'
                )
            gateway.nft(NAT % masquerade)
        if site.kind == "upnp":
            gateway.nft(MINIUPNPD_CHAINS)
            site.start_miniupnpd()
            self.on_close(site.stop_miniupnpd)

    def _account(self, site: Site) -> None:
        """Have the core count UDP between this site and every other."""
        rules = []
        for other in self.sites.values():
            if other.behind is not None:
                continue
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
        return self.core.counter("account", f"{source.outermost.name}_to_{target.outermost.name}")[1]

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
