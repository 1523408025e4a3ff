"""An upgrade under load, as tests of good and of broken versions do it."""

from __future__ import annotations

import time
from collections.abc import Sequence

from tests.upgrade import journeys
from tests.upgrade.customers import Customers
from tests.upgrade.fleet import Fleet
from tests.upgrade.versions import Version

# To which version, and in which order the services get it.
Turn = tuple[Version, tuple[str, ...]]


def upgrade(fleet: Fleet, new: Version, turns: Sequence[Turn], load_s: float = 0.0) -> Customers:
    """Take all turns while customers order, for `load_s` at least: no customer may notice.

    Before each turn a message dies, and after it an operator replays it: one version buries what the other revives.
    """
    began = time.monotonic()
    with Customers(fleet) as customers:
        fleet.prepare(new)
        for done, (version, order) in enumerate(turns, start=1):
            dead = journeys.die(fleet)
            fleet.roll(version, order)
            journeys.replay(fleet, dead)
            customers.go_on_until(began + load_s * done / len(turns))
    customers.check_posts()
    fleet.check()
    customers.check_orders()
    return customers
