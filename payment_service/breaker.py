"""What keeps an outage of the provider from being charged to anybody's payment (docs/decisions/0009).

One question settles whose fault a silence is: asked about a key that is nobody's, a provider that is there answers.
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

FAILURES_TO_OPEN = 5

# What the neutral question is about: no payment and no refund can have this key.
NOBODYS = UUID(int=0)


class Breaker:
    """Whether calls may pass: closed, or open until after `open_s` a trial is due. It is told, and calls nobody."""

    def __init__(self, open_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.open_s = open_s
        self.clock = clock
        self.answers = 0
        self.failures = 0
        self.opened_at: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether no call may pass."""
        return self.opened_at is not None

    @property
    def trial_is_due(self) -> bool:
        """Whether it has been open for long enough to see if the provider is back."""
        return self.opened_at is not None and self.clock() - self.opened_at >= self.open_s

    def succeeded(self) -> None:
        """A call was answered."""
        self.answers, self.failures = self.answers + 1, 0

    def failed(self, answers_before: int) -> None:
        """A call was not answered, and there were so many `answers` when it began.

        Where calls are made side by side, those that time out are always the last of their batch: a failure counts
        only if nobody was answered meanwhile. One that began before the circuit opened says nothing new.
        """
        if self.answers == answers_before and not self.is_open:
            self.failures += 1
            if self.failures >= FAILURES_TO_OPEN:
                self.open(f"{FAILURES_TO_OPEN} calls in a row were not answered")

    def open(self, why: str) -> None:
        """From now on and for `open_s` no call may pass."""
        if not self.is_open:
            log.warning("the payment provider is left alone: %s", why)
        self.opened_at = self.clock()

    def close(self) -> None:
        """Calls may pass."""
        log.warning("the payment provider answers again")
        self.opened_at, self.failures = None, 0


class Guarded(Provider):
    """A provider that raises ProviderTimeout for what is one call's own, and ProviderAway when it answers nobody."""

    def __init__(self, provider: Provider, breaker: Breaker, service: str) -> None:
        self.provider = provider
        self.breaker = breaker
        self._trial = Semaphore()
        CIRCUIT_OPEN.labels(service).set_function(lambda: float(breaker.is_open))

    def charge(self, charge: Charge) -> Answer:
        """Take the money, once for each key."""
        return self._ask(self.provider.charge, charge)

    def refund(self, refund: Charge) -> Answer:
        """Give it back, once for each key."""
        return self._ask(self.provider.refund, refund)

    def find(self, key: UUID) -> Answer | None:
        """What became of a key; None when the provider never heard of it."""
        return self._ask(self.provider.find, key)

    def _ask(self, call: Callable[[Any], Any], argument: Any) -> Any:
        self._enter()
        answers_before = self.breaker.answers
        try:
            answer = call(argument)
        except ProviderTimeout:
            if not self._is_there():
                raise ProviderAway() from None
            self.breaker.failed(answers_before)
            raise
        self.breaker.succeeded()
        return answer

    def _enter(self) -> None:
        """Let a call pass, or raise ProviderAway. One caller makes the trial; those beside it wait for its outcome."""
        if self.breaker.trial_is_due:
            with self._trial:
                if self.breaker.trial_is_due and self._is_there():
                    self.breaker.close()
        if self.breaker.is_open:
            raise ProviderAway()

    def _is_there(self) -> bool:
        """Ask the neutral question. A provider that does not answer it is left alone from now on."""
        try:
            self.provider.find(NOBODYS)
        except ProviderTimeout:
            self.breaker.open("it answers nobody")
            return False
        return True
