"""The relay: sealed datagrams cross from one side of a pair to the other, a whole run at a time, untouched.

Each datagram begins with its channel's 8 bytes, equal in both directions; which side sent it is told by its source address.
The hot path is forward(): one look-up and one Transmit for a run of datagrams of one channel, with no copy.

A channel is charged to whoever asked for it, the side that dialed or claimed.  A listener cannot choose who dials it, so what
others open to it takes nothing from its share.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from enum import Enum, auto
from typing import Final, TypeVar

from tunnel.core.parts import Parts
from tunnel.core.prefixes import Prefixes, Shares, around, prefixes
from tunnel.core.trace import Drops
from tunnel.rendezvous.limits import ServerConfig
from tunnel.rendezvous.messages import TOKEN_SIZE, rebind_mac
from tunnel.rendezvous.pacing import ADDRESS_TIMES, PREFIX_TIMES, Ceiling
from tunnel.units import CHANNEL_BYTE, CHANNEL_SIZE, Address, Instant, SocketId, Transmit

Key = TypeVar("Key")
Entry = TypeVar("Entry")

MIN_RELAYED: Final = CHANNEL_SIZE + 1  # bytes; less carries nothing
MAX_AT_ONCE: Final = 1 << 20  # entries looked at in one go, by default: all
PAYER: Final = 1  # the side that asked for the channel: it dialed or claimed
NOWHERE: Final = SocketId(-1)


class Moved(Enum):
    """The result of a side's wish to move to another address."""

    DONE = auto()
    UNKNOWN = auto()  # no such channel
    WRONG = auto()  # another token, or an old counter
    QUOTA = auto()  # its new address has no share left


class ChannelSide:
    """Where one of the two is, and when it last relayed something.  `remote` is None before it has shown up."""

    __slots__ = ("counter", "keys", "remote", "seen_at", "session", "socket_id")

    def __init__(
        self, now: Instant, socket: SocketId = NOWHERE, remote: Address | None = None, session: bytes = b"", keys: Prefixes = ()
    ) -> None:  # fmt: skip
        self.socket_id = socket
        self.remote = remote
        self.keys = keys
        self.session = session
        self.counter = 0
        self.seen_at = now


NOBODY: Final = ChannelSide(Instant(0.0))  # has no address


class PairAccount:
    """Bytes that two addresses may still relay.  Refills evenly; looked at only when it runs low."""

    __slots__ = ("channels", "due", "key", "keys", "refilled_at", "remaining")

    def __init__(self, now: Instant, remaining: int, key: tuple[str, str], keys: Prefixes) -> None:
        self.key = key
        self.remaining = remaining
        self.refilled_at = now
        self.keys = keys  # to whom it is charged
        self.channels = 0
        self.due = now  # when the ceiling lets more through


class Channel:
    __slots__ = ("account", "account_key", "id", "keys", "number", "opened_at", "relayed_bytes", "room", "sides", "token")

    def __init__(
        self, identifier: bytes, token: bytes, now: Instant, keys: Prefixes, sides: tuple[ChannelSide, ChannelSide], room: bytes
    ) -> None:  # fmt: skip
        self.id = identifier
        self.token = token
        self.number = 0  # by which a log calls it
        self.relayed_bytes = 0
        self.opened_at = now
        self.keys = keys  # to whom it is charged
        self.room = room  # that led to it; empty after a code, or after a restart
        self.sides = sides
        self.account: PairAccount | None = None
        self.account_key = ("", "")

    @property
    def is_half_open(self) -> bool:
        """Restored by one side, of which the other has not come."""
        return self.sides[0].remote is None or self.sides[1].remote is None


class Relay:
    """All channels of a server, within the limits of its configuration."""

    def __init__(self, config: ServerConfig, entropy: Callable[[int], bytes]) -> None:
        self._config = config
        self._entropy = entropy
        self._channels: Parts[Channel] = Parts()
        self._in_room: Parts[int] = Parts()
        self._accounts: dict[tuple[str, str], PairAccount] = {}
        self.shares = Shares(total=config.max_channels, each=config.channels_per_address)
        self.account_shares = Shares(total=config.max_pairs, each=config.pairs_per_address)
        self.ceiling = Ceiling(config)
        self._due: dict[str, Instant] = {}  # when the ceiling lets more through, by prefix of the sender
        self._latest: PairAccount | None = None  # that relayed something
        self.drops = Drops()
        self._opened = 0  # channels, ever
        self.relayed_bytes = 0
        self.relayed_bursts = 0
        self._unseen: list[bytes] = []
        self._unseen_accounts: list[tuple[str, str]] = []
        self.exhausted: list[Channel] = []  # pairs that ran out of bytes since the owner last looked

    def __len__(self) -> int:
        return len(self._channels)

    def __iter__(self) -> Iterator[Channel]:
        return iter(list(self._channels.values()))

    def get(self, identifier: bytes) -> Channel | None:
        return self._channels.get(identifier)

    # the hot path

    def forward(
        self,
        now: Instant,
        socket_id: SocketId,
        remote: Address,
        buffer: memoryview,
        start: int,
        stride: int,
        ecn: int,
        out: list[Transmit],
        strangers: list[tuple[bytes, int]],
    ) -> int:
        """Pass on the datagrams from `start` as long as they are relayed ones; returns where that ends.

        Appends one Transmit for each run of one channel, whose buffer is a view of `buffer`.  What belongs to no channel of
        this sender goes to `strangers` (identifier, length), once a run.
        """
        length = len(buffer)
        try_whole = True
        while start < length and buffer[start] >= CHANNEL_BYTE:
            head = bytes(buffer[start : start + CHANNEL_SIZE])
            end = 0
            if try_whole:
                end = _whole_run(buffer, start, stride, head)
                try_whole = False
            if not end:
                end = start + stride
                while end + CHANNEL_SIZE < length and buffer[end : end + CHANNEL_SIZE] == head:
                    end += stride
                end = min(end, length)
            channel = self._channels.of(head).get(head)
            if channel is not None:
                first, second = channel.sides
                if first.remote == remote and first.socket_id == socket_id:
                    source, target = first, second
                elif second.remote == remote and second.socket_id == socket_id:
                    source, target = second, first
                else:
                    channel = None
            if channel is None:
                self.drops["relay_stranger"] += 1
                strangers.append((head, min(stride, end - start)))
                start = end
                continue
            source.seen_at = now
            account = channel.account
            if target.remote is None or account is None:
                self.drops["relay_half_open"] += 1
            elif end - start < MIN_RELAYED:
                self.drops["relay_runt"] += 1
            elif account.remaining < end - start and not self._refill(now, account, end - start):
                self.drops["relay_quota"] += 1
                self.exhausted.append(channel)
            elif self.ceiling.is_low and not self._is_due(now, account, remote.host, end - start):
                self.drops["relay_rate"] += 1
            else:
                if account is not self._latest:
                    self._latest = account
                    self.ceiling.others += 1
                account.remaining -= end - start
                channel.relayed_bytes += end - start
                self.relayed_bytes += end - start
                self.relayed_bursts += 1
                segment = stride if end - start > stride else end - start
                out.append(Transmit(target.socket_id, target.remote, segment, buffer[start:end], None, ecn))
            start = end
        return start

    def forward_one(self, now: Instant, socket_id: SocketId, remote: Address, datagram: memoryview) -> ChannelSide | None:
        """Where one datagram goes that came alone, as it is: forward() without what only a run of them needs.

        NOBODY: it is lost.  None: it is not so simple, ask forward().
        """
        head = bytes(datagram[:CHANNEL_SIZE])
        channel = self._channels.parts[head[-1]].get(head)
        if channel is None:
            return None
        source, target = channel.sides
        if source.remote != remote or source.socket_id != socket_id:
            source, target = target, source
            if source.remote != remote or source.socket_id != socket_id:
                return None
        account, size = channel.account, len(datagram)
        if target.remote is None or account is None or size < MIN_RELAYED or account.remaining < size:
            return None
        source.seen_at = now
        if self.ceiling.is_low and not self._is_due(now, account, remote.host, size):
            self.drops["relay_rate"] += 1
            return NOBODY
        if account is not self._latest:
            self._latest = account
            self.ceiling.others += 1
        account.remaining -= size
        channel.relayed_bytes += size
        self.relayed_bytes += size
        self.relayed_bursts += 1
        return target

    def _is_due(self, now: Instant, account: PairAccount, sender: str, size: int) -> bool:
        """Whether the ceiling lets that through: of the pair, and of all that comes from around its sender."""
        due = self.ceiling.admits(now, account.due, size)
        if due is None:
            return False
        wider: dict[str, Instant] = {}
        for level, key in enumerate(around(sender)):
            after = self.ceiling.admits(now, self._due.get(key, now), size, PREFIX_TIMES if level else ADDRESS_TIMES)
            if after is None:
                return False
            wider[key] = after
        account.due = due
        self._due.update(wider)
        return True

    def _refill(self, now: Instant, account: PairAccount, wanted: int) -> bool:
        config = self._config
        earned = int((now - account.refilled_at) * config.pair_bytes / config.pair_bytes_period)
        if earned > 0:
            account.remaining = min(config.pair_bytes, account.remaining + earned)
            account.refilled_at = now
        return account.remaining >= wanted

    # channels

    def open(
        self,
        now: Instant,
        first: tuple[SocketId, Address, bytes],
        second: tuple[SocketId, Address, bytes],
        room: bytes = b"",
    ) -> Channel | None:
        """A fresh channel between two proven (socket, address, session), of which the second asks; None beyond a quota."""
        other, keys = prefixes(first[1].host), prefixes(second[1].host)
        pair = _pair(other[0], keys[0])
        account = self._accounts.get(pair)
        if not self._has_room(keys, room):
            return None
        if not (self.account_shares.has_room(keys) if account is None else account.remaining > 0):
            return None
        while True:
            drawn = self._entropy(CHANNEL_SIZE)
            identifier = bytes((drawn[0] | CHANNEL_BYTE,)) + drawn[1:]
            if identifier not in self._channels:
                break
        sides = (ChannelSide(now, *first, other), ChannelSide(now, *second, keys))
        channel = Channel(identifier, self._entropy(TOKEN_SIZE), now, keys, sides, room)
        self._add(channel)
        self._account(now, channel, pair, account)
        return channel

    def may_open(self, keys: Prefixes) -> bool:
        """Whether the limits of who asks allow one more channel, whomever it leads to."""
        return self.shares.has_room(keys) and self.account_shares.has_room(keys)

    def restore(
        self, now: Instant, identifier: bytes, index: int, token: bytes, socket_id: SocketId, remote: Address, session: bytes
    ) -> Moved:
        """Our side of a channel made before a restart.

        Whoever comes first is charged, until the side comes that asked for the channel; so Restore gets nobody more than Join.
        """
        channel = self._channels.get(identifier)
        keys = prefixes(remote.host)
        if channel is None:
            if identifier[0] < CHANNEL_BYTE:
                return Moved.WRONG
            if not self._has_room(keys):
                return Moved.QUOTA
            channel = Channel(identifier, token, now, keys, (ChannelSide(now), ChannelSide(now)), b"")
            self._add(channel)
        elif not hmac.compare_digest(channel.token, token):
            return Moved.WRONG
        elif not self._charge(channel, index, keys):
            return Moved.QUOTA
        self._bind(now, channel.sides[index], socket_id, remote, session, keys)
        self._settle(now, channel)
        return Moved.DONE

    def rebind(
        self,
        now: Instant,
        identifier: bytes,
        index: int,
        counter: int,
        mac: bytes,
        cookie: bytes,
        socket_id: SocketId,
        remote: Address,
        session: bytes,
    ) -> Moved:
        """Move a side to a new address."""
        channel = self._channels.get(identifier)
        if channel is None:
            return Moved.UNKNOWN
        side = channel.sides[index]
        if counter <= side.counter or not hmac.compare_digest(mac, rebind_mac(channel.token, identifier, index, counter, cookie)):
            return Moved.WRONG
        side.counter = counter
        keys = prefixes(remote.host)
        if not self._charge(channel, index, keys):
            return Moved.QUOTA
        self._bind(now, side, socket_id, remote, session, keys)
        self._settle(now, channel)
        return Moved.DONE

    def follow(self, now: Instant, identifier: bytes, index: int, socket_id: SocketId, remote: Address, session: bytes) -> None:
        """Move a side whose owner has not yet heard of the channel, and so cannot know its token, with his session."""
        channel = self._channels.get(identifier)
        if channel is None or channel.sides[index].session != session:
            return
        keys = prefixes(remote.host)
        if self._charge(channel, index, keys):
            self._bind(now, channel.sides[index], socket_id, remote, session, keys)
            self._settle(now, channel)

    def close(self, channel: Channel) -> bool:
        """False: it was closed before."""
        if self._channels.pop(channel.id, None) is None:
            return False
        self.shares.remove(channel.keys)
        if channel.room:
            left = self._in_room[channel.room] - 1
            if left:
                self._in_room[channel.room] = left
            else:
                del self._in_room[channel.room]
        if channel.account is not None:
            channel.account.channels -= 1
            channel.account = None
        return True

    def spare(self, now: Instant, room: bytes, session: bytes, others: Iterable[bytes]) -> Channel | None:
        """Of the channels `others` the one in this room and of this session that the listener has not used for longest."""
        unused = now - self._config.channel_unused
        channels = (self._channels[each] for each in others if each in self._channels)
        candidates = (each for each in channels if each.room == room and each.sides[0].seen_at < unused)
        own = (each for each in candidates if each.sides[PAYER].session == session)
        return min(own, key=lambda each: each.sides[0].seen_at, default=None)

    def has_met(self, room: bytes) -> bool:
        """Whether a channel is open that this room led to."""
        return room in self._in_room

    def is_room_full(self, room: bytes) -> bool:
        return self._in_room.get(room, 0) >= self._config.channels_per_room

    def expired(self, now: Instant, is_alive: Callable[[bytes], bool], most: int = MAX_AT_ONCE) -> list[Channel]:
        """Channels of which one side has been silent for too long, or has not come back; the owner closes them.

        `is_alive`: whether a session has given a sign of life lately.  Looks at `most` of them, and at the next ones next time.
        """
        oldest = now - self._config.channel_idle
        unmet = now - self._config.restore_patience
        return [
            channel
            for channel in _next(self._unseen, self._channels, most)
            if any(side.seen_at < oldest and not is_alive(side.session) for side in channel.sides)
            or (channel.opened_at < unmet and channel.is_half_open)
        ]

    def sweep(self, now: Instant, most: int = MAX_AT_ONCE) -> None:
        """Forget the accounts of pairs that have no channel and have earned all their bytes back, and who is held no more.

        Looks at `most` of them, and at the next ones next time.
        """
        self._due = {key: due for key, due in self._due.items() if due > now}
        for account in _next(self._unseen_accounts, self._accounts, most):
            if not account.channels and self._refill(now, account, self._config.pair_bytes):
                del self._accounts[account.key]
                self.account_shares.remove(account.keys)

    @property
    def is_looking(self) -> bool:
        """Whether there is more to look at than the last time was looked at."""
        return bool(self._unseen or self._unseen_accounts)

    def _has_room(self, keys: Prefixes, room: bytes = b"") -> bool:
        """For one more channel, charged to `keys`."""
        if not self.shares.has_room(keys):
            self.drops["relay_full" if self.shares.crowded(keys) is None else "relay_address_quota"] += 1
            return False
        if room and self.is_room_full(room):
            self.drops["relay_room_quota"] += 1
            return False
        return True

    def _add(self, channel: Channel) -> None:
        self._channels[channel.id] = channel
        self._opened += 1
        channel.number = self._opened
        self.shares.add(channel.keys)
        if channel.room:
            self._in_room[channel.room] = self._in_room.get(channel.room, 0) + 1

    def _charge(self, channel: Channel, index: int, keys: Prefixes) -> bool:
        """Side `index` is about to be at another address, which pays if that side does; False when it cannot."""
        if index != PAYER or keys == channel.keys:
            return True
        if not self.shares.may_move(channel.keys, keys):
            self.drops["relay_address_quota"] += 1
            return False
        self.shares.move(channel.keys, keys)
        channel.keys = keys
        return True

    def _bind(
        self, now: Instant, side: ChannelSide, socket_id: SocketId, remote: Address, session: bytes, keys: Prefixes
    ) -> None:  # fmt: skip
        side.socket_id, side.remote, side.session, side.seen_at, side.keys = socket_id, remote, session, now, keys

    def _settle(self, now: Instant, channel: Channel) -> None:
        """Charge the pair of addresses that it now connects."""
        first, second = channel.sides
        if first.remote is None or second.remote is None:
            return
        key = _pair(first.keys[0], second.keys[0])
        if channel.account is not None:
            if key == channel.account_key:
                return
            channel.account.channels -= 1
        account = self._accounts.get(key)
        if account is None and not self.account_shares.has_room(channel.keys):
            channel.account = None
            self.drops["relay_pairs_full"] += 1
            return
        self._account(now, channel, key, account)

    def _account(self, now: Instant, channel: Channel, key: tuple[str, str], account: PairAccount | None) -> None:
        """Charge that pair; `account` is its one, if it has one."""
        if account is None:
            account = self._accounts[key] = PairAccount(now, self._config.pair_bytes, key, channel.keys)
            self.account_shares.add(channel.keys)
        account.channels += 1
        channel.account, channel.account_key = account, key


def _pair(one: str, other: str) -> tuple[str, str]:
    """Of addresses, whichever comes first."""
    return (one, other) if one <= other else (other, one)


def _next(unseen: list[Key], table: MutableMapping[Key, Entry], most: int) -> list[Entry]:
    """Up to `most` entries of a table whose keys are gone through bit by bit; `unseen` are those that are left of a round."""
    if not unseen:
        unseen.extend(table)
    part = unseen[-most:]
    del unseen[-most:]
    return [table[key] for key in part if key in table]


def _whole_run(buffer: memoryview, start: int, stride: int, head: bytes) -> int:
    """The end of the buffer if every datagram in it begins with `head`, else 0.

    Compares column by column: eight strided slices for up to 64 datagrams, instead of a slice a datagram.
    """
    end = len(buffer)
    if end - start <= stride:
        return end
    last = (end - start) % stride
    if 0 < last < MIN_RELAYED:
        return 0
    count = -(-(end - start) // stride)
    for column in range(CHANNEL_SIZE):
        if buffer[start + column : end : stride].tobytes() != head[column : column + 1] * count:
            return 0
    return end
