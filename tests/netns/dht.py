"""The DHT of the laboratory: nodes that are not ours on a site of their own, each in a network of its own.

Most are libtorrent's; some are those of npm's bittorrent-dht, whose ids fit no address and which do not say where they see us.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.netns.kernel import ROOT, python_module
from tests.netns.lab import Lab, Site, eventually
from tests.netns.programs import Program, environment
from tunnel.dht.bencode import Value, decode_value
from tunnel.dht.krpc import encode_announce, encode_get_peers

NODES = 60
OTHERS = 12  # of bittorrent-dht
ENTRIES = 4  # nodes that ptunnel is told of
PORT = 6881
READY_S = 60.0
JS_MODULE = ROOT / ".venv" / "node" / "node_modules" / "bittorrent-dht" / "index.js"
"""Where scripts/node-packages puts it."""


class _Nodes(Program):
    """A process full of nodes, which takes commands."""

    def ask(self, command: str) -> str:
        """What it says to one of its commands."""
        before = self.said().count("\n")
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()
        eventually(command, lambda: self.said().count("\n") > before, READY_S)
        return self.said().splitlines()[-1]

    def peers(self, info_hash: bytes) -> list[str]:
        """What a lookup of theirs finds under an infohash: HOST:PORT each."""
        found: list[str] = json.loads(self.ask(f"peers {info_hash.hex()}"))
        return found

    def announce(self, info_hash: bytes, port: int) -> None:
        self.ask(f"announce {info_hash.hex()} {port}")


class Farm(_Nodes):
    """libtorrent's nodes.  Runs until the laboratory is closed; `bootstrap` is what PTUNNEL_DHT_BOOTSTRAP says."""

    def __init__(self, lab: Lab, nodes: int = NODES, *, ipv6: bool = False, delay: float = 0.0, loss: float = 0.0) -> None:
        self.site = lab.add_site("dht", "open", hops=0, ipv6=True, delay=delay, loss=loss)
        hosts = [f"3fff:{0xE00 + number:x}::1" if ipv6 else f"44.{128 + number}.7.1" for number in range(nodes)]
        add_addresses(self.site, hosts)
        prefix = "3fff:e00::/24" if ipv6 else "44.128.0.0/9"
        lab.core.ip(f"route add {prefix} via {self.site.wan6 if ipv6 else self.site.line}")
        words = python_module("tests.netns.dht_farm", *hosts)
        super().__init__(lab, self.site.host, "farm", words, env=environment(lab.folder / "farm"), stdin=-1)
        self.wait_said("ready", READY_S)
        self.hosts = hosts
        self.bootstrap = entry_of(hosts)


class OtherNodes(_Nodes):
    """Those of bittorrent-dht, beside libtorrent's."""

    def __init__(self, lab: Lab, farm: Farm, nodes: int = OTHERS) -> None:
        self.hosts = [f"44.{128 + NODES + number}.7.1" for number in range(nodes)]
        add_addresses(farm.site, self.hosts)
        script = ROOT / "tests" / "netns" / "dht_js" / "nodes.mjs"
        words: list[str | Path] = ["node", script, JS_MODULE, farm.bootstrap, *self.hosts]
        super().__init__(lab, farm.site.host, "others", words, env=environment(lab.folder / "others"), stdin=-1)
        self.wait_said("ready", READY_S)


def add_addresses(site: Site, hosts: Sequence[str]) -> None:
    lengths = {True: "128 dev eth0 nodad", False: "32 dev eth0"}
    site.host.ip("\n".join(f"addr add {host}/{lengths[':' in host]}" for host in hosts))


def entry_of(hosts: Sequence[str], port: int = PORT) -> str:
    return ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host in hosts[:ENTRIES])


def leave_dead_homes(farm: Farm, count: int = 40) -> int:
    """Have every node learn of homes that are gone: libtorrent takes whoever announces for a node, read-only or not.

    Returns how many announcements were accepted.
    """
    hosts = [f"44.{128 + number}.9.1" for number in range(count)]
    add_addresses(farm.site, hosts)
    accepted = 0
    for number, host in enumerate(hosts):
        sock = farm.site.host.socket()
        sock.bind((host, 40_000 + number))
        sock.settimeout(0.05)
        own, info_hash = bytes((17 * number & 0xFF, number)) * 10, bytes((31 * number & 0xFF, 7 * number & 0xFF)) * 10
        for node in farm.hosts:
            sock.sendto(encode_get_peers(b"g", own, info_hash, wants_nodes=False), (node, PORT))
        for answer, source in list(_answers(sock, len(farm.hosts))):
            token = answer.get(b"token")
            if isinstance(token, bytes):
                sock.sendto(encode_announce(b"a", own, info_hash, token, None), source)
        accepted += sum(1 for _ in _answers(sock, len(farm.hosts)))
        sock.close()
    return accepted


def _answers(sock: socket.socket, count: int, patience: float = 1.0) -> Iterator[tuple[dict[bytes, Value], tuple[str, int]]]:
    end = time.monotonic() + patience
    while count and time.monotonic() < end:
        try:
            data, source = sock.recvfrom(4_096)
        except TimeoutError:
            return
        message = decode_value(data)
        assert isinstance(message, dict)
        answer = message.get(b"r")
        if isinstance(answer, dict):
            count -= 1
            yield answer, source
