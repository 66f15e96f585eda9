"""`ptunnel connect`: reach a peer, by code the first time and by name later."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import click

from tunnel.cli import handed
from tunnel.cli.habits import WithMore
from tunnel.cli.log import Log
from tunnel.cli.meant import choose, open_forwards, require_one_peer, require_server
from tunnel.cli.options import (
    common,
    complete_peer,
    load_settings,
    meeting,
    open_home,
    with_last_server,
    with_server_of,
)
from tunnel.errors import ConfigurationError, TunnelError
from tunnel.examples import also

if TYPE_CHECKING:
    import trio

    from tunnel.cli.options import Flags
    from tunnel.cli.render import Line, Output
    from tunnel.cli.running import Ending
    from tunnel.ports.rate import Limit, Rates
    from tunnel.ports.remote import Remote
    from tunnel.ports.serve import Listeners
    from tunnel.settings import Settings
    from tunnel.shell.events import Event
    from tunnel.shell.link import Link, Shares
    from tunnel.state.home import Home


MOST_LINES: Final = 16  # forwards that are shown, one a line
LOCALHOST: Final = ("127.0.0.1", "[::1]", "0.0.0.0", "[::]")  # binds that are reached as localhost
SSH: Final = ("tcp/22", "tcp/ssh")  # targets of which is told how they are used
FIRST_PAUSE: Final = 1.0  # seconds before the next try, doubling ...
LONGEST_PAUSE: Final = 30.0  # ... up to this
NETWORK_LOOK: Final = 1.0  # seconds between two looks for a network

ABSENT_PATIENCE: Final = 30.0  # seconds for a remembered peer to come where it is not waited for (--once, --stdio)
SHARES_PATIENCE: Final = 1.0  # seconds for the other side to say what it shares
SHARES_PAUSE: Final = 1.0  # seconds before the next change of it is told: the other side may send any number
MOST_SHOWN: Final = 8  # shares in a sentence, and sentences about forwards that are not shared


@click.command("connect", cls=WithMore, epilog=also("forward"))
@click.argument("peer", required=False, metavar="[PEER|CODE]", shell_complete=complete_peer)
@click.argument("more", nargs=-1, metavar="")
@click.option(
    "--forward", "-L", "forwards", metavar="SPEC", multiple=True,
    help="[BIND:]LOCAL[:REMOTE][/tcp|/udp|/tcp+udp], repeatable. LOCAL is a port or a range here; REMOTE a port, a range or a "
    "NAME there, the same as LOCAL unless said; BIND an address of this computer, or * for all of them. unix:/PATH may stand "
    "for [BIND:]LOCAL and for REMOTE.",
)  # fmt: skip
@click.option("--stdio", metavar="PORT", help="Join standard input and output to this tcp port or NAME of the peer.")
@click.option(
    "--socks", metavar="[BIND:]PORT",
    help="A SOCKS 5 door for programs here, to the machines that the peer shares with 'expose --net'; names are looked up there.",
)  # fmt: skip
@click.option(
    "--remote", "-R", "remotes", metavar="SPEC", multiple=True,
    help="[BIND:]PORT[:PORT | :HOST:PORT], repeatable: the peer listens at PORT, where it allows that ('expose --allow-remote'), "
    "and what connects there is carried here.",
)  # fmt: skip
@click.option(
    "--rate", "rates", metavar="[LOCAL=]RATE", multiple=True,
    help="At most so much each way, of all forwards together, --socks and --remote among them, or of the one that listens at "
    "LOCAL: 10M is ten megabytes a second, 80Mbit the same.  Repeatable.",
)  # fmt: skip
@click.option("--new", "is_new", is_flag=True, help="Ask for a code, although peers are remembered.")
@click.option("--timeout", metavar="SECONDS", type=click.FloatRange(min=0.1), help="Give up connecting after so long.")
@click.option(
    "--once", "is_once", is_flag=True, help="End when the peer ends the link, or cannot be reached; else it is waited for."
)
@meeting
@common
def command(
    peer: str | None, more: tuple[str, ...], forwards: tuple[str, ...], stdio: str | None,
    remotes: tuple[str, ...], rates: tuple[str, ...], socks: str | None,
    is_new: bool, timeout: float | None, is_once: bool,
    flags: Flags, is_json: bool, verbose: int,
) -> int:  # fmt: skip
    """Reach a peer.  Without PEER it is the only remembered one; with several you are asked which, with none for a code.

    \b
    Examples:
      ptunnel connect --server rv.example.net --forward 2222:22
      ptunnel connect home --forward 2222:22 --forward 5353:53/udp
      ptunnel connect home --forward 5000-5010/tcp+udp
      ptunnel connect home --forward 1445:nas          the NAME that they gave to expose
      ptunnel connect home --forward unix:/tmp/pg.sock:5432        a Unix socket here, which you alone may open
      ptunnel connect home --forward '*:8080'          for this whole LAN (IPv4 and IPv6), not only this machine
      ptunnel connect home --socks 1080                a browser's SOCKS 5 proxy, for their LAN
      ptunnel connect home --remote 8080:3000          their port 8080 leads to port 3000 here
      ssh -o ProxyCommand='ptunnel connect home --stdio 22' me@home
    A code may be given as an argument, in PTUNNEL_CODE, or best when asked for: it is a secret.
    A peer that restarts or is away is waited for, and so is the network: with --timeout for so long each time, and not at all
    with --once or --stdio.
    """
    from tunnel.cli.render import Output
    from tunnel.ports.rate import Rates
    from tunnel.ports.remote import parse_remotes
    from tunnel.ports.spec import parse_door, parse_forwards, parse_target

    home = open_home()
    require_one_peer(home, peer, more)
    parsed = parse_forwards(forwards) + ([] if socks is None else parse_door(socks))
    target = None if stdio is None else parse_target(stdio)
    limits, asked = Rates.parse(rates, parsed), parse_remotes(remotes)
    if rates and target is not None:
        raise ConfigurationError("--rate is not for --stdio: what that joins is as fast as its two programs.")
    if stdio is not None and is_json:
        raise ConfigurationError("--stdio and --json both want standard output: leave one of them out.")
    given = load_settings(home, flags)
    settings, last = with_last_server(home, given)
    from tunnel.cli.running import run
    from tunnel.host.limits import raise_descriptor_limit

    is_plain = not (stdio or rates or is_once or timeout)
    wanted = [*forwards, *([] if socks is None else [f"socks:{socks}"]), *(f"remote:{each}" for each in remotes)]
    if is_plain and wanted and (pid := handed.who_does_it(home, flags)) is not None:
        who, code = choose(home, settings, peer, is_new=is_new, may_ask=True)
        return handed.connect(home, pid, who, code, wanted, Output(is_json=is_json, may_be_live=not verbose))
    raise_descriptor_limit()
    with open_forwards(home, parsed) as listeners:  # first: nobody types a code to hear that a port is taken
        who, code = choose(home, settings, peer, is_new=is_new, may_ask=stdio is None)
        code, settings = with_server_of(code, settings)
        is_guess = code is not None and bool(last) and not settings.is_server_given
        output = Output(is_json=is_json, is_quiet=stdio is not None and not verbose, may_be_live=not verbose)
        stays = not is_once and target is None
        limit = patience(timeout, stays=stays, has_code=code is not None)
        connecting = Connecting(
            home, settings, who, code, listeners, output, limit, target, stays=stays, given=given if is_guess else None,
            rates=limits, remotes=asked,
        )  # fmt: skip
        return run(connecting.run)


class Connecting:
    """One run of `connect`."""

    def __init__(
        self, home: Home, settings: Settings, peer: str | None, code: str | None, listeners: Listeners, output: Output,
        timeout: float, target: int | str | None, *, stays: bool = False, given: Settings | None = None,
        rates: Rates | None = None, remotes: Sequence[Remote] = (),
    ) -> None:  # fmt: skip
        """`stays`: a peer that ends the link, and a network that is not there, are waited for.  `given`: what was said, where
        the server is only that of last time."""
        self._home = home
        self._settings = settings
        self._peer = peer
        self._code = code
        self._listeners = listeners
        self._output = output
        self._timeout = timeout
        self._deadline = math.inf
        self._target = target
        self._log = Log(output)
        self._link: Link | None = None
        self._shared: Shares | None = None  # as said last
        self._is_leaving = False
        self._stays = stays
        self._given = given
        self._rates = rates
        self._remotes = remotes
        self._told_remotes: set[Remote] = set()
        self._is_ready = False  # the forwards have been told
        self._pause = FIRST_PAUSE
        self._said_trouble = ""
        self._has_ended = False  # the peer has said so, and is waited for
        if code is not None:
            require_server(settings)

    async def run(self, ending: Ending) -> int:
        """Its exit code.  Raises TunnelError for what no waiting can heal."""
        import trio

        from tunnel.control.server import Process, serve_control
        from tunnel.ports.bench import measure
        from tunnel.ports.counters import drops_by_place

        ready = self._listeners.ready
        stopped = trio.Event()

        def stop() -> None:
            self._is_leaving = True
            stopped.set()

        def details() -> dict[str, Any]:
            counters = self._listeners.counters.as_dict()
            links = [] if self._link is None else [self._link]
            return {
                "forwards": [{"bind": each.bind, "target": each.target} for each in ready],
                **({} if self._rates is None else self._rates.told()),
                "counters": counters,
                "drops": drops_by_place(links[0].endpoint_counters(), counters, links) if links else {},
            }

        process = Process(
            role="connect",
            links=lambda: [] if self._link is None else [self._link],
            close=stop,
            details=details,
            bench=measure,
            notice=self._output.warn,
        )
        code = 0
        async with self._output.live(self._lines), serve_control(self._home.run_dir, process):
            async with trio.open_nursery() as nursery:
                ending.stop = stop
                nursery.start_soon(self._log.run)
                nursery.start_soon(self._leave_at, stopped, nursery.cancel_scope)
                failure: TunnelError | None = None
                try:
                    code = await self._stay(stopped)
                except TunnelError as error:
                    failure = error
                self._output.clear()
                nursery.cancel_scope.cancel()
            if failure is not None:
                raise failure
        return code

    async def _leave_at(self, stopped: trio.Event, scope: trio.CancelScope) -> None:
        await stopped.wait()
        self._output.clear()
        scope.cancel()

    async def _stay(self, stopped: trio.Event) -> int:
        """One connection after the other, until there is no use in another one."""
        import trio

        from tunnel.errors import OfflineError, ServerUnreachableError, UnreachableError

        self._deadline = trio.current_time() + self._timeout
        while True:
            try:
                self._output.wait_for(self._awaited)
                await self._wait_network(self._deadline)
                self._settle_server()
                if await self._connect_once(self._deadline):
                    return 0
                self._has_ended = True
                self._trouble("peer_ended", f"{self._peer} has ended the link: waiting for it to come back.")
            except (ServerUnreachableError, UnreachableError) as error:
                may_wait = self._stays and (self._code is None or isinstance(error, OfflineError))  # then no code was tried
                if not may_wait or trio.current_time() >= self._deadline or stopped.is_set():
                    raise
                self._trouble("still_trying", f"{error} Still trying (Ctrl-C ends it).")
            await trio.sleep(self._pause)
            self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _trouble(self, code: str, text: str) -> None:
        """Say it once, until something else is said."""
        if text == self._said_trouble:
            return
        self._said_trouble = text
        self._output.warn(text, code)

    async def _wait_network(self, deadline: float) -> None:
        """Until this machine has a way to anywhere.  Raises UnreachableError at once where that is not waited for."""
        import trio

        from tunnel.errors import UnreachableError
        from tunnel.shell.places import has_network

        server = self._settings.server or ""
        while not has_network(server):
            if not self._stays or trio.current_time() >= deadline:
                raise UnreachableError("This computer is not connected to a network.")
            self._trouble("no_network", "This computer is not connected to a network: waiting (Ctrl-C ends it).")
            await trio.sleep(NETWORK_LOOK)

    def _settle_server(self) -> None:
        """The server of last time, which could have been one of this machine's own until it had an address.

        Raises ConfigurationError where it was.
        """
        if self._given is not None:
            self._settings, last = with_last_server(self._home, self._given)
            self._given = None
            require_server(self._settings)
            self._output.say(last)

    async def _connect_once(self, deadline: float) -> bool:
        """True when we have done what we came for; False when the peer has ended the link and is waited for."""
        import trio

        from tunnel.errors import UnreachableError
        from tunnel.ports.connecting import connect

        settings, whom = self._settings, f"'{self._peer}'" if self._peer else "the other side"
        with trio.CancelScope(deadline=deadline) as limit:
            async with connect(
                self._code, peer=self._peer, home=self._home.path, on_event=self._handle, settings=settings,
            ) as link:  # fmt: skip
                limit.deadline = math.inf
                try:
                    return await self._use(link)
                finally:
                    self._link = None
                    self._log.forget(self._peer or "")
                    self._deadline = trio.current_time() + self._timeout  # of the next connection
        raise UnreachableError(
            f"{whom[:1].upper()}{whom[1:]} was not reached within {self._timeout:g} seconds: is it running there?"
        )

    async def _use(self, link: Link) -> bool:
        """See _connect_once.  Raises PermissionDeniedError, UnreachableError."""
        import trio

        from tunnel.cli.running import settled
        from tunnel.ports.serve_link import serve_nothing

        self._link = link
        self._peer, self._code = link.peer_name, None
        self._output.wait_for("")
        self._pause, self._said_trouble, self._has_ended = FIRST_PAUSE, "", False
        ready = self._listeners.ready
        if not self._is_ready:
            self._is_ready = True
            settled()
            for each in ready:
                told = {"bind": each.bind, "target": each.target, "binds": list(each.binds), "peer": link.peer_name}
                self._output.emit({"event": "forward", **told})
            if not self._output.shows_live:
                for text in self._forward_lines(link.peer_name):
                    self._output.say(text)
            for text in self._listeners.warnings():
                self._output.warn(text, "half_bound")
        async with trio.open_nursery() as nursery:
            limit = None if self._rates is None else self._rates.limit()
            nursery.start_soon(self._serve, link, nursery.cancel_scope, limit)
            serve = partial(serve_nothing, ready=self._tell_remote, notice=self._output.warn, log=self._log.accesses, limit=limit)
            nursery.start_soon(serve, link, self._remotes)
            nursery.start_soon(self._tell_shares, link)
        return self._verdict(link)

    def _tell_remote(self, remote: Remote) -> None:
        """The peer listens for us."""
        if remote not in self._told_remotes:
            self._told_remotes.add(remote)
            self._output.emit({"event": "remote", "bind": remote.bind, "target": remote.target, "peer": self._peer})
            self._output.say(f"{remote.bind} of {self._peer} -> {remote.target} here")

    async def _serve(self, link: Link, scope: trio.CancelScope, limit: Limit | None) -> None:
        """Until the link is closed or standard input and output have ended."""
        from tunnel.ports.stdio import run_stdio

        if self._target is not None:
            await run_stdio(link, self._target, access=self._log.accesses.access(link.peer_name, f"tcp/{self._target}"))
            self._is_leaving = True
        else:
            notice, accesses = self._output.warn, self._log.accesses
            await self._listeners.serve(link, notice=notice, log=accesses, rates=self._rates, limit=limit)
        scope.cancel()

    async def _tell_shares(self, link: Link) -> None:
        """Tell what the other side shares, again when that changes, and what of it is used."""
        import trio

        if self._shared is None and self._target is None and not self._listeners.ready and not self._remotes:
            with trio.move_on_after(SHARES_PATIENCE):
                await link.shares()
            if link.shared is None:  # an older one does not say
                self._output.say("Nothing is forwarded: --forward LOCAL:REMOTE or --stdio PORT would use the link.")
        while True:
            self._shared = await link.shares(self._shared)  # the same as at the last connection is no news
            self._show_shares(link.peer_name, self._shared)
            await trio.sleep(SHARES_PAUSE)

    def _show_shares(self, peer: str, shared: Shares) -> None:
        from tunnel.cli.offers import options_for
        from tunnel.cli.render import listing
        from tunnel.ends import is_path
        from tunnel.errors import command_word
        from tunnel.setup.store import own_name

        texts = shared.texts
        self._output.emit({"event": "shared", "peer": peer, "shares": texts, "all": shared.is_all})
        more = [] if shared.is_all and len(texts) <= MOST_SHOWN else ["more"]
        what = listing([*texts[:MOST_SHOWN], *more])
        wanted = [("tcp", self._target)] if self._target is not None else self._listeners.targets
        refused = shared.refused(wanted)
        if not refused:  # else it is said with what is missing
            self._output.say(f"{peer} shares {what}{'' if texts else ' with this machine'}.")
        if not (wanted or self._listeners.has_door or self._remotes) and shared.usable:
            options = " ".join(options_for(shared.usable[:MOST_SHOWN]))
            self._output.say(f"Nothing of it is forwarded yet: 'ptunnel connect {command_word(peer)} {options}' does that.")
        if self._listeners.has_door and shared.is_all and not any(each.kind == "net" for each in shared.usable):
            ask = f"'ptunnel expose --net 192.168.1.0/24:80,443 --to {command_word(own_name(self._settings.name))}'"
            self._output.warn(f"{peer} shares no network (it shares {what}), so --socks reaches nothing: ask there for {ask}.")
        for number, (protocol, target) in enumerate(refused[:MOST_SHOWN]):
            suffix = "" if protocol == "tcp" else "/udp"
            port = target if isinstance(target, int) or is_path(target) else f"{target.partition(':')[0]}=HOST:PORT"
            ask = f"'ptunnel expose {port}{suffix} --to {command_word(own_name(self._settings.name))}'"
            shares = "" if number else f" (it shares {what})"
            self._output.warn(f"{peer} does not share {protocol}/{target}{shares}: ask there for {ask}.")
        if len(refused) > MOST_SHOWN:
            self._output.warn(f"Nor does it share {len(refused) - MOST_SHOWN} more of what is to be forwarded.")

    def _verdict(self, link: Link) -> bool:
        from tunnel.errors import PermissionDeniedError, UnreachableError
        from tunnel.shell.link import CloseCode

        reason = link.close_reason
        if reason is None or self._is_leaving:
            return True
        if reason.code == CloseCode.FORGOTTEN:
            raise PermissionDeniedError(
                f"'{link.peer_name}' has forgotten this machine: ask there for a new code, for 'ptunnel connect --new'."
            )
        if self._stays and reason.code == CloseCode.NO_ERROR:
            return False
        if reason.code == CloseCode.NO_ERROR:
            raise UnreachableError(f"'{link.peer_name}' has ended the link.")
        raise UnreachableError(f"The link to '{link.peer_name}' has ended: {reason.text}.")

    def _handle(self, event: Event) -> None:
        from tunnel.shell.events import Closed, CodeReady, Listening, Paired, PathReport, Trouble

        if isinstance(event, Closed) and self._is_leaving:
            event = replace(event, reason="ended here")
        self._output.emit(event.to_dict())
        match event:
            case Paired(peer=peer):
                self._peer = peer
                self._output.say(f"Paired with '{peer}'.")
            case PathReport():
                self._log.tell_path(event, is_awaited=not self._is_ready)
            case Trouble(code="peer_absent") if self._has_ended:
                pass  # which was said, and is no question
            case Trouble():
                self._log.tell_trouble(event)
            case Closed() | Listening() | CodeReady():
                pass

    def _forward_lines(self, peer: str) -> list[str]:
        ready = self._listeners.ready
        texts = [forward_line(each.bind, peer, each.target) for each in ready[:MOST_LINES]]
        return [*texts, f"and {len(ready) - MOST_LINES} more"] if len(ready) > MOST_LINES else texts

    def _live_lines(self, link: Link) -> list[Line]:
        """Return the lines of the live status: the forwards first, then how the other side is reached."""
        from tunnel.cli.render import is_silent, live_lines, short_path

        status = link.status().to_dict()
        texts = self._forward_lines(link.peer_name)
        if is_silent(status):
            return [*live_lines(texts), (f"{short_path(status)} ... (Ctrl-C ends it)", True)]
        path = short_path(status)
        texts.append(path if texts else f"{link.peer_name}  {path}")
        if status.get("kind") == "relay" and status.get("why"):
            texts.append(str(status["why"]))
        return live_lines(texts)

    @property
    def _awaited(self) -> str:
        whom = f"'{self._peer}'" if self._peer else "the other side"
        return f"{'Waiting for' if self._is_ready else 'Connecting to'} {whom}"

    def _lines(self) -> list[Line]:
        return [self._output.waiting_line(self._awaited)] if self._link is None else self._live_lines(self._link)


def patience(timeout: float | None, *, stays: bool, has_code: bool) -> float:
    """Seconds for a connection to come about: who gave a code is there, and one that is not waited for has to be soon."""
    if timeout is not None:
        return timeout
    return math.inf if stays or has_code else ABSENT_PATIENCE


def forward_line(bind: str, peer: str, target: str) -> str:
    """`127.0.0.1:2222 -> home tcp/22`, and behind it how a port of ssh is used."""
    line = f"{bind} -> {peer} {target}"
    if target == "socks" and not bind.startswith("unix:"):
        return f"{line}      curl --proxy socks5h://{bind} URL"
    host, _, port = bind.rpartition(":")
    return f"{line}      ssh -p {port} USER@localhost" if target in SSH and host in LOCALHOST else line
