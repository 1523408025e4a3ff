"""The rules of signing in by a provider. The functions take and return plain values; the table decides."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from shared.roles import CUSTOMER

# How long a sign-in at a provider may take, with whatever the provider asks for.
ATTEMPT_LIFE = timedelta(minutes=10)


class Owner(StrEnum):
    """Whose an identity is: a subject of a provider."""

    NOBODY = "nobody"
    THEMSELVES = "themselves"  # of the user who wants to link it
    OTHERS = "others"  # of another user; of any user, for whoever is not signed in


class Address(StrEnum):
    """What there is with the address that a provider names."""

    UNPROVEN = "unproven"  # or missing
    FREE = "free"
    TAKEN = "taken"


class Then(StrEnum):
    """What follows."""

    SIGN_IN = "sign in"
    LINK = "link"
    LINKED = "linked already"
    CREATE = "create a user"
    LINK_BY_MAIL = "mail a link to the address"
    REFUSE_TAKEN = "refuse: somebody else's"
    REFUSE_SECOND = "refuse: another one of that provider is linked"
    REFUSE_UNPROVEN = "refuse: no proven address"


@dataclass(frozen=True)
class Callback:
    """What is known when somebody comes back from a provider."""

    owner: Owner
    is_linking: bool  # started by somebody who is signed in
    address: Address
    has_another: bool = False  # whoever wants to link has linked another subject of that provider


ANY_ADDRESS = tuple(Address)
_LINKING, _SIGNING_IN = True, False

# Whose the identity is, whether it is to be linked, and the address: what follows.
CALLBACK: dict[tuple[Owner, bool, Address], Then] = {
    **{(Owner.OTHERS, _SIGNING_IN, address): Then.SIGN_IN for address in ANY_ADDRESS},
    (Owner.NOBODY, _SIGNING_IN, Address.FREE): Then.CREATE,
    (Owner.NOBODY, _SIGNING_IN, Address.TAKEN): Then.LINK_BY_MAIL,
    (Owner.NOBODY, _SIGNING_IN, Address.UNPROVEN): Then.REFUSE_UNPROVEN,
    **{(Owner.NOBODY, _LINKING, address): Then.LINK for address in ANY_ADDRESS},
    **{(Owner.THEMSELVES, _LINKING, address): Then.LINKED for address in ANY_ADDRESS},
    **{(Owner.OTHERS, _LINKING, address): Then.REFUSE_TAKEN for address in ANY_ADDRESS},
}


def after_callback(callback: Callback) -> Then:
    """What follows when somebody comes back from a provider."""
    then = CALLBACK[callback.owner, callback.is_linking, callback.address]
    return Then.REFUSE_SECOND if then == Then.LINK and callback.has_another else then


def owner_of(owner_id: str | None, user_id: str | None) -> Owner:
    """Whose an identity is, for a user who is signed in, or nobody."""
    if owner_id is None:
        return Owner.NOBODY
    return Owner.THEMSELVES if owner_id == user_id else Owner.OTHERS


def may_sign_in_by(provider: str, roles: Collection[str], staff_providers: Collection[str]) -> bool:
    """Whether users with these roles may sign in by a provider: staff only by those that are named for them."""
    return set(roles) <= {CUSTOMER} or provider in staff_providers
