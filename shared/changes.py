"""Hints, sent after a commit, that something has changed: waiting clients hear sooner, no work depends on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from uuid import UUID

from sqlalchemy import event
from sqlalchemy.orm import Session, sessionmaker

_CHANGED = "changes.ids"


def changed(session: Session, ids: Iterable[UUID]) -> None:
    """These change if this transaction commits."""
    session.info.setdefault(_CHANGED, set()).update(map(str, ids))


def notify_after_commit(sessions: sessionmaker[Session], notify: Callable[[set[str]], None]) -> None:
    """Call `notify` with the changed ids, after each commit of these sessions that changed something."""

    def committed(session: Session) -> None:
        ids = session.info.pop(_CHANGED, None)
        if ids:
            notify(ids)

    def rolled_back(session: Session) -> None:
        session.info.pop(_CHANGED, None)

    event.listen(sessions, "after_commit", committed)
    event.listen(sessions, "after_rollback", rolled_back)
