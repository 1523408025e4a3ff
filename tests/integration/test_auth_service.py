"""The auth service on a real database."""

import dataclasses

import eventlet
import jwt
import pytest
from argon2 import PasswordHasher
from nameko.containers import ServiceContainer

from auth_service import models, passwords
from auth_service.domain import Account
from auth_service.service import AuthService
from shared import auth
from shared.edge.context import RequestContext
from shared.edge.database import Database, Sessions
from shared.edge.runner import nameko_config
from shared.edge.webserver import WebServer
from shared.errors import Forbidden, Unauthenticated
from shared.events import Identity
from tests.integration.support import until
from tests.unit.serving import ask


@pytest.fixture
def container(settings, database, monkeypatch):
    # Hashing is slow on purpose, and each test begins by hashing the passwords of all development users.
    monkeypatch.setattr(passwords, "_HASHER", PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
    container = ServiceContainer(AuthService, nameko_config(settings, "auth") | {"WEB_SERVER_ADDRESS": "127.0.0.1:0"})
    container.start()
    server = next(item for item in container.subextensions if isinstance(item, WebServer))
    until(lambda: ask(server, "GET", "/readyz")[0] == 200)
    yield container
    container.kill()


@pytest.fixture
def service(container):
    return serve(container)


def serve(container, **changes):
    service = AuthService()
    service.settings = dataclasses.replace(container.config["settings"], **changes)
    service.db = sessions_of(container)
    service.context = RequestContext("0" * 32, Identity("shop", ("service",)))
    return service


def sessions_of(container) -> Sessions:
    return next(item for item in container.dependencies if isinstance(item, Database)).sessions


def test_a_ready_service_has_the_development_users(container, settings, database):
    assert {row["name"] for row in database.rows("auth", "SELECT name FROM users")} == set(auth.ROLES)
    service = serve(container)
    for name in auth.ROLES:
        answer = service.issue_token(name, f"demo-{name}")
        assert (answer["token_type"], answer["expires_in"]) == ("Bearer", 900)
        identity = auth.verify(answer["access_token"], settings.auth_keys).identity
        assert (identity.user_id, identity.roles) == (name, (name,))


def test_adding_development_users_does_not_change_existing_users(container, database):
    database.run("auth", "UPDATE users SET disabled = true WHERE name = 'admin'")
    database.run("auth", "DELETE FROM users WHERE name = 'auditor'")
    before = database.rows("auth", "SELECT * FROM users ORDER BY name")
    runs = [eventlet.spawn(serve(container).add_development_users) for _ in range(3)]
    for run in runs:
        run.wait()
    after = database.rows("auth", "SELECT * FROM users WHERE name <> 'auditor' ORDER BY name")
    assert after == before
    assert serve(container).issue_token("auditor", "demo-auditor")


def test_production_has_no_development_users(container, database):
    database.run("auth", "DELETE FROM users")
    serve(container, env="production").add_development_users()
    assert database.rows("auth", "SELECT name FROM users") == []


def test_production_refuses_passwords_that_the_documentation_publishes(container):
    production = serve(container, env="production")
    with pytest.raises(Unauthenticated):
        production.issue_token("admin", "demo-admin")


def test_wrong_password_unknown_name_and_disabled_user_get_the_same_error(container, service, database):
    database.run("auth", "UPDATE users SET disabled = true WHERE name = 'operator'")
    messages = set()
    for name, password in (("customer", "demo-admin"), ("nobody", "demo-nobody"), ("operator", "demo-operator")):
        with pytest.raises(Unauthenticated) as caught:
            service.issue_token(name, password)
        messages.add(str(caught.value))
    assert len(messages) == 1


def test_a_user_may_have_several_roles(container, service, settings):
    with sessions_of(container).begin() as session:
        models.add(
            session, [Account("eve", "eve", password_hash=passwords.hash_of("pw"), roles=("auditor", "operator"))]
        )
    token = service.issue_token("eve", "pw")["access_token"]
    assert auth.verify(token, settings.auth_keys).identity.roles == ("auditor", "operator")


def test_a_session_is_valid_only_for_the_dashboard_and_lasts_one_hour(service, settings):
    answer = service.issue_session("auditor", "demo-auditor")
    claims = auth.verify(answer["access_token"], settings.auth_keys, audience=auth.DASHBOARD)
    assert (claims.identity.user_id, claims.identity.roles) == ("auditor", ("auditor",))
    assert claims.expires_at - claims.issued_at == answer["expires_in"] == 3600
    with pytest.raises(Unauthenticated):
        auth.verify(answer["access_token"], settings.auth_keys)
    assert service.introspect(answer["access_token"]) == {"active": False}


def test_a_session_has_the_same_password_rules_as_a_token(container, service):
    with pytest.raises(Unauthenticated):
        service.issue_session("auditor", "demo-admin")
    with pytest.raises(Unauthenticated):
        serve(container, env="production").issue_session("auditor", "demo-auditor")


def test_mock_tokens_are_refused_if_auth_mock_is_off(container, service):
    assert service.issue_mock_token("u1", ["customer"])["access_token"]
    with pytest.raises(Forbidden):
        serve(container, auth_mock=False).issue_mock_token("u1", ["customer"])


def test_introspection_returns_the_claims_of_a_token(service):
    token = service.issue_token("customer", "demo-customer")["access_token"]
    assert service.introspect(token) == {
        **jwt.decode(token, options={"verify_signature": False}),
        "active": True,
        "token_type": "Bearer",
        "username": "customer",
        "scope": "customer",
    }


@pytest.mark.parametrize("token", ["", "nonsense", "a.b.c", "x" * 60_000])
def test_introspection_of_an_invalid_token_answers_not_active(service, token):
    assert service.introspect(token) == {"active": False}
