"""`ecom user`: the users who may sign in, in auth_service's database.

There is no sign-up over HTTP: an operator with access to the database creates users here.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from marshmallow import ValidationError
from sqlalchemy import NullPool, create_engine, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message=r"\s*Eventlet is deprecated")
    from auth_service import models, passwords
    from gateway.tokens import TokenRequest

from auth_service.domain import Account
from auth_service.models import User
from shared.auth import ROLES
from shared.config import Settings
from shared.envelope import SHELL
from shared.errors import CannotWork, Conflict, NotFound, ValidationFailed

CONNECT_TIMEOUT_S = 5
STATEMENT_TIMEOUT_MS = 10_000

# NIST SP 800-63B asks for 8 where a second factor follows, and for more where none does.
MIN_PASSWORD_LENGTH = 12

# Who did something is recorded by name: these names are those of no person.
RESERVED_NAMES = frozenset({SHELL})
RESERVED_PREFIX = "system:"

_NEW_NAME = re.compile(r"[a-z0-9][a-z0-9._@-]*")


def check_name(name: str) -> None:
    """Raise ValidationFailed for a name that looks like another one in logs and audits."""
    # A space or a line end would make two names of one in a log; the database stores neither NUL nor half a character.
    if not name.isprintable() or " " in name:
        raise ValidationFailed(f"{name!r} has spaces, control characters or bytes that are no text")
    if name in RESERVED_NAMES or name.startswith(RESERVED_PREFIX):
        raise ValidationFailed(f"{name} is the name of a part of the system")


def check_new_name(name: str) -> None:
    """Raise ValidationFailed for a name that a new user may not have. Users of older versions keep theirs.

    Letters of other alphabets and capitals look like those of another name, `-v` like an option, `<` and `=` like text
    of a page or of a spreadsheet.
    """
    check_name(name)
    if name and not _NEW_NAME.fullmatch(name):
        raise ValidationFailed(f"{name!r} has other characters than a to z, 0 to 9 and, not as the first, . _ @ -")


def check_roles(roles: Sequence[str]) -> None:
    """Raise ValidationFailed for a role that does not exist."""
    for role in roles:
        if role not in ROLES:
            raise ValidationFailed(f"{role!r} is no role; there are {', '.join(ROLES)}")


def check_credentials(name: str, password: str, production: bool) -> None:
    """Raise ValidationFailed for a name or password that cannot sign in, or a password too short for production."""
    check_name(name)
    if production and len(password) < MIN_PASSWORD_LENGTH:
        raise ValidationFailed(f"in production a password has at least {MIN_PASSWORD_LENGTH} characters")
    try:
        TokenRequest().load({"username": name, "password": password})
    except ValidationError as error:
        (field, reasons), *_ = error.normalized_messages().items()
        raise ValidationFailed(f"{field}: {' '.join(reasons)}") from error


def add(settings: Settings, name: str, roles: Sequence[str], password: str) -> dict[str, Any]:
    """Make a user. Raises ValidationFailed, Conflict when there is one of that name, CannotWork."""
    check_roles(roles)
    check_new_name(name)
    check_credentials(name, password, settings.production)
    account = Account(name, passwords.hash_of(password), tuple(dict.fromkeys(roles)))
    with _begin(settings) as session:
        models.add(session, [account])
        user = _user(session, name)
        if user.password_hash != account.password_hash:  # hashes are salted: this user existed before
            raise Conflict(f"there is a user {name} already; `ecom user password {name}` sets the password anew")
        return _shown(user)


def set_password(settings: Settings, name: str, password: str) -> dict[str, Any]:
    """Give a user another password. Raises ValidationFailed, NotFound, CannotWork."""
    check_credentials(name, password, settings.production)
    password_hash = passwords.hash_of(password)
    with _begin(settings) as session:
        user = _user(session, name)
        user.password_hash = password_hash
        return _shown(user)


def set_disabled(settings: Settings, name: str, disabled: bool) -> dict[str, Any]:
    """Let a user sign in no more, or again; a token issued before lives on to its end.

    Raises ValidationFailed, NotFound, CannotWork.
    """
    check_name(name)
    with _begin(settings) as session:
        user = _user(session, name)
        user.disabled = disabled
        return _shown(user)


def everybody(settings: Settings) -> list[dict[str, Any]]:
    """All users by name. Raises CannotWork."""
    with _begin(settings) as session:
        return [_shown(user) for user in session.scalars(select(User).order_by(User.name))]


def _shown(user: User) -> dict[str, Any]:
    """A user as it is shown: never with the hash."""
    return {"name": user.name, "roles": list(user.roles), "disabled": user.disabled, "created_at": user.created_at}


def _user(session: Session, name: str) -> User:
    user = session.get(User, name)
    if user is None:
        raise NotFound(f"there is no user {name}")
    return user


@contextmanager
def _begin(settings: Settings) -> Iterator[Session]:
    """One transaction in auth_service's database. Raises CannotWork when that is away or has no tables yet."""
    engine = create_engine(
        settings.database_url("auth"),
        poolclass=NullPool,
        connect_args={
            "connect_timeout": CONNECT_TIMEOUT_S,
            "options": f"-c statement_timeout={STATEMENT_TIMEOUT_MS} -c timezone=UTC",
            "application_name": "ecom user",
        },
    )
    try:
        with Session(engine) as session, session.begin():
            yield session
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).splitlines()[0]
        raise CannotWork(f"the database of auth cannot be used: {reason}") from error
