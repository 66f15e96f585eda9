"""The block in the hosts file: other people's lines stay byte for byte, blocks of the dead go, names are clean and unique."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.doors.tun.names import (
    MAX_HOSTS_SIZE,
    MAX_LABEL,
    MAX_NAMES,
    HostsFile,
    label,
    labels,
    lines,
    overwrite,
    start_time,
    with_own,
    without_blocks,
)
from tunnel.errors import ConfigurationError

NAMES = {"Home PC": ["10.77.1.1", "fd12::1"], "laptop": ["10.77.1.2"]}
BODY = b"10.77.1.1\thome-pc.ptunnel\nfd12::1\thome-pc.ptunnel\n10.77.1.2\tlaptop.ptunnel\n"
DEAD = (4_194_303, 1)  # a pid that no machine with the usual limit has twice in a row, and a start long ago


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "hosts"
    path.write_bytes(b"127.0.0.1\tlocalhost\n# kept\r\n::1 localhost\n")
    return path


@given(st.text(max_size=100))
def test_a_label_is_what_dns_takes(name: str) -> None:
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", label(name))


@given(st.lists(st.sampled_from(["a", "A", "a!", "a-2", "é", "", "x" * 80, "x" * 90, "x" * 63]), unique=True))
def test_labels_are_all_different(names: list[str]) -> None:
    found = labels(names)
    assert len(set(found.values())) == len(names)
    assert all(len(one) <= MAX_LABEL for one in found.values())


def test_the_first_of_two_that_look_alike_keeps_its_name() -> None:
    assert labels(["Anna", "anna", "ANNA!"]) == {"Anna": "anna", "anna": "anna-2", "ANNA!": "anna-3"}


def test_lines_are_one_for_each_address() -> None:
    assert lines(NAMES) == BODY


@pytest.mark.parametrize("names", [{"a": ["1.2.3"]}, {"a": ["10.0.0.1\n6.6.6.6 bank"]}, {"a": ["10.0.0.1"] * 5}])
def test_what_is_no_address_makes_no_line(names: dict[str, list[str]]) -> None:
    with pytest.raises(ConfigurationError):
        lines(names)


@pytest.mark.parametrize(
    "before", [b"", b"127.0.0.1 localhost\n", b"127.0.0.1 localhost", b"a\r\nb\r\n\n\n", b"\xff\xfe no text \x00"]
)
def test_the_block_comes_and_goes_and_leaves_every_byte(path: Path, before: bytes) -> None:
    path.write_bytes(before)
    hosts = HostsFile(path)
    hosts.write(NAMES)
    held = path.read_bytes()
    assert held.startswith(before)
    assert BODY in held
    assert f"# ptunnel {os.getpid()} {start_time(os.getpid())} begin".encode() in held
    hosts.write({"other": ["10.77.1.9"]})
    assert b"home-pc" not in path.read_bytes()
    hosts.remove()
    assert path.read_bytes() == before


def test_a_file_that_was_not_there_is_gone_again(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    hosts = HostsFile(path)
    hosts.remove()
    assert not path.exists()
    hosts.write(NAMES)
    hosts.write({"one": ["10.77.1.9"]})
    assert path.stat().st_mode & 0o777 == 0o644
    hosts.remove()
    assert not path.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_block_of_a_dead_process_goes_and_one_of_a_living_stays(path: Path) -> None:
    before = path.read_bytes()
    HostsFile(path, pid=os.getppid()).write({"theirs": ["10.1.1.1"]})
    living = path.read_bytes()
    with path.open("ab") as file:
        file.write(
            b"# ptunnel %d %d begin (removed when ptunnel ends)\n10.2.2.2\tdead.ptunnel\n# ptunnel %d %d end\n" % (*DEAD, *DEAD)
        )
        # This very process has another start time than an earlier one of the same number.
        file.write(b"# ptunnel %d 1 begin\n10.2.2.2\tdead.ptunnel\n# ptunnel %d 1 end\n" % (os.getpid(), os.getpid()))
    HostsFile(path).remove()
    assert path.read_bytes() == living
    HostsFile(path, pid=os.getppid()).remove()
    assert path.read_bytes() == before


def test_the_block_of_a_killed_process_goes_at_the_next_start(path: Path) -> None:
    before = path.read_bytes()
    script = (
        "import os, signal, sys\nfrom tunnel.doors.tun.names import HostsFile\n"
        "HostsFile(sys.argv[1]).write({'a': ['10.1.1.1']})\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", script, str(path)], check=False, timeout=30)
    assert b"a.ptunnel" in path.read_bytes()
    hosts = HostsFile(path)
    hosts.write(NAMES)
    assert b"\ta.ptunnel" not in path.read_bytes()
    hosts.remove()
    assert path.read_bytes() == before


def test_a_block_without_an_end_loses_only_the_lines_that_we_write() -> None:
    text = b"one\n# ptunnel 4194303 1 begin\n10.2.2.2\tdead.ptunnel\n10.3.3.3 mine\nfd00::1\tlater.ptunnel\n"
    assert without_blocks(text, lambda pid, start: True) == (b"one\n10.3.3.3 mine\nfd00::1\tlater.ptunnel\n", False)


def test_the_newline_we_added_stays_once_somebody_wrote_behind_our_block(path: Path) -> None:
    path.write_bytes(b"127.0.0.1 localhost")
    hosts = HostsFile(path)
    hosts.write(NAMES)
    with path.open("ab") as file:
        file.write(b"10.5.5.5 new\n")
    hosts.remove()
    assert path.read_bytes() == b"127.0.0.1 localhost\n10.5.5.5 new\n"


@given(
    st.binary(max_size=200)
    | st.lists(st.sampled_from([b"# ptunnel 1 2 begin\n", b"# ptunnel 1 2 end\n", b"10.1.1.1\ta.ptunnel\n", b"x\n", b"y"])).map(
        b"".join
    )
)
def test_any_bytes_are_a_hosts_file(text: bytes) -> None:
    kept, _ = without_blocks(text, lambda pid, start: True)
    assert len(kept) <= len(text)
    assert without_blocks(text, lambda pid, start: False)[0] == text


def test_whoever_else_locks_the_folder_of_the_hosts_file_keeps_us_waiting_for_a_moment_only(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every user of the machine can hold a lock on /etc."""
    pauses: list[float] = []
    monkeypatch.setattr("tunnel.doors.tun.names.time.sleep", pauses.append)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        HostsFile(path).write(NAMES)
    finally:
        os.close(folder)
    assert b"ptunnel" in path.read_bytes()
    assert 0.5 <= sum(pauses) <= 2.0


def test_mode_and_owner_stay_and_the_file_is_replaced_whole(path: Path) -> None:
    path.chmod(0o640)
    before = path.stat()
    HostsFile(path).write(NAMES)
    after = path.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert after.st_ino != before.st_ino
    assert [file.name for file in path.parent.iterdir()] == ["hosts"]


def test_a_link_is_followed_and_a_second_name_of_the_file_keeps_its_contents(path: Path) -> None:
    link = path.with_name("link")
    link.symlink_to(path)
    twin = path.with_name("twin")
    twin.hardlink_to(path)
    HostsFile(link).write(NAMES)
    assert link.is_symlink()
    assert twin.read_bytes() == path.read_bytes()
    assert BODY in twin.read_bytes()


def test_where_no_rename_is_possible_the_file_is_written_in_place(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a file that is a mount point: tests/netns has a real one."""

    def busy(self: Path, target: object) -> Path:
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(Path, "rename", busy)
    before, inode = path.read_bytes(), path.stat().st_ino
    hosts = HostsFile(path)
    hosts.write(NAMES)
    assert BODY in path.read_bytes()
    hosts.remove()
    assert (path.read_bytes(), path.stat().st_ino) == (before, inode)
    assert [file.name for file in path.parent.iterdir()] == ["hosts"]


def test_a_block_that_somebody_took_away_is_written_again(path: Path) -> None:
    before = path.read_bytes()
    hosts = HostsFile(path)
    for _ in range(2):
        hosts.write(NAMES)
        assert BODY in path.read_bytes()
        path.write_bytes(before)
    hosts.remove()
    assert path.read_bytes() == before


def test_a_full_disk_leaves_a_file_that_is_written_in_place_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours and everybody else's lines: a block of a dead process in front of them would otherwise have been half moved."""
    dead = b"# ptunnel 1 1 begin (removed when ptunnel ends)\n10.77.1.9\told.ptunnel\n# ptunnel 1 1 end\n"
    before = dead + path.read_bytes() + b"192.0.2.7\tmine\n"
    path.write_bytes(before)
    path.with_name("twin").hardlink_to(path)  # so that it is written in place
    write = os.pwrite

    def full(descriptor: int, text: bytes, at: int) -> int:
        if at >= len(before):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, text[: min(20, len(before) - at)], at)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(ConfigurationError, match="No space left on device"):
        HostsFile(path).write({f"member-{number}": ["10.77.1.2"] for number in range(50)})
    assert path.read_bytes() == before


def test_a_hosts_file_that_cannot_be_written_is_told_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"do not resolve: .*hosts cannot be written"):
        HostsFile(tmp_path / "missing" / "hosts").write(NAMES)


def test_overwriting_leaves_no_rest(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+b") as file:
        file.write(b"a long text")
        file.flush()
        overwrite(file.fileno(), b"short")
    assert (tmp_path / "file").read_bytes() == b"short"


def test_a_room_has_so_many_names() -> None:
    names = {f"member {number}": ["10.77.1.1"] for number in range(MAX_NAMES)}
    assert lines(names).count(b"\n") == MAX_NAMES
    with pytest.raises(ConfigurationError, match=f"at most {MAX_NAMES} names"):
        lines({**names, "one more": ["10.77.1.1"]})


def test_what_is_larger_than_any_hosts_file_is_not_touched(path: Path) -> None:
    for size in (MAX_HOSTS_SIZE, MAX_HOSTS_SIZE + 1):
        os.truncate(path, size)  # the rest of it is a hole
        if size > MAX_HOSTS_SIZE:
            with pytest.raises(ConfigurationError, match="do not resolve"):
                HostsFile(path).write(NAMES)
            assert path.stat().st_size == size
        else:
            HostsFile(path).write(NAMES)
            assert path.stat().st_size > size


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"127.0.0.1\tlocalhost\n127.0.1.1\tanna.lan anna\n", b"127.0.0.1\tlocalhost\n10.77.1.1\tanna anna.lan\n"),
        (b"127.0.0.1 localhost anna\n::1 localhost anna", b"127.0.0.1\tlocalhost\n::1\tlocalhost\n10.77.1.1\tanna\n"),
        (b"192.168.1.5 anna\n# 127.0.1.1 anna\n", b"192.168.1.5 anna\n# 127.0.1.1 anna\n10.77.1.1\tanna\n"),
        (b"127.0.1.1 annabel\r\n", b"127.0.1.1 annabel\r\n10.77.1.1\tanna\n"),
        (b"", b"10.77.1.1\tanna\n"),
    ],
)
def test_this_machines_own_name_stands_for_its_address_in_the_room(before: bytes, after: bytes) -> None:
    assert with_own(before, "anna", ["10.77.1.1"]) == after
    assert with_own(before, "anna", []) == before, "none is known yet"


@pytest.mark.parametrize("name", ["localhost", "", "two words", "line\nbreak"])
def test_a_name_that_is_none_changes_no_hosts_file(name: str) -> None:
    assert with_own(b"127.0.0.1 localhost\n", name, ["10.77.1.1"]) == b"127.0.0.1 localhost\n"
