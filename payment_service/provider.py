"""The payment provider: the only external system, which moves the money.

Every call carries an idempotency key (the id of the payment or refund). The provider executes a key once and repeats
its answer afterwards. The mock provider keeps its own ledger and commits on its own connections, as an external system
would, so that tests can prove that no customer was charged twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

from sqlalchemy import Engine, text

from payment_service.domain import Answer
from shared.config import Settings
from shared.edge import green
from shared.errors import ConfigurationFault, ProviderTimeout


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


DECLINED = "card_declined"
METHOD_UNKNOWN = "method_unknown"
REFUND_DECLINED = "refund_declined"

# What the mock does for each payment_method: (does the money move, does the answer arrive).
METHODS = {
    "mock_ok": (True, True),
    "mock_declined": (False, True),
    "mock_timeout": (False, False),
    "mock_timeout_charged": (True, False),
    "mock_refund_declined": (True, True),
}

_WRITE = text(
    "INSERT INTO provider_ledger (key, kind, order_id, amount, currency, done, reference, reason)"
    " VALUES (:key, :kind, :order_id, :amount, :currency, :done, :reference, :reason)"
    " ON CONFLICT (key) DO NOTHING RETURNING key"
)
_FIND = text("SELECT done, reference, reason FROM provider_ledger WHERE key = :key")


class MockProvider(Provider):
    """A provider whose behaviour is set by its mode and by each order's payment_method.

    Modes: `succeed`, `fail`, `fail_share:0.2`, `fail_above:10000` (minor units), `delay:0.5` (seconds), `timeout`
    (charges and refunds do nothing and time out, `find` answers), `down` (every call times out), `down_while:PATH`
    (down while that file exists). A lost answer is lost only once: a repeat of the key is answered from the ledger.
    """

    def __init__(self, ledger: Engine, mode: str, timeout_s: float) -> None:
        self.ledger = ledger
        self.mode, self.argument = parse_mode(mode)
        self.timeout_s = timeout_s

    def charge(self, charge: Charge) -> Answer:
        """Take the money, once for each key."""
        self._time_out_if_down()
        known = self._known(charge.key)
        if known:
            return known
        if charge.method not in METHODS:
            return self._do("charge", charge, Answer(False, reason=METHOD_UNKNOWN))
        moves, answers = METHODS[charge.method]
        if self.mode == "timeout" or not (moves or answers):
            raise self._timeout()
        moves = moves and not self._mode_declines(charge)
        answer = Answer(True, reference=f"mock-{charge.key.hex[:16]}") if moves else Answer(False, reason=DECLINED)
        answer = self._do("charge", charge, answer)
        if not answers:
            raise self._timeout()
        if self.mode == "delay":
            self._answer_after(self.argument)
        return answer

    def refund(self, refund: Charge) -> Answer:
        """Return the money, once for each key."""
        self._time_out_if_down()
        if self.mode == "timeout":
            raise self._timeout()
        if refund.method == "mock_refund_declined":
            return self._do("refund", refund, Answer(False, reason=REFUND_DECLINED))
        return self._do("refund", refund, Answer(True, reference=f"mock-{refund.key.hex[:16]}"))

    def find(self, key: UUID) -> Answer | None:
        """Return the answer for a key, or None if the ledger has no such key."""
        self._time_out_if_down()
        return self._known(key)

    def _known(self, key: UUID) -> Answer | None:
        with self.ledger.connect() as connection:
            row = connection.execute(_FIND, {"key": key}).first()
        return Answer(row.done, row.reference, row.reason) if row else None

    def _do(self, kind: str, charge: Charge, answer: Answer) -> Answer:
        row = {
            "key": charge.key,
            "kind": kind,
            "order_id": charge.order_id,
            "amount": charge.amount,
            "currency": charge.currency,
            "done": answer.done,
            "reference": answer.reference,
            "reason": answer.reason,
        }
        with self.ledger.connect() as connection:
            if connection.execute(_WRITE, row).first():
                return answer
        known = self._known(charge.key)
        assert known is not None
        return known

    def _mode_declines(self, charge: Charge) -> bool:
        if self.mode == "fail_share":
            # Decided by the key, so that a repeat has the same result.
            return int(hashlib.sha256(charge.key.bytes).hexdigest()[:8], 16) / 2**32 < self.argument
        return self.mode == "fail" or (self.mode == "fail_above" and charge.amount > self.argument)

    def _answer_after(self, seconds: float) -> None:
        green.sleep(min(seconds, self.timeout_s))
        if seconds >= self.timeout_s:
            raise ProviderTimeout()

    def _time_out_if_down(self) -> None:
        if self.mode == "down" or (self.mode == "down_while" and self.argument.exists()):
            raise self._timeout()

    def _timeout(self) -> ProviderTimeout:
        green.sleep(self.timeout_s)
        return ProviderTimeout()


# The type of the argument after the colon; None if the mode takes no argument.
MODES: dict[str, Callable[[str], Any] | None] = {
    "succeed": None,
    "fail": None,
    "fail_share": float,
    "fail_above": float,
    "delay": float,
    "timeout": None,
    "down": None,
    "down_while": Path,
}


def parse_mode(mode: str) -> tuple[str, Any]:
    """Split a PAYMENT_MODE into (name, argument). Raises ConfigurationFault for an unknown mode."""
    name, _, argument = mode.partition(":")
    if name in MODES and bool(argument) == bool(MODES[name]):
        try:
            return name, read(argument) if (read := MODES[name]) else None
        except ValueError:
            pass
    raise ConfigurationFault(f"PAYMENT_MODE must be one of {', '.join(MODES)} (name:argument), not {mode!r}")


# How each provider is made from its ledger and the settings.
PROVIDERS: dict[str, Callable[[Engine, Settings], Provider]] = {
    "mock": lambda ledger, settings: MockProvider(ledger, settings.payment_mode, settings.provider_timeout_s),
}


def provider_of(ledger: Engine, settings: Settings) -> Provider:
    """The provider that PAYMENT_PROVIDER names. Raises ConfigurationFault if there is none of that name."""
    name = settings.payment_provider
    if name not in PROVIDERS:
        raise ConfigurationFault(f"PAYMENT_PROVIDER must be {' or '.join(PROVIDERS)}, not {name!r}")
    return PROVIDERS[name](ledger, settings)
