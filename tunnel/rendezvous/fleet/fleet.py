"""One server's part in a fleet: its own record, the beat at which it is written, and what its clients are told of the others."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from tunnel.core.timers import earliest
from tunnel.core.trace import Drops
from tunnel.rendezvous import messages
from tunnel.rendezvous.fleet.codes import FleetCodes, FleetNumbers
from tunnel.rendezvous.fleet.directory import Directory, Drop, Entries, Look, Put
from tunnel.rendezvous.fleet.members import BEAT, SERVERS, Members
from tunnel.rendezvous.fleet.notes import Notes
from tunnel.rendezvous.fleet.records import FULL, Kind, Note, ServerRecord
from tunnel.rendezvous.fleet.rooms import Rooms
from tunnel.rendezvous.fleet.seal import Seal
from tunnel.units import Address, Instant, Seconds

if TYPE_CHECKING:
    from tunnel.rendezvous.codes import Codes
    from tunnel.rendezvous.limits import ServerConfig
    from tunnel.rendezvous.pushes import Pushes
    from tunnel.rendezvous.registry import Inbound, Session
    from tunnel.rendezvous.server import Server

FIRST_BEAT: Final = Seconds(0.3)  # after the first record: is it still there?
LOOK_SOON: Final = Seconds(0.1)  # after a server has said that it has come or goes; one look for all who say so meanwhile
RECORD_LIFETIME: Final = Seconds(3600.0)  # of the list of servers in the store; each beat renews it
TOLD_AT_ONCE: Final = 256  # clients that are told to move on in one turn ...
TURN: Final = Seconds(0.05)  # ... of so long: a hundred thousand in twenty seconds
ENDLESS: Final = 0  # seconds of MoveOn: this server stays, it has much to do


class Fleet:
    """Made before its server, which hands it what it needs."""

    def __init__(
        self,
        key: bytes,
        at: Sequence[Address],
        *,
        entropy: Callable[[int], bytes],
        unix_time: Callable[[], int],
        busy: Callable[[], float] = lambda: 0.0,
        software: str = "",
    ) -> None:
        """`at`: the addresses by which clients reach this server alone; `busy`: the share of a processor that it uses."""
        self._entropy = entropy
        self._unix_time = unix_time
        self._busy = busy
        self._software = software[:40]
        self._at = tuple(messages.pack_address(each) for each in at[: messages.MAX_PLACES])
        self.seal = Seal(key)
        self.directory = Directory()
        self.directory.on_back = self._on_back
        self.drops = Drops()
        self.counts: Counter[str] = Counter()
        self.is_draining = False
        self._beat = 0
        self._beat_at: Instant | None = None
        self._turn_at: Instant | None = None
        self._leaving: deque[Session] = deque()  # clients to be told to move on
        self._within = ENDLESS
        self._has_left = False
        self._was_back = False

    # the server's

    def numbers(self, config: ServerConfig) -> FleetNumbers:
        """The numbers of a server of this fleet; by chance, until it knows its index."""
        index = int.from_bytes(self._entropy(1), "big") % messages.MAX_SERVERS
        self._numbers = FleetNumbers(config, self._entropy, self.seal, index)
        return self._numbers

    def attach(
        self,
        now: Instant,
        server: Server,
        instance: int,
        pushes: Pushes,
        codes: Codes,
        ready: Callable[[Instant, Inbound], None],
    ) -> None:
        """That is our server, and these are parts of it; `ready` answers a claim that had to wait."""
        self._server = server
        self._instance = instance
        self._pushes = pushes
        self._guesses = codes
        field = instance.to_bytes(8, "big")
        self.members = Members(self.seal, instance, self._at, self._entropy)
        self.notes = Notes(self.seal, self.directory, instance, self._act, self.drops)
        self.rooms = Rooms(
            seal=self.seal, directory=self.directory, members=self.members, notes=self.notes, registry=server.registry,
            pushes=pushes, field=field, unix_time=self._unix_time, counts=self.counts,
        )  # fmt: skip
        self.codes = FleetCodes(
            seal=self.seal, directory=self.directory, members=self.members, notes=self.notes, registry=server.registry,
            numbers=self._numbers, field=field, entropy=self._entropy, unix_time=self._unix_time, ready=ready, counts=self.counts,
        )  # fmt: skip
        server.registry.on_room = self.rooms.changed
        server.registry.on_number = self.codes.changed
        self._beat_at = now

    def _record(self) -> ServerRecord:
        """Ours, as we are now."""
        server, config = self._server, self._server.config
        sessions, channels = len(server.registry.sessions), len(server.relay)
        fill = max(sessions / config.max_sessions, channels / config.max_channels, self._busy())
        return ServerRecord(
            index=self.members.index or 0, instance=self._instance, beat=self._beat, written_at=self._unix_time(), at=self._at,
            drains=self.is_draining, load=min(FULL, int(fill * FULL)), sessions=sessions, capacity=config.max_sessions,
            channels=channels, codes=len(server.registry.nameplates), relayed_bytes=server.relay.relayed_bytes,
            software=self._software,
        )  # fmt: skip

    # the beat

    def _look(self, now: Instant) -> None:
        self._beat_at = Instant(now + BEAT)
        self.directory.probe(now, Look(SERVERS), self._on_servers)

    def _on_servers(self, now: Instant, entries: Entries | None) -> None:
        if entries is None or self._has_left:
            return
        members = self.members
        was_settled = members.is_settled
        for field in members.hear(now, entries):
            self.directory.order(now, Drop(SERVERS, field), _no_matter)
        if members.was_emptied:
            self.counts["store_emptied"] += 1
            self.rooms.all_anew()
            self.codes.all_anew()
        elif self._was_back:
            self.rooms.retry()
            self.codes.retry()
        self._was_back = False
        self.rooms.beat(now)
        self._write(now)
        if members.is_settled and not was_settled:
            self._numbers.index = members.index or 0
        elif not members.is_settled:
            self._beat_at = Instant(now + FIRST_BEAT)
        self._shed(now)

    def has_twin(self, now: Instant) -> bool:
        """Whether another server of the fleet gives our addresses as its own."""
        return self.members.has_twin(now)

    def _write(self, now: Instant) -> None:
        """Our record, and the number of the list that clients know it by."""
        if self.members.index is None:
            self._server.epoch = 0
            return
        self._beat += 1
        record, has_come = self._record(), not self.members.has_written
        field, value = self.members.close(record)
        self.directory.order(now, Put(SERVERS, field, value, RECORD_LIFETIME), _no_matter)
        self._server.epoch = self.members.epoch(record)
        if has_come:  # else who came to another one a moment ago would not know where to go when that one dies
            self.notes.shout(now, Kind.LOOK)

    def _on_back(self, now: Instant) -> None:
        """The store answers, after it did not: look at once, and write again what it did not take."""
        self._was_back = True
        self._beat_at = now

    # clients

    def answer(
        self, now: Instant, session: Session, inbound: Inbound, answer: Callable[[Instant, Session, Inbound], bytes]
    ) -> bytes | None:  # fmt: skip
        """Return what `answer` gives; None: the store has to be asked or told first, and the answer comes later."""
        message, is_new_code = inbound.request.message, False
        match message:
            case messages.Claim() if not self._guesses.is_locked_out(now, session) and not self.codes.may_answer(now, inbound):
                return None
            case messages.Allocate(wanted=0):
                is_new_code = True
        answered = answer(now, session, inbound)
        return None if is_new_code and self.codes.is_unsaid(now, inbound, session.last_nameplate) else answered

    def follow(self, now: Instant, session: Session) -> messages.Servers:
        """It knows how to go elsewhere."""
        if not session.follows:
            session.follows = True
            for room in session.dialing:
                self.rooms.changed(room)
        own = self._record()
        if self.members.index is None:
            return messages.Servers(epoch=0, index=0, servers=())
        if self.is_draining:
            self._send_on(now, session)
        elif self.members.is_crowded(own.load) and _is_idle(session):
            self._send_on(now, session, own.load)
        return self.members.answer(own, session.id)

    def _send_on(self, now: Instant, session: Session, load: float | None = None) -> None:
        """`load`: ours, where we have too much; None where we drain."""
        member = self.members.choose(load)
        if member is None and load is not None:
            return
        self.counts["sent_on"] += 1
        at = () if member is None else member.record.at
        within = ENDLESS if load is not None else self._within
        self._pushes.push(now, session, messages.MoveOn(within, at))

    def _shed(self, now: Instant) -> None:
        """Some of the clients that only wait, if we have much more of them than others."""
        if self.is_draining or not self.members.is_settled:
            return
        load = float(self._record().load)
        if not self.members.is_crowded(load):
            return
        sessions = self._server.registry.sessions.values()
        excess = self.members.excess(load, len(sessions))
        for session in sessions:
            if excess <= 0:
                return
            if session.follows and _is_idle(session):
                excess -= 1
                self._send_on(now, session, load)

    def drain(self, now: Instant, within: Seconds) -> None:
        """Take nobody any more, and send all to the others; the owner ends the server when is_empty, or after that time."""
        if self.is_draining:
            return
        self.is_draining = True
        self._within = max(1, int(within))
        self._leaving.extend(each for each in self._server.registry.sessions.values() if each.follows)
        self._turn_at = now
        self._write(now)
        self.notes.shout(now, Kind.LOOK)

    def leave(self, now: Instant) -> None:
        """The last word: our record goes, so that nobody waits for it to grow."""
        self._beat_at, self._has_left = None, True
        if self.members.index is not None:
            self.directory.order(now, Drop(SERVERS, b"%d" % self.members.index), _no_matter)
            self.notes.shout(now, Kind.LOOK)

    @property
    def is_empty(self) -> bool:
        """Whether nobody is left who could go elsewhere, nor anything that is relayed."""
        return not self._leaving and not len(self._server.relay) and not self._has_followers()

    def _has_followers(self) -> bool:
        return any(each.follows for each in self._server.registry.sessions.values())

    def _act(self, now: Instant, note: Note) -> None:
        """Another server says so."""
        member = self.members.get(note.sender)
        if note.kind == Kind.LISTENS and member is not None:
            self.rooms.heard(now, note.what, member)
        elif note.kind == Kind.MOVED:
            self.codes.moved(note)
        elif note.kind == Kind.GUESS and note.keys:
            self.counts["guess_elsewhere"] += 1
            self._guesses.count_elsewhere(now, note.keys)
        elif note.kind == Kind.LOOK and self._beat_at is not None:
            self._beat_at = min(self._beat_at, Instant(now + LOOK_SOON))

    # time and orders

    def handle_timeout(self, now: Instant) -> None:
        if self.directory.wants_probe(now) or (self._beat_at is not None and now >= self._beat_at):
            self._look(now)
        self.notes.handle_timeout(now)
        self.codes.handle_timeout(now)
        self.rooms.handle_timeout(now)
        if self._turn_at is not None and now >= self._turn_at:
            for _ in range(min(TOLD_AT_ONCE, len(self._leaving))):
                self._send_on(now, self._leaving.popleft())
            self._turn_at = Instant(now + TURN) if self._leaving else None

    def poll_timeout(self) -> Instant | None:
        if self.rooms.wants_turn or self.codes.wants_turn:
            return Instant(0.0)
        return earliest(
            self._beat_at,
            self._turn_at,
            self.directory.poll_timeout(),
            self.notes.poll_timeout(),
            self.codes.poll_timeout(),
            self.rooms.poll_timeout(),
        )

    def hear(self, now: Instant, channel: bytes, data: bytes) -> None:
        """Something came on one of notes.channels."""
        self.notes.hear(now, channel, data)

    def counters(self) -> dict[str, int]:
        """A snapshot, as those of the server."""
        return {
            "fleet_servers": len(self.members) + 1,
            "fleet_joined": int(self.members.is_settled),
            "fleet_store_up": int(not self.directory.is_broken),
            "fleet_load": self._record().load,
            "fleet_pointers": len(self._server.registry.rooms) + len(self._server.registry.nameplates),
            "fleet_unwritten": self.rooms.unwritten + self.codes.unwritten,
            "fleet_orders_failed": self.directory.failed,
            "fleet_records_rejected": self.members.rejected,
            **{f"did_{name}": count for name, count in sorted(self.counts.items())},
            **{f"dropped_{name}": count for name, count in sorted(self.drops.items())},
        }

    def status(self) -> list[dict[str, Any]]:
        """The servers, for people: ourselves first."""
        own = self._record()
        return [describe(record) for record in (own, *(each.record for each in self.members))]


def describe(record: ServerRecord) -> dict[str, Any]:
    """A server of the fleet, as docs/json.md has it."""
    return {
        "index": record.index,
        "addresses": [str(messages.unpack_address(each)) for each in record.at],
        "load": record.load / FULL,
        "drains": record.drains,
        "clients": record.sessions,
        "codes": record.codes,
        "relayed_pairs": record.channels,
        "relayed_bytes": record.relayed_bytes,
        "software": record.software,
    }


def _is_idle(session: Session) -> bool:
    """Whether it only waits: nothing breaks when it goes."""
    return not (session.channels or session.mailboxes or session.nameplates or session.dialing)


def _no_matter(now: Instant, entries: Entries | None) -> None:
    """The next beat does it again."""
