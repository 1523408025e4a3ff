"""The rules of accounts: passwords, and how an account ends. The functions take and return plain values."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta

from auth_service.domain import Account, Kind
from shared.errors import Forbidden, PasswordRefused
from shared.events import Identity
from shared.roles import CUSTOMER, ROLES, has_role

MIN_PASSWORD, MAX_PASSWORD = 12, 1024

# What somebody may do who has registered.
FIRST_ROLES = (CUSTOMER,)

# An account is emptied so long after its user asked for it: longer than any deadline of an order, or a refund, lasts.
ERASED_AFTER = timedelta(days=14)
# Whoever has signed in this lately need not give their password once more.
FRESH = timedelta(minutes=10)


def may_use_account(caller: Identity) -> bool:
    """Whether someone has an account that is theirs."""
    return has_role(caller, *ROLES)


def check_password(password: str, email: str | None, common: Collection[str], field: str = "password") -> None:
    """Refuse a password that is too short, too long, or among the first that somebody guesses. Raises PasswordRefused.

    There is no rule about kinds of characters, and no password expires: such rules make people choose worse ones.
    `common` are those that many have, in lower case; `field` is the one that the error names.
    """
    folded = password.casefold()
    if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
        why = f"Must be {MIN_PASSWORD} to {MAX_PASSWORD:,} characters long."
    elif email and folded in (email, email.partition("@")[0]):
        why = "Must not be the e-mail address."
    elif folded in common:
        why = "Is a password that many people have, and one of the first that others try."
    else:
        return
    raise PasswordRefused(details={field: [why]})


def check_person(account: Account) -> None:
    """Services have keys and no such account. Raises Forbidden."""
    if account.kind != Kind.PERSON:
        raise Forbidden("A service has no account of this kind.")
