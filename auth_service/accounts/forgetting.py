"""Forgetting: accounts whose time is over are emptied, and rows that are older than promised are deleted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import delete, func, or_, select, text, update
from sqlalchemy.orm import Session

from auth_service import models, records
from auth_service.models import AuthEvent, IdentityRow, Proof, SessionRow, User
from auth_service.records import Origin
from auth_service.sessions.domain import Why
from auth_service.sessions.queries import REVOCATIONS_KEPT
from shared import outbox
from shared.envelope import envelope
from shared.events import Identity, UserErased
from shared.ids import new_trace_id

ERASING = Identity("system:erasing", ("system",))

# So many accounts are emptied in one run, each in a transaction of its own; the next run comes to the others.
MOST_ERASED = 500
# So many rows are deleted by one statement: none runs for long, or holds many locks.
MOST_DELETED = 10_000


@dataclass(frozen=True)
class Purge:
    """What is deleted of a table: rows whose `column` is so long ago."""

    key: str
    column: str
    after: timedelta


DAY = timedelta(days=1)

# A proof counts in the limits of mails for an hour. Of a session that has ended somebody may ask what happened.
PURGES: Mapping[str, Purge] = {
    "proofs": Purge("proof_id", "expires_at", DAY),
    "oauth_attempts": Purge("attempt_id", "expires_at", timedelta(0)),
    "sign_in_failures": Purge("bucket", "since", DAY),
    "revocations": Purge("id", "at", REVOCATIONS_KEPT),
    "sessions": Purge("session_id", "expires_at", 30 * DAY),
}
_PURGE_EVENTS = text("SELECT purge_auth_events(:most)")


def due(session: Session) -> list[str]:
    """Users who are to be erased now."""
    found = (
        select(User.user_id)
        .where(User.erase_after <= func.now(), User.erased_at.is_(None))
        .order_by(User.erase_after)
        .limit(MOST_ERASED)
    )
    return list(session.scalars(found))


def erase(session: Session, user_id: str) -> bool:
    """Empty a user's account, unless they have come back meanwhile, and emit it; whether it was done.

    Its id stays, with its record and with what others hold of it, of which nothing says who it was.
    """
    user = models.lock(session, user_id)
    if user is None or user.erased_at is not None or user.erase_after is None:
        return False
    now = records.now_of(session)
    if user.erase_after > now:
        return False
    records.revoke_all(session, user, Why.ERASED)
    addressed = or_(Proof.user_id == user_id, Proof.email == user.email) if user.email else Proof.user_id == user_id
    for gone in (
        delete(Proof).where(addressed),
        delete(SessionRow).where(SessionRow.user_id == user_id),
        delete(IdentityRow).where(IdentityRow.user_id == user_id),
        update(AuthEvent).where(AuthEvent.user_id == user_id, AuthEvent.network.is_not(None)).values(network=None),
        # What they did to other accounts, as an admin.
        update(AuthEvent)
        .where(
            AuthEvent.actor_id == user_id,
            AuthEvent.actor_id.is_distinct_from(AuthEvent.user_id),
            AuthEvent.network.is_not(None),
        )
        .values(network=None),
    ):
        session.execute(gone, execution_options={"synchronize_session": False})
    emptied: dict[str, Any] = {
        **dict.fromkeys(("name", "email", "display_name", "password_hash", "password_at", "erase_after")),
        "roles": [],
        "disabled": True,
        "erased_at": now,
    }
    for column, value in emptied.items():
        setattr(user, column, value)
    session.flush()
    records.record(session, "erased", user_id, Origin(ERASING.user_id))
    outbox.emit(session, [envelope("auth_service", UserErased(user_id), new_trace_id(), ERASING)])
    return True


def purge(session: Session, table: str) -> int:
    """Delete what is older than promised of a table, at most MOST_DELETED rows; how many."""
    what = PURGES[table]
    statement = text(
        f"DELETE FROM {table} WHERE {what.key} IN (SELECT {what.key} FROM {table}"
        f" WHERE {what.column} < now() - CAST(:after AS interval) ORDER BY {what.column} LIMIT :most)"
    )
    gone = session.execute(statement, {"after": what.after, "most": MOST_DELETED})
    return int(gone.rowcount)  # type: ignore[attr-defined]


def purge_events(session: Session) -> int:
    """Delete auth_events of more than 400 days ago, at most MOST_DELETED; how many."""
    return int(session.scalar(_PURGE_EVENTS, {"most": MOST_DELETED}) or 0)
