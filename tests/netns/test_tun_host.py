"""The interface on the host: privilege is gone once it exists, the keeper does the rest, and nothing of either stays."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.netns.kernel import Namespace
from tests.netns.lab import eventually
from tests.netns.test_tun import addresses, config, shown

HOSTS = b"127.0.0.1 localhost\n"
PROGRAM = """
import json, os, socket, subprocess, sys, time, trio
from tunnel.errors import ConfigurationError
from tunnel.faults import Faults
from tunnel.doors.tun.config import InterfaceConfig
from tunnel.doors.tun.host import open_host_interface
from tunnel.doors.tun import privileges, process

def say(**facts):
    print(json.dumps(facts), flush=True)

def status(pid, field):
    with open(f"/proc/{pid}/status") as file:
        return next(line.split()[1] for line in file if line.startswith(field + ":"))

warnings = []

async def discover(interface, targets, bind):
    "What is given to the LAN of one datagram to each target, from a socket bound to nothing."
    found, games = [], []
    def take(packet):
        found.append(packet.hex())
        if len(found) == len(targets):
            nursery.cancel_scope.cancel()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(interface.run_discovery, take, Faults(), warnings.append)
            for host, scope in targets:
                family = socket.AF_INET6 if ":" in host else socket.AF_INET
                game = socket.socket(family, socket.SOCK_DGRAM)
                games.append(game)
                game.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                if bind:
                    game.bind((bind, 0))
                if scope:
                    game.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex(scope))
                game.sendto(b"any server?", (host, 4445))
    for game in games:
        game.close()
    return found

async def main():
    await trio.to_thread.run_sync(lambda: None)          # leaves an idle worker thread that has our capabilities
    started = time.perf_counter()
    interface = await open_host_interface(InterfaceConfig.from_json(json.loads(sys.argv[1])), hosts_path=sys.argv[2])
    say(name=interface.name, ms=(time.perf_counter() - started) * 1e3, facts=interface.facts, pid=interface._keeper.pid,
        rss_kb=int(status(interface._keeper.pid, "VmRSS")), keeper_caps=status(interface._keeper.pid, "CapEff"),
        caps=[status("self", field) for field in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs")],
        threads=privileges.privileged_threads(), reflects=interface.reflector is not None,
        pyroute2="pyroute2" in sys.modules)
    try:
        while words := await trio.to_thread.run_sync(sys.stdin.readline):
            command = json.loads(words)
            try:
                match command["do"]:
                    case "mtu":
                        started = time.perf_counter()
                        await interface.set_mtu(command["mtu"])
                        say(ms=(time.perf_counter() - started) * 1e3)
                    case "names":
                        await interface.set_names(command["names"])
                        say()
                    case "renumber":
                        say(facts=await interface.renumber(InterfaceConfig.from_json(command["config"])))
                    case "shut":
                        say(shut=await interface.why_shut())
                    case "discover":
                        say(found=await discover(interface, command["targets"], command.get("bind")), warned=warnings)
                    case "run":
                        done = subprocess.run(command["words"], capture_output=True, text=True)
                        say(code=done.returncode, stderr=done.stderr)
            except ConfigurationError as error:
                say(error=str(error))
    finally:
        await interface.close()
        say(closed=True)

try:
    trio.run(main)
except ConfigurationError as error:
    say(error=str(error))
"""


class Program:
    """The program above, in a namespace, spoken to line by line."""

    def __init__(self, space: Namespace, hosts: Path, *, prefix: tuple[str | Path, ...] = (), **changes: Any) -> None:
        words = [*prefix, sys.executable, "-c", PROGRAM, json.dumps(config(3, **changes).to_json()), str(hosts)]
        self.process = space.popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.first = self.read()

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        return dict(json.loads(self.process.stdout.readline()))

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **fields}) + "\n")
        self.process.stdin.flush()
        return self.read()

    def end(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.close()
        last = self.read()
        assert self.process.wait(10) == 0
        return last

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def space() -> Iterator[Namespace]:
    space = Namespace("tun-host")
    space.ip("link set lo up")
    yield space
    space.close()


@pytest.fixture
def hosts(tmp_path: Path) -> Path:
    path = tmp_path / "hosts"
    path.write_bytes(HOSTS)
    return path


@pytest.fixture
def start(space: Namespace, hosts: Path) -> Iterator[Callable[..., Program]]:
    """Starts programs; what still runs at the end of the test is killed."""
    started: list[Program] = []

    def start(*prefix: str | Path) -> Program:
        started.append(Program(space, hosts, prefix=prefix))
        return started[-1]

    yield start
    for program in started:
        program.kill()


@pytest.fixture
def program(start: Callable[..., Program]) -> Program:
    return start()


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_interface_is_there_and_the_privilege_is_gone(program: Program, space: Namespace) -> None:
    first = program.first
    assert (first["name"], first["facts"], first["reflects"]) == ("lan0", [], True)
    assert [int(mask, 16) for mask in first["caps"]] == [0, 0, 0, 0, 0, 1]
    assert first["threads"] == [], "the worker thread lost its capabilities too"
    assert int(first["keeper_caps"], 16) == 1 << 12, "the keeper has CAP_NET_ADMIN alone"
    assert not first["pyroute2"]
    assert addresses(space) == {"10.77.1.3/24", "fd12:3456:789a::3/64", "fe80::7074:0:0:3/64"}
    refused = program.ask("run", words=["ip", "link", "set", "lan0", "mtu", "1300"])
    assert refused["code"], "what this process starts has no privilege either"
    print(f"opened in {first['ms']:.0f} ms; the keeper has {first['rss_kb'] / 1024:.1f} MB")


def test_mtu_numbers_and_names_change_through_the_keeper(program: Program, space: Namespace, hosts: Path) -> None:
    assert "ms" in program.ask("mtu", mtu=1372)
    assert shown(space, "link", "show", "lan0")[0]["mtu"] == 1372
    assert program.ask("mtu", mtu=600)["error"].startswith("600 is not a MTU")
    assert program.ask("names", names={"Home PC": ["10.77.1.1", "fd12:3456:789a::1"]}) == {}
    assert hosts.read_bytes().startswith(HOSTS)
    assert b"10.77.1.1\thome-pc.ptunnel\n" in hosts.read_bytes()
    assert "error" in program.ask("names", names={"bank": ["8.8.8.8"]})
    new = config(3, name="other", ipv4=("10.99.4.3", 24), ipv6=())
    assert program.ask("renumber", config=new.to_json()) == {"facts": []}
    assert addresses(space) == {"10.99.4.3/24"}
    assert program.end() == {"closed": True}
    assert hosts.read_bytes() == HOSTS
    assert [link["ifname"] for link in shown(space, "link")] == ["lo"]
    assert not is_running(program.first["pid"])


def test_names_of_a_subnet_that_is_left_out_stand_for_ipv6_alone(program: Program, space: Namespace, hosts: Path) -> None:
    names = {"home": ["10.77.1.1", "fd12:3456:789a::1"]}
    program.ask("names", names=names)
    assert b"10.77.1.1\thome.ptunnel\n" in hosts.read_bytes()
    space.ip("link add office type veth peer name desk")
    space.ip("link set office up")
    space.ip("address add 10.77.1.200/25 dev office")
    facts = program.ask("renumber", config=config(3).to_json())["facts"]
    assert len(facts) == 1
    assert "10.77.1.0/24 is in use" in facts[0]
    assert program.ask("names", names=names) == {}
    assert b"10.77.1.1" not in hosts.read_bytes(), "which may be a machine of the office"
    assert b"fd12:3456:789a::1\thome.ptunnel\n" in hosts.read_bytes()
    space.ip("link delete office")
    assert program.ask("renumber", config=config(3).to_json()) == {"facts": []}
    assert program.ask("names", names=names) == {}
    assert b"10.77.1.1\thome.ptunnel\n" in hosts.read_bytes()


def test_what_programs_announce_on_an_ethernet_goes_into_the_lan_as_ours(space: Namespace, start: Callable[..., Program]) -> None:
    space.ip(
        "link add eth0 type veth peer name far\naddr add 192.168.7.2/24 broadcast + dev eth0\n"
        "addr add fd77::2/64 dev eth0 nodad\naddr add fe80::5/64 dev eth0 nodad\nlink set eth0 up\n"
        "link set far up\nroute add default via 192.168.7.1"
    )
    eventually("carrier", lambda: "LOWER_UP" in space.run("ip", "link", "show", "eth0").stdout)
    program = start()
    targets = [("255.255.255.255", ""), ("239.255.255.250", ""), ("192.168.7.255", ""), ("ff02::c", "eth0"), ("ff05::c", "eth0")]
    packets = [bytes.fromhex(packet) for packet in program.ask("discover", targets=targets)["found"]]
    ends = [
        (socket.inet_ntop(family, packet[at : at + size]), socket.inet_ntop(family, packet[at + size : at + 2 * size]))
        for packet in packets
        for family, at, size in [(socket.AF_INET, 12, 4) if packet[0] >> 4 == 4 else (socket.AF_INET6, 8, 16)]
    ]
    assert ends == [
        ("10.77.1.3", "255.255.255.255"),
        ("10.77.1.3", "239.255.255.250"),
        ("10.77.1.3", "255.255.255.255"),
        ("fe80::7074:0:0:3", "ff02::c"),
        ("fd12:3456:789a::3", "ff05::c"),
    ]
    assert all(packet.endswith(b"any server?") for packet in packets)


def test_who_asks_by_one_address_and_will_not_hear_the_answers_is_told_of_once(
    space: Namespace, start: Callable[..., Program]
) -> None:
    space.ip(
        "link add eth0 type veth peer name peer0\nlink set peer0 up\naddr add 192.168.7.2/24 dev eth0\n"
        "link set eth0 up\nroute add default dev eth0"
    )
    everybody = [["255.255.255.255", None]]
    assert start().ask("discover", targets=everybody)["warned"] == [], "it hears by any address"
    program = start()
    warned = program.ask("discover", targets=everybody, bind="192.168.7.2")["warned"]
    assert len(warned) == 1
    assert "192.168.7.2 alone" in warned[0]
    assert "ptunnel exec" in warned[0]
    assert program.ask("discover", targets=everybody, bind="192.168.7.2")["warned"] == warned


def test_a_firewall_that_keeps_the_room_out_is_noticed_and_one_that_lets_it_in_is_not(program: Program, space: Namespace) -> None:
    assert program.ask("shut") == {"shut": None}
    chain = "add chain inet filter input { type filter hook input priority 0; policy drop; }"
    space.nft(f"add table inet filter\n{chain}\nadd rule inet filter input ct state established,related accept\n")
    told = program.ask("shut")["shut"]
    assert told.startswith("A firewall of this machine keeps out")
    assert program.first["name"] in told
    space.nft(f"insert rule inet filter input iifname {program.first['name']} accept\n")
    assert program.ask("shut") == {"shut": None}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_after_a_crash_interface_names_and_keeper_are_gone(program: Program, space: Namespace, hosts: Path, number: int) -> None:
    program.ask("names", names={"home": ["10.77.1.1"]})
    assert hosts.read_bytes() != HOSTS
    program.process.send_signal(number)
    program.process.wait(10)
    eventually("the keeper has ended", lambda: not is_running(program.first["pid"]))
    assert hosts.read_bytes() == HOSTS
    assert [link["ifname"] for link in shown(space, "link")] == ["lo"]


def test_a_keeper_that_was_killed_is_told_and_its_block_goes_at_the_next_start(
    program: Program, hosts: Path, start: Callable[..., Program]
) -> None:
    program.ask("names", names={"home": ["10.77.1.1"]})
    os.kill(program.first["pid"], signal.SIGKILL)
    assert program.ask("mtu", mtu=1400)["error"].startswith("The process that configures the LAN interface has ended")
    assert program.end() == {"closed": True}
    assert b"home.ptunnel" in hosts.read_bytes()
    again = start()
    again.ask("names", names={"laptop": ["10.77.1.2"]})
    assert b"home.ptunnel" not in hosts.read_bytes()
    assert again.end() == {"closed": True}
    assert hosts.read_bytes() == HOSTS


def test_without_privilege_the_sentence_says_what_to_do(start: Callable[..., Program]) -> None:
    program = start("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    assert "sudo" in program.first["error"]
    assert "ptunnel exec" in program.first["error"]
    assert "ptunnel exec" in program.first["error"]


def test_with_net_admin_alone_all_but_the_reflector_works(start: Callable[..., Program]) -> None:
    """As after `setcap cap_net_admin+ep`."""
    program = start("setpriv", "--bounding-set=-all,+net_admin", "--inh-caps=-all")
    assert not program.first["reflects"]
    assert "CAP_NET_RAW" in program.first["facts"][0]
    assert [int(mask, 16) for mask in program.first["caps"][:3]] == [0, 0, 0]
    assert "ms" in program.ask("mtu", mtu=1400)
    assert program.end() == {"closed": True}


def test_a_hosts_file_that_is_a_mount_point_is_written_in_place(
    start: Callable[..., Program], hosts: Path, tmp_path: Path
) -> None:
    """As in a container: a rename onto it gives EBUSY."""
    behind = tmp_path / "behind"
    behind.write_bytes(HOSTS)
    script = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
    program = start("unshare", "-m", "sh", "-c", script, "sh", behind, hosts)
    inode = behind.stat().st_ino
    program.ask("names", names={"home": ["10.77.1.1"]})
    assert b"home.ptunnel" in behind.read_bytes()
    assert program.end() == {"closed": True}
    assert (behind.read_bytes(), behind.stat().st_ino) == (HOSTS, inode)
    assert hosts.read_bytes() == HOSTS
