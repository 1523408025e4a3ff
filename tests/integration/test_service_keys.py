"""Keys of services on a real database."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import eventlet
import pytest

from shared import auth
from shared.errors import InvalidCursor, InvalidGrant, NotFound, RoleMissing, ValidationFailed
from shared.events import Identity
from tests.databases import Databases
from tests.integration.support import ADMIN, Bench, assert_read_by_index, statements
from tests.integration.test_sessions import HERE, told


@pytest.fixture
def auth_bench(bench: Callable[..., Bench]) -> Bench:
    return bench("auth")


@pytest.fixture
def service(auth_bench: Bench) -> Any:
    return auth_bench.service


def in_time(**later: float) -> str:
    return (datetime.now(UTC) + timedelta(**later)).isoformat()


def make(service: Any, name: str = "till", roles: tuple[str, ...] = ("service",), **later: float) -> dict[str, Any]:
    return dict(service.create_key(name, list(roles), in_time(**later or {"days": 30}), HERE))


def claims_of(service: Any, answer: dict[str, Any]) -> auth.Claims:
    return auth.verify(answer["access_token"], service.settings.auth_keys)


def test_a_key_is_exchanged_for_a_token_of_its_service_with_its_roles(service: Any, database: Databases) -> None:
    made = make(service, roles=("ROLE_SERVICE", "operator"))
    answer = service.exchange_key("till", made["key"])
    claims = claims_of(service, answer)
    assert claims.identity == Identity("service:till", ("service", "operator"))
    assert (claims.version, claims.session_id, answer["expires_in"]) == (1, None, 900)
    (user,) = database.rows("auth", "SELECT * FROM users")
    assert (user["user_id"], user["name"], user["email"], user["kind"]) == ("service:till", None, None, "service")


def test_nothing_that_is_stored_or_published_holds_the_key(service: Any, database: Databases) -> None:
    secret = make(service)["key"].split("_", 2)[2]
    for table in ("api_keys", "users", "auth_events", "outbox"):
        assert secret not in json.dumps(database.rows("auth", f"SELECT * FROM {table}"), default=str)


def test_a_service_is_made_with_its_first_key_and_told_once(
    auth_bench: Bench, service: Any, database: Databases
) -> None:
    runs = [eventlet.spawn(make, service) for _ in range(5)]
    assert len({run.wait()["key"] for run in runs}) == 5
    (event,) = database.rows("auth", "SELECT event_type, body FROM outbox")
    assert event["event_type"] == "user.created"
    assert json.loads(event["body"])["payload"] == {"user_id": "service:till", "roles": ["service"], "via": "admin"}
    recorded = database.rows("auth", "SELECT * FROM auth_events ORDER BY id")
    assert {(row["event"], row["user_id"], row["actor_id"]) for row in recorded} == {
        ("key_created", "service:till", ADMIN.user_id)
    }
    assert recorded[0]["details"].keys() == {"key_id", "roles"}


def test_an_exchange_is_one_statement_but_the_first_of_a_day(auth_bench: Bench, database: Databases) -> None:
    made = make(auth_bench.service)
    for expected in (2, 1, 1):
        with statements(auth_bench) as sent:
            auth_bench.service.exchange_key("till", made["key"])
        assert len(sent) == expected
    (row,) = database.rows("auth", "SELECT last_used_on = current_date AS today FROM api_keys")
    assert row["today"]


def test_every_fault_of_a_key_has_the_same_words(service: Any, database: Databases) -> None:
    good, other = make(service)["key"], make(service, "other")["key"]
    ended, revoked = make(service), make(service)
    database.run("auth", "UPDATE api_keys SET expires_at = now() WHERE key_id = :id", id=ended["key_id"])
    service.revoke_key("till", revoked["key_id"], HERE)
    mixed = good[:36] + other[36:]
    wrong = good[:-1] + ("A" if good[-1] != "A" else "B")
    tries = [
        *(("till", key) for key in (other, ended["key"], revoked["key"], mixed, wrong, "", "ek_", "x" * 5000)),
        *((name, good) for name in ("other", "", "Till", "service:till", "x" * 300, "ti\0ll")),
    ]
    words = set()
    for name, key in tries:
        with pytest.raises(InvalidGrant) as caught:
            service.exchange_key(name, key)
        words.add((caught.value.message, str(caught.value.details)))
    assert len(words) == 1
    assert service.exchange_key("till", good)


def test_what_is_no_key_costs_no_sql(auth_bench: Bench) -> None:
    with statements(auth_bench) as sent, pytest.raises(InvalidGrant):
        auth_bench.service.exchange_key("till", "ek_nonsense")
    assert sent == []


def test_a_service_that_is_disabled_gets_no_token(service: Any, database: Databases) -> None:
    key = make(service)["key"]
    database.run("auth", "UPDATE users SET disabled = true")
    with pytest.raises(InvalidGrant):
        service.exchange_key("till", key)


def test_a_token_ends_with_its_key(service: Any, database: Databases) -> None:
    made = make(service, minutes=5)
    answer = service.exchange_key("till", made["key"])
    assert 290 <= answer["expires_in"] <= 300
    assert claims_of(service, answer).expires_at - claims_of(service, answer).issued_at == answer["expires_in"]
    database.run("auth", "UPDATE api_keys SET expires_at = now() + interval '0.9 seconds'")
    assert service.exchange_key("till", made["key"])["expires_in"] == 1


def test_a_revoked_key_ends_every_token_of_its_service_and_no_other_key(
    auth_bench: Bench, service: Any, database: Databases
) -> None:
    first, second, other = make(service), make(service), make(service, "other")
    before = [claims_of(service, service.exchange_key("till", made["key"])) for made in (first, second)]
    elsewhere = claims_of(service, service.exchange_key("other", other["key"]))
    for _ in range(2):  # again: it is revoked already
        service.revoke_key("till", first["key_id"], HERE)
    after = claims_of(service, service.exchange_key("till", second["key"]))
    known = told(auth_bench)
    revoked = [known.is_revoked(one.identity.user_id, one.version, None) for one in (*before, after, elsewhere)]
    assert revoked == [True, True, False, False]
    (record,) = database.rows("auth", "SELECT * FROM auth_events WHERE event = 'key_revoked'")
    assert (record["actor_id"], record["details"]) == (ADMIN.user_id, {"key_id": first["key_id"]})
    assert len(database.rows("auth", "SELECT 1 FROM revocations")) == 1


def test_a_key_of_another_service_is_not_found(service: Any) -> None:
    made = make(service)
    make(service, "other")
    for name, key_id in (("other", made["key_id"]), ("nobody", made["key_id"]), ("till", "0" * 32)):
        with pytest.raises(NotFound):
            service.revoke_key(name, key_id, HERE)
    assert service.exchange_key("till", made["key"])


def test_keys_are_listed_page_by_page_without_their_secrets(service: Any) -> None:
    made = [make(service) for _ in range(3)]
    make(service, "other")
    service.exchange_key("till", made[1]["key"])
    service.revoke_key("till", made[0]["key_id"], HERE)
    first = service.list_keys("till", 2, None)
    second = service.list_keys("till", 2, first["next_cursor"])
    listed = first["items"] + second["items"]
    assert second["next_cursor"] is None
    assert [item["key_id"] for item in listed] == sorted((one["key_id"] for one in made), reverse=True)
    by_id = {item["key_id"]: item for item in listed}
    assert [bool(by_id[one["key_id"]]["revoked_at"]) for one in made] == [True, False, False]
    assert [bool(by_id[one["key_id"]]["last_used_on"]) for one in made] == [False, True, False]
    assert {item["created_by"] for item in listed} == {ADMIN.user_id}
    assert not any(one["key"].split("_", 2)[2] in str(listed) for one in made)


def test_a_page_of_keys_is_read_by_an_index(auth_bench: Bench, database: Databases) -> None:
    make(auth_bench.service)
    make(auth_bench.service, "other")
    database.run(
        "auth",
        "INSERT INTO api_keys (key_id, user_id, secret_hash, roles, created_by, expires_at)"
        " SELECT md5(n::text), CASE WHEN n % 50 = 0 THEN 'service:till' ELSE 'service:other' END, '', '{}', '', now()"
        " FROM generate_series(1, 5000) AS n",
    )
    database.run("auth", "ANALYZE api_keys")
    with statements(auth_bench) as sent:
        auth_bench.service.list_keys("till", 20, None)
    assert_read_by_index(auth_bench, sent, most=21)


def test_a_cursor_of_another_service_is_refused(service: Any) -> None:
    for name in ("till", "till", "other"):
        make(service, name)
    cursor = service.list_keys("till", 1, None)["next_cursor"]
    with pytest.raises(InvalidCursor):
        service.list_keys("other", 1, cursor)


def test_a_service_that_nobody_has_made_is_not_found(service: Any) -> None:
    with pytest.raises(NotFound):
        service.list_keys("nobody", 10, None)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": "Till"}, "name"),
        ({"roles": ("cook",)}, "roles"),
        ({"days": 367}, "expires_at"),
        ({"seconds": -1}, "expires_at"),
    ],
)
def test_a_key_that_may_not_be_is_refused_and_nothing_is_made(
    service: Any, database: Databases, change: dict[str, Any], field: str
) -> None:
    with pytest.raises(ValidationFailed) as caught:
        make(service, **change)
    assert caught.value.details.keys() == {field}
    assert database.rows("auth", "SELECT 1 FROM users") == []


@pytest.mark.parametrize("role", sorted(set(auth.ROLES) - {"admin"}))
def test_only_admins_manage_keys(auth_bench: Bench, role: str) -> None:
    auth_bench.called_by(Identity("somebody", (role,)))
    service = auth_bench.service
    for call in (
        lambda: make(service),
        lambda: service.list_keys("till", 10, None),
        lambda: service.revoke_key("till", "0" * 32, HERE),
    ):
        with pytest.raises(RoleMissing):
            call()
