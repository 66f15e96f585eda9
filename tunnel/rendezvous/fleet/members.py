"""The servers of a fleet as one of them sees them: who is there, under which number, and who has much more to do than others.

Each writes a record of itself at every beat, and reads all of them.  A record that does not change for a while is of a server
that is gone, whatever the clocks say; it is removed later.  A server's index is the field that its record has in the store.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from typing import Final

from tunnel.rendezvous import messages
from tunnel.rendezvous.fleet.directory import Entries
from tunnel.rendezvous.fleet.records import FULL, ServerRecord, decode, encode
from tunnel.rendezvous.fleet.seal import Seal
from tunnel.rendezvous.messages import DRAINS, MAX_SERVERS
from tunnel.units import Instant, Seconds

SERVERS: Final = b"ptunnel:servers"  # the key of the hash with all records
BEAT: Final = Seconds(3.0)  # between two records of a server
SILENT: Final = Seconds(10.0)  # without a new one, and a server counts as gone; three beats and the time to write them
FORGOTTEN: Final = Seconds(60.0)  # without a new one, and its record is removed
REMEMBERED_GONE: Final = 64  # servers that are gone, of which we know when they went
LIST_BYTES: Final = 440  # of the servers in one answer: it is no longer than a request (MIN_REQUEST)
CROWDED: Final = 1.15  # times the mean load, and a server sends newcomers elsewhere, ...
LEAST_LOAD: Final = 100  # ... and some of its clients, if it has so much load (per mille) that it matters
SHED: Final = 0.02  # of its idle clients a crowded server sends away at each beat


class Member:
    """Another server."""

    __slots__ = ("assumed", "grown_at", "record")

    def __init__(self, record: ServerRecord, now: Instant) -> None:
        self.record = record
        self.grown_at = now
        self.assumed = 0.0  # per mille of load that was sent there since its last record

    @property
    def load(self) -> float:
        return self.record.load + self.assumed


class Members:
    """Those of the fleet, without ourselves."""

    def __init__(self, seal: Seal, instance: int, at: messages.Places, entropy: Callable[[int], bytes]) -> None:
        self._seal = seal
        self._instance = instance
        self._at = at
        self._entropy = entropy
        self._seen: dict[bytes, Member] = {}  # by field
        self._alive: dict[int, Member] = {}  # by instance
        self.gone: OrderedDict[int, Instant] = OrderedDict()  # instances, and when they went
        self.index: int | None = None  # ours
        self.is_settled = False  # nobody else has it: our record was still there when we looked again
        self.has_written = False
        self.was_emptied = False  # the store has lost our record since we last looked
        self._twins: dict[int, int] = {}  # beats by instance, of other records with our addresses
        self.twin_at: Instant | None = None  # when that one last grew: no former self of ours, but a server that is there
        self.rejected = 0  # records that were not made under our key

    def __len__(self) -> int:
        return len(self._alive)

    def __iter__(self) -> Iterator[Member]:
        return iter(self._alive.values())

    def get(self, instance: int) -> Member | None:
        """A server that is there."""
        return self._alive.get(instance)

    def at_index(self, index: int) -> Member | None:
        return next((each for each in self._alive.values() if each.record.index == index), None)

    def is_missed(self, index: int) -> bool:
        """Whether the server of that index has fallen silent, and is not forgotten."""
        member = self._seen.get(_field(index))
        return member is not None and member.record.instance not in self._alive

    # records

    def hear(self, now: Instant, entries: Entries) -> list[bytes]:
        """All records of the store.  Return the fields of those to be removed."""
        records = {field: record for field, value in entries.items() if (record := self._open(field, value)) is not None}
        mine = None if self.index is None else records.get(_field(self.index))
        self.was_emptied = self.has_written and mine is None
        if mine is not None and mine.instance == self._instance:
            self.is_settled = True
        for field in self._seen.keys() - records.keys():
            del self._seen[field]
        for field, record in records.items():
            known = self._seen.get(field)
            if record.instance == self._instance:
                self._seen.pop(field, None)
            elif known is None or known.record.instance != record.instance:
                self._seen[field] = Member(record, now)
            elif record.beat > known.record.beat:
                known.record, known.grown_at, known.assumed = record, now, 0.0
        self._look(now)
        self._look_for_twin(now, records.values())
        self._choose(now, records)
        return [field for field, each in self._seen.items() if now - each.grown_at >= FORGOTTEN]

    def _open(self, field: bytes, value: bytes) -> ServerRecord | None:
        record = decode(ServerRecord, self._seal.open(SERVERS + field, value))
        if record is None or _field(record.index) != field or not record.at or record.index >= MAX_SERVERS:
            self.rejected += 1
            return None
        return record

    def _look(self, now: Instant) -> None:
        alive = {each.record.instance: each for each in self._seen.values() if now - each.grown_at < SILENT}
        for instance in self._alive.keys() - alive.keys():
            self.gone[instance] = now
            if len(self.gone) > REMEMBERED_GONE:
                self.gone.popitem(last=False)
        self._alive = alive

    def _look_for_twin(self, now: Instant, records: Iterable[ServerRecord]) -> None:
        same = {each.instance: each.beat for each in records if each.at == self._at and each.instance != self._instance}
        if any(beat > self._twins.get(instance, beat) for instance, beat in same.items()):
            self.twin_at = now
        self._twins = {**self._twins, **same} if len(self._twins) < REMEMBERED_GONE else same

    def has_twin(self, now: Instant) -> bool:
        """Whether another server that is there tells our addresses as its own, so that nobody can be sent to either."""
        return self.twin_at is not None and now - self.twin_at < FORGOTTEN

    def _choose(self, now: Instant, records: dict[bytes, ServerRecord]) -> None:
        """Our index: the one that we have, or had before a restart, or one that is free.  Of two that took one the lower instance
        keeps it."""
        mine = None if self.index is None else records.get(_field(self.index))
        if self.index is not None and (mine is None or mine.instance >= self._instance or self._is_stale(mine)):
            return
        if self.index is not None:
            self.index, self.is_settled, self.has_written = None, False, False
        has_twin = self.has_twin(now)
        former = [record.index for record in records.values() if record.at == self._at and not has_twin]
        preferred = int.from_bytes(blake2b(repr(self._at).encode(), digest_size=2).digest(), "big") % MAX_SERVERS
        ring = ((preferred + step) % MAX_SERVERS for step in range(MAX_SERVERS))
        others = [record for record in records.values() if has_twin or record.at != self._at]
        taken = {record.index for record in others if not self._is_stale(record)}
        self.index = next((index for index in (*former, *ring) if index not in taken), None)

    def _is_stale(self, record: ServerRecord) -> bool:
        return record.instance not in self._alive and record.instance != self._instance

    def close(self, record: ServerRecord) -> tuple[bytes, bytes]:
        """Field and value of our own record."""
        field = _field(record.index)
        self.has_written = True
        return field, self._seal.close(SERVERS + field, encode(record))

    # what clients are told

    def epoch(self, own: ServerRecord) -> int:
        """A number of this list, the same at all servers that see the same one."""
        text = sorted((each.index, each.instance, each.at, each.drains) for each in self._records(own))
        return int.from_bytes(blake2b(repr(text).encode(), digest_size=4).digest(), "big") | 1

    def answer(self, own: ServerRecord, session: bytes) -> messages.Servers:
        """The list for one client: all that fit, of a large fleet others for each client."""
        others = sorted(self._alive.values(), key=lambda each: each.record.index)
        start = int.from_bytes(session[:4], "big") % (len(others) or 1)
        told: list[messages.FleetServer] = []
        size = 0
        for each in (own, *(member.record for member in others[start:] + others[:start])):
            size += 16 + sum(2 + len(place) for place in each.at)
            if size > LIST_BYTES:
                break
            load = DRAINS if each.drains else each.load // 10
            told.append(messages.FleetServer(each.index, load, each.instance, each.at))
        return messages.Servers(self.epoch(own), own.index, tuple(told))

    def _records(self, own: ServerRecord) -> Iterable[ServerRecord]:
        return (own, *(each.record for each in self._alive.values()))

    # who has much more to do than others

    def mean(self, own: float) -> float:
        """Load of those that take clients, per mille, with our own."""
        loads = [each.load for each in self._alive.values() if not each.record.drains]
        return (sum(loads) + own) / (len(loads) + 1)

    def is_crowded(self, own: float) -> bool:
        return own >= LEAST_LOAD and own > CROWDED * self.mean(own)

    def excess(self, own: float, idle: int) -> int:
        """Of so many idle clients, those to be sent elsewhere now."""
        return min(int(idle * SHED), int(idle * (1.0 - self.mean(own) / own))) if self.is_crowded(own) else 0

    def choose(self, own: float | None) -> Member | None:
        """Where one client is sent: the more room a server has beneath the mean, the more often.  `own`: None for a server that
        drains, from which all go."""
        open_ones = [each for each in self._alive.values() if not each.record.drains]
        if not open_ones:
            return None
        top = FULL + 1.0 if own is None else self.mean(own)
        rooms = [max(0.0, top - each.load) for each in open_ones]
        at = int.from_bytes(self._entropy(4), "big") / 2**32 * sum(rooms)
        for each, room in zip(open_ones, rooms, strict=True):
            at -= room
            if room and at < 0.0:
                each.assumed += 1000.0 / max(1, each.record.capacity)
                return each
        return None


def _field(index: int) -> bytes:
    return b"%d" % index
