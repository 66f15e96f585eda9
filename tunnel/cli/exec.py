"""`ptunnel exec`: one program whose only network is a room."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, Any

import click

from tunnel.cli.options import common, complete_peer, complete_room, load_settings, network, once, open_home

if TYPE_CHECKING:
    import trio

    from tunnel.cli.lan import Playing
    from tunnel.cli.options import Flags
    from tunnel.room.command import CommandNetwork

#: What ends us before the command runs, and is passed on to it afterwards; Ctrl-C reaches it by itself.
PASSED_ON = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


@click.command("exec", context_settings={"allow_interspersed_args": False})
@click.option(
    "--room", metavar="ROOM", shell_complete=complete_room,
    help="The name that the room was kept under.  Its code does too, but can then be read by others on this machine.",
)  # fmt: skip
@click.option(
    "--peer", metavar="PEER", shell_complete=complete_peer, help="Join the room to which this remembered peer lets you."
)
@click.option("--keep", is_flag=True, help="Remember the room: next time its name is enough.")
@click.option("--as", "member_name", metavar="NAME", help="How this machine is called in the room; its host name unless said.")
@once
@network
@common
@click.argument("words", nargs=-1, required=True, metavar="-- COMMAND...")
def command(
    room: str | None, peer: str | None, keep: bool, member_name: str | None, is_once: bool, words: tuple[str, ...],
    flags: Flags, is_json: bool, verbose: int,
) -> int:  # fmt: skip
    """Run COMMAND as a member of a room, without root: the room is its only network.  Its exit code is passed on.

    \b
    Examples:
      ptunnel exec --server rv.example.net -- openttd        asks for the code
      ptunnel exec --room game -- bash                       a room that was kept
      ptunnel exec --peer home -- ping anna.ptunnel
    Where the system refuses namespaces, it says what to do.  With --json the events go to standard error.
    """
    import trio

    from tunnel.cli.lan import Playing, enter_by, shared
    from tunnel.cli.render import Output
    from tunnel.room import verbs as lan
    from tunnel.room.command import CommandNetwork

    home = open_home()
    settings = load_settings(home, {**flags, "name": member_name})
    inside = CommandNetwork(words)
    inside.require()
    output = Output(is_json=is_json, may_be_live=False, events_to=sys.stderr)
    way, settings = enter_by(home, settings, room, peer, output.say)

    arguments = shared(home, settings, member_name, is_once=is_once)

    def enter(handle: Any) -> Any:
        return lan.join(**way, keep=keep, on_event=handle, interface=inside.open, routes=lan.no_routes, **arguments)

    return trio.run(_run, Playing(home, settings, output, enter), inside, bool(verbose), strict_exception_groups=True)


async def _run(playing: Playing, inside: CommandNetwork, is_verbose: bool) -> int:
    """The command's exit code, or how we were ended before it ran.  Raises CommandNotRunError."""
    import trio

    from tunnel.cli.running import hurry

    state: dict[str, Any] = {"started": False, "code": 0, "ended_by": None}
    async with trio.open_nursery() as nursery:
        await nursery.start(_watch_signals, state, inside, nursery.cancel_scope)
        hurry(nursery.cancel_scope)
        async with playing.room(nursery.cancel_scope.cancel) as room:
            await inside.start()
            state["started"] = True
            if not is_verbose:
                playing.hush()
            async with trio.open_nursery() as inner:
                inner.start_soon(_say_when_over, playing, room, inner.cancel_scope)
                state["code"] = await inside.wait()
                inner.cancel_scope.cancel()
        nursery.cancel_scope.cancel()
    return int(state["code"])


async def _say_when_over(playing: Playing, room: Any, scope: trio.CancelScope) -> None:
    """The command goes on without a network; that is for its user to end."""
    from tunnel.errors import TunnelError

    try:
        await room.run()
    except TunnelError as problem:
        playing.warn(f"{problem} The command goes on without a network.")


async def _watch_signals(
    state: dict[str, Any], inside: CommandNetwork, scope: trio.CancelScope, task_status: trio.TaskStatus[None]
) -> None:
    import trio

    with trio.open_signal_receiver(signal.SIGINT, *PASSED_ON) as signals:
        task_status.started()
        async for number in signals:
            if not state["started"]:
                state["code"] = 130 if number == signal.SIGINT else 0
                scope.cancel()
            elif number in PASSED_ON:
                inside.send_signal(number)
