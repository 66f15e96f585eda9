"""What a peer may have measured: one at a time, so much an hour, however many links it has."""

from __future__ import annotations

from tunnel.ports.bench import MAX_BYTES, MAX_BYTES_AN_HOUR, MAX_PEERS, Allowances


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_one_at_a_time_and_an_hours_share_over_all_links() -> None:
    clock = Clock()
    allowances = Allowances(clock)
    links = [allowances.of("peer") for _ in range(3)]
    assert links[0].begin() == MAX_BYTES
    assert links[1].begin() == 0  # another one runs
    links[0].end(MAX_BYTES)
    for turn in range(1, MAX_BYTES_AN_HOUR // MAX_BYTES):
        assert links[turn % 3].begin() == MAX_BYTES
        links[turn % 3].end(MAX_BYTES)
    assert allowances.of("peer").begin() == 0  # it came back, and the hour is the same
    assert allowances.of("other").begin() == MAX_BYTES
    clock.now += 3600
    assert links[2].begin() == MAX_BYTES


def test_strangers_to_one_another_are_remembered_up_to_a_number() -> None:
    allowances = Allowances(Clock())
    first = allowances.of("0")
    for number in range(1, MAX_PEERS):
        allowances.of(str(number))
    assert allowances.of("0") is first
    allowances.of("one too many")
    assert allowances.of("0") is first  # "1" had to go
    assert len(allowances._of) == MAX_PEERS
