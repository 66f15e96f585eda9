"""A fleet as its clients see it: servers that know of each other, tell who they are, and lead to where somebody waits.

Whoever follows is sent to the server where a listener or a code is, and dials or claims there as any client of it would.  Outside
of a fleet nothing of this is ever asked.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

from tunnel.core.scope import may_name
from tunnel.errors import MalformedPacket
from tunnel.rendezvous import messages
from tunnel.rendezvous.addresses import ServerAddress
from tunnel.rendezvous.channels import Channels
from tunnel.rendezvous.kinds import Role
from tunnel.rendezvous.standing import joins
from tunnel.units import Address, Instant, Seconds

MAX_TOLD: Final = 8  # servers of a fleet that are greeted, those with the least load of more
MAX_LISTED: Final = 64  # addresses of servers that are known in all
MAX_MET: Final = 32  # addresses that are greeted because a server named them, in MET_PERIOD: they are only the server's word
MET_PERIOD: Final = Seconds(60.0)
MAX_LED: Final = 16  # addresses of servers to which dials and claims were led; the one that came first is forgotten


class Following(Channels):
    """A part of Client."""

    _led: dict[Address, set[bytes]]  # rooms that are dialed at the server there, too, and numbers that are claimed
    _listed: set[Address]  # of servers, as they have told
    _met: deque[Instant]  # when the last MAX_MET addresses were greeted because a server named them

    @property
    def _is_fleet(self) -> bool:
        """Whether the server in use is one of several that know of each other."""
        return self._primary is not None and self._primary.epoch != 0

    def _on_epoch(self, now: Instant, home: ServerAddress, epoch: int) -> None:
        """The server has said which list of servers it has; 0: it knows no others."""
        home.epoch = epoch
        if not epoch:
            home.followed = 0
        elif (home is self._primary or home.is_held) and home.followed != epoch:
            home.followed = epoch
            self._requests.remove_where(lambda r: r.home is home and isinstance(r.message, messages.Follow))
            self._request(now, messages.Follow(epoch=0), home=home)

    def _on_servers(self, now: Instant, home: ServerAddress, answer: messages.Servers) -> None:
        """Greet those that are new; what is listed no more is asked no more."""
        servers = sorted(answer.servers, key=lambda each: (each.instance != home.instance, each.load))[:MAX_TOLD]
        told: set[Address] = set()
        for server in servers:
            places = self._credible(home, server.at)
            told.update(places)
            for each in self._meet(now, places):
                each.load = server.load
                if each.instance not in (None, server.instance):  # it has begun anew, and what it was asked before is lost
                    self._greet_anew(now, each)
        self._listed = told
        self._drop_strays()

    def _greet_anew(self, now: Instant, home: ServerAddress) -> None:
        self._requests.remove_where(lambda r: r.home is home and isinstance(r.message, messages.Hello))
        self._greet(now, home)

    def _drop_strays(self) -> None:
        """Leave alone those that are listed no more, and that nobody is led to."""
        for each in self._homes:
            each.is_told = each.address in self._listed or each.address in self._led
        self._give_up(lambda each: True)

    def _credible(self, home: ServerAddress, packed: Iterable[bytes]) -> list[Address]:
        """The addresses that the server at `home` may name."""
        found: list[Address] = []
        for each in packed:
            try:
                address = messages.unpack_address(each)
            except MalformedPacket:
                continue
            if may_name(home.address.host, address.host) and address.port:
                found.append(address)
            else:
                self.drops["rendezvous_place"] += 1
        return found

    def _meet(self, now: Instant, places: Iterable[Address]) -> list[ServerAddress]:
        """These addresses as each of our sockets knows them; those that are new are greeted."""
        sockets = {each.socket_id: each.address.is_ipv6 for each in self._homes if not each.is_fallback}
        found: list[ServerAddress] = []
        for address in places:
            for socket_id, is_ipv6 in sockets.items():
                if is_ipv6 != address.is_ipv6:
                    continue
                home = self._home_at(socket_id, address)
                if home is None:
                    if len(self._met) == MAX_MET and now - self._met[0] < MET_PERIOD:
                        self.drops["rendezvous_place"] += 1
                        continue
                    self._met.append(now)
                    home = ServerAddress(socket_id, address, now)
                    home.is_told, home.is_named = True, False
                    self._homes.append(home)
                    self._greet(now, home)
                    self.has_new_ways = True
                found.append(home)
        return found

    # being led

    def _lead(self, now: Instant, key: bytes, places: Sequence[Address]) -> None:
        """Somebody waits at a server there, in the room `key` that we dial or under a number: go there too."""
        for address in places:
            self._led.setdefault(address, set()).add(key)
            if len(self._led) > MAX_LED:
                del self._led[next(iter(self._led))]
        self._meet(now, places)
        for home in self._homes:
            if home.is_held and home.address in places:
                self._dial_at(now, home, {key})
        self._hold(now)
        self._drop_strays()

    def _led_to(self, home: ServerAddress) -> set[bytes]:
        """The rooms that are dialed at that server, by whichever of its addresses."""
        rooms: set[bytes] = set()
        for each in self._homes:
            if each.address in self._led and (each is home or (each.instance is not None and each.instance == home.instance)):
                rooms |= self._led[each.address]
        return rooms

    def _forget_led(self, now: Instant, keys: Iterable[bytes]) -> None:
        gone, before = set(keys), len(self._led)
        for address in list(self._led):
            self._led[address] -= gone
            if not self._led[address]:
                del self._led[address]
        if len(self._led) != before:
            self._hold(now)
            self._drop_strays()

    def _dial_at(self, now: Instant, home: ServerAddress, rooms: set[bytes]) -> None:
        """With all rooms of the dials to which these belong."""
        for group in self._groups_of(rooms):
            for join in joins(Role.DIAL, group):
                self._request(now, join, home=home)

    @abstractmethod
    def _groups_of(self, rooms: set[bytes]) -> list[tuple[bytes, ...]]:
        """The rooms of each dial to which one of these belongs."""

    def _move_on(self, now: Instant, home: ServerAddress, message: messages.MoveOn) -> None:
        """That server drains: what is registered there goes elsewhere, and what it relays as soon as something else does."""
        places = self._credible(home, message.at)
        if len(self._listed) < MAX_LISTED:
            self._listed.update(places)
        self._meet(now, places)
        self._say_goodbye_to(now, home, message, within=float(message.within_s))
