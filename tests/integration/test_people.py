"""People on a real database: pages, roles, shutting out, and what each of these leaves behind."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import eventlet
import pytest

from shared.errors import (
    Conflict,
    EcomError,
    InvalidCursor,
    LastAdmin,
    NotFound,
    OwnRoles,
    RoleMissing,
    ServiceRole,
    ValidationFailed,
)
from shared.events import Identity
from shared.ids import aggregate_of
from tests.databases import Databases
from tests.integration.support import SYSTEM, Bench, assert_read_by_index, statements

Benches = Callable[..., Bench]

ANN, BOB = Identity("ann", ("admin",)), Identity("bob", ("admin",))
SESSION_ID = str(uuid4())
ORIGIN = {"network": "203.0.113.7", "client": "a test", "session_id": SESSION_ID}


@pytest.fixture
def auth(bench: Benches, database: Databases) -> Bench:
    """The auth service with two admins, called by one of them."""
    made = bench("auth")
    for name in ("ann", "bob"):
        add(database, name, "admin", name=name)
    made.called_by(ANN)
    return made


def add(database: Databases, user_id: str, *roles: str, **columns: Any) -> None:
    """Put a user into the table."""
    columns = {"user_id": user_id, "roles": list(roles), **columns}
    names, values = ", ".join(columns), ", ".join(f":its_{column}" for column in columns)
    given = {f"its_{column}": value for column, value in columns.items()}
    database.run("auth", f"INSERT INTO users ({names}) VALUES ({values})", **given)


def sign_in(database: Databases, user_id: str) -> None:
    """Open a session of a user."""
    database.run(
        "auth",
        "INSERT INTO sessions (session_id, user_id, kind, kid, client, network, expires_at, ends_at)"
        " VALUES (gen_random_uuid(), :user_id, 'api', 'k', '', '', now() + interval '1 h', now() + interval '1 h')",
        user_id=user_id,
    )


def user(database: Databases, user_id: str) -> dict[str, Any]:
    (row,) = database.rows("auth", "SELECT * FROM users WHERE user_id = :user_id", user_id=user_id)
    return row


def left_behind(database: Databases) -> tuple[list[Any], list[Any], list[Any]]:
    """The records (event, user, actor, details), the revocations (user, version) and the events (type, payload)."""
    records = database.rows("auth", "SELECT event, user_id, actor_id, details FROM auth_events ORDER BY id")
    revoked = database.rows("auth", "SELECT user_id, version FROM revocations ORDER BY id")
    events = database.rows("auth", "SELECT event_type, body FROM outbox ORDER BY id")
    return (
        [tuple(row.values()) for row in records],
        [tuple(row.values()) for row in revoked],
        [(row["event_type"], json.loads(row["body"])["payload"]) for row in events],
    )


def live_sessions(database: Databases, user_id: str) -> int:
    statement = "SELECT count(*) AS n FROM sessions WHERE user_id = :user_id AND ended_at IS NULL"
    return int(database.rows("auth", statement, user_id=user_id)[0]["n"])


# Pages


def test_a_walk_through_the_pages_meets_everybody_once(auth: Bench, database: Databases) -> None:
    for number in range(7):
        add(database, f"user-{number}", "customer", email=f"user-{number}@example.com")
    met, cursor = [], None
    for _ in range(9):
        page = auth.service.list_people(2, cursor)
        met += [item["user_id"] for item in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert met == ["ann", "bob", *(f"user-{number}" for number in range(7))]


def test_people_are_found_by_address_in_any_case_and_by_role(auth: Bench, database: Databases) -> None:
    add(database, "eve", "customer", "auditor", email="eve@example.com", display_name="Eve")
    add(database, "service:till", "service", kind="service")

    def found(**filters: str) -> list[str]:
        return [item["user_id"] for item in auth.service.list_people(10, None, filters)["items"]]

    assert found(email="Eve@Example.com") == found(role="auditor") == ["eve"]
    assert found(email="nobody@example.com") == found(email="eve@example.com", role="admin") == []
    assert found(role="service") == ["service:till"]


def test_a_cursor_of_other_filters_is_refused(auth: Bench) -> None:
    cursor = auth.service.list_people(1, None, {"role": "admin"})["next_cursor"]
    assert [item["user_id"] for item in auth.service.list_people(1, cursor, {"role": "admin"})["items"]] == ["bob"]
    with pytest.raises(InvalidCursor):
        auth.service.list_people(1, cursor, {"role": "customer"})


def test_a_person_is_shown_by_the_name_that_they_gave_themselves_and_without_secrets(
    auth: Bench, database: Databases
) -> None:
    add(database, "eve", "customer", email="eve@example.com", display_name="Eve", password_hash="a hash")
    shown = auth.service.get_person("eve")
    assert shown == {
        "user_id": "eve",
        "name": "Eve",
        "email": "eve@example.com",
        "roles": ["customer"],
        "kind": "person",
        "disabled": False,
        "created_at": shown["created_at"],
    }
    assert auth.service.get_person("ann")["name"] == "ann"
    with pytest.raises(NotFound):
        auth.service.get_person("nobody")


@pytest.mark.parametrize("column", ["erase_after", "erased_at"])
def test_a_person_who_is_erased_or_about_to_be_is_shown_as_disabled_and_stays_so(
    auth: Bench, database: Databases, column: str
) -> None:
    add(database, "eve", "customer", **{column: "2026-01-14"})
    assert auth.service.get_person("eve")["disabled"]
    with pytest.raises(Conflict):
        auth.service.enable_person("eve", "please", ORIGIN)


def test_pages_are_read_by_index_and_not_much_more_than_they_hold(auth: Bench, database: Databases) -> None:
    database.run(
        "auth",
        "INSERT INTO users (user_id, email, roles) SELECT 'u' || lpad(n::text, 5, '0'), n || '@example.com',"
        " CASE WHEN n % 1000 = 0 THEN '{auditor}' ELSE '{customer}' END::text[] FROM generate_series(1, 5000) AS n",
    )
    database.run(
        "auth",
        "INSERT INTO auth_events (event, user_id, details) SELECT 'signed_in', 'u' || lpad((n % 50)::text, 5, '0'),"
        " '{}' FROM generate_series(1, 10000) AS n",
    )
    for table in ("users", "auth_events"):
        database.run("auth", f"ANALYZE {table}")
    first = auth.service.list_people(20)["next_cursor"]
    with statements(auth) as sent:
        auth.service.list_people(20, first)
        auth.service.list_people(20, None, {"role": "customer"})
        auth.service.list_people(20, None, {"role": "auditor"})
        auth.service.list_people(20, None, {"email": "4711@example.com"})
        auth.service.person_events("u00007", 20)
        auth.service.people([f"u{number:05}" for number in range(1, 101)])
    assert len(sent) == 6
    assert_read_by_index(auth, sent, most=100)
    with statements(auth) as sent:
        auth.service.end_sessions_of("u00008", ORIGIN)
        auth.service.put_roles("u00007", ["operator"], "", ORIGIN)
    assert len(sent) == 5 + 6
    assert_read_by_index(auth, [one for one in sent if one[0].startswith("SELECT")], most=20)


# Roles


def test_new_roles_end_all_tokens_of_before_and_no_session(auth: Bench, database: Databases) -> None:
    add(database, "eve", "auditor", name="eve", email="eve@example.com")
    sign_in(database, "eve")

    shown = auth.service.put_roles("eve", ["ROLE_OPERATOR", "customer"], "new at the counter", ORIGIN)

    assert shown["roles"] == user(database, "eve")["roles"] == ["operator", "customer"]
    details = {"roles": ["operator", "customer"], "before": ["auditor"], "reason": "new at the counter"}
    assert left_behind(database) == (
        [("roles_changed", "eve", "ann", details)],
        [("eve", 2)],
        [("user.role_changed", {"user_id": "eve", "roles": ["operator", "customer"], "version": 2})],
    )
    (record,) = database.rows("auth", "SELECT session_id, network FROM auth_events")
    assert (str(record["session_id"]), record["network"]) == (SESSION_ID, "203.0.113.7")
    (event,) = database.rows("auth", "SELECT aggregate_id, body FROM outbox")
    assert str(event["aggregate_id"]) == str(aggregate_of("user", "eve"))
    assert json.loads(event["body"])["identity"] == {"user_id": "ann", "roles": ["admin"]}
    assert live_sessions(database, "eve") == 1


def test_the_same_roles_change_nothing(auth: Bench, database: Databases) -> None:
    add(database, "eve", "customer", "operator")
    assert auth.service.put_roles("eve", ["operator", "customer"], "", ORIGIN)["roles"] == ["customer", "operator"]
    assert left_behind(database) == ([], [], [])
    assert user(database, "eve")["version"] == 1


@pytest.mark.parametrize(
    ("user_id", "roles", "error"),
    [
        ("ann", ["admin", "auditor"], OwnRoles),
        ("eve", ["service"], ServiceRole),
        ("service:till", ["admin"], ServiceRole),
        ("eve", ["boss"], ValidationFailed),
        ("nobody", ["customer"], NotFound),
    ],
)
def test_refused_roles_leave_nothing_behind(
    auth: Bench, database: Databases, user_id: str, roles: list[str], error: type[EcomError]
) -> None:
    add(database, "eve", "customer")
    add(database, "service:till", "service", kind="service")
    with pytest.raises(error):
        auth.service.put_roles(user_id, roles, "", ORIGIN)
    assert left_behind(database) == ([], [], [])


@pytest.mark.parametrize(
    "others",
    [{"disabled": True}, {"erase_after": "2026-01-14"}, {"erased_at": "2026-01-14"}],
    ids=lambda others: next(iter(others)),
)
def test_an_admin_who_may_not_sign_in_does_not_count_as_one_who_stays(
    auth: Bench, database: Databases, others: dict[str, Any]
) -> None:
    ((column, value),) = others.items()
    database.run("auth", f"UPDATE users SET {column} = :value WHERE user_id = 'bob'", value=value)
    auth.called_by(Identity("ann@till", ("admin",)))  # somebody who is no user
    for change in (
        lambda: auth.service.put_roles("ann", ["auditor"], "", ORIGIN),
        lambda: auth.service.disable_person("ann", "left", ORIGIN),
    ):
        with pytest.raises(LastAdmin):
            change()
    assert left_behind(database) == ([], [], [])


@pytest.mark.parametrize("verb", ["put_roles", "disable_person"])
def test_of_two_admins_who_shut_each_other_out_at_once_one_stays(
    bench: Benches, auth: Bench, database: Databases, verb: str
) -> None:
    other = bench("auth")
    other.called_by(BOB)
    # Whoever is first waits before the commit, so that the other one has begun by then.
    slowly = "RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.3); RETURN NEW; END $$"
    database.run("auth", f"CREATE FUNCTION slowly() {slowly}")
    database.run("auth", "CREATE TRIGGER slowly BEFORE UPDATE ON users FOR EACH ROW EXECUTE FUNCTION slowly()")
    given = ([],) if verb == "put_roles" else ()
    try:
        both = [
            eventlet.spawn(getattr(one.service, verb), user_id, *given, "a quarrel", ORIGIN)
            for one, user_id in ((auth, "bob"), (other, "ann"))
        ]
        outcomes = []
        for one in both:
            try:
                outcomes.append(one.wait()["user_id"])
            except RoleMissing:
                outcomes.append(None)
    finally:
        database.run("auth", "DROP FUNCTION slowly CASCADE")
    assert sorted(map(bool, outcomes)) == [False, True]
    active = "SELECT user_id FROM users WHERE 'admin' = ANY(roles) AND NOT disabled"
    assert len(database.rows("auth", active)) == 1
    assert len(left_behind(database)[0]) == 1


@pytest.mark.parametrize(
    ("before", "after", "live"),
    [
        ("customer", ["auditor"], 0),
        ("customer", ["customer", "operator"], 0),
        ("auditor", ["auditor", "operator"], 1),
        ("auditor", ["customer"], 1),
    ],
)
def test_the_sessions_of_a_customer_who_becomes_staff_end_and_no_others(
    auth: Bench, database: Databases, before: str, after: list[str], live: int
) -> None:
    """Not every provider that may sign in customers may sign in staff."""
    add(database, "eve", before)
    sign_in(database, "eve")
    auth.service.put_roles("eve", after, "", ORIGIN)
    assert live_sessions(database, "eve") == live


# Shutting out


def test_a_disabled_person_loses_all_sessions_and_tokens_until_they_are_enabled(
    auth: Bench, database: Databases
) -> None:
    add(database, "eve", "customer", name="eve", email="eve@example.com")
    sign_in(database, "eve")
    sign_in(database, "eve")

    assert auth.service.disable_person("eve", "left", ORIGIN)["disabled"]
    assert auth.service.disable_person("eve", "again", ORIGIN)["disabled"]

    assert live_sessions(database, "eve") == 0
    assert {row["ended_why"] for row in database.rows("auth", "SELECT ended_why FROM sessions")} == {"disabled"}
    assert not auth.service.enable_person("eve", "came back", ORIGIN)["disabled"]
    assert not auth.service.enable_person("eve", "again", ORIGIN)["disabled"]
    assert left_behind(database) == (
        [
            ("disabled", "eve", "ann", {"reason": "left"}),
            ("enabled", "eve", "ann", {"reason": "came back"}),
        ],
        [("eve", 2)],
        [("user.disabled", {"user_id": "eve"}), ("user.enabled", {"user_id": "eve"})],
    )
    assert (live_sessions(database, "eve"), user(database, "eve")["version"]) == (0, 2)


@pytest.mark.parametrize("verb", ["disable_person", "enable_person"])
def test_nobody_disables_or_enables_themselves_or_whom_there_is_not(auth: Bench, verb: str) -> None:
    with pytest.raises(OwnRoles):
        getattr(auth.service, verb)("ann", "a test", ORIGIN)
    with pytest.raises(NotFound):
        getattr(auth.service, verb)("nobody", "a test", ORIGIN)


def test_ending_all_sessions_of_a_person_lets_them_sign_in_again(auth: Bench, database: Databases) -> None:
    add(database, "eve", "customer")
    sign_in(database, "eve")
    auth.service.end_sessions_of("eve", ORIGIN)
    assert (live_sessions(database, "eve"), user(database, "eve")["disabled"]) == (0, False)
    assert left_behind(database) == ([("sessions_ended", "eve", "ann", {})], [("eve", 2)], [])
    with pytest.raises(NotFound):
        auth.service.end_sessions_of("nobody", ORIGIN)


def test_a_service_whose_user_is_disabled_is_enabled_again_with_its_role(auth: Bench, database: Databases) -> None:
    add(database, "service:till", "service", kind="service")
    assert auth.service.disable_person("service:till", "a leaked key", ORIGIN)["disabled"]
    assert auth.service.enable_person("service:till", "new keys", ORIGIN)["roles"] == ["service"]


def test_a_service_whose_key_has_the_role_changes_people_until_it_is_disabled(auth: Bench, database: Databases) -> None:
    add(database, "eve", "customer")
    add(database, "service:hr", "service", kind="service")
    auth.called_by(Identity("service:hr", ("admin",)))  # as the token of such a key says
    assert auth.service.put_roles("eve", ["operator"], "", ORIGIN)["roles"] == ["operator"]
    database.run("auth", "UPDATE users SET disabled = true WHERE user_id = 'service:hr'")
    with pytest.raises(RoleMissing):
        auth.service.put_roles("eve", ["customer"], "", ORIGIN)


# Looking up


def test_looking_people_up_is_recorded_with_whom_has_asked(auth: Bench, database: Databases) -> None:
    add(database, "eve", "customer", email="eve@example.com", display_name="Eve")
    auth.called_by(Identity("olga", ("operator",)))

    found = auth.service.look_up_people(["eve", "nobody", "ann"], ORIGIN)["items"]

    assert [(item["user_id"], item["name"], item["email"]) for item in found] == [
        ("ann", "ann", None),
        ("eve", "Eve", "eve@example.com"),
    ]
    assert left_behind(database)[0] == [("looked_up", "olga", "olga", {"ids": ["ann", "eve"]})]


def test_a_service_asks_for_people_without_a_record(auth: Bench, database: Databases) -> None:
    auth.called_by(SYSTEM)
    assert [item["user_id"] for item in auth.service.people(["bob", "nobody"])["items"]] == ["bob"]
    assert left_behind(database)[0] == []


@pytest.mark.parametrize("ids", [[], ["ann"] * 101])
def test_none_or_more_than_100_people_at_once_are_refused(auth: Bench, ids: list[str]) -> None:
    for ask in (auth.service.people, lambda ids: auth.service.look_up_people(ids, ORIGIN)):
        with pytest.raises(ValidationFailed):
            ask(ids)


def test_what_was_done_with_an_account_is_read_newest_first(auth: Bench, database: Databases) -> None:
    add(database, "eve", "customer")
    auth.service.put_roles("eve", ["auditor"], "promoted", ORIGIN)
    auth.service.disable_person("eve", "left", ORIGIN)
    auth.service.put_roles("bob", ["admin", "auditor"], "", ORIGIN)
    auth.called_by(Identity("aud", ("auditor",)))

    first = auth.service.person_events("eve", 1)
    second = auth.service.person_events("eve", 1, first["next_cursor"])

    assert [item["event"] for item in first["items"] + second["items"]] == ["disabled", "roles_changed"]
    assert second["next_cursor"] is None
    (item,) = second["items"]
    assert (item["actor_id"], item["network"], item["session_id"]) == ("ann", "203.0.113.7", SESSION_ID)
    assert item["details"]["reason"] == "promoted"
    with pytest.raises(InvalidCursor):
        auth.service.person_events("bob", 1, first["next_cursor"])
    with pytest.raises(NotFound):
        auth.service.person_events("nobody", 1)


def test_no_event_and_no_record_holds_a_name_or_an_address(auth: Bench, database: Databases) -> None:
    user_id = str(uuid4())
    add(database, user_id, "customer", email="mallory@example.com", display_name="Mallory", name="mal")
    auth.service.put_roles(user_id, ["operator"], "a reason", ORIGIN)
    auth.service.disable_person(user_id, "a reason", ORIGIN)
    auth.service.enable_person(user_id, "a reason", ORIGIN)
    auth.service.end_sessions_of(user_id, ORIGIN)
    auth.service.look_up_people([user_id], ORIGIN)
    for table in ("auth_events", "outbox", "revocations"):
        rows = str(database.rows("auth", f"SELECT * FROM {table}"))
        assert user_id in rows
        assert not {"mallory", "mallory@example.com"} & {*re.findall(r"[\w.@]+", rows.lower())}
