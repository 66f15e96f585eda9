"""Numbers of codes across servers: which of them has one, tickets by which a number moves, and guesses that count everywhere.

Of each SHARE numbers that follow each other one is a given server's to give, by its index: so no two give the same one, and a
claim finds its way while the store is away.  Where a number is now the store says, as its owner may have moved.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from enum import Enum, auto
from functools import partial
from hashlib import sha256
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Final, NamedTuple

from tunnel.core.timers import earliest
from tunnel.rendezvous.codes import Refusal
from tunnel.rendezvous.fleet.directory import Directory, Drop, Entries, Look, Put
from tunnel.rendezvous.fleet.members import Member, Members
from tunnel.rendezvous.fleet.notes import Notes
from tunnel.rendezvous.fleet.records import Kind, Note, NumberRecord, decode, encode
from tunnel.rendezvous.fleet.seal import MARK_SIZE, FleetTicket, Seal
from tunnel.rendezvous.fleet.unsaid import Unsaid
from tunnel.rendezvous.messages import MAX_SERVERS, Claim, RefusalCode
from tunnel.rendezvous.numbers import Numbers
from tunnel.units import Instant, Seconds

if TYPE_CHECKING:
    from collections import Counter

    from tunnel.core.prefixes import Prefixes
    from tunnel.rendezvous.limits import ServerConfig
    from tunnel.rendezvous.registry import Inbound, Registry

LOOK_PATIENCE: Final = Seconds(1.0)  # for the store to say where a number is, or that it has a new one
MAX_LOOKS: Final = 1_024  # claims that wait for the one, answers that wait for the other; further ones go without it
FRESH: Final = Seconds(2.0)  # for which the answer is good: the repetition of a claim finds it
MAX_FRESH: Final = 4_096  # such answers
ORPHAN: Final = Seconds(60.0)  # after the end of a server, in which the owners of its codes may come to another one
WAIT_FOR_OWNER: Final = 2  # seconds after which a claim of such a code is repeated
MARGIN: Final = Seconds(60.0)  # for which the store keeps a number beyond its end, as clocks differ


class FleetNumbers(Numbers):
    """The numbers that one server of a fleet gives, and its tickets."""

    __slots__ = ("_blocks", "_seal", "_ticket_of", "index")

    def __init__(self, config: ServerConfig, entropy: Callable[[int], bytes], seal: Seal, index: int) -> None:
        super().__init__(config, entropy, seal.secret, share=MAX_SERVERS)
        self._blocks = seal.secret
        self.index = index  # ours, or one by chance as long as we have none

    def _offset(self, number: int) -> int:
        block = number // MAX_SERVERS
        return hmac.digest(self._blocks, b"blocks" + block.to_bytes(4, "big"), sha256)[0] % MAX_SERVERS

    def _own(self, number: int) -> int:
        return number // MAX_SERVERS * MAX_SERVERS + (self._offset(number) + self.index) % MAX_SERVERS

    def giver(self, number: int) -> int:
        """The index of the server that gives this number."""
        return (number - self._offset(number)) % MAX_SERVERS


class Held(NamedTuple):
    """A number that is at this server."""

    mark: bytes
    moves: int


class Unsure(Enum):
    """Why it is not known where a number is."""

    NOBODY_SAYS = auto()  # the store does not answer, nor does the number itself lead anywhere
    OWNER_MOVES = auto()  # its server is gone, a moment ago


class FleetCodes:
    """All that one server knows of the numbers of all."""

    def __init__(
        self,
        *,
        seal: Seal,
        directory: Directory,
        members: Members,
        notes: Notes,
        registry: Registry,
        numbers: FleetNumbers,
        field: bytes,
        entropy: Callable[[int], bytes],
        unix_time: Callable[[], int],
        ready: Callable[[Instant, Inbound], None],
        counts: Counter[str],
    ) -> None:
        """`ready` hears of a claim that can be answered now."""
        self._seal = seal
        self._directory = directory
        self._members = members
        self._notes = notes
        self._registry = registry
        self._numbers = numbers
        self._field = field
        self._entropy = entropy
        self._unix_time = unix_time
        self._ready = ready
        self._counts = counts
        self._held: dict[int, Held] = {}
        self._names: dict[bytes, int] = {}  # of numbers that are here
        self._ends: list[tuple[Instant, int]] = []  # of numbers that came here with a part of their lifetime
        self._dirty: dict[int, None] = {}
        self._failed: dict[int, None] = {}
        self._waiting: dict[int, dict[tuple[bytes, int], Inbound]] = {}  # claims, by number
        self._looks = 0  # claims that wait
        self._until: dict[int, Instant] = {}  # when they are answered at the latest, by number
        self._due: list[tuple[Instant, int]] = []  # the same, the first first
        self._fresh: dict[int, tuple[Instant, Member | Unsure | None]] = {}
        self._unsaid = Unsaid(MAX_LOOKS, LOOK_PATIENCE, ready)

    # our own numbers

    def is_unsaid(self, now: Instant, inbound: Inbound, number: int) -> bool:
        """Whether the answer with that new number has to wait until the store has it; `ready` hears of it then."""
        is_written = number not in self._dirty or self._directory.is_broken
        return not is_written and self._unsaid.keep(now, number, inbound)

    def is_kept(self, inbound: Inbound) -> bool:
        """Whether that repeats a request whose answer waits for that."""
        return self._unsaid.is_kept(inbound)

    def is_ticket(self, number: int, ticket: bytes) -> bool:
        return self._open(number, ticket) is not None

    def is_of(self, number: int, ticket: bytes) -> bool:
        """Whether the ticket is of whoever has the number here."""
        held, given = self._held.get(number), self._open(number, ticket)
        return held is not None and given is not None and held.mark == given.mark

    def _open(self, number: int, ticket: bytes) -> FleetTicket | None:
        return self._seal.open_ticket(self._unix_time(), number, ticket)

    def allocated(self, now: Instant, number: int, ticket: bytes) -> bytes:
        """A session has this number now, by what may have been a ticket.  Return the one that brings it elsewhere."""
        nameplate = self._registry.nameplates[number]
        given = self._open(number, ticket)
        if number not in self._held:
            if given is None:
                self._held[number] = Held(self._entropy(MARK_SIZE), 0)
            else:
                self._counts["number_moved_here"] += 1
                self._held[number] = Held(given.mark, given.moves + 1)
                nameplate.expires_at = Instant(min(nameplate.expires_at, now + given.ends_at - self._unix_time()))
                heappush(self._ends, (nameplate.expires_at, number))
            self._names[self._name(number)] = number
            self._dirty[number] = None
        held = self._held[number]
        ends_at = self._unix_time() + int(nameplate.expires_at - now)
        return self._seal.ticket(number, FleetTicket(ends_at, held.moves, held.mark))

    def _name(self, number: int) -> bytes:
        return self._seal.name(b"code", number.to_bytes(4, "big"))

    def changed(self, number: int) -> None:
        """It came, or is over."""
        if number not in self._registry.nameplates and self._held.pop(number, None) is not None:
            self._names.pop(self._name(number), None)
            self._dirty[number] = None

    def all_anew(self) -> None:
        """The store has lost what was written."""
        self._dirty.update(dict.fromkeys(self._held))
        self._failed.clear()

    def retry(self) -> None:
        """The store answers again."""
        self._dirty.update(self._failed)
        self._failed.clear()

    @property
    def unwritten(self) -> int:
        """How many are to be written, now or once the store answers."""
        return len(self._dirty) + len(self._failed)

    @property
    def wants_turn(self) -> bool:
        return bool(self._dirty) and not self._directory.is_broken

    def _write(self, now: Instant, number: int) -> None:
        name, held = self._name(number), self._held.get(number)
        if held is None:
            self._directory.order(now, Drop(name, self._field), partial(self._dropped, number))
            return
        record = encode(NumberRecord(held.mark, held.moves, self._unix_time()))
        value = self._seal.close(name + self._field, record)
        lifetime = Seconds(self._registry.nameplates[number].expires_at - now + MARGIN)
        self._directory.order(now, Put(name, self._field, value, lifetime), partial(self._written, number, name))

    def _dropped(self, number: int, now: Instant, entries: Entries | None) -> None:
        if entries is None:
            self._failed[number] = None

    def _written(self, number: int, name: bytes, now: Instant, entries: Entries | None) -> None:
        self._unsaid.say(now, number)
        if entries is None:
            self._failed[number] = None
            return
        held = self._held.get(number)
        if held is None or not held.moves:
            return
        for member, record in self._others(name, entries):  # whoever had it before
            if record.mark == held.mark:
                self._notes.send(now, member.record.instance, Kind.MOVED, name, held.mark, _no_matter)

    def _others(self, name: bytes, entries: Entries) -> list[tuple[Member, NumberRecord]]:
        """Servers that are there, with what they say about a number: the one that has it first."""
        found: list[tuple[Member, NumberRecord]] = []
        for field, record in self._records(name, entries):
            member = self._members.get(int.from_bytes(field, "big"))
            if member is not None:
                found.append((member, record))
        return sorted(found, key=lambda each: (each[1].moves, each[1].written_at), reverse=True)

    def _records(self, name: bytes, entries: Entries) -> list[tuple[bytes, NumberRecord]]:
        found: list[tuple[bytes, NumberRecord]] = []
        for field, value in entries.items():
            record = decode(NumberRecord, self._seal.open(name + field, value))
            if record is None:
                self._members.rejected += 1
            elif field != self._field:
                found.append((field, record))
        return found

    def moved(self, note: Note) -> None:
        """Another server has taken over a number of ours."""
        number = self._names.get(note.what)
        if number is not None and self._held[number].mark == note.mark:
            self._counts["number_moved_away"] += 1
            self._registry.remove_nameplate(number)

    # claims of numbers that are not here

    def may_answer(self, now: Instant, inbound: Inbound) -> bool:
        """False: the store is being asked where the number of this claim is, and `ready` hears when it is known."""
        message = inbound.request.message
        assert isinstance(message, Claim)
        number = message.nameplate
        if number in self._registry.nameplates or (number in self._fresh and now < self._fresh[number][0]):
            return True
        if self._directory.is_broken:
            self._remember(now, number, self._by_giver(number) or Unsure.NOBODY_SAYS)
            return True
        key = (inbound.request.session, inbound.request.transaction)
        waiting = self._waiting.get(number)
        if waiting is not None and key in waiting:
            return False
        if self._looks >= MAX_LOOKS:
            return True
        self._looks += 1
        if waiting is not None:
            waiting[key] = inbound
            return False
        self._waiting[number] = {key: inbound}
        self._until[number] = Instant(now + LOOK_PATIENCE)
        heappush(self._due, (self._until[number], number))
        name = self._name(number)
        self._directory.order(now, Look(name), partial(self._found, number, name))
        return number not in self._waiting  # the order may have failed at once

    def _by_giver(self, number: int) -> Member | None:
        index = self._numbers.giver(number)
        return None if index == self._members.index else self._members.at_index(index)

    def _found(self, number: int, name: bytes, now: Instant, entries: Entries | None) -> None:
        self._answer(now, number, self._judge(now, number, name, entries))

    def _judge(self, now: Instant, number: int, name: bytes, entries: Entries | None) -> Member | Unsure | None:
        giver = self._by_giver(number)
        if entries is None:
            return giver or Unsure.NOBODY_SAYS
        others = self._others(name, entries)
        if others:
            return others[0][0]
        gone = [self._members.gone.get(int.from_bytes(field, "big")) for field, _ in self._records(name, entries)]
        if any(at is not None and now - at < ORPHAN for at in gone):
            return Unsure.OWNER_MOVES
        if giver is None and self._members.is_missed(self._numbers.giver(number)):
            return Unsure.OWNER_MOVES  # it may go on without the store, and give numbers
        return giver  # it may not have been able to write; nobody: it is not there

    def _answer(self, now: Instant, number: int, where: Member | Unsure | None) -> None:
        self._remember(now, number, where)
        waiting = self._waiting.pop(number, {})
        self._until.pop(number, None)
        self._looks -= len(waiting)
        for inbound in waiting.values():
            self._ready(now, inbound)

    def _remember(self, now: Instant, number: int, where: Member | Unsure | None) -> None:
        self._fresh.pop(number, None)
        self._fresh[number] = (Instant(now + FRESH), where)
        if len(self._fresh) > MAX_FRESH:
            del self._fresh[next(iter(self._fresh))]

    def elsewhere(self, now: Instant, claim: Claim) -> Refusal | None:
        """To a claim of a number that is not here.  None: it is nowhere."""
        until, where = self._fresh.get(claim.nameplate, (now, Unsure.NOBODY_SAYS))
        if now >= until:
            where = Unsure.NOBODY_SAYS
        match where:
            case None:
                return None
            case Unsure.NOBODY_SAYS:
                text = "nobody waits with this code here, and the other servers cannot be asked for now"
                return Refusal(RefusalCode.UNKNOWN_NAMEPLATE, text)
            case Unsure.OWNER_MOVES:
                return Refusal(RefusalCode.SLOW_DOWN, "the server of this code is gone, its owner moves", WAIT_FOR_OWNER)
            case Member(record=record):
                self._counts["sent_to_code"] += 1
                if not claim.may_move:
                    return Refusal(RefusalCode.UNKNOWN_NAMEPLATE, "nobody is waiting with this code")
                return Refusal(RefusalCode.WRONG_SERVER, "another server has this code", at=record.at)

    # guesses

    def guessed(self, now: Instant, keys: Prefixes) -> None:
        """One was wrong here."""
        self._notes.shout(now, Kind.GUESS, keys)

    # time

    def handle_timeout(self, now: Instant) -> None:
        while self._due and self._due[0][0] <= now:
            due, number = heappop(self._due)
            if self._until.get(number) == due:
                self._answer(now, number, self._by_giver(number) or Unsure.NOBODY_SAYS)
        self._unsaid.handle_timeout(now)
        while self._ends and self._ends[0][0] <= now:
            _, number = heappop(self._ends)
            nameplate = self._registry.nameplates.get(number)
            if nameplate is not None and nameplate.expires_at <= now:
                self._registry.remove_nameplate(number)
        if not self._directory.is_broken:
            dirty, self._dirty = self._dirty, {}
            for number in dirty:
                self._write(now, number)

    def poll_timeout(self) -> Instant | None:
        due = self._due[0][0] if self._due else None
        ends = self._ends[0][0] if self._ends else None
        return earliest(due, ends, self._unsaid.poll_timeout())


def _no_matter(now: Instant) -> None:
    """A claim that comes there finds nobody, and the next one comes here."""
