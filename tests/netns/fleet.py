"""Several servers, and what is noticed of it when one of them, or the store that they share, fails.

`python -m tests.netns.fleet [N] [drain] [listed]` prints the silences of a relayed link in N kills (or orderly ends) of the
server that carries it, of a fleet or of a list; `python -m tests.netns.fleet outages [SECONDS]` what outages of the store cost.
"""

from __future__ import annotations

import json
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias

from tests.netns.lab import Lab, Site, eventually
from tests.netns.programs import SERVER_PORT, Pair, Program, Ptunnel, ptunnel
from tests.netns.recovery import DELAY, ECHO, ECHO_PORT, Talk

PASSWORD = "between-servers"
KEY = "0123456789abcdef" * 4
STORE_PORT = 6379
SLOW = 0.25  # seconds, one way, of the store's line in a spell
LINK_PORT, LOCAL_PORT = 7777, 7778  # of the link under a talk, and of another one
STANDING = 90.0  # seconds until a server that has returned stands by at the latest
SEEN = 40.0  # seconds until all servers know each other, and for what takes a few of them
GONE = 11.0  # seconds without the store, after which the others count a server as gone; ...
BROKEN = 4.0  # ... in which three batches fail, and nothing is tried any more but one question a second
DRAIN = 20  # seconds that a server's clients may take
Outage: TypeAlias = Literal["nothing", "parted", "killed", "stopped", "emptied", "slowed"]
OUTAGES: dict[Outage, str] = {
    "nothing": "nothing fails",
    "parted": "one server parted from the store",
    "killed": "store killed, then back and empty",
    "stopped": "store stopped (SIGSTOP)",
    "emptied": "store restarted at once, empty",
    "slowed": "store takes 500 ms",
}
ASK = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1])), 20) as s:
    s.settimeout(20)
    s.sendall(b"hello")
    assert s.recv(5) == b"hello"
"""


class Fleet:
    """Three servers, and two homes behind NATs.

    Each has a host of its own, or a port `on_one` machine.  They share a redis-server behind a password, or are no fleet but a
    list that clients have.
    """

    def __init__(self, lab: Lab, *, on_one: bool = False, is_list: bool = False) -> None:
        self.lab = lab
        if on_one:
            self.sites = {f"{lab.server.address}:{SERVER_PORT + 2 * number}": lab.server for number in range(3)}
        else:
            sites = (lab.server, lab.add_site("server2", "open"), lab.add_site("server3", "open"))
            self.sites = {f"{site.address}:{SERVER_PORT}": site for site in sites}
        self.names = list(self.sites)  # the address of each
        self.store_site: Site | None = None
        if not is_list:
            self.store_site = lab.add_site("store", "open", spell=SLOW)
            self.store = self.start_store()
        self.programs = {name: self.begin(name) for name in self.names}
        self.home = lab.add_site("home", "prc", delay=DELAY)
        self.friend = lab.add_site("friend", "prc", delay=DELAY)
        Program(lab, self.home.host, "echo", [sys.executable, "-c", ECHO % ECHO_PORT]).wait_said("echoing")
        for server in self.programs.values():
            server.wait_event("listening")
        if not is_list:
            self.wait_servers(3)

    # the store

    @property
    def url(self) -> str:
        assert self.store_site is not None
        return f"redis://:{PASSWORD}@{self.store_site.address}:{STORE_PORT}/"

    def start_store(self) -> Program:
        assert self.store_site is not None
        words = ["--bind", self.store_site.address, "--port", str(STORE_PORT), "--requirepass", PASSWORD]
        words += ["--save", "", "--appendonly", "no", "--dir", str(self.lab.folder)]
        store = Program(self.lab, self.store_site.host, "redis", ["redis-server", *words])
        store.wait_said("eady to accept connections")
        return store

    @contextmanager
    def outage(self, what: Outage) -> Iterator[None]:
        """Of the store, as the first server sees it."""
        assert self.store_site is not None
        match what:
            case "nothing":
                yield
            case "parted":
                first = self.sites[self.names[0]]
                self.lab.black_hole(first, self.store_site)
                self.lab.black_hole(self.store_site, first)
                yield
                self.lab.heal()
            case "killed":
                self.store.kill()
                yield
                self.store = self.start_store()
            case "stopped":
                self.store.process.send_signal(signal.SIGSTOP)
                yield
                self.store.process.send_signal(signal.SIGCONT)
            case "emptied":
                self.store.kill()
                self.store = self.start_store()
                yield
            case "slowed":
                self.store_site.turn()
                yield
                self.store_site.turn()

    # the servers

    def begin(self, name: str) -> Ptunnel:
        """Start the server of that address."""
        host, log = self.sites[name].host, f"serve-{name.replace(':', '-')}"
        words = ["serve", "--listen", name]
        if self.store_site is None:
            return Ptunnel(self.lab, host, log, *words)
        words += ["--drain", str(DRAIN)]
        return Ptunnel(self.lab, host, log, *words, PTUNNEL_FLEET=self.url, PTUNNEL_FLEET_KEY=KEY)

    def start(self, name: str) -> None:
        self.programs[name] = self.begin(name)
        self.programs[name].wait_event("listening")

    def status(self) -> list[dict[str, Any]]:
        """The servers that have said something lately."""
        assert self.store_site is not None
        home, words = self.lab.folder / "asks", ("serve", "--fleet-status", "--json")
        done = ptunnel(self.store_site.host, home, *words, PTUNNEL_FLEET=self.url, PTUNNEL_FLEET_KEY=KEY)
        found = json.loads(done.stdout)["servers"] if done.returncode == 0 else []
        return [each for each in found if each["age_s"] <= 10 and not each["drains"] and self.is_up(each["addresses"][0])]

    def is_up(self, name: str) -> bool:
        """Whether its process runs."""
        return self.programs[name].process.poll() is None

    def wait_servers(self, count: int) -> None:
        eventually(f"{count} servers", lambda: len(self.status()) == count, SEEN, step=0.2)

    # clients

    def expose(self, server: int = 0, name: str = "office") -> Ptunnel:
        words = ("expose", str(ECHO_PORT), "--server", self.names[server], "--name", name)
        return Ptunnel(self.lab, self.home.host, f"expose-{name}", *words)

    def connect(self, *words: str, server: int = 1, name: str = "guest", **more: str) -> Ptunnel:
        port = LOCAL_PORT if name == "guest" else LOCAL_PORT + 1
        words = ("connect", *words, "--server", self.names[server], "--forward", f"{port}:{ECHO_PORT}")
        return Ptunnel(self.lab, self.friend.host, name, *words, home=None, **more)

    def know_office(self) -> Ptunnel:
        """A program at the first server that a guest knows, who has typed its code at the second one."""
        office = self.expose()
        guest = self.connect(PTUNNEL_CODE=office.wait_event("code", SEEN)["code"])
        guest.wait_event("paired", SEEN)
        self.wait_carries(guest)
        self.end(guest)
        return office

    def wait_carries(self, connector: Ptunnel) -> None:
        """A connection through the forward comes back."""
        connector.wait_event("forward", SEEN)
        words = [sys.executable, "-c", ASK, str(LOCAL_PORT)]
        run = self.friend.host.run
        eventually("an echo", lambda: run(*words, timeout=60, check=False).returncode == 0, SEEN, step=0.2)

    def end(self, *programs: Ptunnel) -> None:
        for each in programs:
            each.interrupt()
        for each in programs:
            each.wait(20)


class Link:
    """Home and its friend with a link that the servers relay, and a talk over it."""

    def __init__(self, fleet: Fleet, *ports: tuple[int, int]) -> None:
        """`ports`: further ones at home, each with its port at the friend's."""
        self.fleet = fleet
        known = fleet.names if fleet.store_site is None else fleet.names[:1]
        all_ports = ((ECHO_PORT, LINK_PORT), *ports)
        expose, forward = [str(there) for there, _ in all_ports], [f"{here}:{there}" for there, here in all_ports]
        self.pair = Pair(
            fleet.lab, fleet.home, fleet.friend, expose=expose, forward=forward, path="relay", server=",".join(known)
        )
        self.wait_standing()
        self.talk = Talk(fleet.lab, fleet.friend.host, LINK_PORT)
        time.sleep(1.0)

    def relays(self, of: str = "friend") -> list[dict[str, Any]]:
        """As `status` has them."""
        site, program = (self.fleet.home, self.pair.exposer) if of == "home" else (self.fleet.friend, self.pair.connector)
        said = ptunnel(site.host, program.home, "status", "--json").stdout.splitlines()
        links = [link for line in said for link in json.loads(line).get("links", [])]
        return links[0]["relays"] if links else []

    def server(self, role: str, of: str = "friend") -> str:
        """The address of the one that carries or stands by there, or nothing."""
        return next((each["server"] for each in self.relays(of) if each["role"] == role), "")

    def wait_standing(self) -> None:
        """Until a second server stands by on both sides."""
        eventually(
            "a server stands by", lambda: self.server("stands_by") and self.server("stands_by", "home"), STANDING, step=0.2
        )

    def lose(self, carrier: str, *, is_drained: bool = False) -> float:
        """Seconds of silence after that server, which carries, is killed, or ended in good order."""
        program = self.fleet.programs[carrier]
        since = time.monotonic()
        if is_drained:
            program.interrupt()
        else:
            program.kill()
        self.talk.wait_flowing(since)
        eventually("another server carries", lambda: self.server("carries") not in ("", carrier), SEEN, step=0.2)
        silence = self.talk.silence(since)
        if is_drained:
            program.wait(DRAIN + 5)
        return silence

    def finish(self) -> None:
        """No byte was lost, and it is the link that it was."""
        self.talk.finish()
        assert self.pair.connector.kinds().count("paired") == 1


def go_through(fleet: Fleet, link: Link, what: Outage, seconds: float) -> dict[str, float]:
    """An outage of at least so long; the seconds that it cost.

    Meanwhile a person is shown a code at the first server, and a friend who is there uses it.  Two who know each other and are
    at two servers want to meet: negative where they do before the store is back.  Another code that was shown is used
    elsewhere, after that.
    """
    costs: dict[str, float] = {}

    def timed(name: str, since: float) -> None:
        costs[name] = time.monotonic() - since

    since = time.monotonic()
    with fleet.outage(what):
        begun = time.monotonic()
        across = fleet.connect("office", server=1)
        shown = fleet.expose(0, f"{what}-one")
        code = shown.wait_event("code", SEEN)["code"]
        timed("a code is shown", begun)
        kept = fleet.expose(0, f"{what}-two")
        guest = fleet.connect(server=0, name="beside", PTUNNEL_CODE=code)
        guest.wait_event("paired", SEEN)
        timed("and used at that server", begun)
        code = kept.wait_event("code", SEEN)["code"]
        time.sleep(max(0.0, since + seconds - time.monotonic()))
    back = time.monotonic()
    fleet.wait_carries(across)
    costs["two on two servers meet"] = across.wait_event("forward")["heard_at"] - back
    fleet.end(across)
    claimed = time.monotonic()
    late = fleet.connect(server=2, PTUNNEL_CODE=code)
    late.wait_event("paired", SEEN)
    timed("the code is used elsewhere", claimed)
    fleet.end(late, guest, kept, shown)
    fleet.wait_servers(3)
    timed("all servers see each other", back)
    link.talk.wait_flowing(time.monotonic())
    costs["the link is silent"] = link.talk.silence(since)
    return costs


def print_outages(lab: Lab, seconds: float) -> None:
    fleet = Fleet(lab)
    fleet.know_office()
    link = Link(fleet)
    for what, text in OUTAGES.items():
        print(f"{text}, {seconds:.0f} s:", flush=True)
        for name, figure in go_through(fleet, link, what, seconds).items():
            print(f"    {name}: {figure:.2f} s", flush=True)
    link.finish()


def print_silences(lab: Lab, count: int, *, is_drained: bool, is_list: bool) -> None:
    link = Link(Fleet(lab, is_list=is_list))
    figures: list[float] = []
    since = time.monotonic()
    for _ in range(count):
        link.wait_standing()
        carrier = link.server("carries")
        figures.append(link.lose(carrier, is_drained=is_drained))
        link.fleet.start(carrier)
        print(f"{figures[-1] * 1000:.0f} ms", flush=True)
    took = time.monotonic() - since
    link.finish()
    what = "orderly ends" if is_drained else "kills"
    middle, longest = statistics.median(figures) * 1000, max(figures) * 1000
    print(f"{count} {what} in {took:.0f} s: median {middle:.0f} ms, longest {longest:.0f} ms, nothing lost")


def main() -> None:
    words = sys.argv[1:]
    numbers = [int(word) for word in words if word.isdigit()]
    with tempfile.TemporaryDirectory() as folder, Lab(Path(folder)) as lab:
        if "outages" in words:
            print_outages(lab, numbers[0] if numbers else 60)
        else:
            count = numbers[0] if numbers else 20
            print_silences(lab, count, is_drained="drain" in words, is_list="listed" in words)


if __name__ == "__main__":
    main()
