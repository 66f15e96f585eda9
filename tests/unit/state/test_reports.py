"""faults.log: where a person finds what to report.  Private, bounded, and never written through somebody else's link."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tunnel.errors import StateError
from tunnel.faults import MAX_REPORT, Faults
from tunnel.state.home import MAX_REPORTS, Home


def test_reports_are_added_one_after_the_other_for_this_user_alone(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    assert home.keep_report("the first") == str(tmp_path / "home" / "faults.log")
    home.keep_report("the second \udcff")
    path = tmp_path / "home" / "faults.log"
    assert path.read_text() == "the first\nthe second ?\n"
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_file_begins_anew_where_it_would_grow_beyond_its_bound(tmp_path: Path) -> None:
    home = Home(tmp_path)
    for number in range(3 * MAX_REPORTS // MAX_REPORT):
        home.keep_report(f"{number:03}" + "x" * MAX_REPORT)
        assert (tmp_path / "faults.log").stat().st_size <= MAX_REPORTS
    assert (tmp_path / "faults.log").read_text().splitlines()[-1].startswith(f"{number:03}")


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_what_is_no_file_of_ours_is_left_alone(tmp_path: Path, kind: str) -> None:
    victim, path = tmp_path / "victim", tmp_path / "faults.log"
    victim.write_text("precious")
    if kind == "link":
        path.symlink_to(victim)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(StateError):
        Home(tmp_path).keep_report("a report")
    assert victim.read_text() == "precious"


def test_a_report_that_cannot_be_kept_costs_the_report_only(tmp_path: Path) -> None:
    (tmp_path / "faults.log").mkdir()
    told: list[str] = []
    faults = Faults(told.append, Home(tmp_path).keep_report)
    with faults.wall("link", "ended the link to ben"):
        raise KeyError
    assert told == ["A fault in ptunnel ended the link to ben; all else goes on. Please report it: details with -v."]
