"""Rate limits by address and by user. Each replica of the gateway counts only the requests it answers itself, so each
allows its share of a limit.
"""

from __future__ import annotations

import logging
import time

from limits import RateLimitItemPerSecond
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from shared.config import Settings
from shared.edge.shares import network_of
from shared.errors import RateLimited
from shared.events import Identity

log = logging.getLogger(__name__)

WINDOW_S = 60

# The library keeps two counters for each name and looks at all of them every 10 ms. Past this many, all are deleted:
# memory and that scan stay bounded, and an attacker with this many addresses gains nothing by it.
MAX_TRACKED = 10_000


class Rate:
    """At most `amount` requests of each name in a window, `shares` replicas together; 0 means no limit.

    One replica allows its share, and at least one request. The window slides: requests of the previous fixed window
    count by the part of it that is still inside.
    """

    def __init__(self, who: str, amount: int, window_s: int = WINDOW_S, shares: int = 1) -> None:
        self.who = who
        self.amount = amount
        if amount:
            self._limit = RateLimitItemPerSecond(max(1, amount // shares), window_s)
            self._storage = MemoryStorage()
            self._window = SlidingWindowCounterRateLimiter(self._storage)

    def check(self, name: str) -> None:
        """Count a request. Raises RateLimited, which says after how many seconds the next request is allowed."""
        if not self.amount:
            return
        if len(self._storage.storage) >= MAX_TRACKED:
            log.warning("more than %d counters for the requests of each %s: all were reset", MAX_TRACKED, self.who)
            self._storage.reset()
        if self._window.hit(self._limit, name):
            return
        in_s = self._window.get_window_stats(self._limit, name).reset_time - time.time()
        raise RateLimited(
            f"Too many requests of one {self.who}.", {"limit": self.amount, "retry_after": max(0, int(in_s)) + 1}
        )


class Rates:
    """The limits of a gateway."""

    def __init__(self, settings: Settings) -> None:
        shares = settings.rate_shares
        self._of_address = Rate("address", settings.rate_address_per_min, shares=shares)
        self._of_user = Rate("user", settings.rate_user_per_min, shares=shares)
        self._of_proofs = Rate("address for mails", settings.rate_proofs_per_min, shares=shares)

    def check_address(self, address: str) -> None:
        """Count a request of a client's address. Raises RateLimited."""
        self._of_address.check(network_of(address))

    def check_user(self, identity: Identity) -> None:
        """Count a request of a user. Raises RateLimited."""
        self._of_user.check(identity.user_id)

    def check_proof(self, address: str) -> None:
        """Count a request of a client's address that sends a mail, or brings the token from one. Raises RateLimited."""
        self._of_proofs.check(network_of(address))
