"""The hybrid step: what makes the keys of a pair hold against quantum computers too.  One of these for each peering.

After the first handshake of a connection its sides exchange an ML-KEM key and a ciphertext on the control stream.  What comes of
it is the psk of their next handshake, which follows at once, and another psk that the pair keeps for later connections:

    connector                                exposer
    KEM_KEY, wants to keep                 →
                                             keeps, not yet shown
                                           ←  KEM_TEXT, has kept
    keeps, not yet shown
    IK handshake under the new psk         ↔  both have proven that they computed the same
    shown
    KEM_KEPT                               →  shown

A connection whose first handshake ran under a kept psk is safe from its first byte; its step runs beside the traffic, for new
secrets.  Any other holds everything but the control stream back until the step is done.  Who breaks off anywhere has what the
other has, or the psk of the pairing, which both have always.  Once a kept psk was shown there is no way back to that one.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final

from tunnel.errors import MalformedPacket
from tunnel.node.context import Context
from tunnel.node.events import KnownPeer, Problem, Troubled
from tunnel.transport.connection.events import CloseCode
from tunnel.transport.crypto.handshake import Completed
from tunnel.transport.crypto.kem import PUBLIC_SIZE, TEXT_SIZE, KemKey, answer, derive
from tunnel.units import Instant, Seconds

if TYPE_CHECKING:
    from tunnel.node.peering import Peering
    from tunnel.transport.connection.connection import Connection

CONTROL_KEM_KEY: Final = 6
CONTROL_KEM_TEXT: Final = 7
CONTROL_KEM_KEPT: Final = 8
KEEP: Final = 1  # flag of the first two: wants to keep a psk; has kept it

STEP_PATIENCE: Final = Seconds(30.0)  # of a connection that holds everything back for its first step
STILL_HEARD: Final = Seconds(5.0)  # a peer that was silent for longer is not waited for in vain: it is away
STEP_INTERVAL: Final = Seconds(3600.0)  # of a connection that lives on: a step costs 2.5 KB and some 0.3 ms on each side

OLDER_KEYS: Final = (
    "{} came without the post-quantum keys that both sides have agreed on: it runs an older ptunnel, or from older files, or "
    "somebody is in between. Nothing was sent. If you know why, run 'ptunnel peers forget {}' and pair again."
)
CAME_WITH_OLDER_KEYS: Final = "this connection came without the post-quantum keys that were agreed on: forget and pair again"
NO_STEP: Final = "No post-quantum keys could be agreed on with {}: it does not do what it says. Nothing was sent."
NO_STEP_HERE: Final = "no post-quantum keys could be agreed on"


def newer_psks(context: Context, peer: KnownPeer, chain: tuple[bytes, ...] = ()) -> tuple[bytes, ...]:
    """Return the psks, besides that of the pairing, that a handshake with a peer may use, newest first."""
    return tuple(dict.fromkeys((*chain, *(each.psk for each in reversed(context.known(peer).kept)))))


class Stage(Enum):
    """Where a step stands."""

    IDLE = "idle"
    ASKED = "asked"  # the initiator's: the key is out
    PROVING = "proving"  # the initiator's: a handshake under the new psk is under way
    ANSWERED = "answered"  # the responder's: that handshake is awaited


class Hybrid:
    """The psks of a peering besides the one of its pairing, and the step that makes them."""

    def __init__(self, context: Context, peering: Peering) -> None:
        self.chain: tuple[bytes, ...] = ()  # made by steps of this connection, the newest first; two until it has proven itself
        self.is_reached = False  # what is sealed now is safe
        self.is_held = False  # everything but the control stream waits for that
        self.is_refused = False  # the first handshake ran under older keys than both had agreed on
        self._context = context
        self._peering = peering
        self._is_capable = False  # both sides do the step
        self._stage = Stage.IDLE
        self._before = b""  # the psk that the next step starts from
        self._binding = b""  # the hash of the connection's first handshake
        self._key: KemKey | None = None
        self._asked = b""
        self._kept: bytes | None = None  # on our disk, and not yet shown by this connection
        self._due_at: Instant | None = None

    @property
    def due_at(self) -> Instant | None:
        """While held the end of patience, else when we begin the next step."""
        return self._due_at

    @due_at.setter
    def due_at(self, at: Instant | None) -> None:
        self._due_at = at
        self._peering.touch()

    @property
    def newer_psks(self) -> tuple[bytes, ...]:
        """The psks, besides that of the pairing, that a handshake with the peer may use, the likeliest first."""
        return newer_psks(self._context, self._peering.peer, self.chain)

    def accepts(self, completed: Completed) -> bool:
        """Whether the connection may have these new keys: never worse ones than it has."""
        return not self.is_reached or completed.psk in self.newer_psks

    # --- a connection begins

    def attach(self, now: Instant, connection: Connection, completed: Completed) -> None:
        """`completed` is its first handshake."""
        context, peering = self._context, self._peering
        known = context.known(peering.peer)
        self.chain = ()
        self.is_reached = completed.psk is not None and any(completed.psk == each.psk for each in known.kept)
        self._is_capable = context.does_step(completed.params)
        self.is_refused = known.is_hybrid and not self.is_reached  # a pairing that may begin anew has made that False
        self._stage = Stage.IDLE
        self._before = completed.pair_psk if completed.psk is None else completed.psk
        self._binding = completed.handshake_hash
        self._key = self._kept = None
        self.due_at = None
        self.is_held = self._is_capable and not self.is_reached
        if self.is_reached:
            self._shown(completed.psk)
        if self.is_refused or not self._is_capable:
            return
        if self.is_held:
            connection.hold()
            self.due_at = Instant(now + STEP_PATIENCE)
        if peering.is_initiator:
            self._begin(connection)

    def _begin(self, connection: Connection) -> None:
        self._key = KemKey(self._context.entropy)
        flags = 0 if self.is_reached else KEEP
        self._asked = bytes((CONTROL_KEM_KEY, flags)) + self._key.public
        self._stage = Stage.ASKED
        connection.send_control(self._asked)

    # --- what the peer says

    def handle(self, now: Instant, connection: Connection, data: bytes) -> None:
        """A control message of these kinds.  What no honest peer says costs all further steps, or what waits for the first."""
        if not self._is_capable:
            return  # as any kind that was not agreed on
        kind, is_initiator = data[0], self._peering.is_initiator
        try:
            if kind == CONTROL_KEM_KEY and not is_initiator and self._stage is Stage.IDLE:
                self._answer(connection, data)
            elif kind == CONTROL_KEM_TEXT and self._stage is Stage.ASKED:
                self._take(now, data)
            elif kind == CONTROL_KEM_KEPT and not is_initiator and self._kept is not None and self._stage is Stage.IDLE:
                kept, self._kept = self._kept, None
                self._shown(kept)
            else:
                raise MalformedPacket("out of turn")
        except MalformedPacket:
            self._context.drops["hybrid step broken off"] += 1
            self._is_capable, self.due_at = False, None
            if self.is_held:
                self._fail(now)

    def _answer(self, connection: Connection, data: bytes) -> None:
        """The exposer's half.  What it keeps is on its disk before the other side can know of it."""
        if len(data) != 2 + PUBLIC_SIZE:
            raise MalformedPacket("a KEM key of the wrong size")
        text, secret = answer(data[2:])
        psks = None
        for flags in (KEEP, 0) if data[1] & KEEP else (0,):
            answered = bytes((CONTROL_KEM_TEXT, flags)) + text
            psks = derive(self._before, secret, self._binding, data, answered)
            if not flags or self._keep(psks.kept):
                break
        assert psks is not None
        self._kept = psks.kept if flags else None
        self._extend(psks.connection)
        self._stage = Stage.ANSWERED
        connection.send_control(answered)

    def _take(self, now: Instant, data: bytes) -> None:
        """The connector's half."""
        assert self._key is not None
        if len(data) != 2 + TEXT_SIZE:
            raise MalformedPacket("a KEM ciphertext of the wrong size")
        psks = derive(self._before, self._key.open(data[2:]), self._binding, self._asked, data)
        self._key = None
        self._kept = psks.kept if data[1] & KEEP and self._keep(psks.kept) else None
        self._extend(psks.connection)
        self._stage = Stage.PROVING
        self._peering.end_handshake()
        self.pump(now)

    def _extend(self, psk: bytes) -> None:
        self._before = psk
        self.chain = (psk, *self.chain[:1])

    # --- handshakes

    def pump(self, now: Instant) -> None:
        """The handshake that proves the new psk goes on until it is done."""
        peering, connection = self._peering, self._peering.connection
        if self._stage is not Stage.PROVING or peering.is_closed or connection is None:
            return
        path, *others = connection.handshake_paths
        if peering.handshake is None:
            peering.begin_handshake(now, path, others=others, is_awaited=self.is_held)
        elif others:
            peering.handshake.widen((path, *others))

    def refused(self) -> None:
        """A handshake of ours has ended in keys that `accepts` did not let in."""
        self._context.drops["handshake under older keys"] += 1
        if self._stage is Stage.PROVING:
            self._give_up()

    def installed(self, now: Instant, connection: Connection, completed: Completed) -> None:
        """The connection has new keys, that `accepts` let in."""
        self.is_reached = completed.psk in self.newer_psks
        if self._stage in (Stage.PROVING, Stage.ANSWERED) and completed.psk == self.chain[0]:
            self._done(now, connection)
        elif self._stage is Stage.PROVING and completed.keypair.is_initiator:  # we offered the new one, and it was not known
            self._give_up()
            if self.is_held:
                self._fail(now)

    def _give_up(self) -> None:
        """The peer has not computed what we have: there is nothing in common that a next step could start from."""
        self._context.drops["hybrid step without effect"] += 1
        self._stage = Stage.IDLE
        self._is_capable = False
        if not self.is_held:  # else patience ends it
            self.due_at = None
        self.chain, self._kept = self.chain[1:], None

    def _done(self, now: Instant, connection: Connection) -> None:
        self._stage = Stage.IDLE
        self.chain = self.chain[:1]
        self.due_at = Instant(now + STEP_INTERVAL) if self._peering.is_initiator and self._is_capable else None
        if self._peering.is_initiator and self._kept is not None:
            kept, self._kept = self._kept, None
            if self._shown(kept):
                connection.send_control(bytes((CONTROL_KEM_KEPT,)))
        if self.is_held:
            self.is_held = False
            connection.release(now)
            self._peering.start()

    # --- time

    def handle_timeout(self, now: Instant) -> None:
        """At `due_at`; earlier is harmless."""
        connection = self._peering.connection
        if self.due_at is None or now < self.due_at:
            return
        self.due_at = None
        if connection is None or connection.is_closed:
            return
        if not self.is_held:
            self._begin(connection)
        elif now - connection.last_heard < STILL_HEARD:
            self._fail(now)
        else:
            self.due_at = Instant(now + STILL_HEARD)

    def _fail(self, now: Instant) -> None:
        peering = self._peering
        text = NO_STEP.format(peering.peer.name)
        self._context.emit(Troubled(problem=Problem.POST_QUANTUM, text=text, is_final=peering.is_initiator))
        peering.close(now, CloseCode.KEYS, NO_STEP_HERE)

    # --- what is kept

    def _keep(self, psk: bytes) -> bool:
        """True when it is on disk, for a peer that may not have it."""
        return self._context.keep(self._peering.peer, psk, is_shown=False)

    def _shown(self, psk: bytes | None) -> bool:
        """The peer has this one and has kept it: nothing worse is good enough from now on.  True when that is on disk."""
        known = self._context.known(self._peering.peer)
        if psk is None or any(each.psk == psk and each.is_shown for each in known.kept):
            return True
        return self._context.keep(self._peering.peer, psk, is_shown=True)
