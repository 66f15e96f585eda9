"""Requests to `ptunnel up` over its control socket."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import trio

from tunnel.control.messages import (
    AddForward,
    Carry,
    FindPage,
    Give,
    Grant,
    Invite,
    Join,
    Look,
    Reload,
    RemoveForward,
    Revoke,
    Share,
)
from tunnel.control.server import Process, Say, Verb
from tunnel.errors import ConfigurationError
from tunnel.ports.bench import measure
from tunnel.shell.events import Closed, PathReport, Trouble
from tunnel.shell.reports import to_event
from tunnel.up.news import News

if TYPE_CHECKING:
    from tunnel.up.home import Home

NO_PAGE: Final = "'ptunnel up' shows no page: run 'ptunnel config page 127.0.0.1:24580', then 'ptunnel reload'."


def process(home: Home) -> Process:
    """The home as the control socket shows and commands it."""
    return Process(
        role="up",
        links=lambda: home.links,
        members=lambda: home.rooms.links,
        remove=lambda member, room: home.rooms.remove(member, room),
        details=home.details,
        absent=home.why_absent,
        bench=measure,
        verbs=Verbs(home).table(),
        notice=home.notice,
    )


class Verbs:
    """Each answers one sort of request."""

    def __init__(self, home: Home) -> None:
        self._home = home

    def table(self) -> Mapping[type, Verb]:
        return {
            AddForward: self._add_forward,
            RemoveForward: self._remove_forward,
            Give: self._give,
            Grant: self._grant,
            Look: self._look,
            Revoke: self._revoke,
            Invite: self._invite,
            Join: self._join,
            Reload: self._reload,
            FindPage: self._find_page,
            Share: self._share,
            Carry: self._carry,
        }

    async def _add_forward(self, request: AddForward, say: Say) -> None:
        await _tell(await self._home.add_forward(request.peer, request.spec, saves=request.save), say)

    async def _remove_forward(self, request: RemoveForward, say: Say) -> None:
        removed = await self._home.remove_forward(request.peer, request.spec, saves=request.save)
        await say({"event": "forward_removed", **removed})

    async def _give(self, request: Give, say: Say) -> None:
        granted = await self._home.grant(request.peer, request.what, saves=request.save)
        await say({"event": "granted", **granted, "pid": os.getpid()})

    async def _grant(self, request: Grant, say: Say) -> None:
        """As `expose --to` asks whatever process exposes."""
        for each in await self._home.exposure.grant(request.peers, *request.grants, only=request.only):
            await say({"event": "granted", "peer": each.peer, "grants": list(each.grants), "pid": os.getpid()})

    async def _look(self, _request: Look, say: Say) -> None:
        await say({"event": "looked", "revoked": await self._home.look()})

    async def _revoke(self, request: Revoke, say: Say) -> None:
        before = self._home.counters.revoked
        revoked = await self._home.revoke(request.peer, request.what, saves=request.save)
        await say({"event": "revoked", **revoked, "streams": self._home.counters.revoked - before})

    async def _invite(self, request: Invite, say: Say) -> None:
        if request.room is not None:
            await say({"event": "code", **self._home.rooms.code(request.room)})
            return
        code = await self._home.invite(request.what)
        await say({"event": "code", "code": code, "expires_s": self._home.codes.lifetime, "server": self._home.exposure.server})

    async def _join(self, request: Join, say: Say) -> None:
        peer = await self._home.join(request.code, request.forwards, saves=request.save)
        await say(self._paired(peer))
        forwards, remotes = self._home.forwards(), self._home.remotes()
        told = {"forwards": forwards, "remotes": remotes}
        await _tell({kind: [each for each in all_of if each["peer"] == peer] for kind, all_of in told.items()}, say)

    async def _reload(self, _request: Reload, say: Say) -> None:
        await say({"event": "reloaded", **await self._home.reload()})

    async def _find_page(self, _request: FindPage, say: Say) -> None:
        if self._home.page is None:
            raise ConfigurationError(NO_PAGE)
        await say({"event": "page", **self._home.page})

    async def _share(self, request: Share, say: Say) -> None:
        await self._home.codes.share(request.what, keep=request.keep, say=say)

    async def _carry(self, request: Carry, say: Say) -> None:
        """Forwards for as long as somebody wants them; how the peer is reached is told meanwhile."""
        home = self._home
        if (request.peer is None) == (request.code is None):
            raise ConfigurationError("Say to whom: a peer, or a code.")
        news = News(home.counters)
        names: list[str] = []

        def heard(event: Any) -> None:
            report = to_event(event, home.driver.clock())
            if isinstance(report, PathReport | Closed) and report.peer in names:
                news.tell(report.to_dict())

        added: list[str] = []
        end = home.hear(heard)
        try:
            if request.code is not None:
                names.append(await home.join(request.code))
                await say(self._paired(names[0]))
            else:
                names.append(home.peer(request.peer or "").name)
            for spec in request.forwards:
                made = await home.add_forward(names[0], spec)
                if made["was_there"]:
                    text = f"{spec} of {names[0]} is forwarded by 'ptunnel up' anyway: it stays when this ends."
                    await say(Trouble(code="forwarded_already", message=text).to_dict())
                else:
                    added.append(spec)
                await _tell(made, say)
            for link in home.links:
                if link.peer_name == names[0]:
                    status = link.status()
                    told = {"kind": status.kind, "remote": status.remote, "rtt_s": status.rtt_s or 0.0, "mtu": status.mtu}
                    await say({"event": "path", **told, "why": status.why, "peer": names[0]})
            await news.pass_on(say)
        finally:
            end()
            with trio.CancelScope(shield=True):
                for spec in added:
                    await home.drop_forward(names[0], spec)

    def _paired(self, name: str) -> dict[str, Any]:
        from tunnel.pairing.identity import fingerprint

        return {"event": "paired", "peer": name, "fingerprint": fingerprint(self._home.peer(name).static)}


async def _tell(made: Mapping[str, Any], say: Say) -> None:
    """Say what is forwarded, and what the peer listens for."""
    for each in made["forwards"]:
        await say({"event": "forward", **each})
    for each in made["remotes"]:
        await say({"event": "remote", **each})
