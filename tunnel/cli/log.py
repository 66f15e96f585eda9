"""The log of a running command, each line with its time: peers that come and go, their paths, and use of the forwards.

A live status shows the ways and what is carried, so below one stands only who comes and goes.  Without a terminal, in the
background and with -v all of it is said.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from tunnel.cli.render import milliseconds, short_duration, size

if TYPE_CHECKING:
    from tunnel.cli.render import Output
    from tunnel.ports.access import Report
    from tunnel.shell.events import MemberReport, PathReport, Trouble

MAX_COMINGS: Final = 20  # lines in a minute of how one peer comes, goes and changes its path; others are counted
MAX_CHANGES: Final = 120  # lines in a minute about all members of a room: its creator can put new names into it for ever
ROOM: Final = "The members of the room"
#: Why a link has ended where nothing went wrong: we did, or the peer, as it says itself.
OURS: Final = "this side has ended"
THEIRS: Final = ("the connecting side has ended", "the exposing side has ended", "the other side has ended")


class Log:
    """Of one command."""

    def __init__(self, output: Output, *, is_exposer: bool = False) -> None:
        """`is_exposer`: peers open what is here, else programs here what is there."""
        from tunnel.ports.access import AccessLog, LineLimit

        self._output = output
        self._is_exposer = is_exposer
        self._ways: dict[str, tuple[str, str]] = {}  # of the peers that are connected
        self._members: dict[str, tuple[object, ...]] = {}  # what was said of a member last
        self._limit = LineLimit(MAX_COMINGS, self._sum_up)
        self._room_limit = LineLimit(MAX_CHANGES, self._sum_up)
        self.accesses = AccessLog(self._tell_access)

    async def run(self) -> None:
        """Say in time how much was not said one by one.  Until cancelled."""
        import trio

        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._limit.run)
            nursery.start_soon(self._room_limit.run)
            nursery.start_soon(self.accesses.run)

    # -- peers

    def tell_path(self, report: PathReport, *, is_awaited: bool = False) -> None:
        """Of a peer that was not connected, that it is now; else that its path has changed.

        `is_awaited`: the person waits for that, and sees it in the live status where there is one.
        """
        peer, way = report.peer, (report.kind, report.remote)
        before = self._ways.get(peer)
        self._ways[peer] = way
        if before is None:
            if not (is_awaited and self._output.shows_live) and self._limit.admits(peer, connected=1):
                told = "" if self._output.shows_live else f" ({_by_way(report)})"  # there it is shown below, and changes at once
                self._output.log(f"{peer} is connected{told}.", what="connected", who=peer, why=report.why)
        elif before != way and not self._output.shows_live and self._limit.admits(peer, moved=1):
            self._output.log(f"The path to '{peer}' is now {_by_way(report)}.", what="path", who=peer, why=report.why)

    def tell_closed(self, peer: str, reason: str) -> None:
        """The link to it has ended.  That it does so with this command is no news to who sees the command end."""
        self.forget(peer)
        reason = reason.rstrip(".")
        if reason == OURS and self._output.shows_live:
            return
        if self._limit.admits(peer, ended=1):
            text = f"{peer} has left." if reason in THEIRS else f"The link to '{peer}' has ended: {reason}."
            self._output.log(text, what="closed", who=peer, why=reason)

    def forget(self, peer: str) -> None:
        """The link to it has ended, which is said in another way."""
        self._ways.pop(peer, None)

    def tell_trouble(self, trouble: Trouble) -> None:
        """A sentence of the library's.  Peers can cause most of them again and again, by connecting."""
        if self._limit.admits(trouble.message, again=1):
            self._output.warn(trouble.message, what=trouble.code)

    # -- rooms

    def tell_member(self, report: MemberReport) -> None:
        """That another one came or left; where no table shows it, its path too."""
        now = (report.state, report.address, report.kind, report.why)
        name = f"{report.peer} in {report.room}" if report.room else report.peer
        before = self._members.get(name)
        self._members[name] = now
        if report.state == "removed":
            del self._members[name]
        if before == now or (before is None and report.state == "offline"):
            return
        if report.state == "online":
            is_news = before is None or before[0] != "online"
            way = ", ".join(filter(None, (report.kind, report.why if report.kind == "relay" else "")))
            if is_news:
                told = (report.address, "" if self._output.shows_live else way)
                text = f"{name} came ({', '.join(filter(None, told))})."
            elif not self._output.shows_live:
                text = f"The path to '{name}' is now {way or 'looked for'}."
            else:
                return
        else:
            text = f"{name} left." if report.state == "offline" else f"{name} is no longer in the room."
        if self.admits_change() and self._limit.admits(name, moved=1):
            self._output.log(text, what="member", who=name, why=report.why)

    def admits_change(self) -> bool:
        """Whether one more line about the room may be said now; else it is counted."""
        return self._room_limit.admits(ROOM, changed=1)

    # -- forwards

    def _tell_access(self, report: Report) -> None:
        from tunnel.ports.access import ConnectionReport

        self._output.emit(report.to_dict())
        if self._output.shows_live:
            return
        peer = report.peer
        carried = f"{size(report.sent_bytes)} sent, {size(report.received_bytes)} received"
        if not isinstance(report, ConnectionReport):
            self._output.log(
                f"Of {peer}, {report.opened} more connections opened within a minute and {report.closed} closed: {carried}.",
                what="connections",
                who=peer,
            )
        elif report.duration_s is None:
            text = f"{peer} opened {report.target}." if self._is_exposer else f"{report.target} of {peer} opened."
            self._output.log(text, what="connection_opened", who=peer, target=report.target, number=report.number)
        else:
            what = f"{report.target} {'for' if self._is_exposer else 'of'} {peer}"
            text = f"{what} closed after {_lasted(report.duration_s)}: {carried}."
            self._output.log(text, what="connection_closed", who=peer, target=report.target, number=report.number)

    def _sum_up(self, subject: str, beyond: Counter[str]) -> None:
        if again := beyond["again"]:
            self._output.log(f"{subject} That came {again} more times within a minute.")
            return
        if changed := beyond["changed"]:
            self._output.log(f"{subject} changed {changed} more times within a minute.")
            return
        counts = ((beyond["connected"], "connected"), (beyond["ended"], "ended"), (beyond["moved"], "changed its path"))
        text = ", ".join(f"{what} {count} more times" for count, what in counts if count)
        self._output.log(f"{subject} {text} within a minute.")


def _by_way(report: PathReport) -> str:
    """`direct over IPv4, 203.0.113.34:4199, 22 ms`, and of a relayed one until when or why."""
    family = "IPv6" if report.remote.startswith("[") else "IPv4"
    why = report.why if report.kind == "relay" else ""
    parts = [f"{report.kind} over {family}", report.remote, milliseconds(report.rtt_s) if report.rtt_s else "", why]
    return ", ".join(filter(None, parts))


def _lasted(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else short_duration(seconds)
