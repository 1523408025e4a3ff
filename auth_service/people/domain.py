"""Who may look people up and change what they may do, and what must hold then. Takes and returns plain values."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from enum import StrEnum

from auth_service.domain import Kind
from shared.errors import Conflict, LastAdmin, OwnRoles, RoleMissing, ServiceRole, ValidationFailed
from shared.events import Identity
from shared.roles import ADMIN, AUDITOR, CUSTOMER, OPERATOR, ROLES, SERVICE, SYSTEM, has_role, role_of

MOST_IDS = 100


class Event(StrEnum):
    """What the record says about an account that somebody else has changed or looked up."""

    CREATED = "created"
    ROLES_CHANGED = "roles_changed"
    DISABLED = "disabled"
    ENABLED = "enabled"
    SESSIONS_ENDED = "sessions_ended"
    PASSWORD_SET = "password_set"
    LOOKED_UP = "looked_up"


def may_read_people(caller: Identity) -> bool:
    """Whether the caller may read names, addresses and roles."""
    return has_role(caller, ADMIN)


def may_read_records(caller: Identity) -> bool:
    """Whether the caller may read what was done with an account, and by whom."""
    return has_role(caller, ADMIN, AUDITOR)


def may_look_up(caller: Identity) -> bool:
    """Whether the caller may read the names and addresses of people whose ids they have. It is recorded."""
    return has_role(caller, ADMIN, OPERATOR)


def may_ask_for_people(caller: Identity) -> bool:
    """Whether the caller may read the names and addresses of people whom they are about to show or to mail."""
    return has_role(caller, SERVICE, ADMIN, OPERATOR, SYSTEM)


def may_change_people(caller: Identity) -> bool:
    """Whether the caller may give and take roles, and disable and enable people."""
    return has_role(caller, ADMIN)


def roles_from(written: Iterable[str]) -> tuple[str, ...]:
    """The roles that somebody has written, each once. Raises ValidationFailed for a word that is no role."""
    roles = tuple(dict.fromkeys(map(role_of, written)))
    for role in roles:
        if role not in ROLES:
            raise ValidationFailed(details={"roles": [f"{role!r} is no role; there are {', '.join(ROLES)}."]})
    return roles


def check_ids(ids: Collection[str]) -> None:
    """Check that no more people are asked for than an answer holds. Raises ValidationFailed."""
    if not 1 <= len(ids) <= MOST_IDS:
        raise ValidationFailed(details={"ids": [f"Must be 1 to {MOST_IDS}."]})


def check_kind_of_roles(kind: str, before: Collection[str], roles: Collection[str]) -> None:
    """Check that roles fit who has them. Raises ServiceRole.

    Some services of older versions are users with a password: they keep the role `service`, and lose it if it is taken.
    """
    given = set(roles) - set(before)
    if kind == Kind.SERVICE and set(roles) - {SERVICE}:
        raise ServiceRole("A service has no other role than `service`.")
    if kind != Kind.SERVICE and SERVICE in given:
        raise ServiceRole("The role `service` belongs to services. Make a key for the service instead.")


def becomes_staff(before: Collection[str], roles: Collection[str]) -> bool:
    """Whether a customer gets a role beyond that. Their sessions end: not every provider may sign in staff."""
    return set(before) <= {CUSTOMER} and not set(roles) <= {CUSTOMER}


def check_actor(actor_id: str, user_id: str, actor_roles: Collection[str] | None) -> None:
    """Check that an actor may still change others, now that the rows of all admins are locked.

    `actor_roles`: those of the actor who is a user, () of one who may not sign in; None of one who is no user, as an
    operator at a terminal. Raises OwnRoles, RoleMissing.
    """
    if actor_id == user_id:
        raise OwnRoles("Nobody changes their own roles, or disables themselves. Ask another admin.")
    if actor_roles is not None and ADMIN not in actor_roles:
        raise RoleMissing


def check_an_admin_stays(user_id: str, roles: Collection[str], disabled: bool, admins: Collection[str]) -> None:
    """Check that of the admins who may sign in one is left when a user has these roles. Raises LastAdmin."""
    if set(admins) == {user_id} and (disabled or ADMIN not in roles):
        raise LastAdmin("This is the last admin who may sign in. Make somebody else an admin first.")


def check_may_be_enabled(is_leaving: bool) -> None:
    """Check that a person is neither erased nor about to be. Raises Conflict."""
    if is_leaving:
        raise Conflict("This person has asked to be erased. Only the link in their mail keeps the account.")
