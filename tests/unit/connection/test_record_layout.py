"""How many records a burst makes, and what stands in their datagrams."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tunnel.transport.connection.records import (
    LEAST_PARTS,
    MOST_BYTES,
    MOST_PARTS,
    RECORD,
    RECORD_HEADER,
    RECORD_HEADER_SIZE,
    RecordSealer,
    record_step,
    split,
)
from tunnel.transport.packet.header import MAX_BURST, MAX_SEGMENTS, TAG_SIZE


@pytest.mark.parametrize("size", [1_200, 1_472, 4_000, 8_972])
def test_a_split_keeps_to_every_limit(size: int) -> None:
    call = min(MAX_SEGMENTS, MAX_BURST // size)
    for most in (0, 1, LEAST_PARTS - 1, LEAST_PARTS, 22, MOST_PARTS, 255):
        for datagrams in range(2 * call + 1):
            records, parts = split(datagrams, size, most)
            if not records:
                assert parts == 0
                continue
            assert LEAST_PARTS <= parts <= min(most, MOST_PARTS)
            assert records * parts <= datagrams
            assert datagrams - records * parts < 2 * parts, "another record for each call would fit"
            assert parts * size < MOST_BYTES
            for before in (0, 1) if most == 32 and size < 4_000 else (0,):  # a datagram in front
                if before + datagrams > 2 * call:  # more than a burst holds
                    continue
                total = before + records * parts
                step = -(-total // -(-total // call))  # of a kernel call
                ends = [before + record * parts for record in range(records + 1)]
                for first, last in pairwise(ends):
                    assert first // step == (last - 1) // step, "no record goes beyond a kernel call"


def test_full_calls_hold_whole_records() -> None:
    assert split(44, 1_472, MOST_PARTS) == (2, 22)
    assert split(54, 1_472, MOST_PARTS) == (2, 27)
    assert split(70, 1_472, MOST_PARTS) == (4, 17)
    assert split(88, 1_472, MOST_PARTS) == (4, 22)
    assert split(108, 1_200, MOST_PARTS) == (4, 27)
    assert split(LEAST_PARTS - 1, 1_472, MOST_PARTS) == (0, 0)


@pytest.mark.parametrize("prefix", [b"", b"\xc0channel"])
def test_records_open_by_what_the_protocol_page_says(prefix: bytes) -> None:
    """Opened with nothing but an AEAD and the layout: type, receiver index, number, index, parts; a piece of the ciphertext."""
    size, records, parts, first, number, receiver = 1_472, 2, 17, 3, 70_000, 0x01020304
    aead, rng = AESGCM(bytes(32)), random.Random(1)
    buffer = memoryview(bytearray(65_536))
    sealer = RecordSealer()
    frames: list[bytes] = []
    for _ in range(2):  # views are kept from one burst to the next
        frames.clear()
        ours = bytes([RECORD]) + receiver.to_bytes(4, "big")
        used = parts * record_step(size - len(prefix))
        plain = sealer.headers(buffer, size, prefix, first, ours, number, records, parts, used)
        for record in range(records):
            body = rng.randbytes(used)
            plain[:used] = body
            sealer.seal(aead.encrypt_into, number + record * parts, first + record * parts)
            frames.append(body)
        for record in range(records):
            pieces = []
            for index in range(parts):
                at = (first + record * parts + index) * size
                datagram = bytes(buffer[at : at + size])
                assert datagram.startswith(prefix)
                header = datagram[len(prefix) : len(prefix) + RECORD_HEADER_SIZE]
                assert RECORD_HEADER.unpack(header) == (RECORD, receiver, number + record * parts + index, index, parts)
                if not index:
                    head = header
                pieces.append(datagram[len(prefix) + RECORD_HEADER_SIZE :])
            nonce = bytes(4) + (number + record * parts).to_bytes(8, "big")
            opened = aead.decrypt(nonce, b"".join(pieces), head)
            assert len(opened) == parts * (size - len(prefix) - RECORD_HEADER_SIZE) - TAG_SIZE
            assert opened.startswith(frames[record])
            assert not any(opened[len(frames[record]) :]), "PADDING"
        number += records * parts
