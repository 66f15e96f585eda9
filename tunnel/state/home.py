"""PTUNNEL_HOME: identity.json, peers.json, ways.json, nodes.json, sessions.json, server.json, config.toml, locks, and control
sockets.

Reading takes no lock, because files are replaced whole; writing reads, changes and replaces under one lock.  A file
that is damaged or of a newer format raises StateError from reading, and so is never written over.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

from msgspec.structs import replace

from tunnel.errors import AlreadyRunningError, StateError
from tunnel.state import nodes as node_rules
from tunnel.state import peers as rules
from tunnel.state import ways as way_rules
from tunnel.state.config_file import ConfigFile, read_config, with_setting
from tunnel.state.documents import Key, decode_record, read_document, write_document
from tunnel.state.files import (
    INCAPABLE,
    FileLock,
    append_private,
    exclusive,
    explain,
    is_incapable,
    make_private_directory,
    read_private,
    write_private,
)
from tunnel.state.nodes import KnownNode
from tunnel.state.peers import Peer
from tunnel.state.sessions import SessionFile
from tunnel.state.ways import Way
from tunnel.units import KEY_SIZE, Address

MAX_REPORTS: Final = 256 * 1024  # bytes of faults.log
SECRET_VERSION: Final = 1  # of the format of identity.json, server.json and page.json
#: Bytes of the longest path a Unix socket may have (sun_path, 104 on macOS), less room for "/4194304.sock".
MAX_RUN_PATH: Final = 104 - 1 - len("/4194304.sock")
#: Where a process finds the directories that it has open (Linux): by way of it, the path of a socket is never too long.
OPEN_DIRECTORIES: Final = "/proc/self/fd"

Subject = TypeVar("Subject")
#: From all peers to all peers, and whom it was about.  Changes nothing by itself.
Change: TypeAlias = Callable[[list[Peer]], tuple[list[Peer], Subject]]


def default_path(environ: Mapping[str, str] | None = None) -> Path:
    """PTUNNEL_HOME, or the user's directory for state (~/.local/state/ptunnel on Linux).

    Raises StateError where there is neither, as for a user without an entry in the system's list of users.
    """
    chosen = (os.environ if environ is None else environ).get("PTUNNEL_HOME")
    try:
        if chosen:
            return Path(chosen).expanduser()
        import platformdirs

        found = platformdirs.user_state_path("ptunnel", appauthor=False)
        if not found.is_absolute():  # "~" that nobody could replace
            raise RuntimeError
    except (RuntimeError, KeyError):
        raise StateError("This user has no home directory: set PTUNNEL_HOME to a directory of its own.") from None
    return _roots_own(found)


def _roots_own(found: Path) -> Path:
    """Root's directory in place of another user's, where `sudo` keeps HOME.

    Else root would make that user's ~/.local root's, and either could not write what the other made.
    """
    if getattr(os, "geteuid", lambda: -1)() != 0:
        return found
    nearest = next((each for each in (found, *found.parents) if each.exists()), found)
    try:
        if nearest.stat().st_uid == 0:
            return found
        import pwd

        home = Path(pwd.getpwuid(0).pw_dir)
    except (OSError, KeyError):
        return found
    theirs = Path.home()
    return home / (found.relative_to(theirs) if found.is_relative_to(theirs) else ".local/state/ptunnel")


@dataclass(frozen=True, slots=True)
class _SecretFile:
    """KEY_SIZE random bytes in a file of their own."""

    path: Path
    kind: str
    field: str

    def read(self) -> bytes | None:
        return read_document(self.path, self.kind, SECRET_VERSION, lambda content: decode_record(content.get(self.field), Key))

    def read_or_make(self) -> bytes:
        """The caller holds the lock; another process may have been first."""
        secret = self.read()
        if secret is None:
            secret = os.urandom(KEY_SIZE)
            write_document(self.path, self.kind, SECRET_VERSION, {self.field: base64.b64encode(secret).decode()})
        return secret


class Home:
    """One PTUNNEL_HOME.  Nothing is made before something is written."""

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = Path(path if path is not None else default_path()).absolute()
        self._identity = _SecretFile(self.path / "identity.json", "identity", "private_key")
        self._server = _SecretFile(self.path / "server.json", "server", "secret")
        self._page = _SecretFile(self.path / "page.json", "page", "secret")
        self._peers_path = self.path / "peers.json"
        self._ways_path = self.path / "ways.json"
        self._nodes_path = self.path / "nodes.json"
        self._config_path = self.path / "config.toml"
        self._lock_path = self.path / "lock"

    # -- who we are

    def identity(self) -> bytes:
        """Our static private key, 32 random bytes, made at the first call.  Raises StateError."""
        return self._secret(self._identity)

    def server_secret(self) -> bytes:
        """Return the secret by which a rendezvous server of this home knows its codes: 32 random bytes, made at the first call.

        Raises StateError.
        """
        return self._secret(self._server)

    def page_secret(self) -> bytes:
        """Return the secret of which the page's token is made, which is the same after a restart: 32 random bytes, made at the
        first call.

        Raises StateError.
        """
        return self._secret(self._page)

    def _secret(self, which: _SecretFile) -> bytes:
        secret = which.read()
        if secret is not None:
            return secret
        make_private_directory(self.path)
        with self.exclusive():
            return which.read_or_make()

    # -- whom we remember

    def peers(self) -> list[Peer]:
        """All remembered peers by name.  Raises StateError."""
        found = read_document(self._peers_path, rules.KIND, rules.VERSION, rules.decode_peers)
        return sorted(found or [], key=lambda peer: peer.name.casefold())

    def peer(self, name: str) -> Peer:
        """Raises ConfigurationError with the known names."""
        return rules.known(self.peers(), name)

    def find_static(self, static: bytes) -> Peer | None:
        """The peer with this public key."""
        return next((peer for peer in self.peers() if peer.static == static), None)

    def save_peer(self, peer: Peer) -> Peer:
        """Remember a peer, or replace what is known under its key; returns it under the name that it got.

        A known key keeps its name; a name that is taken by another gets a number.
        """
        return self._change_peers(lambda peers: rules.add(peers, peer))

    def unpair(self, static: bytes, psk: bytes, before: Peer | None) -> Peer | None:
        """Take back a pairing that came to nothing; returns who is remembered under that key now.  Raises StateError."""
        return self._change_peers(lambda peers: rules.unpair(peers, static, psk, before))

    def update_peer(self, static: bytes, **changes: Any) -> Peer | None:
        """Change some fields (last_seen, machines, server, grants, psk, version) of a peer; None when it has been forgotten."""

        def change(peers: list[Peer]) -> tuple[list[Peer], Peer]:
            known = next((peer for peer in peers if peer.static == static), None)
            if known is None:
                raise LookupError
            return rules.add(peers, replace(known, **changes))

        try:
            return self._change_peers(change)
        except LookupError:
            return None

    def keep_psk(self, static: bytes, psk: bytes, *, is_shown: bool) -> Peer | None:
        """Add to the psks kept of a peer, see peers.keep; None when it has been forgotten, or there is no room."""
        try:
            return self._change_peers(lambda peers: rules.keep(peers, static, psk, is_shown=is_shown))
        except LookupError:
            return None

    def rename(self, old: str, new: str) -> Peer:
        """Raises ConfigurationError."""
        return self._change_peers(lambda peers: rules.rename(peers, old, new))

    def change_grants(self, names: Iterable[str], change: Callable[[Peer], list[dict[str, Any]]]) -> list[Peer]:
        """Change what these peers may reach, in one step: for all or for none.  Raises ConfigurationError, StateError."""
        names = tuple(names)
        return self._change_peers(lambda peers: rules.change_grants(peers, names, change))

    def forget(self, *names: str) -> list[Peer]:
        """Returns who was forgotten, with the ways to them: all or none.  Raises ConfigurationError, StateError."""
        gone = self._change_peers(lambda peers: rules.forget(peers, names))
        with contextlib.suppress(StateError):
            if self.ways():
                self.remember_ways(())
        return gone

    def peers_stamp(self) -> tuple[int, int, int]:
        """Differs after every change of the peers, by whichever process: cheap enough to look at once a second."""
        try:
            status = os.stat(self._peers_path)
        except OSError:
            return (0, 0, 0)
        return (status.st_mtime_ns, status.st_ino, status.st_size)

    def _change_peers(self, change: Change[Subject]) -> Subject:
        change(self.peers())  # what cannot be done makes no directory and no identity either
        make_private_directory(self.path)
        with self.exclusive():
            self._identity.read_or_make()  # peers without the identity they know would be worthless
            after, subject = change(self.peers())
            after.sort(key=lambda peer: peer.name.casefold())
            write_document(self._peers_path, rules.KIND, rules.version_for(after), rules.encode_peers(after))
        return subject

    # -- what led to them

    def ways(self) -> list[Way]:
        """All that is remembered of the ways to peers, the newest first.  Raises StateError."""
        return read_document(self._ways_path, way_rules.KIND, way_rules.VERSION, way_rules.decode_ways) or []

    def remember_ways(self, fresh: Iterable[Way], gone: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """Remember ways, and forget those of these (network, static).  Only of peers that are remembered.  Raises StateError."""
        make_private_directory(self.path)
        with self.exclusive():
            known = {peer.static for peer in self.peers()}
            after = [way for way in way_rules.merge(self.ways(), fresh, gone) if way.static in known]
            write_document(self._ways_path, way_rules.KIND, way_rules.VERSION, way_rules.encode_ways(after))

    def nodes(self) -> list[KnownNode]:
        """The nodes of the DHT that have answered, of each family the newest first.  Raises StateError."""
        return read_document(self._nodes_path, node_rules.KIND, node_rules.VERSION, node_rules.decode_nodes) or []

    def remember_nodes(self, fresh: Iterable[Address], now: float) -> None:
        """Remember nodes that have answered by `now`, a Unix time.  Raises StateError."""
        make_private_directory(self.path)
        with self.exclusive():
            after = node_rules.merge(self.nodes(), fresh, now)
            write_document(self._nodes_path, node_rules.KIND, node_rules.VERSION, node_rules.encode_nodes(after))

    def sessions(self, place: bytes) -> SessionFile:
        """For whoever holds the lock of lock_expose, at this place: see SessionFile."""
        return SessionFile(self.path / "sessions.json", place)

    # -- how we are set up

    def config(self) -> ConfigFile:
        """config.toml as written by the user; empty when there is none.  Raises StateError with the line."""
        data = read_private(self._config_path)
        return ConfigFile({}) if data is None else read_config(data, str(self._config_path))

    def rewrite_config(self, change: Callable[[str], str]) -> ConfigFile:
        """Replace the text of config.toml by what `change` makes of it; returns what it holds then.

        What `change` raises leaves it as it is.  Raises StateError.
        """
        make_private_directory(self.path)
        with self.exclusive():
            data = read_private(self._config_path) or b""
            read_config(data, str(self._config_path))
            changed = change(data.decode("utf-8-sig")).encode()
            read_config(changed, str(self._config_path))
            write_private(self._config_path, changed)
        return self.config()

    def configure(self, key: str, value: str | None) -> ConfigFile:
        """Set a key of config.toml, or take it out; returns what it holds then.  Raises StateError."""
        make_private_directory(self.path)
        with self.exclusive():
            data = read_private(self._config_path) or b""
            read_config(data, str(self._config_path))
            write_private(self._config_path, with_setting(data.decode("utf-8-sig"), key, value).encode())
        return self.config()

    # -- what went wrong

    def keep_report(self, text: str) -> str:
        """Add a report of a fault to faults.log, which begins anew beyond MAX_REPORTS.  Where it is.  Raises StateError."""
        make_private_directory(self.path)
        path = self.path / "faults.log"
        append_private(path, text.encode(errors="replace") + b"\n", MAX_REPORTS)
        return str(path)

    # -- who else runs

    def lock_expose(self, *, is_resident: bool = False) -> FileLock:
        """Held for as long as this process exposes; release it or die.  Raises AlreadyRunningError."""
        who = "'ptunnel up' or 'ptunnel expose'" if is_resident else "'ptunnel expose'"
        return self.hold("expose", f"Another {who} serves this home already")

    def hold(self, name: str, sentence: str) -> FileLock:
        """The lock of one role of this home.  Raises AlreadyRunningError with the sentence and the other's process."""
        make_private_directory(self.path)
        lock = FileLock(self.path / f"{name}.lock", self.spare_dir)
        if not lock.try_acquire():
            holder = lock.read_note()
            raise AlreadyRunningError(
                f"{sentence}{f' (process {holder})' if holder else ''}: "
                "stop it first, or set PTUNNEL_HOME to another folder for this one."
            )
        lock.write_note(str(os.getpid()))
        return lock

    def exclusive(self) -> contextlib.AbstractContextManager[None]:
        """Held by whoever writes here.  Raises StateError."""
        return exclusive(self._lock_path, self.spare_dir)

    def run_dir(self) -> Path:
        """Where control sockets live, mode 0700.  Raises StateError.

        It is `run` in the home.  Where the file system cannot hold sockets, or the path is too long for one and the system knows
        no short way to it, it is spare_dir, which goes with the last socket in it.
        """
        path = self.path / "run"
        if len(os.fsencode(path)) > MAX_RUN_PATH and not os.path.isdir(OPEN_DIRECTORIES) and sys.platform != "win32":
            make_private_directory(self.path)
            return self.spare_dir()
        try:
            make_private_directory(self.path)
            is_new = not path.exists()
            make_private_directory(path)
            owner = _owner_for_root(self.path)
            if is_new and owner is not None:
                os.chown(path, owner, -1)  # else its owner could have no socket here, as this one were root's
            _require_own(path, owner)
        except StateError as problem:
            if not is_incapable(problem):
                raise
            return self.spare_dir()
        if not os.access(path, os.W_OK):
            return self.spare_dir()
        if is_new and not _takes_sockets(path):
            with contextlib.suppress(OSError):  # the next process has to find out, too
                path.rmdir()
            return self.spare_dir()
        return path

    def spare_dir(self) -> Path:
        """A directory for temporary files, mode 0700, the same for every process of this home and user.  Raises StateError.

        For what is a convenience, where the home cannot be written to or its file system has no sockets, locks or modes.
        """
        digest = hashlib.sha256(os.fsencode(self.path)).hexdigest()[:16]
        whose = "" if sys.platform == "win32" else f"{os.getuid()}-"
        try:
            temporary = tempfile.gettempdir()
        except OSError:  # it has looked for one that can be written to: nothing can, as in a container whose root is read-only
            temporary = os.environ.get("TMPDIR", "/tmp")
        path = Path(temporary) / f"ptunnel-{whose}{digest}"
        make_private_directory(path)
        _require_own(path)
        return path


def _takes_sockets(path: Path) -> bool:
    """Not every file system does.  True where there are none to be had anyway."""
    if not hasattr(socket, "AF_UNIX"):
        return True
    probe = path / f".{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.bind(str(probe))
            probe.unlink()
        except OSError as error:
            return error.errno not in INCAPABLE
    return True


def _owner_for_root(home: Path) -> int | None:
    """The owner of a home that root uses, as for a look at a service; None: it is our own."""
    if sys.platform == "win32" or os.geteuid() != 0:
        return None
    return home.stat().st_uid or None


def _require_own(path: Path, other: int | None = None) -> None:
    """Somebody else than us and `other` may have made it first, or a link to somewhere.  Raises StateError."""
    if sys.platform == "win32":
        return
    try:
        status = path.lstat()
        if path.is_symlink() or status.st_uid not in (os.geteuid(), other):
            raise StateError(f"{path} belongs to somebody else: remove it or set PTUNNEL_HOME to another place.")
        if status.st_mode & 0o077:
            path.chmod(0o700)
    except OSError as error:
        raise StateError(f"{path} cannot be used: {explain(error)}.") from error
