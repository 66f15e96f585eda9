"""Rooms across servers: whoever dials is sent to the servers where somebody listens.

A server writes down that somebody waits in a room, and reads in the same step who waits there elsewhere.  Of two servers that do
so at the same time one sees the other: the dialer's sends its dialer there, the listener's tells the dialer's to.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Final

from tunnel.core.timers import earliest
from tunnel.rendezvous import messages
from tunnel.rendezvous.fleet.directory import Directory, Drop, Entries, Put
from tunnel.rendezvous.fleet.members import BEAT, Member, Members
from tunnel.rendezvous.fleet.notes import Notes
from tunnel.rendezvous.fleet.records import Kind, RoomRecord, decode, encode
from tunnel.rendezvous.fleet.seal import Seal
from tunnel.units import Instant, Seconds

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from tunnel.rendezvous.pushes import Pushes
    from tunnel.rendezvous.registry import Dial, Registry

LIFETIME: Final = Seconds(3600.0)  # of what is written about a room: a server that dies cannot take it back
ANEW: Final = Seconds(1200.0)  # after which all rooms have been written once more: two may fail
TOLD_AGAIN: Final = Seconds(60.0)  # after which a dialer that is still there may be sent to the same server once more
LOST_AGAIN: Final = Seconds(5.0)  # after which a room is written again whose note to a dialer's server was lost
SLICE: Final = 64  # rooms that nobody came to or left are written in one turn ...
TURN: Final = Seconds(0.025)  # ... of so long: 2,560 a second, so that very many leave most of the processor to clients
YOUNG: Final = 30  # seconds: a record of a server that we do not know may be of one that has just come


class Rooms:
    """Those of one server."""

    def __init__(
        self,
        *,
        seal: Seal,
        directory: Directory,
        members: Members,
        notes: Notes,
        registry: Registry,
        pushes: Pushes,
        field: bytes,
        unix_time: Callable[[], int],
        counts: Counter[str],
    ) -> None:
        self._seal = seal
        self._directory = directory
        self._members = members
        self._notes = notes
        self._registry = registry
        self._pushes = pushes
        self._field = field  # ours, in each room
        self._unix_time = unix_time
        self._counts = counts
        self._dirty: dict[bytes, None] = {}  # rooms to be written, the first first
        self._failed: dict[bytes, None] = {}  # whose writing came to nothing
        self._again: deque[bytes] = deque()  # of those, the ones that are written in their turn
        self._strange: dict[bytes, None] = {}  # in which a server waits that we do not know yet
        self._late: dict[bytes, Instant] = {}  # to be written again, and when; the first first
        self._dialed: dict[bytes, bytes] = {}  # name -> room in which somebody dials that can be sent elsewhere
        self._cycle: Iterator[bytes] = iter(())
        self._owed = 0  # rooms of the cycle that are to be written once more in their turn
        self._is_anew = False  # as the store has lost them
        self._turn_at = Instant(0.0)

    def changed(self, room: bytes) -> None:
        """Somebody came or went."""
        self._dirty[room] = None

    def all_anew(self) -> None:
        """The store has lost what was written.  Rooms in which somebody dials come first, and all in their turn."""
        dialed, rooms = list(self._dialed.values()), list(self._registry.rooms)
        self._cycle = chain(dialed, rooms)
        self._owed, self._is_anew = len(dialed) + len(rooms), True
        self._failed.clear()
        self._again.clear()

    def retry(self) -> None:
        """The store answers again."""
        self._again.extend(self._failed)
        self._failed.clear()

    def beat(self, now: Instant) -> None:
        """Some rooms are written once more, and those in which somebody strange waited: the servers are known better now."""
        self._dirty.update(self._strange)
        self._strange.clear()
        share = -(-len(self._registry.rooms) * BEAT // ANEW)
        self._owed = max(self._owed, int(share))

    @property
    def unwritten(self) -> int:
        """How many are to be written, now or once the store answers."""
        return len(self._dirty) + len(self._failed) + len(self._again) + (self._owed if self._is_anew else 0)

    @property
    def wants_turn(self) -> bool:
        return bool(self._dirty) and self._directory.free > 0

    def poll_timeout(self) -> Instant | None:
        has_turn = (self._again or self._owed) and self._directory.free
        return earliest(next(iter(self._late.values()), None), self._turn_at if has_turn else None)

    def handle_timeout(self, now: Instant) -> None:
        while self._late:
            room, at = next(iter(self._late.items()))
            if at > now:
                break
            del self._late[room]
            self._dirty[room] = None
        for room in list(islice(self._dirty, self._directory.free)):
            del self._dirty[room]
            self._write(now, room)
        if now >= self._turn_at and (self._again or self._owed):
            self._turn_at = Instant(now + TURN)
            for _ in range(min(SLICE, self._directory.free)):
                next_room = self._next()
                if next_room is None:
                    break
                self._write(now, next_room)

    def _next(self) -> bytes | None:
        """The next room that is written once more."""
        if self._again:
            return self._again.popleft()
        while self._owed:
            self._owed -= 1
            self._is_anew = self._is_anew and self._owed > 0
            room = next(self._cycle, None)
            if room is None:
                self._cycle = iter(list(self._registry.rooms))
                self._owed, self._is_anew = 0, False
            elif room in self._registry.rooms:
                return room
        return None

    def _write(self, now: Instant, room: bytes) -> None:
        name = self._seal.name(b"room", room)
        listens, dials = self._who_waits(room)
        if dials:
            self._dialed[name] = room
        else:
            self._dialed.pop(name, None)
        if not listens and not dials:
            self._directory.order(now, Drop(name, self._field), partial(self._dropped, room))
            return
        record = encode(RoomRecord(listens, dials, self._unix_time()))
        value = self._seal.close(name + self._field, record)
        self._directory.order(now, Put(name, self._field, value, LIFETIME), partial(self._written, room, name))

    def _who_waits(self, room: bytes) -> tuple[bool, bool]:
        known = self._registry.rooms.get(room)
        if known is None:
            return False, False
        return bool(known.listeners), any(dial.session.follows for dial in known.dialers)

    def _dropped(self, room: bytes, now: Instant, entries: Entries | None) -> None:
        if entries is None:
            self._failed[room] = None

    def _written(self, room: bytes, name: bytes, now: Instant, entries: Entries | None) -> None:
        if entries is None:
            self._failed[room] = None
            return
        listens, dials = self._who_waits(room)
        for field, value in entries.items():
            if field == self._field:
                continue
            record = decode(RoomRecord, self._seal.open(name + field, value))
            if record is None:
                self._members.rejected += 1
                continue
            member = self._members.get(int.from_bytes(field, "big"))
            if member is None:
                if abs(self._unix_time() - record.written_at) < YOUNG:
                    self._strange[room] = None
                continue
            if record.listens and dials:
                self._send_to(now, room, member)
            if record.dials and listens:
                lost = partial(self._lost, room)
                self._notes.send(now, member.record.instance, Kind.LISTENS, name, b"", lost)

    def _lost(self, room: bytes, now: Instant) -> None:
        """A dialer's server may not know of our listener: it is told again, as long as both are there."""
        if self._who_waits(room)[0]:
            self._late.pop(room, None)
            self._late[room] = Instant(now + LOST_AGAIN)

    def heard(self, now: Instant, name: bytes, member: Member) -> None:
        """Somebody listens there in a room that somebody dials here."""
        room = self._dialed.get(name)
        if room is not None:
            self._send_to(now, room, member)

    def _send_to(self, now: Instant, room: bytes, member: Member) -> None:
        """All who dial here."""
        known = self._registry.rooms.get(room)
        for dial in known.dialers if known is not None else ():
            if dial.session.follows and _may_tell(now, dial, member.record.instance):
                record = member.record
                self._counts["sent_elsewhere"] += 1
                self._pushes.push(now, dial.session, messages.Elsewhere(room, record.index, record.at))


def _may_tell(now: Instant, dial: Dial, instance: int) -> bool:
    """Each dial is sent to each server once in a while, whichever of its rooms led there."""
    if dial.sent is None:
        dial.sent = {}
    if now - dial.sent.get(instance, Instant(-TOLD_AGAIN)) < TOLD_AGAIN:
        return False
    dial.sent[instance] = now
    return True
