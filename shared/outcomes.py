"""What becomes of a message: one of six words, decided in one function.

Attempts count only what is wrong with one message. A service that cannot work pauses instead, and counts nothing.
"""

from __future__ import annotations

from enum import StrEnum

from shared.database_errors import is_conflict, is_hold_up, is_outage
from shared.errors import CannotWork, DeadMessage, HeldUp
from topology.table import RETRY_WAITS_S


class Outcome(StrEnum):
    """The closed set of what can become of a message."""

    DONE = "done"  # it took effect: acknowledge it
    RETRY = "retry"  # publish it to its next retry level, then acknowledge it
    LATER = "later"  # a lock or a slow statement holds it up: to a retry level as well, but no attempt is counted
    DEAD = "dead"  # publish it to the DLQ, then acknowledge it
    PAUSE = "pause"  # the service cannot work: keep the message, wait, try it again
    REPEAT = "repeat"  # transactions were in each other's way: try again at once


def outcome_of(error: BaseException | None, failures_before: int = 0) -> Outcome:
    """Decide what becomes of a message from the error that handling it raised, or None.

    A message that can never succeed is dead at once. Any other message has its first try and one more after each of
    RETRY_WAITS_S; `failures_before` is how many of them have failed. A fault of the service itself is no fault of the
    message: ask without `failures_before` whether to pause or to repeat.
    """
    if error is None:
        return Outcome.DONE
    if isinstance(error, HeldUp) or is_hold_up(error):
        return Outcome.LATER
    if isinstance(error, DeadMessage) or failures_before >= len(RETRY_WAITS_S):
        return Outcome.DEAD
    if is_conflict(error):
        return Outcome.REPEAT
    if isinstance(error, CannotWork) or is_outage(error):
        return Outcome.PAUSE
    return Outcome.RETRY
