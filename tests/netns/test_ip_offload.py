"""room/ip against a real kernel: what it cuts is what we say, what it sends arrives, and it believes our too-big messages."""

from __future__ import annotations

import hashlib
import os
import random
import select
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from tests.netns.kernel import Namespace
from tests.unit.ip.packets import A4, A6, ACK, B4, B6, CWR, FIN, PSH, Flow, is_right, padded_options, slow_checksum
from tests.unit.ip.said import is_own_checksum, most_in_run
from tunnel.doors.tun.device import TapDevice, open_tap
from tunnel.doors.tun.tap import ETHERNET_SIZE as ETHERNET_HEADER
from tunnel.room.ip.header import TCP, destination_of, parse, parse_head
from tunnel.room.ip.icmp import fragment, too_big
from tunnel.room.ip.mss import clamp
from tunnel.room.ip.offload import (
    VIRTIO_HEADER,
    build_prefix,
    build_run,
    cut_in_software,
    decode_offload,
    finish_checksum,
    finish_foreign_checksum,
    wants_cut,
)

FRONT = VIRTIO_HEADER + ETHERNET_HEADER
LIMIT_S = 40
ETHERTYPE = {4: b"\x08\x00", 6: b"\x86\xdd"}
UDP_SEGMENT = 103  # linux/udp.h; the level is IPPROTO_UDP
IP_MTU, IPV6_MTU = 14, 24  # linux/in.h, linux/in6.h


def mac(number: int) -> bytes:
    return bytes((2, 0x70, 0x74, 0, 0, number))


def ethernet(to: int, version: int) -> bytes:
    return mac(to) + mac(99) + ETHERTYPE[version]


def text(address: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)


def furnish(space: Namespace, device: str, number: int, *lines: str, mtu: int = 1500) -> None:
    space.ip("\n".join([
        f"link set {device} address {':'.join(f'{byte:02x}' for byte in mac(number))} mtu {mtu} arp off",
        f"link set {device} up",
        *lines,
    ]))  # fmt: skip


# ------------------------------------------------------------------ the kernel as oracle


class Router:
    """A namespace that forwards from an interface with offloads to one without: the kernel must cut, and finish checksums."""

    def __init__(self) -> None:
        self.space = Namespace("ip-router")
        self.tap: TapDevice = self.space.inside(lambda: open_tap("in0"))
        self.plain = self.space.tap("out0")
        furnish(self.space, "in0", 1, "addr add 10.99.0.1/24 dev in0", f"route add {text(A4)}/32 dev in0",
                f"route add {text(A6)}/128 dev in0")  # fmt: skip
        furnish(self.space, "out0", 2, "addr add 10.98.0.1/24 dev out0", f"route add {text(B4)}/32 dev out0",
                f"route add {text(B6)}/128 dev out0")  # fmt: skip
        for name in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
            self.space.sysctl(name, 1)

    def close(self) -> None:
        self.tap.close()
        os.close(self.plain)
        self.space.close()

    def forwarded(self, run: bytes, payload: bytes, count: int) -> list[bytes]:
        """What comes out when this is written in one go: `count` packets, whatever else the kernel says left out."""
        assert self.tap.writev([run, payload])
        assert not self.tap.errors
        packets: list[bytes] = []
        deadline = time.monotonic() + 10
        while len(packets) < count:
            assert select.select([self.plain], [], [], deadline - time.monotonic())[0], f"{len(packets)} of {count} came"
            packet = os.read(self.plain, 65_536)[ETHERNET_HEADER:]
            if destination_of(packet, 0, len(packet)) in (B4, B6):
                packets.append(packet)
        return packets


@pytest.fixture(scope="module")
def router() -> Iterator[Router]:
    router = Router()
    yield router
    router.close()


def one_hop_on(packet: bytes) -> bytes:
    changed = bytearray(packet)
    if packet[0] >> 4 == 6:
        changed[7] -= 1
        return bytes(changed)
    changed[8] -= 1
    changed[10:12] = bytes(2)
    changed[10:12] = struct.pack("!H", slow_checksum(bytes(changed[: (packet[0] & 15) * 4])))
    return bytes(changed)


@pytest.mark.parametrize(
    "flow",
    [
        Flow(flags=ACK | PSH | FIN),
        Flow(options=b"\x01\x01\x08\x0a" + bytes(8), flags=ACK | PSH | CWR, ident=9, tos=2),
        Flow(version=6, options=b"\x01\x01\x08\x0a" + bytes(8), flags=ACK | PSH | FIN | CWR),
        Flow(version=6, flags=ACK | PSH, extensions=((0, padded_options(8)), (60, padded_options(16)))),
        Flow(protocol=17),
        Flow(version=6, protocol=17),
    ],
    ids=["TCP", "TCP with options and CWR", "TCP over IPv6", "behind extension headers", "UDP", "UDP over IPv6"],
)
def test_the_kernel_cuts_a_run_into_what_the_flows_own_stack_would_have_sent(router: Router, flow: Flow) -> None:
    step, size = 1380, 30_001
    payload = random.Random(8).randbytes(size)
    head = flow.packet(payload, partial=True)[: flow.head_size]
    inner = parse_head(head)
    expected = [one_hop_on(packet) for packet in flow.segments(payload, step)]
    for index, count in ((0, len(expected)), (0, 1), (0, 3), (5, 7), (9, 1), (len(expected) - 1, 1), (15, len(expected) - 15)):
        part = payload[index * step : (index + count) * step]
        is_last = index + count == len(expected)
        run = build_run(inner, head, index, count, len(part), step, is_last, True, ethernet(1, flow.version))
        assert router.forwarded(bytes(run), part, count) == expected[index : index + count]


# ------------------------------------------------------------------ two hosts and a wire


class Host:
    def __init__(self, number: int, mtu: int) -> None:
        self.number = number
        self.v4, self.v6 = (A4, A6) if number == 1 else (B4, B6)
        self.space = Namespace(f"ip-host{number}")
        self.tap: TapDevice = self.space.inside(lambda: open_tap("lan0"))
        furnish(self.space, "lan0", number, f"addr add {text(self.v4)}/24 dev lan0",
                f"addr add {text(self.v6)}/64 dev lan0 nodad", mtu=mtu)  # fmt: skip

    def close(self) -> None:
        self.tap.close()
        self.space.close()


class Wire:
    """Carries what two hosts send each other the way a LAN does, with chance deciding how a super-packet arrives in runs."""

    def __init__(self, mtu: int = 1500, *, path: int = 1500, plain: bool = False) -> None:
        self.hosts = Host(1, mtu), Host(2, mtu)
        self.path = path
        self.plain = plain  # the receiver lacks all offloads
        self.rng = random.Random(4)
        self.sockets: list[socket.socket] = []
        self.counts: Counter[str] = Counter()
        self.steps: set[int] = set()
        self._view = memoryview(bytearray(FRONT + 65_536))

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        for opened in self.sockets:
            opened.close()
        for host in self.hosts:
            host.close()

    def socket(self, host: int, family: int, kind: int) -> socket.socket:
        opened = self.hosts[host].space.socket(family, kind)
        opened.setblocking(False)
        self.sockets.append(opened)
        return opened

    def run_until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not done():
            assert time.monotonic() < deadline, f"not done in {LIMIT_S} s: {self.counts}"
            waiting = [host.tap.fileno() for host in self.hosts] + [opened for opened in self.sockets if opened.fileno() >= 0]
            select.select(waiting, [], [], 0.01)
            for sender, receiver in (self.hosts, self.hosts[::-1]):
                for _ in range(64):
                    length = sender.tap.read_into(self._view)
                    if not length:
                        break
                    self._carry(sender, receiver, length)
        assert not any(host.tap.errors for host in self.hosts)

    def _carry(self, sender: Host, receiver: Host, length: int) -> None:
        view = self._view
        if destination_of(view, FRONT, length) not in (receiver.v4, receiver.v6):
            self.counts["elsewhere"] += 1
            return
        offload = decode_offload(view, 0)
        inner = parse(view, FRONT, length)
        packet = view[FRONT : FRONT + inner.total_size]
        link = ethernet(receiver.number, inner.version)
        partial = offload.needs_checksum
        if partial and not is_own_checksum(offload, inner):
            finish_foreign_checksum(view, VIRTIO_HEADER, length, offload)
            partial = False
        cut = wants_cut(offload, inner, len(packet))
        if inner.protocol == TCP and cut is None:
            self.counts["clamped"] += clamp(packet, 0, inner, self.path, partial)
        if cut is not None:
            self._carry_super_packet(packet, *cut, receiver, link)
        elif len(packet) > self.path:
            if partial:
                finish_checksum(packet, 0, len(packet), inner)
            self._carry_too_big(packet, sender, receiver, link)
        elif partial and self.plain:
            finish_checksum(packet, 0, len(packet), inner)
            self._write(receiver, build_prefix(inner, False, link), packet)
        else:
            self._write(receiver, build_prefix(inner, partial, link), packet)

    def _carry_super_packet(self, packet: memoryview, size: int, step: int, receiver: Host, link: bytes) -> None:
        head, payload = bytes(packet[:size]), packet[size:]
        inner = parse_head(head)
        self.counts["super-packets"] += 1
        self.steps.add(size + step)
        if self.plain:
            for one in cut_in_software(inner, head, payload, step):
                assert is_right(bytes(one))
                self._write(receiver, build_prefix(inner, False, link), one)
            return
        total = -(-len(payload) // step)
        index = 0
        while index < total:
            count = min(total - index, self.rng.choice([1, 2, 7, 64]), most_in_run(inner, step))
            part = payload[index * step : (index + count) * step]
            run = build_run(inner, head, index, count, len(part), step, index + count == total, True, link)
            self.counts["runs"] += count > 1
            self._write(receiver, run, part)
            index += count

    def _carry_too_big(self, packet: memoryview, sender: Host, receiver: Host, link: bytes) -> None:
        inner = parse(packet, 0, len(packet))
        if not inner.dont_fragment:
            for piece in fragment(packet, inner, self.path):
                self._write(receiver, build_prefix(parse(piece, 0, len(piece)), False, link), piece)
                self.counts["fragments"] += 1
            return
        message = too_big(packet, inner, self.path, receiver.v4 if inner.version == 4 else receiver.v6)
        assert message is not None
        self.counts["too big"] += 1
        back = ethernet(sender.number, inner.version)
        self._write(sender, build_prefix(parse(message, 0, len(message)), False, back), message)

    def _write(self, host: Host, *pieces: bytes | bytearray | memoryview) -> None:
        assert host.tap.writev(list(pieces))


def connected(wire: Wire, version: int) -> tuple[socket.socket, socket.socket]:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    listener = wire.socket(1, family, socket.SOCK_STREAM)
    listener.bind((text(B4 if version == 4 else B6), 5001))
    listener.listen()
    client = wire.socket(0, family, socket.SOCK_STREAM)
    client.connect_ex((text(B4 if version == 4 else B6), 5001))
    accepted: list[socket.socket] = []

    def accept() -> bool:
        try:
            accepted.append(listener.accept()[0])
        except BlockingIOError:
            return False
        accepted[0].setblocking(False)
        wire.sockets.append(accepted[0])
        return True

    wire.run_until(accept)
    return client, accepted[0]


def transfer(wire: Wire, source: socket.socket, sink: socket.socket, size: int) -> None:
    """Sends `size` bytes and the end, and receives the same."""
    data = memoryview(random.Random(size).randbytes(size))
    sent, received, digest, ended = 0, 0, hashlib.sha256(), False

    def step() -> bool:
        nonlocal sent, received, ended
        try:
            while sent < size:
                sent += source.send(data[sent : sent + 262_144])
                if sent == size:
                    source.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            pass
        try:
            while not ended:
                piece = sink.recv(262_144)
                received += len(piece)
                digest.update(piece)
                ended = not piece
        except BlockingIOError:
            pass
        return ended

    wire.run_until(step)
    assert (received, digest.digest()) == (size, hashlib.sha256(data).digest())


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("plain", [False, True], ids=["joined", "cut in software"])
def test_tcp_arrives_whole_both_ways_and_keeps_to_the_clamped_size(version: int, plain: bool) -> None:
    with Wire(path=1300, plain=plain) as wire:
        client, server = connected(wire, version)
        transfer(wire, client, server, 4_000_000)
        transfer(wire, server, client, 3_000_001)
        assert wire.counts["super-packets"] > 50
        assert plain or wire.counts["runs"] > 50
        assert wire.counts["clamped"] == 2  # SYN and SYN ACK
        assert max(wire.steps) == 1300
        assert not wire.counts["too big"]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("plain", [False, True], ids=["joined", "cut in software"])
def test_datagrams_of_a_udp_super_packet_arrive_one_by_one(version: int, plain: bool) -> None:
    family, to = (socket.AF_INET, B4) if version == 4 else (socket.AF_INET6, B6)
    with Wire(plain=plain) as wire:
        receiver = wire.socket(1, family, socket.SOCK_DGRAM)
        receiver.bind((text(to), 5002))
        sender = wire.socket(0, family, socket.SOCK_DGRAM)
        data = random.Random(6).randbytes(40 * 1200 + 77)
        sender.sendmsg([data], [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", 1200))], 0, (text(to), 5002))
        received: list[bytes] = []

        def receive() -> bool:
            while True:
                try:
                    received.append(receiver.recv(65_536))
                except BlockingIOError:
                    return len(received) == 41

        wire.run_until(receive)
        assert received == [data[at : at + 1200] for at in range(0, len(data), 1200)]
        # A kernel without USO cuts by itself: then there is nothing for us to do.
        has_uso = bool(wire.hosts[0].tap.offloads & 32)
        assert wire.counts["super-packets"] == has_uso


@pytest.mark.parametrize("version", [4, 6])
def test_the_kernel_believes_a_too_big_message(version: int) -> None:
    family, to = (socket.AF_INET, B4) if version == 4 else (socket.AF_INET6, B6)
    level, discover, asks = (socket.IPPROTO_IP, 10, IP_MTU) if version == 4 else (socket.IPPROTO_IPV6, 23, IPV6_MTU)
    with Wire(path=1390) as wire:
        sender = wire.socket(0, family, socket.SOCK_DGRAM)
        sender.setsockopt(level, discover, 2)  # IP_PMTUDISC_DO
        sender.connect((text(to), 5003))
        sender.send(bytes(1400))
        assert sender.getsockopt(level, asks) == 1500
        wire.run_until(lambda: sender.getsockopt(level, asks) == 1390)
        assert wire.counts["too big"] == 1


def test_a_packet_that_may_be_fragmented_is() -> None:
    with Wire(mtu=9000, path=1300) as wire:
        receiver = wire.socket(1, socket.AF_INET, socket.SOCK_DGRAM)
        receiver.bind((text(B4), 5004))
        sender = wire.socket(0, socket.AF_INET, socket.SOCK_DGRAM)
        sender.setsockopt(socket.IPPROTO_IP, 10, 0)  # IP_PMTUDISC_DONT
        data = random.Random(2).randbytes(8001)
        sender.sendto(data, (text(B4), 5004))
        received: list[bytes] = []

        def receive() -> bool:
            try:
                received.append(receiver.recv(65_536))
            except BlockingIOError:
                return False
            return True

        wire.run_until(receive)
        assert received == [data]
        assert wire.counts["fragments"] == 7
