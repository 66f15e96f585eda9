"""One identity on two machines: a copy of a home, or a home that has moved.  Whoever meets both is told, and so are the two.

Each side tells a number of its machine inside the handshake.  A listener also looks for others of its own key, in a room of the
server that only the holders of that key can name, and asks those it finds for a number of the home, as a question of identity
does.  That one tells copies apart that are in use at the same time, also in containers and on machines that were cloned whole.
Several processes of one home have one number, and are no case of it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

from tunnel.core.bucket import Bucket
from tunnel.core.timers import earliest
from tunnel.node.events import KnownPeer, Problem, Troubled
from tunnel.node.flow import Flow
from tunnel.node.flows.key_check import KeyQuestion
from tunnel.pairing.identity import room_id, twin_psk
from tunnel.rendezvous.events import ChannelMoved, RelayChannel, Told
from tunnel.rendezvous.messages import Introduced
from tunnel.units import Instant, Seconds

if TYPE_CHECKING:
    from tunnel.node.context import Context
    from tunnel.rendezvous.client import Client
    from tunnel.transport.crypto.params import Params

MAX_MACHINES: Final = 4  # of a peer that are remembered; the one met longest ago goes
MAX_QUESTIONS: Final = 4  # to others of our key at a time; more may be former selves of ours
MAX_TOLD: Final = 8  # machines of a peer of which a person hears in a row, since the peer may say what it likes; ...
TELL_AGAIN: Final = Seconds(600.0)  # ... after which one more is told


class Machines:
    """Those on which each peer has been met."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._met: dict[bytes, tuple[bytes, ...]] = {}  # by static key, the last one last; of peers that connected
        self._tellings: dict[bytes, Bucket] = {}  # left for each of those

    def met(self, now: Instant, peer: KnownPeer, machine: bytes) -> KnownPeer:
        """The peer is on this machine now: `peer` with it, to be remembered.  A person is told of one that is new."""
        known = tuple(dict.fromkeys((*peer.machines, *self._met.get(peer.static, ()))))
        if not machine:
            return replace(peer, machines=known)
        is_new = bool(known) and machine not in known
        if is_new and self._tellings.setdefault(peer.static, Bucket(MAX_TOLD, 1 / TELL_AGAIN)).take(now):
            text = (
                f"{peer.name} is on another machine than before, with the same key: it has moved, or there is a copy of its home."
            )
            self._context.emit(Troubled(problem=Problem.OTHER_MACHINE, text=text))
        known = (*(each for each in known if each != machine), machine)[-MAX_MACHINES:]
        self._met[peer.static] = known
        return replace(peer, machines=known)


class _Question(NamedTuple):
    client: Client
    channel: bytes
    asked: KeyQuestion


class Twins(Flow):
    """The search for others that listen with our key."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._rooms: dict[str, bytes] = {}  # by server: the one where we dial
        self._questions: list[_Question] = []
        self._is_told = False
        #: Stands for ourselves among the peers that are listened for.
        self.me = KnownPeer(
            name="", static=context.static_public, psk=twin_psk(context.static.private_bytes_raw()), server=None
        )  # fmt: skip

    @property
    def are_sought(self) -> bool:
        """Not where nothing tells machines apart."""
        return bool(self._context.place)

    def room(self, day: int) -> bytes:
        return room_id(self.me.psk, day)

    def seek(self, now: Instant, server: str, client: Client, day: int) -> None:
        """Meet whoever listens there, now or later; call it when the room of the day is listened in."""
        room = self.room(day)
        if self._rooms.get(server) != room and not self._is_told:
            if server in self._rooms:
                client.leave(now, [self._rooms[server]], self)
            self._rooms[server] = room
            client.dial(now, [room], self, is_spare=True)

    def on_server(self, now: Instant, client: Client, event: Told | ChannelMoved) -> None:
        match event:
            case Told(Introduced(room=room), channel=RelayChannel() as channel) if room == self._rooms.get(
                self._context.clients.name_of(client)
            ):
                if self._is_told or len(self._questions) >= MAX_QUESTIONS:
                    client.leave_channel(now, channel.channel)
                    return
                asked = KeyQuestion(self._context, self.me, channel.path_key, now, self.met)
                self._questions.append(_Question(client, channel.channel, asked))
            case _:
                pass

    def met(self, params: Params) -> None:
        """Somebody has shown that it has our key."""
        if self._is_told or not params.machine or params.machine == self._context.place:
            return
        self._is_told = True
        text = (
            "Another machine runs with this home's identity (a copy of PTUNNEL_HOME?): peers meet the one or the other. "
            "Give one of the two a home of its own, and pair it anew."
        )
        self._context.emit(Troubled(problem=Problem.OTHER_MACHINE, text=text))

    def on_time(self, now: Instant) -> None:
        for question in list(self._questions):
            question.asked.on_time(now)
            if question.asked.is_over:
                question.asked.close(now)
                question.client.leave_channel(now, question.channel)
                self._questions.remove(question)

    def poll_timeout(self) -> Instant | None:
        return earliest(*(question.asked.poll_timeout() for question in self._questions))
