from __future__ import annotations

import random

from tests.unit.ip.packets import A4, A6, B4, B6, pseudo, slow_checksum, slow_sum
from tunnel.room.ip.checksum import adjusted, complement, pseudo_sum, word_sum


def test_sums_are_those_of_word_by_word_addition() -> None:
    rng = random.Random(1)
    for size in [*range(70), 1399, 1400, 65_500]:
        data = rng.randbytes(size)
        assert word_sum(data) in (slow_sum(data), slow_sum(data) - 0xFFFF)
        assert complement(word_sum(data)) == (slow_checksum(data) if any(data) else 0)


def test_the_example_of_rfc_1071() -> None:
    assert word_sum(bytes.fromhex("0001f203f4f5f6f7")) == 0xDDF2


def test_a_sum_of_all_ones_is_complemented_to_zero_as_the_kernel_does() -> None:
    assert complement(word_sum(b"\xff\xff")) == 0
    assert complement(word_sum(b"\xff\xfe\x00\x01")) == slow_checksum(b"\xff\xfe\x00\x01") == 0


def test_the_pseudo_headers_sum_is_never_zero() -> None:
    for source, destination in ((A4, B4), (A6, B6)):
        for length in range(0, 65_536, 13):
            assert pseudo_sum(source, destination, 6, length) == slow_sum(pseudo(source, destination, 6, length))
    zero = pseudo_sum(bytes(4), b"\xff\xe0\x00\x00", 17, 14)
    assert zero == 0xFFFF == slow_sum(pseudo(bytes(4), b"\xff\xe0\x00\x00", 17, 14))


def test_a_field_is_adjusted_as_if_summed_again() -> None:
    # RFC 1624 §4: the example that RFC 1141 gets wrong.
    assert adjusted(0xDD2F, 0x5555, 0x3285) in (0x0000, 0xFFFF)
    rng = random.Random(2)
    for _ in range(500):
        data = bytearray(rng.randbytes(40))
        field = slow_checksum(bytes(data))
        old = slow_sum(bytes(data[8:10]))
        data[8:10] = rng.randbytes(2)
        assert adjusted(field, old, slow_sum(bytes(data[8:10]))) % 0xFFFF == slow_checksum(bytes(data)) % 0xFFFF
