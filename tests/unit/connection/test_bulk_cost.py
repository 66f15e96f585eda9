"""How many steps of the interpreter one burst of a fast stream takes, besides the loops that run in C: no more than it does."""

from __future__ import annotations

from collections.abc import Callable

from tests.unit.connection.pair import Pair
from tests.work import instructions
from tunnel.transport.connection.records import record_step
from tunnel.units import Instant

MTU = 1_472
BURST = 44  # datagrams of MTU in one GSO call: two records
#: A tenth above what was counted with Python 3.11.  Of the ACK, a twelfth is the look at losses that comes every 20 ms.
MOST = {"build": 2_220, "open": 2_610, "acknowledge": 3_840}


def test_a_burst_is_built_opened_and_acknowledged_in_few_steps() -> None:
    pair = Pair(1, relayed=False, delay=0.000_1)
    pair.run(1.0)
    stream = pair.a.open_stream()
    pair.write_all("a", stream, bytes(16 << 20))  # the MTU is found, and the window far open
    pair.run(1.0)
    stream = pair.a.open_stream()
    pair.a.stream_write(stream, bytes(1 << 20))
    pair.run(1.0)
    a, b, out = pair.a, pair.b, bytearray(65_536)
    there, back = pair.direct("b"), pair.direct("a")
    burst = memoryview(bytearray(65_536))[: BURST * MTU]  # the same view for every batch, as a socket of ours gives it
    least = dict.fromkeys(MOST, 1 << 30)

    def note(step: str, action: Callable[[], object]) -> None:
        least[step] = min(least[step], instructions(action))

    for _ in range(8):
        pair.now = now = Instant(pair.now + 0.01)
        a.stream_write(stream, bytes(BURST * record_step(MTU)))
        sent = []
        note("build", lambda: sent.append(a.poll_transmit(now, out)))  # noqa: B023
        assert sent[0] is not None
        assert len(sent[0].buffer) == BURST * MTU
        burst[:] = sent[0].buffer
        note("open", lambda: b.handle_datagrams(now, there, burst, 0, MTU))  # noqa: B023
        assert sum(map(len, b.stream_read(stream, now=now))) == BURST * record_step(MTU)
        while b.poll_event() is not None:
            pass
        answered_at = Instant(now + 0.005)  # an ACK may wait for company
        answer = b.poll_transmit(answered_at, out)
        assert answer is not None
        ack = memoryview(bytes(answer.buffer))
        note("acknowledge", lambda: a.handle_datagrams(answered_at, back, ack, 0, len(ack)))  # noqa: B023
        pair.run(0.05)

    assert all(least[step] <= most for step, most in MOST.items()), least
