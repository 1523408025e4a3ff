"""The provider took the money and its answer was lost: the customer pays once, without any help."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.e2e.broker import Heard, Publishers, Tap, channel
from tests.e2e.system import System, eventually
from topology.table import retry_queues

# When `recover_unknown` asks the provider about a payment whose answer is unknown, by contract.
UNKNOWN_AFTER_S = 30
CHARGE_QUEUE = "q.payment.inventory-reserved"


def charges_of(system: System, order_id: str) -> list[tuple[int, bool]]:
    rows = system.databases.rows(
        "payment", "SELECT amount, done FROM provider_ledger WHERE order_id = :id", id=order_id
    )
    return [(row["amount"], row["done"]) for row in rows]


def payment_of(system: System, order_id: str) -> str | None:
    rows = system.databases.rows("payment", "SELECT status FROM payments WHERE order_id = :id", id=order_id)
    return rows[0]["status"] if rows else None


def test_a_charge_whose_answer_was_lost_is_found_by_the_retry(system: System) -> None:
    flow = system.flow()
    flow.stock("lost-answer", 5)
    order = flow.at_rest(flow.order("lost-answer", 2, payment="mock_timeout_charged")["order_id"])
    assert order["status"] == "PAID"
    assert charges_of(system, order["order_id"]) == [(2000, True)]


def test_while_one_answer_is_awaited_the_other_orders_are_paid(system: System) -> None:
    flow = system.flow()
    flow.stock("patient", 50)
    slow = [flow.order("patient", payment="mock_timeout_charged")["order_id"] for _ in range(5)]
    quick = [flow.order("patient")["order_id"] for _ in range(5)]
    for order_id in slow + quick:
        assert flow.at_rest(order_id)["status"] == "PAID"
        assert charges_of(system, order_id) == [(1000, True)]


MANY = 60
NOT_LATER_S = 2.0


def test_many_charges_of_one_customer_that_time_out_delay_nobody_elses(system: System) -> None:
    flow = system.flow()
    flow.stock("share", 2 * MANY)
    usual_s = time_to_be_paid(system)
    mallory = system.become("mallory", "customer")

    def post(number: int) -> str:
        return str(system.flow(number % 2).order("share", payment="mock_timeout", user=mallory)["order_id"])

    with ThreadPoolExecutor(8) as pool:
        slow = list(pool.map(post, range(MANY)))
    beside_s = [time_to_be_paid(system) for _ in range(3)]
    print(f"\nusually paid after {usual_s:.2f} s, beside {MANY} charges that time out after {beside_s}")
    assert max(beside_s) < usual_s + NOT_LATER_S

    def answered() -> bool:
        """Let the provider answer the next try of each."""
        system.databases.run(
            "payment",
            "INSERT INTO provider_ledger (key, kind, order_id, amount, currency, done, reference, reason)"
            " SELECT payment_id, 'charge', order_id, amount, currency, true, 'mock-late', '' FROM payments"
            " WHERE method = 'mock_timeout' AND status = 'PENDING' ON CONFLICT DO NOTHING",
        )
        # On a slow machine the tries of some are over by now: an operator sends them back.
        if system.dead_letters().get(f"{CHARGE_QUEUE}.dlq"):
            flow.send("POST", f"/api/ops/dlq/{CHARGE_QUEUE}/replays", {"all": True}, "operator")
            return False
        return all(payment_of(system, order_id) == "COMPLETED" for order_id in slow)

    eventually(answered, bool, 60)
    assert [charges_of(system, order_id) for order_id in slow] == [[(1000, True)]] * MANY


def time_to_be_paid(system: System) -> float:
    """The seconds from the post of an order to its payment, by another customer."""
    flow, began = system.flow(), time.monotonic()
    assert flow.at_rest(flow.order("share")["order_id"])["status"] == "PAID"
    return time.monotonic() - began


def test_a_charge_whose_message_is_lost_for_good_is_found_out_by_settle(system: System, long: bool) -> None:
    flow = system.flow()
    flow.stock("lost-message", 5)
    posted = time.monotonic()
    order_id = flow.order("lost-message", 2, payment="mock_timeout_charged")["order_id"]
    with channel(system.amqp_uri) as opened:
        # The one moment at which no process holds it: the second it waits for its retry.
        def lost() -> int:
            return opened.queue_purge(retry_queues(CHARGE_QUEUE)[0]).method.message_count

        eventually(lost, lambda count: count == 1, patience_s=10)
    assert payment_of(system, order_id) == "PENDING"
    assert charges_of(system, order_id) == [(2000, True)]
    if not long:
        made_old = "UPDATE payments SET updated_at = now() - make_interval(secs => :age) WHERE order_id = :id"
        assert system.databases.run("payment", made_old, id=order_id, age=UNKNOWN_AFTER_S + 30) == 1
    order = flow.at_rest(order_id, patience_s=60 if long else 15)
    assert (order["status"], payment_of(system, order_id)) == ("PAID", "COMPLETED")
    assert charges_of(system, order_id) == [(2000, True)]
    timeline = flow.timeline(order_id, last="inventory.committed")
    (step,) = [step for step in timeline["steps"] if step["event"] == "payment.succeeded"]
    assert step["by"] == "customer"
    if long:
        assert time.monotonic() - posted > UNKNOWN_AFTER_S
    # The message that was lost is the only one that its hearer never saw.
    forget_lost_message(system, order_id)


def forget_lost_message(system: System, order_id: str) -> None:
    statement = "DELETE FROM outbox WHERE aggregate_id = :id AND event_type = 'inventory.reserved'"
    assert system.databases.run("inventory", statement, id=order_id) == 1


@pytest.mark.parametrize("method", ["mock_ok", "mock_timeout_charged"])
def test_a_repeated_charge_message_after_settling_charges_nothing(system: System, method: str, tap: Tap) -> None:
    flow = system.flow()
    flow.stock("again", 5)
    order = flow.at_rest(flow.order("again", payment=method)["order_id"])
    (reserved,) = [item for item in tap.of(order["order_id"]) if item.event["type"] == "inventory.reserved"]
    # A new message_id, so that not the inbox but the payment itself must refuse it.
    fresh = reserved.body.replace(reserved.event["message_id"][-12:].encode(), b"0123456789ab")
    with Publishers(system.amqp_uri) as publishers:
        publishers.repeat(Heard(reserved.routing_key, fresh, reserved.properties, reserved.event))
    consumed = "SELECT 1 FROM consumed_messages WHERE consumer = :queue AND message_id::text LIKE '%0123456789ab'"
    eventually(lambda: system.databases.rows("payment", consumed, queue=CHARGE_QUEUE), bool)
    assert charges_of(system, order["order_id"]) == [(1000, True)]
