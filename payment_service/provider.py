"""The payment provider: the only external system, which moves the money.

Every call carries an idempotency key (the id of the payment or refund). The provider executes a key once and repeats
its answer afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from payment_service.domain import Answer


@dataclass(frozen=True)
class Charge:
    """A request to the provider, for a charge or a refund; amount in minor units. `customer` owns the order."""

    key: UUID
    order_id: UUID
    amount: int
    currency: str
    method: str
    customer: str


class Provider(Protocol):
    """What every payment provider implements. Each method raises ProviderTimeout if no answer comes in time."""

    def charge(self, charge: Charge) -> Answer:
        """Take the money, once for each key."""

    def refund(self, refund: Charge) -> Answer:
        """Return the money, once for each key."""

    def find(self, key: UUID) -> Answer | None:
        """Return the answer for a key, or None if the provider does not know the key."""
