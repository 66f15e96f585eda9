"""Handshakes: damaged ones whose MACs are right again, to sides in every state.  Each costs a curve or two."""

from __future__ import annotations

import contextlib

from tests.fuzz.engine import Episode, Machine
from tests.fuzz.test_crypto_decoders import DECODERS, GENUINE, PSK
from tests.unit.crypto.helpers import public
from tunnel.errors import MalformedPacket
from tunnel.transport.crypto.cookie import append_macs, mac1_key
from tunnel.transport.crypto.noise import NoiseError

NAMES = sorted(DECODERS)
MATERIALS = (None, PSK, public(b"r"))
MACS = 32  # bytes at the end


class _Handshakes:
    def feed(self, data: bytes) -> None:
        if len(data) < 2:
            return
        material, datagram = MATERIALS[data[1] % len(MATERIALS)], data[2:]
        if material is not None:
            datagram = append_macs(datagram[:-MACS], mac1_key(material))
        with contextlib.suppress(MalformedPacket, NoiseError):
            DECODERS[NAMES[data[0] % len(NAMES)]](datagram)

    def end(self) -> None:
        pass


def corpus() -> list[bytes]:
    return [
        bytes((number, kind)) + datagram
        for number in range(len(NAMES))
        for kind in range(len(MATERIALS))
        for datagram in GENUINE.values()
    ]


def begin(_seed: int) -> Episode:
    return _Handshakes()


MACHINES = [Machine("handshake", corpus, begin, length=200)]
