"""`ptunnel page`: opens the page of the running `ptunnel up` in a browser."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any, Final

import click

from tunnel.cli.options import common, open_home
from tunnel.cli.render import json_line, put_row, tell
from tunnel.cli.resident import require_up

if TYPE_CHECKING:
    from pathlib import Path

    from tunnel.cli.render import Output
    from tunnel.up.home import Home

RETRY_INTERVAL: Final = 30.0  # seconds until a place that somebody else has is tried again
LEADER: Final = "page.html"  # the file in PTUNNEL_HOME that leads a browser to the page
_LEADER: Final = '<!doctype html><meta charset="utf-8"><title>ptunnel</title><meta http-equiv="refresh" content="0; url={}">\n'


@click.command("page")
@click.option("--print", "is_printed", is_flag=True, help="Print the address, and open no browser.")
@common
def command(is_printed: bool, is_json: bool, verbose: int) -> int:
    """Open the page of the running 'ptunnel up' in a browser, and print its address: who is connected, direct or relayed and why;
    forwards, grants, invitations and rooms.  The address has a token in it that lets whoever has it do all of that.

    \b
    config.toml:
      page = "127.0.0.1:24580"             for browsers of this machine; or unix:/PATH

    \b
    Examples:
      ptunnel config page 127.0.0.1:24580  and 'ptunnel reload'
      ptunnel page
      ptunnel page --print                 elsewhere, by 'ssh -L 24580:localhost:24580 HERE'
    """
    from tunnel.control.messages import FindPage

    found: list[dict[str, Any]] = []
    home = open_home()
    require_up(home, FindPage(), found.append)
    for page in found:
        if is_json:
            click.echo(json_line(page))
            continue
        put_row(page["url"])
        if page["socket"] is not None:
            tell(f"It is at a Unix socket: first have a port lead there, as by 'ssh -L 24580:{page['socket']} HERE'.")
        elif not is_printed and _has_screen():
            _open(home.path, page["url"])
    return 0


def _has_screen() -> bool:
    """Whether a browser of this user would have somewhere to show it."""
    return sys.platform in ("win32", "darwin") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def leader_of(url: str) -> str:
    """Return a page that leads to `url`."""
    return _LEADER.format(escape(url))


def _open(folder: Path, url: str) -> None:
    """By way of a file that only we may read: every user may read the words that a browser is started with."""
    import webbrowser

    from tunnel.state.files import write_private

    path = folder / LEADER
    write_private(path, leader_of(url).encode())
    if not webbrowser.open(path.as_uri()):
        tell("No browser was found: open the address yourself.")


async def serve(home: Home, where: str, output: Output) -> None:
    """Show the page of `home` until cancelled.  A place that somebody else has is told once, and tried again."""
    import trio

    from tunnel.cli.offers import all_in_one
    from tunnel.errors import ConfigurationError
    from tunnel.page.gate import Gate, token_of
    from tunnel.page.place import read_place
    from tunnel.page.server import Page, address_of, open_listener
    from tunnel.pairing.grants import GrantSet

    def offer(code: str, what: Sequence[str]) -> tuple[str, float]:
        return all_in_one(code, home.exposure.server or "", list(GrantSet.parse(*what))), home.codes.lifetime

    place = read_place(where)
    token = token_of(await trio.to_thread.run_sync(home.state.page_secret))
    page = Page(home, offer, Gate(place, token), home.driver.faults)
    home.page_refused = page.refused
    is_told = False
    while True:
        try:
            with open_listener(place) as listener:
                home.page = {"url": address_of(place, token), "socket": place.path or None}
                if is_told:
                    output.log("The page is there now.", what="page")
                try:
                    await page.run(listener)
                finally:
                    home.page = None
        except ConfigurationError as error:
            if not is_told:
                is_told = True
                output.warn(f"{error} It is tried again.", code="no_page")
        await trio.sleep(RETRY_INTERVAL)
