"""The rules of sending mails. The functions take and return plain values."""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum

from shared.events import Identity
from shared.roles import SERVICE, has_role

# How long after a try the next one follows. A process that dies while it sends is followed after the same pause, so it
# is longer than the longest try.
PAUSES = (
    timedelta(minutes=1),
    timedelta(minutes=2),
    timedelta(minutes=5),
    timedelta(minutes=15),
    timedelta(minutes=30),
)


class Outcome(StrEnum):
    """What became of one try to send a mail."""

    SENT = "sent"
    REFUSED = "refused"  # for good: the address, or the mail
    FAILED = "failed"  # the server is away, or says that it will take the mail later
    LATE = "late"  # nobody can use the link any more


def pause_after(attempts: int) -> timedelta:
    """How long after so many tries, 1 or more, the next one may begin."""
    return PAUSES[min(attempts, len(PAUSES)) - 1]


def may_read_mails(caller: Identity) -> bool:
    """Whether someone may ask for the address and the link of a mail: services that send mails."""
    return has_role(caller, SERVICE)
