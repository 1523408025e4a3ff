"""The roles of callers, typed once. The `may_...` rules in the domain.py of each service say what each role may do.

Standard library only.
"""

from __future__ import annotations

from shared.events import Identity

CUSTOMER, OPERATOR, AUDITOR, ADMIN, SERVICE = ROLES = ("customer", "operator", "auditor", "admin", "service")

# The role of the system's own parts. No user can be given it.
SYSTEM = "system"


def has_role(caller: Identity, *roles: str) -> bool:
    """Whether the caller has at least one of these roles."""
    return not set(roles).isdisjoint(caller.roles)
