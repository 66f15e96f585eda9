"""The share of a processor that control groups leave a process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunnel.host.quota import Quota, processor_quota

QUARTER = Quota(0.025, 0.1)


def groups(folder: Path, lines: str, files: dict[str, str]) -> Quota | None:
    """What is found where /proc/self/cgroup reads so, and these files are below /sys/fs/cgroup."""
    told, mounted = folder / "told", folder / "mounted"
    told.write_text(lines, encoding="ascii")
    for name, content in files.items():
        (mounted / name).parent.mkdir(parents=True, exist_ok=True)
        (mounted / name).write_text(content, encoding="ascii")
    return processor_quota(told, mounted)


def test_version_2_tells_it_in_one_file(tmp_path: Path) -> None:
    assert groups(tmp_path, "0::/system.slice/a.service\n", {"system.slice/a.service/cpu.max": "25000 100000\n"}) == QUARTER


def test_version_1_tells_it_in_two(tmp_path: Path) -> None:
    files = {"cpu,cpuacct/a/cpu.cfs_quota_us": "25000\n", "cpu,cpuacct/a/cpu.cfs_period_us": "100000\n"}
    assert groups(tmp_path, "5:memory:/b\n4:cpu,cpuacct:/a\n0::/\n", files) == QUARTER


def test_the_tightest_of_all_groups_above_counts(tmp_path: Path) -> None:
    files = {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "25000 100000\n", "cpu.max": "150000 100000\n"}
    assert groups(tmp_path, "0::/a/b\n", files) == QUARTER


def test_in_a_container_that_shows_the_path_of_its_host_the_uppermost_folder_counts(tmp_path: Path) -> None:
    assert groups(tmp_path, "0::/../docker/0123abcd\n", {"cpu.max": "25000 100000\n"}) == QUARTER


@pytest.mark.parametrize(
    ("lines", "files"),
    [
        ("0::/a\n", {"a/cpu.max": "max 100000\n"}),
        ("1:cpu:/a\n", {"cpu/a/cpu.cfs_quota_us": "-1\n", "cpu/a/cpu.cfs_period_us": "100000\n"}),
        ("0::/a\n", {"a/cpu.max": "rubbish\n"}),
        ("0::/a\n", {"a/cpu.max": "25000 0\n"}),
        ("2:memory:/a\n", {"cpu/a/cpu.cfs_quota_us": "25000\n", "cpu/a/cpu.cfs_period_us": "100000\n"}),
        ("nothing of the kind", {}),
        ("", {}),
    ],
)
def test_there_is_none_where_none_is_set_or_nothing_tells(tmp_path: Path, lines: str, files: dict[str, str]) -> None:
    assert groups(tmp_path, lines, files) is None


def test_there_is_none_where_there_are_no_control_groups(tmp_path: Path) -> None:
    assert processor_quota(tmp_path / "missing", tmp_path) is None


def test_a_share_is_told_in_processors() -> None:
    assert QUARTER.share == pytest.approx(0.25)
