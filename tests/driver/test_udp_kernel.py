"""UDP sockets of the kernel: offload, errors of the network, caches, addresses."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.driver.udp import PAYLOAD, Opener, on_linux, receive, view
from tunnel.doors.udp import addresses
from tunnel.doors.udp.addresses import AddressCache, to_address
from tunnel.doors.udp.plain import PlainSocket
from tunnel.doors.udp.socket import MAX_BATCH, MAX_SEGMENTS, open_socket
from tunnel.errors import ConfigurationError
from tunnel.units import Address

# -- real sockets only


def test_an_address_of_another_machine_is_a_sentence() -> None:
    with pytest.raises(ConfigurationError, match="not an address of this machine"):
        open_socket("192.0.2.77", 0)


@on_linux
async def test_two_processes_can_share_a_port_when_asked() -> None:
    first = open_socket("127.0.0.1", 0, reuse=True)
    second = open_socket("127.0.0.1", first.local_address.port, reuse=True)
    first.close()
    second.close()


@on_linux
async def test_a_batch_is_one_call_each_way_and_carries_ecn(monkeypatch: pytest.MonkeyPatch) -> None:
    for host in ("127.0.0.1", "::1"):
        sender, receiver = open_socket(host, 0), open_socket(host, 0)
        calls: list[object] = []
        sendmsg = getattr(sender, "_sendmsg")  # noqa: B009 - of LinuxSocket alone

        def counted(*given: object, sendmsg: Callable[..., int] = sendmsg, calls: list[object] = calls) -> int:
            calls.append(given)
            return sendmsg(*given)

        monkeypatch.setattr(sender, "_sendmsg", counted)
        for ecn in (0, 1, 2, 3):
            assert sender.send(receiver.local_address, view(PAYLOAD), 1400, ecn=ecn)
            _, batches = await receive(receiver, 37)
            assert [(batch.stride, batch.ecn) for batch in batches] == [(1400, ecn)]
        assert len(calls) == 4
        sender.close()
        receiver.close()


@on_linux
async def test_ttl_and_ecn_stand_in_the_ip_header() -> None:
    for host, level, name, kind in (
        ("127.0.0.1", socket.IPPROTO_IP, 12, 2),  # IP_RECVTTL, IP_TTL
        ("::1", socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, socket.IPV6_HOPLIMIT),
    ):
        sender = open_socket(host, 0)
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as raw:
            raw.bind((host, 0))
            raw.setsockopt(level, name, 1)
            raw.settimeout(5)
            remote = Address(host, raw.getsockname()[1])
            for ttl, ecn, data in ((5, 0, b"x"), (7, 1, b"y" * 20), (None, 0, b"z")):
                assert sender.send(remote, view(data), 10, ttl=ttl, ecn=ecn)
                for _ in range(-(-len(data) // 10)):
                    _, ancillary, _, _ = raw.recvmsg(100, 256)
                    seen = [int.from_bytes(value, sys.byteorder) for at, what, value in ancillary if (at, what) == (level, kind)]
                    assert seen == [ttl or 64]
        sender.close()


class Raw:
    """A socket whose next sends fail as told: an errno, or 0 to go through."""

    def __init__(self, udp: Any, failures: Callable[[int, bool], int]) -> None:
        self.calls = 0
        self._real, self._failures = udp._socket, failures
        if hasattr(udp, "_sendmsg"):
            udp._sendmsg = self.sendmsg
            udp._sends_runs = False  # test_udp_runs.py has the same for those
        udp._socket = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def sendmsg(self, buffers: Any, control: Any, flags: int, sockaddr: Any) -> int:
        self._maybe_fail(any(what == 103 for _, what, _ in control))
        return int(self._real.sendmsg(buffers, control, flags, sockaddr))

    def sendto(self, data: Any, sockaddr: Any) -> int:
        self._maybe_fail(False)
        return int(self._real.sendto(data, sockaddr))

    def _maybe_fail(self, is_batch: bool) -> None:
        self.calls += 1
        code = self._failures(self.calls, is_batch)
        if code:
            raise OSError(code, os.strerror(code))


@on_linux
@pytest.mark.parametrize("refusal", [errno.EIO, errno.EINVAL])
async def test_without_gso_a_batch_is_sent_one_by_one_and_gso_is_left(refusal: int) -> None:
    sender, receiver = open_socket("127.0.0.1", 0), open_socket("127.0.0.1", 0)
    raw = Raw(sender, lambda _, is_batch: refusal if is_batch else 0)
    for turn in (1, 2):
        assert sender.send(receiver.local_address, view(PAYLOAD[:5000]), 1200)
        got, _ = await receive(receiver, 5)
        assert b"".join(got) == PAYLOAD[:5000]
        assert raw.calls == 1 + 5 * turn
    assert sender.counters.errors == {"no_gso": 1}
    sender.close()
    receiver.close()


@on_linux
async def test_an_old_kernel_that_minds_the_size_of_a_segment_keeps_gso() -> None:
    sender, receiver = open_socket("127.0.0.1", 0), open_socket("127.0.0.1", 0)
    Raw(sender, lambda _, is_batch: errno.EINVAL if is_batch else errno.EMSGSIZE)
    assert sender.send(receiver.local_address, view(PAYLOAD[:2400]), 1200)
    assert sender.counters.errors == {"no_gso": 1, "EMSGSIZE": 2}
    assert getattr(sender, "uses_gso", False)
    sender.close()
    receiver.close()


@pytest.mark.parametrize("kind", [open_socket, PlainSocket])
async def test_a_batch_that_blocks_midway_resumes_where_it_stopped(kind: Opener) -> None:
    sender, receiver = kind("127.0.0.1", 0), kind("127.0.0.1", 0)
    sender.uses_gso = False  # type: ignore[attr-defined]
    Raw(sender, lambda call, _: errno.EAGAIN if call in (3, 4, 8) else 0)
    batch, other = view(PAYLOAD[:6000]), view(b"other" * 600)
    assert not sender.send(receiver.local_address, batch, 1000)
    assert not sender.send(receiver.local_address, batch, 1000)
    assert sender.send(receiver.local_address, batch[:], 1000) is False
    assert sender.send(receiver.local_address, batch, 1000)
    got, _ = await receive(receiver, 6)
    assert b"".join(got) == PAYLOAD[:6000]
    assert sender.send(receiver.local_address, other, 1000)
    got, _ = await receive(receiver, 3)
    assert b"".join(got) == bytes(other)
    sender.close()
    receiver.close()


async def test_another_batch_after_one_that_blocked_is_sent_whole() -> None:
    sender, receiver = open_socket("127.0.0.1", 0), open_socket("127.0.0.1", 0)
    sender.uses_gso = False  # type: ignore[attr-defined]
    Raw(sender, lambda call, _: errno.EAGAIN if call == 3 else 0)
    assert not sender.send(receiver.local_address, view(b"a" * 3000), 1000)
    assert sender.send(receiver.local_address, view(b"b" * 3000), 1000)
    got, _ = await receive(receiver, 5)
    assert [one[:1] for one in got] == [b"a", b"a", b"b", b"b", b"b"]
    sender.close()
    receiver.close()


@pytest.mark.parametrize("code", [errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EPERM, errno.ECONNREFUSED, errno.ENOBUFS])
@pytest.mark.parametrize("kind", [open_socket, PlainSocket])
async def test_an_error_of_the_network_is_counted_and_the_next_send_is_normal(kind: Opener, code: int) -> None:
    sender, receiver = kind("127.0.0.1", 0), kind("127.0.0.1", 0)
    Raw(sender, lambda call, _: code if call == 1 else 0)
    assert sender.send(receiver.local_address, view(b"first"), 1000)
    assert sender.send(receiver.local_address, view(b"second"), 1000)
    got, _ = await receive(receiver, 1)
    assert got == [b"second"]
    assert sender.counters.errors == {errno.errorcode[code]: 1}
    sender.close()
    receiver.close()


async def test_empty_datagrams_are_counted_and_never_seen() -> None:
    receiver = open_socket("127.0.0.1", 0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as raw:
        for data in (b"", b"", b"real"):
            raw.sendto(data, receiver.local_address)
    got, _ = await receive(receiver, 1)
    assert got == [b"real"]
    assert receiver.counters.errors == {"empty": 2}
    receiver.close()


@on_linux
async def test_what_the_kernel_threw_away_is_known() -> None:
    sender, receiver = open_socket("127.0.0.1", 0), open_socket("127.0.0.1", 0)
    receiver._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # type: ignore[attr-defined]
    for _ in range(50):
        sender.send(receiver.local_address, view(b"x" * 1000), 1000)
    assert 0 < receiver.overruns() < 50
    sender.close()
    receiver.close()


@on_linux
def test_an_ordinary_user_gets_what_the_kernel_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/proc/sys/net/core/rmem_max") as file:
        allowed = int(file.read())
    monkeypatch.setattr("tunnel.doors.udp.linux.SO_RCVBUFFORCE", 9999)  # unknown, as refused
    for wanted in (100_000_000, 300_000):
        monkeypatch.setattr("tunnel.doors.udp.linux.RECEIVE_BUFFER", wanted)
        ordinary = open_socket("127.0.0.1", 0)
        assert ordinary.receive_buffer == min(wanted, allowed)
        ordinary.close()


def test_the_caches_stay_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "MAX_CACHED", 10)
    cache = AddressCache(is_ipv6=False, dual_stack=False)
    for port in range(1, 100):
        assert cache.address(("192.0.2.1", port)) == Address("192.0.2.1", port)
        assert cache.sockaddr(Address("192.0.2.1", port)) == ("192.0.2.1", port)
        assert len(cache.addresses) <= 10
        assert len(cache.sockaddrs) <= 10


def test_a_zone_whose_name_is_no_ascii_is_told_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "if_indextoname", lambda _index: "b\u00fcro0")
    assert to_address(("fe80::1", 5, 0, 7)) == Address("fe80::1%7", 5)


def test_addresses_are_canonical() -> None:
    index, name = socket.if_nameindex()[0]
    assert to_address(("::ffff:192.0.2.1", 5, 0, 0)) == Address("192.0.2.1", 5)
    assert to_address(("fe80::1", 5, 0, index)) == Address(f"fe80::1%{name}", 5)
    assert to_address(("fe80::1", 5, 0, 4_000_000)) == Address("fe80::1%4000000", 5)
    cache = AddressCache(is_ipv6=True, dual_stack=False)
    assert cache.sockaddr(Address(f"fe80::1%{name}", 5)) == ("fe80::1", 5, 0, index)
    assert cache.sockaddr(Address("fe80::1%7", 5)) == ("fe80::1", 5, 0, 7)


@on_linux
@pytest.mark.parametrize("size", [1_472, 700])
async def test_a_large_batch_is_what_several_calls_brought(size: int) -> None:
    """Joined until it is full, never beyond what was asked for; whoever asks for nothing gets what one call may send on."""
    segments = min(MAX_SEGMENTS, MAX_BATCH // size)
    sender = open_socket("127.0.0.1", 0)
    for batch in (MAX_BATCH, 2 * MAX_BATCH):
        receiver = open_socket("127.0.0.1", 0, batch=batch)
        data = os.urandom(segments * size)
        for _ in range(6):
            assert sender.send(receiver.local_address, view(data), size)
        got, batches = await receive(receiver, 6 * segments)
        assert b"".join(got) == 6 * data
        assert max(len(each.buffer) for each in batches) <= batch
        if batch > MAX_BATCH:
            assert max(len(each.buffer) for each in batches) == 2 * len(data)
        receiver.close()
    sender.close()
