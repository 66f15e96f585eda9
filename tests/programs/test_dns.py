"""DNS over a UDP forward: many questions from few sockets, none of them lost."""

from __future__ import annotations

import re

import pytest

from tests.netns.programs import ORDINARY, is_real_root
from tests.programs.homes import Homes, needs

pytestmark = [pytest.mark.nightly, needs("dnsmasq", "dnsperf")]

QUESTIONS = 20_000


def test_no_question_is_lost(homes: Homes) -> None:
    words = ["dnsmasq", "--keep-in-foreground", "--no-resolv", "--no-hosts", "--conf-file=/dev/null", "--port=5353"]
    words += ["--listen-address=127.0.0.1", "--bind-interfaces", "--user=root", "--group=root", "--log-facility=-"]
    words += [f"--pid-file={homes.folder}/dns.pid", "--address=/home.example/192.168.7.9"]
    homes.serve("dnsmasq", words if is_real_root() else [*ORDINARY, *words], 5353, kind="udp")
    homes.link("5353/udp", forward=["5300:5353/udp"])
    asked = homes.folder / "questions"
    asked.write_text("".join(f"printer{number}.home.example A\n" for number in range(QUESTIONS)), encoding="ascii")
    # At most 50 are under way, so a busy machine is asked less and not more than it answers.
    words = ["dnsperf", "-s", "127.0.0.1", "-p", "5300", "-d", str(asked), "-n", "1", "-c", "5", "-q", "50", "-t", "30"]
    said = homes.use(*words).stdout
    numbers = {name: int(value) for name, value in re.findall(r"Queries (sent|completed|lost):\s+(\d+)", said)}
    assert numbers == {"sent": QUESTIONS, "completed": QUESTIONS, "lost": 0}, said
