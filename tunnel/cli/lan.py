"""`ptunnel lan`: rooms of many, each member with an interface in one subnet."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from tunnel.cli.habits import Subcommands, WithMore
from tunnel.cli.log import Log
from tunnel.cli.members import table, why_no_link
from tunnel.cli.options import (
    common,
    complete_peer,
    complete_room,
    load_settings,
    network,
    once,
    open_home,
    settle_server,
    with_last_server,
    with_server_of,
)
from tunnel.cli.privilege import require_interface
from tunnel.cli.render import json_line, put_row, tell
from tunnel.room.core.addresses import MAX_MEMBERS

if TYPE_CHECKING:
    from tunnel.cli.options import Flags
    from tunnel.cli.render import Line, Output
    from tunnel.cli.running import Ending
    from tunnel.room.verbs import LanRoom
    from tunnel.settings import Settings
    from tunnel.setup.common import OnEvent
    from tunnel.shell.events import Event, MemberReport
    from tunnel.state.home import Home

AS = click.option(
    "--as", "member_name", metavar="NAME", help="How this machine is called in the room; its host name unless said."
)
SEEN_BY_OTHERS = (
    "ptunnel: Everybody on this machine can read a code that stands on the command line, and a room's is good for many: "
    "next time type it when asked, or set PTUNNEL_CODE."
)
ANY_SUBNET = click.option(
    "--any-subnet", is_flag=True,
    help="Let the room have a network that may be part of the one that this machine is in, where it does not clash for certain.",
)  # fmt: skip
RELAY = click.option(
    "--relay", is_flag=True, help="Carry, sealed, what two others have for each other that meet in no other way."
)
AS_ROOT = "Those of root are shown by 'sudo ptunnel lan'."
NO_ROOM = "No room of this home runs that you have created: 'ptunnel lan create' opens one."


HELP = f"""A LAN over the internet, for a game: up to {MAX_MEMBERS} members in one subnet, each connected to every other one.

\b
Examples:
  ptunnel lan create --server rv.example.net        prints a code that is good for all friends
  ptunnel lan join --server rv.example.net          asks for the code
  ptunnel lan create game --keep                    next time nobody needs a code:
  ptunnel lan join game                             ... neither does who joined with --keep
  ptunnel lan create --to friend                    a remembered peer needs none the first time
  ptunnel lan join --peer home                      ... and joins by the name of yours
  ptunnel lan remove ben                            cuts a member off, and makes a fresh code
  ptunnel lan create game --keep --no-interface     keeps the room on a host that does not play: needs no root
It needs root, or the capability CAP_NET_ADMIN, and CAP_NET_RAW for what games here broadcast on other networks of this
machine; 'ptunnel exec' needs none of these.  Alone, lists the rooms.
"""


@click.group("lan", cls=Subcommands, invoke_without_command=True, help=HELP)
@common
@click.pass_context
def command(context: click.Context, is_json: bool, verbose: int) -> None:
    if context.invoked_subcommand is None:
        show(is_json)


@command.command("create", short_help="Open a room; prints a code that lets all friends in.")
@click.argument("room", required=False, metavar="[NAME]", shell_complete=complete_room)
@click.option("--name", metavar="NAME", help="The same as NAME: how the room is called; 'lan' unless said.")
@click.option("--keep", is_flag=True, help="Remember the room and its members; created again, it is the same one.")
@click.option("--to", metavar="PEER", multiple=True, shell_complete=complete_peer,
              help="Let this remembered peer join without a code; repeatable.")  # fmt: skip
@click.option("--no-interface", "is_bare", is_flag=True,
              help="Keep the room and let others in, and have no network interface: needs no root.")  # fmt: skip
@AS
@ANY_SUBNET
@RELAY
@once
@network
@common
def create_command(
    room: str | None, name: str | None, keep: bool, to: tuple[str, ...], member_name: str | None, any_subnet: bool, relay: bool,
    is_bare: bool, is_once: bool, flags: Flags, is_json: bool, verbose: int,
) -> int:  # fmt: skip
    """Open a room and let others in: prints a code that is good for all of them, as long as this runs.

    Without a server, one is started here; that does for one desk, one LAN, or where the router forwards a port.
    """
    from tunnel.cli.meant import room_name
    from tunnel.room import verbs as lan
    from tunnel.state.rooms import Rooms

    home = open_home()
    settings = load_settings(home, {**flags, "name": member_name})
    for each in to:
        home.peer(each)
    name = room_name(room, name)
    if not is_bare:
        require_interface()
    is_new = name not in Rooms(home).names()

    @asynccontextmanager
    async def enter(say: Callable[[str], None], on_event: OnEvent, **more: Any) -> AsyncIterator[LanRoom]:
        chosen = settings
        if is_new:
            chosen, last = await settle_server(home, settings, on_event, waits=not is_once)
            if last:
                say(last)
                chosen = replace(chosen, is_server_given=True)
        arguments = {**shared(home, chosen, member_name, is_once=is_once), "any_subnet": any_subnet, "relay": relay}
        async with lan.create(name, keep=keep, to=to, on_event=on_event, **more, **arguments) as room:
            yield room

    return _run(home, settings, is_json, verbose, enter, is_kept=keep, is_bare=is_bare)


@command.command("join", cls=WithMore, short_help="Join a room: by its code, its name or a remembered peer.")
@click.argument("room", required=False, metavar="[CODE|ROOM]", shell_complete=complete_room)
@click.option("--keep", is_flag=True, help="Remember the room: next time 'ptunnel lan join ROOM' needs no code.")
@click.option(
    "--peer", metavar="PEER", shell_complete=complete_peer, help="Join the room to which this remembered peer lets you."
)
@AS
@ANY_SUBNET
@RELAY
@once
@network
@common
def join_command(
    room: str | None, keep: bool, peer: str | None, member_name: str | None, any_subnet: bool, relay: bool, is_once: bool,
    flags: Flags, is_json: bool, verbose: int,
) -> int:  # fmt: skip
    """Join a room: by its code, by the name under which it was kept, or without either as a remembered peer (--peer)."""
    from tunnel.room import verbs as lan

    home = open_home()
    settings = load_settings(home, {**flags, "name": member_name})
    require_interface()
    way, settings = enter_by(home, settings, room, peer, tell)
    arguments = {**shared(home, settings, member_name, is_once=is_once), "any_subnet": any_subnet, "relay": relay}
    return _run(home, settings, is_json, verbose, lambda _say, **more: lan.join(**way, keep=keep, **more, **arguments))


@command.command("remove", short_help="Cut a member off from a room that you have created.")
@click.argument("member")
@click.option("--room", metavar="NAME", help="Of which room, where several run.")
@common
def remove_command(member: str, room: str | None, is_json: bool, verbose: int) -> int:
    """Cut a member off from a room that you have created, and that runs here; a fresh code follows."""
    import trio

    from tunnel.control.client import ask_all
    from tunnel.control.messages import Remove
    from tunnel.errors import ConfigurationError

    answers: list[dict[str, Any]] = []
    trio.run(ask_all, open_home().run_dir(), Remove(member, room), lambda _pid, answer: answers.append(answer))
    removed = [answer for answer in answers if answer["event"] == "removed"]
    if not removed:
        raise ConfigurationError(str(answers[0].get("message", NO_ROOM)) if answers else NO_ROOM)
    for answer in removed:
        if is_json:
            _emit(answer)
        else:
            tell(f"'{answer['peer']}' is no longer in the room '{answer['room']}'.")
    return 0


@command.command("list")
@common
def list_command(is_json: bool, verbose: int) -> int:
    """Show the rooms that are kept, and those that run now."""
    show(is_json)
    return 0


def show(is_json: bool) -> None:
    """The list, as data on stdout."""
    import trio

    from tunnel.cli.render import columns
    from tunnel.control.client import ask_all
    from tunnel.control.messages import Status
    from tunnel.room import verbs as lan

    home = open_home()
    running: list[dict[str, Any]] = []

    def take(_pid: int, answer: dict[str, Any]) -> None:
        if answer.get("role") == "lan" and "room" in answer:
            running.append(answer)
        running.extend({**each, "pid": answer["pid"]} for each in answer.get("rooms", ()) if "creator" in each)

    rooms = {str(each["room"]): {"event": "room", **each, "kept": True, "pid": None} for each in lan.kept(home.path)}
    trio.run(ask_all, home.run_dir(), Status(), take)
    for answer in running:
        fresh = {
            "event": "room",
            "room": answer["room"],
            "role": "creator" if answer["creator"] else "member",
            "members": [member["peer"] for member in answer.get("members", ())],
            "server": answer["server"],
            "subnet": answer.get("subnet"),
            "kept": answer["room"] in rooms,
        }
        rooms[str(answer["room"])] = {**fresh, "pid": answer["pid"]}
    if is_json:
        for each in rooms.values():
            _emit(each)
    elif not rooms:
        as_root = "" if getattr(os, "geteuid", int)() == 0 else f" {AS_ROOT}"  # Windows has none
        tell(f"No room is kept, and none runs: 'ptunnel lan create' and 'ptunnel lan join' make some.{as_root}")
    else:
        rows = [("ROOM", "ROLE", "RUNS", "SUBNET", "SERVER", "MEMBERS")]
        for each in rooms.values():
            runs = f"process {each['pid']}" if each["pid"] else "-"
            members = ", ".join(each["members"])
            rows.append((each["room"], each["role"], runs, each["subnet"] or "-", each["server"] or "-", members))
        for line in columns(rows):
            put_row(line)


@command.command("forget")
@click.argument("room", shell_complete=complete_room)
@common
def forget_command(room: str, is_json: bool, verbose: int) -> int:
    """Keep a room no longer.  Its creator cannot open it again; a member needs a code."""
    from tunnel.room import verbs as lan

    lan.forget(room, open_home().path)
    if is_json:
        _emit({"event": "forgotten", "room": room})
    else:
        tell(f"The room '{room}' is forgotten.")
    return 0


def enter_by(
    home: Home, settings: Settings, given: str | None, peer: str | None, say: Callable[[str], None]
) -> tuple[dict[str, Any], Settings]:
    """As `choose`; a code is good at the server that it carries, else where it was said, else where we were last time."""
    with_last, last = with_last_server(home, settings)
    way = choose(home, with_last, given, peer)
    if "code" in way:
        if way["code"] == given:
            say(SEEN_BY_OTHERS)
        way["code"], settings = with_server_of(way["code"], with_last)
        if last and not settings.is_server_given:
            say(last)
            settings = replace(settings, is_server_given=True)
    return way, settings


def choose(home: Home, settings: Settings, given: str | None, peer: str | None) -> dict[str, Any]:
    """The way in, as tunnel.lan.join takes it.  Raises ConfigurationError with one sentence where nobody can be asked."""
    from tunnel.cli import prompt
    from tunnel.cli.meant import usable
    from tunnel.errors import ConfigurationError
    from tunnel.pairing.code import looks_like_code
    from tunnel.state.rooms import Rooms

    if peer is not None and given is not None:
        raise ConfigurationError("Either a code or a room, or --peer: leave one of them out.")
    if peer is not None:
        return {"peer": home.peer(peer).name}
    rooms = Rooms(home)
    code = given if given is not None and looks_like_code(given) else None if given is not None else settings.code
    if code is not None:
        usable(code, settings, is_room=True)
        _require_server(with_server_of(code, settings)[1])
        return {"code": code}
    if given is not None:
        return {"room": rooms.room(given).name}
    if prompt.can_ask():
        code = usable(prompt.ask_code(), settings, is_room=True)
        _require_server(with_server_of(code, settings)[1])
        return {"code": code}
    kept = [room.name for room in rooms.all() if not room.is_creator]
    if len(kept) == 1:
        return {"room": kept[0]}
    names = f" There are {', '.join(kept)}." if kept else ""
    raise ConfigurationError(f"Name the room, or set PTUNNEL_CODE to its code: nobody can be asked here.{names}")


def _require_server(settings: Settings) -> None:
    from tunnel.errors import ConfigurationError

    if settings.server is None:
        raise ConfigurationError(
            "A code needs the server that the creator's command names: add --server HOST or set PTUNNEL_SERVER."
        )


def shared(home: Home, settings: Settings, member_name: str | None, *, is_once: bool) -> dict[str, Any]:
    """Arguments of create and join."""
    return {
        "home": home.path,
        "member_name": member_name,  # else as it was kept, else as configured
        "settings": settings,
        "waits": not is_once,
    }


def _run(
    home: Home, settings: Settings, is_json: bool, verbose: int, enter: Any, *, is_kept: bool = False, is_bare: bool = False
) -> int:  # fmt: skip
    from tunnel.cli.render import Output
    from tunnel.cli.running import run
    from tunnel.host.limits import raise_descriptor_limit
    from tunnel.room.verbs import no_interface

    raise_descriptor_limit()
    output = Output(is_json=is_json, may_be_live=not verbose)

    def enter_with_interface(handle: Any) -> Any:
        return enter(output.say, on_event=handle, interface=no_interface if is_bare else playing.open_interface)

    playing = Playing(home, settings, output, enter_with_interface, is_kept=is_kept)
    return run(playing.run, hurries_later=not is_bare)


class Playing:
    """One run of `lan create`, `lan join` or `exec`."""

    def __init__(self, home: Home, settings: Settings, output: Output, enter: Any, *, is_kept: bool = False) -> None:
        """`enter(handle)` gives the context manager of tunnel.lan; `handle` takes its events."""
        self._join = f"sudo ptunnel lan join{' --keep' if is_kept else ''}"
        self._home = home
        self._output = output
        self._enter = enter
        self._server = settings.server or ""
        self._public: str | None = None
        self._room: LanRoom | None = None
        self._log = Log(output)
        self._address = ""  # ours in the room, as told last
        self._code: str | None = None
        self._hurry: Callable[[], None] = lambda: None

    async def run(self, ending: Ending) -> int:
        """Its exit code."""
        import trio

        from tunnel.cli.running import first_of

        ended = trio.Event()
        self._hurry = ending.hurry
        async with self.room(ended.set) as room, trio.open_nursery() as nursery:
            ending.stop = ended.set
            nursery.start_soon(self._log.run)
            await first_of(nursery, room.run, ended.wait, self._output.clear)
        return 0

    def room(self, close: Any) -> AbstractAsyncContextManager[LanRoom]:
        """The room, entered, with the control socket of this process beside it."""
        from tunnel.control.server import Process, serve_control
        from tunnel.ports.bench import measure

        @asynccontextmanager
        async def both() -> Any:
            self._output.wait_for("Entering the room")
            async with self._output.live(self._lines), self._enter(self._handle) as room:
                self._room = room
                self._output.wait_for("")
                process = Process(
                    role="lan", links=lambda: room.links, close=close, details=room.status, bench=measure, remove=self._remove,
                    faults=room.driver.faults, notice=self._output.warn, absent=self._absent,
                )  # fmt: skip
                self._introduce(room)
                async with serve_control(self._home.run_dir, process):
                    yield room

        return both()

    async def open_interface(self, config: Any) -> Any:
        """The `interface` argument of tunnel.lan: threads that speak for us are started without the privileges that it needs."""
        from tunnel.room.verbs import open_on_host

        interface = await open_on_host(config)
        self._hurry()
        return interface

    def warn(self, text: str) -> None:
        self._output.warn(text)

    def hush(self) -> None:
        """The terminal is somebody else's from now on: only what goes wrong is still said."""
        self._output.is_quiet = True

    def _remove(self, member: str, name: str | None) -> tuple[str, str] | None:
        """For `lan remove`, by way of the control socket."""
        room = self._room
        if room is None or not room.is_creator or name not in (None, room.name):
            return None
        return room.name, room.remove(member)

    def _absent(self, peer: str) -> str | None:
        """Why there is no link to that member; None where it is none."""
        room = self._room
        member = next((each for each in room.members() if each.name == peer), None) if room is not None else None
        if room is None or member is None:
            return None
        return why_no_link(member.name, room.name, is_me=member.is_me, is_online=member.is_online)

    # -- what is said

    def _introduce(self, room: LanRoom) -> None:
        me = next(member for member in room.members() if member.is_me)
        status = room.status()
        count = len(room.members()) - 1
        others = f", with {count} other{'s' * (count > 1)}" if count else ""
        where = f"{me.address}, {me.name}.ptunnel, on {status['interface']}" if status["interface"] else "without an interface"
        self._output.say(f"You are '{me.name}' in the room '{room.name}'{others}: {where}.")
        if count and not self._output.is_live and not any(member.is_online and not member.is_me for member in room.members()):
            self._output.say("None of them is there yet: waiting (Ctrl-C ends it).")

    def _handle(self, event: Event) -> None:
        from tunnel.cli.expose import who_can_reach, why_embedded
        from tunnel.shell.events import Closed, CodeReady, Listening, MemberReport, Trouble

        self._output.emit(event.to_dict())
        match event:
            case Listening(bind=bind, embedded=embedded, public=public):
                before, self._server = self._server, bind
                if embedded:
                    has_moved, self._public = self._code is not None and bind != before, public
                    self._output.say(f"{why_embedded(bind)}, so one runs here, at {bind}: {who_can_reach(bind, public)}.")
                    if has_moved:
                        self._show_way()
            case CodeReady(code=code):
                self._show_code(code)
            case MemberReport():
                self._show_member(event)
            case Trouble():
                self._log.tell_trouble(event)
            case Closed():
                pass  # it is raised as well
            case _:
                pass

    def _show_code(self, code: str) -> None:
        first, self._code = self._code is None, code
        if not first:
            self._output.say("Here is a fresh code; the old one does not work any more.")
        self._show_way()
        if first:
            self._output.say("The code is good for all of them, as long as this runs.")

    def _show_way(self) -> None:
        """Show the command for the others, with the server's present address."""
        from tunnel.cli.expose import LABEL, is_only_here
        from tunnel.cli.offers import short_server

        if is_only_here(self._server):
            command = f"ptunnel exec --server {short_server(self._server)} -- COMMAND"
            self._output.say(f"{'In another window here run:':<{LABEL}}{command}")
            self._output.say(f"{'and type the code:':<{LABEL}}{self._code}")
            return
        command = f"{self._join} --server {short_server(self._server)}"
        self._output.say(f"{'Each friend runs:':<{LABEL}}{command}")
        if self._public is not None:
            self._output.say(f"{'or, in another network:':<{LABEL}}{self._join} --server {short_server(self._public)}")
        self._output.say(f"{'and types the code:':<{LABEL}}{self._code}")

    def _show_member(self, report: MemberReport) -> None:
        if report.is_me:
            if self._address not in ("", report.address) and self._log.admits_change():
                self._output.say(f"The room has another network now: you are {report.address}.")
            self._address = report.address
        else:
            self._log.tell_member(report)

    def _lines(self) -> list[Line]:
        if self._room is None:
            return [self._output.waiting_line("Entering the room")]
        rows = table([member.to_dict() for member in self._room.members()])
        waits = [] if len(rows) > 2 else [("Waiting for others ... (Ctrl-C ends it)", True)]
        return [*((row, False) for row in rows), *waits]


def _emit(event: dict[str, Any]) -> None:
    click.echo(json_line(event))
