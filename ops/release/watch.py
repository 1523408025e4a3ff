"""Looks at both versions every 30 seconds until there is a verdict that stands."""

from __future__ import annotations

import time
from collections.abc import Callable

from ops.release.judge import Verdict, Window, Word, judge
from ops.release.triggers import EVERY_S, WAIT_S


def watch(
    look: Callable[[], Window],
    watch_s: float,
    say: Callable[[Verdict], object] = lambda verdict: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> Verdict:
    """A bad verdict as soon as there is one; a good one when `watch_s` seconds are over; an unknown one after WAIT_S.

    `say` gets each verdict that differs from the one before it. What `look` raises ends the watch.
    """
    began, windows, before = clock(), [], None
    while True:
        windows.append(look())
        verdict = judge(windows)
        if verdict != before:
            say(verdict)
        before, watched_s = verdict, clock() - began
        if verdict.word is Word.BAD or (verdict.word is Word.GOOD and watched_s >= watch_s):
            return verdict
        if watched_s >= max(watch_s, WAIT_S):
            return verdict
        sleep(EVERY_S)
