"""People over HTTP, as admins, operators and auditors see and change them, and as they meet that themselves."""

from __future__ import annotations

import subprocess
import uuid
from typing import Any

import pytest
import requests

from tests.e2e.system import ECOM, ROOT, System, eventually

PASSWORD = "correct horse battery"


@pytest.fixture
def eve(system: System) -> str:
    """A new customer with a password and an address."""
    name = f"eve-{uuid.uuid4().hex[:8]}"
    words = ("user", "add", name, "--role", "customer", "--email", f"{name}@example.com", "--actor", "olga@till")
    subprocess.run([ECOM, *words], cwd=ROOT, input=f"{PASSWORD}\n", text=True, check=True, capture_output=True)
    return name


def send(
    system: System, method: str, path: str, body: Any = None, user: str = "admin", gateway: int = 0
) -> requests.Response:
    return system.flow(gateway).send(method, path, body, user)


def refused(answer: requests.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def sign_in(system: System, name: str) -> int:
    body = {"username": name, "password": PASSWORD}
    return system.flow().send("POST", "/api/auth/token", body, user=None).status_code


def test_a_person_is_found_by_their_address_and_given_a_role_which_the_record_shows(system: System, eve: str) -> None:
    (found,) = send(system, "GET", f"/api/users?email={eve.upper()}@Example.com").json()["items"]
    assert (found["user_id"], found["name"], found["roles"]) == (eve, eve, ["customer"])
    body = {"roles": ["ROLE_CUSTOMER", "ROLE_AUDITOR"], "reason": "helps the auditors"}

    changed = send(system, "PUT", f"/api/users/{eve}/roles", body)

    assert (changed.status_code, changed.json()["roles"]) == (200, ["customer", "auditor"])
    assert send(system, "GET", f"/api/users/{eve}", gateway=1).json() == changed.json()
    events = send(system, "GET", f"/api/users/{eve}/events", user="auditor").json()["items"]
    assert [(event["event"], event["actor_id"]) for event in events] == [
        ("roles_changed", "admin"),
        ("created", "olga@till"),
    ]
    assert events[0]["details"] == {**body, "roles": ["customer", "auditor"], "before": ["customer"]}
    assert events[0]["network"] == "127.0.0.1"


def test_a_disabled_person_cannot_sign_in_until_they_are_enabled(system: System, eve: str) -> None:
    assert sign_in(system, eve) == 200
    assert send(system, "POST", f"/api/users/{eve}/disable", {"reason": "left"}).json()["disabled"]
    assert sign_in(system, eve) == 401
    assert not send(system, "POST", f"/api/users/{eve}/enable", {"reason": "came back"}).json()["disabled"]
    assert sign_in(system, eve) == 200
    assert send(system, "DELETE", f"/api/users/{eve}/sessions").status_code == 204
    assert sign_in(system, eve) == 200


def test_an_operator_reads_names_by_id_and_an_auditor_reads_who_did_so(system: System, eve: str) -> None:
    olga = system.become(f"olga-{eve}", "operator")
    found = send(system, "POST", "/api/users/batch", {"ids": [eve, "nobody-of-this-name"]}, user=olga).json()
    assert found["items"] == [
        {"user_id": eve, "name": eve, "email": f"{eve}@example.com", "roles": ["customer"], "disabled": False}
    ]
    boss = system.become(f"boss-{eve}", "admin")
    looked_up = send(system, "GET", f"/api/users/{olga}/events", user=boss)
    assert [(event["event"], event["details"]) for event in looked_up.json()["items"]] == [
        ("looked_up", {"ids": [eve]})
    ]


def test_what_must_hold_of_roles_is_refused_with_its_own_code(system: System, eve: str) -> None:
    boss = system.become(f"boss-{eve}", "admin")
    roles, why = {"roles": ["auditor"], "reason": "a test"}, {"reason": "a test"}
    assert refused(send(system, "PUT", "/api/users/admin/roles", roles)) == (409, "own_roles")
    assert refused(send(system, "POST", "/api/users/admin/disable", why)) == (409, "own_roles")
    assert refused(send(system, "PUT", "/api/users/admin/roles", roles, user=boss)) == (409, "last_admin")
    assert refused(send(system, "POST", "/api/users/admin/disable", why, user=boss)) == (409, "last_admin")
    service = {"roles": ["ROLE_SERVICE"], "reason": "a test"}
    assert refused(send(system, "PUT", f"/api/users/{eve}/roles", service)) == (422, "service_role")
    assert refused(send(system, "PUT", f"/api/users/{eve}/roles", {"roles": ["boss"]})) == (422, "validation_failed")
    assert refused(send(system, "POST", f"/api/users/{eve}/disable", {"reason": ""})) == (422, "validation_failed")
    for method, path, body in (
        ("GET", "/api/users/nobody", None),
        ("GET", "/api/users/nobody/events", None),
        ("PUT", "/api/users/nobody/roles", roles),
        ("POST", "/api/users/nobody/disable", why),
        ("POST", "/api/users/nobody/enable", why),
        ("DELETE", "/api/users/nobody/sessions", None),
        ("GET", "/api/users/a%20b", None),
    ):
        assert refused(send(system, method, path, body)) == (404, "not_found")


@pytest.mark.parametrize("user", ["customer", "operator", "auditor", "service"])
def test_people_are_no_business_of_others(system: System, user: str) -> None:
    assert refused(send(system, "GET", "/api/users", user=user)) == (403, "forbidden")
    assert refused(send(system, "PUT", f"/api/users/{user}/roles", {"roles": ["admin"]}, user=user))[0] == 403


def test_events_about_a_person_are_published_without_their_name(system: System, eve: str) -> None:
    send(system, "POST", f"/api/users/{eve}/disable", {"reason": "left"}).raise_for_status()
    statement = (
        "SELECT event_type, body FROM outbox WHERE body LIKE '%' || :user_id || '%' AND published_at IS NOT NULL"
    )
    published = eventually(lambda: system.databases.rows("auth", statement, user_id=eve), lambda rows: len(rows) == 2)
    assert {row["event_type"] for row in published} == {"user.created", "user.disabled"}
    assert not any("example.com" in row["body"] for row in published)


def test_all_people_are_met_once_on_the_pages(system: System, eve: str) -> None:
    met: list[str] = []
    path = "/api/users?limit=2"
    while path:
        answer = send(system, "GET", path)
        met += [item["user_id"] for item in answer.json()["items"]]
        path = answer.links.get("next", {}).get("url", "")
    assert len(met) == len(set(met))
    assert {eve, "admin", "customer"} <= set(met)
