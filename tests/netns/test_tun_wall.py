"""What a member's packets reach beyond this machine: ports that its containers publish, and nothing else."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator

import pytest

from tests.netns.kernel import Namespace
from tests.netns.lab import eventually
from tests.netns.test_tun import config, is_udp4, read_frame, udp4_frame
from tunnel.doors.tun.configure import apply
from tunnel.doors.tun.device import TapDevice, open_tap
from tunnel.doors.tun.tap import HEADROOM
from tunnel.doors.tun.wall import Wall, open_wall_socket

MAC3 = bytes.fromhex("027074000003")
INNER = socket.inet_aton("10.77.1.3")
#: As Docker has it: what comes for one of this machine's addresses goes to the container, whatever interface it came by.
PUBLISH = """
table ip containers {
    chain prerouting {
        type nat hook prerouting priority dstnat
        fib daddr type local udp dport 7000 dnat to 172.17.0.2:7001
    }
    chain forward {
        type filter hook forward priority filter; policy drop
        ct state established,related accept
        oifname docker0 ip daddr 172.17.0.2 udp dport 7001 accept
        iifname docker0 accept
        oifname docker0 ip daddr 172.17.0.3 accept
    }
}
"""


class Host:
    """A host with `lan0`, our TAP, number 3, and with a container behind `docker0`, whose UDP port 7001 it publishes as 7000."""

    def __init__(self) -> None:
        self.space = Namespace("host")
        self.container = Namespace("container")
        self.space.ip("link set lo up\nlink add docker0 type bridge\naddr add 172.17.0.1/16 dev docker0\nlink set docker0 up")
        self.space.ip(f"link add port type veth peer name eth0 netns {self.container.path}")
        self.space.ip("link set port master docker0\nlink set port up")
        self.container.ip(
            "link set lo up\naddr add 172.17.0.2/16 dev eth0\naddr add 172.17.0.3/16 dev eth0\nlink set eth0 up\n"
            "route add default via 172.17.0.1"
        )
        self.space.sysctl("net.ipv4.ip_forward", 1)
        self.space.nft(PUBLISH)
        self.tap: TapDevice = self.space.inside(lambda: open_tap("lan0"))
        self.wall_socket = self.space.inside(open_wall_socket)
        self.wall = self.space.inside(lambda: Wall(self.wall_socket, "lan0"))
        self.server = self.container.socket()
        self.server.bind(("", 7001))

    def tables(self) -> str:
        return self.space.run("nft", "list", "tables").stdout

    def open(self) -> None:
        """As the keeper does."""
        made = config(3, routes=("224.0.2.60/32",))
        self.wall.build(made)
        assert self.space.inside(lambda: apply(made, True)) == []

    def hears(self, *frames: list[bytes]) -> list[bytes]:
        """What the container has heard once a packet that must arrive has: one after these, to the port that is published."""
        for frame in (*frames, udp4_frame("10.77.1.9", "10.77.1.3", 7000, b"the last", MAC3)):
            assert self.tap.writev(frame)
        self.server.settimeout(10)
        heard: list[bytes] = []
        while not heard or heard[-1] != b"the last":
            heard.append(self.server.recv(100))
        return heard[:-1]

    def close(self) -> None:
        self.server.close()
        self.wall_socket.close()
        self.tap.close()
        self.space.close()
        self.container.close()


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host()
    yield host
    host.close()


def test_a_port_that_a_container_publishes_is_reached_from_the_room_and_its_answer_comes_from_the_room_s_address(
    host: Host,
) -> None:
    host.open()
    host.tap.writev(udp4_frame("10.77.1.9", "10.77.1.3", 7000, b"anybody?", MAC3))
    host.server.settimeout(10)
    asked, client = host.server.recvfrom(100)
    assert asked == b"anybody?"
    host.server.sendto(b"the container", client)
    frame = read_frame(host.tap, lambda frame: is_udp4(frame) and frame.endswith(b"the container"))
    assert frame[HEADROOM + 12 : HEADROOM + 16] == INNER


@pytest.mark.parametrize("how", ["never", "nft flush ruleset", "ip_forward again"])
def test_a_member_reaches_nothing_behind_this_machine_but_what_it_publishes(host: Host, how: str) -> None:
    """The neighbour stands for a virtual machine, or for a network that the host routes for."""
    host.open()
    if how == "nft flush ruleset":  # as the system's firewall does when it is loaded anew
        host.space.run("nft", "flush", "ruleset")
        host.space.nft(PUBLISH)
    elif how == "ip_forward again":  # which switches forwarding on for every interface
        host.space.sysctl("net.ipv4.ip_forward", 0)
        host.space.sysctl("net.ipv4.ip_forward", 1)
        host.space.nft("add rule ip containers forward accept")
    shut = [
        udp4_frame("10.77.1.9", "172.17.0.2", 7001, b"by its own address", MAC3),
        udp4_frame("10.77.1.9", "172.17.0.3", 7001, b"another one", MAC3),
        udp4_frame("10.77.1.9", "172.17.0.1", 7000, b"published, but on another network", MAC3),
        udp4_frame("172.17.0.9", "10.77.1.3", 7000, b"with a source of that network", MAC3),
        udp4_frame("10.78.1.9", "10.77.1.3", 7000, b"with a source of no room", MAC3),
    ]
    assert host.hears(*shut) == []


def test_an_address_of_the_room_that_this_machine_uses_elsewhere_is_not_reached_from_the_room(host: Host) -> None:
    """The room has the network of the containers, and this machine does without it; its address there is another machine's."""
    host.open()
    clash = config(3, ipv4=("172.17.0.2", 16), routes=())
    host.wall.build(clash)
    assert len(host.space.inside(lambda: apply(clash, True))) == 1
    host.space.ip("addr add 10.99.0.1/24 dev lan0")  # so that its IPv4 takes packets at all
    host.space.nft("add rule ip containers forward accept")
    host.space.sysctl("net.ipv4.conf.lan0.forwarding", 1)
    host.space.sysctl("net.ipv4.conf.lan0.rp_filter", 0)
    for _ in range(20):
        assert host.tap.writev(udp4_frame("172.17.0.9", "172.17.0.2", 7001, b"to the other machine", MAC3))
    with host.space.socket() as witness:
        witness.sendto(b"the last", ("172.17.0.2", 7001))
        host.server.settimeout(10)
        assert host.server.recv(100) == b"the last"


def test_the_rules_go_with_the_last_process_that_holds_their_socket(host: Host) -> None:
    host.open()
    assert "ptunnel-lan0" in host.tables()
    holder = subprocess.Popen(["sleep", "600"], pass_fds=[host.wall_socket.fileno()])
    host.wall_socket.close()
    assert "ptunnel-lan0" in host.tables(), "one is killed, the other holds them"
    holder.kill()
    holder.wait()
    eventually("the table is gone", lambda: "ptunnel-lan0" not in host.tables())


def test_addresses_change_in_one_step_and_other_interfaces_are_left_alone(host: Host) -> None:
    host.open()
    again = config(4, routes=("224.0.2.60/32",))
    host.wall.build(again)
    host.space.inside(lambda: apply(again, True))
    rules = host.space.run("nft", "list", "table", "inet", "ptunnel-lan0").stdout
    assert "10.77.1.4" in rules
    assert "10.77.1.3" not in rules
    for path in ("forwarding", "rp_filter"):
        value = host.space.run("sysctl", "-n", f"net.ipv4.conf.lan0.{path}").stdout.strip()
        assert value == {"forwarding": "1", "rp_filter": "2"}[path]
    host.server.settimeout(10)
    with host.space.socket() as local:
        local.sendto(b"from this machine", ("172.17.0.2", 7001))
        assert host.server.recv(100) == b"from this machine"
