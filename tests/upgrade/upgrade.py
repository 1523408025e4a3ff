"""An upgrade under load, as tests of good and of broken versions do it."""

from __future__ import annotations

from collections.abc import Sequence

from tests.upgrade import journeys
from tests.upgrade.customers import Customers, Load
from tests.upgrade.fleet import Fleet
from tests.upgrade.versions import Version

PRICE = 1000

# To which version, and in which order the services get it.
Turn = tuple[Version, tuple[str, ...]]


def upgrade(fleet: Fleet, new: Version, turns: Sequence[Turn], load: Load) -> Customers:
    """Take all turns while customers order: no customer may notice.

    Before each turn a message dies, and after it an operator replays it: one version buries what the other revives. It
    fails as soon as anything is wrong.
    """
    with Customers(fleet, load) as customers:
        fleet.prepare(new)
        fleet.open_menu(new, {customers.sku: PRICE, journeys.SKU: PRICE})
        for done, (version, order) in enumerate(turns, start=1):
            dead = journeys.die(fleet)
            for service in order:
                fleet.replace(service, version)
                customers.check_posts()
                fleet.check_deaths(journeys.COMMITS)
            journeys.replay(fleet, dead)
            customers.go_on(done / len(turns))
    customers.check_posts()
    fleet.check()
    customers.check_orders()
    return customers
