"""`ptunnel connect`: reach a peer, by code the first time and by name later."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from tunnel.cli.options import common, complete_peer, load_settings, meeting, open_home, open_traces

if TYPE_CHECKING:
    import trio

    from tunnel.cli.render import Line, Output
    from tunnel.cli.running import Ending
    from tunnel.config import Settings
    from tunnel.driver.events import Event
    from tunnel.driver.link import Link
    from tunnel.forward.serve import Listeners
    from tunnel.state.home import Home


@click.command("connect")
@click.argument("peer", required=False, metavar="[PEER|CODE]", shell_complete=complete_peer)
@click.option(
    "--forward", "forwards", metavar="SPEC", multiple=True,
    help="[BIND:]LOCAL[:REMOTE][/tcp|/udp|/tcp+udp], repeatable. LOCAL is a port or a range here; REMOTE a port, a range or a "
    "NAME there, the same as LOCAL unless said.",
)  # fmt: skip
@click.option("--stdio", metavar="PORT", help="Join standard input and output to this tcp port or NAME of the peer.")
@click.option("--new", "is_new", is_flag=True, help="Ask for a code, although peers are remembered.")
@click.option("--timeout", metavar="SECONDS", type=click.FloatRange(min=0.1), help="Give up connecting after so long.")
@meeting
@common
def command(
    peer: str | None, forwards: tuple[str, ...], stdio: str | None, is_new: bool, timeout: float | None,
    server: str | None, path: str | None, name: str | None, portmap: str | None, qlog: str | None,
    tls_port: str | None, tls_fingerprint: str | None, is_json: bool, verbose: int,
) -> int:  # fmt: skip
    """Reach a peer.  Without PEER it is the only remembered one; with several you are asked which, with none for a code.

    \b
    Examples:
      ptunnel connect --server rv.example.net --forward 2222:22
      ptunnel connect home --forward 2222:22 --forward 5353:53/udp
      ptunnel connect home --forward 5000-5010/tcp+udp
      ptunnel connect home --forward 1445:nas          the NAME that they gave to expose
      ptunnel connect home --forward *:8080            for this whole LAN, not only this machine
      ssh -o ProxyCommand='ptunnel connect home --stdio 22' me@home
    A code may be given as an argument, in PTUNNEL_CODE, or best when asked for: it is a secret.
    """
    from tunnel.cli.render import Output
    from tunnel.errors import ConfigurationError
    from tunnel.forward.spec import parse_forwards, parse_target

    parsed = parse_forwards(forwards)
    target = None if stdio is None else parse_target(stdio)
    if stdio is not None and is_json:
        raise ConfigurationError("--stdio and --json both want standard output: leave one of them out.")
    home = open_home()
    settings = load_settings(
        home, server=server, path=path, name=name, portmap=portmap, qlog=qlog, tls_port=tls_port, tls_fingerprint=tls_fingerprint
    )
    who, code = choose(home, settings, peer, is_new=is_new, may_ask=stdio is None)

    from tunnel.cli.running import run
    from tunnel.driver.vocabulary import raise_descriptor_limit
    from tunnel.forward.serve import Listeners

    raise_descriptor_limit()
    output = Output(is_json=is_json, is_quiet=stdio is not None and not verbose, may_be_live=not verbose)
    with Listeners(parsed) as listeners:
        connecting = Connecting(home, settings, who, code, listeners, output, math.inf if timeout is None else timeout, target)
        return run(connecting.run)


def choose(home: Home, settings: Settings, given: str | None, *, is_new: bool, may_ask: bool) -> tuple[str | None, str | None]:
    """(peer, code), of which one is None.  Raises ConfigurationError with one sentence where nobody can be asked."""
    from tunnel.cli import prompt
    from tunnel.errors import ConfigurationError, command_word

    if given is not None:
        from tunnel.driver.vocabulary import looks_like_code

        if looks_like_code(given):
            return None, usable(given, settings, is_room=False)
        return home.peer(given).name, None
    if settings.code is not None:
        return None, usable(settings.code, settings, is_room=False)
    peers = [] if is_new else home.peers()
    asks = may_ask and prompt.can_ask()
    if not peers:
        if asks:
            _require_server(settings)
            return None, usable(prompt.ask_code(), settings, is_room=False)
        wish = "a code" if is_new else "a code, as no peer is remembered yet"
        raise ConfigurationError(f"This needs {wish}: run it on a terminal to be asked for it, or set PTUNNEL_CODE.")
    if len(peers) == 1:
        is_elsewhere = settings.given_server is not None and peers[0].server not in (None, settings.given_server)
        if not (is_elsewhere and asks):  # another server is named: perhaps somebody new is meant
            return peers[0].name, None
    if asks:
        name, code = prompt.ask_peer([peer.name for peer in peers])
        return name, None if code is None else usable(code, settings, is_room=False)
    names = ", ".join(peer.name for peer in peers[:10])
    raise ConfigurationError(
        f"Several peers are remembered: name one, as in 'ptunnel connect {command_word(peers[0].name)}' (there are {names})."
    )


def usable(code: str, settings: Settings, *, is_room: bool) -> str:
    """The code, if it can be one for this.  Raises ConfigurationError, with the command for what else it is for."""
    from tunnel.cli.expose import short_server
    from tunnel.driver.vocabulary import Purpose, parse_code, require_purpose

    server = short_server(settings.server) if settings.server is not None else "HOST"
    require_purpose(parse_code(code), Purpose.ROOM if is_room else Purpose.PORTS, server)
    return code


def _require_server(settings: Settings) -> None:
    from tunnel.errors import ConfigurationError

    if settings.server is None:
        raise ConfigurationError(
            "A first meeting needs the server that the other side's command names: add --server HOST or set PTUNNEL_SERVER."
        )


class Connecting:
    """One run of `connect`."""

    def __init__(
        self, home: Home, settings: Settings, peer: str | None, code: str | None, listeners: Listeners, output: Output,
        timeout: float, target: int | str | None,
    ) -> None:  # fmt: skip
        self._home = home
        self._settings = settings
        self._peer = peer
        self._code = code
        self._listeners = listeners
        self._output = output
        self._timeout = timeout
        self._target = target
        self._link: Link | None = None
        self._path: dict[str, Any] | None = None
        self._shown_forwards = False
        self._shown_path: tuple[str, str] | None = None
        self._is_leaving = False
        if code is not None:
            _require_server(settings)

    async def run(self, ending: Ending) -> int:
        """Its exit code."""
        import trio

        from tunnel.api import connect
        from tunnel.errors import UnreachableError

        traces = open_traces(self._settings)
        settings, whom = self._settings, f'"{self._peer}"' if self._peer else "the other side"
        with trio.CancelScope() as limit:
            if self._timeout < math.inf:
                limit.deadline = trio.current_time() + self._timeout
            async with (
                self._output.live(self._lines),
                connect(
                    self._code, peer=self._peer, server=settings.given_server if self._peer else settings.server,
                    home=self._home.path, path=settings.path, name=settings.name, on_event=self._handle,
                    traces=traces, portmap=settings.portmap == "on", tls=settings.tls,
                ) as link,
            ):  # fmt: skip
                limit.deadline = math.inf
                return await self._use(link, ending)
        raise UnreachableError(
            f"{whom[:1].upper()}{whom[1:]} was not reached within {self._timeout:g} seconds: is it running there?"
        )

    async def _use(self, link: Link, ending: Ending) -> int:
        import trio

        from tunnel.control.server import Process, serve_control
        from tunnel.forward.bench import measure
        from tunnel.forward.serve import serve_nothing
        from tunnel.telemetry.metrics import snapshot

        self._link = link
        ended = trio.Event()

        def stop() -> None:
            self._is_leaving = True
            ended.set()

        ending.stop = stop
        ready = self._listeners.ready
        process = Process(
            role="connect",
            links=lambda: [link],
            close=stop,
            details=lambda: {
                "forwards": [{"bind": each.bind, "target": each.target} for each in ready],
                "counters": self._listeners.counters.as_dict(),
                "drops": snapshot(link.endpoint_counters(), self._listeners.counters.as_dict(), [link]),
            },
            bench=measure,
            faults=link.faults,
        )
        async with serve_control(self._home.run_dir(), process):
            for each in ready:
                self._output.emit({"event": "forward", "bind": each.bind, "target": each.target, "binds": list(each.binds)})
            for text in self._listeners.warnings():
                self._output.warn(text)
                self._output.emit({"event": "warning", "code": "half_bound", "message": text})
            if self._target is None and not ready:
                self._output.say("Nothing is forwarded: --forward LOCAL:REMOTE or --stdio PORT would use the link.")
            if not self._output.is_live:
                self._show_path()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._serve, link, nursery.cancel_scope)
                nursery.start_soon(serve_nothing, link)
                try:
                    await ended.wait()
                finally:
                    self._output.freeze()
                nursery.cancel_scope.cancel()
        return self._verdict(link)

    async def _serve(self, link: Link, scope: trio.CancelScope) -> None:
        """Until the link is closed or standard input and output have ended."""
        from tunnel.forward.stdio import run_stdio

        if self._target is not None:
            await run_stdio(link, self._target)
            self._is_leaving = True
        else:
            await self._listeners.serve(link, notice=self._output.warn)
        scope.cancel()

    def _verdict(self, link: Link) -> int:
        from tunnel.driver.vocabulary import CloseCode
        from tunnel.errors import PermissionDeniedError, UnreachableError

        reason = link.close_reason
        if reason is None or reason.code == CloseCode.NO_ERROR:
            if reason is not None:
                self._output.say(f'"{link.peer_name}" has ended the link.')
            return 0
        if reason.code == CloseCode.FORGOTTEN:
            raise PermissionDeniedError(f'"{link.peer_name}" has forgotten this machine: ask there for a new code.')
        raise UnreachableError(f'The link to "{link.peer_name}" has ended: {reason.text}.')

    def _handle(self, event: Event) -> None:
        from tunnel.driver.events import Closed, CodeReady, Listening, Paired, PathReport, Trouble

        if isinstance(event, Closed) and self._is_leaving:
            event = replace(event, reason="ended here")
        self._output.emit(event.to_dict())
        match event:
            case Paired(peer=peer):
                self._peer = peer
                self._output.say(f'Paired with "{peer}".')
            case PathReport():
                self._path = event.to_dict()
                if self._link is not None and not self._output.is_live:
                    self._show_path()
            case Trouble(message=message):
                self._output.warn(message)
            case Closed() | Listening() | CodeReady():
                pass

    def _show_path(self) -> None:
        """A line whenever kind or address have changed; the rest is for --json and `status`."""
        if self._path is None or (path := (self._path["kind"], self._path["remote"])) == self._shown_path:
            return
        self._shown_path = path
        for line, _spins in self._path_lines():
            self._output.say(line)

    def _path_lines(self) -> list[Line]:
        """The path, and on its line the first forward; the others below, once."""
        from tunnel.cli.render import path_line, traffic

        status: dict[str, Any] | None = self._path
        extra: list[str] = []
        if self._link is not None and self._output.is_live:
            status = self._link.status().to_dict()
            extra = [traffic(status)]
        if status is None:
            return []
        name = self._peer or (self._link.peer_name if self._link else "")
        forwards = [f"{each.bind} -> {name} {each.target}" for each in self._listeners.ready]
        if self._shown_forwards and not self._output.is_live:
            forwards = []
        self._shown_forwards = True
        head = path_line(status)
        first = "    ".join([head, *forwards[:1]])
        lines: list[Line] = [(first, False)]
        lines += [(" " * (len(head) + 4) + text, False) for text in forwards[1:16]]
        if len(forwards) > 16:
            lines.append((" " * (len(head) + 4) + f"and {len(forwards) - 16} more", False))
        if status.get("kind") == "relay" and status.get("why"):
            extra.append(str(status["why"]))
        return lines + [(f"        {text}", False) for text in extra]

    def _lines(self) -> list[Line]:
        if self._link is None:
            whom = f'"{self._peer}"' if self._peer else "the other side"
            return [(f"Connecting to {whom} ... (Ctrl-C ends it)", True)]
        return self._path_lines()
