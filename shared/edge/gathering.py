"""Waiting for a fuller batch: not at all while work comes singly, for some milliseconds while more of it is arriving.

A batch of three messages costs nearly as much as one of thirty. Under load a process would still begin a small one as
soon as it can, because each of its neighbours does the same and none falls behind far enough for a queue to form. So
consumers, the relay and the gateway ask here how long to wait before they begin (docs/decisions/0023).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

# A larger batch gains little, and its last message waits for the first.
ENOUGH = 24

# Fewer than this are not worth a wait: at least so many must be expected within the longest wait.
WORTH_A_WAIT = 2.0

# The rate of arrival is that of about so many seconds: long enough to see through one burst, short enough to follow a
# load that begins or ends.
MEMORY_S = 0.5


class Gathering:
    """Measures how fast work arrives, and says how long a batch should wait for more of it.

    `most_s` is the longest wait in seconds; 0 never waits.
    """

    def __init__(self, most_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.most_s = most_s
        self.clock = clock
        self._arrived = 0.0  # lately: older arrivals count less and less
        self._at = clock()

    def note(self, count: int) -> None:
        """So many have arrived since the last note."""
        self._arrived = self._lately() + count
        self._at = self.clock()

    def wait_s(self, waiting: int) -> float:
        """How long to wait now, in seconds, where so many wait already."""
        rate = self._lately() / MEMORY_S
        if waiting >= ENOUGH or rate * self.most_s < WORTH_A_WAIT:
            return 0.0
        return min(self.most_s, (ENOUGH - waiting) / rate)

    def _lately(self) -> float:
        return self._arrived * math.exp((self._at - self.clock()) / MEMORY_S)
