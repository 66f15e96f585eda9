"""Codes of a home that runs: given to a new peer, or taken from one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import trio

from tunnel.errors import ConfigurationError, PairingError, ServerUnreachableError
from tunnel.pairing.code import Purpose, parse_code, require_purpose, split_server
from tunnel.pairing.grants import GrantSet
from tunnel.pairing.identity import fingerprint
from tunnel.server_spec import parse_server, with_tls_options
from tunnel.setup.common import SERVER_PATIENCE
from tunnel.setup.machine import Machine
from tunnel.shell.endpoint import KnownPeer
from tunnel.shell.events import Closed, CodeReady, Paired, PathReport
from tunnel.shell.reports import EndpointEvent, ExposerPairing, to_event, to_exception
from tunnel.up.config import Share
from tunnel.up.news import News, Say

if TYPE_CHECKING:
    from tunnel.up.home import Home

MAX_CODES: Final = 64  # invitations of one home that wait at once; each is a number at its server
CODE_PATIENCE: Final = 20.0  # seconds for a server that answers to give a code
LOOK_INTERVAL: Final = 0.2  # seconds between two looks at a pairing, whose end is no event of its own


class Codes:
    """Of one home."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self.machine = Machine()
        self.lifetime = 0  # seconds that the newest code works
        self._waiting: list[ExposerPairing] = []

    async def invite(self, what: Sequence[str]) -> str:
        """A code that works once, as long as codes do; who comes by it may reach `what` from then on."""
        parsed = GrantSet.parse(*what)
        flow = await self._offer(tuple(parsed.to_dicts()), keep=False)
        code, self.lifetime = flow.code, round(flow.lifetime or 0.0)

        def heard(_event: object) -> None:
            if flow.is_done or flow.code not in ("", code):  # it has done its work, or ended: nobody would see the next one
                end()
                self._withdraw(flow)

        end = self._home.hear(heard)
        return code

    async def share(self, what: Sequence[str], *, keep: bool, say: Say) -> None:
        """The same until cancelled, with fresh codes as they come; then the codes end, and who came may reach `what` no more.

        `say` gets events of the machine interface.
        """
        parsed = GrantSet.parse(*what)
        flow = await self._offer((), lent=tuple(parsed.to_dicts()), keep=keep)
        news = News(self._home.counters)
        ends: list[Callable[[], None]] = []
        shown, names = "", set[str]()
        has_come = trio.Event()

        def heard(event: EndpointEvent) -> None:
            nonlocal shown
            if flow.code and flow.code != shown:
                shown = flow.code
                news.tell(CodeReady(code=shown, expires_s=flow.lifetime).to_dict())
            for peer in flow.paired[len(names) :]:
                names.add(peer.name)
                ends.append(self._home.grants.lend(Share(parsed, (peer.name,))))
                news.tell(Paired(peer=peer.name, fingerprint=fingerprint(peer.static)).to_dict())
                has_come.set()
            report = to_event(event, self._home.driver.clock())
            if isinstance(report, PathReport | Closed) and report.peer in names:
                news.tell(report.to_dict())

        end = self._home.hear(heard)
        try:
            await say({"event": "listening", "bind": self._home.exposure.server or "nowhere"})
            shown = flow.code
            await say(CodeReady(code=shown, expires_s=flow.lifetime).to_dict())
            async with trio.open_nursery() as nursery:
                nursery.start_soon(news.pass_on, say)
                while not flow.refusal:
                    await has_come.wait()
                    has_come = trio.Event()
                    await self._home.grants.look()
        finally:
            end()
            self._withdraw(flow)
            for each in ends:
                each()
            with trio.CancelScope(shield=True), trio.move_on_after(CODE_PATIENCE):
                await self._home.grants.look()

    async def _offer(
        self, grants: tuple[dict[str, object], ...], *, lent: tuple[dict[str, object], ...] = (), keep: bool
    ) -> ExposerPairing:
        """With a code in it."""
        home = self._home
        if len(self._waiting) >= MAX_CODES:
            raise ConfigurationError(f"{MAX_CODES} codes wait for somebody already: use one of them, or wait until they expire.")
        server = await home.exposure.settle_server(self.machine)
        flow = home.driver.offer_code(server, grants=grants, lent=lent, keep=keep)
        self._waiting.append(flow)
        try:
            with trio.move_on_after(CODE_PATIENCE):
                await self._until(lambda: bool(flow.code or flow.refusal))
            if not flow.code:
                raise ServerUnreachableError(flow.refusal or f"The server {server.partition(',')[0]} gives no code: try again.")
        except BaseException:
            self._withdraw(flow)
            raise
        return flow

    def _withdraw(self, flow: ExposerPairing) -> None:
        if flow in self._waiting:
            self._waiting.remove(flow)
            self._home.driver.withdraw_code(flow)

    async def join(self, code: str) -> KnownPeer:
        """Pair by it; the peer as it is remembered."""
        home, driver = self._home, self._home.driver
        settings = home.exposure.store.settings
        code, place = split_server(code)
        server = home.exposure.server if place is None else place
        if place is not None:
            parse_server(place, "the server behind the @ of the code")
            server = with_tls_options(place, settings.tls, "the server behind the @ of the code")
        require_purpose(parse_code(code), Purpose.PORTS, server or "HOST")
        if server is None:
            raise ConfigurationError("Say at which server, as the other side's command does: CODE@HOST.")
        await driver.servers.add(server)
        await driver.servers.wait_reached(server, SERVER_PATIENCE)
        flow = driver.claim_code(server, code)
        await self._until(lambda: flow.is_done or flow.failure is not None)
        if flow.failure is not None:
            raise to_exception(flow.failure)
        if flow.peering is None or flow.peering.is_closed:
            raise PairingError("The pairing came to nothing: ask for a fresh code.")
        return flow.peering.peer

    async def _until(self, is_so: Callable[[], bool]) -> None:
        news = trio.Event()

        def heard(_event: object) -> None:
            news.set()

        end = self._home.hear(heard)
        try:
            while not is_so():
                news = trio.Event()
                with trio.move_on_after(LOOK_INTERVAL):
                    await news.wait()
        finally:
            end()
