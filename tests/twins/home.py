"""The twin of the process `up`, as the page sees it: peers, forwards, grants and a room, in memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from tunnel.errors import ConfigurationError, PairingError

HOSTILE_NAME = '<img src=x onerror="document.title=1">'
"""What a peer may call itself, if it wants to harm whoever looks."""

SECRET_ADDRESS = "198.51.100.7:41000"
"""Stands in the state alone: whoever has read it has seen the state."""


RELAYS = [
    {"server": "203.0.113.2:24531", "role": "carries", "rtt_s": 0.012, "peer_rtt_s": 0.014, "why": "the nearest to both sides"},
    {"server": "203.0.113.1:24531", "role": "stands_by", "rtt_s": 0.011, "peer_rtt_s": 0.031, "why": "the next nearest"},
    {"server": "203.0.113.3:24531", "role": "idle", "rtt_s": 0.150, "peer_rtt_s": None, "why": "farther from both sides"},
]
"""The servers of a relayed link."""


def link(peer: str, kind: str | None, **more: Any) -> dict[str, Any]:
    return {
        "peer": peer, "fingerprint": f"SHA256:{peer}", "kind": kind, "remote": SECRET_ADDRESS, "rtt_s": 0.023, "rtt_age_s": 1.0,
        "mtu": 1400, "why": "", "sent_bytes": 1_000, "received_bytes": 5_000, "send_rate": 0.0, "receive_rate": 0.0,
        "packets_sent": 100, "packets_lost": 1, "packets_received": 100, "streams": 1, "drops": {}, "punching": {}, "nat": {},
        "post_quantum": True, "reachable": True, **more,
    }  # fmt: skip


def offer(code: str, what: Sequence[str]) -> tuple[str, float]:
    """The other side's command, and how long the code is good."""
    return f"ptunnel connect {code}@rv --forward {' '.join(what)}", 600.0


class TwinHome:
    """Does at once what it is asked; `refusal` makes it refuse, `wait` makes it wait."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.refusal = ""
        self.wait: Callable[[], Any] | None = None
        self.uptime_s = 3_700.0
        self.pid = os.getpid()
        self.links = [
            link("ben", "direct"),
            link("office", "relay", why="both routers choose a new port for every destination", rtt_s=0.084, relays=RELAYS),
        ]
        self.grants: dict[str, list[str]] = {"ben": ["tcp/22", "nas=192.168.1.5:445"], "office": [], "anna": []}
        self.forwards: list[dict[str, Any]] = [
            {"peer": "ben", "bind": "127.0.0.1:2222", "target": "tcp/22", "spec": "2222:22"},
            {"peer": "office", "bind": "127.0.0.1:8080", "target": "tcp/80", "spec": "8080:80"},
        ]
        self.remotes: list[dict[str, Any]] = [
            {"peer": "ben", "bind": "127.0.0.1:8080", "target": "127.0.0.1:3000", "spec": "remote:8080:3000", "listening": True,
             "rate": 10_000_000.0},
            {"peer": "ben", "bind": "127.0.0.1:8081", "target": "127.0.0.1:3001", "spec": "remote:8081:3001", "listening": False},
        ]  # fmt: skip
        self.servers = [
            {"server": "203.0.113.1:24531", "role": "in_use", "rtt_s": 0.011, "why": "it took over from another"},
            {"server": "203.0.113.2:24531", "role": "silent", "rtt_s": None, "why": "it does not answer"},
        ]
        self.rooms: list[dict[str, Any]] = [
            {
                "room": "friends", "creator": True, "interface": "ptunnel0", "subnet": "10.77.1.0/24",
                "members": [
                    {"peer": "me", "address": "10.77.1.1", "ipv6": "fd12::1", "online": True, "self": True, "creator": True},
                    {"peer": "ben", "address": "10.77.1.2", "ipv6": "fd12::2", "online": True, "self": False, "creator": False},
                    {"peer": "anna", "address": "10.77.1.3", "ipv6": "fd12::3", "online": False, "self": False, "creator": False},
                ],
            }
        ]  # fmt: skip

    async def _asked(self, *call: Any) -> None:
        self.calls.append(call)
        if self.wait is not None:
            await self.wait()
        if self.refusal:
            raise ConfigurationError(self.refusal)

    async def add_forward(self, peer: str, spec: str, *, saves: bool = False) -> dict[str, Any]:
        await self._asked("add_forward", peer, spec, saves)
        local, _, remote = spec.partition(":")
        forward = {"peer": peer, "bind": f"127.0.0.1:{local}", "target": f"tcp/{remote or local}", "spec": spec}
        self.forwards.append(forward)
        return forward

    async def remove_forward(self, peer: str, spec: str, *, saves: bool = False) -> None:
        await self._asked("remove_forward", peer, spec, saves)
        self.forwards = [each for each in self.forwards if (each["peer"], each["spec"]) != (peer, spec)]
        self.remotes = [each for each in self.remotes if (each["peer"], each["spec"]) != (peer, spec)]

    async def grant(self, peer: str, what: Sequence[str]) -> None:
        await self._asked("grant", peer, list(what))
        self.grants[peer] += what

    async def revoke(self, peer: str, what: Sequence[str] = (), *, saves: bool = False) -> None:
        await self._asked("revoke", peer, list(what), saves)
        self.grants[peer] = [each for each in self.grants[peer] if each not in what]

    async def invite(self, what: Sequence[str]) -> str:
        await self._asked("invite", list(what))
        return "731-garden-violin"

    async def join(self, code: str, forwards: Sequence[str] = (), *, saves: bool = False) -> str:
        await self._asked("join", code, list(forwards), saves)
        if code != "731-garden-violin":
            raise PairingError("The code is wrong: ask for it once more.")
        self.grants["carol"] = []
        return "carol"

    def status(self) -> dict[str, Any]:
        self.uptime_s += 1
        for number, each in enumerate(self.links, 1):
            each["sent_bytes"] += 20_000 * number
            each["received_bytes"] += 150_000 // number
            each["packets_sent"] += 100
            each["packets_lost"] += number - 1
        return {
            "event": "status", "pid": self.pid, "role": "up", "uptime_s": self.uptime_s, "server": "rv.example.net",
            "links": self.links, "forwards": self.forwards, "remotes": self.remotes, "rooms": self.rooms, "servers": self.servers,
            "peers": [{"peer": name, "why": "", "grants": list(grants)} for name, grants in self.grants.items()],
        }  # fmt: skip
