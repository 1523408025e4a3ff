"""One service of another version than all others, whichever it is, does its part of all that is asked of it."""

from __future__ import annotations

import pytest

from tests.upgrade import journeys
from tests.upgrade.conftest import StartFleet
from tests.upgrade.upgrade import PRICE
from tests.upgrade.versions import NOW, Version
from topology.services import START_ORDER

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


@pytest.mark.parametrize("newer", [True, False], ids=["newer", "older"])
def test_each_service_works_alone_among_another_version(
    start_fleet: StartFleet, last_release: Version, newer: bool
) -> None:
    alone, others = (NOW, last_release) if newer else (last_release, NOW)
    fleet = start_fleet(others, replicas=1)
    fleet.prepare(NOW)
    fleet.open_menu(NOW, {journeys.SKU: PRICE})
    for service in START_ORDER:
        if not last_release.has(service):
            continue
        dead = journeys.die(fleet)
        fleet.replace(service, alone)
        journeys.checkout(fleet)
        journeys.cancel(fleet)
        journeys.refund(fleet)
        journeys.replay(fleet, dead)
        fleet.replace(service, others)
    fleet.check()
