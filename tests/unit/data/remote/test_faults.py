"""Faults of the network lose nothing: the records are those of a twin without faults, in the same order."""

from __future__ import annotations

import pytest

from tests.unit.data.loopback import ALL, Plan, loopback_hub
from tests.unit.data.remote.conftest import SOURCES, epoch, stream_of

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def twins():
    """The first epoch of every source without a fault."""
    with loopback_hub() as hub:
        return {name: epoch(stream_of(make(hub.url))) for name, make in SOURCES.items()}


@pytest.mark.parametrize("fault", ALL)
@pytest.mark.parametrize("source", ["fineweb", "commoncrawl"])
def test_a_fault_of_each_kind_loses_nothing(source, fault, twins):
    """In lists, in redirects and in the middle of files."""
    plan = Plan([None, fault] * 2 + [None] * 4 + [fault])
    with loopback_hub(plan=plan) as hub:
        stream = stream_of(SOURCES[source](hub.url))
        assert epoch(stream) == twins[source]
        stream.close()
    assert plan.given[fault] == 3


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("source", SOURCES)
def test_faults_by_a_seeded_plan_lose_nothing(source, seed, twins):
    plan = Plan.seeded(seed, 0.5)
    with loopback_hub(plan=plan) as hub:
        stream = stream_of(SOURCES[source](hub.url))
        assert epoch(stream) == twins[source]
        stream.close()
    assert plan.given
