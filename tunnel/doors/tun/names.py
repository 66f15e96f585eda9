"""MEMBER.ptunnel names: a block of lines in the hosts file that is there while ptunnel runs.

systemd-resolved is served by the same block.  A link of its own is given nothing but the address of a DNS server, so `resolvectl
domain LINK ~ptunnel` would need a DNS server of ours on port 53, hardened against whatever programs ask it; while resolved itself
reads /etc/hosts, anew whenever it changes, and answers from it before any cache (resolved.conf(5), ReadEtcHosts, on by default).
So names work through nss-files, nss-resolve and resolved's stub listener alike, and a crash leaves lines, not a broken link.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import ipaddress
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from tunnel.errors import ConfigurationError

DOMAIN: Final = "ptunnel"
MAX_LABEL: Final = 63  # bytes of one label of a name (RFC 1035 §2.3.4)
MAX_NAMES: Final = 256  # more members than one subnet holds
MAX_ADDRESSES: Final = 4  # of one name
MAX_HOSTS_SIZE: Final = 32 << 20  # bytes: block lists against advertisements have some MB; what is larger is no hosts file
LOCK_TRIES: Final = 50  # for the lock between two ptunnels; each holds it for some milliseconds
LOCK_PAUSE: Final = 0.02  # seconds between two tries
HOSTS_MODE: Final = 0o644  # of a hosts file that was not there

_NOT_LETTERS: Final = re.compile(r"[^a-z0-9]+")
_BEGIN: Final = re.compile(rb"# ptunnel (\d{1,10}) (\d{1,20}) begin(?: (joined|created))?(?: [^\n]*)?\n?")
_HOST_NAME: Final = re.compile(rb"[A-Za-z0-9_.-]{1,253}")
_OUR_LINE: Final = re.compile(rb"[0-9a-f.:]+\t[a-z0-9-]+\.ptunnel\n?")

#: Why a file cannot be replaced by a rename although it may be written: it is a mount point (containers), its folder is not ours
#: to write, it is another file system, or owner and labels could not be kept.
_IN_PLACE: Final = frozenset((errno.EBUSY, errno.EACCES, errno.EPERM, errno.EXDEV, errno.EROFS, errno.ENOTSUP))

Names = Mapping[str, Iterable[str]]


def label(name: str) -> str:
    """A member's name as a label of [a-z0-9-]: never empty, at most MAX_LABEL bytes."""
    return _NOT_LETTERS.sub("-", name.lower()).strip("-")[:MAX_LABEL].rstrip("-") or "member"


def labels(names: Iterable[str]) -> dict[str, str]:
    """A label for every name, all different; of those that would be alike the first keeps it and others get -2, -3 ..."""
    found: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        wanted = candidate = label(name)
        number = 1
        while candidate in taken:
            number += 1
            suffix = f"-{number}"
            candidate = wanted[: MAX_LABEL - len(suffix)].rstrip("-") + suffix
        taken.add(candidate)
        found[name] = candidate
    return found


def lines(names: Names) -> bytes:
    """The lines of a hosts file for the members, one for each address.  Raises ConfigurationError for what is no address."""
    if len(names) > MAX_NAMES:
        raise ConfigurationError(f"A room has at most {MAX_NAMES} names.")
    found = []
    by_name = labels(names)
    for name, addresses in names.items():
        for number, address in enumerate(addresses):
            if number >= MAX_ADDRESSES:
                raise ConfigurationError(f"A name stands for at most {MAX_ADDRESSES} addresses.")
            try:
                found.append(f"{ipaddress.ip_address(address)}\t{by_name[name]}.{DOMAIN}\n")
            except ValueError:
                raise ConfigurationError(f"{address!r} is no address that a name can stand for.") from None
    return "".join(found).encode("ascii")


def with_own(hosts: bytes, host_name: str, addresses: Iterable[str]) -> bytes:
    """A hosts file in which this machine's own name stands for its addresses in the LAN, and no longer for the loopback ones.

    A program that tells its address finds it by that name, and Debian has 127.0.1.1 there.  Other lines are kept byte for byte.
    """
    name = host_name.encode("utf-8", "replace")
    if not _HOST_NAME.fullmatch(name) or name.lower() == b"localhost":
        return hosts
    own = [address.encode() for address in addresses]
    if not own:
        return hosts
    kept, aliases = [], [name]
    for row in hosts.splitlines(keepends=True):
        words = row.partition(b"#")[0].split()
        if len(words) > 1 and words[0].startswith((b"127.", b"::1")) and name in words[1:]:
            others = [word for word in words[1:] if word.startswith((b"localhost", b"ip6-"))]
            aliases += [word for word in words[1:] if word not in (*aliases, *others)]
            if not others:
                continue
            row = b"\t".join((words[0], *others)) + b"\n"
        kept.append(row)
    if kept and not kept[-1].endswith(b"\n"):
        kept.append(b"\n")
    return b"".join([*kept, *(address + b"\t" + b" ".join(aliases) + b"\n" for address in own)])


def start_time(pid: int) -> int | None:
    """When a process started, in ticks since the machine did (proc(5), field 22); None if there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return int(text.rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


class HostsFile:
    """Our block in one hosts file.  Other people's lines are kept byte for byte; blocks of dead processes go at every change."""

    def __init__(self, path: str | Path = "/etc/hosts", *, pid: int | None = None) -> None:
        self._path = Path(path)
        self._pid = os.getpid() if pid is None else pid
        self._start = start_time(self._pid) or 0

    def write(self, names: Names) -> None:
        """Replace our block; no names: remove it.  Raises ConfigurationError with a sentence."""
        body = lines(names)
        try:
            # A link is followed: it is the file behind it that has the lines.
            path = self._path.resolve()
            with _locked(path.parent):
                self._edit(path, body)
        except OSError as error:
            why = os.strerror(error.errno or 0)
            raise ConfigurationError(
                f"Names such as home.{DOMAIN} do not resolve: {self._path} cannot be written ({why})."
            ) from error

    def remove(self) -> None:
        """Take our block out again, and blocks of the dead with it.  Raises ConfigurationError."""
        self.write({})

    def _edit(self, path: Path, body: bytes) -> None:
        before = _read(path)
        text, created = without_blocks(before or b"", self._is_stale_or_ours)
        if body:
            words = ""
            if before is None or (created and not text):
                words = " created"
            elif text and not text.endswith(b"\n"):
                words = " joined"
                text += b"\n"
            mark = f"# ptunnel {self._pid} {self._start}"
            begin = f"{mark} begin{words} (removed when ptunnel ends)\n"
            text += begin.encode() + body + f"{mark} end\n".encode()
        if created and not text:
            path.unlink()
        elif text != (before or b""):
            _replace(path, text, is_new=before is None)

    def _is_stale_or_ours(self, pid: int, start: int) -> bool:
        return (pid, start) == (self._pid, self._start) or start_time(pid) != start


def without_blocks(text: bytes, is_to_go: Callable[[int, int], bool]) -> tuple[bytes, bool]:
    """The text without the blocks for whose (pid, start) `is_to_go` says so, and whether one of those had created the file.

    A block whose end is missing loses its first line and the lines that only we write.
    """
    kept: list[bytes] = []
    created = False
    rows = re.findall(rb"[^\n]*\n|[^\n]+", text)  # bytes.splitlines would cut at a carriage return too
    at = 0
    while at < len(rows):
        begin = _BEGIN.fullmatch(rows[at])
        if begin is None or not is_to_go(int(begin[1]), int(begin[2])):
            kept.append(rows[at])
            at += 1
            continue
        end_row = b"# ptunnel %s %s end" % (begin[1], begin[2])
        end = next((n for n in range(at + 1, len(rows)) if rows[n].rstrip(b"\n") == end_row), None)
        if end is None:
            at += 1
            while at < len(rows) and _OUR_LINE.fullmatch(rows[at]):
                at += 1
        else:
            at = end + 1
        created = created or begin[3] == b"created"
        # The newline in front was ours, unless somebody has written behind the block since.
        if begin[3] == b"joined" and kept and at >= len(rows):
            kept[-1] = kept[-1].removesuffix(b"\n")
    return b"".join(kept), created


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One ptunnel at a time: a lock on the folder, since the file itself is replaced.

    Whoever may read the folder can hold such a lock, every user of the machine that is: so it is not waited for without end.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for _ in range(LOCK_TRIES):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(LOCK_PAUSE)
            except OSError:
                break  # some network file systems have no locks
            else:
                break
        yield
    finally:
        os.close(descriptor)


def _read(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_HOSTS_SIZE + 1)
    except FileNotFoundError:
        return None
    if len(text) > MAX_HOSTS_SIZE:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    return text


def _replace(path: Path, text: bytes, *, is_new: bool) -> None:
    """By a rename that keeps mode, owner and labels, so that no reader sees half a file; in place where that cannot be."""
    if not is_new and path.stat().st_nlink > 1:
        write_in_place(path, text)
        return
    temporary = path.with_name(f".{path.name}.ptunnel-{os.getpid()}")
    try:
        try:
            _write_beside(path, temporary, text, is_new=is_new)
            temporary.rename(path)
        except OSError as error:
            if is_new or error.errno not in _IN_PLACE:
                raise
            write_in_place(path, text)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _write_beside(path: Path, temporary: Path, text: bytes, *, is_new: bool) -> None:
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()  # of a process with our number that died halfway
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        if is_new:
            os.fchmod(descriptor, HOSTS_MODE)
        else:
            like = path.stat()
            if (like.st_uid, like.st_gid) != (os.geteuid(), os.getegid()):
                os.fchown(descriptor, like.st_uid, like.st_gid)
            os.fchmod(descriptor, stat.S_IMODE(like.st_mode))
            for name in os.listxattr(path):
                os.setxattr(descriptor, name, os.getxattr(path, name))
        file.write(text)
        file.flush()
        os.fsync(descriptor)


def write_in_place(path: Path, text: bytes) -> None:
    """Write over the file, without a moment at which it is empty.  Raises OSError, and leaves the file as it was."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        before = os.pread(descriptor, MAX_HOSTS_SIZE, 0)
        try:
            overwrite(descriptor, text)
        except OSError:  # a full disk takes a part; what was there before still has its room
            overwrite(descriptor, before)
            raise
    finally:
        os.close(descriptor)


def overwrite(descriptor: int, text: bytes) -> None:
    """Make `text` all that the file holds.  Raises OSError."""
    at = 0
    while at < len(text):
        at += os.pwrite(descriptor, text[at:], at)
    os.ftruncate(descriptor, len(text))
