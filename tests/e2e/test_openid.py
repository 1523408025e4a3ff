"""Signing in by providers over HTTP, at two gateways: each row of the table, and nobody gets another's account."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
import requests

from shared import auth
from tests.commands import ecom_here
from tests.e2e.system import System, eventually
from tests.oidc import REDIRECT_URI, FakeProvider


class Client:
    """A client app: each request goes to the other gateway than the one before."""

    def __init__(self, system: System, provider: FakeProvider) -> None:
        self.system, self.provider = system, provider
        self._flows = [system.flow(0), system.flow(1)]

    def post(self, path: str, body: Any, token: str | None = None) -> requests.Response:
        """A request, with a token or without."""
        self._flows.reverse()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return self._flows[0].send("POST", f"/api/auth/{path}", body, None, **headers)

    def start(self, token: str | None = None, **more: Any) -> dict[str, Any]:
        """Where to send the user, and the attempt."""
        answer = self.post("oauth/start", {"provider": self.provider.name, "redirect_uri": REDIRECT_URI, **more}, token)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def come_back(self, begun: dict[str, Any], **claims: Any) -> requests.Response:
        """The user consents, and the client takes what the provider has added."""
        return self.post("oauth/callback", self.back(begun, **claims))

    def back(self, begun: dict[str, Any], **claims: Any) -> dict[str, Any]:
        """What the client takes from the address to which the user was sent back, and its attempt."""
        added = self.provider.consent(begun["authorization_url"], **claims)
        return {"provider": self.provider.name, "attempt": begun["attempt"], **added}

    def sign_in(self, **claims: Any) -> requests.Response:
        """The user signs in."""
        return self.come_back(self.start(), **claims)


@pytest.fixture
def client(system: System) -> Client:
    return Client(system, system.google)


@pytest.fixture
def name(system: System) -> str:
    """A name of a person that nobody has, and that has had no mail: only few go to one network in an hour."""
    system.databases.run("auth", "UPDATE proofs SET network = ''")
    return f"p-{uuid.uuid4().hex}"


@pytest.fixture
def user(system: System, name: str) -> str:
    """The token of a new customer with an address, who has just signed in by a password."""
    return add_user(system, name, "customer")


def add_user(system: System, name: str, role: str) -> str:
    """Add a user with an address; the token of a session that has just begun."""
    system.databases.run(
        "auth",
        "INSERT INTO users (user_id, name, email, roles, password_hash)"
        " SELECT :user, :user, :user || '@example.com', ARRAY[:role], password_hash FROM users WHERE name = 'customer'",
        user=name,
        role=role,
    )
    answer = system.flow().send("POST", "/api/auth/login", {"login": name, "password": "demo-customer"}, None)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["access_token"])


def ann(name: str, **changes: Any) -> dict[str, Any]:
    """What the provider says of a person."""
    return {"sub": f"sub-{name}", "email": f"{name}@Example.com", "email_verified": True, "name": "Ann"} | changes


def refusal(answer: requests.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_a_new_user_comes_by_a_provider_and_orders(system: System, client: Client, name: str) -> None:
    answer = client.sign_in(**ann(name))
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    signed_in = answer.json()
    assert signed_in["user"]["email"] == f"{name}@example.com"
    assert signed_in["user"]["roles"] == ["customer"]
    me = system.flow().send("GET", "/api/orders", None, None, Authorization=f"Bearer {signed_in['access_token']}")
    assert me.status_code == 200
    again = client.sign_in(**ann(name, email=None))
    assert again.json()["user"]["id"] == signed_in["user"]["id"]
    assert auth.verify(again.json()["access_token"], system.settings.auth_keys).session_id


def test_who_is_signed_in_links_an_identity(client: Client, name: str, user: str) -> None:
    begun = client.start(user, link=True)
    assert client.come_back(begun, **ann(name, email=None)).status_code == 204
    assert client.sign_in(**ann(name)).json()["user"]["id"] == name
    headers = {"Authorization": f"Bearer {user}"}
    flow = client.system.flow()
    (item,) = flow.send("GET", "/api/auth/identities", None, None, **headers).json()["items"]
    assert item["provider"] == "google"
    assert flow.send("DELETE", "/api/auth/identities/google", None, None, **headers).status_code == 204
    assert flow.send("DELETE", "/api/auth/identities/google", None, None, **headers).status_code == 404
    assert refusal(client.sign_in(**ann(name))) == (409, "link_required")


def test_an_identity_of_somebody_else_is_409(system: System, client: Client, name: str, user: str) -> None:
    other = add_user(system, f"{name}-2", "customer")
    assert client.come_back(client.start(user, link=True), **ann(name)).status_code == 204
    assert refusal(client.come_back(client.start(other, link=True), **ann(name))) == (409, "identity_taken")
    assert client.sign_in(**ann(name)).json()["user"]["id"] == name


def test_an_address_that_somebody_has_is_linked_by_their_mail(
    system: System, client: Client, name: str, user: str
) -> None:
    assert refusal(client.sign_in(**ann(name))) == (409, "link_required")
    token = eventually(lambda: token_in_mail(system, f"{name}@example.com"), bool)
    answer = client.post("link", {"token": token})
    assert (answer.status_code, answer.json()["user"]["id"]) == (200, name)
    assert client.sign_in(**ann(name)).json()["user"]["id"] == name
    assert refusal(client.post("link", {"token": token})) == (422, "token_invalid")


def token_in_mail(system: System, address: str) -> str:
    """The token in the newest mail to an address, as a developer finds it; empty if there is no mail."""
    said = ecom_here("mail", "show", address, "--json", code=None, SMTP_URL=f"file:{system.mail_folder}")
    return str(said.answer["token"]) if said.code == 0 else ""


@pytest.mark.parametrize(
    "changes", [{"email": None}, {"email_verified": None}, {"email_verified": False}, {"email_verified": "true"}]
)
def test_an_address_that_is_not_proven_is_422(client: Client, name: str, user: str, changes: dict[str, Any]) -> None:
    assert refusal(client.sign_in(**ann(name, **changes))) == (422, "email_unproven")


def test_staff_sign_in_by_a_provider_for_staff_alone(system: System, client: Client, name: str) -> None:
    token = add_user(system, name, "operator")
    staffs = Client(system, system.staffs)
    assert refusal(client.sign_in(**ann(name))) == (403, "forbidden")
    assert refusal(client.come_back(client.start(token, link=True), **ann(name))) == (403, "forbidden")
    assert staffs.come_back(staffs.start(token, link=True), **ann(name)).status_code == 204
    assert staffs.sign_in(**ann(name)).json()["user"]["roles"] == ["operator"]


def test_nobody_is_signed_in_to_the_account_of_an_attacker(client: Client, name: str) -> None:
    """An attacker begins, and lets a victim come back with the attacker's code: the victim has not that attempt."""
    attackers, victims = client.start(), client.start()
    back = client.back(attackers, **ann(name))
    without = {field: value for field, value in back.items() if field != "attempt"}
    assert client.post("oauth/callback", without).status_code == 422
    for attempt in (victims["attempt"], str(uuid.uuid4())):
        assert refusal(client.post("oauth/callback", {**back, "attempt": attempt})) == (400, "bad_request")
    assert client.post("oauth/callback", back).status_code == 200
    assert refusal(client.post("oauth/callback", back)) == (400, "bad_request")


def test_only_a_session_that_has_just_begun_links(system: System, client: Client, name: str, user: str) -> None:
    body = {"provider": "google", "redirect_uri": REDIRECT_URI, "link": True}
    assert refusal(client.post("oauth/start", body)) == (401, "unauthenticated")
    assert refusal(client.post("oauth/start", body, "nonsense")) == (401, "unauthenticated")
    system.databases.run(
        "auth", "UPDATE sessions SET created_at = created_at - interval '10 minutes' WHERE user_id = :u", u=name
    )
    assert refusal(client.post("oauth/start", body, user)) == (403, "sign_in_again")


def test_people_come_back_only_to_addresses_that_are_listed(client: Client) -> None:
    for wrong in ({"redirect_uri": "https://evil.example/"}, {"redirect_uri": f"{REDIRECT_URI}/"}, {"provider": "x"}):
        body = {"provider": "google", "redirect_uri": REDIRECT_URI, **wrong}
        answer = client.post("oauth/start", body)
        assert refusal(answer) == (422, "validation_failed")
        assert set(answer.json()["error"]["details"]) == set(wrong)


def test_a_provider_that_misbehaves_signs_nobody_in(system: System, client: Client, name: str, user: str) -> None:
    assert client.come_back(client.start(user, link=True), **ann(name)).status_code == 204
    provider = client.provider
    good = provider.sign
    try:
        for claims in ({"nonce": "another"}, {"aud": "another"}, {"azp": "another"}, {"iss": "another"}, {"exp": 1}):
            provider.claims = claims
            assert refusal(client.sign_in(**ann(name))) == (401, "identity_refused")
        provider.claims = {}
        for algorithm, key in (("HS256", "a key that tests sign in by" * 2), ("RS512", None)):
            provider.sign = lambda claims, a=algorithm, k=key: provider.signed(claims, "r1", a, k)  # type: ignore[misc]
            assert refusal(client.sign_in(**ann(name))) == (401, "identity_refused")
        provider.sign = good
        provider.answers = {"/token": (500, b"{}")}
        assert refusal(client.sign_in(**ann(name))) == (503, "unavailable")
    finally:
        provider.claims, provider.sign, provider.answers = {}, good, {}
    assert client.sign_in(**ann(name)).status_code == 200


def test_nothing_that_is_kept_or_published_names_a_token_or_an_address(system: System) -> None:
    events = system.databases.rows("auth", "SELECT body FROM outbox")
    events += system.databases.rows("auth", "SELECT details FROM auth_events")
    said = json.dumps(events)
    for word in ("@example.com", "ert_", "token=", "sub-p-"):
        assert word not in said
