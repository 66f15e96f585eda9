"""The rendezvous server on real sockets of the loopback interface."""

from __future__ import annotations

import json
import os
import random
import socket
import time
from collections.abc import Sequence
from typing import Any

import pytest
import trio

from tests.unit.rendezvous.world import heard
from tunnel.doors.udp.socket import UdpSocket, open_socket
from tunnel.errors import ConfigurationError
from tunnel.host.clock import boottime
from tunnel.nat import stun
from tunnel.rendezvous import events, messages
from tunnel.rendezvous.client import Client
from tunnel.shell.serve import RunningServer, ServerConfig, read_access_file, serve
from tunnel.shell.server_loop import MAX_LOCALS, ServerLoop
from tunnel.units import Address, ReceivedBatch, SocketId

LOOPBACK = [("127.0.0.1", 0), ("::1", 0)]


class Peer:
    """A client on a socket, driven as the endpoint's driver would."""

    def __init__(self, server: Address) -> None:
        self.udp: UdpSocket = open_socket("::1" if server.is_ipv6 else "127.0.0.1", 0)
        self.client = Client(servers=[(SocketId(0), server)], now=boottime(), rng=random.Random(1), entropy=os.urandom)
        self.events: list[events.ClientEvent] = []
        self.relayed: list[bytes] = []
        self.flush()

    def flush(self) -> None:
        while (out := self.client.poll_transmit(boottime())) is not None:
            assert self.udp.send(out[1], memoryview(out[2]), len(out[2]))
        while (event := self.client.poll_event()) is not None:
            self.events.append(event)

    async def until(self, kind: type[Any]) -> Any:
        with trio.fail_after(5):
            while True:
                for event in self.events:
                    if found := heard([event], kind):
                        self.events.remove(event)
                        return found[0]
                await self.step()

    async def step(self) -> None:
        deadline = self.client.poll_timeout()
        assert deadline is not None
        with trio.move_on_after(max(0.0, deadline - boottime())):
            await self.udp.wait_readable()
        self.client.handle_timeout(boottime())
        while (batch := self.udp.receive()) is not None:
            for at in range(0, len(batch.buffer), batch.stride):
                data = bytes(batch.buffer[at : at + batch.stride])
                if data[0] >= 0xC0:
                    self.relayed.append(data)
                else:
                    self.client.handle_datagram(boottime(), SocketId(0), batch.remote, data)
        self.flush()


async def start(
    nursery: trio.Nursery, config: ServerConfig | None = None, listen: Sequence[tuple[str, int]] = LOOPBACK
) -> RunningServer:
    async def run(task_status: trio.TaskStatus[RunningServer] = trio.TASK_STATUS_IGNORED) -> None:
        await serve(listen, config=config, task_status=task_status)

    running = await nursery.start(run)
    assert isinstance(running, RunningServer)
    return running


async def test_an_address_is_charged_the_processor_time_that_its_requests_took(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reading of the thread's time before and after each batch, each of which says that 0.1 ms have gone by."""
    readings = iter(range(10**9))
    monkeypatch.setattr(time, "thread_time", lambda: next(readings) * 1e-4)
    async with trio.open_nursery() as nursery:
        running = await start(nursery)
        peer = Peer(running.addresses[0])
        peer.client.allocate(boottime())
        peer.flush()
        await peer.until(messages.Allocated)
        charged = running._server.load._recent
        for _ in range(3):  # the answer leaves before the time is charged
            await trio.lowlevel.checkpoint()
        assert charged["127.0.0.1"] == pytest.approx(charged["127.0"])
        assert charged["127.0.0.1"] > 0.99e-4
        peer.udp.close()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("kinds", "is_relayed"), [(b"\xc1", True), (b"\xc1\xff\xc0", True), (b"\xc1\x01", False), (b"\x01", False)]
)
def test_requests_behind_relayed_datagrams_in_one_batch_are_charged(kinds: bytes, is_relayed: bool) -> None:
    buffer = memoryview(b"".join(bytes((kind,)) + bytes(599) for kind in kinds)[: 600 * len(kinds) - 7])
    batch = ReceivedBatch(Address("127.0.0.1", 9), buffer, 600, 0)
    assert ServerLoop._is_relayed(batch) == is_relayed


async def test_two_peers_meet_by_code_across_families_relay_bursts_and_hear_bye() -> None:
    async with trio.open_nursery() as nursery:
        running = await start(nursery)
        v4, v6 = running.addresses
        owner, claimer = Peer(v4), Peer(v6)
        owner.client.allocate(boottime())
        owner.flush()
        allocated = await owner.until(messages.Allocated)
        claimer.client.claim(boottime(), allocated.nameplate, b"pake")
        claimer.flush()
        await claimer.until(messages.ClaimAccepted)
        received = await owner.until(messages.ClaimReceived)
        assert received.body == b"pake"
        burst = b"".join(received.channel.channel + b"\x80" + bytes((n,)) * 1191 for n in range(40))
        assert owner.udp.send(v4, memoryview(burst), 1200)
        with trio.fail_after(5):
            while len(claimer.relayed) < 40:
                await claimer.step()
        assert b"".join(claimer.relayed) == burst
        assert owner.client.mapping_varies is False
        told = owner.client.unix_time(boottime())
        assert told is not None
        assert abs(told - time.time()) < 30
        counters = running.counters()
        assert counters["sessions"] == 2
        assert counters["relayed_bytes"] == len(burst)
        running.stop()
        for peer in (owner, claimer):
            await peer.until(events.Lost)
            peer.udp.close()


async def test_an_answer_leaves_from_the_address_that_was_asked() -> None:
    """A server that listens on all addresses has as many as the machine: clients, relay, STUN and the second port keep apart."""
    async with trio.open_nursery() as nursery:
        running = await start(nursery, listen=[("0.0.0.0", 0)])
        port = running.addresses[0].port
        owner, claimer = Peer(Address("127.0.0.5", port)), Peer(Address("127.0.0.6", port))
        owner.client.allocate(boottime())
        owner.flush()
        allocated = await owner.until(messages.Allocated)
        claimer.client.claim(boottime(), allocated.nameplate, b"pake")
        claimer.flush()
        await claimer.until(messages.ClaimAccepted)
        received = await owner.until(messages.ClaimReceived)
        burst = b"".join(received.channel.channel + b"\x80" + bytes((n,)) * 1191 for n in range(40))
        assert owner.udp.send(Address("127.0.0.5", port), memoryview(burst), 1200)
        with trio.fail_after(5):
            while len(claimer.relayed) < 40:
                await claimer.step()
        assert owner.client.mapping_varies is False
        assert not owner.client.drops["rendezvous_source"]
        assert not claimer.client.drops["rendezvous_source"]
        running.stop()
        for peer in (owner, claimer):
            await peer.until(events.Lost)
            peer.udp.close()


async def test_addresses_beyond_the_limit_are_answered_all_the_same() -> None:
    async with trio.open_nursery() as nursery:
        running = await start(nursery, ServerConfig(stun_burst=1_000), [("0.0.0.0", 0)])
        port = running.addresses[0].port
        plain = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        await plain.bind(("127.0.0.1", 0))
        with trio.fail_after(5):
            for number in range(MAX_LOCALS + 3):
                host = f"127.0.1.{number + 1}"
                for change_port in (False, True):
                    await plain.sendto(stun.encode_binding_request(bytes(12), change_port=change_port), (host, port))
                    answered = Address(*(await plain.recvfrom(1500))[1])
                    assert (answered.port == port) is not change_port
                    assert (answered.host == host) is (number < MAX_LOCALS)
        plain.close()
        nursery.cancel_scope.cancel()


async def test_plain_stun_and_the_open_directory_answer_plain_sockets() -> None:
    async with trio.open_nursery() as nursery:
        running = await start(nursery, ServerConfig(open_directory=True))
        host, port = running.addresses[0]
        plain = [trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
        with trio.fail_after(5):
            for index, each in enumerate(plain):
                await each.bind(("127.0.0.1", 0))
                await each.sendto(b"ip ver", (host, port))
                others = json.loads(await each.recv(1024))
                assert others == [list(other.getsockname()) for other in plain[:index]]
            await plain[0].sendto(stun.encode_binding_request(bytes(12), change_port=True), (host, port))
            data, source = await plain[0].recvfrom(1500)
        message = stun.decode(data)
        assert message.mapped_address == Address(*plain[0].getsockname())
        assert Address(*source) in running.second_addresses
        for each in plain:
            each.close()
        nursery.cancel_scope.cancel()


async def test_ports_are_listened_on_in_pairs_and_freed_again() -> None:
    for _ in range(2):
        async with trio.open_nursery() as nursery:
            running = await start(nursery)
            assert [address.host for address in running.addresses] == ["127.0.0.1", "::1"]
            assert len(running.second_addresses) == 2
            ports = [address.port for address in running.addresses]
            for address in running.addresses:
                with pytest.raises(ConfigurationError):
                    await serve([(address.host, address.port)])
            running.stop()
        for port in ports:
            open_socket("127.0.0.1", port).close()


async def test_an_address_that_is_not_ours_is_one_sentence() -> None:
    with pytest.raises(ConfigurationError):
        await serve([("192.0.2.1", 24531)])


def test_an_access_file_is_read_or_refused_with_one_sentence(tmp_path: object) -> None:
    path = os.path.join(str(tmp_path), "access")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_access_file(path)
    with open(path, "w", encoding="utf-8") as file:
        file.write("198.51.100.0/24\n")
    assert read_access_file(path).allows_host("198.51.100.9")
    with open(path, "w", encoding="utf-8-sig", newline="\r\n") as file:  # as Windows' editor saves it
        file.write("203.0.113.0/24\n")
    assert read_access_file(path).allows_host("203.0.113.9")
    with open(path, "wb") as file:
        file.write(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="UTF-8"):
        read_access_file(path)
