"""Signing in by a provider, on a real database and by a provider on this machine: nobody gets another's account."""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import eventlet
import pytest

from auth_service import passwords
from auth_service.oidc import Providers
from shared import auth
from shared.errors import (
    BadRequest,
    Conflict,
    EmailUnproven,
    Forbidden,
    IdentityRefused,
    IdentityTaken,
    LinkRequired,
    NotFound,
    SignInAgain,
    TokenInvalid,
    ValidationFailed,
)
from shared.oidc_providers import providers
from tests.databases import Databases
from tests.integration.people import (
    CHEAP,
    HERE,
    PASSWORD,
    act_as,
    act_as_nobody,
    add_people,
    ann,
    bob,
    emitted,
    last_token,
    mails,
    recorded,
)
from tests.integration.support import Bench, assert_read_by_index, statements
from tests.oidc import REDIRECT_URI, FakeProvider, fake_provider

ANNS = {"sub": "sub-ann", "email": "Ann@Example.com", "email_verified": True, "name": "Ann A."}
NEWS = {"sub": "sub-new", "email": "New@Example.com", "email_verified": True, "name": " <b>N</b>\n\u0000ew "}
UNPROVEN: list[dict[str, Any]] = [
    {"email": None},
    {"email_verified": False},
    {"email_verified": None},
    {"email_verified": "true"},
    {"email": "no address"},
    {"email": "a@b, c@example.com"},
    {"email": "\u212aim@example.com"},  # the Kelvin sign, which becomes a k
]


@pytest.fixture
def google() -> Iterator[FakeProvider]:
    with fake_provider("google") as provider:
        yield provider


@pytest.fixture
def staffs() -> Iterator[FakeProvider]:
    with fake_provider("staff") as provider:
        yield provider


@pytest.fixture
def replicas(bench, google: FakeProvider, staffs: FakeProvider, monkeypatch: pytest.MonkeyPatch) -> list[Bench]:
    """Two replicas of auth_service that know two providers, with ann, a customer, and bob, an operator."""
    monkeypatch.setattr(passwords, "_HASHER", CHEAP)
    made = [bench("auth"), bench("auth")]
    for one in made:
        one.service.settings = one.settings = dataclasses.replace(
            one.settings,
            oidc_providers=providers(json.dumps([google.setting(), staffs.setting()])),
            oidc_redirects=(REDIRECT_URI,),
            oidc_staff_providers=("staff",),
        )
        one.service.oidc = Providers(one.settings)
        act_as_nobody(one.service)
    add_people(made[0], ann(), bob(email="bob@example.com"))
    return made


@pytest.fixture
def one(replicas: list[Bench]) -> Bench:
    return replicas[0]


@pytest.fixture
def service(one: Bench) -> Any:
    return one.service


def start(service: Any, provider: FakeProvider, origin: Any = HERE, link: bool = False) -> dict[str, Any]:
    return service.start_oauth(provider.name, REDIRECT_URI, link, origin)


def finish(service: Any, provider: FakeProvider, begun: dict[str, Any], **claims: Any) -> Any:
    back = provider.consent(begun["authorization_url"], **claims)
    return service.finish_oauth(provider.name, back["code"], back["state"], begun["attempt"], back.get("iss"), HERE)


def sign_in(service: Any, provider: FakeProvider, **claims: Any) -> Any:
    """Somebody signs in by the provider."""
    return finish(service, provider, start(service, provider), **(ANNS | claims))


def sign_in_by_password(service: Any, login: str = "ann@example.com") -> dict[str, Any]:
    """The origin of what somebody does who has signed in by their password, and calls from now on."""
    act_as_nobody(service)
    return act_as(service, service.login(login, PASSWORD, None, HERE))


def link(service: Any, provider: FakeProvider, login: str = "ann@example.com", **claims: Any) -> Any:
    """Somebody who is signed in links an identity."""
    origin = sign_in_by_password(service, login)
    begun = start(service, provider, origin, link=True)
    act_as_nobody(service)
    return finish(service, provider, begun, **(ANNS | claims))


def identities(database: Databases) -> list[tuple[str, str, str]]:
    rows = database.rows("auth", "SELECT * FROM identities ORDER BY provider, subject")
    return [(row["provider"], row["subject"], row["user_id"]) for row in rows]


def people(database: Databases) -> list[str]:
    return [row["user_id"] for row in database.rows("auth", "SELECT user_id FROM users ORDER BY user_id")]


# Each row of the table.


def test_an_identity_that_is_known_signs_in(
    one: Bench, service: Any, google: FakeProvider, database: Databases
) -> None:
    link(service, google)
    answer = sign_in(service, google, email=None)
    claims = auth.verify(answer["access_token"], one.settings.auth_keys)
    assert claims.identity.user_id == answer["user"]["id"] == "u-ann"
    assert claims.session_id is not None
    assert answer["refresh_token"].startswith("ert_")
    assert answer["device_token"]
    assert recorded(database, "u-ann")[-1] == "signed_in"


def test_an_identity_is_linked_to_whoever_began_while_signed_in(
    service: Any, google: FakeProvider, database: Databases
) -> None:
    assert link(service, google, email="other@example.com") is None
    assert identities(database) == [("google", "sub-ann", "u-ann")]
    assert recorded(database, "u-ann")[-1] == "identity_linked"
    (notice,) = mails(database)
    assert (notice["about"], notice["email"], notice["user_id"]) == ("identity_linked", "ann@example.com", "u-ann")
    assert link(service, google) is None  # again
    assert len(identities(database)) == 1
    assert len(mails(database)) == 1


def test_an_identity_of_another_user_is_not_linked(
    one: Bench, service: Any, google: FakeProvider, database: Databases
) -> None:
    add_people(one, ann(user_id="u-eve", email="eve@example.com"))
    link(service, google)
    with pytest.raises(IdentityTaken):
        link(service, google, "eve@example.com")
    assert identities(database) == [("google", "sub-ann", "u-ann")]


def test_a_second_identity_of_one_provider_is_not_linked(
    service: Any, google: FakeProvider, database: Databases
) -> None:
    link(service, google)
    with pytest.raises(IdentityTaken, match="Unlink it first"):
        link(service, google, sub="sub-other")
    assert len(identities(database)) == 1


def test_an_unknown_identity_whose_address_is_free_makes_a_user(
    one: Bench, service: Any, google: FakeProvider, database: Databases
) -> None:
    answer = sign_in(service, google, **NEWS)
    user_id = answer["user"]["id"]
    (user,) = database.rows("auth", "SELECT * FROM users WHERE email = 'new@example.com'")
    assert (user["user_id"], user["roles"], user["password_hash"]) == (user_id, ["customer"], None)
    assert answer["user"] == {
        "id": user_id, "email": "new@example.com", "name": "<b>N</b>ew", "roles": ["customer"],
    }  # fmt: skip
    assert identities(database) == [("google", "sub-new", user_id)]
    assert emitted(database) == [("user.created", {"user_id": user_id, "roles": ["customer"], "via": "oidc"})]
    assert recorded(database, user_id) == ["registered", "signed_in"]
    assert auth.verify(answer["access_token"], one.settings.auth_keys).identity.user_id == user_id
    assert sign_in(service, google, **NEWS)["user"]["id"] == user_id


def test_an_unknown_identity_whose_address_somebody_has_is_linked_by_mail_alone(
    one: Bench, service: Any, google: FakeProvider, database: Databases
) -> None:
    with pytest.raises(LinkRequired):
        sign_in(service, google)
    assert identities(database) == []
    (mail,) = mails(database)
    assert (mail["about"], mail["email"], mail["provider"]) == ("link", "ann@example.com", "google")
    ((type_, payload),) = emitted(database)
    assert type_ == "user.mail.requested"
    assert set(payload) == {"mail_id", "user_id", "kind", "locale"}
    token = last_token(one, database, "ann@example.com", "link")
    assert service.link_identity(token, HERE)["user"]["id"] == "u-ann"
    assert identities(database) == [("google", "sub-ann", "u-ann")]
    assert recorded(database, "u-ann") == ["identity_linked", "signed_in"]
    assert sign_in(service, google)["user"]["id"] == "u-ann"
    with pytest.raises(TokenInvalid):
        service.link_identity(token, HERE)


@pytest.mark.parametrize("claims", UNPROVEN)
@pytest.mark.parametrize("subject", ["sub-ann", "sub-new"])
def test_an_unknown_identity_without_a_proven_address_gets_nothing(
    service: Any, google: FakeProvider, database: Databases, claims: dict[str, Any], subject: str
) -> None:
    before = people(database)
    with pytest.raises(EmailUnproven):
        sign_in(service, google, **({"sub": subject} | claims))
    assert people(database) == before
    assert identities(database) == []
    assert mails(database) == []


@pytest.mark.parametrize("roles", [("operator",), ("customer", "admin"), ("auditor",)])
def test_staff_sign_in_only_by_a_provider_for_staff(
    one: Bench, service: Any, google: FakeProvider, staffs: FakeProvider, database: Databases, roles: tuple[str, ...]
) -> None:
    link(service, google)
    link(service, staffs)
    database.run("auth", "UPDATE users SET roles = :roles WHERE user_id = 'u-ann'", roles=list(roles))
    with pytest.raises(Forbidden):
        sign_in(service, google)
    assert sign_in(service, staffs)["user"]["roles"] == list(roles)


def test_staff_link_only_a_provider_for_staff(
    one: Bench, service: Any, google: FakeProvider, staffs: FakeProvider, database: Databases
) -> None:
    bobs = {"sub": "sub-bob", "email": "bob@example.com"}
    for attempt in (sign_in, lambda *args, **claims: link(*args, "bob", **claims)):
        with pytest.raises(Forbidden):
            attempt(service, google, **bobs)
    assert mails(database) == []
    with pytest.raises(LinkRequired):
        sign_in(service, staffs, **bobs)
    assert service.link_identity(last_token(one, database, "bob@example.com", "link"), HERE)["user"]["id"] == "bob"
    assert identities(database) == [("staff", "sub-bob", "bob")]


def test_who_becomes_staff_meanwhile_does_not_link_by_the_mail_of_before(
    one: Bench, service: Any, google: FakeProvider, database: Databases
) -> None:
    with pytest.raises(LinkRequired):
        sign_in(service, google)
    database.run("auth", "UPDATE users SET roles = '{operator}' WHERE user_id = 'u-ann'")
    with pytest.raises(Forbidden):
        service.link_identity(last_token(one, database, "ann@example.com", "link"), HERE)
    assert identities(database) == []


# Who may come back.


def test_nobody_is_signed_in_who_has_not_begun(service: Any, google: FakeProvider) -> None:
    """Whoever is led to come back with somebody else's code has another attempt, or none."""
    theirs, mine = start(service, google), start(service, google)
    back = google.consent(theirs["authorization_url"], **NEWS)
    for attempt, state in (
        (mine["attempt"], back["state"]),
        (str(uuid4()), back["state"]),
        (theirs["attempt"], back["state"][:-1]),
    ):
        with pytest.raises(BadRequest):
            service.finish_oauth("google", back["code"], state, attempt, None, HERE)
    with pytest.raises(BadRequest):
        service.finish_oauth("staff", back["code"], back["state"], theirs["attempt"], None, HERE)
    assert "/token" not in google.asked
    assert service.finish_oauth("google", back["code"], back["state"], theirs["attempt"], None, HERE)
    with pytest.raises(BadRequest):
        service.finish_oauth("google", back["code"], back["state"], theirs["attempt"], None, HERE)


def test_a_sign_in_that_takes_too_long_is_over(service: Any, google: FakeProvider, database: Databases) -> None:
    begun = start(service, google)
    (kept,) = database.rows("auth", "SELECT expires_at - now() AS life, state_hash, link_user_id FROM oauth_attempts")
    assert 590 < kept["life"].total_seconds() <= 600
    assert kept["link_user_id"] is None
    database.run("auth", "UPDATE oauth_attempts SET expires_at = now()")
    with pytest.raises(BadRequest):
        finish(service, google, begun, **NEWS)


def test_a_code_comes_back_only_to_an_address_that_is_listed(service: Any, google: FakeProvider) -> None:
    for uri in ("https://evil.example/", f"{REDIRECT_URI}/", f"{REDIRECT_URI}?a=1", REDIRECT_URI.upper(), ""):
        with pytest.raises(ValidationFailed) as caught:
            service.start_oauth("google", uri, False, HERE)
        assert "redirect_uri" in caught.value.details
    with pytest.raises(ValidationFailed) as caught:
        service.start_oauth("nobody", REDIRECT_URI, False, HERE)
    assert "provider" in caught.value.details


def test_what_the_provider_does_not_prove_signs_nobody_in(
    service: Any, google: FakeProvider, database: Databases
) -> None:
    link(service, google)
    for wrong in ({"nonce": "another"}, {"aud": "another"}, {"iss": "https://accounts.google.com"}, {"exp": 1}):
        google.claims = wrong
        with pytest.raises(IdentityRefused):
            sign_in(service, google)
    google.claims = {}
    assert recorded(database, "u-ann").count("signed_in") == 1  # by password


def test_the_same_subject_of_another_provider_is_somebody_else(
    service: Any, google: FakeProvider, staffs: FakeProvider
) -> None:
    link(service, google)
    with pytest.raises(LinkRequired):
        sign_in(service, staffs)


@pytest.mark.parametrize("change", ["disabled = true", "erase_after = now()", "kind = 'service'"])
def test_who_may_not_sign_in_does_not_by_a_provider(
    one: Bench, service: Any, google: FakeProvider, staffs: FakeProvider, database: Databases, change: str
) -> None:
    link(service, google)
    with pytest.raises(LinkRequired):
        sign_in(service, staffs)
    token = last_token(one, database, "ann@example.com", "link")
    database.run("auth", f"UPDATE users SET {change} WHERE user_id = 'u-ann'")
    for provider in (google, staffs):
        with pytest.raises(IdentityRefused):
            sign_in(service, provider)
    with pytest.raises(TokenInvalid):
        service.link_identity(token, HERE)
    assert len(identities(database)) == 1


# Linking.


@pytest.mark.parametrize("change", ["created_at = created_at - interval '10 minutes'", "ended_at = now()"])
def test_only_a_fresh_session_links(service: Any, google: FakeProvider, database: Databases, change: str) -> None:
    origin = sign_in_by_password(service)
    database.run("auth", f"UPDATE sessions SET {change}")
    with pytest.raises(SignInAgain):
        start(service, google, origin, link=True)
    with pytest.raises(SignInAgain):
        start(service, google, {**origin, "session_id": None}, link=True)


def test_a_session_of_another_user_links_nothing(service: Any, google: FakeProvider) -> None:
    origin = sign_in_by_password(service)
    sign_in_by_password(service, "bob")
    with pytest.raises(SignInAgain):
        start(service, google, origin, link=True)


def test_who_was_signed_out_meanwhile_links_nothing(service: Any, google: FakeProvider, database: Databases) -> None:
    """Whoever has stolen a session cannot turn it into a way in that outlives it."""
    begun = start(service, google, sign_in_by_password(service), link=True)
    database.run("auth", "UPDATE sessions SET ended_at = now(), ended_why = 'logout'")
    act_as_nobody(service)
    with pytest.raises(IdentityRefused):
        finish(service, google, begun, **ANNS)
    assert identities(database) == []


def test_a_link_by_mail_is_of_no_use_once_the_address_is_another(
    one: Bench, service: Any, google: FakeProvider, database: Databases
) -> None:
    with pytest.raises(LinkRequired):
        sign_in(service, google)
    token = last_token(one, database, "ann@example.com", "link")
    database.run("auth", "UPDATE users SET email = 'ann@other.example' WHERE user_id = 'u-ann'")
    with pytest.raises(TokenInvalid):
        service.link_identity(token, HERE)
    assert identities(database) == []


def test_a_link_by_mail_takes_no_identity_that_somebody_has_by_now(
    one: Bench, service: Any, google: FakeProvider, database: Databases
) -> None:
    with pytest.raises(LinkRequired):
        sign_in(service, google)
    token = last_token(one, database, "ann@example.com", "link")
    database.run("auth", "INSERT INTO identities (provider, subject, user_id) VALUES ('google', 'sub-ann', 'bob')")
    with pytest.raises(IdentityTaken):
        service.link_identity(token, HERE)
    database.run("auth", "UPDATE identities SET user_id = 'u-ann'")
    assert service.link_identity(token, HERE)["user"]["id"] == "u-ann"


def test_no_flood_of_mails_is_sent_to_an_address(service: Any, google: FakeProvider, database: Databases) -> None:
    for _ in range(5):
        with pytest.raises(LinkRequired):
            sign_in(service, google)
    assert len(mails(database)) == 3


def test_what_is_linked_is_listed_and_unlinked(service: Any, google: FakeProvider, database: Databases) -> None:
    link(service, google)
    origin = sign_in_by_password(service)
    ((listed),) = service.identities()["items"]
    assert listed["provider"] == "google"
    service.unlink_identity("google", origin)
    assert service.identities() == {"items": []}
    assert recorded(database, "u-ann")[-1] == "identity_unlinked"
    with pytest.raises(NotFound):
        service.unlink_identity("google", origin)
    act_as_nobody(service)
    with pytest.raises(LinkRequired):
        sign_in(service, google)


def test_the_only_way_in_stays(service: Any, google: FakeProvider, database: Databases) -> None:
    origin = act_as(service, sign_in(service, google, **NEWS))
    with pytest.raises(Conflict):
        service.unlink_identity("google", origin)
    assert len(identities(database)) == 1


# Several at once.


def test_one_user_is_made_of_many_who_come_at_once(
    replicas: list[Bench], google: FakeProvider, database: Databases
) -> None:
    services = [one.service for one in replicas] * 4
    begun = [start(service, google) for service in services]
    backs = [google.consent(one["authorization_url"], **NEWS) for one in begun]
    runs = [
        eventlet.spawn(service.finish_oauth, "google", back["code"], back["state"], one["attempt"], None, HERE)
        for service, one, back in zip(services, begun, backs, strict=True)
    ]
    assert len({run.wait()["user"]["id"] for run in runs}) == 1
    assert len(identities(database)) == 1
    assert [type_ for type_, _ in emitted(database)] == ["user.created"]


def test_an_attempt_works_once_however_many_bring_it(
    replicas: list[Bench], google: FakeProvider, database: Databases
) -> None:
    begun = start(replicas[0].service, google)
    back = google.consent(begun["authorization_url"], **NEWS)

    def come_back(service: Any) -> bool:
        try:
            service.finish_oauth("google", back["code"], back["state"], begun["attempt"], None, HERE)
        except BadRequest:
            return False
        return True

    runs = [eventlet.spawn(come_back, one.service) for one in replicas * 4]
    assert sorted(run.wait() for run in runs) == [False] * 7 + [True]


def test_no_transaction_is_open_while_a_provider_is_asked(
    service: Any, google: FakeProvider, database: Databases
) -> None:
    google.pause_s = 0.3
    run = eventlet.spawn(sign_in, service, google, **NEWS)
    while not run.dead:
        busy = database.rows(
            "auth",
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND state LIKE 'idle in transaction%' AND now() - state_change > interval '0.1 s'",
        )
        assert busy == []
        eventlet.sleep(0.05)
    assert run.wait()["user"]["email"] == "new@example.com"


def test_what_signing_in_by_a_provider_costs(one: Bench, service: Any, google: FakeProvider) -> None:
    with statements(one) as sent:
        begun = start(service, google)
    assert len(sent) == 1
    with statements(one) as sent:
        finish(service, google, begun, **NEWS)
    assert len(sent) == 7  # attempt, facts, user, identity, record, event, session
    with statements(one) as sent:
        sign_in(service, google, **NEWS)
    assert len(sent) == 5  # two attempts, facts, user, session
    assert_read_by_index(one, [sent[1], sent[2], sent[3]], most=1)


def test_neither_log_nor_event_names_who_signs_in(
    service: Any, google: FakeProvider, database: Databases, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    sign_in(service, google, **NEWS)
    with pytest.raises(LinkRequired):
        sign_in(service, google)
    google.claims = {"nonce": "another"}
    with pytest.raises(IdentityRefused):
        sign_in(service, google, **NEWS)
    said = caplog.text + json.dumps(database.rows("auth", "SELECT body FROM outbox"))
    said += json.dumps(database.rows("auth", "SELECT details FROM auth_events"))
    for word in ("example.com", "sub-new", "sub-ann", "ert_", "Ann A."):
        assert word.lower() not in said.lower()
