"""Caution: messages are handled one by one while one of them may be killing its process."""

from __future__ import annotations

import logging
from collections import deque

from shared.failures import Delivery

log = logging.getLogger(__name__)

# A message that went back this often is suspected of killing its process.
SUSPECT_DELIVERIES = 3
CLEAN_TO_OPEN = 50


class Caution:
    """Chooses the messages of each batch: several, or a single one as long as `holds` is true."""

    def __init__(self, queue: str, batch_size: int) -> None:
        self.queue = queue
        self.batch_size = batch_size
        self._clean_needed = 0

    @property
    def holds(self) -> bool:
        """Whether messages go one by one: since a suspect came, until enough were handled after it."""
        return self._clean_needed > 0

    def look(self, held: deque[Delivery]) -> None:
        """Begin to be careful if one of these messages is suspected."""
        if _suspects(held):
            if not self.holds:
                log.warning("%s: a message was delivered often and never settled; going one by one", self.queue)
            self._clean_needed = CLEAN_TO_OPEN

    def take(self, held: deque[Delivery]) -> list[Delivery]:
        """Take the messages to handle together now."""
        if not self.holds:
            return [held.popleft() for _ in range(min(self.batch_size, len(held)))]
        if not held:
            return []
        # The unsuspected messages first: once they are acked, the next death is charged to the suspect alone.
        suspects = _suspects(held)
        chosen = next((item for item in held if item not in suspects), held[0])
        held.remove(chosen)
        return [chosen]

    def settled(self) -> None:
        """A batch was handled."""
        self._clean_needed = max(0, self._clean_needed - 1)


def _suspects(held: deque[Delivery]) -> list[Delivery]:
    return [item for item in held if item.deliveries_before >= SUSPECT_DELIVERIES]
