"""Which mails are due, and what became of them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Row, text
from sqlalchemy.orm import Session

# Whoever asks for a new address, or for that of somebody else, has another one: their name stays out of the mail.
_NAME = "(SELECT display_name FROM users WHERE users.user_id = proofs.user_id AND users.email = proofs.email)"

# One statement, so that no transaction is open while a mail is sent. Who claims a mail has it until `send_after`: then
# it is due again, unless it was settled. SKIP LOCKED: two that claim at once get different mails.
_CLAIM = text(
    "WITH due AS (SELECT proof_id FROM proofs WHERE sent_at IS NULL AND given_up_at IS NULL AND send_after <= now()"
    " ORDER BY send_after LIMIT :most FOR UPDATE SKIP LOCKED)"
    " UPDATE proofs SET attempts = attempts + 1, send_after = now() + CAST(:lease AS interval)"
    " FROM due WHERE proofs.proof_id = due.proof_id"
    " RETURNING proofs.proof_id, kind, about, email, user_id, locale, provider, attempts,"
    " (expires_at <= now() OR used_at IS NOT NULL) AS is_late,"
    f" {_NAME} AS display_name"
)

# Whoever has claimed a mail again meanwhile has more attempts, and notes what became of it: but what is sent is sent.
_SETTLE = text(
    "UPDATE proofs SET sent_at = CASE WHEN :outcome = 'sent' THEN now() END,"
    " given_up_at = CASE WHEN :outcome IN ('refused', 'late') THEN now() END,"
    " send_after = now() + CAST(:pause AS interval)"
    " WHERE proof_id = :proof_id AND sent_at IS NULL AND (attempts = :attempts OR :outcome = 'sent')"
)

_FIND = text(
    "SELECT proof_id, kind, about, email, user_id, locale, provider,"
    f" {_NAME} AS display_name, expires_at"
    " FROM proofs WHERE proof_id = :mail_id AND expires_at > now() AND used_at IS NULL"
)


def claim(session: Session, most: int, lease: timedelta) -> Sequence[Row[Any]]:
    """Claim mails that are due: nobody else gets them for the time of the lease. One statement."""
    return session.execute(_CLAIM, {"most": most, "lease": lease}).all()


def settle(session: Session, proof_id: UUID, attempts: int, outcome: str, pause: timedelta) -> None:
    """Note what became of a claimed mail: after the pause it is due again, unless it was sent or given up."""
    values = {"proof_id": proof_id, "attempts": attempts, "outcome": outcome, "pause": pause}
    session.execute(_SETTLE, values)


def find(session: Session, mail_id: UUID) -> Row[Any] | None:
    """A mail whose link can still be used, or None."""
    return session.execute(_FIND, {"mail_id": mail_id}).one_or_none()
