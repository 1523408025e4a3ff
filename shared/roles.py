"""The roles of callers, typed once. The `may_...` rules in the domain.py of each service say what each role may do.

Standard library only.
"""

from __future__ import annotations

from shared.events import Identity

CUSTOMER, OPERATOR, AUDITOR, ADMIN, SERVICE = ROLES = ("customer", "operator", "auditor", "admin", "service")

# The role of the system's own parts. No user can be given it.
SYSTEM = "system"


# How others write a role. Whoever writes one here may do so, too; it is kept and shown as ours.
FOREIGN_PREFIX = "ROLE_"


def role_of(written: str) -> str:
    """The word of a role as somebody has written it: `ROLE_ADMIN` is `admin`. What is no role is returned as it is."""
    word = written.removeprefix(FOREIGN_PREFIX).lower() if written.startswith(FOREIGN_PREFIX) else written
    return word if word in ROLES else written


def has_role(caller: Identity, *roles: str) -> bool:
    """Whether the caller has at least one of these roles."""
    return not set(roles).isdisjoint(caller.roles)
