"""How a server's clients are led to each other: codes and their mailboxes, rooms, and the relay channels that come of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, assert_never

from tunnel.core.trace import Drops
from tunnel.rendezvous import messages
from tunnel.rendezvous.codes import Codes, Refusal
from tunnel.rendezvous.limits import ServerConfig
from tunnel.rendezvous.messages import GoneKind, GoneReason, RefusalCode, Role
from tunnel.rendezvous.numbers import Numbers
from tunnel.rendezvous.pushes import OF_CHANNELS, Pushes
from tunnel.rendezvous.registry import NO_SET, Dial, Mailbox, Registry, Session
from tunnel.rendezvous.relay import Channel, Moved, Relay
from tunnel.units import Address, Instant, Seconds, SocketId

if TYPE_CHECKING:
    from tunnel.rendezvous.fleet.fleet import Fleet

OWNER_SIDE: Final = 0  # of a channel: whoever allocated or listened
UNMET_INTERVAL: Final = Seconds(30.0)  # between words to one listener that dialers could not be led to it
RETRY_FULL: Final = 30  # seconds after which who found no room asks again


class Introductions:
    """Answers what a session asks for; pushes to those whom it concerns."""

    def __init__(
        self,
        config: ServerConfig,
        *,
        registry: Registry,
        relay: Relay,
        pushes: Pushes,
        codes: Codes,
        numbers: Numbers,
        instance: int,
        drops: Drops,
        counts: Counter[str],
        note: Callable[..., None],
        fleet: Fleet | None = None,
    ) -> None:
        """`note(now, name, **data)` counts what was done, and lets a listener know; `counts` is where it counts."""
        self._config = config
        self._registry = registry
        self._relay = relay
        self._pushes = pushes
        self._push = pushes.push
        self._codes = codes
        self._numbers = numbers
        self._instance = instance
        self._drops = drops
        self._counts = counts
        self._note = note
        self._fleet = fleet

    def answer(
        self, now: Instant, session: Session, message: messages.RequestMessage, cookie: bytes
    ) -> messages.ResponseMessage | Refusal:
        """To whatever a session may ask for.  What comes most often is looked for first."""
        match message:
            case messages.Join():
                return self._on_join(now, session, message)
            case messages.Leave():
                return self._on_leave(now, session, message)
            case messages.Allocate():
                return self._on_allocate(now, session, message)
            case messages.Release(nameplate=number):
                nameplate = self._registry.nameplates.get(number)
                if nameplate is not None and nameplate.owner is session:
                    self._registry.remove_nameplate(number)
                return messages.Done()
            case messages.Claim():
                return self._on_claim(now, session, message)
            case messages.Post():
                return self._on_post(now, session, message)
            case messages.Rebind() | messages.Restore():
                return self._on_channel(now, session, message, cookie)
            case messages.Follow():
                if self._fleet is None:
                    return messages.Servers(epoch=0, index=0, servers=())
                return self._fleet.follow(now, session)
            case messages.Hello():  # peek_request sees it, unless it is written as no client does
                return messages.Done()
            case messages.Refresh() | messages.Goodbye():
                raise AssertionError(f"the server answers a {type(message).__name__} itself")
            case _:
                assert_never(message)

    def _is_owner_host(self, session: Session) -> bool:
        return self._config.own_hosts is None or session.remote.host in self._config.own_hosts

    def _may_wait(self, session: Session) -> bool:
        """Whether others may be led to it: it is the server's own, or (in a room of many) has been led to an own one before."""
        return self._is_owner_host(session) or (self._config.has_guests and session.is_guest)

    def _on_allocate(self, now: Instant, session: Session, message: messages.Allocate) -> messages.ResponseMessage | Refusal:
        if not self._is_owner_host(session):
            return Refusal(RefusalCode.DENIED, "this server serves the codes of its own machine only")
        if message.wanted:
            refusal = self._codes.want(now, session, message.wanted, message.ticket, self._instance)
            if refusal is not None:
                return refusal
        number = self._registry.allocate(now, session, message.wanted, message.claims)
        if number is None:
            return Refusal(RefusalCode.FULL, "no more codes for now, or not for this address", RETRY_FULL)
        self._note(now, "allocated", remote=session.remote)
        if self._fleet is None:
            ticket = self._numbers.ticket(self._instance, session.id, number)
        else:
            ticket = self._fleet.codes.allocated(now, number, message.ticket)
        lifetime = self._registry.nameplates[number].expires_at - now
        return messages.Allocated(nameplate=number, expires_s=int(lifetime), ticket=ticket)

    def _on_claim(self, now: Instant, session: Session, message: messages.Claim) -> messages.ResponseMessage | Refusal:
        if not self._relay.may_open(session.keys):  # before the number is looked at, as what follows would tell that it is there
            return Refusal(RefusalCode.QUOTA, "no more relay channels for this address", 30)
        nameplate = self._codes.claim(now, session, message)
        if isinstance(nameplate, Refusal):
            self._counts["claim_refused"] += 1
            return nameplate
        owner = nameplate.owner
        channel = self._open_channel(now, owner, session)
        if channel is None:
            return Refusal(RefusalCode.QUOTA, "no more relay channels for these addresses", 30)
        mailbox = self._registry.open_mailbox(now, owner, session, channel.id, message.nameplate)
        self._note(now, "claimed", pair=channel.number, remote=session.remote, owner=owner.remote)
        self._push(
            now,
            owner,
            messages.ClaimReceived(message.nameplate, mailbox.id, message.body, channel.id, channel.token, 0),
        )
        return messages.ClaimAccepted(mailbox.id, channel.id, channel.token, 1)

    def _on_post(self, now: Instant, session: Session, message: messages.Post) -> messages.ResponseMessage | Refusal:
        mailbox = self._registry.mailboxes.get(message.mailbox)
        if mailbox is None or session not in mailbox.sides:
            return Refusal(RefusalCode.UNKNOWN_MAILBOX, "this mailbox is gone")
        if mailbox.posts >= self._config.posts_per_mailbox:
            return Refusal(RefusalCode.FULL, "this mailbox is full")
        mailbox.posts += 1
        self._push(now, _other(mailbox, session), messages.Posted(mailbox.id, message.body))
        return messages.Done()

    def _on_join(self, now: Instant, session: Session, message: messages.Join) -> messages.ResponseMessage | Refusal:
        granted = 0
        is_full = False
        if session.knows_loss:
            session.has_lost = session.knows_loss = False
        if message.role == Role.LISTEN:
            if not self._may_wait(session):
                return Refusal(RefusalCode.DENIED, "only the machine of this server may wait here")
            for index, name in enumerate(message.rooms):
                is_new = name not in session.listening
                if not self._registry.listen(session, name):
                    continue
                granted |= 1 << index
                if is_new:
                    for dial in self._registry.rooms[name].dialers:
                        self._introduce(now, name, session, dial)
        else:
            dial = Dial(session, message.rooms)
            for index, name in enumerate(message.rooms):
                listeners = self._registry.dial(dial, name)
                if listeners is None:
                    continue
                granted |= 1 << index
                for listener in listeners:
                    is_full |= not self._introduce(now, name, listener, dial)
        if is_full:
            return Refusal(RefusalCode.QUOTA, "no more relay channels for these addresses", 30)
        return messages.Done(granted)

    def _introduce(self, now: Instant, room: bytes, listener: Session, dial: Dial) -> bool:
        """Each dial meets each listener once, in whichever of its rooms comes first.  False: a quota forbids it."""
        dialer = dial.session
        if listener is dialer or listener.id in dial.introduced:
            return True
        channel = self._open_channel(now, listener, dialer, room)
        if channel is None:
            if listener.unmet_at is None or now - listener.unmet_at >= UNMET_INTERVAL:
                listener.unmet_at = now
                self._pushes.once(listener, messages.Unmet(room, int(RefusalCode.QUOTA)))
            return False
        dial.introduced.add(listener.id)
        self._note(now, "introduced", pair=channel.number, remote=dialer.remote, owner=listener.remote)
        self._push(now, listener, messages.Introduced(room, channel.id, channel.token, 0))
        self._push(now, dialer, messages.Introduced(room, channel.id, channel.token, 1))
        return True

    def _on_leave(self, now: Instant, session: Session, message: messages.Leave) -> messages.ResponseMessage:
        self._registry.leave(session, set(message.rooms))
        for identifier in message.channels:
            channel = self._relay.get(identifier)
            if channel is not None and session.id in (channel.sides[0].session, channel.sides[1].session):
                self.end_channel(now, channel, GoneReason.LEFT, leaver=session)
        for identifier in message.mailboxes:
            mailbox = self._registry.mailboxes.get(identifier)
            if mailbox is not None and session in mailbox.sides:
                self._end_mailbox(now, mailbox, GoneReason.LEFT, leaver=session)
        return messages.Done()

    # channels

    def follow(self, now: Instant, session: Session, socket_id: SocketId, remote: Address) -> None:
        """A session speaks from elsewhere: channels it was told of in vain move with it, the others wait for its Rebind."""
        if session.remote == remote and session.socket_id == socket_id:
            return
        for push in session.pushes.values():
            if isinstance(push.message, OF_CHANNELS):
                self._relay.follow(now, push.message.channel, push.message.side, socket_id, remote, session.id)

    def _open_channel(self, now: Instant, first: Session, second: Session, room: bytes = b"") -> Channel | None:
        """Asked for by `second`, who pays for it.  In a full room one of its own makes way that came to nothing."""
        if room and self._relay.is_room_full(room):
            spare = self._relay.spare(now, room, second.id, second.channels)
            if spare is not None:
                self.end_channel(now, spare, GoneReason.LEFT)
        place = (first.socket_id, first.remote, first.id)
        channel = self._relay.open(now, place, (second.socket_id, second.remote, second.id), room)
        if channel is not None:
            for each in (first, second):
                if each.channels is NO_SET:
                    each.channels = set()
                each.channels.add(channel.id)
            second.is_guest = second.is_guest or self._is_owner_host(first)
        return channel

    def _on_channel(
        self, now: Instant, session: Session, message: messages.Rebind | messages.Restore, cookie: bytes
    ) -> messages.ResponseMessage | Refusal:
        """Rebind and Restore: one side of a channel speaks from here now."""
        if message.side == OWNER_SIDE and not self._may_wait(session):
            return Refusal(RefusalCode.DENIED, "this server relays for its own machine only")
        before = self._relay.get(message.channel)
        former = before.sides[message.side].session if before is not None else b""
        place = (session.socket_id, session.remote, session.id)
        if isinstance(message, messages.Rebind):
            done = self._relay.rebind(now, message.channel, message.side, message.counter, message.mac, cookie, *place)
        else:
            done = self._relay.restore(now, message.channel, message.side, message.token, *place)
        match done:
            case Moved.UNKNOWN:
                return Refusal(RefusalCode.UNKNOWN_CHANNEL, "this channel is not known here")
            case Moved.QUOTA:
                return Refusal(RefusalCode.QUOTA, "no more relay channels for this address", 30)
            case Moved.WRONG:
                self._drops["server_rebind_mac"] += 1
                return Refusal(RefusalCode.BAD_MAC, "wrong token or an old counter")
            case Moved.DONE:
                pass
        if former != session.id and former in self._registry.sessions:
            self._registry.sessions[former].channels.discard(message.channel)
        session.own("channels").add(message.channel)
        if isinstance(message, messages.Restore) and (channel := self._relay.get(message.channel)) is not None:
            self._note(now, "restored", pair=channel.number, remote=session.remote)
        return messages.Done()

    def end_channel(self, now: Instant, channel: Channel, reason: GoneReason, *, leaver: Session | None = None) -> None:
        if not self._relay.close(channel):
            return  # all who are concerned have been told
        lasted, carried = now - channel.opened_at, channel.relayed_bytes
        self._note(now, "pair_ended", pair=channel.number, seconds=lasted, relayed=carried, reason=reason)
        for identifier in {channel.sides[0].session, channel.sides[1].session}:
            session = self._registry.sessions.get(identifier)
            if session is None:
                continue
            session.channels.discard(channel.id)
            if session.pushes:
                self._pushes.forget_channel(session, channel.id)
            if session is not leaver:
                self._push(now, session, messages.Gone(GoneKind.CHANNEL, channel.id, reason))

    def _end_mailbox(self, now: Instant, mailbox: Mailbox, reason: GoneReason, *, leaver: Session | None = None) -> None:
        self._registry.remove_mailbox(mailbox)
        for session in mailbox.sides:
            if session is not leaver:
                self._push(now, session, messages.Gone(GoneKind.MAILBOX, mailbox.id, reason))

    def end_session(self, now: Instant, session: Session, reason: GoneReason) -> None:
        self._registry.remove_session(session)
        self._note(now, "left", remote=session.remote, reason=reason, clients=self._registry.session_shares.used)
        for identifier in list(session.mailboxes):
            self._end_mailbox(now, self._registry.mailboxes[identifier], reason, leaver=session)
        for identifier in list(session.channels):
            channel = self._relay.get(identifier)
            if channel is not None:
                self.end_channel(now, channel, reason, leaver=session)
        session.pushes.clear()

    def on_deaf_owner(self, now: Instant, message: messages.ClaimReceived) -> None:
        """The owner of a code never heard of a claim: the claimer is told, and the code is whole again."""
        mailbox = self._registry.mailboxes.get(message.mailbox)
        if mailbox is None:
            return
        nameplate = self._registry.nameplates.get(message.nameplate)
        if nameplate is not None and mailbox.id in nameplate.claims:
            nameplate.left += 1
        channel = self._relay.get(mailbox.channel)
        self._end_mailbox(now, mailbox, GoneReason.EXPIRED, leaver=mailbox.sides[0])
        if channel is not None:
            self.end_channel(now, channel, GoneReason.EXPIRED, leaver=mailbox.sides[0])


def _other(mailbox: Mailbox, session: Session) -> Session:
    return mailbox.sides[1] if mailbox.sides[0] is session else mailbox.sides[0]
