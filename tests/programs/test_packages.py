"""What scripts/package builds: the Debian package in a root without our environment, installed, used and purged; and the pex.

Both are built with what a package index has, so this is left to the nightly run; tests/style/test_release.py looks at the parts.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.style.source import ROOT

pytestmark = [pytest.mark.netns, pytest.mark.nightly, pytest.mark.time_limit(600)]

BUILD_S = 400
USE_S = 120

#: A root that is the machine's as its packages made it: writes go to memory, and what people added is not there.
ROOT_OF_PACKAGES = """
set -euo pipefail
place=$1 files=$2
mount --make-rprivate /
mount -t tmpfs tmpfs "$place"
root=$place/root
mkdir "$place/upper" "$place/work" "$root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$place/upper,workdir=$place/work" "$root"
for added in usr/local opt root home srv tmp var/tmp; do
    mkdir -p "$root/$added"
    mount -t tmpfs tmpfs "$root/$added"
done
mount -t proc proc "$root/proc"
mount --bind "$files" "$root/srv"
ip link set lo up
clean=(env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root DEBIAN_FRONTEND=noninteractive)
"""

INSIDE = (
    ROOT_OF_PACKAGES
    + """
mount --bind /dev "$root/dev"
exec "${clean[@]}" chroot "$root" bash /srv/script
"""
)

#: The same, with systemd as its first process, which runs the script as its only service.
UNDER_SYSTEMD = (
    ROOT_OF_PACKAGES
    + """
mount -t tmpfs tmpfs "$root/run"
mount -t sysfs sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero full random urandom tty; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/pts" "$root/dev/shm" "$root/dev/net"
mknod --mode=666 "$root/dev/net/tun" c 10 200             # as udev makes it
mount -t devpts devpts "$root/dev/pts"
ln -s /proc/self/fd "$root/dev/fd"
ln -s pts/ptmx "$root/dev/ptmx"
touch "$root/dev/console" "$root/srv/console"
mount --bind "$root/srv/console" "$root/dev/console"
cat >"$root/etc/systemd/system/script.service" <<'END'
[Unit]
After=basic.target
[Service]
Type=oneshot
StandardOutput=file:/srv/said
StandardError=inherit
ExecStart=/bin/bash /srv/script
ExecStopPost=/bin/systemctl --no-block exit
END
printf '[Unit]\\nRequires=basic.target script.service\\n' >"$root/etc/systemd/system/script.target"
# No chroot: a process in one may make no user namespace, which PrivateUsers= needs.
cd "$root"
mkdir old
pivot_root . old
exec "${clean[@]}" container=other sh -c 'umount -l /old && rmdir /old &&
    exec /lib/systemd/systemd --unit=script.target --log-target=console --show-status=no' </dev/null >/dev/console 2>&1
"""
)

SERVICE = """
set -euo pipefail
trap 'systemctl status --no-pager -n 30 ptunnel-serve' ERR
dpkg --install /srv/package.deb
mkdir -p /etc/tls /run/systemd/system/ptunnel-serve.service.d
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 9 -subj /CN=rv -keyout /etc/tls/key -out /etc/tls/cert
chmod 644 /etc/tls/key
printf '[Service]\\nWatchdogSec=8\\n' >/run/systemd/system/ptunnel-serve.service.d/impatient.conf
echo 'OPTIONS="--listen 127.0.0.1 --tls-cert /etc/tls/cert --tls-key /etc/tls/key"' >/etc/default/ptunnel-serve
systemctl daemon-reload
pid() { systemctl show -p MainPID --value ptunnel-serve; }
asked() { systemctl show -p "$1" --value ptunnel-serve; }
anew() {                                                     # until another process serves
    for _ in $(seq 200); do
        if [[ $(pid) != "$1" && $(pid) != 0 && $(asked ActiveState) == active ]]; then echo "$2"; return; fi
        sleep 0.2
    done
}
systemctl start ptunnel-serve
first=$(pid)
echo "status: $(asked StatusText)"
echo "user: $(stat -c %U /proc/$first | grep -c root)"
PTUNNEL_HOME=/var/lib/ptunnel-serve ptunnel status
systemctl reload ptunnel-serve
[[ $(pid) == "$first" ]] && echo reloaded
kill -KILL "$first"
anew "$first" "killed, and there again"
second=$(pid)
kill -STOP "$second"
anew "$second" "hung, and there again"
systemctl stop ptunnel-serve
echo "end: $(asked Result)"

# `up`: with an identity of its own, and as a user who has it installed.
systemctl start ptunnel
PTUNNEL_HOME=/var/lib/ptunnel ptunnel status
systemctl reload ptunnel
systemctl stop ptunnel
echo "up: $(systemctl show -p Result --value ptunnel)"
useradd --create-home ben
SUDO_USER=ben ptunnel service install --system
echo "of: $(ps -o user= -p "$(systemctl show -p MainPID --value ptunnel)") $(systemctl is-enabled ptunnel)"
SUDO_USER=ben ptunnel service remove --system
echo "whose: $(find /home/ben/.local ! -user ben | wc -l)"
systemctl is-enabled ptunnel || true
"""

#: Servers of one machine by their ports, and a room as the service of a user, who has made it before.
ROOMS = r"""
set -eEuo pipefail
trap 'systemctl status --no-pager -n 30 ptunnel; tail /srv/room /srv/ping' ERR
dpkg --install /srv/package.deb
until_it() { for _ in $(seq 300); do if eval "$1"; then return; fi; sleep 0.2; done; echo "never: $1"; false; }
pid() { systemctl show -p MainPID --value "$1"; }
systemctl enable --now ptunnel-serve@24600 ptunnel-serve@24602
for port in 24600 24602; do
    echo "status: $(systemctl show -p StatusText --value ptunnel-serve@$port)"
    PTUNNEL_HOME=/var/lib/ptunnel-serve-$port ptunnel status --json | grep -c '"role": "serve"'
done
dpkg --install /srv/package.deb 2>&1 | tail -1                # as an update does: both are started anew
systemctl is-active ptunnel-serve@24600 ptunnel-serve@24602

useradd --create-home ben
ben() { (cd / && exec runuser -u ben -- env PTUNNEL_PORTMAP=off "$@"); }
ben ptunnel config server 127.0.0.1:24600
ben ptunnel lan create friends --keep --no-interface --json >/srv/room 2>&1 & room=$!
until_it "grep -q '\"code\"' /srv/room"
kill -TERM $(pgrep -u ben -f 'lan create')
wait $room || true
ben sh -c 'printf "[[room]]\nname = \"friends\"\n" >>~/.local/state/ptunnel/config.toml'
SUDO_USER=ben ptunnel service install --system
until_it "ip -o -4 address show | grep -q ptunnel"
address=$(ip -o -4 address show | sed -n 's,.*ptunnel.* inet \([0-9.]*\)/.*,\1,p')
echo "room: $(ps -o user= -p "$(pid ptunnel)") $(sed -n 's/CapPrm:.//p' /proc/$(pid ptunnel)/status)"
member() {                                                   # the code is another one after a restart
    code=$(ben ptunnel invite --room friends --json | sed -n 's/.*"code": *"\([^"]*\)".*/\1/p')
    local run=(ptunnel exec --server 127.0.0.1:24600 --once -- ping -c 1 -W 5 "$address")
    [[ $code ]] && PTUNNEL_HOME=/srv/anna PTUNNEL_CODE=$code "${run[@]}"
}
until_it member >/srv/ping 2>&1 || { cat /srv/ping; false; }
echo "the room is reached"
first=$(pid ptunnel)
kill -KILL "$first"
until_it '[[ $(pid ptunnel) != "$first" && $(pid ptunnel) != 0 && $(systemctl is-active ptunnel) == active ]]'
until_it member >/srv/ping 2>&1 || { cat /srv/ping; false; }
echo "the room is reached again"
systemctl stop ptunnel
echo "left: $(ip -o link show | grep -c ptunnel || true) $(systemctl show -p Result --value ptunnel)"
SUDO_USER=ben ptunnel service remove --system
dpkg --remove ptunnel-p2p
active() { systemctl list-units --plain --no-legend --state=active "$@"; }
echo "servers: $(active 'ptunnel-serve@*' | wc -l) $(find /etc/systemd -name 'ptunnel*' | wc -l)"
dpkg --purge ptunnel-p2p
echo "states: $(find /var/lib -maxdepth 2 -name 'ptunnel-serve*' | wc -l)"
"""

#: One pairing on loopback with $program, and a page by way of it; files go to $at.
USE = """
use() {
    export PTUNNEL_PORTMAP=off
    PTUNNEL_HOME=$at/server $program serve --listen 127.0.0.1:24531 --json >$at/serve &
    local server=$!
    until grep -q listening $at/serve; do kill -0 $server; sleep 0.1; done
    $python -c 'import http.server; http.server.test(http.server.SimpleHTTPRequestHandler, port=8000, bind="127.0.0.1")' \\
        >/dev/null 2>&1 & local web=$!
    PTUNNEL_HOME=$at/there $program expose 8000 --server 127.0.0.1 --json >$at/expose 2>/dev/null & local expose=$!
    until grep -q '"code"' $at/expose; do kill -0 $expose; sleep 0.1; done
    local code=$(sed -n 's/.*"event": *"code", *"code": *"\\([^"]*\\)".*/\\1/p' $at/expose)
    PTUNNEL_CODE=$code PTUNNEL_HOME=$at/here $program connect --server 127.0.0.1 --forward 8001:8000 --json \\
        >$at/connect 2>/dev/null &
    local connect=$!
    until grep -q '"forward"' $at/connect; do kill -0 $connect; sleep 0.1; done
    $python -c 'import urllib.request; print(urllib.request.urlopen("http://127.0.0.1:8001/", timeout=20).status)'
    kill $connect $expose $web $server
    wait $connect $expose $server
}
"""

INSTALLED = (
    """
set -euo pipefail
listing() { find / -xdev -path /proc -prune -o -path /tmp -prune -o -path /var/lib/dpkg -prune -o -path /var/log -prune \\
    -o -path /var/cache -prune -o -print | sort; }
listing >/tmp/before
dpkg --install /srv/package.deb
cd /tmp
command -v ptunnel
ptunnel --version
PYTHONPATH=/tmp/evil PYTHONHOME=/nowhere ptunnel --version
zcat /usr/share/man/man1/ptunnel.1.gz | sed -n 1p
for file in /usr/share/bash-completion/completions/ptunnel /usr/share/zsh/vendor-completions/_ptunnel \\
    /usr/share/fish/vendor_completions.d/ptunnel.fish /etc/default/ptunnel-serve /usr/share/doc/ptunnel-p2p/copyright; do
    test -s $file
done
source /usr/share/bash-completion/completions/ptunnel
complete -p ptunnel
systemd-analyze verify --man=no /usr/lib/systemd/system/ptunnel.service /usr/lib/systemd/system/ptunnel-serve.service 2>&1 \\
    | grep ptunnel || echo units ok
program=ptunnel python=python3 at=/tmp
"""
    + USE
    + """
use
mkdir -p /var/lib/private/ptunnel/peers && ln -s private/ptunnel /var/lib/ptunnel
dpkg --remove ptunnel-p2p
test ! -e /usr/bin/ptunnel
test -e /var/lib/ptunnel/peers && echo kept
dpkg --purge ptunnel-p2p
listing >/tmp/after
rmdir --ignore-fail-on-non-empty /var/lib/private 2>/dev/null || true
diff /tmp/before /tmp/after | grep -v '/var/lib/private$' | grep '^[<>]' || echo nothing left

# Debian's ptunnel is another program: the two are not installed beside one another.
mkdir -p /tmp/other/DEBIAN
printf '%s\\n' 'Package: ptunnel' 'Version: 0.72' 'Architecture: all' 'Maintainer: x <x@example.net>' 'Description: x' \\
    >/tmp/other/DEBIAN/control
dpkg-deb --build /tmp/other /tmp/other.deb >/dev/null
dpkg --install /tmp/other.deb
dpkg --install /srv/package.deb 2>&1 | grep -i conflict | head -1
"""
)


#: As scripts/container/compose.yaml has it: nothing may be written but the volume, no capability, not root.
AS_CONTAINED = """
set -euo pipefail
dpkg --install /srv/package.deb >/dev/null
mount -t tmpfs -o uid=24531,mode=700 tmpfs /var/tmp
cd /
mount -o remount,ro / 2>/dev/null || mount -o remount,ro,bind /
for place in tmp root home opt usr/local srv; do mount -o remount,ro,bind /$place; done
contained=(setpriv --reuid 24531 --regid 24531 --clear-groups --bounding-set=-all --inh-caps=-all --no-new-privs
    env PTUNNEL_HOME=/var/tmp PYTHONDONTWRITEBYTECODE=1)
"${contained[@]}" sh -c 'HEALTH' && echo healthy too early
"${contained[@]}" touch /tmp/x /etc/x 2>/dev/null && echo writable
"${contained[@]}" ptunnel serve --json >/dev/shm/said &
server=$!
until "${contained[@]}" sh -c 'HEALTH'; do kill -0 $server; sleep 0.2; done
echo healthy
kill $server
wait $server
"${contained[@]}" find /var/tmp -type f
"""


def built(kind: str, folder: Path) -> Path:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [ROOT / "scripts" / "package", kind, "", folder],
        env=environment,
        capture_output=True,
        text=True,
        timeout=BUILD_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    [made] = folder.glob("*.*")
    return made


def run_inside(folder: Path, root: str, script: str, package: Path) -> subprocess.CompletedProcess[str]:
    """The script with the package, in a root of its own; what it leaves is in `folder`/files."""
    files = folder / "files"
    files.mkdir()
    (folder / "root").mkdir()
    shutil.copy(package, files / "package.deb")
    (files / "script").write_text(script, encoding="utf-8")
    namespaces = ["--mount", "--net", "--pid", "--cgroup", "--uts", "--ipc", "--fork", "--kill-child"]
    return subprocess.run(
        ["unshare", *namespaces, "bash", "-c", root, "_", folder / "root", files],
        capture_output=True, text=True, timeout=USE_S, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built("deb", tmp_path_factory.mktemp("dist"))


def test_the_debian_package_is_installed_used_and_purged_and_leaves_nothing(package: Path, tmp_path: Path) -> None:
    done = run_inside(tmp_path, INSIDE, INSTALLED, package)
    said = done.stdout
    assert "/usr/bin/ptunnel\nptunnel " in said, said + done.stderr
    assert said.count("\nptunnel 0.") == 2
    assert ".TH PTUNNEL 1" in said
    assert "complete " in said
    for line in ("units ok", "200", "kept", "nothing left"):
        assert f"\n{line}\n" in said, said + done.stderr
    assert "conflict" in said.splitlines()[-1].lower(), said + done.stderr


def test_the_service_of_the_package_runs_under_systemd_is_watched_and_started_anew(package: Path, tmp_path: Path) -> None:
    """A systemd of its own in namespaces: as hardened as the unit says, as a user of its own, TLS at port 443."""
    done = run_inside(tmp_path, UNDER_SYSTEMD, SERVICE, package)
    said = (tmp_path / "files" / "said").read_text(encoding="utf-8")
    told = said + done.stderr + (tmp_path / "files" / "console").read_text(encoding="utf-8", errors="replace")
    for line in (
        "status: Serving on udp 127.0.0.1:24531", "user: 0", "reloaded", "killed, and there again", "hung, and there again",
        "end: success", "up: success", "of: ben enabled", "whose: 0",
    ):  # fmt: skip
        assert f"\n{line}\n" in said, told
    assert "127.0.0.1:443" in said, told


def test_servers_by_their_ports_and_a_room_run_under_systemd_and_go_with_the_package(package: Path, tmp_path: Path) -> None:
    done = run_inside(tmp_path, UNDER_SYSTEMD, ROOMS, package)
    said = (tmp_path / "files" / "said").read_text(encoding="utf-8")
    told = said + done.stderr + (tmp_path / "files" / "console").read_text(encoding="utf-8", errors="replace")
    assert said.count("status: Serving on udp 0.0.0.0:2460") == 2, told
    assert "\nactive\nactive\n" in said, told
    for line in (
        f"room: ben {'0' * 16}", "the room is reached", "the room is reached again", "left: 0 success", "servers: 0 0",
        "states: 0",
    ):  # fmt: skip
        assert f"\n{line}\n" in said, told


def test_a_server_needs_no_capability_and_writes_its_secret_alone(package: Path, tmp_path: Path) -> None:
    """The container's walls and its health check, without a container: those need an image from elsewhere."""
    file = (ROOT / "scripts" / "container" / "Containerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    health = file.split("\nHEALTHCHECK ")[1].split("\n")[0].split(" CMD ")[1].strip()
    done = run_inside(tmp_path, INSIDE, AS_CONTAINED.replace("'HEALTH'", shlex.quote(health)), package)
    assert done.stdout.splitlines()[0] == "healthy", done.stdout + done.stderr
    assert set(done.stdout.splitlines()[1:]) == {"/var/tmp/server.json", "/var/tmp/lock"}


def test_the_pex_is_the_whole_program_in_one_file(tmp_path: Path) -> None:
    pex = built("pex", tmp_path / "dist")
    script = f"set -euo pipefail; ip link set lo up; program={pex} python=python3 at={tmp_path}\n{USE}\n$program --version; use"
    done = subprocess.run(
        ["unshare", "--net", "--pid", "--fork", "--kill-child", "bash", "-c", script],
        capture_output=True, text=True, timeout=USE_S, check=False, cwd=tmp_path,
        env={**os.environ, "PEX_ROOT": str(tmp_path / "pex")},
    )  # fmt: skip
    assert done.stdout.split("\n")[-2:] == ["200", ""], done.stdout + done.stderr
    assert done.stdout.startswith("ptunnel 0.")
