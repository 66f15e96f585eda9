"""SMB: a large file from a share and back to it, the latter while the path changes."""

from __future__ import annotations

import pytest

from tests.netns.programs import checksum, is_real_root, random_file
from tests.netns.sharing import Share
from tests.programs.homes import SLOW_S, Homes, needs

pytestmark = [
    pytest.mark.nightly,
    needs("smbd", "smbclient"),
    pytest.mark.skipif(not is_real_root(), reason="samba changes its user for every guest, and there is one user only"),
]

SIZE = 30_000_000


def test_a_large_file_comes_and_goes(homes: Homes) -> None:
    share = Share(homes.lab, homes.home, "home", "music", read_only=False)
    digest = random_file(share.shared / "song", SIZE)
    pair = homes.link("445", forward=["1445:445"])
    client = ["smbclient", "--configfile=/dev/null", "--no-pass", "--port=1445", "//127.0.0.1/music", "--command"]
    taken = homes.folder / "taken"
    homes.use(*client, f"get song {taken}")
    assert checksum(taken) == digest
    back = homes.start("smbclient", *client, f"put {taken} back")
    homes.wait_bytes(pair, SIZE // 10)
    homes.rebind()
    assert back.wait(SLOW_S) == 0, back.said()
    assert checksum(share.shared / "back") == digest
