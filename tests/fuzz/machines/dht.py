"""The DHT: nodes that answer our questions with anything, at any time, from any address."""

from __future__ import annotations

import random

from tests.fuzz.engine import Machine
from tests.sim.dht import packed
from tunnel.dht.bencode import Value, encode_value
from tunnel.dht.diagnosis import PATIENCE, Diagnosis
from tunnel.dht.ledger import MAX_HOSTS
from tunnel.dht.lookup import MAX_ASKED
from tunnel.units import Address, Instant

ENTRY = tuple(Address(f"44.{number}.1.1", 6_881) for number in range(4))
ROUND = 4 * MAX_ASKED + 3 * len(ENTRY)  # questions that one look can cost


class _Nodes:
    """Inputs: what of an answer is ours, seconds, and the answer."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self._begin()

    def _begin(self) -> None:
        self.now = self.begun = 10.0
        self.questions = 0
        self.part = Diagnosis(is_ipv6=False, entry=ENTRY, entropy=self.rng.randbytes, now=Instant(self.now))
        self.asked: list[tuple[Address, bytes]] = []

    def feed(self, data: bytes) -> None:
        if len(data) < 2:
            return
        self.now += data[1] ** 2 / 60_000
        at, part, rest = Instant(self.now), self.part, data[2:]
        part.handle_timeout(at)
        while (ready := part.poll_transmit()) is not None:
            self.asked = [*self.asked[-40:], ready]
            self.questions += 1
        assert self.questions <= ROUND
        if self.asked:
            remote, question = self.asked[data[1] % len(self.asked)]
            transaction = question[question.index(b"1:t4:") + 5 :][:4]
            part.handle_datagram(at, remote if data[0] % 5 else ENTRY[0], rest.replace(b"TTTT", transaction))
        assert part.poll_timeout() <= self.begun + PATIENCE
        assert len(part._client._ledger) <= MAX_HOSTS
        if part.is_done:
            self._begin()

    def end(self) -> None:
        pass


def corpus() -> list[bytes]:
    rng = random.Random(1)
    found = []
    for number in range(40):
        nodes = b"".join(rng.randbytes(20) + packed(Address(f"45.{number}.{each}.1", 6_881)) for each in range(8))
        answer: dict[bytes, Value] = {b"id": rng.randbytes(20), b"nodes": nodes}
        message: Value = {b"t": b"TTTT", b"y": b"r", b"r": answer, b"ip": packed(Address("198.18.0.7", 4_000)), b"v": b"LT"}
        found.append(bytes((1, number)) + encode_value(message))
    refusal: Value = {b"t": b"TTTT", b"y": b"e", b"e": [201, b"no"]}
    question: Value = {b"t": b"TTTT", b"y": b"q", b"q": b"ping", b"a": {b"id": bytes(20)}}
    return [*found, b"\1\1" + encode_value(refusal), b"\1\1" + encode_value(question), b"\0\x50", b"\0\xf0"]


MACHINES = [Machine("dht", corpus, _Nodes, length=400)]
