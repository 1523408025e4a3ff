"""The mock provider, which moves no money.

It keeps its own ledger and commits on its own connections, as an external system would, so that tests can prove that no
customer was charged twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import Engine, text

from payment_service.domain import Answer
from payment_service.provider import Charge, Provider
from shared.edge import green
from shared.errors import ConfigurationFault, ProviderTimeout

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
        moves, answers = METHODS.get(charge.method, (False, True))
        if self.mode == "timeout" or not (moves or answers):
            return self._repeat_or_time_out(charge.key)
        answer, is_new = self._do("charge", charge, self._decide(charge, moves))
        if is_new and not answers:
            raise self._timeout()
        if is_new and self.mode == "delay":
            self._answer_after(self.argument)
        return answer

    def refund(self, refund: Charge) -> Answer:
        """Return the money, once for each key."""
        self._time_out_if_down()
        if self.mode == "timeout":
            raise self._timeout()
        refused = refund.method == "mock_refund_declined"
        return self._do("refund", refund, Answer(False, reason=REFUND_DECLINED) if refused else _taken(refund))[0]

    def find(self, key: UUID) -> Answer | None:
        """Return the answer for a key, or None if the ledger has no such key."""
        self._time_out_if_down()
        return self._known(key)

    def _known(self, key: UUID) -> Answer | None:
        with self.ledger.connect() as connection:
            row = connection.execute(_FIND, {"key": key}).first()
        return Answer(row.done, row.reference, row.reason) if row else None

    def _do(self, kind: str, charge: Charge, answer: Answer) -> tuple[Answer, bool]:
        """Answer a key, with the answer that it had before if it is not new; and whether it is new."""
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
                return answer, True
        known = self._known(charge.key)
        assert known is not None
        return known, False

    def _repeat_or_time_out(self, key: UUID) -> Answer:
        if known := self._known(key):
            return known
        raise self._timeout()

    def _decide(self, charge: Charge, moves: bool) -> Answer:
        if charge.method not in METHODS:
            return Answer(False, reason=METHOD_UNKNOWN)
        return _taken(charge) if moves and not self._mode_declines(charge) else Answer(False, reason=DECLINED)

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


def _taken(charge: Charge) -> Answer:
    return Answer(True, reference=f"mock-{charge.key.hex[:16]}")


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
