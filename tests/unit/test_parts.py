"""A table in parts: a dict for whoever uses it, of which only a part grows at a time."""

from __future__ import annotations

import random

from tunnel.core.parts import PARTS, Parts


def test_it_is_a_dict_whatever_is_done_with_it() -> None:
    rng = random.Random(1)
    table: Parts[bytes, int] = Parts()
    model: dict[bytes, int] = {}
    for turn in range(5_000):
        key = rng.randrange(300).to_bytes(2, "big")
        match rng.randrange(3):
            case 0:
                table[key] = model[key] = turn
            case 1:
                assert table.pop(key, None) == model.pop(key, None)
            case _:
                assert table.get(key) == model.get(key)
                assert table.get(key, -1) == model.get(key, -1)
                assert (key in table) == (key in model)
        assert len(table) == len(model)
        assert bool(table) == bool(model)
    assert dict(table) == model
    for key in list(table):
        assert table.of(key)[key] == table[key]
        del table[key]
    assert not table


def test_each_part_has_its_share() -> None:
    table: Parts[bytes, None] = Parts()
    for number in range(500 * PARTS):
        table[number.to_bytes(4, "big")] = None
    assert all(350 < len(part) < 650 for part in table.parts)  # seven deviations, whatever this process's hashes are
