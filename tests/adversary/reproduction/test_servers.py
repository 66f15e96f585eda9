"""What strangers and clients cannot make a server send, keep or write down."""

from __future__ import annotations

import socket
from collections import Counter
from pathlib import Path

import trio

from tests.adversary.reproduction import wire
from tests.adversary.reproduction.programs import Lab
from tests.adversary.reproduction.wire import ALLOCATE, ALLOCATED, CLAIM, CLAIM_ACCEPTED, HELLO, Rendezvous
from tests.driver.tls import make_certificate
from tunnel.doors.tls.client import TlsSocket, dial
from tunnel.doors.tls.server import ServerCertificate, TlsListener
from tunnel.units import Address, ReceivedBatch

POST = 6
DEAF, LOUD = Address("198.18.0.1", 1_000), Address("198.18.0.2", 1_000)


class Weighed(Rendezvous):
    """Knows how many bytes each address sent, and was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.came: Counter[Address] = Counter()
        self.went: Counter[Address] = Counter()

    def send(self, source: Address, datagram: bytes) -> list[bytes]:
        self.came[source] += len(datagram)
        self.server.handle_batch(self.now, wire.FIRST, source, memoryview(datagram), len(datagram))
        return self._drain(source)

    def pass_time(self, seconds: float) -> None:
        for _ in range(int(seconds * 4)):
            super().pass_time(0.25)
            self._drain(LOUD)

    def _drain(self, source: Address) -> list[bytes]:
        answers = []
        while (transmit := self.server.poll_transmit(self.now)) is not None:
            self.went[transmit.remote] += len(transmit.buffer)
            if transmit.remote == source:
                answers.append(bytes(transmit.buffer))
        return answers


def test_a_server_sends_an_address_that_fell_silent_no_more_than_it_got_from_there() -> None:
    """Four codes of somebody who has gone; whoever claims them posts as much as it may."""
    server = Weighed()
    for _ in range(4):
        allocated = server.ask(DEAF, [ALLOCATE, 0, 1])
        assert allocated[0] == ALLOCATED
        claim = server.insist(LOUD, [CLAIM, allocated[1], bytes(512)])
        assert claim[0] == CLAIM_ACCEPTED
        for _ in range(15):
            server.insist(LOUD, [POST, claim[1], bytes(512)])
        server.pass_time(1.0)
    server.pass_time(100.0)
    went, came = server.went[DEAF], server.came[DEAF]
    assert went <= came, f"{went:,} bytes went to an address that had sent {came:,}"


QUESTIONS = 3_000


def test_strangers_cannot_make_the_log_of_an_open_directory_grow_line_by_line(tmp_path: Path) -> None:
    with Lab(tmp_path) as lab:
        program, server = lab.serve("--open-directory")
        host, _, port = server.rpartition(":")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.settimeout(20.0)
            stranger.connect((host, int(port)))
            for number in range(QUESTIONS // 50):
                for _ in range(50):
                    stranger.send(b"ip ver")
                stranger.send(wire.request(number, bytes(16), [HELLO]))
                while stranger.recv(2_048)[0] != wire.RESPONSE:  # when that is answered, all before it was read
                    pass
        program.end()
        lines = [event["text"] for event in program.events if event["event"] == "text"]
        assert 0 < len(lines) < QUESTIONS / 2, f"{len(lines):,} lines for {QUESTIONS:,} datagrams"


async def test_what_a_reader_over_tls_does_not_fetch_is_not_kept_for_it(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path, "127.0.0.1")
    listener = TlsListener("127.0.0.1", 0, ServerCertificate(certificate.certificate, certificate.key))

    async def greet(_batch: ReceivedBatch) -> bool:
        return True

    def kept() -> int:
        """Bytes."""
        return sum(stream._queue.size for stream in listener._streams.values())

    readers: list[TlsSocket] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.serve, greet)
        try:
            with trio.fail_after(20):
                for _ in range(4):
                    readers.append(await dial("127.0.0.1", listener.local_address.port, certificate.fingerprint))
                    readers[-1].send(readers[-1].remote, memoryview(b"hello"), 5)
                while len(listener._streams) < len(readers):  # noqa: ASYNC110
                    await trio.sleep(0.01)
            burst = memoryview(bytes(50 * 1_200))
            for _ in range(200):  # far more than TCP takes
                for remote in list(listener._streams):
                    listener.send(remote, burst, 1_200)
            assert kept() > 1 << 20
            with trio.move_on_after(5.0):
                while kept():  # noqa: ASYNC110
                    await trio.sleep(0.01)
            assert len(listener._streams) == len(readers)
            assert not kept(), f"{kept():,} bytes are kept for {len(readers)} readers that read nothing"
        finally:
            for reader in readers:
                reader.close()
            nursery.cancel_scope.cancel()
            listener.close()
