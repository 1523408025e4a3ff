"""Plain words for what auditors read on the dashboard: steps of an order, their details, and amounts of money."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# Every step that an order can have, by its event or command.
STEPS = {
    "order.created": "Order placed",
    "inventory.reserved": "Stock reserved",
    "inventory.failed": "Stock not available",
    "payment.succeeded": "Payment taken",
    "payment.failed": "Payment refused",
    "cancel": "Cancellation requested",
    "deadline": "No payment in time",
    "inventory.released": "Stock released",
    "inventory.committed": "Reserved stock sold",
    "payment.refunded": "Money refunded",
    "payment.refund_failed": "Refund failed",
    "refund.retry": "Refund requested again",
}

# Currencies whose minor unit is not a hundredth, by the number of decimals (ISO 4217, table of 2026-01-01).
DECIMALS = {
    currency: decimals
    for decimals, currencies in {
        0: "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF",
        3: "BHD IQD JOD KWD LYD OMR TND",
        4: "CLF UYW",
    }.items()
    for currency in currencies.split()
}


def money(amount: int, currency: str) -> str:
    """An amount in minor units, as people write it: 900 of EUR is `9.00 EUR`, 900 of JPY is `900 JPY`."""
    decimals = DECIMALS.get(currency, 2)
    whole, part = divmod(amount, 10**decimals)
    return f"{whole:,}" + (f".{part:0{decimals}}" if decimals else "") + f" {currency}"


def step(event: str) -> str:
    """A step of an order in plain words; the event itself if it is none that this page knows."""
    return STEPS.get(event, event)


def plain(code: str) -> str:
    """A state or a service as words: REFUND_PENDING is `refund pending`."""
    return code.replace("_", " ").lower()


def details(of_step: Mapping[str, Any]) -> list[str]:
    """The details of a step, each as a phrase."""
    return list(_phrases(dict(of_step)))


def _phrases(left: dict[str, Any]) -> Iterable[str]:
    if "total" in left and "currency" in left:
        yield f"Total {money(left.pop('total'), left.pop('currency'))}"
    if "reason" in left:
        yield f"Reason: {left.pop('reason')}"
    for short in left.pop("shortages", ()):
        yield f"{short['sku']}: {short['requested']:,} requested, {short['available']:,} available"
    if "provider_reference" in left:
        yield f"Reference of the payment provider: {left.pop('provider_reference')}"
    for name, value in left.items():
        yield f"{name}: {value}"
