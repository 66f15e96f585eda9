"""The child of `ptunnel exec`: makes a network of its own, hands its TAP to the parent, and becomes the command.

It is a fresh interpreter with one thread, since a process with more may not enter a new user namespace.  Steps: unshare; map its
own user and group, and no other; mount what programs read about the network; make the TAP; leave a keeper behind; wait for "go";
give up every capability; execve.
Source: user_namespaces(7), network_namespaces(7), mount_namespaces(7).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import re
import signal
import socket
import sys
from pathlib import Path
from typing import Any, Final

from tunnel.doors.tun import configure, names
from tunnel.doors.tun.config import InterfaceConfig
from tunnel.doors.tun.create import NO_PRIVILEGE, create_tap
from tunnel.doors.tun.keeper import Keeper, settle
from tunnel.doors.tun.privileges import CAP_SYS_ADMIN, drop_privileges, has_capability
from tunnel.errors import ConfigurationError, TunnelError

CLONE_NEWNS: Final = 0x0002_0000  # linux/sched.h
CLONE_NEWUSER: Final = 0x1000_0000
CLONE_NEWNET: Final = 0x4000_0000
_MS_BIND, _MS_MOVE, _MS_REC, _MS_SLAVE = 4096, 8192, 16384, 1 << 19  # linux/mount.h
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_MNT_DETACH: Final = 2

MAX_MESSAGE: Final = 1 << 17  # bytes of the first message: the command's words and the configuration
MAX_SENTENCE: Final = 4_096  # bytes, which a pipe takes at once
TAP_NAME: Final = "ptunnel%d"
GO: Final = b"go"
NOT_FOUND: Final = 127  # as a shell's: sh(1)
NOT_EXECUTABLE: Final = 126

#: Sockets by which programs would ask the host's resolvers, which know a network that is not there.
HIDDEN: Final = ("/run/systemd/resolve", "/run/nscd", "/var/run/nscd", "/run/avahi-daemon")
#: Where a tmpfs is put for a moment, to make files on it.
SCRATCH: Final = ("/tmp", "/run", "/var", "/mnt")
RESOLV_CONF: Final = b"# The only network here is the tunnel, which has no name server; members' names are in /etc/hosts.\n"

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def mount(source: str, target: str, kind: str | None, flags: int) -> None:
    """mount(2).  Raises OSError."""
    encoded = kind.encode() if kind is not None else None
    _call("mount", source.encode(), target.encode(), encoded, ctypes.c_ulong(flags), None)


def why_refused(error: OSError) -> str:
    """Return one sentence that says what to do where namespaces are refused."""

    def setting(name: str) -> str:
        try:
            return Path("/proc/sys", *name.split(".")).read_text(encoding="ascii").strip()
        except OSError:
            return ""

    for name, bad, good in (
        ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
        ("kernel.unprivileged_userns_clone", "0", "1"),
        ("user.max_user_namespaces", "0", "10000"),
        ("user.max_net_namespaces", "0", "10000"),
    ):
        if setting(name) == bad:
            return (
                f"This system lets ordinary users make no network of their own: allow it (sudo sysctl -w {name}={good}), "
                "or run it with sudo."
            )
    why = os.strerror(error.errno or 0)
    return f"This system refuses a network of its own to the command ({why}): run it with sudo, or outside this container."


# ------------------------------------------------------------ the steps


def enter_namespaces() -> None:
    """Raises ConfigurationError."""
    uid, gid = os.geteuid(), os.getegid()
    everything = CLONE_NEWNET | CLONE_NEWNS
    try:
        _call("unshare", CLONE_NEWUSER | everything)
    except OSError as error:
        # Root needs no user namespace, and may go without where they are switched off.
        if not has_capability(CAP_SYS_ADMIN):
            raise ConfigurationError(why_refused(error)) from error
        try:
            _call("unshare", everything)
        except OSError as again:
            raise ConfigurationError(why_refused(again)) from again
        return
    try:
        # One user and one group, as they are outside: files keep their owners, and nobody becomes root.
        Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1", encoding="ascii")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1", encoding="ascii")
    except OSError as error:
        raise ConfigurationError(why_refused(error)) from error


def mount_private_files() -> int:
    """Private /etc/hosts, resolv.conf, nsswitch.conf and /sys over the real ones, in this mount namespace only.

    Gives a descriptor of the private hosts file: whoever has it can rewrite the file in place.  Raises OSError.
    """
    mount("none", "/", None, _MS_REC | _MS_SLAVE)
    for folder in HIDDEN:
        if os.path.isdir(folder) and not os.path.islink(folder):
            with contextlib.suppress(OSError):
                mount("none", folder, "tmpfs", _MS_NOSUID | _MS_NODEV)
    _refill_resolv_conf()
    scratch = next(folder for folder in SCRATCH if os.path.isdir(folder))
    before = {path: _read(path) for path in ("/etc/hosts", "/etc/nsswitch.conf")}
    mount("none", scratch, "tmpfs", _MS_NOSUID | _MS_NODEV)
    try:
        hosts = _bind(scratch, "/etc/hosts", before["/etc/hosts"] or b"127.0.0.1 localhost\n::1 localhost\n")
        os.close(_bind(scratch, "/etc/resolv.conf", RESOLV_CONF))
        os.close(_bind(scratch, "/etc/nsswitch.conf", only_files(before["/etc/nsswitch.conf"] or b"")))
        _mount_sysfs(os.path.join(scratch, "sys"))
    finally:
        _call("umount2", scratch.encode(), _MNT_DETACH)
    return hosts


def only_files(nsswitch: bytes) -> bytes:
    """nsswitch.conf with host names from files alone (and DNS, of which there is none): nothing outside is asked."""
    kept = re.sub(rb"(?m)^[ \t]*hosts:.*\n?", b"", nsswitch)
    return kept + (b"\n" if kept and not kept.endswith(b"\n") else b"") + b"hosts: files dns\n"


def _read(path: str) -> bytes | None:
    try:
        return Path(path).read_bytes()[: names.MAX_HOSTS_SIZE]
    except OSError:
        return None


def _refill_resolv_conf() -> None:
    """Where resolv.conf is a link into a folder that is hidden now, put a file there, for the private one to be mounted on."""
    target = os.path.realpath("/etc/resolv.conf")
    if not os.path.exists(target) and target.startswith(HIDDEN):
        with contextlib.suppress(OSError):
            Path(target).write_bytes(RESOLV_CONF)


def _bind(scratch: str, target: str, text: bytes) -> int:
    """A private file over `target`; its descriptor.  Where there is no such file the descriptor is of one that nobody sees."""
    path = os.path.join(scratch, os.path.basename(target))
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    names.overwrite(descriptor, text)
    with contextlib.suppress(FileNotFoundError):
        mount(path, target, None, _MS_BIND)
    return descriptor


def _mount_sysfs(scratch: str) -> None:
    """/sys as this network namespace sees it, else /sys/class/net names the host's interfaces.  Left where it is refused."""
    try:
        os.mkdir(scratch)
        mount("none", scratch, "sysfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    except OSError:
        with contextlib.suppress(OSError):
            mount("none", "/sys/class/net", "tmpfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
        return
    with contextlib.suppress(OSError):
        mount("/sys/fs/cgroup", os.path.join(scratch, "fs/cgroup"), None, _MS_BIND | _MS_REC)
    with contextlib.suppress(OSError):
        mount(scratch, "/sys", None, _MS_MOVE)


def allow_ping() -> None:
    """ICMP echo sockets for our group: without capabilities `ping` has no other way (icmp(7), ping_group_range)."""
    with contextlib.suppress(OSError):
        Path("/proc/sys/net/ipv4/ping_group_range").write_text(f"{os.getegid()} {os.getegid()}", encoding="ascii")


def leave_keeper(sock: socket.socket, name: str, hosts: int) -> None:
    """Fork twice, so that the command finds no child it never started; the keeper ends when the parent closes its socket."""
    original = os.pread(hosts, names.MAX_HOSTS_SIZE, 0)
    if original and not original.endswith(b"\n"):
        original += b"\n"

    def write_names(members: dict[str, list[str]]) -> None:
        text = names.with_own(original, socket.gethostname(), keeper.own_addresses)
        try:
            names.overwrite(hosts, text + names.lines(members))
        except OSError as error:
            raise ConfigurationError(f"The names could not be written: {os.strerror(error.errno or 0)}.") from error

    keeper = Keeper(name, write_names)
    first = os.fork()
    if first:
        os.waitpid(first, 0)
        sock.close()
        return
    try:
        if not os.fork():
            settle((sock.fileno(), hosts))
            keeper.serve(sock)
    finally:
        os._exit(0)


def become(words: list[str]) -> OSError:
    """execve the command with nothing of ours left; comes back only if that fails."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    drop_privileges(bounding=False)  # as root the files of `ping` and its like still count, and must not keep it from running
    try:
        os.execvp(words[0], words)
    except OSError as error:
        return error


def make_tap(name: str) -> tuple[int, str]:
    """(descriptor, name) of a TAP in here.  Raises ConfigurationError."""
    try:
        return create_tap(name)
    except ConfigurationError as error:
        cause = error.__cause__
        if str(error) == NO_PRIVILEGE and isinstance(cause, OSError):  # the file opens, and the namespace gives no privilege
            raise ConfigurationError(why_refused(cause)) from error
        raise


def why_not() -> str | None:
    """Why this system makes no network for a command, in a sentence; None where it does.  Takes some milliseconds.

    A child tries it, and what it has made ends with it.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            try:
                enter_namespaces()
                make_tap(TAP_NAME)
            except TunnelError as error:
                os.write(writer, str(error).encode()[:MAX_SENTENCE])
        finally:
            os._exit(0)
    os.close(writer)
    try:
        return os.read(reader, MAX_SENTENCE).decode(errors="replace") or None
    finally:
        os.close(reader)
        os.waitpid(pid, 0)


def _run(control: socket.socket, keeper: socket.socket) -> None:
    order: dict[str, Any] = json.loads(control.recv(MAX_MESSAGE))
    config = InterfaceConfig.from_json(order["config"])
    enter_namespaces()
    try:
        hosts = mount_private_files()
        configure.bring_up_loopback()
        allow_ping()
        tap, name = make_tap(config.name)
    except OSError as error:
        raise ConfigurationError(why_refused(error)) from error
    leave_keeper(keeper, name, hosts)
    socket.send_fds(control, [json.dumps({"ok": True, "name": name}).encode()], [tap])
    os.close(tap)
    os.close(hosts)
    if control.recv(len(GO)) != GO:
        return
    failure = become(order["command"])
    missing = failure.errno in (errno.ENOENT, errno.ENOTDIR)
    sentence = f"{order['command'][0]} cannot be run: {os.strerror(failure.errno or 0)}."
    control.send(json.dumps({"ok": False, "error": sentence, "code": NOT_FOUND if missing else NOT_EXECUTABLE}).encode())
    raise SystemExit(NOT_FOUND if missing else NOT_EXECUTABLE)


def main() -> None:
    """`python -m tunnel.doors.tun.inside CONTROL KEEPER`, two descriptors: started by doors/tun/namespace.py."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # ignored is what a shell's background commands inherit
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    control, keeper = (socket.socket(fileno=int(word)) for word in sys.argv[1:3])
    os.set_inheritable(control.fileno(), False)  # so it closes when the command runs, which tells the parent
    os.set_inheritable(keeper.fileno(), False)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    try:
        _run(control, keeper)
    except TunnelError as error:
        with contextlib.suppress(OSError):
            control.send(json.dumps({"ok": False, "error": str(error)}).encode())


if __name__ == "__main__":
    main()
