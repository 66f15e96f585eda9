"""Hundreds of links, each bad in its own way: a transfer always completes, equal, and never stalls for long."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.unit.connection.pair import SERVER, B, Pair
from tunnel.transport.connection.events import PathKind
from tunnel.units import PathKey, SocketId, StreamId

SEEDS = 240
GROUPS = 12
LONGEST_STALL = 12.0  # virtual seconds: three probe timeouts at their largest


class BadLink:
    """Delay with jitter, random and bursty loss, duplication; bursts of loss last a while (Gilbert-Elliott, by time)."""

    def __init__(self, rng: random.Random, now: Callable[[], float]) -> None:
        self._rng = rng
        self.now = now
        self.delay = rng.choice((0.0005, 0.005, 0.03, 0.15))
        self.jitter = rng.choice((0.0, 0.0, 0.1, 1.0)) * self.delay
        self.loss = rng.choice((0.0, 0.0, 0.01, 0.05, 0.15))
        self.burst_starts = rng.choice((0.0, 0.0, 0.002, 0.01))
        self.burst_lasts = rng.choice((0.005, 0.05, 0.3))  # seconds, on average
        self.duplicates = rng.choice((0.0, 0.0, 0.05))
        self.mtu = rng.choice((1_232, 1_400, 1_472, 1_472, 9_000))
        self._bad_until = 0.0

    def __call__(self, name: str, relayed: bool, data: bytes) -> list[float]:
        rng = self._rng
        if len(data) > self.mtu:
            return []
        if self.now() >= self._bad_until and rng.random() < self.burst_starts:
            self._bad_until = self.now() + rng.expovariate(1 / self.burst_lasts)
        if rng.random() < (0.7 if self.now() < self._bad_until else self.loss):
            return []
        copies = 2 if rng.random() < self.duplicates else 1
        return [self.delay * (1.5 if relayed else 1.0) + rng.random() * self.jitter for _ in range(copies)]

    def __repr__(self) -> str:
        return f"BadLink({vars(self)})"


def transfer(seed: int) -> None:
    rng = random.Random(seed)
    rate = rng.choice((None, None, 125_000.0, 1_250_000.0))
    pair = Pair(seed, rate=rate, queue=rng.choice((0.02, 0.1, 0.5)), relayed=rng.random() < 0.7)
    link = pair.hook = BadLink(rng, lambda: pair.now)
    sizes = {"a": rng.choice((0, 1, 40_000, 250_000)), "b": rng.choice((0, 1, 1000, 60_000))}
    told = f"seed {seed}, {sizes}, rate {rate}, {link}"
    moved = PathKey(SocketId(1), B, b"")
    sends: dict[tuple[str, StreamId], bytes] = {}
    for name, size in sizes.items():
        for _ in range(rng.choice((1, 1, 3))):
            sends[name, pair.sides[name].open_stream()] = rng.randbytes(size)
    written = dict.fromkeys(sends, 0)
    finished: set[tuple[str, StreamId]] = set()
    plans = sorted(
        (pair.now + rng.random() * 3, rng.choice(("upgrade", "cut", "heal", "move", "verify", "narrow"))) for _ in range(4)
    )
    since, progress = pair.now, -1
    steps = 0
    while True:
        if plans and pair.now >= plans[0][0]:
            match plans.pop(0)[1]:
                case "upgrade":
                    for name, side in pair.sides.items():
                        side.challenge(pair.now, pair.direct(name), PathKind.DIRECT)
                case "cut" if pair.a.current_path.key.remote == SERVER or len(pair.a.paths) > 1:
                    pair.cut.add((rng.choice("ab"), False))
                case "heal":
                    pair.cut.clear()
                case "move":
                    pair.a.challenge(pair.now, moved, PathKind.DIRECT)
                case "narrow":
                    link.mtu = 1_200
                case "verify":
                    pair.a.verify_paths(pair.now)
            if not plans and pair.a.current_path.key.remote != SERVER:
                pair.cut.clear()
        for key, data in sends.items():
            name, stream = key
            if written[key] < len(data):
                written[key] += pair.sides[name].stream_write(stream, data[written[key] : written[key] + 50_000])
            elif key not in finished:
                pair.sides[name].stream_finish(stream)
                finished.add(key)
        other = {"a": "b", "b": "a"}
        got = [len(pair.read[other[name]].get(stream, b"")) for name, stream in sends]
        ends = [s in pair.read[other[n]] and pair.sides[other[n]].stream_at_end(s) for n, s in sends]
        acked = [pair.sides[n].stream_is_acked(s) for n, s in sends]
        if all(ends) and all(acked):
            break
        if sum(got) + sum(ends) + sum(acked) > progress:
            progress, since = sum(got) + sum(ends) + sum(acked), pair.now
        steps += 1
        assert pair.now - since < LONGEST_STALL, f"stalled at {got} of {[len(d) for d in sends.values()]}: {told}"
        assert steps < 200_000, f"too many steps: {told}"
        assert pair.step(plans[0][0] if plans else float("inf")), f"nothing left to happen: {told}"
    for (name, stream), data in sends.items():
        assert pair.read[other[name]][stream] == data, told
    assert pair.a.close_reason is pair.b.close_reason is None
    total = sum(map(len, sends.values()))
    assert pair.a.stats().sent_bytes + pair.b.stats().sent_bytes < 3 * total + 400_000, told


@pytest.mark.parametrize("group", range(GROUPS))
def test_a_transfer_completes_over_any_link(group: int) -> None:
    for seed in range(group, SEEDS, GROUPS):
        transfer(seed)
