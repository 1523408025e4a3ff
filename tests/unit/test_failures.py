"""The verdict on a message that could not be handled."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest

from shared.envelope import envelope
from shared.errors import HeldUp, InvalidSchema, Poison, ProviderTimeout, UnknownOrder
from shared.events import Identity, OrderCancelled
from shared.failures import (
    MAX_ERROR_BYTES,
    MAX_ROUTING_KEY,
    OURS,
    Delivery,
    FailedDelivery,
    classify_failure,
    exchange_of,
)
from shared.outcomes import Outcome

QUEUE = "q.payment.order-cancelled"
NOW = datetime(2026, 1, 14, 10, 30, tzinfo=UTC)
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
EVENT = envelope("order_service", OrderCancelled(uuid4(), "deadline"), TRACE, Identity("ann", ()))

# Only a message that is dead has a reason, and only one that was held up says so.
ALWAYS = OURS - {"x-reason", "x-held-up", "x-held-up-since"}


def apart(error: Exception, message_id: str | None = None, **headers: Any) -> FailedDelivery:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    delivery = Delivery(1, EVENT.to_json().encode(), "order.cancelled", message_id or str(EVENT.message_id), named)
    return FailedDelivery(delivery, EVENT, error)


def verdict(error: Exception, **headers: Any) -> Any:
    return classify_failure(apart(error, **headers), "payment", QUEUE, NOW)


@pytest.mark.parametrize(("failed_before", "target"), [(0, ".retry"), (1, ".retry.2s"), (2, ".retry.4s"), (3, ".dlq")])
def test_a_message_has_its_first_try_and_three_more(failed_before: int, target: str) -> None:
    failure = verdict(ValueError("no"), x_attempt=failed_before)

    assert failure.target == QUEUE + target
    assert failure.headers["x-attempt"] == failed_before + 1
    assert failure.reason == ("exhausted" if target == ".dlq" else None)


@pytest.mark.parametrize(
    ("error", "reason"), [(Poison(), "poison"), (InvalidSchema(), "invalid_schema"), (UnknownOrder(), "unknown_order")]
)
def test_a_hopeless_message_dies_at_once(error: Exception, reason: str) -> None:
    failure = verdict(error)

    assert (failure.target, failure.reason, failure.headers["x-reason"]) == (QUEUE + ".dlq", reason, reason)


def test_a_message_is_sent_on_with_our_headers_and_those_of_its_publisher() -> None:
    failure = verdict(
        ValueError("no"), x_attempt=3, x_death=[{"count": 4}], x_first_death_queue="q", x_delivery_count=7, other="x"
    )

    assert set(failure.headers) == ALWAYS | {"x-reason"}
    assert failure.publishers.headers == {"other": "x"}


@pytest.mark.parametrize("name", ["x-death", "x-last-death-reason", "x-acquired-count", "CC", "BCC", *sorted(OURS)])
def test_a_header_with_a_meaning_for_us_or_the_broker_is_not_kept_as_its_publisher_wrote_it(name: str) -> None:
    delivery = Delivery(1, b"{", "order.cancelled", None, {name: "forged", "kept": 1})

    failure = classify_failure(FailedDelivery(delivery, None, Poison()), "payment", QUEUE)

    assert failure.publishers.headers == {"kept": 1}


def test_the_publishers_properties_are_kept_but_those_that_would_end_the_message_early() -> None:
    kept = {"content_encoding": "gzip", "app_id": "shop", "correlation_id": "c", "reply_to": "r", "timestamp": 7}
    delivery = Delivery(1, b"{", "k", None, {}, {**kept, "expiration": "1", "user_id": "ann", "delivery_mode": 1})

    failure = classify_failure(FailedDelivery(delivery, None, Poison()), "payment", QUEUE)

    assert failure.publishers.properties == kept


def test_a_routing_key_from_a_header_is_cut_to_what_amqp_allows() -> None:
    failure = verdict(ValueError("no"), x_original_routing_key="k" * 100_000)

    assert failure.headers["x-original-routing-key"] == "k" * MAX_ROUTING_KEY


def test_a_message_that_is_held_up_counts_no_attempt_and_remembers_since_when() -> None:
    first = verdict(HeldUp("a lock"), x_attempt=2)
    assert (first.target, first.outcome, first.reason) == (QUEUE + ".retry", Outcome.LATER, None)
    assert (first.headers["x-attempt"], first.headers["x-held-up"]) == (2, 1)

    returned = Delivery(2, b"", QUEUE, str(EVENT.message_id), first.headers)
    second = classify_failure(FailedDelivery(returned, EVENT, HeldUp("a lock")), "payment", QUEUE)

    assert (second.target, second.headers["x-attempt"]) == (QUEUE + ".retry.4s", 2)
    assert second.headers["x-held-up"] == 2
    assert second.headers["x-held-up-since"] == first.headers["x-held-up-since"]


def test_the_first_failure_and_the_first_key_are_remembered_over_all_tries() -> None:
    first = verdict(ProviderTimeout())
    second = classify_failure(
        FailedDelivery(Delivery(2, b"", QUEUE, str(EVENT.message_id), first.headers), EVENT, ProviderTimeout()),
        "payment",
        QUEUE,
    )

    assert second.headers["x-first-failed-at"] == "2026-01-14T10:30:00.000Z"
    assert second.headers["x-last-failed-at"] > second.headers["x-first-failed-at"]
    assert second.headers["x-original-routing-key"] == "order.cancelled"


def test_the_message_keeps_its_id_and_its_body() -> None:
    failure = verdict(ValueError("no"))

    assert failure.message_id == EVENT.message_id
    assert failure.body == EVENT.to_json().encode()
    assert exchange_of(failure) == "ecom.failed.payment"


def test_a_bare_payload_goes_on_as_the_event_it_was_completed_to() -> None:
    failure = classify_failure(apart(ValueError("no"), message_id="none of ours"), "payment", QUEUE)

    assert failure.body == EVENT.to_json()
    assert failure.message_id == EVENT.message_id


@pytest.mark.parametrize("message_id", [None, "", "17"])
def test_a_message_that_cannot_be_read_gets_an_id_of_its_own_if_it_has_none(message_id: str | None) -> None:
    failure = classify_failure(
        FailedDelivery(Delivery(1, b"{", "order.cancelled", message_id, {}), None, Poison()), "payment", QUEUE
    )

    assert isinstance(failure.message_id, UUID)
    assert (failure.body, failure.order_id, failure.trace_id) == (b"{", None, None)


def test_the_error_is_cut_to_a_kilobyte_and_holds_no_nul() -> None:
    failure = verdict(ValueError("\0" + "ü" * 2000))

    text = failure.headers["x-error-message"]
    assert len(text.encode()) <= MAX_ERROR_BYTES
    assert text.startswith("ValueError: ?ü")


@pytest.mark.parametrize("forged", ["3", -1, None, 2.5, True])
def test_a_forged_count_of_attempts_counts_as_none(forged: object) -> None:
    failures = classify_failure(apart(ValueError("no"), x_attempt=forged), "payment", QUEUE).headers["x-attempt"]

    assert failures == 1


def test_a_message_that_fails_again_keeps_its_publisher() -> None:
    came = replace(apart(ValueError("no")).delivery, properties={"user_id": "ecom-order"})
    first = classify_failure(FailedDelivery(came, EVENT, ValueError("no")), "payment", QUEUE)
    sent_on = Delivery(2, b"", QUEUE, str(EVENT.message_id), first.headers, {"user_id": "ecom-payment"})
    second = classify_failure(FailedDelivery(sent_on, EVENT, ValueError("no")), "payment", QUEUE)

    assert first.headers["x-publisher"] == second.headers["x-publisher"] == "ecom-order"


def test_a_message_that_cannot_be_classified_does_not_lose_its_sender() -> None:
    headers, properties = {"x-publisher": "ecom-order", "x-attempt": 2}, {"user_id": "ecom-payment", "app_id": "shop"}
    stripped = Delivery(1, b"{", QUEUE, None, headers, properties).stripped(None)

    assert stripped.sender("payment") == "ecom-order"
    assert (stripped.headers, stripped.properties) == ({"x-publisher": "ecom-order"}, {"user_id": "ecom-payment"})
