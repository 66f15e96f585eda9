"""On a link that delivers each datagram by itself, both ends wake as seldom as the flow allows: ACKs and bursts are counted."""

from __future__ import annotations

from tests.unit.connection.pair import Pair
from tunnel.units import StreamId

RATE = 12.5e6  # bytes a second: 100 Mbit/s
SECONDS = 2.0


class Link(Pair):
    """100 Mbit/s, 40 ms there and back; counts what each side sends."""

    def __init__(self, delay: float = 0.020) -> None:
        super().__init__(seed=3, relayed=False, delay=delay, rate=RATE, queue=0.04)
        self.sent = {"a": 0, "b": 0}
        self.hook = self._count_it
        self.run(0.5)
        self.bulk: StreamId = self.a.open_stream()

    def _count_it(self, name: str, _relayed: bool, _data: bytes) -> None:
        self.sent[name] += 1

    def transfer(self, seconds: float) -> tuple[float, int, int]:
        """Share of the rate that arrived, bursts of both sides, datagrams of the receiving side; a second each."""
        self.sent = {"a": 0, "b": 0}
        bursts, before, ends = self.bursts, len(self.read["b"].get(self.bulk, b"")), self.now + seconds
        while self.now < ends:
            while self.a.stream_write(self.bulk, bytes(65_536)) == 65_536:
                pass
            self.step(min(ends, self.now + 0.01))
        arrived = len(self.read["b"][self.bulk]) - before
        return arrived / seconds / RATE, int((self.bursts - bursts) / seconds), int(self.sent["b"] / seconds)


def test_a_steady_flow_over_a_long_path_is_acknowledged_some_sixteen_times_in_a_round_trip() -> None:
    link = Link()
    link.transfer(1.0)
    share, bursts, acks = link.transfer(SECONDS)
    assert share > 0.93
    assert 16 / 0.050 * 0.6 < acks < 16 / 0.040 * 1.6
    assert bursts - acks < 600  # of the sender: each is worth a quantum of the pacer, 2 ms, and what an ACK finds is not cut up


def test_on_a_short_path_it_is_acknowledged_every_millisecond_as_ever() -> None:
    link = Link(delay=0.001)
    link.transfer(1.0)
    share, _, acks = link.transfer(SECONDS)
    assert share > 0.93
    assert 600 < acks < 1_600


def test_a_keystroke_beside_bulk_is_not_held_back_for_the_pacer() -> None:
    """It leaves at the instant at which it is written, wherever the pacer lets a datagram go."""
    link = Link()
    link.transfer(1.0)
    keys = link.a.open_stream()
    left = 0
    for number in range(50):
        link.transfer(0.0037)
        link.flush()
        path = link.a._shared.paths.current
        if (
            path.pacer.budget(link.now) < path.mtu
            or path.recovery.bytes_in_flight + 2 * path.mtu > path.recovery.congestion.window
        ):
            continue
        link.a.stream_write(keys, b"k")
        link.flush()
        stream = link.a._shared.streams.sending[keys]
        assert stream.sent == stream.written, number
        left += 1
    assert left > 5
