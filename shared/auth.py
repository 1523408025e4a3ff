"""Bearer tokens: signed by auth_service, verified wherever they arrive without asking it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jwt

from shared.errors import InvalidToken
from shared.events import Identity
from shared.ids import uuid7
from shared.roles import ADMIN as ADMIN
from shared.roles import AUDITOR as AUDITOR
from shared.roles import CUSTOMER as CUSTOMER
from shared.roles import OPERATOR as OPERATOR
from shared.roles import ROLES as ROLES
from shared.roles import SERVICE as SERVICE

Keys = tuple[tuple[str, str], ...]  # (kid, secret); the first signs, every one verifies

# Never read from a token: its forger would choose it.
ALGORITHM = "HS256"
ISSUER = "ecom"
# The audience of a token: a token for one is refused by the other.
AUDIENCE = "ecom-api"
DASHBOARD = "ecom-dashboard"
REQUIRED = ("exp", "iat", "iss", "aud", "sub", "jti")

LIFE_S = 900
SESSION_S = 3600
MAX_LIFE_S = 3600
# Clocks of two hosts may differ: a token may come from a little in the future.
SKEW_S = 10
MAX_TOKEN_LENGTH = 4096
MAX_NAME_LENGTH = 200

_JWT = jwt.PyJWT(
    options={
        "require": list(REQUIRED),
        "enforce_minimum_key_length": True,
        "strict_aud": True,
        # PyJWT takes "exp" as a string too, and any life: the times are checked below.
        "verify_exp": False,
        "verify_iat": False,
    }
)


@dataclass(frozen=True)
class Claims:
    """The claims of a verified token.

    `version` is that of its user when it was issued, and `session_id` the session that it belongs to. A token of a
    version of this system that knew neither has None: it lives to its end.
    """

    identity: Identity
    issued_at: int
    expires_at: int
    token_id: str
    version: int | None = None
    session_id: str | None = None


def issue(
    keys: Keys,
    sub: str,
    roles: tuple[str, ...],
    ttl_s: int = LIFE_S,
    now: float | None = None,
    audience: str = AUDIENCE,
    version: int | None = None,
    session_id: str | None = None,
) -> str:
    """A token for the user `sub`, signed with the first key."""
    kid, secret = keys[0]
    issued_at = int(time.time() if now is None else now)
    claims: dict[str, Any] = {
        "iss": ISSUER,
        "aud": audience,
        "sub": sub,
        "roles": list(roles),
        "iat": issued_at,
        "exp": issued_at + ttl_s,
        "jti": str(uuid7()),
    }
    if version is not None:
        claims["ver"] = version
    if session_id is not None:
        claims["sid"] = session_id
    return _JWT.encode(claims, secret, algorithm=ALGORITHM, headers={"kid": kid})


def verify(token: str, keys: Keys, now: float | None = None, audience: str = AUDIENCE) -> Claims:
    """Verify a token and return its claims.

    Raises the same InvalidToken for every fault, so that a forger learns nothing.
    """
    try:
        return _claims(_decode(token, keys, audience), time.time() if now is None else now)
    except (jwt.PyJWTError, LookupError, TypeError, ValueError) as fault:
        raise InvalidToken from fault


# A client sends the same token many times: its signature is checked once (half of the gateway's own work for a small
# request), its times each time. A token that fails is not cached.
@lru_cache(maxsize=1024)
def _decode(token: str, keys: Keys, audience: str) -> dict[str, Any]:
    if len(token) > MAX_TOKEN_LENGTH:
        raise ValueError("too long")
    secret = dict(keys)[jwt.get_unverified_header(token)["kid"]]
    return _JWT.decode(token, secret, algorithms=[ALGORITHM], audience=audience, issuer=ISSUER)


def _claims(payload: dict[str, Any], now: float) -> Claims:
    sub, roles, token_id = payload["sub"], payload["roles"], payload["jti"]
    issued_at, expires_at = payload["iat"], payload["exp"]
    if type(issued_at) is not int or type(expires_at) is not int:
        raise TypeError("times are integers")
    if not (issued_at <= now + SKEW_S and now < expires_at and 0 < expires_at - issued_at <= MAX_LIFE_S):
        raise ValueError("not valid now, or valid for too long")
    if not is_name(sub) or not isinstance(roles, list) or not all(is_name(role) for role in roles):
        raise ValueError("sub is a name and roles a list of names")
    version, session_id = payload.get("ver"), payload.get("sid")
    if not (version is None or type(version) is int) or not (session_id is None or isinstance(session_id, str)):
        raise TypeError("ver is an integer and sid is text")
    return Claims(Identity(sub, tuple(roles)), issued_at, expires_at, token_id, version, session_id)


def is_name(value: Any) -> bool:
    """Whether a value may name a user or a role: text that every part of the system can store."""
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME_LENGTH or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return True
