"""Answers to all that the peer of one link opens: as its grants of now allow, or as this side has asked it to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import trio

from tunnel.ports.access import AccessLog
from tunnel.ports.bench import ALLOWANCES
from tunnel.ports.counters import ForwardCounters, Notices
from tunnel.ports.link import Notice
from tunnel.ports.open import Listen, Open, Reach
from tunnel.ports.rate import Limit, PeerLimits
from tunnel.ports.remote import Remote, Remotes, keep_remotes
from tunnel.ports.serve import Exposed

if TYPE_CHECKING:
    from tunnel.shell.link import Link as DriverLink


async def serve_link(
    link: DriverLink,
    *,
    counters: ForwardCounters | None = None,
    notice: Callable[[str], None] | None = None,
    log: AccessLog | None = None,
    limits: PeerLimits | None = None,
    limit_of: Callable[[Open | Reach | Listen], Limit | None] | None = None,
    remotes: Remotes | None = None,
) -> None:
    """Answer the peer's streams against `link.grants`, read anew for each, until the link closes.

    `limits` are of all bytes of a peer; `limit_of` tells that of one stream instead.
    `remotes`: where the peer listens for us meanwhile.
    """
    exposed = Exposed(
        link,
        lambda protocol, target: link.grants.allows(protocol, target),
        counters=counters,
        notice=notice,
        allowance=ALLOWANCES.of(link.fingerprint),
        log=log,
        limit=None if limits is None else limits.of(link.fingerprint),
        limit_of=limit_of,
        grants=lambda: link.grants,
        remotes=remotes,
    )

    def changed() -> None:
        exposed.look_again()
        link.share()

    link.on_grants = changed
    link.share()
    try:
        await link.serve_streams(exposed.handle)
    finally:
        link.on_grants = None


async def serve_nothing(
    link: DriverLink,
    remotes: Sequence[Remote] = (),
    *,
    ready: Callable[[Remote], None] = lambda _remote: None,
    notice: Notice | None = None,
    log: AccessLog | None = None,
    limit: Limit | None = None,
) -> None:
    """The connecting side's answer to streams of its peer: measurements, connections to where it listens for us (`remotes`), and
    no access whatever was granted elsewhere.  `ready` is told of each that it listens at."""
    places: Mapping[tuple[str, int], tuple[str, int]] = {(each.host, each.port): each.place for each in remotes}
    exposed = Exposed(
        link,
        lambda _protocol, _target: None,
        notice=notice,
        allowance=ALLOWANCES.of(link.fingerprint),
        log=log,
        limit=limit,
        remotes=places,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_remotes, link, remotes, ready, Notices(notice))
        await link.serve_streams(exposed.handle)
        nursery.cancel_scope.cancel()
