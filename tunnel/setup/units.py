"""Units for systemd: of `serve` and of `up`, for the whole machine or for one user.

scripts/units and the Debian package hold the units of the machine as they are made here.  A service is started before there is
a network, and waits for it itself.  It says when it is ready (tunnel/host/notify.py), and one that hangs is started anew.
"""

from __future__ import annotations

from typing import Final

PROGRAM: Final = "/usr/bin/ptunnel"
UP: Final = "ptunnel.service"

WATCHDOG: Final = 60  # seconds without a sign of life, and the service is started anew; a slow disk takes some
RESTART_AFTER: Final = 1  # second after the end of a service that nobody has asked for

#: What none of them needs; the names are those of systemd.exec(5).
_WALLS: Final = """\
CapabilityBoundingSet={capabilities}
AmbientCapabilities={capabilities}
NoNewPrivileges=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM
"""

#: What only the manager of the machine can take away.
_ROOMS: Final = """\
DynamicUser=yes
ProtectSystem=strict
ProtectHome=yes
ProtectProc=invisible
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
PrivateTmp=yes
PrivateDevices=yes
"""

#: So that the peers hear of the end while there is a network; it does not wait for the network to be up.
_AFTER: Final = "After=network.target\n"

_STATE: Final = "StateDirectory={name}\nStateDirectoryMode=0700\nEnvironment=PTUNNEL_HOME=%S/{name}\n"

_SERVICE: Final = """\
[Unit]
Description={description}
Documentation=man:ptunnel(1)
{after}StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart={command}
ExecReload=/bin/kill -HUP $MAINPID
WatchdogSec={watchdog}
Restart=on-failure
RestartSec={restart_after}
# What cannot work as it is configured is not tried again.
RestartPreventExitStatus=2
{settings}UMask=0077
LimitNOFILE=65536
{walls}
[Install]
WantedBy={wanted_by}
"""


def serve_unit(program: str = PROGRAM, *, is_template: bool = False) -> str:
    """Of a rendezvous server.  Its options are in /etc/default/ptunnel-serve; CAP_NET_BIND_SERVICE is for TLS on port 443.

    `is_template`: of a fleet, one for each processor; the instance is the port.
    """
    name, where = ("ptunnel-serve-%i", " --listen 0.0.0.0:%i --listen [::]:%i") if is_template else ("ptunnel-serve", "")
    return _SERVICE.format(
        description="ptunnel rendezvous server" + (" on port %i" if is_template else ""),
        after=_AFTER,
        command=f"{_program(program)} serve{where} $OPTIONS",
        watchdog=WATCHDOG,
        restart_after=RESTART_AFTER,
        settings="Environment=OPTIONS=\nEnvironmentFile=-/etc/default/ptunnel-serve\n" + _STATE.format(name=name),
        walls=_ROOMS + _WALLS.format(capabilities="CAP_NET_BIND_SERVICE"),
        wanted_by="multi-user.target",
    )


def up_unit(program: str = PROGRAM, *, has_room: bool = False, owner: tuple[str, str] | None = None) -> str:
    """Of `up` for the manager of the machine, with an identity of its own in /var/lib/ptunnel.

    `owner`: run as this user with this PTUNNEL_HOME instead.  `has_room`: the interface of a room needs CAP_NET_ADMIN and
    has its switches under /proc/sys/net, and the capability is handed on and given up by capset(2).
    """
    settings, rooms = _STATE.format(name="ptunnel"), _ROOMS
    if owner is not None:
        user, home = owner
        settings = f"User={user}\nEnvironment={quoted(f'PTUNNEL_HOME={home}')}\n"
        rooms = rooms.replace("DynamicUser=yes", "RemoveIPC=yes")
        # The program may be in that user's home as well.
        rooms = rooms.replace("ProtectHome=yes", f"ProtectHome=read-only\nReadWritePaths={quoted(home)}")
    if has_room:
        rooms = rooms.replace("PrivateDevices=yes", "DevicePolicy=closed\nDeviceAllow=/dev/net/tun rw")
        rooms += "ReadWritePaths=/proc/sys/net\nPrivateMounts=yes\n"
    else:
        rooms += "PrivateUsers=yes\n"
    walls = _WALLS.format(capabilities="CAP_NET_ADMIN" if has_room else "")
    if has_room:
        walls = walls.replace("@privileged @resources\n", "@privileged @resources\nSystemCallFilter=capset\n")
    return _up(program, settings, rooms + walls, is_user=False)


def up_unit_of_user(program: str = PROGRAM, *, home: str | None = None) -> str:
    """Of `up` for the manager of one user.  `home`: PTUNNEL_HOME, unless it is the usual one.

    It has no capabilities to give or to take, and further walls would need namespaces that many systems forbid.
    """
    settings = f"Environment={quoted(f'PTUNNEL_HOME={home}')}\n" if home else ""
    return _up(program, settings, "".join(f"{line}\n" for line in _WALLS.splitlines() if "Capabilit" not in line), is_user=True)


def _up(program: str, settings: str, walls: str, *, is_user: bool) -> str:
    return _SERVICE.format(
        description="ptunnel: forwards, grants and rooms of config.toml",
        after="" if is_user else _AFTER,
        command=f"{_program(program)} up",
        watchdog=WATCHDOG,
        restart_after=RESTART_AFTER,
        settings=settings,
        walls=walls,
        wanted_by="default.target" if is_user else "multi-user.target",
    )


def quoted(word: str) -> str:
    """One word of a unit's line: a blank does not end it, and % stands for itself (systemd.syntax(7))."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"' if any(each in " \t\"'\\;" for each in word) else escaped


def _program(path: str) -> str:
    """In a command $ begins a variable, too."""
    return quoted(path).replace("$", "$$")
