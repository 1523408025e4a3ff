"""The timers of the services, run once: recovering unknown payments, deleting stored answers."""

from collections.abc import Callable
from uuid import UUID, uuid4

import pytest

from payment_service.domain import payment_id_of
from payment_service.provider import Answer, Charge
from shared.envelope import Envelope
from shared.errors import ProviderTimeout
from shared.events import OrderCancelled, RefundRequested
from tests.databases import Databases
from tests.integration.support import Bench, Mail, emitted, reserved_event

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
    order_id = charge.payload.order_id
    return emitted(RefundRequested(order_id, payment_id_of(order_id), uuid4(), 100, "EUR", "order_cancelled"))


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
