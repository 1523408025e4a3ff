"""What `ecom user` does in auth_service's database: by the functions, records and events of the service itself."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from marshmallow import ValidationError
from sqlalchemy import ColumnElement, NullPool, create_engine, func, or_, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message=r"\s*Eventlet is deprecated")
    from auth_service import models, passwords
    from gateway.tokens import TokenRequest

from auth_service import records
from auth_service.accounts.addresses import address_of, common_passwords
from auth_service.accounts.domain import check_password
from auth_service.domain import Account, Kind
from auth_service.models import SessionRow, User
from auth_service.people.changes import Changes
from auth_service.people.domain import check_kind_of_roles
from auth_service.records import Origin
from auth_service.service_keys import queries
from auth_service.service_keys.changes import KeyChanges
from auth_service.service_keys.domain import user_of
from shared.auth import MAX_NAME_LENGTH
from shared.config import Settings
from shared.envelope import SHELL
from shared.errors import CannotWork, Conflict, NotFound, PasswordRefused, ValidationFailed
from shared.events import Identity
from shared.ids import new_trace_id
from shared.roles import ROLES, SYSTEM, role_of

CONNECT_TIMEOUT_S = 5
STATEMENT_TIMEOUT_MS = 10_000

# Who did something is recorded by name: these names are those of no person.
RESERVED_NAMES = frozenset({SHELL})
RESERVED_PREFIXES = ("system:", "service:")

# In events. The record has the operator's own name, which may be a person's.
AT_A_TERMINAL = Identity("system:ecom-user", (SYSTEM,))

_NEW_NAME = re.compile(r"[a-z0-9][a-z0-9._@-]*")


def check_name(name: str) -> None:
    """Raise ValidationFailed for a name that looks like another one in logs and audits."""
    # A space or a line end would make two names of one in a log; the database stores neither NUL nor half a character.
    if not name.isprintable() or " " in name:
        raise ValidationFailed(f"{name!r} has spaces, control characters or bytes that are no text")
    if not 0 < len(name) <= MAX_NAME_LENGTH:  # it becomes the id of its user, which tokens name
        raise ValidationFailed(f"name: Must be 1 to {MAX_NAME_LENGTH} characters long.")
    if name in RESERVED_NAMES or name.startswith(RESERVED_PREFIXES):
        raise ValidationFailed(f"{name} is the name of a part of the system")


def check_new_name(name: str) -> None:
    """Raise ValidationFailed for a name that a new user may not have. Users of older versions keep theirs.

    Letters of other alphabets and capitals look like those of another name, `-v` like an option, `<` and `=` like text
    of a page or of a spreadsheet.
    """
    check_name(name)
    if name and not _NEW_NAME.fullmatch(name):
        raise ValidationFailed(f"{name!r} has other characters than a to z, 0 to 9 and, not as the first, . _ @ -")


def check_roles(roles: Sequence[str]) -> tuple[str, ...]:
    """The roles as they are kept: `ROLE_ADMIN` is `admin`. Raises ValidationFailed for one that does not exist."""
    kept = tuple(dict.fromkeys(map(role_of, roles)))
    for role in kept:
        if role not in ROLES:
            raise ValidationFailed(f"{role!r} is no role; there are {', '.join(ROLES)}")
    return kept


def check_email(email: str) -> str:
    """An address as it is kept. Raises ValidationFailed for what is none."""
    try:
        return address_of(email)
    except ValidationFailed as error:
        raise ValidationFailed(f"{email!r} is no address") from error


def check_credentials(name: str, password: str, production: bool, email: str | None = None) -> None:
    """Raise ValidationFailed for a name or password that cannot sign in, or in production for a password that is easily
    guessed."""
    check_name(name)
    if production:
        try:
            check_password(password, email, common_passwords())
        except PasswordRefused as error:
            (reason,) = error.details["password"]
            raise ValidationFailed(f"password: {reason}") from error
    try:
        TokenRequest().load({"username": name, "password": password})
    except ValidationError as error:
        (field, reasons), *_ = error.normalized_messages().items()
        raise ValidationFailed(f"{field}: {' '.join(reasons)}") from error


def add(
    settings: Settings, actor: str, name: str, roles: Sequence[str], password: str, email: str | None = None
) -> dict[str, Any]:
    """Make a user, whose id is their name. Raises ValidationFailed, Conflict when the name or address is taken,
    CannotWork."""
    kept = check_roles(roles)
    check_kind_of_roles(Kind.PERSON, (), kept)
    check_new_name(name)
    address = check_email(email) if email else None
    check_credentials(name, password, settings.production, address)
    password_hash = passwords.hash_of(password)
    with _changes(settings, actor) as (session, changes):
        account = Account(
            name,
            name,
            address,
            password_hash=password_hash,
            password_at=records.now_of(session),
            roles=kept,
        )
        models.add(session, [account])
        user = session.get(User, name)
        if user is None and session.scalar(select(User.user_id).where(User.name == name)) is None:
            raise Conflict(f"another user has the address {account.email}")
        if user is None or user.password_hash != account.password_hash:  # hashes are salted: the user existed before
            raise Conflict(f"there is a user {name} already; `ecom user password {name}` sets the password anew")
        changes.created(name, kept, "cli")
        return _shown(user)


def set_password(settings: Settings, actor: str, name: str, password: str) -> dict[str, Any]:
    """Give a user another password, and end all their sessions. Raises ValidationFailed, NotFound, CannotWork."""
    check_credentials(name, password, settings.production)
    password_hash = passwords.hash_of(password)
    with _changes(settings, actor) as (session, changes):
        user_id = _user_id(session, name)
        changes.set_password(user_id, password_hash)
        return _shown(session.get_one(User, user_id))


def set_roles(settings: Settings, actor: str, name: str, roles: Sequence[str], reason: str) -> dict[str, Any]:
    """Give a user these roles and no others.

    Raises ValidationFailed (ServiceRole is one), NotFound, LastAdmin, CannotWork.
    """
    kept = check_roles(roles)
    check_name(name)
    with _changes(settings, actor) as (session, changes):
        user_id = _user_id(session, name)
        changes.put_roles(user_id, kept, reason)
        return _shown(session.get_one(User, user_id))


def set_disabled(settings: Settings, actor: str, name: str, disabled: bool, reason: str) -> dict[str, Any]:
    """Shut a user out, or let them sign in again.

    Raises ValidationFailed, NotFound, LastAdmin, Conflict for one who is about to be erased, CannotWork.
    """
    check_name(name)
    with _changes(settings, actor) as (session, changes):
        user_id = _user_id(session, name)
        (changes.disable if disabled else changes.enable)(user_id, reason)
        return _shown(session.get_one(User, user_id))


def end_sessions(settings: Settings, actor: str, name: str) -> int:
    """End all sessions and tokens of a user; how many sessions were open. Raises ValidationFailed, NotFound,
    CannotWork."""
    check_name(name)
    with _changes(settings, actor) as (session, changes):
        user_id = _user_id(session, name)
        open_ones = session.scalar(select(func.count()).select_from(SessionRow).where(*_open_of(user_id)))
        changes.end_sessions(user_id)
        return int(open_ones or 0)


def sessions(settings: Settings, name: str, most: int) -> list[dict[str, Any]]:
    """The open sessions of a user, newest first, at most so many. Raises ValidationFailed, NotFound, CannotWork."""
    check_name(name)
    with _begin(settings) as session:
        newest = select(SessionRow).where(*_open_of(_user_id(session, name))).order_by(SessionRow.session_id.desc())
        return [
            {
                "session_id": str(one.session_id),
                "kind": one.kind,
                "client": one.client,
                "network": one.network,
                "created_at": one.created_at,
                "used_at": one.rotated_at,
                "expires_at": one.expires_at,
            }
            for one in session.scalars(newest.limit(most))
        ]


def create_key(settings: Settings, actor: str, service: str, roles: Sequence[str], days: int) -> dict[str, Any]:
    """Make a key of a service: {key_id, key, roles, expires_at}. Raises ValidationFailed, CannotWork."""
    with _key_changes(settings, actor) as (session, changes):
        return changes.create(service, check_roles(roles), records.now_of(session) + timedelta(days=days))


def revoke_key(settings: Settings, actor: str, service: str, key_id: str) -> None:
    """Revoke a key of a service, and all tokens of the service. Raises NotFound, CannotWork."""
    with _key_changes(settings, actor) as (_, changes):
        changes.revoke(service, key_id)


def keys(settings: Settings, service: str, most: int) -> list[dict[str, Any]]:
    """The keys of a service, newest first and without secrets, at most so many. Raises NotFound, CannotWork."""
    user_id = user_of(service)
    with _begin(settings) as session:
        found: list[dict[str, Any]] = queries.page(session, user_id, most, None)["items"]
        if not found and session.get(User, user_id) is None:
            raise NotFound(f"there is no service {service}")
    return found


def listed(
    settings: Settings, most: int, role: str | None = None, email: str | None = None
) -> tuple[list[dict[str, Any]], bool]:
    """Users by user_id, at most so many, and whether there are more. Raises ValidationFailed, CannotWork."""
    query = select(User).order_by(User.user_id).limit(most + 1)
    if role:
        query = query.where(User.roles.contains(list(check_roles([role]))))
    if email:
        query = query.where(User.email == email.lower())
    with _begin(settings) as session:
        found = [_shown(user) for user in session.scalars(query)]
    return found[:most], len(found) > most


def _shown(user: User) -> dict[str, Any]:
    """A user as it is shown: never with the hash."""
    return {
        "name": user.name or user.display_name,
        "roles": list(user.roles),
        "disabled": models.account_of(user).disabled,
        "created_at": user.created_at,
        "user_id": user.user_id,
        "email": user.email,
        "kind": user.kind,
    }


def _user_id(session: Session, name: str) -> str:
    """The id of the user who is called so: by id, name or address. Raises NotFound, Conflict for more than one."""
    same = select(User.user_id).where(or_(User.user_id == name, User.name == name, User.email == name.lower()))
    found = list(session.scalars(same.limit(2)))
    if not found:
        raise NotFound(f"there is no user {name}")
    if len(found) > 1:
        raise Conflict(f"{name} is the name of one user and the address of another: give the user_id")
    return str(found[0])


def _open_of(user_id: str) -> tuple[ColumnElement[bool], ...]:
    """The conditions of an open session of a user."""
    return SessionRow.user_id == user_id, SessionRow.ended_at.is_(None), SessionRow.expires_at > func.now()


@contextmanager
def _changes(settings: Settings, actor: str) -> Iterator[tuple[Session, Changes]]:
    """One transaction of an operator at a terminal, whose name stays in the record and goes into no event."""
    with _begin(settings) as session:
        yield session, Changes(session, Origin(actor), AT_A_TERMINAL, new_trace_id(), is_user=False)


@contextmanager
def _key_changes(settings: Settings, actor: str) -> Iterator[tuple[Session, KeyChanges]]:
    """The same for the keys of services."""
    with _begin(settings) as session:
        yield session, KeyChanges(session, Origin(actor), AT_A_TERMINAL, new_trace_id(), "cli")


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
