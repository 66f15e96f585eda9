"""A peer's side of the rendezvous: what it asks one server for, and what comes of it.

All that the owner asked for is remembered (standing.py), so that after a restart of the server everything is registered again
without being asked.  What the server says comes back as it was said, with the one who hears it: whoever asked.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec

from tunnel.core.timers import earliest
from tunnel.errors import MalformedPacket
from tunnel.rendezvous import messages
from tunnel.rendezvous.channels import POST_LIFETIME
from tunnel.rendezvous.events import Hearer, RelayChannel, Told
from tunnel.rendezvous.following import MAX_MET, Following
from tunnel.rendezvous.messages import GoneKind, RefusalCode, Role
from tunnel.rendezvous.seeking import ELSEWHERE, Searches
from tunnel.rendezvous.standing import ChannelBook, Hearers, OwnNumber, Standing, joins
from tunnel.units import Address, Buffer, Instant, Seconds, SocketId

if TYPE_CHECKING:
    from collections.abc import Iterable
    from random import Random

    from tunnel.rendezvous.addresses import ServerAddress
    from tunnel.rendezvous.requests import PendingRequest

ABSENT_AFTER: Final = Seconds(3.0)  # of nobody in a room: a server leads together who is there within a round trip or two
RETRY_AFTER_FULL: Final = 30  # seconds before asking again for what was full, at least; the server may say more
MAX_MAILBOXES: Final = 64  # at other servers of a fleet: claims of ours that are under way
SEEN_PUSHES: Final = 256  # push ids remembered, so that repeats are acknowledged but not told again

_OF_THE_MOMENT: Final = (messages.Claim, messages.Post)  # that say nothing about room for what lasts
_ADVICE: Final = {
    False: "it serves only whom its operator lists; set PTUNNEL_ACCESS_TOKEN to the token that you were given",
    True: "it does not know the token in PTUNNEL_ACCESS_TOKEN or config.toml; ask its operator for it",
}


class Client(Following):
    """Talks to one server.  Never blocks, never gives up; see the verbs, then events.py for what comes back."""

    def __init__(
        self,
        *,
        servers: list[tuple[SocketId, Address]],
        now: Instant,
        rng: Random,
        entropy: Callable[[int], bytes],
        access_token: bytes = b"",
        has_fallback: bool = False,
        former: Iterable[bytes] = (),
    ) -> None:
        self._seen: OrderedDict[int, None] = OrderedDict()
        self._standing = Standing()
        self._searches = Searches()
        self._channels = ChannelBook()
        self._led, self._listed, self._met = {}, set(), deque(maxlen=MAX_MET)
        self._mailboxes: OrderedDict[bytes, ServerAddress] = OrderedDict()  # where they are, if not at the primary server
        self._rejoin_at: Instant | None = None
        super().__init__(
            servers=servers, now=now, rng=rng, entropy=entropy, access_token=access_token, has_fallback=has_fallback,
            former=former,
        )  # fmt: skip

    @property
    def absent_after(self) -> Seconds:
        """Of nobody in a room, before a person is told."""
        return ABSENT_AFTER

    # verbs; `hearer` hears what comes of it

    def allocate(self, now: Instant, claims: int = 1, hearer: Hearer | None = None) -> None:
        """Ask for a nameplate that so many may claim.  Answer: Allocated or Refused; then ClaimReceived."""
        self._request(now, messages.Allocate(claims=claims), hearer=hearer)

    def renew(self, now: Instant, nameplate: int) -> None:
        """Keep one that many may claim from expiring.  No answer, but Refused when it is gone."""
        own = self._standing.nameplates.get(nameplate)
        if own is not None:
            self._request(now, messages.Allocate(nameplate, *own))

    def release(self, now: Instant, nameplate: int) -> None:
        """The code is over; a claim that already came keeps its mailbox and channel."""
        if self._standing.nameplates.pop(nameplate, None) is not None:
            self._requests.remove_where(lambda r: isinstance(r.message, messages.Allocate) and r.message.wanted == nameplate)
            self._request(now, messages.Release(nameplate), lifetime=POST_LIFETIME)

    def claim(self, now: Instant, nameplate: int, body: bytes, hearer: Hearer | None = None) -> None:
        """Meet the owner of a nameplate, at whichever server of the name knows it.

        Answer: ClaimAccepted, then Posted; or Refused.
        """
        self._request(now, messages.Claim(nameplate, body, may_move=True), hearer=hearer)

    def post(self, now: Instant, mailbox: bytes, body: bytes) -> None:
        """Send through a mailbox.  Answer only when refused."""
        self._request(now, messages.Post(mailbox, body), lifetime=POST_LIFETIME, home=self._mailboxes.get(mailbox))

    def listen(self, now: Instant, rooms: list[bytes], hearer: Hearer | None = None, *, is_spare: bool = False) -> None:
        """Wait in these rooms until leave(), at each of several servers.  Each dialer comes as Introduced with side 0.

        `is_spare`: for whoever does not go by today's rooms; here they cost nothing.
        """
        fresh = [room for room in dict.fromkeys(rooms) if room not in self._standing.listening]
        self._standing.listening.update(dict.fromkeys(fresh, hearer))
        self._forget_leaving(now, fresh)
        self._join(now, joins(Role.LISTEN, fresh), everywhere=True)
        self._hold(now)

    def dial(
        self,
        now: Instant,
        rooms: list[bytes],
        hearer: Hearer | None = None,
        *,
        is_spare: bool = False,
        is_wide: bool = False,
    ) -> None:
        """Meet each listener of these rooms (all of one peer) once, now or when it comes: Introduced with side 1.

        Dialing again meets them again.  Leave the rooms when the peer has answered.  `is_spare`: see listen.
        `is_wide`: at each of several servers, as nobody was met at the one that is in use.
        """
        group = tuple(rooms[: messages.MAX_ROOMS])
        self._standing.dial(group, hearer, is_wide=is_wide)
        self._forget_leaving(now, group)
        self._join(now, joins(Role.DIAL, group), everywhere=is_wide)
        self._hold(now)

    def leave(self, now: Instant, rooms: list[bytes], hearer: Hearer | None = None) -> None:
        """Neither listen nor dial there any more: `hearer` does not, or nobody does.  Whoever else waits there goes on."""
        known = [room for room in dict.fromkeys(rooms) if self._standing.knows_room(room)]
        known = [room for room in known if self._standing.forget_room(room, hearer)]
        gone = set(known)
        self._requests.remove_where(lambda r: isinstance(r.message, messages.Join) and gone.issuperset(r.message.rooms))
        for start in range(0, len(known), messages.MAX_ROOMS):
            part = tuple(known[start : start + messages.MAX_ROOMS])
            for home in self._places():
                self._request(now, messages.Leave(rooms=part), lifetime=POST_LIFETIME, home=home)
        self._forget_led(now, known)
        self._hold(now)

    def waits_in(self, room: bytes) -> bool:
        """Whether we listen there, and the server has not refused it."""
        return self._standing.waits_in(room)

    def leave_mailbox(self, now: Instant, mailbox: bytes) -> None:
        home = self._mailboxes.pop(mailbox, None)
        self._request(now, messages.Leave(mailboxes=(mailbox,)), lifetime=POST_LIFETIME, home=home)

    # inputs and time

    def handle_datagram(self, now: Instant, socket_id: SocketId, remote: Address, data: Buffer) -> None:
        """One datagram whose first byte is RESPONSE or PUSH.  Rubbish is counted, nothing is raised."""
        if self._is_closed:
            return
        try:
            if data[0] == messages.RESPONSE:
                self._on_response(now, socket_id, remote, messages.decode_response(data))
            elif data[0] == messages.PUSH:
                self._on_push(now, socket_id, remote, messages.decode_push(data))
            else:
                self.drops["rendezvous_type"] += 1
        except (MalformedPacket, IndexError):
            self.drops["rendezvous_malformed"] += 1
        self._look_for_fallback(now)

    def handle_timeout(self, now: Instant) -> None:
        if self._is_closed:
            return
        if self._rejoin_at is not None and now >= self._rejoin_at:
            self._rejoin_at = None
            self._join(now, self._standing.refused_joins())
        super().handle_timeout(now)
        self._seek(now)
        self._look_for_fallback(now)

    def poll_timeout(self) -> Instant | None:
        return None if self._is_closed else earliest(super().poll_timeout(), self._rejoin_at, self._searches.poll_timeout())

    def _tell(
        self,
        message: messages.ResponseMessage | messages.PushMessage,
        hearers: Hearers,
        *,
        request: messages.RequestMessage | None = None,
        channel: RelayChannel | None = None,
    ) -> None:
        self._events.extend(Told(message, request, channel, hearer) for hearer in hearers or (None,))

    # registrations

    def _join(self, now: Instant, wanted: Iterable[messages.Join], *, everywhere: bool = False) -> None:
        """`everywhere`: at the servers that are held, too."""
        for message in wanted:
            for home in self._places() if everywhere else (None,):
                self._request(now, message, home=home)

    def _forget_leaving(self, now: Instant, rooms: Iterable[bytes]) -> None:
        """A Leave that is still being repeated must not undo the Join that comes after it."""
        wanted = set(rooms)
        for request in self._requests:
            message = request.message
            if isinstance(message, messages.Leave) and not wanted.isdisjoint(message.rooms):
                self._requests.remove(request)
                rest = tuple(room for room in message.rooms if room not in wanted)
                if rest:
                    self._request(now, messages.Leave(rooms=rest), lifetime=POST_LIFETIME, home=request.home)

    def _register(self, now: Instant, home: ServerAddress) -> None:
        home.has_refused = False
        registering = messages.Join | messages.Rebind | messages.Restore
        self._requests.remove_where(lambda r: r.home is home and isinstance(r.message, registering))
        pending = {request.message for request in self._requests if request.home is home}
        if home is self._primary:
            wanted = self._standing.wanted()
        else:
            wanted = self._standing.wanted_elsewhere(self._waits_everywhere, self._led_to(home))
        for message in wanted:
            if message not in pending:
                self._request(now, message, home=home)
        self._rebind_at(now, home)
        home.followed = 0  # it does not know that we follow, if it has forgotten us
        self._on_epoch(now, home, home.epoch)

    @property
    def _waits_everywhere(self) -> bool:
        return self._standing.waits_everywhere and not self._is_fleet

    def _groups_of(self, rooms: set[bytes]) -> list[tuple[bytes, ...]]:
        return self._standing.groups_of(rooms)

    # answers

    def _on_answer(self, now: Instant, home: ServerAddress, request: PendingRequest, message: messages.ResponseMessage) -> None:
        match request.message, message:
            case _, messages.Refused():
                self._on_refused(now, request, message)
            case messages.Allocate() as allocate, messages.Allocated(nameplate=nameplate, ticket=ticket):
                if not allocate.wanted or nameplate in self._standing.nameplates:
                    self._standing.nameplates[nameplate] = OwnNumber(allocate.claims, ticket)
                if not allocate.wanted:
                    self._standing.hear(nameplate, request.hearer)
                    self._tell(message, (request.hearer,), request=allocate)
            case messages.Claim() as claim, messages.ClaimAccepted():
                channel = self._add_channel(home, message, (request.hearer,))
                if home is not self._primary:
                    self._remember_mailbox(message.mailbox, home)
                self._searches.pop(claim.nameplate, None)
                self._forget_led(now, (_key_of(claim),))
                self._hold(now)
                self._standing.hear(message.mailbox, request.hearer)
                self._tell(message, (request.hearer,), request=claim, channel=channel)
            case messages.Join() as join, messages.Done(granted=granted):
                refused = tuple(room for index, room in enumerate(join.rooms) if not granted >> index & 1)
                if refused:
                    full = messages.Refused(RefusalCode.FULL, "the room or the server is full", RETRY_AFTER_FULL)
                    self._refuse_rooms(now, home, messages.Join(join.role, refused), full)
            case messages.Follow(), messages.Servers() as servers:
                self._on_servers(now, home, servers)
            case (messages.Restore() | messages.Rebind()) as back, messages.Done():
                self._on_back(back)
            case _, messages.Done():
                pass
            case _:
                self.drops["rendezvous_answer"] += 1

    def _refuse_rooms(
        self, now: Instant, home: ServerAddress | None, join: messages.Join, refused: messages.Refused
    ) -> None:  # fmt: skip
        if home is not None and home is not self._primary:  # the one in use decides what is told; this one is asked again
            home.has_refused, home.full_until = True, self._after_full(now, refused.retry_after_s)
            return
        self._rejoin_at = self._after_full(now, refused.retry_after_s)
        self._standing.refuse(join, join.rooms)
        self._tell_refused(join, refused, self._standing.hearers_of(join))

    def _after_full(self, now: Instant, told_s: int) -> Instant:
        """When to ask again: not before we are told, and not all at once."""
        return Instant(now + max(RETRY_AFTER_FULL, told_s) * (1.0 + 0.1 * self._rng.random()))

    def _on_refused(self, now: Instant, request: PendingRequest, refused: messages.Refused) -> None:
        home = request.home
        if home is not None and refused.code == RefusalCode.FULL and not isinstance(request.message, _OF_THE_MOMENT):
            home.full_until = self._after_full(now, refused.retry_after_s)
        match request.message:
            case messages.Join() as join:
                self._refuse_rooms(now, home, join, refused)
            case messages.Rebind(channel=identifier, side=side):
                info = self._channels.get(identifier)
                if info is not None and refused.code in (RefusalCode.UNKNOWN_CHANNEL, RefusalCode.BAD_MAC):
                    self._request(now, messages.Restore(identifier, side, info.token), home=home)
            case messages.Restore(channel=identifier):
                self._gone(now, identifier)
            case messages.Release() | messages.Leave():
                pass
            case messages.Claim() as claim if refused.code in ELSEWHERE:
                instance = home.instance if home is not None else None
                led = self._credible(home, refused.at) if home is not None else []
                if led:
                    self._lead(now, _key_of(claim), led)
                self._searches.refused(now, claim, request.hearer, instance, refused, led)
                self._seek(now)
            case messages.Allocate(wanted=wanted) as allocate if wanted:
                self._standing.nameplates.pop(wanted, None)
                self._tell_refused(allocate, refused, self._standing.hearers_of(allocate))
            case message:
                hearers = (request.hearer,) if request.hearer is not None else self._standing.hearers_of(message)
                self._tell_refused(message, refused, hearers)

    def _tell_refused(self, request: messages.RequestMessage, refused: messages.Refused, hearers: Hearers) -> None:
        if refused.text == messages.NOT_LISTED:
            refused = msgspec.structs.replace(refused, text=_ADVICE[bool(self._access_token)])
        self._tell(refused, hearers, request=request)

    def _on_greeted(self, now: Instant) -> None:
        self._seek(now)

    def _seek(self, now: Instant) -> None:
        """Ask the next server of this name for codes that the others do not know.  We move there: that is where the peer is."""
        for nameplate, search in list(self._searches.items()):
            goes_back = search.goes_back(now, self._homes)
            if search.is_asking and not goes_back:
                continue
            may_move = bool(search.led) or not any(self._channels)  # else what stands would be given up for what is looked for
            home = search.next(self._homes) if may_move and not search.is_asking else None
            if home is not None:
                search.ask(now)
                if not search.led:
                    self._set_primary(now, home)
                self._request(now, search.claim, hearer=search.hearer, home=home)
            elif goes_back and self._primary is not None:
                self._requests.remove_where(lambda request, claim=search.claim: request.message is claim)  # type: ignore[misc]
                search.begin_again()
                self._request(now, search.claim, hearer=search.hearer, home=self._primary)
            elif not may_move or search.is_over(now, self._homes):
                del self._searches[nameplate]
                self._forget_led(now, (_key_of(search.claim),))
                self._tell_refused(search.claim, search.refusal, (search.hearer,))

    # pushes

    def _on_push(self, now: Instant, socket_id: SocketId, remote: Address, push: messages.Push) -> None:
        home = self._home_at(socket_id, remote)
        message = push.message
        if home is None:
            self.drops["rendezvous_source"] += 1
            return
        if push.session != self._session:
            if push.session == bytes(messages.SESSION_SIZE) and isinstance(message, messages.Gone):
                self._on_hint(now, message)
            else:
                self.drops["rendezvous_session"] += 1
            return
        self._out.append((socket_id, remote, messages.encode_push_ack(self._session, push.push_id)))
        if push.push_id in self._seen:
            return
        self._seen[push.push_id] = None
        if len(self._seen) > SEEN_PUSHES:
            self._seen.popitem(last=False)
        hearers = self._standing.hearers_of(message)
        match message:
            case messages.Introduced() | messages.ClaimReceived():
                if self._channels.is_full or not self._is_awaited(message):
                    self.drops["rendezvous_channel"] += 1  # what others open pushes out nothing that is in use
                    self._request(now, messages.Leave(channels=(message.channel,)), lifetime=POST_LIFETIME, home=home)
                    return
                if isinstance(message, messages.ClaimReceived):
                    self._standing.hear(message.mailbox, *hearers)
                elif self._standing.refused:  # a server that lets nobody wait but its guests: we may be one now
                    self._rejoin_at = now
                self._tell(message, hearers, channel=self._add_channel(home, message, hearers))
                self._hold(now)
            case messages.Elsewhere(room=room, at=at):
                if room in self._standing.dialing:
                    self._lead(now, room, self._credible(home, at))
            case messages.MoveOn():
                self._move_on(now, home, message)
            case messages.Gone(kind=GoneKind.CHANNEL, identifier=identifier):
                info = self._channels.get(identifier)
                if info is not None and self._is_there(info, home):  # else it is at another server by now
                    self._end_channel(now, message)
            case messages.Posted(mailbox=mailbox) if not self._standing.hears(mailbox):
                # It may have overtaken the answer to one of these.
                self._tell(message, tuple(each.hearer for each in self._requests if isinstance(each.message, messages.Claim)))
            case messages.Bye():
                self._say_goodbye_to(now, home, message)
            case _:
                self._tell(message, hearers)

    def _remember_mailbox(self, mailbox: bytes, home: ServerAddress) -> None:
        self._mailboxes[mailbox] = home
        if len(self._mailboxes) > MAX_MAILBOXES:
            self._mailboxes.popitem(last=False)

    def _is_awaited(self, message: messages.Introduced | messages.ClaimReceived) -> bool:
        return isinstance(message, messages.ClaimReceived) or self._standing.knows_room(message.room)


def _key_of(claim: messages.Claim) -> bytes:
    """By which it is known where the client was led for it."""
    return b"claim" + claim.nameplate.to_bytes(4, "big")
