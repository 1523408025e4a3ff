"""The rules of people: which roles somebody may have, and what must hold when they are changed."""

from __future__ import annotations

import pytest

from auth_service.domain import Kind
from auth_service.people import domain
from gateway.api.enumerations import USER_KIND
from gateway.people import RolesRequest
from gateway.tokens import MockLogin
from shared.errors import Conflict, LastAdmin, OwnRoles, RoleMissing, ServiceRole, ValidationFailed
from shared.roles import ROLES, role_of

PERSON, SERVICE = "person", "service"


def test_the_gateway_knows_the_same_kinds_of_users() -> None:
    assert USER_KIND.words == tuple(Kind)


@pytest.mark.parametrize("role", ROLES)
def test_a_role_is_taken_with_a_prefix_and_kept_without_it(role: str) -> None:
    assert role_of(f"ROLE_{role.upper()}") == role_of(role) == role


@pytest.mark.parametrize("written", ["ROLE_BOSS", "Admin", "role_admin", "ROLE_", "", "ROLE_ROLE_ADMIN"])
def test_what_is_no_role_stays_as_it_is_written_and_is_refused(written: str) -> None:
    assert role_of(written) == written
    with pytest.raises(ValidationFailed):
        domain.roles_from([written])


def test_a_role_that_is_written_twice_is_one() -> None:
    assert domain.roles_from(["ROLE_ADMIN", "customer", "admin"]) == ("admin", "customer")


@pytest.mark.parametrize("schema", [RolesRequest, MockLogin])
def test_requests_take_roles_with_the_prefix(schema: type) -> None:
    body = {"roles": ["ROLE_AUDITOR", "customer"], **({"user_id": "ann"} if schema is MockLogin else {})}
    assert schema().load(body)["roles"] == ["auditor", "customer"]
    assert schema().validate({**body, "roles": ["ROLE_BOSS"]})["roles"][0][0].startswith("Must be one of: customer,")


@pytest.mark.parametrize(
    ("kind", "before", "roles", "is_refused"),
    [
        (PERSON, ["customer"], ["customer", "admin"], False),
        (PERSON, ["customer"], [], False),
        (PERSON, ["customer"], ["service"], True),
        (PERSON, [], ["admin", "service"], True),
        (PERSON, ["service"], ["service", "operator"], False),  # a service of older versions
        (PERSON, ["service"], [], False),
        (SERVICE, ["service"], ["service"], False),
        (SERVICE, ["service"], [], False),
        (SERVICE, ["service"], ["service", "admin"], True),
        (SERVICE, ["service"], ["customer"], True),
    ],
)
def test_the_role_service_belongs_to_services(kind: str, before: list[str], roles: list[str], is_refused: bool) -> None:
    if is_refused:
        with pytest.raises(ServiceRole):
            domain.check_kind_of_roles(kind, before, roles)
    else:
        domain.check_kind_of_roles(kind, before, roles)


def test_nobody_changes_their_own_roles() -> None:
    with pytest.raises(OwnRoles):
        domain.check_actor("ann", "ann", ["admin"])


@pytest.mark.parametrize("roles", [[], ["customer", "operator"]])
def test_an_actor_who_is_no_admin_any_more_changes_nobody(roles: list[str]) -> None:
    with pytest.raises(RoleMissing):
        domain.check_actor("ann", "bob", roles)


@pytest.mark.parametrize("roles", [None, ["admin"]])
def test_an_admin_and_an_operator_at_a_terminal_change_others(roles: list[str] | None) -> None:
    domain.check_actor("ann", "bob", roles)


@pytest.mark.parametrize(("roles", "disabled"), [([], False), (["auditor"], False), (["admin"], True), ([], True)])
def test_the_last_admin_stays_one_who_may_sign_in(roles: list[str], disabled: bool) -> None:
    with pytest.raises(LastAdmin):
        domain.check_an_admin_stays("ann", roles, disabled, ["ann"])
    domain.check_an_admin_stays("ann", roles, disabled, ["ann", "bob"])
    domain.check_an_admin_stays("bob", roles, disabled, ["ann"])


def test_the_last_admin_may_get_further_roles() -> None:
    domain.check_an_admin_stays("ann", ["admin", "auditor"], False, ["ann"])


def test_where_nobody_is_an_admin_others_may_be_changed() -> None:
    domain.check_an_admin_stays("ann", [], True, [])


def test_nobody_who_asked_to_be_erased_is_enabled() -> None:
    domain.check_may_be_enabled(is_leaving=False)
    with pytest.raises(Conflict):
        domain.check_may_be_enabled(is_leaving=True)


@pytest.mark.parametrize(("count", "is_refused"), [(0, True), (1, False), (100, False), (101, True)])
def test_people_are_asked_for_up_to_100_at_once(count: int, is_refused: bool) -> None:
    ids = [f"user-{number}" for number in range(count)]
    if is_refused:
        with pytest.raises(ValidationFailed):
            domain.check_ids(ids)
    else:
        domain.check_ids(ids)
