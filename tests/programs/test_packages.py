"""What scripts/package builds: the Debian package in a root without our environment, installed, used and purged; and the pex.

Both are built with what a package index has, so this is left to the nightly run; tests/style/test_release.py looks at the parts.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.style.source import ROOT

pytestmark = [pytest.mark.netns, pytest.mark.nightly, pytest.mark.time_limit(600)]

BUILD_S = 400
USE_S = 120

#: A root that is the machine's as its packages made it: writes go to memory, and what people added is not there.
INSIDE = """
set -euo pipefail
place=$1 script=$2 package=$3
mount --make-rprivate /
mount -t tmpfs tmpfs "$place"
mkdir "$place/upper" "$place/work" "$place/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$place/upper,workdir=$place/work" "$place/root"
for added in usr/local opt root home srv tmp var/tmp; do
    mkdir -p "$place/root/$added"
    mount -t tmpfs tmpfs "$place/root/$added"
done
mount -t proc proc "$place/root/proc"
mount --bind /dev "$place/root/dev"
cp "$script" "$place/root/tmp/script"
cp "$package" "$place/root/tmp/package.deb"
ip link set lo up
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root DEBIAN_FRONTEND=noninteractive chroot "$place/root" bash /tmp/script
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
dpkg --install /tmp/package.deb
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
dpkg --install /tmp/package.deb 2>&1 | grep -i conflict | head -1
"""
)


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
    [made] = folder.iterdir()
    return made


def test_the_debian_package_is_installed_used_and_purged_and_leaves_nothing(tmp_path: Path) -> None:
    package = built("deb", tmp_path / "dist")
    (tmp_path / "script").write_text(INSTALLED, encoding="utf-8")
    (tmp_path / "root").mkdir()
    done = subprocess.run(
        ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "bash", "-c", INSIDE, "_", tmp_path / "root",
         tmp_path / "script", package],
        capture_output=True, text=True, timeout=USE_S, check=False,
    )  # fmt: skip
    said = done.stdout
    assert "/usr/bin/ptunnel\nptunnel " in said, said + done.stderr
    assert said.count("\nptunnel 0.") == 2
    assert ".TH PTUNNEL 1" in said
    assert "complete " in said
    for line in ("units ok", "200", "kept", "nothing left"):
        assert f"\n{line}\n" in said, said + done.stderr
    assert "conflict" in said.splitlines()[-1].lower(), said + done.stderr


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
