"""Git: clone and push, by its own protocol and over ssh."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests.netns.kernel import python_module
from tests.netns.programs import Sshd, environment, random_file
from tests.programs.homes import Homes, needs

pytestmark = needs("git", "/usr/lib/git-core/git-daemon")

SIZE = 6_000_000
AUTHOR = ("-c", "user.name=Friend", "-c", "user.email=friend@example.net", "-c", "init.defaultBranch=main")


def make_repository(homes: Homes) -> Path:
    """A bare one at home, with one commit that holds a large file."""
    first, bare = homes.folder / "first", homes.folder / "served" / "project.git"
    homes.use("git", *AUTHOR, "init", "--quiet", first)
    random_file(first / "picture", SIZE)
    homes.use("git", "-C", first, "add", ".")
    homes.use("git", *AUTHOR, "-C", first, "commit", "--quiet", "--message", "A picture")
    homes.use("git", "clone", "--quiet", "--bare", first, bare)
    return bare


def clone_and_push(homes: Homes, url: str, bare: Path, *settings: str) -> None:
    copy = homes.folder / "copy"
    homes.use("git", *settings, "clone", "--quiet", url, copy)
    homes.use("git", "-C", copy, "fsck", "--full", "--strict")
    random_file(copy / "answer", SIZE)
    homes.use("git", "-C", copy, "add", ".")
    homes.use("git", *AUTHOR, "-C", copy, "commit", "--quiet", "--message", "An answer")
    homes.use("git", *settings, "-C", copy, "push", "--quiet", "origin", "HEAD")
    ours, theirs = homes.use("git", "-C", copy, "rev-parse", "HEAD"), homes.use("git", "-C", bare, "rev-parse", "HEAD")
    assert ours.stdout == theirs.stdout
    homes.use("git", "-C", bare, "fsck", "--full", "--strict")


def test_clone_and_push_by_gits_own_protocol(homes: Homes) -> None:
    bare = make_repository(homes)
    words = ["--export-all", "--enable=receive-pack", "--listen=127.0.0.1", "--port=9418", f"--base-path={bare.parent}"]
    homes.serve("git-daemon", ["/usr/lib/git-core/git-daemon", *words], 9418)
    homes.link("9418", forward=["19418:9418"])
    clone_and_push(homes, "git://127.0.0.1:19418/project.git", bare)


@pytest.mark.parametrize("way", [pytest.param("forward", marks=pytest.mark.nightly), "stdio"])
def test_clone_and_push_over_ssh(homes: Homes, way: str) -> None:
    bare = make_repository(homes)
    sshd = Sshd(homes.lab, homes.home)
    pair = homes.link(str(sshd.port), forward=[f"2222:{sshd.port}"])
    command = ["ssh", *sshd.options(), "-p", "2222"]
    if way == "stdio":
        proxy = shlex.join(python_module("tunnel", "connect", "home", "--stdio", str(sshd.port)))
        command += ["-o", f"ProxyCommand={proxy}"]
        homes.env = environment(pair.connector.home)
    clone_and_push(homes, f"ssh://{sshd.user}@127.0.0.1{bare}", bare, "-c", f"core.sshCommand={shlex.join(command)}")
