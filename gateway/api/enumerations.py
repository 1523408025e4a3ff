"""The closed lists of words that answers and requests hold. Each is a schema of its own in the OpenAPI document.

Every list is derived from the table by which the services work.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from enum import StrEnum

from gateway.api.fields import Enumeration
from shared.auth import OPERATOR, ROLES
from shared.enumerations import (
    CountReason,
    ItemStatus,
    MovementCause,
    OperationKind,
    OperationStatus,
    PaymentStatus,
    PurchaseStatus,
    ReleaseReason,
    ReservationState,
    StockInReason,
    StockOutReason,
    Unit,
)
from shared.events import CATALOGUE, OrderCreated, OrderPayload
from shared.order_states import Command, Reason, Status
from shared.roles import FOREIGN_PREFIX
from topology.services import BY_NAME, PUBLISHERS
from topology.table import QUEUES, dead_letter_queue, hears


def _of(name: str, kind: type[StrEnum]) -> Enumeration:
    return Enumeration(name, tuple(word.value for word in kind), inspect.cleandoc(kind.__doc__ or ""))


def _events_of_an_order() -> Iterator[str]:
    for type_, payload in CATALOGUE.items():
        is_heard = any(hears(queue, type_) for queue in QUEUES if queue.service == "order")
        if payload is OrderCreated or (is_heard and issubclass(payload, OrderPayload)):
            yield type_
    for command in Command:
        yield command.value


ORDER_STATUS = _of("OrderStatus", Status)
ORDER_REASON = _of("OrderReason", Reason)
ORDER_EVENT = Enumeration(
    "OrderEvent", tuple(_events_of_an_order()), "What can happen to an order: an event, or a command."
)
AWAITED_FROM = Enumeration(
    "AwaitedFrom",
    (*(BY_NAME[service].package for service in PUBLISHERS), OPERATOR),
    "Who answers next: a service, or a person.",
)
ROLE = Enumeration("Role", ROLES, "A role of a user.")
WRITTEN_ROLE = Enumeration(
    "WrittenRole",
    (*ROLES, *(f"{FOREIGN_PREFIX}{role.upper()}" for role in ROLES)),
    "A role as a request may write it: `ROLE_ADMIN` is `admin`. Answers say `admin`.",
)
USER_KIND = Enumeration("UserKind", ("person", "service"), "Who a user is.")
RESERVATION_STATE = _of("ReservationState", ReservationState)
RELEASE_REASON = _of("ReleaseReason", ReleaseReason)
PAYMENT_STATUS = _of("PaymentStatus", PaymentStatus)
QUEUE_NAME = Enumeration("QueueName", tuple(queue.name for queue in QUEUES), "A queue of the topology.")
DLQ_NAME = Enumeration(
    "DlqName", tuple(dead_letter_queue(queue.name) for queue in QUEUES), "The dead-letter queue of a queue."
)
OPERATION_KIND = _of("OperationKind", OperationKind)
OPERATION_STATUS = _of("OperationStatus", OperationStatus)
ITEM_STATUS = _of("ItemStatus", ItemStatus)
MOVEMENT_CAUSE = _of("MovementCause", MovementCause)
STOCK_IN_REASON = _of("StockInReason", StockInReason)
STOCK_OUT_REASON = _of("StockOutReason", StockOutReason)
COUNT_REASON = _of("CountReason", CountReason)
MOVEMENT_REASON = Enumeration(
    "MovementReason",
    tuple(dict.fromkeys((*STOCK_IN_REASON.words, *STOCK_OUT_REASON.words, *COUNT_REASON.words))),
    "Why people moved stock.",
)
UNIT = _of("Unit", Unit)
PURCHASE_STATUS = _of("PurchaseStatus", PurchaseStatus)
