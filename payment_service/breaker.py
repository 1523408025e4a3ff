"""The circuit breaker around the payment provider: an outage counts against no single payment (docs/decisions/0009).

After a timeout one neutral question, `find` with a key that no payment has, shows whose fault it was: a provider that
is up answers it, so the timeout belongs to that one call. Otherwise the provider is down for everybody. It is also
taken for down when the calls for several customers in a row time out; one customer alone cannot make it so.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

from payment_service.domain import Answer
from payment_service.provider import Charge, Provider
from shared.edge.green import Semaphore
from shared.errors import ProviderAway, ProviderTimeout
from shared.metrics import CIRCUIT_OPEN

log = logging.getLogger(__name__)

CUSTOMERS_TO_OPEN = 5

# Questions after charges and refunds count together as those of one customer, whoever owns the orders.
NOBODY = ""

# The key of the neutral question: no payment and no refund can have it.
NEUTRAL_KEY = UUID(int=0)


class Breaker:
    """Decides whether calls may pass. Once open, a trial is due after `open_s`. Makes no calls itself."""

    def __init__(self, open_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.open_s = open_s
        self.clock = clock
        self.answers = 0
        self.unanswered: set[str] = set()  # customers with a call that timed out since the last answer
        self.opened_at: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether calls are blocked."""
        return self.opened_at is not None

    @property
    def trial_is_due(self) -> bool:
        """Whether the circuit has been open for `open_s`, so that one trial call may be made."""
        return self.opened_at is not None and self.clock() - self.opened_at >= self.open_s

    def succeeded(self) -> None:
        """Count a call that the provider answered."""
        self.answers += 1
        self.unanswered.clear()

    def failed(self, answers_before: int, customer: str) -> None:
        """Count a customer's call that timed out. `answers_before` is the value of `answers` when the call began.

        With parallel calls, timeouts finish last and so look consecutive. A timeout counts only if no other call
        succeeded meanwhile. It is ignored while the circuit is open: the call began before that.
        """
        if self.answers == answers_before and not self.is_open:
            self.unanswered.add(customer)
            if len(self.unanswered) >= CUSTOMERS_TO_OPEN:
                self.open(f"calls for {CUSTOMERS_TO_OPEN} customers in a row were not answered")

    def open(self, why: str) -> None:
        """Block all calls until a trial succeeds; a trial is due after `open_s`."""
        if not self.is_open:
            log.warning("the payment provider is left alone: %s", why)
        self.opened_at = self.clock()

    def close(self) -> None:
        """Let calls pass again."""
        log.warning("the payment provider answers again")
        self.opened_at = None
        self.unanswered.clear()


class Guarded(Provider):
    """A provider behind the breaker. Raises ProviderTimeout if one call fails, ProviderAway if the provider is down."""

    def __init__(self, provider: Provider, breaker: Breaker, service: str) -> None:
        self.provider = provider
        self.breaker = breaker
        self._trial = Semaphore()
        CIRCUIT_OPEN.labels(service).set_function(lambda: float(breaker.is_open))

    def charge(self, charge: Charge) -> Answer:
        """Take the money, once for each key."""
        return self._ask(self.provider.charge, charge, charge.customer)

    def refund(self, refund: Charge) -> Answer:
        """Return the money, once for each key."""
        return self._ask(self.provider.refund, refund, refund.customer)

    def find(self, key: UUID) -> Answer | None:
        """Return the provider's answer for a key, or None if the provider does not know the key."""
        return self._ask(self.provider.find, key, NOBODY)

    def _ask(self, call: Callable[[Any], Any], argument: Any, customer: str) -> Any:
        self._enter()
        answers_before = self.breaker.answers
        try:
            answer = call(argument)
        except ProviderTimeout:
            if not self._is_there():
                raise ProviderAway() from None
            self.breaker.failed(answers_before, customer)
            raise
        self.breaker.succeeded()
        return answer

    def _enter(self) -> None:
        """Let a call pass, or raise ProviderAway. One caller makes the trial; parallel callers wait for its result."""
        if self.breaker.trial_is_due:
            with self._trial:
                if self.breaker.trial_is_due and self._is_there():
                    self.breaker.close()
        if self.breaker.is_open:
            raise ProviderAway()

    def _is_there(self) -> bool:
        """Ask the neutral question. Opens the circuit if the provider does not answer."""
        try:
            self.provider.find(NEUTRAL_KEY)
        except ProviderTimeout as error:
            self.breaker.open(f"it answers nobody ({error})")
            return False
        return True
