"""A fleet with a real store: codes and pairs across servers, a server that is killed, a store that stops and comes back empty.

Home knows one server and its friend another one; all three servers share a redis-server behind a password.
"""

from __future__ import annotations

import json
import signal
import sys
from typing import Any

from tests.netns.lab import Lab, Site, eventually
from tests.netns.programs import SERVER_PORT, Program, Ptunnel, ptunnel
from tests.netns.recovery import ECHO, ECHO_PORT

PASSWORD = "between-servers"
KEY = "0123456789abcdef" * 4
STORE_PORT = 6379
SEEN_S = 40.0  # seconds until all servers know each other, and for what takes a few of them
LOCAL_PORT = 7777
ASK = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1])), 20) as s:
    s.settimeout(20)
    s.sendall(b"hello")
    assert s.recv(5) == b"hello"
"""


class Fleet:
    """Three servers and their store, each on a host of its own; home and a friend behind NATs."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.store_site = lab.add_site("store", "open")
        self.store = self.start_store()
        self.sites = [lab.server, lab.add_site("server2", "open"), lab.add_site("server3", "open")]
        self.servers = [self.start(site) for site in self.sites]
        self.home = lab.add_site("home", "prc")
        self.friend = lab.add_site("friend", "prc")
        Program(lab, self.home.host, "echo", [sys.executable, "-c", ECHO % ECHO_PORT]).wait_said("echoing")
        self.wait_servers(3)

    @property
    def url(self) -> str:
        return f"redis://:{PASSWORD}@{self.store_site.address}:{STORE_PORT}/"

    def start_store(self) -> Program:
        words = ["--bind", self.store_site.address, "--port", str(STORE_PORT), "--requirepass", PASSWORD]
        words += ["--save", "", "--appendonly", "no", "--dir", str(self.lab.folder)]
        store = Program(self.lab, self.store_site.host, "redis", ["redis-server", *words])
        store.wait_said("eady to accept connections")
        return store

    def start(self, site: Site) -> Ptunnel:
        words = ("serve", "--listen", f"{site.address}:{SERVER_PORT}", "--drain", "10")
        server = Ptunnel(self.lab, site.host, f"serve-{site.name}", *words, PTUNNEL_FLEET=self.url, PTUNNEL_FLEET_KEY=KEY)
        server.wait_event("listening")
        return server

    def status(self) -> list[dict[str, Any]]:
        """The servers that have said something lately."""
        home, words = self.lab.folder / "asks", ("serve", "--fleet-status", "--json")
        done = ptunnel(self.store_site.host, home, *words, PTUNNEL_FLEET=self.url, PTUNNEL_FLEET_KEY=KEY)
        found = json.loads(done.stdout)["servers"] if done.returncode == 0 else []
        return [each for each in found if each["age_s"] <= 10 and not each["drains"]]

    def is_up(self, server: dict[str, Any]) -> bool:
        """Whether its process runs."""
        place = server["addresses"][0].rpartition(":")[0]
        return any(
            each.process.poll() is None for site, each in zip(self.sites, self.servers, strict=True) if site.address == place
        )

    def wait_servers(self, count: int) -> None:
        eventually(f"{count} servers", lambda: len(self.status()) == count, SEEN_S, step=0.5)

    def expose(self, server: int = 0) -> Ptunnel:
        words = ("expose", str(ECHO_PORT), "--server", f"{self.sites[server].address}:{SERVER_PORT}", "--name", "home")
        return Ptunnel(self.lab, self.home.host, "expose", *words)

    def connect(self, *words: str, server: int = 1, **more: str) -> Ptunnel:
        where = f"{self.sites[server].address}:{SERVER_PORT}"
        home = self.lab.folder / "home-friend"
        forward = ("--forward", f"{LOCAL_PORT}:{ECHO_PORT}")
        return Ptunnel(self.lab, self.friend.host, "connect", "connect", *words, "--server", where, *forward, home=home, **more)

    def pair(self, exposer: Ptunnel) -> Ptunnel:
        """A friend that has typed the code."""
        connector = self.connect(PTUNNEL_CODE=exposer.wait_event("code", SEEN_S)["code"])
        connector.wait_event("paired", SEEN_S)
        return connector

    def wait_carries(self, connector: Ptunnel) -> None:
        """A connection through the forward comes back."""
        connector.wait_event("forward", SEEN_S)
        eventually("an echo", lambda: self._asks(), SEEN_S, step=0.5)

    def _asks(self) -> bool:
        words = [sys.executable, "-c", ASK, str(LOCAL_PORT)]
        return self.friend.host.run(*words, timeout=60, check=False).returncode == 0

    def end(self, program: Ptunnel) -> None:
        program.interrupt()
        program.wait(20)


def test_a_pair_meets_by_code_and_again_whichever_servers_its_sides_are_on(lab: Lab) -> None:
    fleet = Fleet(lab)
    exposer = fleet.expose()
    first = fleet.pair(exposer)
    fleet.wait_carries(first)
    fleet.end(first)
    fleet.end(exposer)
    again = fleet.expose(2)
    again.wait_event("listening", SEEN_S)
    second = fleet.connect("home")
    fleet.wait_carries(second)


def test_a_code_that_was_given_out_is_good_when_its_server_is_killed(lab: Lab) -> None:
    fleet = Fleet(lab)
    exposer = fleet.expose()
    code = exposer.wait_event("code", SEEN_S)["code"]
    fleet.servers[0].kill()
    eventually("home brought its code along", lambda: any(each["codes"] for each in fleet.status() if fleet.is_up(each)), SEEN_S)
    connector = fleet.connect(server=2, PTUNNEL_CODE=code)
    connector.wait_event("paired", 2 * SEEN_S)
    fleet.wait_carries(connector)


def test_pairs_across_servers_meet_when_the_store_is_back_and_those_on_one_server_without_it(lab: Lab) -> None:
    fleet = Fleet(lab)
    exposer = fleet.expose()
    first = fleet.pair(exposer)
    fleet.end(first)
    fleet.store.process.send_signal(signal.SIGSTOP)
    beside = fleet.connect("home", server=0)
    fleet.wait_carries(beside)
    fleet.end(beside)
    fleet.store.process.send_signal(signal.SIGCONT)
    fleet.store.kill()
    across = fleet.connect("home")
    fleet.store = fleet.start_store()
    fleet.wait_carries(across)
    fleet.wait_servers(3)


def test_a_server_that_is_stopped_sends_who_waits_there_to_the_others(lab: Lab) -> None:
    fleet = Fleet(lab)
    exposer = fleet.expose()
    first = fleet.pair(exposer)
    fleet.end(first)
    fleet.servers[0].interrupt()
    fleet.servers[0].wait(SEEN_S)
    fleet.wait_servers(2)
    second = fleet.connect("home")
    fleet.wait_carries(second)
