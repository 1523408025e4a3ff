"""The timers of the services, run once: recovering unknown payments, deleting stored answers."""

from collections.abc import Callable
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from payment_service.domain import Answer, payment_id_of
from payment_service.provider import Charge
from shared.edge import postgres
from shared.envelope import Envelope
from shared.errors import CannotWork, ProviderTimeout
from shared.events import OrderCancelled, RefundRequested
from tests.databases import Databases
from tests.integration.support import Bench, Mail, emitted, order_created, reserved_event

CHARGES = "q.payment.inventory-reserved"
REFUNDS = "q.payment.refund-requested"
VOIDS = "q.payment.order-cancelled"

Benches = Callable[..., Bench]


class Deaf:
    """A provider whose answers about some keys are lost after it has acted."""

    def __init__(self, provider: object, lost: set[UUID] | None = None) -> None:
        self.provider = provider
        self.lost = lost  # None: all

    def _ask(self, what: str, key: UUID, argument: Charge | UUID) -> Answer | None:
        answer = getattr(self.provider, what)(argument)
        if self.lost is None or key in self.lost:
            raise ProviderTimeout
        return answer

    def charge(self, charge: Charge) -> Answer | None:
        return self._ask("charge", charge.key, charge)

    def refund(self, refund: Charge) -> Answer | None:
        return self._ask("refund", refund.key, refund)

    def find(self, key: UUID) -> Answer | None:
        return self._ask("find", key, key)


def refund_of(charge: Envelope) -> Envelope:
    order_id, total = charge.payload.order_id, charge.payload.total
    return emitted(RefundRequested(order_id, payment_id_of(order_id), uuid4(), total, "EUR", "order_cancelled"))


def make_old(database: Databases) -> None:
    for table in ("payments", "refunds"):
        database.run("payment", f"UPDATE {table} SET updated_at = now() - interval '1 minute'")


def statuses(database: Databases, table: str) -> dict[UUID, str]:
    rows = database.rows("payment", f"SELECT order_id, status FROM {table}")
    return {row["order_id"]: row["status"] for row in rows}


def told_of(database: Databases, event_type: str) -> list[str]:
    rows = database.rows("payment", "SELECT aggregate_id FROM outbox WHERE event_type = :type", type=event_type)
    return [str(row["aggregate_id"]) for row in rows]


@pytest.mark.parametrize(
    ("method", "payment", "refund", "event"),
    [
        ("mock_ok", "REFUNDED", "COMPLETED", "payment.refunded"),
        ("mock_refund_declined", "COMPLETED", "FAILED", "payment.refund_failed"),
    ],
)
def test_a_refund_whose_answer_was_lost_is_found_out_and_told_once(
    bench: Benches, database: Databases, mail: Mail, method: str, payment: str, refund: str, event: str
) -> None:
    one = bench("payment")
    charge = reserved_event(method=method)
    order_id = charge.payload.order_id
    one.handle_batch(CHARGES, [charge])
    provider, one.service.provider = one.service.provider, Deaf(one.service.provider)
    one.handle_batch(REFUNDS, [refund_of(charge)])
    one.service.recover_unknown()
    assert statuses(database, "refunds") == {order_id: "PENDING"}, "a call may still be under way"

    make_old(database)
    one.service.recover_unknown()
    assert statuses(database, "refunds") == {order_id: "PENDING"}, "no answer to this question either"

    one.service.provider = provider
    for _ in range(2):
        one.service.recover_unknown()
    assert statuses(database, "refunds") == {order_id: refund}
    assert statuses(database, "payments") == {order_id: payment}
    assert told_of(database, event) == [str(order_id)]


def test_a_question_without_an_answer_does_not_hold_up_the_others(
    bench: Benches, database: Databases, mail: Mail
) -> None:
    one = bench("payment")
    first, second = reserved_event(), reserved_event()
    provider, one.service.provider = one.service.provider, Deaf(one.service.provider)
    one.handle_batch(CHARGES, [first, second])
    make_old(database)

    one.service.provider = Deaf(provider, lost={payment_id_of(first.payload.order_id)})
    one.service.recover_unknown()
    assert statuses(database, "payments") == {first.payload.order_id: "PENDING", second.payload.order_id: "COMPLETED"}

    one.service.provider = provider
    one.service.recover_unknown()
    assert statuses(database, "payments") == dict.fromkeys(
        (first.payload.order_id, second.payload.order_id), "COMPLETED"
    )
    assert sorted(told_of(database, "payment.succeeded")) == sorted(str(e.payload.order_id) for e in (first, second))


def test_a_charge_that_the_provider_never_heard_of_is_void_once_its_order_is_cancelled(
    bench: Benches, database: Databases, mail: Mail
) -> None:
    one = bench("payment")
    order_id = (charge := reserved_event(method="mock_timeout")).payload.order_id
    one.handle_batch(CHARGES, [charge])
    database.run("payment", "DELETE FROM provider_ledger")
    make_old(database)
    one.service.recover_unknown()
    assert statuses(database, "payments") == {order_id: "PENDING"}, "the order may still want to pay"

    one.handle_batch(VOIDS, [emitted(OrderCancelled(order_id, "deadline"))])
    make_old(database)
    one.service.recover_unknown()
    assert statuses(database, "payments") == {order_id: "VOID"}


class Unasked:
    """A provider that nobody may ask."""

    def charge(self, charge: Charge | UUID) -> Answer | None:
        raise AssertionError(f"the provider is asked: {charge}")

    refund = find = charge


def test_a_payment_of_nothing_is_completed_and_refunded_without_the_provider(
    bench: Benches, database: Databases, mail: Mail
) -> None:
    one = bench("payment")
    one.service.provider = Unasked()
    charge = reserved_event(method="mock_declined", unit_price=0)
    order_id = charge.payload.order_id
    one.handle_batch(CHARGES, [charge])
    (payment,) = database.rows("payment", "SELECT status, reference FROM payments")
    assert payment == {"status": "COMPLETED", "reference": "nothing_to_pay"}
    one.handle_batch(REFUNDS, [refund_of(charge)])
    assert statuses(database, "payments") == {order_id: "REFUNDED"}
    assert told_of(database, "payment.succeeded") == told_of(database, "payment.refunded") == [str(order_id)]


def test_payments_and_refunds_of_nothing_that_an_older_version_left_open_are_closed_without_the_provider(
    bench: Benches, database: Databases, mail: Mail
) -> None:
    """Older versions asked the provider about them, and some of its answers were lost."""
    one = bench("payment")
    one.service.provider = Unasked()
    charged, refunding = (reserved_event(unit_price=0) for _ in range(2))
    one.handle_batch(CHARGES, [charged, refunding])
    one.handle_batch(REFUNDS, [refund_of(refunding)])
    database.run("payment", "DELETE FROM outbox")
    for table, row, status in (
        ("payments", charged, "PENDING"),
        ("payments", refunding, "REFUND_PENDING"),
        ("refunds", refunding, "PENDING"),
    ):
        statement = f"UPDATE {table} SET status = :status WHERE order_id = :id"
        database.run("payment", statement, status=status, id=row.payload.order_id)
    make_old(database)

    one.service.recover_unknown()

    paid, given_back = charged.payload.order_id, refunding.payload.order_id
    assert statuses(database, "payments") == {paid: "COMPLETED", given_back: "REFUNDED"}
    assert statuses(database, "refunds") == {given_back: "COMPLETED"}
    assert told_of(database, "payment.succeeded") == [str(paid)]
    assert told_of(database, "payment.refunded") == [str(given_back)]


def test_stored_answers_are_forgotten_once_they_are_older_than_promised(bench: Benches, database: Databases) -> None:
    for age in ("47 hours", "49 hours"):
        database.run(
            "order",
            "INSERT INTO idempotency_keys (user_id, route, key, fingerprint, status, body, location, created_at)"
            " VALUES ('ann', 'POST /api/orders', :age, '', 201, '{}', '', now() - CAST(:age AS interval))",
            age=age,
        )

    bench("order").service.forget_keys()

    assert database.rows("order", "SELECT key FROM idempotency_keys") == [{"key": "47 hours"}]


def test_a_refund_of_what_took_no_money_is_claimed_by_nobody_and_holds_up_no_other(
    bench: Benches, database: Databases, mail: Mail
) -> None:
    one = bench("payment")
    declined, paid = reserved_event(method="mock_declined"), reserved_event()
    one.handle_batch(CHARGES, [declined, paid])
    one.handle_batch(REFUNDS, [refund_of(declined)])
    assert statuses(database, "refunds") == {}
    provider, one.service.provider = one.service.provider, Deaf(one.service.provider)
    one.handle_batch(REFUNDS, [refund_of(paid)])
    one.service.provider = provider
    make_old(database)
    one.service.recover_unknown()
    assert statuses(database, "refunds") == {paid.payload.order_id: "COMPLETED"}


def test_a_locked_order_keeps_no_other_from_its_deadline(
    bench: Benches, database: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = on_short_locks(bench, "order", monkeypatch)
    order.service.settings = order._container.config["settings"]
    for _ in range(3):
        posted = {
            "currency": "EUR",
            "payment_method": "mock_ok",
            "items": [{"sku": "apple", "quantity": 1, "unit_price": 100}],
        }
        order.service.create_order(posted, str(uuid4()))
    database.run("order", "UPDATE orders SET created_at = created_at - interval '1 day'")
    cancelled = "SELECT order_id FROM orders WHERE status = 'CANCELLED'"

    assert_all_but_the_locked_one(
        database, "order", "orders ORDER BY created_at", order.service.cancel_overdue, cancelled
    )


def test_a_locked_reservation_keeps_no_other_from_expiring(
    bench: Benches, database: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    inventory = on_short_locks(bench, "inventory", monkeypatch)
    inventory.service.put_stock("apple", 10)
    for _ in range(3):
        inventory.service.reserve_manually(str(uuid4()), [{"sku": "apple", "quantity": 1}])
    database.run("inventory", "UPDATE reservations SET expires_at = now() - interval '1 day'")
    released = "SELECT order_id FROM reservations WHERE state = 'RELEASED'"
    first, expire = "reservations ORDER BY expires_at", inventory.service.release_expired

    assert_all_but_the_locked_one(database, "inventory", first, expire, released)


def test_a_reservation_by_hand_says_whose_hand_it_was(bench: Benches, database: Databases) -> None:
    inventory = bench("inventory")
    inventory.service.put_stock("apple", 10)
    by_hand, ordered, hand = uuid4(), order_created(), inventory.service.context.identity.user_id
    inventory.service.reserve_manually(str(by_hand), [{"sku": "apple", "quantity": 1}])
    inventory.handle_batch("q.inventory.order-created", [emitted(ordered)])

    made = database.rows("inventory", "SELECT order_id, made_by FROM reservations")
    assert {row["order_id"]: row["made_by"] for row in made} == {by_hand: hand, ordered.order_id: None}


def on_short_locks(bench: Benches, service: str, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A service whose timers use sessions as its workers do, and soon give up waiting for a lock."""
    monkeypatch.setattr(postgres, "LOCK_TIMEOUT_MS", 200)
    one = bench(service)
    one.service.db = one.database.worker_sessions
    return one


def assert_all_but_the_locked_one(
    database: Databases, service: str, first: str, run: Callable[[], None], done: str
) -> None:
    """Of three rows, the timer finishes two while another session holds the one whose turn comes first; then that."""
    engine = database.engines[service].execution_options(isolation_level="READ COMMITTED")
    with engine.connect() as somebody:
        held = somebody.execute(text(f"SELECT order_id FROM {first}, order_id LIMIT 1 FOR UPDATE")).scalar_one()
        with pytest.raises(CannotWork, match="1 of 3 wait for a lock"):
            run()
        finished = {row["order_id"] for row in database.rows(service, done)}
        assert len(finished) == 2
        assert held not in finished
    run()

    assert len(database.rows(service, done)) == 3


def test_a_locked_payment_keeps_no_refund_from_its_recovery(
    bench: Benches, database: Databases, mail: Mail, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = on_short_locks(bench, "payment", monkeypatch)
    provider = one.service.provider
    paid = reserved_event()
    one.handle_batch(CHARGES, [paid])
    one.service.provider = Deaf(provider)
    asked = reserved_event()
    one.handle_batch(CHARGES, [asked])
    one.handle_batch(REFUNDS, [refund_of(paid)])
    one.service.provider = provider
    make_old(database)
    locks = database.engines["payment"].execution_options(isolation_level="READ COMMITTED")
    with locks.connect() as somebody:
        row = text("SELECT FROM payments WHERE order_id = :id FOR UPDATE")
        somebody.execute(row, {"id": asked.payload.order_id})
        with pytest.raises(CannotWork, match="1 of 1 wait for a lock"):
            one.service.recover_unknown()

        assert statuses(database, "refunds") == {paid.payload.order_id: "COMPLETED"}
