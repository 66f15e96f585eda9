"""Rsync: a tree in both directions, by its own protocol and over ssh, also while the path changes under it."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests.netns.programs import ORDINARY, Sshd, random_file
from tests.programs.homes import SLOW_S, Homes, needs

pytestmark = needs("rsync")

COPY = ("--recursive", "--links", "--perms", "--times")  # --archive without owners, who may be nobody in a namespace
BIG = 12_000_000
RATE = 4000  # KiB/s, so that there is a middle in which something can happen
CONFIG = """use chroot = no
[tree]
path = %s
read only = no
munge symlinks = no
"""


def make_tree(folder: Path) -> Path:
    """Many small files, one large one and a link."""
    for number in range(300):
        (folder / f"d{number % 7}").mkdir(parents=True, exist_ok=True)
        (folder / f"d{number % 7}" / f"f{number}").write_text(f"{number}\n" * number, encoding="ascii")
    random_file(folder / "big", BIG)
    (folder / "link").symlink_to("big")
    return folder


def same(homes: Homes, one: Path, other: Path) -> None:
    assert homes.use("diff", "--recursive", one, other).stdout == ""


def test_a_tree_comes_whole_while_the_friends_router_forgets_and_goes_back(homes: Homes) -> None:
    tree, taken, back = make_tree(homes.folder / "served" / "tree"), homes.folder / "taken", homes.folder / "served" / "back"
    settings = homes.folder / "rsyncd.conf"
    settings.write_text(CONFIG % tree.parent, encoding="utf-8")
    words = [*ORDINARY, "rsync", "--daemon", "--no-detach", "--address=127.0.0.1", "--port=8730", f"--config={settings}"]
    homes.serve("rsyncd", words, 8730)
    pair = homes.link("8730", forward=["18730:8730"])
    url = "rsync://127.0.0.1:18730/tree"
    fetch = homes.start("rsync", "rsync", *COPY, "--checksum", f"--bwlimit={RATE}", f"{url}/tree/", f"{taken}/")
    homes.wait_bytes(pair, BIG // 4)
    assert fetch.process.poll() is None
    homes.rebind()
    assert fetch.wait(SLOW_S) == 0, fetch.said()
    same(homes, tree, taken)
    homes.use("rsync", *COPY, f"{taken}/", f"{url}/back/")
    same(homes, tree, back)


@pytest.mark.nightly
def test_a_tree_goes_over_ssh_while_the_server_restarts(homes: Homes) -> None:
    tree, back = make_tree(homes.folder / "tree"), homes.folder / "back"
    sshd = Sshd(homes.lab, homes.home)
    pair = homes.link(str(sshd.port), forward=[f"2222:{sshd.port}"])
    shell = shlex.join(["ssh", *sshd.options(), "-p", "2222"])
    words = ["rsync", *COPY, f"--bwlimit={RATE}", "--rsh", shell, f"{tree}/", f"{sshd.user}@127.0.0.1:{back}/"]
    push = homes.start("rsync", *words)
    homes.wait_bytes(pair, BIG // 4)
    assert push.process.poll() is None
    homes.restart_server()
    assert push.wait(SLOW_S) == 0, push.said()
    same(homes, tree, back)
