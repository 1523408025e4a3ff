"""Rules of the catalog: who may do what, and what is sold. No clock, no I/O, no SQL."""

from __future__ import annotations

from shared.events import Identity
from shared.roles import ADMIN, AUDITOR, has_role


def may_edit(identity: Identity) -> bool:
    """Whether a user may change the menu and its prices."""
    return has_role(identity, ADMIN)


def may_read_editor(identity: Identity) -> bool:
    """Whether a user may see drafts, versions and who set which price when."""
    return has_role(identity, ADMIN, AUDITOR)
