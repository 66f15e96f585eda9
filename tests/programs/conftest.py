"""Programs that people use over ptunnel; what is marked `nightly` runs only where this folder is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.netns.conftest import lab
from tests.netns.kernel import why_unavailable
from tests.netns.lab import Lab
from tests.netns.rooms import Room
from tests.programs.browser import driver, elsewhere, seen, served
from tests.programs.homes import Homes

__all__ = ["driver", "elsewhere", "homes", "lab", "room", "seen", "served"]

HERE = Path(__file__).parent


def _is_asked_for(config: pytest.Config) -> bool:
    named = (Path(config.invocation_params.dir, word.split("::")[0]).resolve() for word in config.args)
    return any(path == HERE or HERE in path.parents for path in named)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    ours = [item for item in items if HERE in item.path.parents]
    reason = why_unavailable() if ours else None
    for item in ours:
        item.add_marker(pytest.mark.netns)
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))
    if not _is_asked_for(config):
        later = {item for item in ours if item.get_closest_marker("nightly")}
        config.hook.pytest_deselected(items=[item for item in items if item in later])
        items[:] = [item for item in items if item not in later]


@pytest.fixture
def homes(lab: Lab) -> Homes:
    return Homes(lab)


@pytest.fixture
def room(lab: Lab) -> Room:
    """Two members, each behind a router."""
    return Room(lab, ("prc", "prc"))
