"""HKDF-SHA256 gives what RFC 5869 says."""

from __future__ import annotations

import pytest

from tunnel.core.hkdf import HASH_SIZE, hkdf

LONG = bytes(range(0x50))


@pytest.mark.parametrize(
    ("material", "salt", "info", "found"),
    [
        (
            b"\x0b" * 22, bytes(range(13)), bytes(range(0xF0, 0xFA)),
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
        ),
        (
            b"\x0b" * 22, b"", b"",
            "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
        ),
    ],
    ids=["appendix A.1", "appendix A.3"],
)  # fmt: skip
def test_the_vectors_of_rfc_5869(material: bytes, salt: bytes, info: bytes, found: str) -> None:
    assert hkdf(material, info, salt=salt, size=42).hex() == found


def test_a_shorter_key_is_the_beginning_of_a_longer_one() -> None:
    assert hkdf(LONG, b"what for") == hkdf(LONG, b"what for", size=100)[:HASH_SIZE]
    assert hkdf(LONG, b"what for") != hkdf(LONG, b"what else")
