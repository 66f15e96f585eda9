"""Remembered peers: the rooms in which an exposer listens, and the dialing that a connector does, first or again.

The room of a pair is HKDF(psk, day).  A listener registers for yesterday, today and tomorrow, so that two clocks may differ; a
dialer asks for today's, and for its neighbours when nobody is there.  Both look at the calendar again for as long as they wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tunnel.core.timers import earliest
from tunnel.node.clocks import Clocks
from tunnel.node.context import Context
from tunnel.node.events import KnownPeer, Problem, Troubled
from tunnel.node.flow import Flow
from tunnel.node.flows.key_check import KeyAnswerer, KeyQuestion
from tunnel.node.machines import Twins
from tunnel.node.peering import Peering
from tunnel.node.servers import host_of
from tunnel.node.walls import Wall
from tunnel.notation import printable
from tunnel.pairing.identity import room_id
from tunnel.rendezvous.client import Client
from tunnel.rendezvous.events import NO_PATH, ChannelMoved, RelayChannel, Told
from tunnel.rendezvous.messages import Hello, Introduced, Join, Refresh, RefusalCode, Refused, Role, Unmet
from tunnel.units import Instant, Seconds

NEIGHBOURS_AFTER: Final = Seconds(2.0)  # of nobody in today's room
ASK_AFTER: Final = Seconds(3.0)  # of unanswered inits on an introduced channel, before the peer is asked who it is
REDIAL_AFTER: Final = Seconds(10.0)  # an introduced channel that leads to no answer: ask for another one
PROVEN_WITHIN: Final = Seconds(0.5)  # a channel to a connection that stands; else the peer may have restarted, and is greeted too
LISTENER_SIDE: Final = 0  # of an introduced channel
TELL_AGAIN: Final = Seconds(600.0)  # before a person hears once more that a server keeps peers away
DENIED_AFTER: Final = Seconds(20.0)  # of being denied to wait, before that is told
MAX_NAMES: Final = 3  # of peers in one sentence
MAX_LISTENING: Final = 1_020  # rooms that a listener registers at one server, which takes 1,024 of a session


class Listener(Flow):
    """Registers the rooms of all remembered peers with their servers."""

    def __init__(self, context: Context, clocks: Clocks, twins: Twins) -> None:
        super().__init__(context)
        self._clocks = clocks
        self._twins = twins
        self._rooms: dict[str, dict[bytes, KnownPeer]] = {}  # by server; the most important first
        self._todays: dict[str, set[bytes]] = {}  # of these, where peers come first; the others are spare
        self._left_out: dict[str, int] = {}  # peers for whom there is no room, by server, as told
        self._told_at: dict[tuple[str, str], Instant] = {}  # that a server refused, by what it said: of few servers
        self._denied_at: dict[str, Instant] = {}  # servers that have denied it, since they last led somebody here
        self.answerer = KeyAnswerer(context)
        self.is_on = False

    def start(self, now: Instant) -> None:
        self.is_on = True
        self.update(now)

    def update(self, now: Instant) -> None:
        """Peers, servers or the day may have changed."""
        if not self.is_on:
            return
        by_server: dict[str, list[KnownPeer]] = {name: [] for name in self._rooms}
        for peer in self._context.peers.values():
            if peer.is_awaited and peer.server is not None and peer.server in self._context.clients:
                by_server.setdefault(peer.server, []).append(peer)
        for server, peers in by_server.items():
            client, before = self._context.clients[server], self._rooms.get(server, {})
            days = self._clocks.days(now, client)
            rooms = self._rooms[server] = self._choose(days, peers)
            todays = {room_id(peer.psk, days[0]) for peer in rooms.values()}
            seeks_twins = bool(peers) and self._twins.are_sought
            if seeks_twins:
                rooms[self._twins.room(days[0])] = self._twins.me
            gone = [room for room in before if room not in rooms]
            if gone:
                client.leave(now, gone, self)  # first, as a server's limit counts both
            were_todays, self._todays[server] = self._todays.get(server, set()), todays
            for is_spare in (False, True):
                fresh = [
                    room
                    for room in rooms
                    if (room not in todays) == is_spare and (room not in before or (room in todays) != (room in were_todays))
                ]
                if fresh:
                    client.listen(now, fresh, self, is_spare=is_spare)
            if seeks_twins:
                self._twins.seek(now, server, client, days[0])
            self._tell(server, len(peers))

    @staticmethod
    def _choose(days: Sequence[int], peers: Sequence[KnownPeer]) -> dict[bytes, KnownPeer]:
        """At most MAX_LISTENING rooms: those of the likeliest day for all peers first, who come as they were seen last."""
        chosen: dict[bytes, KnownPeer] = {}
        for day in days:
            for peer in peers[: MAX_LISTENING - len(chosen)]:
                chosen[room_id(peer.psk, day)] = peer
        return chosen

    def awaits(self, now: Instant, peering: Peering) -> bool:
        """Whether that peer is waited for where it would dial now."""
        client = self._context.clients.get(peering.server or "")
        peer = self._context.known(peering.peer)
        return self.is_on and client is not None and client.waits_in(room_id(peer.psk, self._clocks.days(now, client)[0]))

    def _tell(self, server: str, count: int) -> None:
        """More peers than can be waited for: once, and again when there are more still."""
        left_out = max(0, count - MAX_LISTENING)
        if left_out > self._left_out.get(server, 0):
            host = server.partition(",")[0]
            text = f"{count:,} peers are remembered with the server {host}, and {MAX_LISTENING:,} can be waited for at once"
            advice = f"the {left_out:,} seen longest ago cannot connect. 'ptunnel peers forget NAME' makes room."
            self._context.emit(Troubled(problem=Problem.TOO_MANY_PEERS, text=f"{text}: {advice}"))
        self._left_out[server] = left_out

    def on_server(self, now: Instant, client: Client, event: Told | ChannelMoved) -> None:
        server = self._context.clients.name_of(client)
        rooms = self._rooms.get(server, {})
        match event:
            case Told(Introduced(room=room), channel=RelayChannel() as channel):
                self._denied_at.pop(server, None)
                if room in rooms and channel.side == LISTENER_SIDE:
                    self.answerer.introduced(channel.channel, rooms[room])
            case Told(Refused(code=code, text=text), (Join(role=Role.LISTEN) | Refresh() | Hello()) as request):
                refused = request.rooms if isinstance(request, Join) else ()
                # A room's own server lets a member wait as soon as it has met the creator, so at first it is nothing.
                denied_at = self._denied_at.setdefault(server, now)
                if code != RefusalCode.DENIED or now - denied_at >= DENIED_AFTER:
                    peers = [rooms[room] for room in refused if room in rooms] or list(rooms.values())
                    self._warn(now, server, "lets nobody wait", text, peers)
            case Told(Unmet(room=room)) if room in rooms:
                self._warn(now, server, "could not lead everybody here", "it has no relay channel for them", [rooms[room]])
            case _:
                pass

    def _warn(self, now: Instant, server: str, what: str, why: str, peers: Sequence[KnownPeer]) -> None:
        """Once in a while: it is asked again every half minute, and a peer that dials could repeat it as it likes."""
        told_at = self._told_at.get((server, what))
        peers = [peer for peer in peers if peer is not self._twins.me]
        if not peers or (told_at is not None and now - told_at < TELL_AGAIN):
            return
        self._told_at[server, what] = now
        names = list(dict.fromkeys(peer.name for peer in peers))
        whom = ", ".join(names[:MAX_NAMES]) + (f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else "")
        words = printable(why).strip(" .")
        text = f"{whom} may not get through: the server {host_of(server)} {what} ({words}). It is asked again; or use another."
        self._context.emit(Troubled(problem=Problem.SERVER_REFUSED, text=text))


class Dialer(Flow):
    """Meets one remembered peer whenever its peering needs it, and hands the way there to the peering's handshake."""

    def __init__(self, context: Context, clocks: Clocks, peering: Peering, client: Client, now: Instant) -> None:
        super().__init__(context)
        self.peering = peering
        self.client = client
        self._clocks = clocks
        self._rooms: list[bytes] = []
        self._channel: RelayChannel | None = None
        self._widen_at: Instant | None = None
        self._absent_at: Instant | None = None
        self._redial_at: Instant | None = None
        self._ask_at: Instant | None = None
        self._is_proving = False  # the channel leads to a connection that stands, if it answers there
        self._greet_at: Instant | None = None
        self._question: KeyQuestion | None = None
        self._told = ""  # of its absence
        self.dial(now)

    @property
    def is_dialing(self) -> bool:
        return bool(self._rooms)

    @property
    def is_busy(self) -> bool:
        """Dialing, or with something left to do later."""
        return self.is_dialing or self.poll_timeout() is not None

    def psk_changed(self, now: Instant) -> None:
        """The peer will be met with another key, in other rooms.  What is under way with the old one begins anew."""
        if self.is_dialing:
            self.dial(now)

    def dial(self, now: Instant, *, wide: bool = False) -> None:
        rooms = self._wanted(now, wide)
        self._rooms = [room for room in self._rooms if room not in rooms]
        self._leave(now)  # not what is dialed again: a Leave that overtakes the next Join would undo it
        self._rooms = rooms
        self.client.dial(now, self._rooms, self, is_wide=wide)
        self._widen_at = None if wide else Instant(now + max(NEIGHBOURS_AFTER, self.client.absent_after / 2))
        if self._absent_at is None:
            self._absent_at = Instant(now + self.client.absent_after)
        self._redial_at = None

    def follow(self, now: Instant) -> None:
        """The calendar may have moved on, or the server has told its own: who still waits does so in the rooms of now."""
        is_wide = self._widen_at is None
        if self.is_dialing and self._redial_at is None and self._rooms != self._wanted(now, is_wide):
            self.dial(now, wide=is_wide)

    def _wanted(self, now: Instant, is_wide: bool) -> list[bytes]:
        days = self._clocks.days(now, self.client)
        return [room_id(self.peering.peer.psk, day) for day in (days if is_wide else days[:1])]

    def on_server(self, now: Instant, client: Client, event: Told | ChannelMoved) -> None:
        match event:
            case Told(Introduced(room=room), channel=RelayChannel() as channel) if room in self._rooms:
                self._use(now, channel)  # the newest counts
            case ChannelMoved(old=old, new=new) if self._channel is not None and old.channel == self._channel.channel:
                self._use(now, new)
            case Told(Refused(code=code, text=text), Join(rooms=rooms)) if code == NO_PATH and set(rooms) & set(self._rooms):
                self._absent_at = None
                text = f"{self.peering.peer.name}: {text} Waiting."
                self._context.emit(Troubled(problem=Problem.NO_DIRECT, text=text))
            case Told(Refused(text=text), Join(rooms=rooms)) if set(rooms) & set(self._rooms):
                words = printable(text)
                self._context.emit(Troubled(problem=Problem.SERVER_REFUSED, text=f"The server refused: {words}"))
            case _:
                pass
        if self.is_busy:
            self._context.restless[self.peering] = None

    def wall(self, now: Instant) -> Wall:
        return self.peering.wall(now)

    def _use(self, now: Instant, channel: RelayChannel) -> None:
        self._channel = channel
        self._widen_at = None
        self._redial_at = Instant(now + REDIAL_AFTER)
        if self.is_dialing:
            self._ask_at = Instant(now + ASK_AFTER)
            if self.peering.letting_go.expect(now, channel.path_key):
                self.client.follow(channel.channel, self.peering)
                self._is_proving = True
                self._greet_at = Instant(now + PROVEN_WITHIN)
            else:
                self.peering.begin_handshake(now, channel.path_key)
        elif self.peering.connection is not None:
            self.peering.connection.add_relay(now, channel.path_key)
            self.client.follow(channel.channel, self.peering)

    def answered(self, now: Instant) -> None:
        """The handshake is done: nobody needs to be met any more."""
        self._leave(now)
        self._told = ""
        self._widen_at = self._absent_at = self._redial_at = self._ask_at = self._greet_at = None
        self._is_proving = False
        if self._question is not None:
            self._question.close(now)
            self._question = None
        self.peering.needs_meeting = False

    def close(self, now: Instant) -> None:
        self.answered(now)
        self._channel = None

    def on_time(self, now: Instant) -> None:
        peering = self.peering
        if peering.needs_meeting and not self.is_dialing:
            peering.needs_meeting = False
            self.dial(now)
        if self._is_proving:
            self._look_whether_proven(now)
        if self.is_dialing and peering.is_sound and self._is_due(now):
            self._call_off(now)
        if self._widen_at is not None and now >= self._widen_at:
            self.dial(now, wide=True)
        if self._absent_at is not None and now >= self._absent_at:
            self._absent_at = None
            if self.client.is_reached and not peering.lacks_keys:
                self._tell_absent(f"{self._why_absent()} Waiting.")
        if self._ask_at is not None and now >= self._ask_at:
            self._ask_at = None
            if self._channel is not None and self._question is None:
                self._question = KeyQuestion(self._context, peering.peer, self._channel.path_key, now)
        if self._question is not None:
            self._question.on_time(now)
            if self._question.is_over:
                self._question.close(now)
                self._question = None
        if self._redial_at is not None and now >= self._redial_at:
            self.dial(now, wide=True)

    def _look_whether_proven(self, now: Instant) -> None:
        channel, connection = self._channel, self.peering.connection
        if channel is None or connection is None:
            return
        if connection.is_path(channel.path_key):
            self._call_off(now)
        elif self._greet_at is not None and now >= self._greet_at:
            self._greet_at = None
            self.peering.begin_handshake(now, channel.path_key)

    def _is_due(self, now: Instant) -> bool:
        at = earliest(self._widen_at, self._absent_at, self._redial_at)
        return at is not None and now >= at

    def _call_off(self, now: Instant) -> None:
        """The connection has a path after all, the old one or by the new channel: nobody needs to be met."""
        handshake, channel = self.peering.handshake, self._channel
        if handshake is not None and handshake.completed is None and channel is not None and handshake.uses(channel.path_key):
            self.peering.end_handshake()
        self.answered(now)

    def _tell_absent(self, text: str) -> None:
        """Once, until the peer was there or something else is known."""
        if text != self._told:
            self._told = text
            self._context.emit(Troubled(problem=Problem.PEER_ABSENT, text=text))

    def _why_absent(self) -> str:
        """As far as it is known."""
        name = self.peering.peer.name
        if self._redial_at is not None:  # somebody waits in the room of the two
            return f"The server has led us to {name}, and no answer comes from there yet."
        return f"{name} does not answer: is 'ptunnel expose' running there?"

    def poll_timeout(self) -> Instant | None:
        question = self._question.poll_timeout() if self._question is not None else None
        return earliest(self._widen_at, self._absent_at, self._redial_at, self._ask_at, self._greet_at, question)

    def _leave(self, now: Instant) -> None:
        if self._rooms:
            self.client.leave(now, self._rooms, self)
        self._rooms = []
