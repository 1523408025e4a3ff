"""The rows of the tables that begin in the middle of a saga, by the services' own entrypoints on real databases."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from uuid import UUID, uuid4

import pytest

from order_service.domain import Status
from payment_service.domain import payment_id_of
from shared.config import Settings
from shared.envelope import Envelope
from shared.errors import Conflict
from shared.events import (
    CommitRequested,
    Payload,
    PaymentSucceeded,
    Refunded,
    RefundFailed,
    RefundRequested,
    ReleaseRequested,
    ReservationFailed,
    Reserved,
)
from tests.databases import Databases, Row
from tests.integration.support import OPERATOR, Bench, Mail, emitted, headers_of, order_created, reserved_event

Benches = Callable[..., Bench]

INVENTORY_RESULTS, PAYMENT_RESULTS = "q.order.inventory-result", "q.order.payment-result"
S = Status
CURRENT, OLDER = uuid4(), uuid4()


class Middle:
    """An order in the middle of its life, its service, and the effects of events on it."""

    def __init__(self, bench: Bench, database: Databases, settings: Settings) -> None:
        self.bench, self.service, self.database, self.settings = bench, bench.service, database, settings
        order = {
            "currency": "EUR",
            "payment_method": "mock_ok",
            "items": [{"sku": "lamp", "quantity": 1, "unit_price": 300}],
        }
        self.order_id = UUID(self.service.create_order(order, "key")["body"]["order_id"])
        self.payment_id = payment_id_of(self.order_id)
        database.run("order", "DELETE FROM outbox")

    def at(self, status: Status, reason: str | None = None, cancelled_told: bool = False) -> Middle:
        """As if it had come so far; money that moved has its ids."""
        charged = status in (S.PAID, S.REFUND_PENDING, S.REFUND_FAILED)
        refunding = status in (S.REFUND_PENDING, S.REFUND_FAILED)
        self.database.run(
            "order",
            "UPDATE orders SET status = :status, reason = :reason, cancelled_told = :told, payment_id = :payment_id,"
            " refund_id = :refund_id, created_at = now() - interval '1 hour'",
            status=status,
            reason=reason,
            told=cancelled_told,
            payment_id=self.payment_id if charged else None,
            refund_id=CURRENT if refunding else None,
        )
        return self

    def hears(self, queue: str, *payloads: Payload) -> Middle:
        self.bench.handle_batch(queue, [emitted(payload) for payload in payloads])
        return self

    def cancelled(self) -> Middle:
        assert self.service.cancel_order(str(self.order_id), "cancel")["status"] == 202
        return self

    def deadline(self) -> Middle:
        self.service.settings = dataclasses.replace(self.settings, order_deadline_s=60)
        self.service.cancel_overdue()
        return self

    def row(self) -> Row:
        return self.database.rows("order", "SELECT * FROM orders")[0]

    def emits(self) -> list[Row]:
        """The emitted events: types and payloads, in order."""
        rows = "SELECT event_type, (body::json)->'payload' AS payload, (body::json)->'identity' AS by FROM outbox"
        return self.database.rows("order", f"{rows} ORDER BY id")

    def types(self) -> list[str]:
        return [row["event_type"] for row in self.emits()]

    def steps(self) -> list[tuple[str, str, str]]:
        """The timeline after its beginning: the event, the state before and after."""
        rows = self.database.rows("order", "SELECT type, from_status, to_status FROM order_events ORDER BY id")
        return [(row["type"], row["from_status"], row["to_status"]) for row in rows[1:]]


@pytest.fixture
def middle(bench: Benches, database: Databases, mail: Mail, settings: Settings) -> Middle:
    return Middle(bench("order"), database, settings)


ENDED = ["order.cancelled", "inventory.release.requested"]


def succeeded(order: Middle) -> Middle:
    return order.hears(PAYMENT_RESULTS, PaymentSucceeded(order.order_id, order.payment_id, 300, "EUR", "reference"))


def reserved(order: Middle) -> Middle:
    return order.hears(INVENTORY_RESULTS, Reserved(order.order_id, uuid4(), (), 300, "EUR", "mock_ok"))


def refunded(order: Middle, refund_id: UUID = CURRENT) -> Middle:
    return order.hears(PAYMENT_RESULTS, Refunded(order.order_id, order.payment_id, refund_id, 300, "EUR"))


def refund_failed(order: Middle, refund_id: UUID = CURRENT) -> Middle:
    return order.hears(PAYMENT_RESULTS, RefundFailed(order.order_id, order.payment_id, refund_id, "declined"))


# is, reason so far, what happens, becomes, reason, tells
ROWS: dict[str, tuple[Status, str | None, Callable[[Middle], Middle], Status, str | None, list[str]]] = {
    "cancel before it is reserved": (S.PENDING, None, Middle.cancelled, S.CANCELLED, "order_cancelled", ENDED),
    "cancel before it is paid": (S.RESERVED, None, Middle.cancelled, S.CANCELLED, "order_cancelled", ENDED),
    "cancel after it is paid": (
        S.PAID,
        None,
        Middle.cancelled,
        S.REFUND_PENDING,
        "order_cancelled",
        ["payment.refund.requested", "inventory.release.requested"],
    ),
    "cancel again": (S.REFUND_FAILED, "order_cancelled", Middle.cancelled, S.REFUND_FAILED, "order_cancelled", []),
    "refund succeeded": (
        S.REFUND_PENDING,
        "order_cancelled",
        refunded,
        S.CANCELLED,
        "order_cancelled",
        ["order.cancelled"],
    ),
    "refund failed": (S.REFUND_PENDING, "order_cancelled", refund_failed, S.REFUND_FAILED, "order_cancelled", []),
    "an older refund failed": (
        S.REFUND_PENDING,
        "order_cancelled",
        lambda order: refund_failed(order, OLDER),
        S.REFUND_PENDING,
        "order_cancelled",
        [],
    ),
    "late payment": (S.CANCELLED, "deadline", succeeded, S.REFUND_PENDING, "deadline", ["payment.refund.requested"]),
    "late reservation": (S.CANCELLED, "deadline", reserved, S.CANCELLED, "deadline", ["inventory.release.requested"]),
    "overtaken reservation": (S.PAID, None, reserved, S.PAID, None, []),
    "deadline of one that is pending": (S.PENDING, None, Middle.deadline, S.CANCELLED, "deadline", ENDED),
    "deadline of one that is reserved": (S.RESERVED, None, Middle.deadline, S.CANCELLED, "deadline", ENDED),
    "deadline of one that is paid": (S.PAID, None, Middle.deadline, S.PAID, None, []),
}


@pytest.mark.parametrize("case", ROWS)
def test_a_row_that_begins_in_the_middle(case: str, middle: Middle) -> None:
    at, reason, happens, becomes, reason_after, emits = ROWS[case]

    happens(middle.at(at, reason, cancelled_told=at == S.CANCELLED))

    row = middle.row()
    assert (row["status"], row["reason"], middle.types()) == (becomes, reason_after, emits)
    if becomes != at:
        assert [(before, after) for _, before, after in middle.steps()] == [(at, becomes)]


def test_a_late_payment_is_given_back_once_and_the_order_is_not_cancelled_twice(middle: Middle) -> None:
    middle.at(S.CANCELLED, "deadline", cancelled_told=True)

    succeeded(succeeded(middle))

    (asked,) = middle.emits()
    assert asked["payload"] == {
        "order_id": str(middle.order_id),
        "customer_id": "customer",
        "payment_id": str(middle.payment_id),
        "refund_id": str(middle.row()["refund_id"]),
        "amount": 300,
        "currency": "EUR",
        "reason": "deadline",
    }
    refunded(middle, middle.row()["refund_id"])
    assert middle.row()["status"] == S.CANCELLED
    assert middle.types() == ["payment.refund.requested"]


@pytest.mark.parametrize(("at", "same"), [(S.REFUND_FAILED, False), (S.REFUND_PENDING, True)])
def test_a_retry_asks_with_a_new_id_after_a_failure_and_with_the_same_while_the_answer_is_awaited(
    at: Status, same: bool, middle: Middle
) -> None:
    middle.at(at, "order_cancelled").bench.called_by(OPERATOR)

    answer = middle.service.retry_refund(str(middle.order_id))

    (asked,) = middle.emits()
    assert (asked["event_type"], answer["body"]["status"]) == ("payment.refund.requested", S.REFUND_PENDING)
    assert (asked["payload"]["refund_id"] == str(CURRENT)) is same
    assert asked["payload"]["refund_id"] == str(middle.row()["refund_id"])
    assert asked["by"]["user_id"] == middle.service.context.identity.user_id


@pytest.mark.parametrize("at", [S.PENDING, S.RESERVED, S.PAID, S.CANCELLED])
def test_an_order_without_a_refund_has_none_to_retry(at: Status, middle: Middle) -> None:
    middle.at(at).bench.called_by(OPERATOR)

    with pytest.raises(Conflict, match=f"An order that is {at} does not expect refund.retry"):
        middle.service.retry_refund(str(middle.order_id))

    assert middle.types() == []


def test_the_clock_leaves_alone_what_ended_after_it_looked(middle: Middle, monkeypatch: pytest.MonkeyPatch) -> None:
    middle.at(S.PENDING)
    begin = middle.service.db.begin

    def paid_meanwhile() -> object:
        middle.at(S.PAID)
        return begin()

    monkeypatch.setattr(middle.service.db, "begin", paid_meanwhile)
    middle.deadline()

    assert (middle.row()["status"], middle.types(), middle.steps()) == (S.PAID, [], [])


def test_events_of_the_deadline_name_the_timer_as_their_cause(middle: Middle) -> None:
    middle.at(S.PENDING).deadline()

    assert [row["by"] for row in middle.emits()] == [{"user_id": "system:deadline", "roles": ["system"]}] * 2
    assert middle.steps() == [("deadline", "PENDING", "CANCELLED")]


def test_an_event_without_a_row_dies_as_unexpected_and_the_others_take_effect(
    middle: Middle, mail: Mail, caplog: pytest.LogCaptureFixture
) -> None:
    middle.at(S.PAID)
    unexpected = emitted(ReservationFailed(middle.order_id, "out_of_stock", ()))
    overtaken = emitted(Reserved(middle.order_id, uuid4(), (), 300, "EUR", "mock_ok"))

    with caplog.at_level(logging.WARNING):
        middle.bench.handle_batch(INVENTORY_RESULTS, [unexpected, overtaken])

    (dead,) = mail.all(f"{INVENTORY_RESULTS}.dlq")
    assert dead.properties["message_id"] == str(unexpected.message_id)
    assert headers_of(dead)["x-reason"] == "unexpected_event"
    (kept,) = middle.database.rows("order", "SELECT message_id, reason, order_id FROM dead_messages")
    assert kept == {
        "message_id": unexpected.message_id,
        "reason": "unexpected_event",
        "order_id": middle.order_id,
    }
    assert "an order that is PAID does not expect inventory.failed" in caplog.text
    assert middle.steps() == [("inventory.reserved", "PAID", "PAID")]


CREATED, COMMITS, RELEASES = (
    "q.inventory.order-created",
    "q.inventory.commit-requested",
    "q.inventory.release-requested",
)


@pytest.mark.parametrize(
    ("commit", "movements", "told_types"),
    [
        (False, [], ["inventory.reserved", "inventory.released"]),
        (True, [-2, 2], ["inventory.reserved", "inventory.committed", "inventory.released"]),
    ],
    ids=["reserved", "committed"],
)
def test_released_goods_return_to_the_stock_with_their_movements_and_an_audit_row(
    commit: bool, movements: list[int], told_types: list[str], bench: Benches, database: Databases, mail: Mail
) -> None:
    inventory, order = bench("inventory"), order_created(skus=["lamp"], quantity=2)
    database.run("inventory", "INSERT INTO stock_items (sku, on_hand) VALUES ('lamp', 5)")
    inventory.handle_batch(CREATED, [emitted(order)])
    if commit:
        inventory.handle_batch(COMMITS, [emitted(CommitRequested(order.order_id))])
    release = emitted(ReleaseRequested(order.order_id, "order_cancelled"))

    inventory.handle_batch(RELEASES, [release])

    assert database.rows("inventory", "SELECT on_hand, reserved FROM stock_items") == [{"on_hand": 5, "reserved": 0}]
    moved = database.rows("inventory", "SELECT change, moved_by FROM stock_movements ORDER BY id")
    assert [row["change"] for row in moved] == movements
    assert database.rows(
        "inventory", "SELECT order_id, sku, quantity, reason, trace_id FROM inventory_release_events"
    ) == [
        {
            "order_id": order.order_id,
            "sku": "lamp",
            "quantity": 2,
            "reason": "order_cancelled",
            "trace_id": release.trace_id,
        }
    ]
    types = database.rows("inventory", "SELECT event_type FROM outbox ORDER BY id")
    assert [row["event_type"] for row in types] == told_types


CHARGES, REFUNDS = "q.payment.inventory-reserved", "q.payment.refund-requested"


def ask(event: Envelope, refund_id: UUID) -> Envelope:
    order_id = event.payload.order_id
    return emitted(
        RefundRequested(order_id, payment_id_of(order_id), refund_id, event.payload.total, "EUR", "order_cancelled")
    )


def test_a_refund_that_failed_is_asked_for_again_under_a_new_id_and_given_back_once(
    bench: Benches, database: Databases, mail: Mail
) -> None:
    payment, event = bench("payment"), reserved_event(method="mock_refund_declined")
    payment.handle_batch(CHARGES, [event])
    payment.handle_batch(REFUNDS, [ask(event, OLDER)])
    assert database.rows("payment", "SELECT status FROM payments") == [{"status": "COMPLETED"}]
    database.run("payment", "UPDATE payments SET method = 'mock_ok'")  # the provider has become willing

    payment.handle_batch(REFUNDS, [ask(event, CURRENT)])
    payment.handle_batch(REFUNDS, [ask(event, CURRENT), ask(event, OLDER)])

    assert database.rows("payment", "SELECT status FROM payments") == [{"status": "REFUNDED"}]
    refunds = database.rows("payment", "SELECT refund_id, status FROM refunds")
    assert {row["refund_id"]: row["status"] for row in refunds} == {OLDER: "FAILED", CURRENT: "COMPLETED"}
    ledger = database.rows("payment", "SELECT kind, done FROM provider_ledger ORDER BY at")
    assert [(row["kind"], row["done"]) for row in ledger] == [("charge", True), ("refund", False), ("refund", True)]
    types = database.rows("payment", "SELECT event_type FROM outbox ORDER BY id")
    assert [row["event_type"] for row in types] == ["payment.succeeded", "payment.refund_failed", "payment.refunded"]
