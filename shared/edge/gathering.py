"""Waiting for a fuller batch: not at all while work comes singly, for some milliseconds while more of it is arriving.

A batch of three messages costs nearly as much as one of thirty. Under load a process would still begin a small one as
soon as it can, because each of its neighbours does the same and none falls behind far enough for a queue to form. So
consumers, the relay and the gateway ask here how long to wait before they begin (docs/decisions/0023).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

# A larger batch gains little, and its first message waits for the last.
ENOUGH = 40

# A wait is worth it where so many are expected within the longest one.
WORTH_A_WAIT = 2.0

# Or where more than this part of the batches lately found their work waiting when the batch before them ended. So it is
# where several processes share a load, and each sees little of it while together they keep the machine busy.
BUSY = 0.5
# How much the last batch counts in that part.
LAST = 0.2

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
        self._followed = 0.0  # the part of the batches, lately, that had to wait for the one before

    def note(self, count: int) -> None:
        """So many have arrived since the last note."""
        self._arrived = self._lately() + count
        self._at = self.clock()

    def wait_s(self, waiting: int, at_once: bool) -> float:
        """How long to wait before a batch begins, in seconds, where so many wait already; asked once for each batch.

        `at_once` says that some of them were there when the batch before ended, or that it has not ended yet.
        """
        self._followed += LAST * (at_once - self._followed)
        rate = self._lately() / MEMORY_S
        if waiting >= ENOUGH or not (rate * self.most_s >= WORTH_A_WAIT or self._followed > BUSY):
            return 0.0
        return min(self.most_s, (ENOUGH - waiting) / rate) if rate else self.most_s

    def _lately(self) -> float:
        return self._arrived * math.exp((self._at - self.clock()) / MEMORY_S)
