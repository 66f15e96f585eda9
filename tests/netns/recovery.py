"""What a live TCP stream through the tunnel notices when something happens to the network: a record every 10 ms, and its echo.

`python -m tests.netns.recovery [RUNS]` measures every event and prints the table of docs/reach.md.
"""

from __future__ import annotations

import socket
import statistics
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from tests.netns.kernel import Namespace
from tests.netns.lab import Kind, Lab, Site, eventually
from tests.netns.programs import Pair, Program, Ptunnel, start_server

RECORD = struct.Struct(">QQ48x")
INTERVAL = 0.01  # seconds between records
ECHO_PORT = 7000
CUT = 5.0  # seconds
AWAY = 1.0  # seconds that a server takes over its restart
PATIENCE = 30.0  # seconds after the event until the stream must flow again
DELAY = 0.01  # seconds, one way, of each home's line


class Talk:
    """One TCP connection over the tunnel that says something all the time and wants to hear it again, in order."""

    def __init__(self, lab: Lab, space: Namespace, port: int) -> None:
        self._socket = space.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.connect(("127.0.0.1", port))
        self._socket.settimeout(0.2)
        self.sent = 0
        self.heard: list[float] = []  # when each record came back
        self.trouble: BaseException | None = None
        self._is_over = False
        self._threads = [threading.Thread(target=self._guard, args=(body,), daemon=True) for body in (self._speak, self._listen)]
        for thread in self._threads:
            thread.start()
        lab.on_close(self.close)

    def _guard(self, body: Callable[[], None]) -> None:
        try:
            body()
        except BaseException as error:
            self.trouble = error

    def _speak(self) -> None:
        due = time.monotonic()
        while not self._is_over:
            self._socket.sendall(RECORD.pack(self.sent, ~self.sent & (1 << 64) - 1))
            self.sent += 1
            due += INTERVAL
            time.sleep(max(0.0, due - time.monotonic()))

    def _listen(self) -> None:
        held = b""
        while not self._is_over or len(self.heard) < self.sent:
            try:
                data = self._socket.recv(65_536)
            except TimeoutError:
                continue
            if not data:
                raise EOFError(f"the stream ended after {len(self.heard)} records")
            held += data
            while len(held) >= RECORD.size:
                number, inverse = RECORD.unpack_from(held)
                if number != len(self.heard) or number ^ inverse != (1 << 64) - 1:
                    raise ValueError(f"record {len(self.heard)} came back as {number}")
                self.heard.append(time.monotonic())
                held = held[RECORD.size :]

    def wait_flowing(self, since: float) -> None:
        """Until what was said after `since` has come back without a pause for a while."""
        wanted = [0]

        def flows() -> bool:
            if self.trouble is not None:
                raise self.trouble
            wanted[0] = wanted[0] or (self.sent if time.monotonic() > since else 0)
            return bool(wanted[0]) and len(self.heard) >= wanted[0] + 20 and len(self.heard) >= self.sent - 20

        eventually("the stream flows again", flows, PATIENCE, step=0.01)

    def silence(self, since: float) -> float:
        """The longest time from `since` on in which nothing came."""
        heard = [since, *(at for at in self.heard if at > since)]
        return max((after - before for before, after in pairwise(heard)), default=0.0)

    def finish(self) -> None:
        """Every record must have come back; raises what went wrong."""
        self._is_over = True
        for thread in self._threads:
            thread.join(5)
        if self.trouble is not None:
            raise self.trouble
        assert len(self.heard) == self.sent, (len(self.heard), self.sent)

    def close(self) -> None:
        self._is_over = True
        for thread in self._threads:
            thread.join(2)
        self._socket.close()


ECHO = """
import socket, threading
server = socket.create_server(("127.0.0.1", %d))
print("echoing", flush=True)
while True:
    sock, _ = server.accept()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    def echo(sock=sock):
        while data := sock.recv(65536):
            sock.sendall(data)
        sock.close()
    threading.Thread(target=echo, daemon=True).start()
"""


class Stage:
    """Two homes, the server, a paired couple, and a talk between them."""

    def __init__(self, lab: Lab, *, kind: Kind = "prc", uplink: str = "") -> None:
        self.lab = lab
        self.home = lab.add_site("home", kind, delay=DELAY)
        self.friend = lab.add_site("friend", kind, delay=DELAY)
        self.mobile = lab.add_site("mobile", "prc", delay=DELAY) if uplink else None
        if uplink:
            self.plug(self.site(uplink))
        self.server = start_server(lab)
        echo = Program(lab, self.home.host, "echo", [sys.executable, "-c", ECHO % ECHO_PORT])
        echo.wait_said("echoing")
        self.pair = Pair(lab, self.home, self.friend, expose=[str(ECHO_PORT)], forward=[f"7777:{ECHO_PORT}"])
        if kind != "sym":
            self.pair.wait_direct()
        time.sleep(1.0)  # the punching's end, and both mappings replied to
        self.talk = Talk(lab, self.friend.host, 7777)
        time.sleep(1.0)

    def site(self, name: str) -> Site:
        return self.lab.sites[name]

    def program(self, name: str) -> Ptunnel:
        return self.pair.exposer if name == "home" else self.pair.connector

    def plug(self, site: Site) -> None:
        """A second cable from the site's host, to the router of `mobile`; its default route is the second choice."""
        mobile = self.mobile
        assert mobile is not None
        assert mobile.gateway is not None
        lan = mobile.address.rpartition(".")[0]
        mobile.gateway.ip(f"link add dev port9 type veth peer name eth1 netns {site.host.path}")
        mobile.gateway.ip("link set port9 master lan\nlink set port9 up")
        site.host.ip(f"link set eth1 up\naddr add {lan}.20/24 dev eth1\nroute add default via {lan}.1 dev eth1 metric 500")

    def renumber(self, name: str) -> None:
        """The provider gives the home another public address; whatever knew the old one is thrown away."""
        site = self.site(name)
        gateway = site.gateway
        assert gateway is not None
        fresh = f"{site.net}.{site.first + 3}"
        gateway.ip(f"addr add {fresh}/32 dev wan")
        gateway.nft(f'flush chain ip nat postrouting\nadd rule ip nat postrouting oifname "wan" snat to {fresh}')
        site.forget_mappings()

    def unplug(self, name: str) -> None:
        self.site(name).host.ip("link set eth0 down")

    def cut(self, name: str) -> None:
        """The line beyond the router is dead for CUT seconds; nobody at home is told."""
        gateway = self.site(name).gateway
        assert gateway is not None
        gateway.nft("add chain inet firewall cut { type filter hook forward priority -5; policy drop; }")
        time.sleep(CUT)
        gateway.nft("delete chain inet firewall cut")

    def unplug_and_plug(self, name: str) -> None:
        """The host's own cable is out for CUT seconds."""
        site = self.site(name)
        site.host.ip("link set eth0 down")
        time.sleep(CUT)
        router = site.address.rpartition(".")[0] + ".1"
        site.host.ip(f"link set eth0 up\nroute add default via {router}")

    def restart_server(self) -> None:
        self.server.kill()
        time.sleep(AWAY)
        self.server = start_server(self.lab)

    def lose_server(self) -> None:
        self.server.kill()


@dataclass(frozen=True)
class Event:
    """Something that happens, and how long the stream may be silent from when it has happened (or from the line's return)."""

    name: str
    happen: Callable[[Stage], None]
    limit: float
    kind: Kind = "prc"
    uplink: str = ""
    is_over: bool = False  # `happen` also undoes what it did, and the silence counts from there


EVENTS = (
    Event("mapping flushed, connecting side", lambda s: s.site("friend").forget_mappings(), 2.0),
    Event("mapping flushed, exposing side", lambda s: s.site("home").forget_mappings(), 2.0),
    Event("mapping flushed, connecting side, racing routers", lambda s: s.site("friend").forget_mappings(), 2.0, kind="prcrace"),
    Event("mapping flushed, exposing side, racing routers", lambda s: s.site("home").forget_mappings(), 2.0, kind="prcrace"),
    Event(
        "home's and carrier's mappings flushed, connecting side", lambda s: s.site("friend").forget_mappings(), 2.0, kind="cgn"
    ),
    Event("home's and carrier's mappings flushed, exposing side", lambda s: s.site("home").forget_mappings(), 2.0, kind="cgn"),
    Event("public address changed, connecting side", lambda s: s.renumber("friend"), 2.0),
    Event("public address changed, exposing side", lambda s: s.renumber("home"), 2.0),
    Event("interface changed, connecting side", lambda s: s.unplug("friend"), 1.0, uplink="friend"),
    Event("interface changed, exposing side", lambda s: s.unplug("home"), 1.0, uplink="home"),
    Event("line cut for 5 s beyond the router", lambda s: s.cut("friend"), 2.0, is_over=True),
    Event("own cable out for 5 s", lambda s: s.unplug_and_plug("friend"), 1.0, is_over=True),
    Event("server restarted, direct", Stage.restart_server, 1.0),
    Event("server gone, direct", Stage.lose_server, 1.0),
    Event("server restarted, relayed", Stage.restart_server, 2.0, kind="sym", is_over=True),
    Event("direct black-holed towards the exposing side", lambda s: s.lab.black_hole(s.friend, s.home), 2.0),
    Event("direct black-holed towards the connecting side", lambda s: s.lab.black_hole(s.home, s.friend), 2.0),
)


def measure(lab: Lab, event: Event) -> float:
    """Seconds of silence; every record has come back, in order."""
    stage = Stage(lab, kind=event.kind, uplink=event.uplink)
    talk = stage.talk
    since = time.monotonic()
    event.happen(stage)
    if event.is_over:
        since = time.monotonic()
    talk.wait_flowing(since)
    time.sleep(0.5)
    talk.finish()
    return talk.silence(since)


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    wanted = sys.argv[2] if len(sys.argv) > 2 else ""
    print("| event | silence, median | worst | goal |\n|---|---|---|---|")
    for event in EVENTS:
        if wanted not in event.name:
            continue
        figures = []
        for _ in range(runs):
            with tempfile.TemporaryDirectory() as folder, Lab(Path(folder)) as lab:
                figures.append(measure(lab, event))
        print(f"| {event.name} | {statistics.median(figures):.2f} s | {max(figures):.2f} s | {event.limit:.0f} s |", flush=True)


if __name__ == "__main__":
    main()
