"""Letting go of the relay: a link whose direct path has been good for a while holds no channel at a server.

The initiator offers it, with a room that it has drawn at random and dials at their server; the responder agrees where it waits
for this peer as for any that is remembered.  Both then give their channels back.  Whoever finds the direct path in doubt later
gets a new channel before the path is given up: the initiator dials the responder as for a first connection, and the responder
listens in that room, where the server leads the two together.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final

from tunnel.core.timers import earliest
from tunnel.errors import MalformedPacket
from tunnel.node.relays import CONTROL_RELAYS, LET_GO, MAX_RELAYS
from tunnel.rendezvous.events import RelayChannel, Told
from tunnel.rendezvous.messages import Introduced, Join, Refused
from tunnel.transport.connection.events import PathKind
from tunnel.units import Instant, PathKey, Seconds

if TYPE_CHECKING:
    from tunnel.node.context import Context
    from tunnel.node.peering import Peering
    from tunnel.rendezvous.client import Client
    from tunnel.transport.connection.connection import Connection

LETS_GO: Final = 4  # bit of HELLO: the sender knows this; the others are the transport's
ROOM_SIZE: Final = 16  # bytes, as of any room

LET_GO_AFTER: Final = Seconds(180.0)  # of a direct path: what fails at all has mostly failed by then
KEPT_AFTER_LOSS: Final = Seconds(3600.0)  # a direct path that has failed may fail again: for so long a channel is kept
JOINED_AFTER: Final = Seconds(5.0)  # of asking for the room: a server that refuses it has said so
AGREED_WITHIN: Final = Seconds(30.0)  # else the peer wants to keep its channel
OFFER_AGAIN: Final = Seconds(900.0)  # to who has not agreed, or where there was no room
LOOK_AGAIN: Final = Seconds(5.0)  # at whether a channel is still needed
REKEYS_APART: Final = Seconds(60.0)  # when they succeed: two minutes
SILENCE_TOLD: Final = Seconds(1.5)  # after the last path was lost; by then there mostly is a channel


class Stage(Enum):
    """How far the two have come."""

    HELD = "held"  # the channel is kept
    JOINED = "joined"  # the initiator has asked for a room
    OFFERED = "offered"  # ... and has told the peer of it
    LET_GO = "let go"


class LettingGo:
    """Of one peering, for its connection of now."""

    def __init__(self, context: Context, peering: Peering) -> None:
        self._context = context
        self._peering = peering
        self.stage = Stage.HELD
        self._room = b""
        self._peer_knows = False  # what this is
        self._is_listening = False  # the responder needs a channel
        self._offered_at: Instant | None = None
        self._rekeying_at: Instant | None = None
        self._direct_since: Instant | None = None
        self._kept_until: Instant | None = None
        self._look_at: Instant | None = None
        self._tell_at: Instant | None = None  # that the peer is silent

    @property
    def due_at(self) -> Instant | None:
        return earliest(self._look_at, self._tell_at)

    @property
    def has_let_go(self) -> bool:
        return self.stage is Stage.LET_GO

    @property
    def _client(self) -> Client | None:
        return self._context.clients.get(self._peering.server or "")

    def _look(self, at: Instant | None) -> None:
        self._look_at = at
        self._peering.touch()

    def _relayed(self, connection: Connection) -> dict[PathKey, bool]:
        """The paths through servers, and whether each works."""
        by_members = self._context.carrying.names
        return {key: works for key, works in connection.relay_paths.items() if key.prefix not in by_members}

    def _give_back(self, now: Instant, connection: Connection, client: Client) -> None:
        for key in self._relayed(connection):
            client.leave_channel(now, key.prefix)
            connection.drop_path(now, key)

    # --- what happens to the link

    def attach(self, now: Instant) -> None:
        """A connection with the peer's new instance stands."""
        self._leave(now)
        self._peer_knows = False
        self._direct_since = self._kept_until = self._offered_at = None

    def close(self, now: Instant) -> None:
        """The peering is over."""
        self._leave(now)

    def _leave(self, now: Instant) -> None:
        """Nobody is waited for in the room any more."""
        client = self._client
        if self._room and client is not None:
            client.leave(now, [self._room], self._peering)
        self._room, self._is_listening = b"", False
        self.stage = Stage.HELD
        self._tell_at = None
        self._look(None)

    def peer_takes(self, bits: int) -> None:
        """The peer has said in HELLO what it knows."""
        self._peer_knows = bool(bits & LETS_GO)

    def direct(self, now: Instant) -> None:
        """A direct path carries now."""
        if self._direct_since is None:
            self._direct_since = now
        if self.stage is Stage.HELD and self._look_at is None:
            self._plan()

    def _plan(self) -> None:
        """The initiator looks when it may be time."""
        since, until = self._direct_since, self._kept_until
        if since is not None and self._peering.is_initiator:
            at = Instant(since + LET_GO_AFTER)
            self._look(at if until is None or until < at else until)

    def relayed(self, now: Instant) -> None:
        """The link goes through a relay now."""
        if self._direct_since is not None:
            self._direct_since, self._kept_until = None, Instant(now + KEPT_AFTER_LOSS)
        self._leave(now)

    def doubted(self, now: Instant) -> None:
        """The current path leaves challenges unanswered."""
        if self.stage is Stage.LET_GO:
            self._want(now)

    def expect(self, now: Instant, key: PathKey) -> bool:
        """Take a channel that the initiator has dialed for the connection that stands; False: it needs a handshake."""
        connection = self._peering.connection
        if self.stage is not Stage.LET_GO or connection is None or connection.is_closed or connection.is_mute:
            return False
        connection.expect_relay(now, key)
        return True

    def rekeying(self, now: Instant) -> None:
        """New keys are due.  When they are due again soon, handshakes do not get through on the direct path."""
        last, self._rekeying_at = self._rekeying_at, now
        if self.stage is Stage.LET_GO and last is not None and now - last < REKEYS_APART:
            self._kept_until = Instant(now + KEPT_AFTER_LOSS)
            self._want(now)

    def lost(self, now: Instant) -> bool:
        """No path works; True: that is told later, if a channel does not help."""
        if self._direct_since is not None:
            self._kept_until = Instant(now + KEPT_AFTER_LOSS)
        if self.stage is not Stage.LET_GO:
            return False
        self._want(now)
        self._tell_at = Instant(now + SILENCE_TOLD)
        return True

    def _want(self, now: Instant) -> None:
        """A channel is needed again."""
        peering, client, connection = self._peering, self._client, self._peering.connection
        if client is None or connection is None or peering.is_closed:
            return
        if any(self._relayed(connection).values()):
            self._settle(now)
            return
        if peering.is_initiator:
            peering.ask_to_meet()
        elif not self._is_listening:
            self._is_listening = True
            client.listen(now, [self._room], peering, is_spare=True)
        self._look(Instant(now + LOOK_AGAIN))

    def _settle(self, now: Instant) -> None:
        """There is a channel, or the channel is kept: the room has done its work, and the time begins anew."""
        self._leave(now)
        if self._direct_since is not None:
            self._direct_since = now
        self._plan()

    def hear(self, now: Instant, client: Client, event: Told) -> None:
        """The server has led the peer to us in the room, or does not let us wait there."""
        match event:
            case Told(Introduced(room=room), channel=RelayChannel() as channel):
                self._introduced(now, client, room, channel)
            case Told(Refused(), Join(rooms=rooms)) if self._room in rooms:
                self._kept_until = Instant(now + OFFER_AGAIN)
                if self.stage is Stage.LET_GO:
                    self._want(now)
                elif self.stage is not Stage.HELD:
                    self._settle(now)
            case _:
                pass

    def _introduced(self, now: Instant, client: Client, room: bytes, channel: RelayChannel) -> None:
        connection = self._peering.connection
        if self.stage is Stage.OFFERED and room == self._room:
            self._on_agreed(now)  # nobody else knows the room; its word may be lost with the path
        is_awaited = self.stage is Stage.LET_GO and room == self._room
        if connection is None or not is_awaited or len(self._relayed(connection)) >= MAX_RELAYS:
            self._context.drops["relay channel not wanted"] += 1
            client.leave_channel(now, channel.channel)
            return
        connection.expect_relay(now, channel.path_key)
        self._look(Instant(now + LOOK_AGAIN))

    # --- what the two tell each other

    def handle(self, now: Instant, body: bytes) -> None:
        """Of the initiator a room, of the responder nothing, which says yes.  Raises MalformedPacket."""
        if self._peering.is_initiator:
            if body:
                raise MalformedPacket("the responder names no room")
            self._on_agreed(now)
        elif len(body) == ROOM_SIZE:
            self._on_offer(now, body)
        else:
            raise MalformedPacket("no room")

    @staticmethod
    def _say(connection: Connection, body: bytes) -> None:
        connection.send_control(bytes((CONTROL_RELAYS, LET_GO)) + body)

    def _on_offer(self, now: Instant, room: bytes) -> None:
        peering, client, connection = self._peering, self._client, self._peering.connection
        if self._offered_at is not None and now < self._offered_at + AGREED_WITHIN:
            self._context.drops["offer to let go too soon"] += 1
            return
        self._offered_at = now
        if client is None or connection is None or not self._may_let_go(now, connection):
            return
        is_awaited = False
        with self._context.wall("meeting", "kept a relay channel that nobody needs"):
            is_awaited = self._context.awaits(now, peering)
        if not is_awaited:
            return
        self._leave(now)
        self._room, self.stage = room, Stage.LET_GO
        self._say(connection, b"")
        self._give_back(now, connection, client)

    def _on_agreed(self, now: Instant) -> None:
        client, connection = self._client, self._peering.connection
        if self.stage is not Stage.OFFERED or client is None or connection is None:
            self._context.drops["agreed to no offer"] += 1
            return
        self.stage = Stage.LET_GO
        self._look(None)
        self._give_back(now, connection, client)
        if not connection.is_sound:
            self._want(now)

    def _may_let_go(self, now: Instant, connection: Connection) -> bool:
        is_direct = connection.current_path.kind is PathKind.DIRECT and connection.is_sound
        return is_direct and (self._kept_until is None or now >= self._kept_until)

    # --- time

    def handle_timeout(self, now: Instant) -> None:
        peering, client, connection = self._peering, self._client, self._peering.connection
        if self._tell_at is not None and now >= self._tell_at:
            self._tell_at = None
            if not peering.is_reachable:
                peering.tell_silence()
        if self._look_at is None or now < self._look_at:
            return
        self._look(None)
        if client is None or connection is None or peering.is_closed:
            return
        match self.stage:
            case Stage.HELD:
                self._begin(now, connection, client)
            case Stage.JOINED if self._may_let_go(now, connection):
                self.stage = Stage.OFFERED
                self._say(connection, self._room)
                self._look(Instant(now + AGREED_WITHIN))
            case Stage.JOINED | Stage.OFFERED:
                self._kept_until = Instant(now + OFFER_AGAIN)
                self._settle(now)
            case Stage.LET_GO:
                self._look_whether_needed(now, connection, client)

    def _begin(self, now: Instant, connection: Connection, client: Client) -> None:
        if not self._peer_knows or self._direct_since is None:
            return  # HELLO comes with each handshake: see direct
        if not self._may_let_go(now, connection) or not self._relayed(connection):
            self._look(Instant(now + OFFER_AGAIN))
            return
        self._room, self.stage = self._context.entropy(ROOM_SIZE), Stage.JOINED
        client.dial(now, [self._room], self._peering, is_spare=True)
        self._look(Instant(now + JOINED_AFTER))

    def _look_whether_needed(self, now: Instant, connection: Connection, client: Client) -> None:
        if any(self._relayed(connection).values()):
            self._settle(now)
        elif connection.is_sound:  # the path had a bad moment
            self._give_back(now, connection, client)
            if self._is_listening:
                self._is_listening = False
                client.leave(now, [self._room], self._peering)
        else:
            self._look(Instant(now + LOOK_AGAIN))
