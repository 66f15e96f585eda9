"""Where each microsecond of the hot path goes: `python -m tests.bench.micro [--rounds 200]`.

Each step of a burst by itself, without network and scheduler: what is printed is the least of many rounds in microseconds a
datagram, so other programs on the machine hardly matter.  A round is one burst of the path's datagrams.
"""

from __future__ import annotations

import argparse
import socket
import time
from collections.abc import Callable
from typing import TypeVar

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.unit.connection.pair import Pair
from tunnel.doors.udp.socket import open_socket
from tunnel.ports.counters import ForwardCounters
from tunnel.ports.outlet import Outlet
from tunnel.shell.datagrams import Datagrams
from tunnel.transport.connection.records import record_step
from tunnel.transport.packet.header import HEADER_SIZE, TAG_SIZE
from tunnel.units import Instant

T = TypeVar("T")
MTU = 1_472
BURST = 44  # datagrams of MTU in one GSO call
DATAGRAM = 1_200


class Least:
    """The least of each step, in seconds a round."""

    def __init__(self) -> None:
        self.steps: dict[str, tuple[float, int]] = {}

    def time(self, step: str, count: int, action: Callable[[], T]) -> T:
        """`count` datagrams.  Returns what `action` does."""
        began = time.perf_counter()
        result = action()
        took = time.perf_counter() - began
        self.steps[step] = min(self.steps.get(step, (took, count)), (took, count))
        return result


def yardsticks(least: Least, rounds: int) -> None:
    aead = AESGCM(bytes(32))
    view = memoryview(bytearray(MTU))
    nonce, sealed, aad, plain = bytes(12), view[HEADER_SIZE:], view[:HEADER_SIZE], view[HEADER_SIZE : MTU - TAG_SIZE]
    out = memoryview(bytearray(len(plain)))

    def seal() -> None:
        for _ in range(BURST):
            aead.encrypt_into(nonce, plain, aad, sealed)

    for _ in range(rounds):
        least.time("seal alone", BURST, seal)
    aead.encrypt_into(nonce, plain, aad, sealed)
    whole = bytes(view)

    def unseal() -> None:
        for _ in range(BURST):
            aead.decrypt_into(nonce, whole[HEADER_SIZE:], whole[:HEADER_SIZE], out)

    for _ in range(rounds):
        least.time("open alone", BURST, unseal)


def ready() -> Pair:
    """A pair whose path is known well: MTU found, the window far open."""
    pair = Pair(1, relayed=False, delay=0.000_1)
    pair.run(1.0)
    stream = pair.a.open_stream()
    pair.write_all("a", stream, bytes(30 << 20))
    pair.run(1.0)
    return pair


def streams(least: Least, rounds: int) -> None:
    pair = ready()
    stream = pair.a.open_stream()
    pair.a.stream_write(stream, bytes(1 << 20))
    pair.run(1.0)
    a, b, out = pair.a, pair.b, bytearray(65_536)
    key = pair.direct("b")
    data = bytes(BURST * record_step(MTU))
    burst = memoryview(bytearray(65_536))[: BURST * MTU]  # the same view for every batch, as a socket of ours gives it
    for _ in range(rounds):
        pair.now = Instant(pair.now + 0.01)
        now = pair.now
        least.time("stream: into the ring", BURST, lambda: a.stream_write(stream, data))
        transmit = least.time("stream: build and seal a burst", BURST, lambda: a.poll_transmit(now, out))  # noqa: B023
        assert transmit is not None
        assert len(transmit.buffer) == BURST * MTU
        burst[:] = transmit.buffer
        least.time("stream: find nothing more to send", BURST, lambda: a.poll_transmit(now, out))  # noqa: B023
        least.time("stream: open a burst", BURST, lambda: b.handle_datagrams(now, key, burst, 0, MTU))  # noqa: B023
        least.time("stream: read it", BURST, lambda: b.stream_read(stream, now=now))  # noqa: B023
        while b.poll_event() is not None:
            pass
        answered_at = Instant(now + 0.005)  # an ACK may wait for company
        answer = b.poll_transmit(answered_at, out)
        assert answer is not None
        ack = memoryview(bytes(answer.buffer))
        back = pair.direct("a")
        least.time("stream: take the ACK", BURST, lambda: a.handle_datagrams(answered_at, back, ack, 0, len(ack)))  # noqa: B023
        least.time("stream: events and deadline", BURST, lambda: (a.poll_event(), a.poll_timeout()))
        pair.run(0.05)


def datagrams(least: Least, rounds: int) -> None:
    pair = ready()
    a, b, out = pair.a, pair.b, bytearray(65_536)
    key = pair.direct("b")
    count = BURST
    batch = [bytes(DATAGRAM)] * count
    flows = Datagrams(lambda _flow, _batch: 0, lambda: None, first_flow=1)
    got: list[list[bytes]] = []
    flows.register(1, got.append)
    for _ in range(rounds):
        pair.now = Instant(pair.now + 0.01)
        now = pair.now
        least.time("datagram: queue a batch", count, lambda: a.send_datagrams(now, 1, batch))  # noqa: B023
        transmit = least.time("datagram: build and seal a burst", count, lambda: a.poll_transmit(now, out))  # noqa: B023
        assert transmit is not None
        assert len(transmit.buffer) == count * transmit.segment_size
        burst, size = memoryview(bytes(transmit.buffer)), transmit.segment_size
        least.time("datagram: open a burst", count, lambda: b.handle_datagrams(now, key, burst, 0, size))  # noqa: B023
        least.time("datagram: hand out", count, lambda: flows.deliver(b.receive_datagrams()))
        got.clear()
        pair.run(0.05)
        b.receive_datagrams()


def kernel(least: Least, rounds: int) -> None:
    """What the local sockets and the tunnel's cost, the kernel included, over loopback."""
    count = 54
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as near:
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2 << 20)
        far.bind(("127.0.0.1", 0))
        far.setblocking(False)
        near.setblocking(False)
        near.connect(far.getsockname())
        outlet = Outlet(near, None, ForwardCounters())
        batch = [bytes(DATAGRAM)] * count

        def drain() -> None:
            try:
                while True:
                    far.recvfrom(65_535)
            except BlockingIOError:
                pass

        for _ in range(rounds):
            least.time("datagram: to the local program", count, lambda: outlet.send(batch))
            least.time("datagram: from a local program", count, drain)
    ours, theirs = open_socket("127.0.0.1", 0), open_socket("127.0.0.1", 0)
    burst = memoryview(bytes(BURST * MTU))
    for _ in range(rounds):
        least.time("tunnel socket: send a burst", BURST, lambda: ours.send(theirs.local_address, burst, MTU))
        least.time("tunnel socket: receive it", BURST, theirs.receive)
    ours.close()
    theirs.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    rounds = parser.parse_args().rounds
    least = Least()
    for part in (yardsticks, streams, datagrams, kernel):
        part(least, rounds)
    for step, (took, count) in least.steps.items():
        print(f"{step:<36}{took / count * 1e6:>8.2f} us a datagram{took * 1e6:>10.1f} us a burst of {count}")


if __name__ == "__main__":
    main()
