"""A run of stream bytes becomes a burst of equal datagrams: each a packet by itself, or many of them a record.

The hot loops of sending: one copy out of the ring, sealing in place, and `map`s over columns of kept views for the rest.
"""

from __future__ import annotations

from itertools import chain, repeat
from typing import Final

from tunnel.transport.connection.carried import BulkRun
from tunnel.transport.connection.records import RECORD, RecordSealer, copy_into
from tunnel.transport.crypto.batch import run_through, seal_batch
from tunnel.transport.crypto.keys import Keypair
from tunnel.transport.packet import frames
from tunnel.transport.packet.frames import STREAM, STREAM_SIZE, Frame
from tunnel.transport.packet.header import HEADER, NUMBER_SIZE, TRANSPORT
from tunnel.transport.packet.slots import SlotCutter

_HEADER_AND_STREAM = frames.HEADER_AND_STREAM
_STREAM, _STREAM_FIN = int(Frame.STREAM), int(Frame.STREAM_FIN)
_FRAME_AND_ID: Final = 5  # bytes of a STREAM frame before its offset


class StreamSealer:
    """Fills datagrams of `mtu` bytes from `position` of a burst on; the sequence numbers go from `number` on."""

    def __init__(self) -> None:
        self._slots = SlotCutter()
        self._records = RecordSealer()

    def packets(
        self, keypair: Keypair, number: int, prefix: bytes, view: memoryview, mtu: int, position: int, run: BulkRun, count: int
    ) -> None:
        """Every datagram is a packet; the last of the `count` is shorter where the run does not fill it."""
        skip = len(prefix)
        stream, offset, length, step = run.stream, run.offset, run.length, run.step
        stop = offset + length
        slots = self._slots.of(view, mtu, skip, STREAM_SIZE).part(position // mtu, count)
        places, headers, payloads, plains, sealed = slots
        short = count * step - length
        slots.shorten_last(short)
        slots.put_prefix(prefix)
        pack = _HEADER_AND_STREAM.pack_into
        ours = HEADER.pack(TRANSPORT, keypair.remote_index, 0)[:-NUMBER_SIZE]
        kind = STREAM.pack(Frame.STREAM, stream.stream_id, 0, 0)[:_FRAME_AND_ID]
        numbers, offsets = range(number, number + count), range(offset, stop, step)
        run_through(map(pack, places, repeat(skip), repeat(ours), numbers, repeat(kind), offsets, repeat(step)))
        if short or run.fin:
            kind = STREAM.pack(Frame.STREAM_FIN if run.fin else Frame.STREAM, stream.stream_id, 0, 0)[:_FRAME_AND_ID]
            pack(places[-1], skip, ours, numbers[-1], kind, offsets[-1], step - short)
        ring, mask = stream.contiguous
        low = offset & mask
        if low + length <= mask + 1:
            high = low + length
            cuts = map(slice, range(low, high, step), chain(range(low + step, high, step), (high,)))
            copy_into(payloads, map(ring.__getitem__, cuts))
        else:
            for payload, offset in zip(payloads, offsets, strict=True):
                stream.copy_to(payload, 0, offset, len(payload))
        seal_batch(keypair.send.encrypt_into, number, count, plains, headers, sealed)

    def records(
        self,
        keypair: Keypair,
        number: int,
        prefix: bytes,
        view: memoryview,
        mtu: int,
        position: int,
        run: BulkRun,
        records: int,
        parts: int,
    ) -> None:
        """So many records of so many parts, which the run fills to the last one."""
        stream, offset, length = run.stream, run.offset, parts * run.step
        ours = HEADER.pack(RECORD, keypair.remote_index, 0)[:-NUMBER_SIZE]
        sealer, seal = self._records, keypair.send.encrypt_into
        first = position // mtu
        plain = sealer.headers(view, mtu, prefix, first, ours, number, records, parts, STREAM_SIZE + length)
        pack, stream_id, last = STREAM.pack_into, stream.stream_id, (records - 1) * parts
        for at in range(0, records * parts, parts):
            pack(plain, 0, _STREAM_FIN if run.fin and at == last else _STREAM, stream_id, offset, length)
            stream.copy_to(plain, STREAM_SIZE, offset, length)
            sealer.seal(seal, number + at, first + at)
            offset += length
