"""Accounts on a real database: who becomes a user, what they change, and how an account ends."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import eventlet
import pytest

from auth_service import models, passwords
from auth_service.accounts import forgetting
from auth_service.accounts.addresses import common_passwords
from auth_service.domain import Account
from shared import auth
from shared.errors import (
    Forbidden,
    InvalidCursor,
    InvalidToken,
    LastAdmin,
    NotFound,
    PasswordRefused,
    SignInPaused,
    TokenInvalid,
    Unauthenticated,
    ValidationFailed,
    WrongPassword,
)
from tests.databases import Databases
from tests.integration.people import (
    CHEAP,
    HERE,
    OTHER_PASSWORD,
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
    token_of,
)
from tests.integration.support import WAITING, Bench, statements, until


@pytest.fixture
def replicas(bench, monkeypatch: pytest.MonkeyPatch) -> list[Bench]:
    """Two replicas of auth_service with ann, a customer, and bob, an operator."""
    monkeypatch.setattr(passwords, "_HASHER", CHEAP)
    made = [bench("auth"), bench("auth")]
    add_people(made[0], ann(), bob())
    for one in made:
        act_as_nobody(one.service)
    return made


@pytest.fixture
def one(replicas: list[Bench]) -> Bench:
    return replicas[0]


@pytest.fixture
def service(one: Bench) -> Any:
    return one.service


def user(database: Databases, user_id: str = "u-ann") -> dict[str, Any]:
    return database.rows("auth", "SELECT * FROM users WHERE user_id = :u", u=user_id)[0]


def ended(database: Databases) -> list[str | None]:
    return [row["ended_why"] for row in database.rows("auth", "SELECT ended_why FROM sessions ORDER BY session_id")]


def sign_in(service: Any, login: str = "ann@example.com", password: str = PASSWORD) -> dict[str, Any]:
    return service.login(login, password, None, HERE)


def signed_in(service: Any, login: str = "ann@example.com") -> dict[str, Any]:
    """Sign in, and go on as that user: the origin of their requests."""
    return act_as(service, sign_in(service, login))


def registered(one: Bench, database: Databases, email: str = "new@example.com") -> dict[str, Any]:
    one.service.register(email, "New", "de", HERE)
    return one.service.verify_email(last_token(one, database, email, "register"), PASSWORD, None, HERE)


# Registration


def test_an_address_is_a_user_only_once_it_is_proven(one: Bench, service: Any, database: Databases) -> None:
    assert service.register("New@Example.com", "New", "de", HERE) == {}
    assert not database.rows("auth", "SELECT 1 FROM users WHERE email = 'new@example.com'")
    (mail,) = mails(database)
    assert (mail["kind"], mail["about"], mail["email"], mail["user_id"]) == (
        "register",
        "register",
        "new@example.com",
        None,
    )
    answer = service.verify_email(token_of(one, mail), PASSWORD, None, HERE)
    assert answer["user"] == {
        "id": answer["user"]["id"],
        "email": "new@example.com",
        "name": "New",
        "roles": ["customer"],
    }
    assert user(database, answer["user"]["id"])["locale"] == "de"
    assert (
        service.login("new@example.com", PASSWORD, answer["device_token"], HERE)["device_token"]
        == answer["device_token"]
    )
    assert recorded(database, answer["user"]["id"]) == ["registered", "signed_in", "signed_in"]
    mailed, created = emitted(database)
    assert mailed == (
        "user.mail.requested",
        {"mail_id": str(mail["proof_id"]), "user_id": None, "kind": "register", "locale": "de"},
    )
    assert created == (
        "user.created",
        {"user_id": answer["user"]["id"], "roles": ["customer"], "via": "register"},
    )


def test_whoever_registers_a_taken_address_gains_nothing_and_its_owner_is_told(
    service: Any, database: Databases
) -> None:
    assert service.register("ann@example.com", "Mallory", "en", HERE) == {}
    (mail,) = mails(database)
    assert (mail["kind"], mail["about"], mail["user_id"]) == ("notice", "account_exists", "u-ann")
    assert mail["display_name"] is None
    assert user(database)["display_name"] == "Ann"


def test_no_token_of_a_notice_proves_anything(one: Bench, service: Any, database: Databases) -> None:
    service.register("ann@example.com", None, "en", HERE)
    (mail,) = mails(database)
    with pytest.raises(TokenInvalid):
        service.verify_email(token_of(one, mail), PASSWORD, None, HERE)
    with pytest.raises(TokenInvalid):
        service.confirm_password_reset(token_of(one, mail), PASSWORD, HERE)


def test_registering_hashes_no_password(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "_in_turn", None)
    service.register("new@example.com", None, "en", HERE)
    service.register("ann@example.com", None, "en", HERE)
    service.request_password_reset("ann@example.com", HERE)


@pytest.mark.parametrize("asks", ["register", "request_password_reset"])
def test_the_same_is_done_whoever_exists(one: Bench, asks: str) -> None:
    def ask(email: str) -> list[str]:
        with statements(one) as sent:
            if asks == "register":
                assert one.service.register(email, None, "en", HERE) == {}
            else:
                assert one.service.request_password_reset(email, HERE) == {}
        return [statement for statement, _ in sent]

    known, unknown = ask("ann@example.com"), ask("nobody@example.com")
    assert known == unknown
    assert len(known) == 5, known


@pytest.mark.parametrize("password", ["short", "new@example.com", "qwertyuiop123", "x" * 1025])
def test_a_refused_password_does_not_use_the_mail(one: Bench, service: Any, database: Databases, password: str) -> None:
    if password == "qwertyuiop123":
        assert password in common_passwords()
    service.register("new@example.com", None, "en", HERE)
    token = last_token(one, database, "new@example.com", "register")
    with pytest.raises(PasswordRefused):
        service.verify_email(token, password, None, HERE)
    assert service.verify_email(token, PASSWORD, None, HERE)


def test_a_mail_registers_once(one: Bench, service: Any, database: Databases) -> None:
    service.register("new@example.com", None, "en", HERE)
    service.register("new@example.com", None, "en", HERE)
    first, second = (token_of(one, mail) for mail in mails(database))
    service.verify_email(second, PASSWORD, None, HERE)
    for token in (first, second):
        with pytest.raises(TokenInvalid):
            service.verify_email(token, OTHER_PASSWORD, None, HERE)
    assert sign_in(service, "new@example.com")


def test_a_mail_that_is_used_twice_at_once_makes_one_user(replicas: list[Bench], database: Databases) -> None:
    replicas[0].service.register("new@example.com", None, "en", HERE)
    token = last_token(replicas[0], database, "new@example.com", "register")

    def verify(replica: Bench) -> str:
        try:
            return replica.service.verify_email(token, PASSWORD, None, HERE)["user"]["id"]
        except TokenInvalid:
            return "refused"

    outcomes = [run.wait() for run in [eventlet.spawn(verify, replicas[number % 2]) for number in range(6)]]
    assert outcomes.count("refused") == 5
    assert len(database.rows("auth", "SELECT 1 FROM users WHERE email = 'new@example.com'")) == 1


@pytest.mark.parametrize("fault", ["forged", "expired", "of another mail", "no token"])
def test_a_token_with_a_fault_is_refused_before_a_password_is_hashed(
    one: Bench, service: Any, database: Databases, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    service.register("new@example.com", None, "en", HERE)
    (mail,) = mails(database)
    token = token_of(one, mail)
    if fault == "forged":
        token = token[:30] + ("A" if token[30] != "A" else "B") + token[31:]
    elif fault == "expired":
        database.run("auth", "UPDATE proofs SET expires_at = now() - interval '1 second'")
    elif fault == "of another mail":
        token = token_of(one, {**mail, "kind": "reset"})
    else:
        token = "nonsense"
    monkeypatch.setattr(passwords, "_in_turn", None)
    with pytest.raises(TokenInvalid):
        service.verify_email(token, PASSWORD, None, HERE)


def test_a_mail_to_register_is_good_for_a_day_and_others_for_half_an_hour(service: Any, database: Databases) -> None:
    service.register("new@example.com", None, "en", HERE)
    service.request_password_reset("ann@example.com", HERE)
    lives = [mail["expires_at"] - mail["created_at"] for mail in mails(database)]
    assert lives == [timedelta(hours=24), timedelta(minutes=30)]


def test_three_mails_an_hour_go_to_an_address_and_nobody_is_told_of_a_fourth(service: Any, database: Databases) -> None:
    for number in range(5):
        assert service.register("new@example.com", None, "en", {**HERE, "network": f"192.0.2.{number}"}) == {}
    assert len(mails(database)) == 3
    assert len(emitted(database)) == 3
    database.run("auth", "UPDATE proofs SET created_at = created_at - interval '61 minutes'")
    service.register("new@example.com", None, "en", HERE)
    assert len(mails(database)) == 4


def test_ten_mails_an_hour_are_asked_for_from_a_network(replicas: list[Bench], database: Databases) -> None:
    def ask(number: int) -> None:
        replicas[number % 2].service.register(f"new{number}@example.com", None, "en", HERE)

    for run in [eventlet.spawn(ask, number) for number in range(14)]:
        run.wait()
    assert len(mails(database)) == 10


@pytest.mark.parametrize(
    "email", ["nonsense", "a@b", "a b@example.com", "Ann <ann@example.com>", "ann@example.test", ""]
)
def test_what_is_no_address_is_refused(service: Any, email: str) -> None:
    for ask in (lambda: service.register(email, None, "en", HERE), lambda: service.request_password_reset(email, HERE)):
        with pytest.raises(ValidationFailed) as caught:
            ask()
        assert "email" in caught.value.details


# Passwords


def test_a_new_password_ends_all_other_sessions_and_the_own_goes_on(
    one: Bench, service: Any, database: Databases
) -> None:
    other = sign_in(service)
    here = signed_in(service)
    answer = service.change_password(PASSWORD, OTHER_PASSWORD, here)
    claims = auth.verify(answer["access_token"], one.settings.auth_keys)
    assert (claims.session_id, claims.version) == (here["session_id"], 2)
    assert ended(database) == ["password_changed", None]
    assert database.rows("auth", "SELECT user_id, version FROM revocations") == [{"user_id": "u-ann", "version": 2}]
    act_as_nobody(service)
    with pytest.raises(Unauthenticated):
        sign_in(service)
    assert (
        service.login("ann@example.com", OTHER_PASSWORD, answer["device_token"], HERE)["device_token"]
        == answer["device_token"]
    )
    again = service.login("ann@example.com", OTHER_PASSWORD, other["device_token"], HERE)
    assert again["device_token"] != other["device_token"]
    assert recorded(database, "u-ann")[2] == "password_changed"
    (notice,) = mails(database)
    assert (notice["about"], notice["email"]) == ("password_changed", "ann@example.com")


def test_the_refresh_token_after_a_new_password_is_that_of_the_session(one: Bench, service: Any) -> None:
    answer = sign_in(service)
    here = act_as(service, answer)
    assert service.change_password(PASSWORD, OTHER_PASSWORD, here)["refresh_token"] == answer["refresh_token"]


def test_whoever_has_no_session_gets_one_with_the_new_password(one: Bench, service: Any, database: Databases) -> None:
    sign_in(service)
    here = act_as(service, service.issue_token("ann@example.com", PASSWORD, HERE))
    answer = service.change_password(PASSWORD, OTHER_PASSWORD, here)
    assert ended(database) == ["password_changed", None]
    assert auth.verify(answer["access_token"], one.settings.auth_keys).version == 2


def test_a_wrong_current_password_changes_nothing_and_pauses_that_session_alone(
    service: Any, database: Databases
) -> None:
    other = sign_in(service)
    here = signed_in(service)
    for _ in range(10):
        with pytest.raises(WrongPassword):
            service.change_password("a wrong password", OTHER_PASSWORD, here)
    with pytest.raises(SignInPaused):
        service.change_password(PASSWORD, OTHER_PASSWORD, here)
    assert user(database)["version"] == 1
    sign_in(service)
    assert service.change_password(PASSWORD, OTHER_PASSWORD, act_as(service, other))


@pytest.mark.parametrize("password", ["short", "ann@example.com", "qwertyuiop123"])
def test_a_refused_new_password_is_named(service: Any, password: str) -> None:
    here = signed_in(service)
    with pytest.raises(PasswordRefused) as caught:
        service.change_password(PASSWORD, password, here)
    assert set(caught.value.details) == {"new_password"}


def test_a_reset_signs_in_while_sign_ins_are_paused_and_ends_all_sessions(
    one: Bench, service: Any, database: Databases
) -> None:
    sign_in(service)
    for _ in range(10):
        with pytest.raises(Unauthenticated):
            sign_in(service, password="a wrong password")
    with pytest.raises(SignInPaused):
        sign_in(service)
    service.request_password_reset("ANN@example.com", HERE)
    answer = service.confirm_password_reset(last_token(one, database, "ann@example.com", "reset"), OTHER_PASSWORD, HERE)
    assert ended(database) == ["password_reset", None]
    assert auth.verify(answer["access_token"], one.settings.auth_keys).version == 2
    assert service.login("ann@example.com", OTHER_PASSWORD, answer["device_token"], HERE)
    assert recorded(database, "u-ann") == ["signed_in", "sign_in_paused", "password_reset", "signed_in", "signed_in"]
    assert [mail["about"] for mail in mails(database)] == ["reset", "password_changed"]


def test_a_reset_works_once_and_lets_no_other_mail_of_before_work(
    one: Bench, service: Any, database: Databases
) -> None:
    for _ in range(2):
        service.request_password_reset("ann@example.com", HERE)
    first, second = (token_of(one, mail) for mail in mails(database))
    service.confirm_password_reset(second, OTHER_PASSWORD, HERE)
    for token in (first, second):
        with pytest.raises(TokenInvalid):
            service.confirm_password_reset(token, PASSWORD, HERE)


def test_a_reset_unlinks_every_provider(one: Bench, service: Any, database: Databases) -> None:
    """Whoever knew the old password may have linked an identity of their own."""
    database.run("auth", "INSERT INTO identities (provider, subject, user_id) VALUES ('google', 's-1', 'u-ann')")
    service.request_password_reset("ann@example.com", HERE)
    service.confirm_password_reset(last_token(one, database, "ann@example.com", "reset"), OTHER_PASSWORD, HERE)
    assert database.rows("auth", "SELECT 1 FROM identities") == []
    (row,) = database.rows("auth", "SELECT details FROM auth_events WHERE event = 'password_reset'")
    assert row["details"] == {"unlinked": ["google"]}


def test_two_mails_of_one_user_that_are_used_at_once_do_not_deadlock(
    one: Bench, replicas: list[Bench], database: Databases
) -> None:
    for _ in range(2):
        one.service.request_password_reset("ann@example.com", HERE)
    tokens = [token_of(one, mail) for mail in mails(database)]

    def confirm(bench: Bench, token: str) -> str:
        try:
            bench.service.confirm_password_reset(token, OTHER_PASSWORD, HERE)
        except TokenInvalid:
            return "void"
        return "done"

    with replicas[1].sessions.begin() as session:  # both are on their way when the user can be locked
        assert models.lock(session, "u-ann") is not None
        both = [eventlet.spawn(confirm, *one) for one in zip(replicas, tokens, strict=True)]
        until(lambda: len(database.rows("auth", WAITING)) == 2)
    assert sorted(one.wait() for one in both) == ["done", "void"]


def test_mails_about_one_thing_keep_those_about_another_from_nobody(service: Any, database: Databases) -> None:
    for _ in range(4):
        service.register("ann@example.com", None, "en", HERE)
    service.request_password_reset("ann@example.com", HERE)
    assert [mail["about"] for mail in mails(database)] == ["account_exists"] * 3 + ["reset"]


@pytest.mark.parametrize("change", ["disabled = true", "erase_after = now() + interval '1 day'"])
def test_who_may_not_sign_in_resets_nothing(one: Bench, service: Any, database: Databases, change: str) -> None:
    service.request_password_reset("ann@example.com", HERE)
    token = last_token(one, database, "ann@example.com", "reset")
    database.run("auth", f"UPDATE users SET {change} WHERE user_id = 'u-ann'")
    with pytest.raises(TokenInvalid):
        service.confirm_password_reset(token, OTHER_PASSWORD, HERE)
    service.request_password_reset("ann@example.com", HERE)
    assert mails(database)[-1]["about"] == "no_account"


def test_a_stranger_who_asks_for_a_reset_hears_by_mail_that_there_is_no_account(
    service: Any, database: Databases
) -> None:
    service.request_password_reset("nobody@example.com", HERE)
    (mail,) = mails(database)
    assert (mail["kind"], mail["about"], mail["user_id"]) == ("notice", "no_account", None)


# One's own account


def test_people_see_and_change_their_own_account(service: Any, database: Databases) -> None:
    here = signed_in(service)
    shown = service.me()
    assert shown == {
        "id": "u-ann",
        "email": "ann@example.com",
        "name": "Ann",
        "roles": ["customer"],
        "locale": "en",
        "has_password": True,
        "created_at": shown["created_at"],
    }
    assert service.update_me({"name": "Anna"}, here)["name"] == "Anna"
    assert service.update_me({"locale": "de"}, here) == {**shown, "name": "Anna", "locale": "de"}
    events = database.rows("auth", "SELECT details FROM auth_events WHERE event = 'profile_changed' ORDER BY id")
    assert [row["details"] for row in events] == [{"fields": ["name"]}, {"fields": ["locale"]}]


def test_who_is_not_stored_is_not_found_and_a_service_has_no_account(one: Bench, service: Any) -> None:
    add_people(one, Account("service:till", None, roles=("service",), kind="service"))
    act_as(service, service.issue_mock_token("nobody", ["customer"]))
    with pytest.raises(NotFound):
        service.me()
    act_as(service, service.issue_mock_token("service:till", ["service"]))
    with pytest.raises(Forbidden):
        service.me()


def test_a_new_address_is_taken_over_with_the_password_and_the_old_one_is_told(
    one: Bench, service: Any, database: Databases
) -> None:
    here = signed_in(service)
    assert service.change_email("Anna@Example.com", PASSWORD, here) == {}
    assert user(database)["email"] == "ann@example.com"
    assert [(mail["about"], mail["email"]) for mail in mails(database)] == [
        ("change_email", "anna@example.com"),
        ("email_changing", "ann@example.com"),
    ]
    token = last_token(one, database, "anna@example.com", "change_email")
    act_as_nobody(service)
    with pytest.raises(WrongPassword):
        service.verify_email(token, "a wrong password", None, HERE)
    answer = service.verify_email(token, PASSWORD, None, HERE)
    assert answer["user"]["email"] == user(database)["email"] == "anna@example.com"
    assert recorded(database, "u-ann") == ["signed_in", "email_change_requested", "email_changed", "signed_in"]
    with pytest.raises(TokenInvalid):
        service.verify_email(token, PASSWORD, None, HERE)


def test_a_mail_to_the_old_address_resets_nothing_after_a_change(one: Bench, service: Any, database: Databases) -> None:
    service.request_password_reset("ann@example.com", HERE)
    old = last_token(one, database, "ann@example.com", "reset")
    here = signed_in(service)
    service.change_email("anna@example.com", PASSWORD, here)
    service.verify_email(last_token(one, database, "anna@example.com", "change_email"), PASSWORD, None, HERE)
    with pytest.raises(TokenInvalid):
        service.confirm_password_reset(old, OTHER_PASSWORD, HERE)


def test_an_address_of_somebody_else_is_not_taken_over_and_nobody_learns_of_it(
    one: Bench, service: Any, database: Databases
) -> None:
    here = signed_in(service)
    free = service.change_email("free@example.com", PASSWORD, here)
    registered(one, database, "free@example.com")
    registered(one, database, "new@example.com")
    with pytest.raises(TokenInvalid):
        service.verify_email(last_token(one, database, "free@example.com", "change_email"), PASSWORD, None, HERE)
    assert service.change_email("new@example.com", PASSWORD, here) == free
    assert mails(database, "new@example.com")[-1]["about"] == "account_exists"
    assert user(database)["email"] == "ann@example.com"


def test_a_wrong_password_changes_no_address(service: Any, database: Databases) -> None:
    here = signed_in(service)
    with pytest.raises(WrongPassword):
        service.change_email("anna@example.com", "a wrong password", here)
    assert not mails(database)


# The end of an account


def test_an_ended_account_signs_in_nobody_and_comes_back_by_its_mail(
    one: Bench, service: Any, database: Databases
) -> None:
    here = signed_in(service)
    erase_after = datetime.fromisoformat(service.erase_me(PASSWORD, here)["erase_after"])
    assert timedelta(days=13, hours=23) < erase_after - datetime.now(UTC) <= timedelta(days=14)
    assert ended(database) == ["erasing"]
    assert user(database)["version"] == 2
    act_as_nobody(service)
    with pytest.raises(Unauthenticated):
        sign_in(service)
    (mail,) = mails(database)
    assert (mail["kind"], mail["expires_at"] - mail["created_at"]) == ("keep", timedelta(days=14))
    service.keep_account(token_of(one, mail), HERE)
    assert sign_in(service)["user"]["id"] == "u-ann"
    with pytest.raises(TokenInvalid):
        service.keep_account(token_of(one, mail), HERE)
    assert recorded(database, "u-ann") == ["signed_in", "erasure_requested", "erasure_withdrawn", "signed_in"]
    assert [kind for kind, _ in emitted(database)] == ["user.disabled", "user.mail.requested", "user.enabled"]


def test_a_session_of_ten_minutes_ends_an_account_without_the_password(service: Any, database: Databases) -> None:
    here = signed_in(service)
    database.run("auth", "UPDATE sessions SET created_at = created_at - interval '10 minutes 1 second'")
    with pytest.raises(WrongPassword):
        service.erase_me(None, here)
    with pytest.raises(WrongPassword):
        service.erase_me("a wrong password", here)
    database.run("auth", "UPDATE sessions SET created_at = now() - interval '9 minutes'")
    with pytest.raises(WrongPassword):
        service.erase_me("a wrong password", here)
    assert service.erase_me(None, here)["erase_after"]


def test_an_ended_account_does_nothing_more_even_with_a_token(service: Any) -> None:
    here = signed_in(service)
    service.erase_me(None, here)
    for act in (service.me, lambda: service.update_me({"name": "x"}, here), lambda: service.erase_me(None, here)):
        with pytest.raises(InvalidToken):
            act()


def test_the_last_admin_stays(replicas: list[Bench], database: Databases) -> None:
    add_people(replicas[0], ann(user_id="u-a", email="a@example.com", roles=("admin",)))
    service = replicas[0].service
    here = signed_in(service, "a@example.com")
    with pytest.raises(LastAdmin):
        service.erase_me(None, here)
    add_people(replicas[0], ann(user_id="u-b", email="b@example.com", roles=("admin", "customer")))

    def leave(replica: Bench, email: str) -> bool:
        here = signed_in(replica.service, email)
        try:
            return bool(replica.service.erase_me(None, here))
        except LastAdmin:
            return False

    leaves = [
        eventlet.spawn(leave, replica, email)
        for replica, email in zip(replicas, ("a@example.com", "b@example.com"), strict=True)
    ]
    assert sorted(leaving.wait() for leaving in leaves) == [False, True]


def test_two_weeks_later_nothing_says_who_it_was(one: Bench, service: Any, database: Databases) -> None:
    database.run("auth", "UPDATE users SET email = NULL WHERE user_id = 'u-ann'")
    service.register("ann@example.com", "Ann", "en", HERE)  # it names no user, as none had this address yet
    database.run("auth", "UPDATE users SET email = 'ann@example.com' WHERE user_id = 'u-ann'")
    here = signed_in(service)
    service.change_email("anna@example.com", PASSWORD, here)
    database.run("auth", "INSERT INTO identities (provider, subject, user_id) VALUES ('google', 'g-1', 'u-ann')")
    database.run(
        "auth",
        "INSERT INTO auth_events (event, user_id, actor_id, network) VALUES ('disabled', 'bob', 'u-ann', '192.0.2.1')",
    )
    service.erase_me(None, here)
    service.erase_accounts()
    assert user(database)["email"] == "ann@example.com"
    database.run("auth", "UPDATE users SET erase_after = now() - interval '1 second' WHERE user_id = 'u-ann'")
    service.erase_accounts()
    left = user(database)
    assert {name: value for name, value in left.items() if value not in (None, [])} == {
        "user_id": "u-ann",
        "kind": "person",
        "version": 3,
        "locale": "en",
        "disabled": True,
        "created_at": left["created_at"],
        "erased_at": left["erased_at"],
    }
    for table in ("proofs", "sessions", "identities", "users", "auth_events", "outbox", "sign_in_failures"):
        rows = json.dumps(database.rows("auth", f"SELECT * FROM {table} WHERE true"), default=str)
        for word in ("ann@example", "anna@example", "Ann", "g-1", "192.0.2.1"):
            assert word not in rows, (table, word)
    assert emitted(database)[-1] == ("user.erased", {"user_id": "u-ann"})
    assert recorded(database, "u-ann")[-1] == "erased"
    before = len(emitted(database))
    service.erase_accounts()
    assert len(emitted(database)) == before


def test_whoever_comes_back_in_time_is_not_erased(one: Bench, service: Any, database: Databases) -> None:
    service.erase_me(None, signed_in(service))
    database.run("auth", "UPDATE users SET erase_after = now() - interval '1 second' WHERE user_id = 'u-ann'")
    with one.sessions.read() as session:
        assert forgetting.due(session) == ["u-ann"]
    service.keep_account(last_token(one, database, "ann@example.com", "keep"), HERE)
    with one.sessions.begin() as session:
        assert not forgetting.erase(session, "u-ann")
    assert user(database)["email"] == "ann@example.com"


def test_an_address_that_was_erased_can_register_anew(one: Bench, service: Any, database: Databases) -> None:
    service.erase_me(None, signed_in(service))
    database.run("auth", "UPDATE users SET erase_after = now() - interval '1 second' WHERE user_id = 'u-ann'")
    service.erase_accounts()
    act_as_nobody(service)
    assert registered(one, database, "ann@example.com")["user"]["id"] != "u-ann"


# Taking away and forgetting


def exported(service: Any, part: str, limit: int = 200) -> list[dict[str, Any]]:
    items, cursor = [], None
    while True:
        page = service.export_me(part, limit, cursor)
        items += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            return items


def test_an_export_holds_ones_own_rows_page_by_page_and_no_secret(
    one: Bench, service: Any, database: Databases
) -> None:
    sign_in(service, "bob")
    for _ in range(4):
        here = signed_in(service)
    database.run("auth", "INSERT INTO identities (provider, subject, user_id) VALUES ('google', 'g-1', 'u-ann')")
    database.run(
        "auth",
        "INSERT INTO auth_events (event, user_id, actor_id, network)"
        " VALUES ('disabled', 'u-ann', 'root', '203.0.113.9')",
    )
    service.update_me({"name": "Anna"}, here)
    for part, expected in (("sessions", 4), ("identities", 1), ("events", 6)):
        assert len(exported(service, part)) == expected
        assert exported(service, part, limit=1) == exported(service, part)
    assert "203.0.113.9" not in str(exported(service, "events"))
    assert "root" not in str(exported(service, "events"))
    everything = str([exported(service, part) for part in ("sessions", "identities", "events")])
    assert "argon2" not in everything
    assert "kid" not in everything
    with pytest.raises(NotFound):
        service.export_me("users", 10)
    cursor = service.export_me("sessions", 1)["next_cursor"]
    with pytest.raises(InvalidCursor):
        service.export_me("events", 1, cursor)


AGES = {
    "proofs": ("INSERT INTO proofs (proof_id, kind, about, email, locale, network, expires_at) VALUES"
               " (gen_random_uuid(), 'notice', 'no_account', 'a@example.com', 'en', '', {at})", "1 day"),
    "oauth_attempts": ("INSERT INTO oauth_attempts (attempt_id, provider, state_hash, nonce, verifier, redirect_uri,"
                       " expires_at) VALUES (gen_random_uuid(), '', '', '', '', '', {at})", "0 days"),
    "sign_in_failures": ("INSERT INTO sign_in_failures (bucket, failures, since)"
                         " VALUES (gen_random_uuid()::text, 1, {at})", "1 day"),
    "revocations": ("INSERT INTO revocations (user_id, version, at) VALUES ('bob', 2, {at})", "2 hours"),
    "sessions": ("INSERT INTO sessions (session_id, user_id, kind, kid, client, network, expires_at, ends_at)"
                 " VALUES (gen_random_uuid(), 'bob', 'api', 'k', '', '', {at}, {at})", "30 days"),
    "auth_events": ("INSERT INTO auth_events (event, user_id, at) VALUES ('signed_in', 'bob', {at})", "400 days"),
}  # fmt: skip


@pytest.mark.parametrize("table", AGES)
def test_rows_are_deleted_when_they_are_older_than_promised(
    service: Any, database: Databases, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    insert, age = AGES[table]
    monkeypatch.setattr(forgetting, "MOST_DELETED", 2)  # so that one run deletes in several steps
    for _ in range(5):
        database.run("auth", insert.format(at=f"now() - interval '{age}' - interval '1 minute'"))
    database.run("auth", insert.format(at=f"now() - interval '{age}' + interval '1 minute'"))
    service.forget()
    assert len(database.rows("auth", f"SELECT 1 FROM {table}")) == 1


def test_every_table_with_a_promised_end_is_purged() -> None:
    assert {*forgetting.PURGES, "auth_events"} == set(AGES)
