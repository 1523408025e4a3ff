"""The payment provider is away for a while: orders wait, no message dies, and all are paid when it is back."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from ops.local.processes import Process, wait_until
from tests.chaos.load import Load
from tests.chaos.test_killed import STOPS_WITHIN_S, metric
from tests.chaos.test_outages import pass_time
from tests.e2e.system import System, eventually

Away = Callable[[], AbstractContextManager[None]]

# At full size the outage lasts ten minutes.
pytestmark = pytest.mark.timeout(1200)

OUTAGE_S = 15.0
LONG_OUTAGE_S = 600.0

# Longer than a message lives whose tries are all counted: four calls of 1 s each, and waits of 1, 2 and 4 s.
LIFE_OF_A_MESSAGE_S = 15.0

PAUSED = r"q\.payment\.inventory-reserved is paused: ProviderAway"


def paused(system: System) -> list[str]:
    """The replicas of payment_service that report waiting for the provider."""
    return sorted(name for name, why in system.troubles("payment").items() if re.search(PAUSED, why))


def assert_nothing_died(system: System) -> None:
    assert not any(system.dead_letters().values()), system.deaths()
    assert system.deaths() == []


def charges_of(system: System, order_id: str) -> int:
    statement = "SELECT 1 FROM provider_ledger WHERE order_id = :id AND done"
    return len(system.databases.rows("payment", statement, id=order_id))


def test_orders_are_accepted_throughout_an_outage_and_all_end_after_it(
    system: System, provider_away: Away, long: bool
) -> None:
    lasts = LONG_OUTAGE_S if long else OUTAGE_S
    with Load(system, pause_s=0.5) as load:
        load.wait_for(20)
        with provider_away():
            began = time.monotonic()
            eventually(lambda: paused(system), lambda names: names == ["payment-0", "payment-1"])
            assert [metric(system, name, "ecom_provider_circuit_open") for name in paused(system)] == [1.0, 1.0]
            accepted = len(load.accepted)
            # A busy machine may have taken long to notice: then it lasts longer.
            watched = max(lasts - (time.monotonic() - began), lasts / 2)
            pass_time(time.monotonic() + watched)
            accepted = len(load.accepted) - accepted
            assert paused(system) == ["payment-0", "payment-1"]
            assert_nothing_died(system)
        back = time.monotonic()
        load.wait_for(20)
        ready = system.wait_ready(30)
    system.wait_quiet(120)
    print(
        f"\n{accepted} orders accepted while the provider was away, all ready {ready:.1f} s"
        f" and all at rest {time.monotonic() - back:.1f} s after it was back; refused {set(load.refused)}"
    )
    assert accepted > watched / 4
    load.check_all_are_there()
    assert load.refused == [], "an outage of the provider is no business of who posts"
    assert_nothing_died(system)


def test_an_order_that_is_alone_in_an_outage_is_paid_after_it_and_who_waits_with_it_stops_in_time(
    system: System, provider_away: Away
) -> None:
    flow = system.flow()
    flow.stock("alone", 1)
    with provider_away():
        order_id = flow.order("alone")["order_id"]
        (name,) = eventually(lambda: paused(system), lambda names: len(names) == 1)
        pass_time(time.monotonic() + LIFE_OF_A_MESSAGE_S)  # by then its tries are as far apart as they get
        assert paused(system) == [name]
        assert_nothing_died(system)
        process = Process.of(system.replicas_of("payment")[name])
        assert process is not None
        began = time.monotonic()
        process.send(signal.SIGTERM)
        assert wait_until(lambda: not process.alive(), 2 * STOPS_WITHIN_S), f"{name} does not stop"
        took = time.monotonic() - began
        print(f"\nstopped after {took:.1f} s")
        assert took <= STOPS_WITHIN_S
        eventually(lambda: paused(system), bool)  # by who was given its message
        assert_nothing_died(system)
    assert flow.at_rest(order_id)["status"] == "PAID"
    assert charges_of(system, order_id) == 1
    assert_nothing_died(system)
