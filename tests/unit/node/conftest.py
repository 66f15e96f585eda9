"""Every endpoint of these tests is checked against all its peerings."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.agenda import asking_everybody


@pytest.fixture(autouse=True)
def everybody_is_asked() -> Iterator[None]:
    with asking_everybody():
        yield
