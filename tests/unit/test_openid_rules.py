"""The table of what follows when somebody comes back from a provider."""

from itertools import product

import pytest

from auth_service.openid.domain import (
    CALLBACK,
    Address,
    Callback,
    Owner,
    Then,
    after_callback,
    may_sign_in_by,
    owner_of,
)
from shared.roles import ROLES


def test_every_case_that_there_is_has_a_row() -> None:
    """Nobody who is not signed in owns an identity as themselves."""
    cases = set(product(Owner, (True, False), Address))
    assert cases - CALLBACK.keys() == {(Owner.THEMSELVES, False, address) for address in Address}
    assert owner_of("u-ann", None) == Owner.OTHERS
    assert owner_of("u-ann", "u-ann") == Owner.THEMSELVES
    assert owner_of("u-ann", "u-eve") == Owner.OTHERS
    assert owner_of(None, None) == owner_of(None, "u-ann") == Owner.NOBODY


def test_an_address_alone_never_signs_in() -> None:
    for address in Address:
        then = after_callback(Callback(Owner.NOBODY, False, address))
        assert then not in (Then.SIGN_IN, Then.LINK, Then.LINKED)


def test_only_who_is_signed_in_links_at_once() -> None:
    for owner, address in product((Owner.NOBODY, Owner.OTHERS), Address):
        assert after_callback(Callback(owner, False, address)) != Then.LINK
        assert after_callback(Callback(owner, True, address)) not in (Then.SIGN_IN, Then.CREATE, Then.LINK_BY_MAIL)


def test_a_second_identity_of_a_provider_is_refused() -> None:
    for address in Address:
        assert after_callback(Callback(Owner.NOBODY, True, address, has_another=True)) == Then.REFUSE_SECOND
        assert after_callback(Callback(Owner.THEMSELVES, True, address, has_another=True)) == Then.LINKED
        assert after_callback(Callback(Owner.OTHERS, True, address, has_another=True)) == Then.REFUSE_TAKEN


@pytest.mark.parametrize("role", ROLES)
def test_every_role_but_one_needs_a_provider_for_staff(role: str) -> None:
    is_customer = role == "customer"
    for roles in ((role,), ("customer", role)):
        assert may_sign_in_by("google", roles, ()) is is_customer
        assert may_sign_in_by("google", roles, ("staff",)) is is_customer
        assert may_sign_in_by("staff", roles, ("staff",))
