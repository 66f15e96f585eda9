"""The part of a client that reaches its server by another route than UDP, where that gets no answer."""

from __future__ import annotations

from tunnel.rendezvous import messages
from tunnel.rendezvous.addresses import ServerAddress
from tunnel.rendezvous.contact import Contact
from tunnel.rendezvous.fallback import MAX_FALLBACKS
from tunnel.units import Address, Instant, SocketId


class Beside(Contact):
    """A part of Client."""

    def fallback_up(self, now: Instant, socket_id: SocketId, address: Address) -> None:
        """Another route to the server stands, under this socket id: it is one more address of the server."""
        home = next((h for h in self._homes if h.is_fallback and h.socket_id == socket_id and h.address == address), None)
        if home is None:
            home = ServerAddress(socket_id, address, now, is_fallback=True)
            spare = [h for h in self._homes if h.is_fallback and h is not self._primary]
            if len(spare) >= MAX_FALLBACKS:
                self._forget_home(spare[0])
            self._homes.append(home)
        home.begin_anew()
        self._requests.remove_where(lambda r: r.home is home and isinstance(r.message, messages.Hello))
        self._greet(now, home)
        for request in self._requests:
            if request.home is home and not isinstance(request.message, messages.Hello):
                request.attempts = 0
                self._send(now, request)

    def fallback_down(self, now: Instant, socket_id: SocketId) -> None:
        """The route has ended.  What should have gone over it waits for the next one, or for UDP."""
        for home in self._homes:
            if home.is_fallback and home.socket_id == socket_id:
                home.is_up = False

    def _look_for_fallback(self, now: Instant) -> None:
        change = self._fallback.look(now, self._primary) if self._fallback is not None else None
        if change is not None:
            self._events.append(change)
