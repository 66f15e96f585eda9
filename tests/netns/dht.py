"""The DHT of the laboratory: a farm of libtorrent's nodes on a site of its own, each in a network of its own."""

from __future__ import annotations

from collections.abc import Sequence

from tests.netns.kernel import python_module
from tests.netns.lab import Lab, eventually
from tests.netns.programs import Program, environment

NODES = 60
ENTRIES = 4  # of them, that ptunnel is told
READY_S = 60.0


class Farm(Program):
    """Runs until the laboratory is closed; `bootstrap` is what PTUNNEL_DHT_BOOTSTRAP says."""

    def __init__(self, lab: Lab, nodes: int = NODES, *, ipv6: bool = False, delay: float = 0.0, loss: float = 0.0) -> None:
        site = lab.add_site("dht", "open", hops=0, ipv6=True, delay=delay, loss=loss)
        hosts = [f"3fff:{0xE00 + number:x}::1" if ipv6 else f"44.{128 + number}.7.1" for number in range(nodes)]
        prefix = "3fff:e00::/24" if ipv6 else "44.128.0.0/9"
        length = "128 dev eth0 nodad" if ipv6 else "32 dev eth0"
        site.host.ip("\n".join(f"addr add {host}/{length}" for host in hosts))
        lab.core.ip(f"route add {prefix} via {site.wan6 if ipv6 else site.line}")
        words = python_module("tests.netns.dht_farm", *hosts)
        super().__init__(lab, site.host, "farm", words, env=environment(lab.folder / "farm"), stdin=-1)
        self.wait_said("ready", READY_S)
        self.hosts = hosts
        self.bootstrap = entry_of(hosts)

    def ask(self, command: str) -> str:
        """What it says to one of its commands."""
        before = self.said().count("\n")
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n".encode())
        self.process.stdin.flush()
        eventually(command, lambda: self.said().count("\n") > before, READY_S)
        return self.said().splitlines()[-1]


def entry_of(hosts: Sequence[str]) -> str:
    return ",".join(f"[{host}]:6881" if ":" in host else f"{host}:6881" for host in hosts[:ENTRIES])
