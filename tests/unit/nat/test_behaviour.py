from __future__ import annotations

import pytest

from tunnel.nat.behaviour import Filtering, Mapping, explain_relayed, observe, observe_filtering
from tunnel.units import Address

P, Q, R = Address("1.2.3.4", 1000), Address("1.2.3.4", 1001), Address("1.2.3.4", 1002)


@pytest.mark.parametrize(
    ("views", "mapping"),
    [
        ((None, None, None), Mapping.UNKNOWN),
        ((P, None, None), Mapping.UNKNOWN),
        ((P, P, None), Mapping.ENDPOINT_INDEPENDENT),
        ((P, P, P), Mapping.ENDPOINT_INDEPENDENT),
        ((P, None, P), Mapping.ENDPOINT_INDEPENDENT),
        ((P, None, Q), Mapping.DEPENDENT),
        ((P, P, Q), Mapping.ADDRESS_DEPENDENT),
        ((P, Q, None), Mapping.ADDRESS_AND_PORT_DEPENDENT),
        ((P, Q, R), Mapping.ADDRESS_AND_PORT_DEPENDENT),
    ],
)
def test_three_views_tell_the_mapping(views: tuple[Address | None, ...], mapping: Mapping) -> None:
    assert observe(*views) is mapping


@pytest.mark.parametrize(
    ("answers", "filtering"),
    [
        ((True, None), Filtering.ENDPOINT_INDEPENDENT),
        ((False, True), Filtering.ADDRESS_DEPENDENT),
        ((False, False), Filtering.ADDRESS_AND_PORT_DEPENDENT),
        ((None, True), Filtering.UNKNOWN),
        ((False, None), Filtering.UNKNOWN),
    ],
)
def test_two_changed_origins_tell_the_filtering(answers: tuple[bool | None, ...], filtering: Filtering) -> None:
    assert observe_filtering(*answers) is filtering


def test_every_pair_of_mappings_has_one_sentence() -> None:
    for ours in Mapping:
        for theirs in Mapping:
            sentence = explain_relayed(ours, theirs)
            assert sentence
            assert "\n" not in sentence
