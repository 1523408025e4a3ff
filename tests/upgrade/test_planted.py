"""Changes that need two releases, made in one: the upgrade under load finds each of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.upgrade.conftest import StartFleet
from tests.upgrade.customers import Load
from tests.upgrade.fleet import FORWARD
from tests.upgrade.upgrade import upgrade
from tests.upgrade.versions import NOW, planted

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

FEW = Load(orders_per_s=5)

# By the name of a patch: what is found first.
FOUND = {
    "required_field": "q.inventory.order-created.*invalid_schema",
    "dropped_column": "POST /api/orders: 50[03] ",
    "renamed_argument": "POST /api/orders: 500 ",
    "new_event": "q.order.inventory-result.*unknown_type",
}


@pytest.mark.parametrize("change", FOUND)
def test_a_change_that_needs_two_releases_fails_the_upgrade(
    start_fleet: StartFleet, tmp_path: Path, change: str
) -> None:
    fleet, broken = start_fleet(NOW), planted(change, tmp_path / change)
    with pytest.raises(AssertionError, match=FOUND[change]):
        upgrade(fleet, broken, [(broken, FORWARD)], FEW)
