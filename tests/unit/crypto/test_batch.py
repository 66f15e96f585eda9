"""A batch is sealed and opened as each datagram would be by itself, and opening ends at the first that is not as it should be."""

from __future__ import annotations

from random import Random

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from tunnel.transport.crypto.batch import nonce_of, open_batch, run_through, seal_batch
from tunnel.transport.packet.header import HEADER, TAG_SIZE, TRANSPORT

RECEIVER = 77
FIRST = 2**40


def _datagrams(cipher: AESGCM | ChaCha20Poly1305, sizes: list[int]) -> tuple[list[memoryview], list[memoryview], list[bytes]]:
    """Headers, sealed parts and what is in them."""
    rng = Random(4)
    texts = [rng.randbytes(size) for size in sizes]
    headers = [memoryview(HEADER.pack(TRANSPORT, RECEIVER, FIRST + index)) for index in range(len(sizes))]
    sealed = [memoryview(bytearray(size + TAG_SIZE)) for size in sizes]
    for place, text in zip(sealed, texts, strict=True):
        place[: len(text)] = text
    plains = [place[: len(text)] for place, text in zip(sealed, texts, strict=True)]  # sealed where they lie
    seal_batch(cipher.encrypt_into, FIRST, len(sizes), plains, headers, sealed)
    return headers, sealed, texts


@pytest.mark.parametrize("kind", [AESGCM, ChaCha20Poly1305])
def test_what_is_sealed_in_one_go_opens_one_by_one_and_in_one_go(kind: type[AESGCM | ChaCha20Poly1305]) -> None:
    cipher = kind(bytes(32))
    headers, sealed, texts = _datagrams(cipher, [1_400, 1_400, 1, 0, 900])
    for index, (header, body, text) in enumerate(zip(headers, sealed, texts, strict=True)):
        assert cipher.decrypt((FIRST + index).to_bytes(12, "big"), body, header) == text
    places = [memoryview(bytearray(len(text))) for text in texts]
    assert open_batch(cipher.decrypt_into, FIRST, len(texts), sealed, headers, places) == len(texts)
    assert [bytes(place) for place in places] == texts


@pytest.mark.parametrize("bad", range(5))
@pytest.mark.parametrize("where", ["body", "number", "receiver", "type"])
def test_opening_ends_before_the_first_that_is_forged(bad: int, where: str) -> None:
    cipher = AESGCM(bytes(32))
    headers, sealed, texts = _datagrams(cipher, [500] * 5)
    if where == "body":
        sealed[bad][3] ^= 1
    else:
        header = bytearray(headers[bad])
        header[{"type": 0, "receiver": 4, "number": 12}[where]] ^= 1
        headers[bad] = memoryview(header)
    places = [memoryview(bytearray(500)) for _ in texts]
    assert open_batch(cipher.decrypt_into, FIRST, 5, sealed, headers, places) == bad
    assert [bytes(place) for place in places[:bad]] == texts[:bad]


def test_a_nonce_is_the_number_in_96_bits() -> None:
    for number in (0, 1, 2**32, 2**64 - 1):
        assert nonce_of(number) == number.to_bytes(12, "big")


def test_an_iterator_is_run_for_what_it_does() -> None:
    seen: list[int] = []
    run_through(map(seen.append, range(5)))
    assert seen == [0, 1, 2, 3, 4]
