"""The rules of sessions and refresh tokens. The functions take and return plain values.

A refresh token has the number of its generation in its session. The table says what becomes of a presented one.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from shared.events import Identity
from shared.roles import SYSTEM, has_role


class Kind(StrEnum):
    """What a session is for: a client of the API, which has refresh tokens, or the dashboard in a browser."""

    API = "api"
    DASHBOARD = "dashboard"


# How long a session lives after its last rotation, and how long it lives at most.
LIFE = {Kind.API: timedelta(days=7), Kind.DASHBOARD: timedelta(hours=1)}
MOST = {Kind.API: timedelta(days=30), Kind.DASHBOARD: timedelta(hours=1)}


class Why(StrEnum):
    """Why a session has ended."""

    SIGNED_OUT = "signed_out"
    REVOKED = "revoked"  # by somebody who has one of its tokens
    REUSE = "reuse"
    PASSWORD_CHANGED = "password_changed"
    PASSWORD_RESET = "password_reset"
    PROMOTED = "promoted"  # a customer became staff, whom not every provider may sign in
    ADMIN = "admin"
    DISABLED = "disabled"
    KEY_REVOKED = "key_revoked"
    ERASING = "erasing"
    ERASED = "erased"


class Refreshing(StrEnum):
    """What becomes of a presented refresh token."""

    ROTATE = "rotate"  # the next generation begins
    REPEAT = "repeat"  # another tab, or a lost answer: the same successor once more
    REUSE = "reuse"  # somebody else has it: the session ends
    REFUSE = "refuse"


@dataclass(frozen=True)
class Family:
    """A session as the rules see it."""

    generation: int
    rotated_at: datetime
    expires_at: datetime
    ends_at: datetime
    ended: bool
    may_sign_in: bool  # its user is neither disabled nor erased


def refreshing(family: Family | None, generation: int, at: datetime, grace: timedelta) -> Refreshing:
    """What becomes of the refresh token of a generation that is presented at a moment."""
    if family is None or family.ended or not family.may_sign_in or at >= min(family.expires_at, family.ends_at):
        return Refreshing.REFUSE
    if generation == family.generation:
        return Refreshing.ROTATE
    if generation > family.generation:
        return Refreshing.REFUSE
    if generation == family.generation - 1 and at - family.rotated_at <= grace:
        return Refreshing.REPEAT
    return Refreshing.REUSE


def may_hear_revocations(caller: Identity) -> bool:
    """Whether someone may ask what is revoked: only the gateways themselves, no user."""
    return has_role(caller, SYSTEM)
