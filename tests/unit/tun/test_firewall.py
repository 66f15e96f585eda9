"""Which command lets the room in follows from the firewall that is switched on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunnel.doors.tun.firewall import KNOWN, sentence


@pytest.mark.parametrize(
    ("found", "text", "command"),
    [
        (KNOWN[0][0], "# comment\nENABLED=yes\n", "sudo ufw allow in on ptunnel0"),
        (KNOWN[0][0], "ENABLED=no\n", "have its rules accept what comes in by ptunnel0"),
        (KNOWN[1][0], None, "sudo firewall-cmd --zone=trusted --add-interface=ptunnel0"),
        (KNOWN[2][0], None, "sudo nft insert rule inet filter input iifname ptunnel0 accept"),
        (None, None, "have its rules accept what comes in by ptunnel0"),
    ],
)
def test_the_sentence_has_the_command_of_the_firewall_that_is_on(
    found: str | None, text: str | None, command: str, tmp_path: Path
) -> None:
    if found is not None:
        place = tmp_path / found
        place.parent.mkdir(parents=True)
        if text is None:
            place.symlink_to("/lib/systemd/system/a.service")
        else:
            place.write_text(text)
    assert command in sentence("ptunnel0", tmp_path)
