"""Who reads what a running process says of its links: pages, tables and lines, of whatever version that process is."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from tests.fuzz.engine import Machine
from tunnel.cli.bench import row
from tunnel.cli.render import duration, json_line, milliseconds, path_line, rate, round_trip, short_duration, traffic
from tunnel.cli.status import page
from tunnel.control.messages import decode_answer, encode_line
from tunnel.errors import MalformedPacket

LINK: dict[str, Any] = {
    "peer": "home",
    "fingerprint": "SHA256:x",
    "kind": "relay",
    "remote": "198.51.100.7:4500",
    "rtt_s": 0.0231,
    "rtt_age_s": 12.0,
    "mtu": 1472,
    "why": "both routers use a new port",
    "sent_bytes": 10**9,
    "received_bytes": 5,
    "send_rate": 1.5e6,
    "receive_rate": 0.0,
    "packets_sent": 1000,
    "packets_lost": 3,
    "streams": 2,
    "drops": {"replayed": 1},
    "punching": {"state": "checking", "checks_left": 5},
    "nat": {"ours": "endpoint-independent", "theirs": "unknown", "technique": ""},
}
MEMBER = {**LINK, "address": "10.9.8.2", "ipv6": "fd00::2", "online": True, "self": False, "creator": True}
STATUS: dict[str, Any] = {"event": "status", "pid": 4711, "role": "connect", "uptime_s": 12.5, "links": [LINK]}
ANSWERS: list[dict[str, Any]] = [
    {**STATUS, "forwards": [{"bind": "127.0.0.1:2222", "target": "tcp/22"}], "counters": {}, "drops": {}},
    {**STATUS, "role": "expose", "links": []},
    {
        **STATUS,
        "role": "lan",
        "room": "game",
        "subnet": "10.9.8.0/24",
        "members": [MEMBER, {**MEMBER, "self": True}, {**MEMBER, "kind": None}],
    },
    {"event": "error", "code": "busy", "message": "again"},
    {"event": "bench", "what": "path", "kind": "relay", "remote": "x", "mtu": 1472, "why": "because", "peer": "home"},
    {
        "event": "bench",
        "what": "rtt",
        "load": "idle",
        "min_s": 0.01,
        "median_s": 0.02,
        "max_s": 0.03,
        "pings": 10,
        "lost": 0,
        "peer": "home",
    },
    {
        "event": "bench",
        "what": "stream",
        "way": "up",
        "mbit_s": 1234.5,
        "bytes": 10**9,
        "seconds": 3.0,
        "lost_percent": 0.1,
        "rtt_median_s": None,
        "rtt_max_s": 0.2,
        "mtu": 1472,
        "peer": "home",
    },
    {
        "event": "bench",
        "what": "datagrams",
        "way": "down",
        "size": 1200,
        "datagrams_s": 9000,
        "mbit_s": 88.1,
        "sent": 5,
        "received": 4,
        "lost_percent": 20.0,
        "peer": "home",
    },
]
FIGURES = (duration, milliseconds, rate, short_duration)
OTHERS = (b"null", b"-1", b"1e308", b"1e400", b"0", b"true", b'"x"', b"[]", b"{}", b"1" * 400, b'"\\ud800"', b"-0.0", b"[[[[]]]]")


class _Consumers:
    """Inputs: what reads it, and a line of JSON."""

    def feed(self, data: bytes) -> None:
        if len(data) < 2:
            return
        if data[0] & 1:
            self._figure(data[1:])
            return
        with contextlib.suppress(MalformedPacket):
            answer = decode_answer(data[1:])
            lines = [*page([answer, answer]), row(answer), json_line(answer)]
            assert all(isinstance(line, str) for line in lines)

    @staticmethod
    def _figure(data: bytes) -> None:
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            return
        for show in FIGURES:
            assert show(value).isprintable()
        if isinstance(value, dict):
            with contextlib.suppress(LookupError, TypeError):
                path_line(value)
                traffic(value)
                round_trip(value)

    def end(self) -> None:
        pass


def corpus() -> list[bytes]:
    lines = [encode_line(each).strip() for each in ANSWERS]
    found = [b"\0" + line for line in lines] * 2
    for line in lines:  # each value once replaced by what it should not be
        for number, at in enumerate(at for at in range(len(line)) if line[at : at + 1] == b":"):
            end = min((line.find(mark, at) for mark in (b",", b"}") if line.find(mark, at) > 0), default=len(line))
            found.append(b"\0" + line[: at + 1] + OTHERS[number % len(OTHERS)] + line[end:])
    return found + [b"\1" + each for each in (*OTHERS, b"0.5", b"-7", b"1e17", b"NaN", b"Infinity", json.dumps(LINK).encode())]


MACHINES = [Machine("consumers", corpus, lambda _seed: _Consumers(), length=1_000)]
