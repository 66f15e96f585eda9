"""Every test here is marked `netns`; each gets a laboratory of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.kernel import why_no_tap, why_unavailable
from tests.netns.lab import Lab

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if HERE in item.path.parents]
    reason = why_unavailable() if ours else None
    for item in ours:
        item.add_marker(pytest.mark.netns)
        why_not = reason or (why_no_tap() if item.path.name.startswith("test_tun") else None)
        if why_not is not None:
            item.add_marker(pytest.mark.skip(reason=why_not))


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with Lab(tmp_path) as lab:
        yield lab
