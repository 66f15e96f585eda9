"""`ptunnel up`: one process that holds all links of this home, by config.toml."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import click

from tunnel.cli.options import common, load_settings, log_json, meeting, open_home, settle_server

if TYPE_CHECKING:
    from tunnel.cli.options import Flags
    from tunnel.cli.render import Line, Output
    from tunnel.cli.running import Ending
    from tunnel.ports.passed import Passed
    from tunnel.settings import Settings
    from tunnel.shell.events import Event
    from tunnel.state.home import Home as StateHome
    from tunnel.up.home import Home
    from tunnel.up.rooms import Interfaces

MOST_LINES: Final = 30  # peers that are shown, one a line


@click.command("up")
@meeting
@log_json
@common
def command(flags: Flags, is_log_json: bool, is_json: bool, verbose: int) -> int:
    """Run what config.toml asks for, in one process, for as long as it runs: forwards to many peers, what they may reach here.
    A peer that is away is waited for, and so is the network.

    \b
    config.toml:
      [[forward]]
      peer = "office"
      listen = ["8080:80", "5353:53/udp"]
      socks = "1080"                           a SOCKS 5 door to the networks that it shares
      remote = "8080:3000"                     its port 8080 leads to port 3000 here, where it allows that
      rate = "10M"                             of all of this table, each way; [[expose]] has it, too: of each peer
      [[expose]]
      what = ["22", "nas=192.168.1.5:445"]
      to = ["ben", "anna"]                     "*" is every remembered peer
      [[room]]
      name = "friends"                         as 'ptunnel lan' keeps it; it needs root, or CAP_NET_ADMIN,
                                               unless it has: interface = false

    \b
    Examples:
      ptunnel up                               and then, in other windows:
      ptunnel forward add office 8081:81       --save writes it into config.toml
      ptunnel grant ben 9090
      ptunnel revoke ben 9090
      ptunnel invite 22
      ptunnel join CODE --forward 2222:22
      ptunnel reload                           applies an edited config.toml, as SIGHUP does
      ptunnel page                             a page in a browser, where config.toml has one
    """
    from tunnel.cli import json_log
    from tunnel.cli.render import Output
    from tunnel.cli.running import run
    from tunnel.host.limits import raise_descriptor_limit
    from tunnel.ports.passed import Passed
    from tunnel.up.config import read_wishes

    if is_log_json:
        json_log.start(verbose)
    home = open_home()
    settings = load_settings(home, flags)
    room_count = read_wishes(home.config()).interfaces
    raise_descriptor_limit()
    output = Output(is_json=is_json, may_be_live=not (verbose or is_log_json))
    running = Running(home, flags, settings, output, room_count, Passed.from_environment())
    return run(running.run, outlives_terminal=True, hurries_later=True)


class Running:
    """One run of `up`."""

    def __init__(
        self, home: StateHome, flags: Flags, settings: Settings, output: Output, room_count: int, passed: Passed
    ) -> None:
        from tunnel.cli.log import Log
        from tunnel.host.notify import ServiceManager

        self._home = home
        self._flags = flags
        self._settings = settings
        self._output = output
        self._log = Log(output, is_exposer=True)
        self._up: Home | None = None
        self._manager = ServiceManager.take(os.environ)
        self._room_count = room_count
        self._passed = passed

    async def run(self, ending: Ending) -> int:
        """Its exit code."""
        import trio

        from tunnel.up.rooms import PRIVILEGED, Interfaces

        async with trio.open_nursery() as signs:
            signs.start_soon(self._manager.keep_alive)
            interfaces = Interfaces()
            try:
                if left := await interfaces.prepare(self._room_count):
                    self._output.warn(PRIVILEGED.format(count=left))
                ending.hurry()  # its threads have no privilege then
                code = await self._stay(ending, interfaces)
            finally:
                await interfaces.close()
            signs.cancel_scope.cancel()
        return code

    async def _stay(self, ending: Ending, interfaces: Interfaces) -> int:
        import trio

        from tunnel.cli.beside import Beside
        from tunnel.cli.running import first_of
        from tunnel.control.server import serve_control
        from tunnel.up.home import up

        ended = trio.Event()

        def stop() -> None:
            self._manager.stopping()
            ended.set()

        ending.stop = stop
        settings, _said = await settle_server(self._home, self._settings, self._handle, waits=True)
        running = up(
            self._home.path, on_event=self._handle, notice=self._output.warn, log=self._log.accesses, settings=settings,
            interfaces=interfaces, passed=self._passed,
        )  # fmt: skip
        async with self._output.live(self._lines), running as home, trio.open_nursery() as nursery:
            self._up = home
            home.process.close = stop
            home.process.faults = home.driver.faults
            async with serve_control(self._home.run_dir, home.process):
                ending.hung_up = lambda: nursery.start_soon(self._reload, home)
                nursery.start_soon(self._log.run)
                beside = Beside(nursery, home, self._output, settings)
                await beside.follow(settings)
                home.after_reload = lambda: beside.reload(load_settings(self._home, self._flags))
                for each in home.forwards():
                    self._output.emit({"event": "forward", **each})
                    text = f"{each['bind']} -> {each['peer']} {each['target']}"
                    self._output.say(text, what="forward", who=each["peer"], target=each["target"])
                for each in home.remotes():
                    self._output.emit({"event": "remote", **each})
                    text = f"{each['bind']} of {each['peer']} -> {each['target']} here"
                    self._output.say(text, what="remote", who=each["peer"], target=each["target"])
                self._tell_ready()
                await first_of(nursery, home.exposure.run, ended.wait, self._output.clear)
        return 0

    async def _reload(self, home: Home) -> None:
        """As SIGHUP asks."""
        from tunnel.errors import TunnelError

        self._manager.reloading()
        try:
            told = await home.reload()
        except TunnelError as error:
            self._output.emit({"event": "warning", "code": "not_reloaded", "message": str(error)})
            self._output.warn(f"Nothing was changed: {error}", what="not_reloaded")
        else:
            self._output.emit({"event": "reloaded", **told})
            self._output.log("config.toml was read again.", what="reloaded")
        self._tell_ready()

    def _tell_ready(self) -> None:
        assert self._up is not None
        peers = len({each["peer"] for each in self._up.forwards()})
        self._manager.ready(f"{len(self._up.forwards())} forwards to {peers} peers")

    def _handle(self, event: Event) -> None:
        from tunnel.cli.render import listing
        from tunnel.shell.events import Closed, CodeReady, Listening, MemberReport, Paired, PathReport, Serving, Trouble

        if isinstance(event, CodeReady):  # it is for whoever asked for it, and no log
            return
        self._output.emit(event.to_dict())
        match event:
            case Listening(bind=bind, embedded=True):
                self._output.say(f"A server for codes runs here, at {bind}.", what="listening")
            case Paired(peer=peer):
                self._output.log(f"Paired with '{peer}'.", what="paired", who=peer)
            case Serving(peer=peer, grants=grants):
                text = f"{peer} may reach {listing(grants) if grants else 'nothing'} here."
                self._output.say(text, what="serving", who=peer)
            case PathReport():
                self._log.tell_path(event)
            case MemberReport(is_me=True, room=room, peer=name, address=address):
                self._output.say(f"You are '{name}' in the room '{room}': {address}, {name}.ptunnel.", what="member", who=name)
            case MemberReport():
                self._log.tell_member(event)
            case Trouble(code=code, message=message):
                if code == "no_network" and self._up is None:
                    self._manager.ready(message)  # the start of the machine goes on, and may bring one
                self._log.tell_trouble(event)
            case Closed(peer=peer, reason=reason):
                self._log.tell_closed(peer, reason)
            case _:
                pass

    def _lines(self) -> list[Line]:
        from tunnel.cli.render import is_silent, live_lines, short_path

        lines: list[Line] = []
        for link in self._up.links[:MOST_LINES] if self._up is not None else ():
            status = link.status().to_dict()
            path = short_path(status)
            lines += live_lines([path if is_silent(status) else f"{status['peer']}  {path}"])
        return lines or [self._output.waiting_line("Waiting for peers")]
