"""The catalogue: every event as a frozen dataclass, with the limits of its fields. Standard library only.

A payload is declared here once. Its decoder, and its JSON Schema under docs/contracts, are derived from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, TypeVar
from uuid import UUID

from shared.ids import aggregate_of
from shared.prices import Price
from shared.schema import Amount, Change, Count, Currency, Limits, Quantity, ShortText, Sku, Stocked, Word


@dataclass(frozen=True)
class Identity:
    """The person or timer that caused an event: a customer, an operator, or one of the system's own timers."""

    user_id: ShortText
    roles: tuple[ShortText, ...]


@dataclass(frozen=True)
class Item:
    """So much of one stocked sku."""

    sku: Sku
    quantity: Stocked


@dataclass(frozen=True)
class PricedItem:
    """One line of an order; unit_price in minor units."""

    sku: Sku
    quantity: Quantity
    unit_price: Amount


@dataclass(frozen=True)
class OrderedItem(PricedItem):
    """One line of a new order: what it is called, and what its customer wishes. Older messages lack both."""

    name: ShortText | None = None
    note: ShortText | None = None


@dataclass(frozen=True)
class Shortage:
    """The requested quantity of an ordered sku, and what is available, or could be made, if nothing else is sold."""

    sku: Sku
    requested: Stocked
    available: Count


@dataclass(frozen=True)
class Payload:
    """The base of every event. A field with a default may be absent on arrival, so that fields can be added."""

    @property
    def aggregate_id(self) -> UUID:
        """The thing that the event is about. The relay publishes the events of one aggregate in order.

        A payload that is not about an order defines its own; `shared.ids.aggregate_of` makes one of a name.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class OrderPayload(Payload):
    """An event about an order, which is its aggregate."""

    order_id: UUID

    @property
    def aggregate_id(self) -> UUID:
        return self.order_id


# The owner of the order, also when another person caused the event. Messages of version 0.1 lack it.
CustomerId = ShortText | None

# What a customer wishes of the whole order.
Note = Annotated[str, Limits(pattern=r"[\s\S]{1,500}")]

CATALOGUE: dict[str, type[Payload]] = {}
_TYPE_OF: dict[type[Payload], str] = {}
P = TypeVar("P", bound=type[Payload])


def _event(type_: str) -> Callable[[P], P]:
    def register(payload: P) -> P:
        CATALOGUE[type_] = payload
        _TYPE_OF[payload] = type_
        return payload

    return register


@_event("order.created")
@dataclass(frozen=True)
class OrderCreated(OrderPayload):
    """A customer posted an order; total in minor units."""

    currency: Currency
    total: Amount
    items: tuple[OrderedItem, ...]
    payment_method: ShortText
    customer_id: CustomerId = None
    order_no: ShortText | None = None
    note: Note | None = None


@_event("order.cancelled")
@dataclass(frozen=True)
class OrderCancelled(OrderPayload):
    """The order ended unpaid, or its money went back."""

    reason: Word
    customer_id: CustomerId = None


@_event("order.paid")
@dataclass(frozen=True)
class OrderPaid(OrderPayload):
    """The order is paid. Nobody here listens yet."""

    total: Amount
    currency: Currency
    customer_id: CustomerId = None


@_event("inventory.release.requested")
@dataclass(frozen=True)
class ReleaseRequested(OrderPayload):
    """Give back what the order holds."""

    reason: Annotated[str, Limits(words=("payment_failed", "order_cancelled", "deadline"))]
    customer_id: CustomerId = None


@_event("inventory.commit.requested")
@dataclass(frozen=True)
class CommitRequested(OrderPayload):
    """The order is paid: its hold becomes a sale."""

    customer_id: CustomerId = None


@_event("inventory.reserved")
@dataclass(frozen=True)
class Reserved(OrderPayload):
    """All the order's items are held."""

    reservation_id: UUID
    items: tuple[PricedItem, ...]
    total: Amount
    currency: Currency
    payment_method: ShortText


@_event("inventory.failed")
@dataclass(frozen=True)
class ReservationFailed(OrderPayload):
    """Nothing is held: something was short."""

    reason: Word
    shortages: tuple[Shortage, ...]


@_event("inventory.released")
@dataclass(frozen=True)
class Released(OrderPayload):
    """What the order held is available again: `items` are stocked skus, also where made ones were ordered."""

    reservation_id: UUID
    items: tuple[Item, ...]
    reason: Word


@_event("inventory.committed")
@dataclass(frozen=True)
class Committed(OrderPayload):
    """What the order held has left the stock: `items` are stocked skus, also where made ones were ordered."""

    reservation_id: UUID
    items: tuple[Item, ...]
    reason: Word


@_event("payment.succeeded")
@dataclass(frozen=True)
class PaymentSucceeded(OrderPayload):
    """The provider took the money, or there was nothing to pay: `provider_reference` is then `nothing_to_pay`."""

    payment_id: UUID
    amount: Amount
    currency: Currency
    provider_reference: ShortText


@_event("payment.failed")
@dataclass(frozen=True)
class PaymentFailed(OrderPayload):
    """The provider will not take the money."""

    payment_id: UUID
    reason: Word


@_event("payment.refund.requested")
@dataclass(frozen=True)
class RefundRequested(OrderPayload):
    """Give the money back; refund_id is the provider's key."""

    payment_id: UUID
    refund_id: UUID
    amount: Amount
    currency: Currency
    reason: Word
    customer_id: CustomerId = None


@_event("payment.refunded")
@dataclass(frozen=True)
class Refunded(OrderPayload):
    """The money is back with the customer."""

    payment_id: UUID
    refund_id: UUID
    amount: Amount
    currency: Currency


@_event("payment.refund_failed")
@dataclass(frozen=True)
class RefundFailed(OrderPayload):
    """The provider would not give the money back."""

    payment_id: UUID
    refund_id: UUID
    reason: Word


@_event("catalog.offer_changed")
@dataclass(frozen=True)
class OfferChanged(Payload):
    """What is sold under a sku, as it is after a change: its whole state, and what has changed.

    `prices` are those in force and those to come, as they were set. `version` grows with each change of the sku.
    """

    item_id: UUID
    sku: Sku
    version: Amount
    name: ShortText
    category: ShortText | None
    sellable: bool
    prices: tuple[Price, ...]
    changed: tuple[Word, ...]  # listed, name, price, availability, withdrawn

    @property
    def aggregate_id(self) -> UUID:
        return self.item_id


@_event("stock.availability_changed")
@dataclass(frozen=True)
class AvailabilityChanged(Payload):
    """Whether a sku is sold out. `few` is what is left of it where that is 1 to 10."""

    sku: Sku
    sold_out: bool
    few: Count | None
    version: Amount

    @property
    def aggregate_id(self) -> UUID:
        return aggregate_of("sku", self.sku)


@_event("stock.level_crossed")
@dataclass(frozen=True)
class LevelCrossed(Payload):
    """A sku became low, or is not low any more. `low_at` is None where nobody wants to hear of it any more."""

    sku: Sku
    low: bool
    available: Count
    low_at: Count | None
    unit: Word
    version: Amount

    @property
    def aggregate_id(self) -> UUID:
        return aggregate_of("sku", self.sku)


@_event("stock.moved")
@dataclass(frozen=True)
class StockMoved(Payload):
    """A person changed what is on hand. A sale is told by inventory.committed."""

    sku: Sku
    movement_id: Amount
    change: Change
    on_hand: Count
    cause: Word
    reason: Word | None = None
    purchase_order_id: UUID | None = None

    @property
    def aggregate_id(self) -> UUID:
        return aggregate_of("sku", self.sku)


UserId = ShortText


@dataclass(frozen=True)
class UserPayload(Payload):
    """An event about a user. It names them by their id: no event holds a name or an address."""

    user_id: UserId

    @property
    def aggregate_id(self) -> UUID:
        return aggregate_of("user", self.user_id)


@_event("user.created")
@dataclass(frozen=True)
class UserCreated(UserPayload):
    """There is a new user."""

    roles: tuple[ShortText, ...]
    via: Annotated[str, Limits(words=("register", "oidc", "cli", "admin"))]


@_event("user.role_changed")
@dataclass(frozen=True)
class UserRoleChanged(UserPayload):
    """An admin has given a user these roles in place of those of before."""

    roles: tuple[ShortText, ...]
    version: Amount


@_event("user.disabled")
@dataclass(frozen=True)
class UserDisabled(UserPayload):
    """A user may not sign in any more."""


@_event("user.enabled")
@dataclass(frozen=True)
class UserEnabled(UserPayload):
    """A user may sign in again."""


@_event("user.erased")
@dataclass(frozen=True)
class UserErased(UserPayload):
    """Name, address and identities of a user are gone. Whoever has copied any of it erases that, too."""


@_event("user.mail.requested")
@dataclass(frozen=True)
class UserMailRequested(Payload):
    """Somebody is to get a mail. Its address and its link are asked for by `mail_id` when it is sent."""

    mail_id: UUID
    user_id: UserId | None
    kind: Annotated[str, Limits(words=("register", "reset", "change_email", "link", "keep", "notice"))]
    locale: ShortText

    @property
    def aggregate_id(self) -> UUID:
        return self.mail_id


def type_of(payload: Payload) -> str:
    """The event type, which is also the routing key."""
    return _TYPE_OF[type(payload)]
