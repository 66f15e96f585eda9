"""A table in parts: a dict for whoever uses it, of which only a part grows at a time."""

from __future__ import annotations

import random

from tunnel.core.parts import Parts


def test_it_is_a_dict_whatever_is_done_with_it() -> None:
    rng = random.Random(1)
    table: Parts[int] = Parts()
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
    assert table.get(b"") is None
    assert b"" not in table


def test_each_part_has_its_share_of_random_keys() -> None:
    rng = random.Random(2)
    table: Parts[None] = Parts()
    for _ in range(20_000):
        table[rng.randbytes(16)] = None
    assert max(map(len, table.parts)) < 140
