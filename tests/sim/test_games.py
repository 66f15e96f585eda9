"""Games on lines that lose: small datagrams are sent twice there, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.sim.games import WARM, Game, Lost, bad_times, none, runs_of, single
from tunnel.transport.connection import repeats
from tunnel.transport.connection.repeats import LOSSY_FOR, REPEAT_BURST, REPEAT_RATE
from tunnel.transport.packet.frames import REPEAT_SIZE
from tunnel.transport.recovery.lossiness import MEMORY

BOTH = pytest.mark.parametrize("lan", [False, True], ids=["forward", "lan"])


@BOTH
@pytest.mark.parametrize(
    ("line", "most"),
    [(lambda: single(0.05), 0.005), (lambda: runs_of(3, 0.05), 0.01), (lambda: bad_times(0.020, 0.05), 0.03)],
    ids=["single", "threes", "20ms"],
)
def test_a_game_on_a_line_that_loses_a_twentieth_sees_little_of_it(line: Callable[[], Lost], most: float, *, lan: bool) -> None:
    game = Game(line(), lan=lan)
    game.play(WARM)
    found = game.play(100.0)
    assert found.lost <= most
    assert found.twice == 0
    assert found.repeated > 0.95 * found.sent
    stats = game.pair.b.stats()
    assert stats.repaired > 0
    assert stats.duplicates > 10 * stats.repaired


@BOTH
def test_nothing_is_sent_twice_on_a_line_that_loses_nothing(*, lan: bool) -> None:
    game = Game(none, lan=lan)
    found = game.play(WARM)
    assert (found.lost, found.repeated, game.pair.b.stats().duplicates) == (0.0, 0, 0)
    assert game.pair.a.stats().packets_sent < 1.3 * found.sent


@BOTH
def test_nothing_is_sent_twice_to_an_older_peer(*, lan: bool) -> None:
    game = Game(single(0.05), lan=lan, takes=False, mode=repeats.ALWAYS)
    game.play(WARM)
    found = game.play(10.0)
    assert found.repeated == 0
    assert found.lost > 0.02


@BOTH
def test_off_is_never_and_always_is_always(*, lan: bool) -> None:
    off = Game(single(0.05), lan=lan, mode="off")
    off.play(WARM)
    assert off.play(5.0).repeated == 0
    always = Game(none, lan=lan, mode=repeats.ALWAYS).play(5.0)
    assert always.repeated == always.sent


@BOTH
def test_a_line_that_has_recovered_gets_no_copies_after_a_while(*, lan: bool) -> None:
    game = Game(single(0.05), lan=lan)
    assert game.play(WARM).repeated > 0
    game.lost = none
    game.play(4 * MEMORY + LOSSY_FOR)
    assert game.play(5.0).repeated == 0


def test_a_full_link_gets_no_copies() -> None:
    game = Game(single(0.05), rate=50_000.0, queue=0.3)
    assert game.play(WARM).repeated > 0
    stream = game.pair.a.open_stream()
    sent = repeated = 0
    for _ in range(20):
        game.pair.a.stream_write(stream, bytes(1 << 16))
        found = game.play(0.25, settle=0.0)
        sent, repeated = sent + found.sent, repeated + found.repeated
    assert repeated < 0.2 * sent
    assert game.pair.a.drops["copy for a full link"] > 0


@BOTH
def test_copies_take_no_more_than_their_share_of_the_line(*, lan: bool) -> None:
    game = Game(none, lan=lan, mode=repeats.ALWAYS, size=500)
    seconds = 4.0
    found = game.play(seconds, hertz=400.0)
    bytes_twice = found.repeated * (500 + REPEAT_SIZE)
    assert 0.7 * REPEAT_RATE * seconds < bytes_twice < REPEAT_RATE * (seconds + 1) + REPEAT_BURST
    assert game.pair.a.drops["copy over the rate"] > 100
