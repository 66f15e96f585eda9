"""The one owner of time and of readiness in an endpoint: who is due when, and who has something to send or to tell.

An endpoint has many peers, and what happens to one of them concerns no other, so nobody is asked in turn:

- The agenda holds one deadline for each owner, in a heap.  Whose deadline may have changed is in doubt, and is asked for it
  before the agenda names the first one.
- Who was touched may have something to send and to tell, and stands in a queue for each, once, in the order of coming.

Sans IO: instants in, instants and owners out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Final, Generic, TypeVar

from tunnel.units import Instant

Owner = TypeVar("Owner")

#: Records in the heap for each owner, and besides, before those that no longer count are thrown out.  A deadline that moves
#: leaves its old record behind; by these numbers throwing out costs a moved deadline less than its own record.
RECORDS_AN_OWNER: Final = 4
RECORDS_BESIDES: Final = 64


class Entry(Generic[Owner]):
    """An agenda's entry for one owner."""

    __slots__ = ("_agenda", "ask", "at", "is_in_doubt", "owner")

    def __init__(self, agenda: Agenda[Owner], owner: Owner | None, ask: Callable[[], Instant | None]) -> None:
        self.owner = owner
        self.ask = ask  # for its deadline, None where it has none; must not raise
        self.at: Instant | None = None  # its deadline, as it said last
        self._agenda = agenda
        self.is_in_doubt = False

    def doubt(self) -> None:
        """The owner's deadline may have changed."""
        if not self.is_in_doubt:
            self.is_in_doubt = True
            self._agenda.doubted.append(self)

    def touch(self) -> None:
        """Anything of the owner may have changed: it may have something to send and to tell, and another deadline."""
        agenda, owner = self._agenda, self.owner
        if owner is not None:
            agenda.ready[owner] = None
            agenda.untold[owner] = None
        if not self.is_in_doubt:
            self.is_in_doubt = True
            agenda.doubted.append(self)

    def settle(self) -> None:
        """Ask the owner for its deadline."""
        self.is_in_doubt = False
        at = self.ask()
        if at != self.at:
            self.at = at
            if at is not None:
                self._agenda.record(at, self)


class Agenda(Generic[Owner]):
    """The deadlines of an endpoint, and its queues."""

    def __init__(self) -> None:
        #: Who may have something to send.  Whoever serves them takes out those that have not, and moves the others to the end.
        self.ready: OrderedDict[Owner, None] = OrderedDict()
        self.untold: dict[Owner, None] = {}  # who may have something to tell
        self.doubted: list[Entry[Owner]] = []
        self.heap: list[tuple[Instant, int, Entry[Owner]]] = []  # the first is the earliest; numbered, as entries have no order
        self._recorded = 0  # ever
        self._owners = 0

    def enter(self, owner: Owner | None, ask: Callable[[], Instant | None]) -> Entry[Owner]:
        """Begin to look after `owner`, whose deadline `ask` returns.  None has a deadline only, and stands in no queue."""
        self._owners += 1
        entry = Entry(self, owner, ask)
        entry.doubt()
        return entry

    def leave(self, entry: Entry[Owner]) -> None:
        """The owner has ended: it is asked for nothing any more."""
        self._owners -= 1
        entry.ask = _never
        entry.at = None
        if entry.owner is not None:
            self.ready.pop(entry.owner, None)
            self.untold.pop(entry.owner, None)

    def next(self) -> Instant | None:
        """The first deadline, or None.  Those in doubt are asked for theirs, and nobody else is."""
        doubted = self.doubted
        if doubted:
            for entry in doubted:
                entry.settle()
            doubted.clear()
        heap = self.heap
        while heap and heap[0][0] != heap[0][2].at:
            heappop(heap)
        return heap[0][0] if heap else None

    def due(self, now: Instant) -> list[Owner | None]:
        """Those whose deadline has come, the earliest first.  Their deadlines are in doubt then."""
        at = self.next()
        return self.overdue(now) if at is not None and at <= now else []

    def overdue(self, now: Instant) -> list[Owner | None]:
        """The same by what they said last: nobody is asked."""
        found: list[Owner | None] = []
        heap = self.heap
        while heap and heap[0][0] <= now:
            at, _, entry = heappop(heap)
            if at == entry.at:
                entry.at = None
                entry.doubt()
                found.append(entry.owner)
        return found

    def record(self, at: Instant, entry: Entry[Owner]) -> None:
        """The deadline of `entry` is `at` now; its older records count no longer."""
        heap = self.heap
        if len(heap) >= RECORDS_BESIDES + RECORDS_AN_OWNER * self._owners:
            counting = {record[2]: record for record in heap if record[0] == record[2].at}  # one an owner, also of equal ones
            heap[:] = counting.values()
            heapify(heap)
        self._recorded += 1
        heappush(heap, (at, self._recorded, entry))


def _never() -> Instant | None:
    """The deadline of an owner that has left."""
    return None
