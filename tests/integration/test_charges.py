"""What charges, refunds and cancellations cost, and that a payment with an answer is not asked for again."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, event

from payment_service.domain import Answer, payment_id_of
from payment_service.mock_provider import MockProvider
from payment_service.provider import Charge
from shared.envelope import Envelope
from shared.errors import ProviderTimeout
from shared.events import OrderCancelled, RefundRequested
from tests.databases import Databases
from tests.integration.support import Bench, emitted, reserved_event, statements

CHARGES = "q.payment.inventory-reserved"
REFUNDS = "q.payment.refund-requested"
VOIDS = "q.payment.order-cancelled"

Benches = Callable[..., Bench]


def cancelled(order_id: UUID) -> Envelope:
    return emitted(OrderCancelled(order_id, "deadline"))


def refund_of(order_id: UUID) -> Envelope:
    return emitted(RefundRequested(order_id, payment_id_of(order_id), uuid4(), 100, "EUR", "order_cancelled"))


def verbs(sent: list[tuple[str, Any]]) -> list[str]:
    """Each statement as its verb and its table."""
    pattern = re.compile(r"(INSERT) INTO (\w+)|(UPDATE) (\w+)|(SELECT).*?FROM (\w+)", re.DOTALL)
    return [" ".join(filter(None, found.groups())) for found in (pattern.match(text) for text, _ in sent) if found]


@pytest.mark.parametrize("number", [1, 50])
def test_a_batch_takes_few_statements_whatever_its_size(bench: Benches, number: int) -> None:
    payment = bench("payment")
    orders = [uuid4() for _ in range(number)]
    with statements(payment) as charging:
        payment.handle_batch(CHARGES, [reserved_event(order_id) for order_id in orders])
    with statements(payment) as refunding:
        payment.handle_batch(REFUNDS, [refund_of(order_id) for order_id in orders])
    with statements(payment) as voiding:
        payment.handle_batch(VOIDS, [cancelled(uuid4()) for _ in orders])

    assert verbs(charging) == [
        "INSERT payments",  # before the provider is asked; it says what to ask
        "INSERT consumed_messages",
        "SELECT payments",
        "UPDATE payments",
        "INSERT outbox",
    ]
    assert verbs(refunding) == [
        "SELECT payments",
        "INSERT refunds",
        "INSERT consumed_messages",
        "SELECT payments",
        "SELECT refunds",
        "UPDATE payments",
        "UPDATE refunds",
        "INSERT outbox",
    ]
    assert verbs(voiding) == ["INSERT consumed_messages", "INSERT payments"]


def test_only_a_payment_without_an_answer_is_asked_for_again(
    bench: Benches, database: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    payment, asked = bench("payment"), []

    def charge(provider: MockProvider, charge: Charge) -> Answer:
        asked.append(charge.order_id)
        if charge.method == "mock_timeout":
            raise ProviderTimeout()
        return Answer(charge.method == "mock_ok", "reference", "card_declined")

    monkeypatch.setattr(MockProvider, "charge", charge)
    paid, refused, open_, void = (uuid4() for _ in range(4))
    methods = {paid: "mock_ok", refused: "mock_declined", open_: "mock_timeout", void: "mock_ok"}
    payment.handle_batch(VOIDS, [cancelled(void)])
    for order_id, method in methods.items():
        payment.handle_batch(CHARGES, [reserved_event(order_id, method)])
    assert asked == [paid, refused, open_]

    payment.handle_batch(CHARGES, [reserved_event(order_id, method) for order_id, method in methods.items()])
    assert asked == [paid, refused, open_, open_]


def test_a_cancelled_order_is_marked_also_where_others_of_the_batch_are_new(
    bench: Benches, database: Databases
) -> None:
    payment = bench("payment")
    known, new = uuid4(), uuid4()
    payment.handle_batch(CHARGES, [reserved_event(known)])
    database.run("payment", "UPDATE payments SET status = 'PENDING'")  # a call under way
    payment.handle_batch(VOIDS, [cancelled(known), cancelled(new)])

    rows = database.rows("payment", "SELECT order_id, status, cancelled FROM payments")
    assert {row["order_id"]: (row["status"], row["cancelled"]) for row in rows} == {
        known: ("PENDING", True),
        new: ("VOID", False),
    }


def test_a_refund_that_was_declined_is_not_asked_for_again(bench: Benches, database: Databases) -> None:
    payment = bench("payment")
    order_id = uuid4()
    payment.handle_batch(CHARGES, [reserved_event(order_id, "mock_refund_declined")])
    asked = refund_of(order_id)
    payment.handle_batch(REFUNDS, [asked])
    again = emitted(asked.payload)
    with counted(payment.ledger) as ledger:
        payment.handle_batch(REFUNDS, [again])

    assert ledger == []  # the provider was not asked
    assert [row["status"] for row in database.rows("payment", "SELECT status FROM refunds")] == ["FAILED"]


@contextmanager
def counted(engine: Engine) -> Iterator[list[str]]:
    """The verbs of the statements that an engine sends."""
    sent: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        sent.append(statement.split()[0])

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(engine, "before_cursor_execute", note)


def test_the_mock_provider_writes_a_charge_by_one_statement_and_repeats_its_answer(bench: Benches) -> None:
    ledger = bench("payment").ledger
    provider = MockProvider(ledger, "succeed", timeout_s=0.05)
    charge = Charge(uuid4(), uuid4(), 100, "EUR", "mock_ok", "ann")
    with counted(ledger) as sent:
        answer = provider.charge(charge)
        assert sent == ["INSERT"]
        assert provider.charge(charge) == answer
    assert sent == ["INSERT", "INSERT", "SELECT"]


@pytest.mark.parametrize(("mode", "method"), [("timeout", "mock_ok"), ("succeed", "mock_timeout")])
def test_the_mock_provider_does_nothing_for_a_new_key_and_answers_a_repeat(
    bench: Benches, mode: str, method: str
) -> None:
    ledger = bench("payment").ledger
    provider = MockProvider(ledger, mode, timeout_s=0.01)
    charge = Charge(uuid4(), uuid4(), 100, "EUR", method, "ann")
    with pytest.raises(ProviderTimeout):
        provider.charge(charge)
    assert provider.find(charge.key) is None

    answer = MockProvider(ledger, "succeed", 1.0).charge(Charge(charge.key, uuid4(), 100, "EUR", "mock_ok", "ann"))
    assert provider.charge(charge) == answer


@pytest.mark.parametrize(("mode", "method"), [("succeed", "mock_timeout_charged"), ("delay:5", "mock_ok")])
def test_the_mock_provider_loses_an_answer_once(bench: Benches, mode: str, method: str) -> None:
    provider = MockProvider(bench("payment").ledger, mode, timeout_s=0.01)
    charge = Charge(uuid4(), uuid4(), 100, "EUR", method, "ann")
    with pytest.raises(ProviderTimeout):
        provider.charge(charge)
    assert provider.charge(charge).done
