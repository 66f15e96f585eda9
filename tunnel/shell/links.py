"""The links of a driver: one for each peering, told what happens to it.  What a link meets there, ends that link alone."""

from __future__ import annotations

from collections.abc import Callable

from tunnel.faults import Faults
from tunnel.node.events import EndpointEvent, PeeringClosed, PeeringEvent, PeeringRestarted, PeeringStarted
from tunnel.node.peering import Peering
from tunnel.shell.link import Link
from tunnel.shell.packets import PacketDoor
from tunnel.units import Instant


class Links:
    """By peering, as long as that lives."""

    def __init__(
        self,
        faults: Faults,
        *,
        flush: Callable[[], None],
        before_flush: Callable[[Callable[[], None]], None],
        clock: Callable[[], Instant],
        counters: Callable[[], dict[str, dict[str, int]]],
        door: PacketDoor,
        link_type: type[Link] = Link,
    ) -> None:
        self._link_type = link_type
        self.of: dict[Peering, Link] = {}
        self._faults = faults
        self._flush = flush
        self._before_flush = before_flush
        self._clock = clock
        self._counters = counters
        self._door = door

    def handle_event(self, event: EndpointEvent, on_link: Callable[[Link], None] | None) -> None:
        """`on_link` gets each new link."""
        match event:
            case PeeringEvent(peering=peering, event=inner):
                link = self.of.get(peering)
                if link is not None:
                    link.handle_event(inner)
            case PeeringStarted(peering=peering):
                link = self.of[peering] = self._make(peering)
                if on_link is not None:
                    try:
                        on_link(link)
                    except Exception as error:
                        link.fail(error)
            case PeeringRestarted(peering=peering):
                link = self.of[peering]
                try:
                    link.handle_restarted()
                except Exception as error:
                    link.fail(error)
            case PeeringClosed(peering=peering, reason=reason):
                link = self.of.pop(peering, None)
                if link is not None:
                    link.handle_closed(reason)
            case _:
                pass

    def peers_changed(self) -> None:
        """Apply the newly read memory of peers."""
        for link in list(self.of.values()):
            try:
                link.peer_changed()
            except Exception as error:
                link.fail(error)

    def _make(self, peering: Peering) -> Link:
        return self._link_type(
            peering,
            flush=self._flush,
            before_flush=self._before_flush,
            clock=self._clock,
            counters=self._counters,
            door=self._door,
            faults=self._faults,
        )
