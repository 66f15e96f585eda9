"""Every kind of site with every other, on real kernels, in both orders: is the path direct, after how long, and by what?

    python -m tests.netns.matrix [--only HOME,FRIEND ...] [--jobs 2] [--results FILE] [--resume] [--render]
    python -m tests.netns.matrix --delay 0.05 --loss 0.05   # the same over rough lines
    python -m tests.netns.matrix --carriers                 # pairs behind carriers that give each home few ports

Direct or relayed is what the kernels' byte counters at both hosts say of 200,000 bytes sent through the tunnel; the moment of
the first direct datagram is that of a packet socket beside ptunnel.  One side, drawn by the seed, hears of all 0 to 250 ms late.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.driver.tls import make_certificate
from tests.netns.kernel import ROOT, LabError, Namespace, python_module
from tests.netns.lab import Kind, Lab, Site
from tests.netns.programs import SERVER_PORT, Ptunnel, server_address, start_server
from tests.sim import oracle
from tests.sim.nat import SITES
from tunnel.control.sockets import short_path

KINDS: Final = (
    *("open", "fw", "full", "restricted", "prc", "prcrace", "uprc", "short", "upnp"),
    *("cgn", "symseq", "symad", "sym", "cgnsym", "quota", "dual", "tcp443"),
)  # fmt: skip
"""Of test_lab.py's kinds; `dual` is sym with IPv6 behind a stateful firewall."""

SITUATIONS: Final = {
    "same LAN": True,
    "same NAT that hairpins, isolated hosts": True,
    "same NAT, isolated hosts": False,
    "same carrier that hairpins": True,
    "same carrier": False,
    "overlapping LANs": True,
}
"""Pairs that share something, and whether they can be direct."""

CARRIER_PAIRS: Final = (
    *((home, friend) for home in ("symblock", "block512", "block2048") for friend in ("symblock", "block512", "block2048")),
    *(("symblock", "symseq"), ("symseq", "block512"), ("symblock", "sym"), ("sym", "block512")),
)
"""Each with a new mapping for every destination; symblock is Linux itself, told to use 512 ports."""

DELAY: Final = 0.010  # seconds, one way, of each site's line
LATE: Final = 0.250  # seconds at most
PATIENCE: Final = 20.0  # seconds after the introduction, where a direct path is possible
NO_HOPE: Final = 12.0  # the same where it is not
PAGE: Final = 200_000  # bytes
PORT: Final = 8000
PAIR_LIMIT: Final = 120.0  # seconds for one pair, with all that is built up for it
ETH_P_ALL: Final = 3
OUTGOING: Final = 4  # PACKET_OUTGOING
COUNTERS: Final = """
table inet matrix {
    counter relayed { }
    counter direct { }
    chain input {
        type filter hook input priority -200; policy accept;
        iifname "lo" accept
        ip saddr { %(servers)s } counter name relayed accept
        ip6 saddr %(server6)s counter name relayed accept
        meta l4proto udp counter name direct
    }
}
"""


class Line(NamedTuple):
    """Of each site to its first router."""

    delay: float = DELAY  # seconds, one way
    loss: float = 0.0  # of 1, each way


CLEAN: Final = Line()


@dataclass(frozen=True)
class Result:
    """One meeting.  `seconds` are from the later introduction of the two until both had heard the other directly."""

    home: str
    friend: str
    late: str  # whose news came late: home, friend
    late_s: float
    outcome: str  # direct, relayed, failed
    seconds: float | None
    technique: str
    direct_bytes: int
    relayed_bytes: int
    load: float
    note: str = ""


def can_be_direct(home: str, friend: str) -> bool:
    if not friend:
        return SITUATIONS[home]
    if "tcp443" in (home, friend):
        return False
    if home == friend == "dual":
        return True
    # A mapped port lets in everybody.
    like = {"dual": "sym", "upnp": "full", "symblock": "block512"}
    return oracle.can_meet(like.get(home, home), like.get(friend, friend))


def may_be_direct(home: str, friend: str) -> bool:
    """Not surely, but a lucky guess may make it so."""
    known = set(SITES)
    return home in known and friend in known and oracle.is_luck(home, friend)


class Watcher:
    """Beside a host's programs: when its kernel first got UDP that came neither from the server nor from its own router."""

    def __init__(self, space: Namespace, ignored: Iterable[str]) -> None:
        self.first: float | None = None
        self._ignored = {socket.inet_pton(socket.AF_INET6 if ":" in each else socket.AF_INET, each) for each in ignored}
        self._socket = space.inside(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL)))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._socket.settimeout(0.2)
        self._is_over = False
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._is_over and self.first is None:
            try:
                packet, place = self._socket.recvfrom(128)
            except TimeoutError:
                continue
            version = packet[0] >> 4 if len(packet) >= 40 or (packet and packet[0] >> 4 == 4) else 0
            if place[0] == "lo" or place[2] == OUTGOING or version not in (4, 6):
                continue
            protocol, source = (packet[9], packet[12:16]) if version == 4 else (packet[6], packet[8:24])
            if protocol == socket.IPPROTO_UDP and source not in self._ignored:
                self.first = time.monotonic()

    def close(self) -> None:
        self._is_over = True
        self._thread.join(2)
        self._socket.close()


class PageServer:
    """Says PAGE bytes to everybody who connects to the host's loopback."""

    def __init__(self, space: Namespace) -> None:
        self._socket = space.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", PORT))
        self._socket.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._socket.accept()
            except OSError:
                return
            with sock:
                sock.sendall(bytes(PAGE))

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def fetch(space: Namespace, timeout: float = 10.0) -> int:
    """Bytes of the page that came through the tunnel."""
    got = 0
    with space.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout)
        try:
            sock.connect(("127.0.0.1", PORT))
            while data := sock.recv(65_536):
                got += len(data)
        except OSError:
            return got
    return got


def status(program: Ptunnel) -> dict[str, Any]:
    """The first link of a running ptunnel, from its control socket."""
    for path in (program.home / "ptunnel" / "run").glob("*.sock"):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(3)
            try:
                with short_path(path) as spelling:
                    sock.connect(spelling)
                sock.sendall(b'{"do":"status"}\n')
                line = sock.makefile("rb").readline()
            except OSError:
                continue
            links = json.loads(line).get("links") or [{}] if line else [{}]
            return dict(links[0])
    return {}


def build(
    lab: Lab, home: str, friend: str, late: dict[str, float], line: Line
) -> tuple[tuple[Site, Namespace], tuple[Site, Namespace]]:
    """Both places with their hosts, for a pair of kinds or for a situation (whose `friend` is empty)."""

    def site(name: str, kind: str, **more: Any) -> Site:
        real: Kind = "sym" if kind == "dual" else kind  # type: ignore[assignment]
        return lab.add_site(name, real, ipv6=kind == "dual", delay=line.delay, loss=line.loss, news=late[name], **more)

    if friend:
        sites = site("home", home), site("friend", friend)
        return (sites[0], sites[0].host), (sites[1], sites[1].host)
    hairpin = {"hairpin": "that hairpins" in home}
    if home == "overlapping LANs":
        sites = site("home", "prc", lan="192.168.1"), site("friend", "uprc", lan="192.168.1")
        return (sites[0], sites[0].host), (sites[1], sites[1].host)
    if home.startswith("same carrier"):
        carrier = lab.add_site("carrier", "user", hosts=0, delay=line.delay, loss=line.loss, rules=hairpin)
        sites = lab.add_site("home", "prc", behind=carrier), lab.add_site("friend", "prc", behind=carrier)
        return (sites[0], sites[0].host), (sites[1], sites[1].host)
    shared = site("home", "uprc", hosts=2, isolated="isolated" in home, rules=hairpin)
    return (shared, shared.hosts[0]), (shared, shared.hosts[1])


def run_pair(lab: Lab, home: str, friend: str, late: str, late_s: float, line: Line = CLEAN) -> Result:
    """Introduce two who have never met, wait for the direct path, send something and look at the counters."""
    lateness = {"home": 0.0, "friend": 0.0} | {late: late_s}
    places = build(lab, home, friend, lateness, line)
    servers = (lab.server.address, lab.second_address, lab.server.address6)
    load = os.getloadavg()[0]
    watchers = []
    for site, space in places:
        space.nft(COUNTERS % {"servers": ", ".join(servers[:2]), "server6": servers[2]})
        routers = [f"{site.address.rpartition('.')[0]}.1"] if site.kind not in ("open", "fw") else []
        watchers.append(Watcher(space, [*servers, *routers]))
        lab.on_close(watchers[-1].close)
    page = PageServer(places[0][1])
    lab.on_close(page.close)

    def result(
        outcome: str, seconds: float | None = None, technique: str = "", counted: tuple[int, int] = (0, 0), note: str = ""
    ) -> Result:
        return Result(home, friend, late, late_s, outcome, seconds, technique, *counted, round(load, 1), note)

    server = ("--server", server_address(lab))
    words = ["--listen", f"{lab.second_address}:{SERVER_PORT}"]
    trust: dict[str, Any] = {}
    if "tcp443" in (home, friend):
        certificate = make_certificate(lab.folder, lab.server.address, lab.server.address6, authority=True)
        words += ["--tls-cert", str(certificate.certificate), "--tls-key", str(certificate.key)]
        trust["PTUNNEL_TLS_FINGERPRINT"] = certificate.fingerprint
    start_server(lab, *words)
    try:
        exposer = Ptunnel(lab, places[0][1], "expose", "expose", str(PORT), *server, "--name", "home", **trust)
        code = exposer.wait_event("code")["code"]
        connector = Ptunnel(lab, places[1][1], "connect", "connect", *server, "--forward", str(PORT), PTUNNEL_CODE=code, **trust)
        introduced = max(program.wait_event("paired")["heard_at"] for program in (exposer, connector))
        connector.wait_event("forward")
    except LabError as error:
        return result("failed", note=str(error).splitlines()[0])
    end = introduced + (PATIENCE if can_be_direct(home, friend) or may_be_direct(home, friend) else NO_HOPE)
    while time.monotonic() < end and any(watcher.first is None for watcher in watchers):
        time.sleep(0.02)
    moments = [watcher.first for watcher in watchers if watcher.first is not None]
    seconds = max(0.0, max(moments) - introduced) if len(moments) == len(watchers) else None
    if seconds is not None:
        settle(connector, exposer)
    before = [counters(space) for _, space in places]
    if fetch(places[1][1]) != PAGE:
        return result("failed", seconds, note="the page did not come through")
    direct, relayed = (
        sum(counters(space)[at] - earlier[at] for (_, space), earlier in zip(places, before, strict=True)) for at in (0, 1)
    )
    outcome = "direct" if direct > PAGE > 10 * relayed else "relayed" if relayed > PAGE else "failed"
    name = technique(connector, exposer, places[1][0]) if outcome == "direct" else ""
    return result(outcome, None if seconds is None or outcome != "direct" else round(seconds, 3), name, (direct, relayed))


def settle(connector: Ptunnel, exposer: Ptunnel) -> None:
    """Wait until both have left the relay, which they may only do once they have checked the path."""
    for program in (connector, exposer):
        try:
            program.wait_event("path", 5.0, kind="direct")
        except LabError:
            return


def counters(space: Namespace) -> tuple[int, int]:
    """(direct, relayed) bytes that came in so far."""
    return space.counter("matrix", "direct")[1], space.counter("matrix", "relayed")[1]


def technique(connector: Ptunnel, exposer: Ptunnel, friend: Site) -> str:
    """What made the path, in a word."""
    links = [status(program) for program in (connector, exposer)]
    used = {link.get("nat", {}).get("technique", "") for link in links} - {""}
    remotes = [str(link.get("remote", "")) for link in links]
    is_shared = friend.address.startswith("192.168.")  # else both are public, and their prefix proves nothing
    if any(remote.startswith("[") for remote in remotes):
        return "IPv6"
    if used:
        return "+".join(sorted(used))
    if is_shared and all(remote.rpartition(".")[0] == friend.address.rpartition(".")[0] for remote in remotes):
        return "LAN"
    return "checks"


# -------------------------------------------------------------------- all of them


def lateness(home: str, friend: str, seed: int) -> tuple[str, float]:
    rng = random.Random(f"{seed} {home} {friend}")
    return rng.choice(("home", "friend")), round(rng.uniform(0.0, LATE), 3)


def one(home: str, friend: str, seed: int, line: Line) -> Result:
    """A pair in this process."""
    late, late_s = lateness(home, friend, seed)
    with tempfile.TemporaryDirectory() as folder, Lab(Path(folder)) as lab:
        return run_pair(lab, home, friend, late, late_s, line)


def apart(home: str, friend: str, seed: int, line: Line) -> Result:
    """A pair in a process of its own, so that one that hangs costs no more than its time."""
    lines = ("--delay", str(line.delay), "--loss", str(line.loss))
    words = python_module("tests.netns.matrix", "--pair", home, friend, str(seed), *lines)
    late, late_s = lateness(home, friend, seed)
    note = ""
    try:
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=PAIR_LIMIT, check=False)
        if done.returncode == 0:
            return Result(**json.loads(done.stdout.splitlines()[-1]))
        note = (done.stderr.strip().splitlines() or ["?"])[-1]
    except subprocess.TimeoutExpired:
        note = f"not done within {PAIR_LIMIT:.0f} s"
    return Result(home, friend, late, late_s, "failed", None, "", 0, 0, round(os.getloadavg()[0], 1), note)


def everything() -> list[tuple[str, str]]:
    pairs = [(home, friend) for home in KINDS for friend in KINDS] + [(name, "") for name in SITUATIONS]
    return sorted(pairs, key=lambda pair: "tcp443" in pair)  # those wait the longest


def run_all(pairs: list[tuple[str, str]], jobs: int, seed: int, line: Line, take: Callable[[Result], None]) -> None:
    for folder in ("tunnel", "tests/netns"):  # else each of a thousand processes compiles it anew, if told to keep nothing
        compileall.compile_dir(ROOT / folder, quiet=1)
    with ThreadPoolExecutor(jobs) as pool:
        for result in pool.map(lambda pair: apart(pair[0], pair[1], seed, line), pairs):
            take(result)


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/nat-matrix", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--pair", nargs=3, metavar=("HOME", "FRIEND", "SEED"), help=argparse.SUPPRESS)
    parser.add_argument("--only", action="append", metavar="HOME,FRIEND", help="this pair only; * stands for every kind")
    parser.add_argument("--jobs", type=int, default=2, help="pairs at the same time (default 2)")
    parser.add_argument("--seed", type=int, default=1, help="of who is late, and by how much (default 1)")
    parser.add_argument("--results", type=Path, help="where each meeting is kept")
    parser.add_argument("--delay", type=float, default=DELAY, help="seconds of each site's line, one way (default 0.01)")
    parser.add_argument("--loss", type=float, default=0.0, help="share lost on each site's line, each way")
    parser.add_argument("--carriers", action="store_true", help="other pairs: those behind carriers with few ports for each home")
    parser.add_argument("--resume", action="store_true", help="leave out what the results already hold")
    parser.add_argument("--render", action="store_true", help="run nothing: page and picture from the results")
    options = parser.parse_args()
    line = Line(options.delay, options.loss)
    is_page = line == CLEAN and not options.carriers  # what docs/reach.md shows
    if options.results is None:
        options.results = ROOT / "docs" / "reach-matrix.jsonl" if is_page else Path(tempfile.gettempdir()) / "matrix.jsonl"
    if options.pair:
        home, friend, seed = options.pair
        print(json.dumps(asdict(one(home, friend, int(seed), line))))
        return
    from tests.netns.matrix_page import read_results, summary, write_page

    if not options.render:
        pairs = list(CARRIER_PAIRS) if options.carriers else everything()
        if options.only:
            wanted = [tuple((word + ",").split(",")[:2]) for word in options.only]
            pairs = [
                pair for pair in pairs if any(all(w in ("*", k) for w, k in zip(each, pair, strict=True)) for each in wanted)
            ]
        if options.resume and options.results.exists():
            known = {(result.home, result.friend) for result in read_results(options.results)}
            pairs = [pair for pair in pairs if pair not in known]
        elif options.results.exists() and not options.only:
            options.results.unlink()
        begun = time.monotonic()
        with options.results.open("a", encoding="utf-8") as file:

            def take(result: Result) -> None:
                file.write(json.dumps(asdict(result)) + "\n")
                file.flush()
                expected = can_be_direct(result.home, result.friend)
                odd = "" if (result.outcome == "direct") == expected else "   <- unlike what is possible"
                took = f"{result.seconds:.2f} s" if result.seconds is not None else ""
                print(
                    f"{result.home:>10} x {result.friend:<10} {result.outcome:8} {took:8} {result.technique}{odd} {result.note}",
                    flush=True,
                )

            run_all(pairs, options.jobs, options.seed, line, take)
        print(f"{len(pairs)} pairs in {time.monotonic() - begun:.0f} s", file=sys.stderr)
    if not is_page:
        print("\n".join(summary(read_results(options.results))))
    elif not options.only or options.render:
        write_page(read_results(options.results), ROOT / "docs" / "reach.md", ROOT / "docs" / "reach-matrix.svg")


if __name__ == "__main__":
    main()
