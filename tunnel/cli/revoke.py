"""`ptunnel revoke`: take back what a remembered peer may reach here."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

import click

from tunnel.cli.options import common, complete_peer, open_home
from tunnel.cli.render import json_line, tell
from tunnel.cli.resident import NOT_RUNNING, ask_up, saves

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tunnel.state.home import Home

LOOK_PATIENCE: Final = 1.0  # seconds for all running processes to answer


@click.command("revoke")
@click.argument("peer", shell_complete=complete_peer)
@click.argument("what", nargs=-1, metavar="[PORT | PORT/udp | NAME]...")
@saves
@common
def command(peer: str, what: tuple[str, ...], saves: bool, is_json: bool, verbose: int) -> int:
    """Take back what PEER may reach here: these ports and names, or everything.  PEER stays remembered.

    What is open of it ends within a second, whichever command of this user serves it, or none; everything else goes on.
    A port without /tcp or /udp is taken back for both.

    \b
    Examples:
      ptunnel revoke friend 9090
      ptunnel revoke friend 5000-5010 53/udp nas
      ptunnel revoke friend                      all of it; 'ptunnel peers forget friend' ends the acquaintance too
    """
    import trio

    from tunnel.cli.render import listing
    from tunnel.control.messages import Revoke
    from tunnel.errors import UnreachableError
    from tunnel.ports.granting import revoke

    home = open_home()
    home.peer(peer)

    def say(told: Mapping[str, Any]) -> None:
        if is_json:
            click.echo(json_line(told))
            return
        ended, grants = told["streams"], told["grants"]
        cut = f"; {ended} open connection{'s' * (ended > 1)} ended" if ended else ""
        if not grants:
            tell(f"{told['peer']} may reach nothing of this machine any more{cut}.")
        else:
            taken = listing(told["revoked"])
            left = f"What is left: {listing(grants)}."
            click.echo(f"{told['peer']} may not reach {taken} of this machine any more{cut}. {left}", err=True)
        if told.get("again"):
            tell("config.toml grants it still, from the next reload on: --save takes it out there.")

    if ask_up(home, Revoke(peer, [*what], saves), say):
        return 0
    if saves:
        raise UnreachableError(NOT_RUNNING)
    before = trio.run(_ended, home)
    revoked = revoke(peer, *what, home=home.path)
    after = trio.run(_ended, home)
    ended = sum(max(0, count - before.get(pid, 0)) for pid, count in after.items())
    told = {"peer": revoked.peer, "revoked": list(revoked.revoked), "grants": list(revoked.grants), "streams": ended}
    say({"event": "revoked", **told})
    return 0


async def _ended(home: Home) -> dict[int, int]:
    """How many streams each running process has ever ended for want of a grant, once it has looked at what is granted now.

    It is for the sentence only: a process that cannot be asked sees for itself, and nothing waits for it.
    """
    import trio

    from tunnel.control.client import ask_all
    from tunnel.control.messages import Look
    from tunnel.errors import TunnelError

    found: dict[int, int] = {}

    def take(pid: int, answer: dict[str, Any]) -> None:
        if answer["event"] == "looked":
            found[pid] = int(answer["revoked"])
        elif answer.get("code") == "bad_request":
            text = f"Process {pid} is an older ptunnel: what is open there goes on until that is ended."
            tell(text)

    with contextlib.suppress(TunnelError), trio.move_on_after(LOOK_PATIENCE):
        await ask_all(home.run_dir(), Look(), take)
    return found
