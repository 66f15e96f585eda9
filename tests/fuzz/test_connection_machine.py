"""A rule-based machine over two connections with a reference model of their streams: byte strings and a few flags."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.unit.connection.pair import B, Pair, keypairs
from tunnel.transport.connection.events import ControlReceived, PathKind, StreamReset, StreamStopped
from tunnel.transport.stream.flow import MAX_STREAMS
from tunnel.units import PathKey, SocketId, StreamId

OTHER = {"a": "b", "b": "a"}


@dataclass
class Half:
    """One direction of a stream, as its writer knows it."""

    text: bytearray = field(default_factory=bytearray)
    finished: bool = False
    reset: int | None = None  # by the writer
    stopped: int | None = None  # by the reader


class ConnectionMachine(RuleBasedStateMachine):
    """`a` and `b` over links that the rules make worse; whatever happened, healing them brings everything across."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair(5)
        self.rng = random.Random(5)
        self.halves: dict[tuple[str, StreamId], Half] = {}  # (writer, stream)
        self.said: dict[str, list[bytes]] = {"a": [], "b": []}
        self.fates: list[str] = []
        self.keys = 200
        self.pair.hook = self.fate

    def fate(self, name: str, relayed: bool, data: bytes) -> list[float] | None:
        if not self.fates:
            return None
        delay = self.pair.delay
        match self.fates.pop():
            case "drop":
                return []
            case "late":
                return [5 * delay]
            case "twice":
                return [delay, 1.1 * delay]
        return None

    def pick(self, number: int, name: str | None = None) -> tuple[str, StreamId]:
        keys = sorted(key for key in self.halves if name is None or key[0] == name)
        return keys[number % len(keys)]

    # what applications do

    @precondition(lambda self: len(self.halves) < 16)
    @rule(name=st.sampled_from("ab"))
    def open(self, name: str) -> None:
        stream = self.pair.sides[name].open_stream()
        self.halves[name, stream] = Half()
        self.halves[OTHER[name], stream] = Half()
        self.pair.read[name].setdefault(stream, bytearray())

    @precondition(lambda self: self.halves)
    @rule(number=st.integers(0, 30), size=st.sampled_from([1, 20, 1500, 40_000, 200_000]))
    def write(self, number: int, size: int) -> None:
        name, stream = self.pick(number)
        half = self.halves[name, stream]
        if stream not in self.pair.read[name]:
            return  # its opener has not been heard yet
        data = self.rng.randbytes(size)
        done = self.pair.sides[name].stream_write(stream, data)
        assert 0 <= done <= size
        if half.finished or half.reset is not None:
            assert done == 0
        half.text += data[:done]

    @precondition(lambda self: self.halves)
    @rule(number=st.integers(0, 30))
    def finish(self, number: int) -> None:
        name, stream = self.pick(number)
        if stream in self.pair.read[name]:
            self.pair.sides[name].stream_finish(stream)
            self.halves[name, stream].finished = True

    @precondition(lambda self: self.halves)
    @rule(number=st.integers(0, 30), code=st.integers(0, 7))
    def reset(self, number: int, code: int) -> None:
        name, stream = self.pick(number)
        half = self.halves[name, stream]
        if stream in self.pair.read[name] and half.reset is None:
            self.pair.sides[name].stream_reset(stream, code)
            half.reset = code

    @precondition(lambda self: self.halves)
    @rule(number=st.integers(0, 30), code=st.integers(0, 7))
    def stop(self, number: int, code: int) -> None:
        name, stream = self.pick(number)
        half = self.halves[name, stream]
        if stream in self.pair.read[OTHER[name]] and half.stopped is None:
            self.pair.sides[OTHER[name]].stream_stop(stream, code)
            half.stopped = code

    @rule(name=st.sampled_from("ab"), pause=st.booleans())
    def read_or_not(self, name: str, pause: bool) -> None:
        self.pair.reading[name] = not pause
        if not pause:
            for stream in list(self.pair.read[name]):
                self.pair.take(name, stream)

    @precondition(lambda self: self.halves)
    @rule(number=st.integers(0, 30), share=st.sampled_from([0.0, 0.5, 1.0]))
    def lend_a_sink(self, number: int, share: float) -> None:
        """Takes a share of what arrives, until it has left something."""
        name, stream = self.pick(number)
        into = self.pair.read[OTHER[name]].get(stream)
        if into is None:
            return

        def sink(pieces: list[memoryview]) -> int:
            data = b"".join(pieces)
            taken = round(share * len(data))
            into.extend(data[:taken])
            return taken

        self.pair.sides[OTHER[name]].set_stream_sink(stream, sink)

    @rule(name=st.sampled_from("ab"), size=st.sampled_from([0, 5, 3000]))
    def say(self, name: str, size: int) -> None:
        message = self.rng.randbytes(size)
        self.pair.sides[name].send_control(message)
        self.said[name].append(message)

    @rule(name=st.sampled_from("ab"), size=st.sampled_from([0, 100, 1160, 20_000]))
    def send_datagram(self, name: str, size: int) -> None:
        assert self.pair.sides[name].send_datagrams(self.pair.now, 1, [bytes(size)])

    # what networks do

    @rule(fates=st.lists(st.sampled_from(["drop", "drop", "late", "twice", "pass"]), min_size=1, max_size=30))
    def disturb(self, fates: list[str]) -> None:
        self.fates += fates

    @rule(name=st.sampled_from("ab"), relay=st.booleans())
    def cut(self, name: str, relay: bool) -> None:
        self.pair.cut.add((name, relay))

    @rule()
    def heal(self) -> None:
        self.pair.cut.clear()

    @rule(name=st.sampled_from("ab"))
    def challenge(self, name: str) -> None:
        self.pair.sides[name].challenge(self.pair.now, self.pair.direct(name), PathKind.DIRECT)

    @rule(socket=st.integers(1, 12))
    def challenge_from_another_socket(self, socket: int) -> None:
        self.pair.a.challenge(self.pair.now, PathKey(SocketId(socket), B, b""), PathKind.DIRECT)

    @rule(name=st.sampled_from("ab"))
    def drop_the_current_path(self, name: str) -> None:
        side = self.pair.sides[name]
        if len(side.paths) > 1:
            side.drop_path(self.pair.now, side.current_path.key)

    @rule(name=st.sampled_from("ab"), policy=st.sampled_from(["auto", "relay"]))
    def policy(self, name: str, policy: str) -> None:
        self.pair.sides[name].set_policy(self.pair.now, policy)

    @rule()
    def rekey(self) -> None:
        self.keys += 2
        key_a, key_b = keypairs(random.Random(self.keys), base=self.keys)
        self.pair.b.install_keypair(self.pair.now, key_b, confirmed=False)
        self.pair.a.install_keypair(self.pair.now, key_a, confirmed=True)

    @rule(seconds=st.sampled_from([0.0001, 0.005, 0.03, 0.3, 2.0, 40.0]))
    def advance(self, seconds: float) -> None:
        self.pair.run(seconds)
        for side in self.pair.sides.values():
            side.receive_datagrams()

    # what must hold

    @invariant()
    def what_was_read_is_what_was_written(self) -> None:
        for (name, stream), half in self.halves.items():
            assert half.text.startswith(self.pair.read[OTHER[name]].get(stream, b""))

    @invariant()
    def nobody_gave_up(self) -> None:
        for name, side in self.pair.sides.items():
            assert side.close_reason is None
            assert 0 <= side.stats().streams <= MAX_STREAMS
            heard = self.heard(name)
            assert heard == self.said[OTHER[name]][: len(heard)]

    def teardown(self) -> None:
        """Heal everything: whatever was neither reset nor stopped arrives whole, what was said is heard, all streams end."""
        pair = self.pair
        pair.cut.clear()
        self.fates.clear()
        for name in "ab":
            pair.reading[name] = True
            pair.sides[name].set_policy(pair.now, "auto")
            for stream in list(pair.read[name]):
                pair.take(name, stream)
        pair.run_until(lambda: all(self.is_settled(*key) for key in self.halves), 120)
        pair.run_until(self.all_streams_ended, 120)
        pair.run_until(lambda: all(self.heard(name) == self.said[OTHER[name]] for name in "ab"), 30)
        self.what_was_read_is_what_was_written()
        self.nobody_gave_up()

    def all_streams_ended(self) -> bool:
        for name, stream in self.halves:
            self.pair.sides[name].stream_finish(stream)
        return all(side.stats().streams == 0 for side in self.pair.sides.values())

    def heard(self, name: str) -> list[bytes]:
        return [e.data for e in self.pair.events[name] if isinstance(e, ControlReceived)]

    def is_settled(self, name: str, stream: StreamId) -> bool:
        half, reader = self.halves[name, stream], OTHER[name]
        if half.stopped is not None or half.reset is not None:
            return True
        if any(e.stream_id == stream for e in self.pair.events[name] if isinstance(e, StreamStopped)):
            return True
        assert not any(e.stream_id == stream for e in self.pair.events[reader] if isinstance(e, StreamReset))
        if self.pair.read[reader].get(stream, b"") != half.text:
            return False
        return not half.finished or self.pair.sides[reader].stream_at_end(stream)


ConnectionMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestConnectionMachine = ConnectionMachine.TestCase
