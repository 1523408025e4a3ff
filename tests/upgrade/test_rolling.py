"""Upgrade, way back and upgrade again under load, replica by replica: no customer notices."""

from __future__ import annotations

import pytest

from tests.upgrade.conftest import StartFleet
from tests.upgrade.customers import Load
from tests.upgrade.fleet import BACK, FORWARD, FORWARD_REVERSED
from tests.upgrade.upgrade import upgrade
from tests.upgrade.versions import NOW, Version

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]


def test_an_upgrade_a_way_back_and_an_upgrade_again_fail_no_order(
    start_fleet: StartFleet, last_release: Version, load: Load
) -> None:
    turns = [(NOW, FORWARD), (last_release, BACK), (NOW, FORWARD_REVERSED)]
    customers = upgrade(start_fleet(last_release), NOW, turns, load)
    print(f"\n{customers.summary}")
