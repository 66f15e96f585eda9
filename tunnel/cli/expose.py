"""`ptunnel expose`: let peers reach ports of this machine."""

from __future__ import annotations

import io
import ipaddress
import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from tunnel.cli import handed
from tunnel.cli.log import Log
from tunnel.cli.offers import all_in_one, other_command
from tunnel.cli.options import common, complete_peer, load_settings, meeting, once, open_home, settle_server
from tunnel.errors import AlreadyRunningError
from tunnel.examples import also

if TYPE_CHECKING:
    from tunnel.cli.options import Flags
    from tunnel.cli.render import Line, Output
    from tunnel.cli.running import Ending
    from tunnel.pairing.grants import Grant
    from tunnel.ports.counters import ForwardCounters
    from tunnel.ports.exposing import Exposure
    from tunnel.ports.rate import PeerLimits
    from tunnel.settings import Settings
    from tunnel.shell.events import Event, Serving
    from tunnel.shell.link import Link
    from tunnel.state.home import Home

MOST_SHOWN: Final = 20  # remembered peers that a start is told of, one a line
LABEL: Final = 32  # columns of what stands before the command and the code


@click.command("expose", epilog=also("share"))
@click.argument("grants", nargs=-1, metavar="[PORT | PORT/udp | NAME=HOST:PORT | unix:/PATH]...")
@click.option("--to", metavar="PEER", multiple=True, shell_complete=complete_peer,
              help="Let this remembered peer reach it too, without a code; repeatable.")  # fmt: skip
@click.option("--only", is_flag=True, help="With --to: this, and nothing of what they could reach before.")
@click.option("--keep", is_flag=True, help="Go on for further peers: a fresh code after each.")
@click.option("--net", "nets", metavar="NETWORK:PORTS", multiple=True,
              help="Machines in this network, which they reach by --socks: 192.168.1.0/24:80,443; repeatable.")  # fmt: skip
@click.option("--allow-remote", "remotes", metavar="[BIND:]PORT", multiple=True,
              help="They may have this machine listen there for a program of theirs (--remote); repeatable.")  # fmt: skip
@click.option("--proxy-protocol", "is_announced", is_flag=True,
              help="Tell these programs who connects, by a PROXY header (version 2), which they must be set up for.")  # fmt: skip
@click.option("--rate", metavar="RATE",
              help="At most so much to and from each peer: 10M is ten megabytes a second, 80Mbit the same.")  # fmt: skip
@click.option("--qr", "has_picture", is_flag=True, help="Show the other side's command with its code as a QR code, too.")
@once
@meeting
@common
def command(
    grants: tuple[str, ...], to: tuple[str, ...], only: bool, keep: bool, is_announced: bool, rate: str | None,
    nets: tuple[str, ...], remotes: tuple[str, ...],
    has_picture: bool, is_once: bool, flags: Flags, is_json: bool, verbose: int,
) -> int:  # fmt: skip
    """Let a peer reach ports of this machine, and nothing else.  Prints a code that works once; without PORT, serves the
    remembered peers with what they were given before.

    \b
    Examples:
      ptunnel expose 22 --server rv.example.net
      ptunnel expose 53/udp 5000-5010 8080/tcp+udp
      ptunnel expose nas=192.168.1.5:445         a machine in this LAN; they use --forward 1445:nas
      ptunnel expose pg=unix:/run/postgresql/.s.PGSQL.5432         a Unix socket; they use --forward 5432:pg
      ptunnel expose --net 192.168.1.0/24:80,443             web pages in this LAN; they use --socks 1080
      ptunnel expose --allow-remote 8080         they may show you a program of theirs at port 8080 here
      ptunnel expose 8080 --proxy-protocol       nginx ('listen 8080 proxy_protocol') logs the true client
      ptunnel expose 3389 --to friend            a remembered peer, no code; 'ptunnel revoke' takes it back
      ptunnel expose 22 --to friend --only       ... and nothing of what was shared with it before
      ptunnel expose                             all remembered peers
    A HOST that is a name is looked up for each connection, and may not lead to this machine: name=localhost:7001 does that.
    With --to, and another expose running here, that one serves it from now on, and this ends.
    Without a server, one is started here for this code only; that does for one desk or one LAN.
    A network that is not there yet is waited for, and so is DNS; not with --once.
    """
    from tunnel.cli.render import Output
    from tunnel.ends import read_rate
    from tunnel.errors import ConfigurationError
    from tunnel.host.limits import raise_descriptor_limit
    from tunnel.notation import with_proxy
    from tunnel.pairing.grants import GrantSet
    from tunnel.ports.rate import PeerLimits

    if is_announced:
        grants = tuple(map(with_proxy, grants))
    grants += (*(f"net/{each}" for each in nets), *(f"remote/{each}" for each in remotes))
    parsed = GrantSet.parse(*grants)
    limits = None if rate is None else PeerLimits(read_rate(rate))
    if to and not grants:
        raise ConfigurationError("--to needs something to share: name a port, as in 'ptunnel expose 22 --to NAME'.")
    if only and not to:
        raise ConfigurationError("--only goes with --to: say for whom, as in 'ptunnel expose 22 --to NAME --only'.")
    if keep and (to or not grants):
        raise ConfigurationError("--keep makes codes for new peers: it goes with ports to share, and without --to.")
    home = open_home()
    settings = load_settings(home, flags)
    for each in to:
        home.peer(each)
    output = Output(is_json=is_json, may_be_live=not verbose)
    if not (to or limits) and (pid := handed.who_does_it(home, flags)) is not None:
        if grants:
            return handed.expose(home, pid, grants, list(parsed), output, keep=keep)
        output.say(f"'ptunnel up' (process {pid}) serves the remembered peers already.")
        return 0
    if not grants:
        from tunnel.ports.granting import require_something_to_share

        require_something_to_share(home.peers())

    from tunnel.cli.running import run

    if to and ask_running(home, [str(home.peer(each).name) for each in to], grants, only, output):
        return 0
    raise_descriptor_limit()
    warn_of_silence(list(parsed), output)
    exposing = Exposing(
        home, settings, grants, list(parsed), to, keep, output,
        only=only, has_picture=has_picture, waits=not is_once, limits=limits,
    )  # fmt: skip
    try:
        return run(exposing.run)
    except* AlreadyRunningError as group:
        if to or not grants:
            raise
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        ports = " ".join(grants)
        instead = f"A remembered peer needs no code: 'ptunnel expose {ports} --to NAME' has that process share it."
        raise AlreadyRunningError(f"{error} {instead}") from None


def ask_running(home: Home, names: Sequence[str], grants: Sequence[str], only: bool, output: Output) -> bool:
    """Have an expose of this home that runs already let these peers reach more.  False where none runs, or an older one.

    Raises ConfigurationError, StateError with what it says, and nothing was granted then.
    """
    import trio

    from tunnel.cli.render import listing
    from tunnel.control.client import ask_all
    from tunnel.control.messages import MAX_REQUEST, Grant, encode_line
    from tunnel.errors import ConfigurationError, StateError

    request = Grant(list(names), list(grants), only)
    if len(encode_line(request)) > MAX_REQUEST:
        raise ConfigurationError("That is too much for one command: share some of it with another one, or use ranges.")
    answers: list[dict[str, Any]] = []
    trio.run(ask_all, home.run_dir(), request, lambda _pid, answer: answers.append(answer))
    for answer in answers:
        if answer["event"] == "granted":
            output.emit(answer)
            shared = listing(answer["grants"])
            output.say(
                f"{answer['peer']} may reach {shared} of this machine from now on "
                f"(the running expose, process {answer['pid']}, serves it)."
            )
        elif answer.get("code") in ("not_granted", "state_unusable"):
            raise (StateError if answer["code"] == "state_unusable" else ConfigurationError)(str(answer["message"]))
    return any(answer["event"] == "granted" for answer in answers)


def warn_of_silence(grants: Sequence[Grant], output: Output) -> None:
    """Say which ports of this machine nobody listens on yet; that is no reason not to share them."""
    from tunnel.cli.render import listing
    from tunnel.host.listening import listening
    from tunnel.ports.unix import listens_at

    open_ports = listening()
    own = [grant for grant in grants if grant.name is None and grant.kind == "port" and not grant.is_socket]
    silent = [grant for grant in own if open_ports is not None and not open_ports.on(grant.protocol, grant.first, grant.last)]
    silent += [grant for grant in grants if grant.is_socket and not listens_at(grant.host.removeprefix("unix:"))]
    if silent:
        text = f"Nothing listens on {listing(map(str, silent[:MOST_SHOWN]))} here yet."
        output.warn(text, "nothing_listens")


class Exposing:
    """One run of `expose`."""

    def __init__(
        self, home: Home, settings: Settings, texts: Sequence[str], grants: list[Grant], to: Sequence[str], keep: bool,
        output: Output, *, only: bool = False, has_picture: bool = False, waits: bool = False,
        limits: PeerLimits | None = None,
    ) -> None:  # fmt: skip
        from tunnel.ports.counters import ForwardCounters

        self._home = home
        self._settings = settings
        self._texts = texts
        self._grants = grants
        self._to = to
        self._keep = keep
        self._only = only
        self._has_picture = has_picture
        self._waits = waits
        self._limits = limits
        self._served: list[Serving] = []  # who may reach what already, until that is said
        self._fresh: set[str] = set()  # who has just paired
        self._output = output
        self._server = settings.server or ""
        self._public: str | None = None  # the embedded server's address as other networks reach it
        self._exposure: Exposure | None = None
        self._code_ends: float | None = None  # boottime() at which the code expires
        self._codes = 0
        self._code = ""  # that is shown
        self._log = Log(output, is_exposer=True)
        self._counters: ForwardCounters = ForwardCounters()

    async def run(self, ending: Ending) -> int:
        """Its exit code."""
        import trio

        from tunnel.cli.running import first_of
        from tunnel.control.server import Process, serve_control
        from tunnel.ports.bench import measure
        from tunnel.ports.exposing import expose

        ended = trio.Event()
        process = Process(
            role="expose",
            links=lambda: self._exposure.links if self._exposure else [],
            close=ended.set,
            details=self._details,
            bench=measure,
            grant=self._grant,
            look=self._look,
            notice=self._output.warn,
        )
        settings, last = await settle_server(self._home, self._settings, self._handle, waits=self._waits)
        if last and self._texts and not self._to:
            self._output.say(last)
        self._server = settings.server or ""
        self._output.wait_for("Meeting the server")
        async with (
            serve_control(self._home.run_dir, process),  # first: what fails has granted nothing
            self._output.live(self._lines),
            expose(
                self._texts, home=self._home.path, keep=self._keep, to=self._to, only=self._only,
                on_event=self._handle, handler=self._serve_link, waits=self._waits, settings=settings,
            ) as exposure,
            trio.open_nursery() as nursery,
        ):  # fmt: skip
            self._exposure = exposure
            self._output.wait_for("")
            nursery.start_soon(self._log.run)
            if self._to or not self._texts:
                self._introduce_remembered()  # else behind the code
            if exposure.driver is not None:
                process.faults = exposure.driver.faults
            ending.stop = ended.set
            await first_of(nursery, exposure.run, ended.wait, self._output.clear)
        return 0

    def _details(self) -> dict[str, object]:
        from tunnel.ports.counters import drops_by_place

        counters = self._counters.as_dict()
        found: dict[str, object] = {"server": self._server, "counters": counters}
        if self._limits is not None:
            found["rate"] = self._limits.rate
        driver = None if self._exposure is None else self._exposure.driver
        if self._exposure is not None and driver is not None:
            found["servers"] = driver.core.servers.describe(driver.clock())
            found["drops"] = drops_by_place(driver.counters(), counters, self._exposure.links)
        return found

    async def _serve_link(self, link: Link) -> None:
        from tunnel.ports.serve_link import serve_link

        await serve_link(link, counters=self._counters, notice=self._output.warn, log=self._log.accesses, limits=self._limits)

    # -- what is asked over the control socket

    async def _grant(self, names: Sequence[str], grants: Sequence[str], only: bool) -> list[dict[str, Any]]:
        if self._exposure is None:  # just starting, or about to hear that another one runs
            return []
        granted = await self._exposure.grant(names, *grants, only=only)
        return [{"peer": each.peer, "grants": list(each.grants)} for each in granted]

    async def _look(self) -> int:
        if self._exposure is not None:
            await self._exposure.look()
        return self._counters.revoked

    # -- what is said

    def _introduce_remembered(self) -> None:
        """Tell who may reach what of this machine already."""
        from tunnel.cli.render import listing

        served, self._served = self._served, []
        asked = {name.casefold() for name in self._to}
        others = "Also serving" if self._texts else "Serving"
        for each in sorted(served, key=lambda each: each.peer.casefold() not in asked)[: len(asked) + MOST_SHOWN]:
            if each.peer.casefold() in asked:
                self._output.say(f"{each.peer} may reach {listing(each.grants)} of this machine. No code is needed.")
            else:
                self._output.say(f"{others} {each.peer}: {listing(each.grants)}.")
        left = len(served) - len(asked) - MOST_SHOWN
        if left > 0:
            self._output.say(f"And {left} other peer{'s' * (left > 1)}: 'ptunnel peers' lists them.")

    def _show_serving(self, serving: Serving) -> None:
        """It has changed: a person did that, here or in another window."""
        from tunnel.cli.render import listing

        if self._exposure is None:
            self._served.append(serving)
            return
        if serving.peer not in self._fresh or serving.grants != tuple(map(str, self._grants)):  # else as was said
            more = f"{listing(serving.grants)} of this machine now" if serving.grants else "nothing of this machine any more"
            self._output.say(f"{serving.peer} may reach {more}.")
        self._fresh.discard(serving.peer)

    def _handle(self, event: Event) -> None:
        from tunnel.shell.events import Closed, CodeReady, Listening, Paired, PathReport, Serving, Trouble

        self._output.emit(event.to_dict())
        match event:
            case Listening(bind=bind, embedded=embedded, public=public):
                if embedded:
                    has_moved = self._code_ends is not None and bind != self._server
                    self._server, self._public = bind, public
                    self._output.say(f"{why_embedded(bind)}, so one runs here, at {bind}: {who_can_reach(bind, public)}.")
                    if has_moved:
                        self._show_way()
            case CodeReady(code=code, expires_s=expires_s) if expires_s is not None:
                from tunnel.host.clock import boottime

                self._code_ends = boottime() + expires_s
                self._show_code(code, expires_s)
            case Paired(peer=peer):
                self._code_ends = None
                self._fresh.add(peer)
                self._output.say(f"Paired with '{peer}'.")
            case Serving():
                self._show_serving(event)
            case PathReport():
                self._log.tell_path(event)
            case Trouble():
                self._log.tell_trouble(event)
            case Closed(peer=peer, reason=reason):
                self._log.tell_closed(peer, reason)

    def _show_code(self, code: str, expires_s: float) -> None:
        from tunnel.cli.render import duration, listing

        self._codes += 1
        if self._codes == 1:
            shared = listing(str(grant) for grant in self._grants)
            whom = "one new peer at a time. Each code works once" if self._keep else "one new peer. The code works once"
            self._output.say(f"Sharing {shared} of this machine with {whom}, for {duration(expires_s)}.")
        else:
            self._output.say(f"Here is a fresh code; it works once, for {duration(expires_s)}.")
        self._code = code
        self._show_way()
        self._introduce_remembered()

    def _show_way(self) -> None:
        """Show the command for the other side, with the server's present address."""
        from tunnel.ports.spec import MAX_FORWARDS

        command = other_command(self._server, self._grants)
        where = "In another window here run:" if is_only_here(self._server) else "On the other computer run:"
        self._output.say(f"{where:<{LABEL}}{command}")
        if self._public is not None:
            outside = other_command(self._public, self._grants)
            self._output.say(f"{'or, in another network:':<{LABEL}}{outside}")
        if sum(grant.last - grant.first + 1 for grant in self._grants if grant.kind == "port") > MAX_FORWARDS:
            self._output.say(f"That command has room for {MAX_FORWARDS:,} of the ports: --forward names others of them.")
        self._output.say(f"{'and type the code:':<{LABEL}}{self._code}")
        whole = all_in_one(self._code, self._server, self._grants)
        self._output.say(f"{'or, in one line for a chat:':<{LABEL}}{whole}")
        if self._has_picture:
            picture = qr_picture(whole, self._code)
            self._output.say("That line, to be scanned:" if picture else "The QR code needs a larger window.")
            if picture:
                self._output.say(picture)

    def _lines(self) -> list[Line]:
        from tunnel.cli.render import is_silent, live_lines, short_path

        lines: list[Line] = []
        for link in self._exposure.links if self._exposure else ():
            status = link.status().to_dict()
            is_relayed = status["kind"] == "relay" and not is_silent(status)
            why = [f"        {status['why']}"] if is_relayed and status["why"] else []
            path = short_path(status)
            lines += live_lines([path if is_silent(status) else f"{status['peer']}  {path}", *why])
        if self._code_ends is not None:
            from tunnel.host.clock import boottime

            left = max(0, round(self._code_ends - boottime()))
            lines.append((f"Waiting for the other computer ... the code works for {left // 60}:{left % 60:02d} more", True))
        elif not lines:
            lines.append(self._output.waiting_line("Waiting for a peer"))
        return lines


def why_embedded(bind: str) -> str:
    """How the sentence about an embedded server begins."""
    alone = "This computer is not connected to a network, and " if is_only_here(bind) else ""
    return f"{alone}{'no' if alone else 'No'} server is configured"


def is_only_here(server: str) -> bool:
    """Whether the embedded server stands at loopback, as this machine has no network."""
    host = server.rpartition(":")[0].strip("[]")
    return host == "::1" or host.startswith("127.")


def who_can_reach(bind: str, public: str | None = None) -> str:
    """One sentence's end about the embedded server's address, and the one where the router forwards a port to it."""
    if public is not None:
        return f"computers in the same network can reach it there, and all others at {public}, where the router lets them in"
    host = bind.rpartition(":")[0].strip("[]")
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return "whoever can reach that address over UDP can use the code"
    if address.is_loopback:
        return "only this computer can reach it"
    if address.is_private or address.is_link_local:
        return "only computers in the same network can reach it"
    return "whoever can reach that address over UDP can use the code"


def qr_picture(text: str, short: str) -> str | None:
    """`text` as a QR code for the terminal, else `short`, else None: whichever fits on half the screen."""
    columns, rows = shutil.get_terminal_size()
    import segno

    for content in (text, short):
        code = segno.make(content, error="l", micro=False)
        side = code.symbol_size(border=2)[0]
        if side <= columns and side // 2 + 1 <= max(rows - 12, 0):
            out = io.StringIO()
            code.terminal(out, border=2, compact=True)
            return out.getvalue().rstrip("\n")
    return None
