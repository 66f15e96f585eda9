"""The meaning of the words behind a command: a peer, a code, a forward or a room."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tunnel.cli.options import with_server_of
from tunnel.errors import ConfigurationError, TunnelError

if TYPE_CHECKING:
    from tunnel.ports.serve import Listeners
    from tunnel.ports.spec import Forward
    from tunnel.settings import Settings
    from tunnel.state.home import Home

ASK_PATIENCE: Final = 2.0  # seconds for other processes to say what they forward


def open_forwards(home: Home, forwards: list[Forward]) -> Listeners:
    """Raises ConfigurationError; with the process that has a port, where it is one of this home."""
    from tunnel.ports.local import PortTakenError
    from tunnel.ports.passed import Passed
    from tunnel.ports.serve import Listeners

    try:
        return Listeners(forwards, Passed.from_environment())
    except PortTakenError as error:
        port = error.forward.local
        if (pid := who_forwards(home, port)) is None:
            raise
        instead = str(error).rpartition("choose")[2]
        raise ConfigurationError(
            f"Another 'ptunnel connect' of yours (process {pid}) has port {port}: end that one, or choose{instead}"
        ) from None


def who_forwards(home: Home, port: int) -> int | None:
    """The process of this home that forwards the local port; None also where nobody can be asked."""
    import contextlib

    import trio

    from tunnel.control.client import ask_all
    from tunnel.control.messages import Status

    found: list[int] = []

    def take(pid: int, answer: dict[str, Any]) -> None:
        if any(str(each.get("bind", "")).endswith(f":{port}") for each in answer.get("forwards", ())):
            found.append(pid)

    async def ask() -> None:
        with trio.move_on_after(ASK_PATIENCE):
            await ask_all(home.run_dir(), Status(), take)

    with contextlib.suppress(TunnelError):
        trio.run(ask)
    return found[0] if found else None


def require_one_peer(home: Home, peer: str | None, more: tuple[str, ...]) -> None:
    """Raises ConfigurationError with the command that is meant, where a forward stands as a word of its own."""
    from tunnel.cli.habits import is_code, misplaced_forwards
    from tunnel.errors import command_word

    words = [word for word in (peer, *more) if word is not None]
    names = {each.name.casefold() for each in home.peers()}
    loose = misplaced_forwards(word for word in words if word.casefold() not in names and not is_code(word))
    whom = [word for word in words if word not in loose]
    if loose and len(whom) < 2:
        who = ["CODE" if is_code(each) else command_word(each) for each in whom]
        line = " ".join([*who, *(f"--forward {each}" for each in loose)])
        raise ConfigurationError(f"What is forwarded needs --forward: write 'ptunnel connect {line}'.")
    if more:
        raise ConfigurationError(
            f"Connect reaches one peer, and {more[0][:40]!r} is a second word: leave it out, or quote the name."
        )


def choose(home: Home, settings: Settings, given: str | None, *, is_new: bool, may_ask: bool) -> tuple[str | None, str | None]:
    """(peer, code), of which one is None.  Raises ConfigurationError with one sentence where nobody can be asked."""
    from tunnel.cli import prompt
    from tunnel.errors import command_word

    if given is not None:
        from tunnel.pairing.code import looks_like_code

        if looks_like_code(given):
            return None, usable(given, settings, is_room=False)
        return home.peer(given).name, None
    if settings.code is not None:
        return None, usable(settings.code, settings, is_room=False)
    peers = [] if is_new else home.peers()
    asks = may_ask and prompt.can_ask()
    if not peers:
        if asks:
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
    from tunnel.cli.offers import short_server
    from tunnel.pairing.code import Purpose, parse_code, require_purpose

    alone, settings = with_server_of(code, settings)
    server = short_server(settings.server) if settings.server is not None else "HOST"
    require_purpose(parse_code(alone or ""), Purpose.ROOM if is_room else Purpose.PORTS, server)
    return code


def require_server(settings: Settings) -> None:

    if settings.server is None:
        raise ConfigurationError(
            "A first meeting needs the server that the other side's command names: add --server HOST or set PTUNNEL_SERVER."
        )


def room_name(given: str | None, option: str | None) -> str:
    """Of a new room.  Raises ConfigurationError."""
    from tunnel.cli.habits import is_code

    if given is not None and option not in (None, given):
        raise ConfigurationError(f"The room has two names, {given[:40]!r} and --name {option}: leave one of them out.")
    if given is not None and is_code(given):
        raise ConfigurationError("A new room has no code yet: to enter the one of that code, run 'sudo ptunnel lan join'.")
    return given or option or "lan"
