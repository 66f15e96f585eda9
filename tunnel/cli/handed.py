"""Foreground `expose` and `connect` where `ptunnel up` runs: it does what they ask for, as long as they run."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tunnel.cli.offers import all_in_one, other_command
from tunnel.cli.resident import find_up, require_size
from tunnel.errors import UnreachableError, error_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tunnel.cli.options import Flags
    from tunnel.cli.render import Output
    from tunnel.cli.running import Ending
    from tunnel.control.messages import Request
    from tunnel.pairing.grants import Grant
    from tunnel.state.home import Home


def who_does_it(home: Home, flags: Flags) -> int | None:
    """The process of `up` that can do it: one whose settings are those of this command.  None where there is none."""
    from tunnel.cli.options import load_settings

    said, configured = load_settings(home, flags), load_settings(home)
    if replace(said, is_server_given=False) != replace(configured, is_server_given=False):
        return None
    return find_up(home)


def connect(home: Home, pid: int, peer: str | None, code: str | None, forwards: Sequence[str], output: Output) -> int:
    """Forwards to a peer, or to whom the code leads.  Its exit code; raises as `connect` does."""
    from tunnel.cli.log import Log
    from tunnel.control.messages import Carry

    log = Log(output)
    output.say(f"'ptunnel up' (process {pid}) forwards this for as long as this command runs.")

    def take(answer: dict[str, Any]) -> None:
        if answer["event"] == "forward":
            output.say(f"{answer['bind']} -> {answer['peer']} {answer['target']}")
        elif answer["event"] == "remote":
            output.say(f"{answer['bind']} of {answer['peer']} -> {answer['target']} here")
        else:
            _tell(answer, output, log)

    return _last(home, pid, Carry([*forwards], peer, code), take, output)


def expose(home: Home, pid: int, what: Sequence[str], grants: Sequence[Grant], output: Output, *, keep: bool) -> int:
    """Codes for new peers, who may reach `what` for as long as this runs.  Its exit code; raises as `expose` does."""
    from tunnel.cli.log import Log
    from tunnel.cli.render import duration, listing
    from tunnel.control.messages import Share

    log = Log(output, is_exposer=True)
    server = ""
    shared = listing(map(str, grants))
    output.say(
        f"'ptunnel up' (process {pid}) shares {shared} for as long as this command runs; 'ptunnel invite' does so for good."
    )

    def take(answer: dict[str, Any]) -> None:
        nonlocal server
        if answer["event"] == "listening":
            server = str(answer["bind"])
        elif answer["event"] == "code":
            code = str(answer["code"])
            output.say(f"On the other computer run:      {other_command(server, grants)}")
            output.say(f"and type the code:              {code}")
            output.say(f"or, in one line for a chat:     {all_in_one(code, server, grants)}")
            output.say(f"The code works once, for {duration(answer['expires_s'])}.")
        else:
            _tell(answer, output, log)

    return _last(home, pid, Share([*what], keep), take, output)


def _tell(answer: dict[str, Any], output: Output, log: Any) -> None:
    from tunnel.shell.events import PathReport

    match answer["event"]:
        case "paired":
            output.say(f"Paired with '{answer['peer']}'.")
        case "path":
            log.tell_path(PathReport(**{key: value for key, value in answer.items() if key != "event"}))
        case "closed":
            log.tell_closed(answer["peer"], answer["reason"])
        case "warning":
            output.warn(str(answer["message"]))


def _last(home: Home, pid: int, request: Request, take: Callable[[dict[str, Any]], None], output: Output) -> int:
    from tunnel.cli.running import run
    from tunnel.control.client import ask

    require_size(request)
    run_dir = home.run_dir()

    async def last(_ending: Ending) -> int:
        problem: dict[str, Any] = {}

        def answered(answer: dict[str, Any]) -> None:
            if answer["event"] == "error":
                problem.update(answer)
                return
            output.emit(answer)
            take(answer)

        async with output.live(lambda: [output.waiting_line("For as long as this runs")]):
            await ask(run_dir, pid, request, answered)
            output.clear()
        if problem:
            raise error_of(str(problem["code"]), str(problem["message"]))
        raise UnreachableError("'ptunnel up' has ended, and with it what this command asked for.")

    return run(last)
