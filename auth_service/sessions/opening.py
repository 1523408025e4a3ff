"""Opening a session: everybody who has shown who they are gets the same answer, however they have shown it."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from auth_service import derived
from auth_service.domain import Account
from auth_service.records import Origin
from auth_service.sessions.domain import LIFE, MOST, Kind
from shared import auth
from shared.auth import Keys
from shared.errors import Unauthenticated
from shared.ids import uuid7

MAX_CLIENT = 100


# One statement. The user's row is shared until the commit: whoever changes the password, disables or erases them either
# comes first, and then nobody signs in by what was read before, or later, and then ends this session, too.
_OPEN = text(
    """
    WITH opened AS (
        INSERT INTO sessions (session_id, user_id, kind, kid, client, network, expires_at, ends_at)
        SELECT CAST(:session_id AS uuid), user_id, :kind, :kid, :client, :network,
               now() + make_interval(secs => :life_s), now() + make_interval(secs => :most_s)
        FROM (
            SELECT user_id FROM users
            WHERE user_id = :user_id AND version = :version AND NOT disabled AND erase_after IS NULL
              AND erased_at IS NULL
            FOR SHARE
        ) AS still
        RETURNING session_id, user_id
    )
    INSERT INTO auth_events (event, user_id, actor_id, session_id, network, details)
    SELECT 'signed_in', user_id, user_id, session_id, CAST(:event_network AS text),
           jsonb_build_object('kind', CAST(:kind AS text))
    FROM opened
    RETURNING 1
    """
)


def open_session(session: Session, keys: Keys, account: Account, origin: Origin, kind: Kind = Kind.API) -> UUID:
    """Make a session of an account as it was read, and record the sign-in: one statement.

    Raises Unauthenticated if the account has changed meanwhile in a way that ends sessions.
    """
    session_id = uuid7()
    opened = session.execute(
        _OPEN,
        {
            "session_id": session_id,
            "user_id": account.user_id,
            "version": account.version,
            "kind": kind.value,
            "kid": keys[0][0],
            "client": origin.client[:MAX_CLIENT],
            "network": origin.network or "",
            "event_network": origin.network,
            "life_s": LIFE[kind].total_seconds(),
            "most_s": MOST[kind].total_seconds(),
        },
    )
    if opened.one_or_none() is None:
        raise Unauthenticated("The name or the password is wrong.")
    return session_id


def answer(
    keys: Keys, account: Account, session_id: UUID, device_id: UUID | None, generation: int = 1, kid: str | None = None
) -> dict[str, Any]:
    """What a client gets that has signed in: the access token, the refresh token, and the device token if there is one.

    `account` is as it is after the sign-in: its version goes into the token.
    """
    signed_in: dict[str, Any] = {
        **access(keys, account, session_id),
        "refresh_token": derived.refresh_token(keys, kid or keys[0][0], session_id, generation),
        "user": {
            "id": account.user_id,
            "email": account.email,
            "name": account.display_name or account.name,
            "roles": list(account.roles),
        },
    }
    if device_id is not None:
        signed_in["device_token"] = device_token(keys, account, device_id)
    return signed_in


def device_token(keys: Keys, account: Account, device_id: UUID) -> str:
    """What a device shows when this user signs in again, until they change their password."""
    return derived.device_token(keys, account.user_id, device_id, account.password_at)


def access(
    keys: Keys,
    account: Account,
    session_id: UUID | None,
    life_s: int = auth.LIFE_S,
    audience: str = auth.AUDIENCE,
) -> dict[str, Any]:
    """An access token of an account, and of a session if it belongs to one."""
    token = auth.issue(
        keys,
        account.user_id,
        account.roles,
        life_s,
        audience=audience,
        version=account.version,
        session_id=str(session_id) if session_id else None,
    )
    return {"access_token": token, "token_type": "Bearer", "expires_in": life_s}
