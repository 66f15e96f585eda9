"""Notes from one server of a fleet to another: acknowledged, repeated, and acted on once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Final

from tunnel.core.trace import Drops
from tunnel.rendezvous.fleet.directory import Directory, Entries, Tell
from tunnel.rendezvous.fleet.records import Kind, Note, decode, encode
from tunnel.rendezvous.fleet.seal import Seal
from tunnel.units import Instant, Seconds

ALL: Final = b"ptunnel:all"  # the channel on which every server listens
SENDINGS: Final = 3  # of a note that is not acknowledged
AGAIN: Final = Seconds(1.0)  # after the first sending; twice as long after the second
MAX_NOTES: Final = 4_096  # of ours that wait for an acknowledgement; the oldest counts as lost
REMEMBERED: Final = 4_096  # notes of others that were acted on, so that a repetition is only acknowledged


def channel_of(instance: int) -> bytes:
    """The channel on which that server alone listens."""
    return b"ptunnel:to:" + instance.to_bytes(8, "big").hex().encode()


class _Sent:
    __slots__ = ("data", "lost", "sendings", "to")

    def __init__(self, to: int, data: bytes, lost: Callable[[Instant], None]) -> None:
        self.to = to
        self.data = data
        self.lost = lost
        self.sendings = 0


class Notes:
    """Both directions of one server."""

    def __init__(
        self, seal: Seal, directory: Directory, instance: int, act: Callable[[Instant, Note], None], drops: Drops
    ) -> None:
        """`act` hears each note of another server once."""
        self._seal = seal
        self._directory = directory
        self._instance = instance
        self._act = act
        self._drops = drops
        self._sent: OrderedDict[int, _Sent] = OrderedDict()
        self._due: list[tuple[Instant, int]] = []
        self._seen: OrderedDict[tuple[int, int], None] = OrderedDict()
        self._number = 0

    @property
    def channels(self) -> tuple[bytes, bytes]:
        """Where this server listens."""
        return channel_of(self._instance), ALL

    def send(self, now: Instant, to: int, kind: Kind, what: bytes, mark: bytes, lost: Callable[[Instant], None]) -> None:
        """`lost`: it was not acknowledged, however often it was sent."""
        self._number = (self._number + 1) & 0xFFFFFFFF
        note = Note(kind, self._instance, self._number, what, mark)
        if len(self._sent) >= MAX_NOTES:
            self._sent.popitem(last=False)[1].lost(now)
        self._sent[self._number] = _Sent(to, self._close(channel_of(to), note), lost)
        self._repeat(now, self._number)

    def shout(self, now: Instant, kind: Kind, keys: tuple[str, ...] = ()) -> None:
        """To every server, once."""
        self._number = (self._number + 1) & 0xFFFFFFFF
        self._tell(now, ALL, self._close(ALL, Note(kind, self._instance, self._number, keys=keys)))

    def _close(self, channel: bytes, note: Note) -> bytes:
        return self._seal.close(channel, encode(note))

    def _tell(self, now: Instant, channel: bytes, data: bytes) -> None:
        self._directory.order(now, Tell(channel, data), _no_matter)

    def _repeat(self, now: Instant, number: int) -> None:
        sent = self._sent[number]
        sent.sendings += 1
        heappush(self._due, (Instant(now + AGAIN * 2.0 ** (sent.sendings - 1)), number))
        self._tell(now, channel_of(sent.to), sent.data)

    def hear(self, now: Instant, channel: bytes, data: bytes) -> None:
        """Something came on one of our channels."""
        note = decode(Note, self._seal.open(channel, data))
        if note is None:
            self._drops["fleet_note"] += 1
            return
        if note.sender == self._instance:
            return  # what we said to all
        if note.kind == Kind.ACK:
            self._sent.pop(note.number, None)
            return
        if channel != ALL:
            reply = channel_of(note.sender)
            self._tell(now, reply, self._close(reply, Note(Kind.ACK, self._instance, note.number)))
        key = (note.sender, note.number)
        if key in self._seen:
            return
        self._seen[key] = None
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
        self._act(now, note)

    def handle_timeout(self, now: Instant) -> None:
        while self._due and self._due[0][0] <= now:
            _, number = heappop(self._due)
            sent = self._sent.get(number)
            if sent is None:
                continue
            if sent.sendings < SENDINGS:
                self._repeat(now, number)
            else:
                del self._sent[number]
                self._drops["fleet_note_lost"] += 1
                sent.lost(now)

    def poll_timeout(self) -> Instant | None:
        return self._due[0][0] if self._due else None


def _no_matter(now: Instant, entries: Entries | None) -> None:
    """It is repeated until it is acknowledged."""
