"""The links of a driver: one for each peering, told what happens to it.  What a link meets there, ends that link alone."""

from __future__ import annotations

from collections.abc import Callable

from tunnel.node.events import PeeringClosed, PeeringEvent, PeeringRestarted, PeeringStarted
from tunnel.node.peering import Peering
from tunnel.shell.link import Link


class Links:
    """By peering, as long as that lives."""

    def __init__(
        self,
        make: Callable[[Peering], Link],
    ) -> None:
        self.of: dict[Peering, Link] = {}
        self._make = make

    def pass_on(self, event: PeeringEvent) -> None:
        """Tell a link what happened to the connection under it."""
        link = self.of.get(event.peering)
        if link is not None:
            link.handle_event(event.event)

    def handle_event(
        self, event: PeeringStarted | PeeringRestarted | PeeringClosed, on_link: Callable[[Link], None] | None
    ) -> None:
        """`on_link` gets each new link."""
        match event:
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
                ended = self.of.pop(peering, None)
                if ended is not None:
                    ended.handle_closed(reason)

    def peers_changed(self) -> None:
        """Apply the newly read memory of peers."""
        for link in list(self.of.values()):
            try:
                link.peer_changed()
            except Exception as error:
                link.fail(error)
