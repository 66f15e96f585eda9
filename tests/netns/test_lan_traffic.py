"""What a LAN carries, between three members behind three routers, each with an ethernet that has the default route."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.kernel import Namespace
from tests.netns.lab import Lab, eventually
from tests.netns.programs import Capture, Program, Sshd, checksum, http_server, ptunnel, random_file
from tests.netns.rooms import Member, Room, join_group, open_socket, wait_group
from tunnel.room.core.discovery import EVERYBODY_BURST, EVERYBODY_RATE

PORT = 4445
ROUNDS = 10
"""Announcements of each kind; one that came twice would be counted."""
EVERYBODY = ("255.255.255.255", "room", "239.255.77.77", "224.0.2.60", "224.0.0.251", "ff02::1", "ff02::fb", "ff15::7074")
"""`room` is the broadcast address of the room's subnet."""


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    with Lab(tmp_path_factory.mktemp("room")) as lab:
        yield Room(lab)


# ---------------------------------------------------------------- unicast


def test_ping_by_name_and_by_both_kinds_of_ipv6_address(room: Room) -> None:
    ada, bora, cem = room.members
    for member, other in ((ada, bora), (bora, cem), (cem, ada)):
        for target in (f"{other.name}.ptunnel", other.ipv4, other.ipv6, f"{other.link_local}%{member.interface}"):
            assert member.reaches(target, count=3, wait=2), (member.name, target)


@pytest.mark.parametrize("family", [4, 6])
def test_iperf3_moves_tcp_and_udp(room: Room, family: int) -> None:
    _, bora, cem = room.members
    address = bora.ipv4 if family == 4 else bora.ipv6
    server = Program(room.lab, bora.space, f"iperf3-{family}", ["iperf3", "--server", "--bind", address, "--forceflush"])
    clients = (
        ["--bytes", "16M"],
        ["--bytes", "16M", "--reverse"],
        ["--udp", "--bitrate", "4M", "--time", "1", "--length", "1000"],
    )
    for number, words in enumerate(clients, 1):  # it takes one at a time, and is a moment behind the end of the last
        eventually("the server listens again", lambda number=number: server.said().count("Server listening") >= number)
        done = cem.space.run("iperf3", "--client", address, "--json", *words, timeout=60)
        end = json.loads(done.stdout)["end"]
        if "--udp" in words:
            assert end["sum"]["packets"] > 400
            assert end["sum"]["lost_percent"] < 2
        else:
            assert end["sum_received"]["bytes"] > 8_000_000  # the client ends while the last of it is under way


def test_ssh_by_name(room: Room) -> None:
    ada, _, cem = room.members
    sshd = Sshd(room.lab, ada.space, address=ada.ipv4)
    words = ["ssh", *sshd.options(), "-p", str(sshd.port), f"{sshd.user}@ada.ptunnel", "echo", "hello from", "$SSH_CONNECTION"]
    said = cem.space.run(*words).stdout.split()
    assert said == ["hello", "from", cem.ipv4, said[3], ada.ipv4, str(sshd.port)]


def test_the_doctor_and_ping_know_the_members_of_the_running_room(room: Room) -> None:
    ada = room.members[0]
    assert ada.program is not None
    home = ada.program.home
    eventually("a direct path", lambda: "direct" in ptunnel(ada.space, home, "ping", "bora", "-c", "1").stdout)
    said = ptunnel(ada.space, home, "doctor", "bora", timeout=40)
    assert said.returncode == 0, said.stderr
    assert "bora: direct" in said.stdout
    said = ptunnel(ada.space, home, "doctor", "nobody")
    assert said.returncode == 2
    assert "nobody" in said.stderr


# ---------------------------------------------------------------- to everybody


class Sockets:
    """Opens sockets as games do, and closes them when the test is over."""

    def __init__(self) -> None:
        self._open: list[socket.socket] = []

    def mouth(self, space: Namespace, family: int = socket.AF_INET, port: int = 0) -> socket.socket:
        self._open.append(open_socket(space, family, port))
        return self._open[-1]

    def ear(self, space: Namespace, family: int = socket.AF_INET) -> Ear:
        return Ear(self.mouth(space, family, PORT))

    def close(self) -> None:
        for one in self._open:
            one.close()


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    opened = Sockets()
    yield opened
    opened.close()


class Ear:
    """Collects (payload, source address) of what comes to PORT."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.heard: Counter[tuple[bytes, str]] = Counter()

    def listen(self, until: bytes, timeout: float = 5) -> None:
        """Until that payload came, and a moment longer, in which a second copy of anything would come."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            self.socket.settimeout(max(0.01, end - time.monotonic()))
            try:
                payload, source = self.socket.recvfrom(2048)
            except TimeoutError:
                return
            self.heard[payload, source[0].partition("%")[0]] += 1
            if payload == until:
                end = time.monotonic() + 0.4

    def wait_silence(self, within: float, quiet: float = 0.5) -> None:
        """Until nothing has come for a moment, which must begin in time."""
        end = time.monotonic() + within
        self.socket.settimeout(quiet)
        while True:
            try:
                self.socket.recvfrom(2048)
            except TimeoutError:
                return
            assert time.monotonic() < end, f"it goes on after {within} s"


@pytest.mark.parametrize("target", EVERYBODY)
def test_a_packet_to_everybody_reaches_each_member_once_and_nobody_else(room: Room, sockets: Sockets, target: str) -> None:
    ada, bora, cem = room.members
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    address = re.sub(r"\.\d+$", ".255", ada.ipv4) if target == "room" else target
    source = ada.ipv4 if family == socket.AF_INET else ada.link_local if target.startswith("ff02") else ada.ipv6
    ears = {member.name: sockets.ear(member.space, family) for member in room.members}
    strangers = {member.name: sockets.ear(member.neighbour, family) for member in (bora, cem)}
    is_group = family == socket.AF_INET6 or (target.startswith("2") and int(target.split(".")[0]) < 240)
    if is_group and target != "ff02::1":
        for ear in (*ears.values(), *strangers.values()):
            join_group(ear.socket, address)
        for member in room.members:
            wait_group(member, address)
    mouth = sockets.mouth(ada.space, family)
    said = [f"{target} {number}".encode() for number in range(ROUNDS)]
    for payload in said:
        mouth.sendto(payload, (address, PORT))
        time.sleep(0.02)  # as programs announce themselves: not all in one moment
    for member in (bora, cem):
        ears[member.name].listen(said[-1])
        assert ears[member.name].heard == {(payload, source): 1 for payload in said}, member.name
    # Nothing came back to the sender, or it came from the sender itself, which hears its own ethernet.
    ears["ada"].listen(b"", timeout=0.2)
    assert not any(heard_from in {bora.ipv4, cem.ipv4, bora.link_local, cem.link_local} for _, heard_from in ears["ada"].heard)
    for name, ear in strangers.items():
        ear.listen(b"", timeout=0.05)
        assert not ear.heard, f"a neighbour of {name} heard what was said in the room"


def test_a_program_that_speaks_on_every_interface_is_heard_once(room: Room, sockets: Sockets) -> None:
    ada, bora, _ = room.members
    ear = sockets.ear(bora.space)
    mouth = sockets.mouth(ada.space)
    said = [f"both {number}".encode() for number in range(ROUNDS)]
    lan, house = re.sub(r"\.\d+$", ".255", ada.ipv4), re.sub(r"\.\d+$", ".255", ada.site.addresses[0])
    for payload in said:
        for address in (house, lan):  # as OpenTTD does
            mouth.sendto(payload, (address, PORT))
        time.sleep(0.02)
    ear.listen(said[-1])
    assert {payload: count for (payload, _), count in ear.heard.items()} == dict.fromkeys(said, 1)


def test_a_search_from_a_fixed_port_is_answered_to_it_whatever_broadcast_address_it_used(room: Room, sockets: Sockets) -> None:
    """Steam's Remote Play: both sides have port 27036, and each network of the machine is asked by its own broadcast address."""
    ada, bora, _ = room.members
    client, host = (sockets.mouth(member.space, port=27_036) for member in (ada, bora))
    lan, house = re.sub(r"\.\d+$", ".255", ada.ipv4), re.sub(r"\.\d+$", ".255", ada.site.addresses[0])
    for address in (lan, house, "255.255.255.255"):
        question = f"who is there, {address}?".encode()
        client.sendto(question, (address, 27_036))
        heard, source = host.recvfrom(100)
        while heard != question:  # its own, which an ethernet gives back to whoever listens at the port
            heard, source = host.recvfrom(100)
        assert source == (ada.ipv4, 27_036)
        host.sendto(b"bora is", source)
        answers = iter(lambda: client.recvfrom(100), None)
        assert next(sender for answer, sender in answers if answer == b"bora is") == (bora.ipv4, 27_036)


def test_a_neighbour_on_the_ethernet_still_hears_what_is_broadcast(room: Room, sockets: Sockets) -> None:
    ada = room.members[0]
    ear = sockets.ear(ada.neighbour)
    sockets.mouth(ada.space).sendto(b"hello, house", ("255.255.255.255", PORT))
    ear.listen(b"hello, house")
    assert ear.heard == {(b"hello, house", ada.site.addresses[0]): 1}


def test_a_flood_to_everybody_is_capped_and_starves_nobody(room: Room, sockets: Sockets) -> None:
    ada, bora, cem = room.members
    ear = sockets.ear(bora.space)
    ear.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    mouth = sockets.mouth(ada.space)
    mouth.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, ada.interface.encode())
    stop = threading.Event()
    sent = 0

    def flood() -> None:
        nonlocal sent
        while not stop.is_set():
            for _ in range(50):
                mouth.sendto(b"flood", ("255.255.255.255", PORT))
                sent += 1
            stop.wait(0.005)

    thread = threading.Thread(target=flood)
    started = time.monotonic()
    thread.start()
    try:
        words = ["ping", "-q", "-i", "0.1", "-c", "20", "-W", "2", bora.ipv4]
        pinged = cem.space.run(*words, check=False).stdout
    finally:
        stop.set()
        thread.join()
    lasted = time.monotonic() - started
    ear.listen(b"", timeout=0.5)
    heard = sum(ear.heard.values())
    assert sent > 4 * EVERYBODY_BURST
    assert 0 < heard <= 1.1 * (EVERYBODY_BURST + EVERYBODY_RATE * (lasted + 0.5))
    assert " 0% packet loss" in pinged


# ---------------------------------------------------------------- safe


def udp4(source: str, target: str, payload: bytes, port: int = PORT) -> bytes:
    """A whole IPv4 packet; the UDP checksum is left out, as IPv4 allows."""
    udp = struct.pack("!HHHH", 5000, port, 8 + len(payload), 0) + payload
    header = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0, socket.inet_aton(source), socket.inet_aton(target)
    )
    total = sum(struct.unpack("!10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return header[:10] + struct.pack("!H", ~total & 0xFFFF) + header[12:] + udp


def udp6(source: str, target: str, payload: bytes, port: int = PORT) -> bytes:
    addresses = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, target)
    length = 8 + len(payload)
    udp = struct.pack("!HHHH", 5000, port, length, 0) + payload
    pseudo = addresses + struct.pack("!II", length, 17) + udp + bytes(length % 2)
    total = sum(struct.unpack(f"!{len(pseudo) // 2}H", pseudo))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    udp = udp[:6] + struct.pack("!H", (~total & 0xFFFF) or 0xFFFF) + udp[8:]
    return struct.pack("!IHBB", 6 << 28, length, 17, 64) + addresses + udp


def send_raw(member: Member, packet: bytes) -> None:
    """Into the room's interface as it is, past the kernel's own checks."""
    kind = 0x0800 if packet[0] >> 4 == 4 else 0x86DD

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind((member.interface, kind))
            raw.send(b"\x02\x70\x74\0\0\xff" + b"\x02\x70\x74\0\0\xfe" + struct.pack("!H", kind) + packet)

    member.space.inside(send)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["ipv4", "ipv6"])
def test_what_has_a_strange_source_is_dropped(room: Room, sockets: Sockets, family: socket.AddressFamily) -> None:
    ada, bora, cem = room.members
    ear = sockets.ear(bora.space, family)
    if family == socket.AF_INET:
        pairs = [(ada.ipv4, bora.ipv4), (cem.ipv4, bora.ipv4), (bora.ipv4, bora.ipv4), ("192.0.2.1", bora.ipv4)]
        pairs += [(bora.site.addresses[1], bora.ipv4), ("127.0.0.1", bora.ipv4), (cem.ipv4, "255.255.255.255")]
        make = udp4
    else:
        pairs = [(ada.ipv6, bora.ipv6), (cem.ipv6, bora.ipv6), ("3fff::1", bora.ipv6), (cem.link_local, bora.link_local)]
        pairs += [(cem.ipv6, "ff02::1"), ("::1", bora.ipv6)]
        make = udp6
    for number, (source, target) in enumerate(pairs):
        send_raw(ada, make(source, target, b"spoofed %d" % number))
    send_raw(ada, make(*pairs[0], b"honest"))
    ear.listen(b"honest")
    assert ear.heard == {(b"spoofed 0", pairs[0][0]): 1, (b"honest", pairs[0][0]): 1}


def test_nobody_reaches_another_members_other_networks(room: Room) -> None:
    ada, bora, _ = room.members
    bora.space.sysctl("net.ipv4.ip_forward", 1)  # as on a machine with containers
    house, neighbour = bora.site.addresses
    ada.space.ip(
        f"route add {house}/32 via {bora.ipv4} dev {ada.interface} onlink\n"
        f"route add {neighbour}/32 via {bora.ipv4} dev {ada.interface} onlink"
    )
    capture = Capture(room.lab, bora.space, "eth0")
    try:
        for address in (house, neighbour):
            assert not ada.reaches(address, count=2)
    finally:
        ada.space.ip(f"route del {house}/32\nroute del {neighbour}/32")
        bora.space.sysctl("net.ipv4.ip_forward", 0)
    assert socket.inet_aton(ada.ipv4) not in capture.bytes()


def test_a_port_that_a_container_publishes_is_reached_from_the_room(room: Room, tmp_path: Path) -> None:
    """As Docker does it: forwarding is on, and NAT leads to the container what comes for an address of this machine."""
    ada, bora, _ = room.members
    container = Namespace("container")
    bora.space.ip(f"link add docker0 type veth peer name eth0 netns {container.path}")
    bora.space.ip("addr add 172.31.0.1/24 dev docker0\nlink set docker0 up")
    container.ip("addr add 172.31.0.2/24 dev eth0\nlink set eth0 up\nlink set lo up\nroute add default via 172.31.0.1")
    bora.space.sysctl("net.ipv4.ip_forward", 1)
    chain = "add chain ip containers prerouting { type nat hook prerouting priority dstnat; }"
    publish = "fib daddr type local tcp dport 8090 dnat to 172.31.0.2:80"
    bora.space.nft(f"add table ip containers\n{chain}\nadd rule ip containers prerouting {publish}\n")
    (tmp_path / "page").write_text("from the container")
    try:
        http_server(room.lab, container, tmp_path, 80, "0.0.0.0")
        fetched = ada.space.run("curl", "-sS", "--max-time", "20", f"http://{bora.ipv4}:8090/page")
        assert fetched.stdout == "from the container"
        ada.space.ip(f"route add 172.31.0.2/32 via {bora.ipv4} dev {ada.interface} onlink")
        assert not ada.reaches("172.31.0.2"), "only what is published"
    finally:
        ada.space.run("ip", "route", "del", "172.31.0.2/32", check=False)
        bora.space.ip("link del docker0")
        bora.space.run("nft", "delete", "table", "ip", "containers")
        bora.space.sysctl("net.ipv4.ip_forward", 0)
        container.close()


def test_minecraft_meets_the_room_and_the_neighbour_at_home(room: Room, sockets: Sockets) -> None:
    ada, bora, _ = room.members
    ears = {name: sockets.ear(space) for name, space in (("ada", ada.space), ("bora", bora.space), ("next", ada.neighbour))}
    strange = sockets.ear(bora.neighbour)
    for ear in (*ears.values(), strange):
        ear.socket.setsockopt(socket.IPPROTO_IP, 49, 0)  # IP_MULTICAST_ALL, as Java does
        join_group(ear.socket, "224.0.2.60")
    sockets.mouth(ada.space).sendto(b"of ada", ("224.0.2.60", PORT))
    ears["bora"].listen(b"of ada")
    ears["next"].listen(b"of ada")
    sockets.mouth(ada.neighbour).sendto(b"of the neighbour", ("224.0.2.60", PORT))
    ears["ada"].listen(b"of the neighbour")
    ears["bora"].listen(b"", timeout=0.2)
    strange.listen(b"", timeout=0.05)
    house, neighbour = ada.site.addresses
    assert ears["bora"].heard == {(b"of ada", ada.ipv4): 1}
    assert ears["next"].heard == {(b"of ada", house): 1}
    assert ears["ada"].heard[b"of the neighbour", neighbour] == 1
    assert not strange.heard


def test_a_removed_member_is_cut_off_at_once(lab: Lab, sockets: Sockets) -> None:
    ada, bora, cem = Room(lab).members
    ears = {member.name: sockets.ear(member.space) for member in (ada, bora)}
    mouth = sockets.mouth(cem.space)
    stop = threading.Event()

    def chatter() -> None:
        """As a member that has not understood: it goes on and on."""
        while not stop.is_set():
            for member in (ada, bora):
                with contextlib.suppress(OSError):
                    mouth.sendto(b"still here", (member.ipv4, PORT))
            stop.wait(0.01)

    thread = threading.Thread(target=chatter)
    thread.start()
    try:
        for ear in ears.values():
            assert ear.socket.recvfrom(100)[0] == b"still here"
        assert ada.program is not None
        removed = ptunnel(ada.space, ada.program.home, "lan", "remove", "cem")
        assert removed.returncode == 0, removed.stderr
        for ear in ears.values():
            ear.wait_silence(within=1.0)
        assert ada.reaches(bora.ipv4, count=3)
    finally:
        stop.set()
        thread.join()
    assert not bora.reaches(cem.ipv4)


# ---------------------------------------------------------------- nothing stays


def test_the_mtu_follows_a_path_that_shrinks_and_tcp_with_it(lab: Lab, tmp_path: Path) -> None:
    room = Room(lab, ("prc", "prc"))
    ada, bora = room.members
    wide = eventually("a wide path", lambda: ada.mtu() if ada.mtu() > 1380 else 0, 20)
    assert ada.reaches(bora.ipv4)
    assert bora.site.gateway is not None
    bora.site.gateway.ip("link set wan mtu 1340")
    # Nothing tells of it but packets that do not arrive.
    words = ["ping", "-q", "-i", "0.2", "-M", "dont", "-s", str(wide - 28), bora.ipv4]
    stream = Program(lab, ada.space, "ping", words)
    narrow = eventually("a narrower interface", lambda: ada.mtu() if ada.mtu() < 1340 else 0, 40, 0.2)
    stream.end()
    assert 1280 <= narrow < wide
    said = ada.space.run("ping", "-M", "do", "-c", "1", "-W", "2", "-s", str(wide - 28), bora.ipv4, check=False)
    assert said.returncode != 0
    assert "too long" in said.stdout + said.stderr or "Frag" in said.stdout
    # What fits goes through, if in pieces: both directions have noticed by then.
    words = ["ping", "-q", "-M", "do", "-c", "2", "-i", "0.2", "-W", "1", "-s", str(narrow - 28), bora.ipv4]
    eventually("what fits goes through", lambda: ada.space.run(*words, check=False).returncode == 0)

    capture = Capture(lab, bora.space, bora.interface)
    sum_there = random_file(tmp_path / "file", 2_000_000)
    http_server(lab, ada.space, tmp_path, bind=ada.ipv4)
    bora.space.run("curl", "-sS", "-o", str(tmp_path / "copy"), "http://ada.ptunnel:8000/file", timeout=60)
    assert checksum(tmp_path / "copy") == sum_there
    sizes = mss_of_syns(capture)
    assert sizes
    assert max(sizes) <= narrow - 40


def mss_of_syns(capture: Capture) -> list[int]:
    """The MSS options (kind 2, length 4) that begin the options of TCP over IPv4 SYNs, as the kernel writes them."""
    found = re.finditer(rb"\x45[\s\S]{8}\x06[\s\S]{10}[\s\S]{13}[\x02\x12][\s\S]{6}\x02\x04([\s\S]{2})", capture.bytes())
    return [int.from_bytes(match[1], "big") for match in found]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_nothing_is_left_behind(lab: Lab, how: signal.Signals) -> None:
    ada, bora = Room(lab, ("prc", "prc")).members
    assert "bora.ptunnel" in ada.traces()[-1]
    for member in (ada, bora):
        assert member.program is not None
        member.program.process.send_signal(how)
    for member in (ada, bora):
        assert member.program is not None
        member.program.wait(20)
        eventually(f"no trace at {member.name}", member.left_nothing, 20)
