"""What every change of an account leaves behind: its record, and what gateways must refuse from now on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import func, insert, select, text, update
from sqlalchemy.orm import Session

from auth_service.models import AuthEvent, Revocation, SessionRow, User
from auth_service.sessions.domain import Why
from shared.changes import changed
from shared.events import Identity
from shared.revocations import REVOKED


@dataclass(frozen=True)
class Origin:
    """Where a request came from: the actor, if anybody is signed in, and their network (an IPv4 or an IPv6 /64)."""

    actor_id: str | None = None
    network: str | None = None
    session_id: UUID | None = None
    client: str = ""

    @classmethod
    def read(cls, origin: Mapping[str, Any], actor: Identity | None = None) -> Origin:
        """What a gateway says of a request, made by `actor` if somebody is signed in."""
        session_id = origin.get("session_id")
        return cls(
            actor.user_id if actor else None,
            origin.get("network") or None,
            UUID(session_id) if session_id else None,
            str(origin.get("client", "")),
        )


def record(session: Session, event: str, user_id: str | None, origin: Origin, **details: Any) -> None:
    """Add to the record of an account. `details` hold no personal data."""
    session.execute(
        insert(AuthEvent),
        {
            "event": event,
            "user_id": user_id,
            "actor_id": origin.actor_id,
            "session_id": origin.session_id,
            "network": origin.network,
            "details": details,
        },
    )


def outdate(session: Session, user: User) -> int:
    """End every token of a user: version + 1 and a revocation. Their sessions go on, and get tokens of the new version.

    The user's row must be locked. Returns the new version.
    """
    user.version += 1
    session.flush()
    _tell(session, {"user_id": user.user_id, "version": user.version})
    return user.version


def revoke_all(session: Session, user: User, why: Why, but: UUID | None = None) -> int:
    """End all sessions of a user, but perhaps one, and every token of before: version + 1 and a revocation.

    The user's row must be locked. A session that goes on gets tokens of the new version. Returns the new version.
    """
    version = outdate(session, user)
    end = update(SessionRow).where(SessionRow.user_id == user.user_id, SessionRow.ended_at.is_(None))
    if but is not None:
        end = end.where(SessionRow.session_id != but)
    session.execute(end.values(ended_at=func.now(), ended_why=why))
    return version


def revoke_session(session: Session, session_id: UUID, why: Why) -> bool:
    """End one session and its tokens; whether it had not ended yet."""
    end = (
        update(SessionRow)
        .where(SessionRow.session_id == session_id, SessionRow.ended_at.is_(None))
        .values(ended_at=func.now(), ended_why=why)
        .returning(SessionRow.session_id)
    )
    if session.execute(end).one_or_none() is None:
        return False
    _tell(session, {"session_id": session_id})
    return True


def _tell(session: Session, revocation: Mapping[str, Any]) -> None:
    session.execute(insert(Revocation), dict(revocation))
    changed(session, [REVOKED])


def now_of(session: Session) -> Any:
    """The moment of this transaction, by the database's clock: the one clock of all replicas."""
    return session.scalar(select(text("now()")))
