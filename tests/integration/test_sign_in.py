"""Signing in on a real database: the limits of failures, and that a session opens only for whom was read."""

import hashlib
import math
import random
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import eventlet
import pytest
from argon2 import PasswordHasher

from auth_service import models, passwords
from auth_service.domain import Account
from auth_service.sessions import opening
from auth_service.signing_in import queries
from auth_service.signing_in.domain import LIMITS, Kind, Limit, buckets_without_device
from shared import auth
from shared.errors import CannotWork, RateLimited, SignInPaused, Unauthenticated
from tests.databases import Databases
from tests.integration.people import HERE, PASSWORD
from tests.integration.support import Bench, statements, until


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashing is slow on purpose, and these tests sign in many times."""
    monkeypatch.setattr(passwords, "_HASHER", PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))


@pytest.fixture
def replicas(bench, cheap: None) -> Iterator[list[Bench]]:
    """Two replicas of auth_service with the users ann and bob."""
    made = [bench("auth"), bench("auth")]
    with made[0].sessions.begin() as session:
        models.add(
            session,
            [
                Account(
                    "u-ann", None, "ann@example.com", password_hash=passwords.hash_of(PASSWORD), roles=("customer",)
                ),
                Account("bob", "bob", password_hash=passwords.hash_of(PASSWORD), roles=("operator",)),
            ],
        )
    return made


@pytest.fixture
def service(replicas: list[Bench]) -> Any:
    return replicas[0].service


def fail(service: Any, times: int, login: str = "ann@example.com", device: str | None = None, **origin: Any) -> None:
    for _ in range(times):
        with pytest.raises(Unauthenticated):
            service.login(login, "a wrong password", device, {**HERE, **origin})


def paused(service: Any, login: str = "ann@example.com", device: str | None = None, **origin: Any) -> int:
    """For how many seconds a sign-in is paused, as it is told; 0: it is not."""
    try:
        service.login(login, PASSWORD, device, {**HERE, **origin})
    except SignInPaused as error:
        return error.details["retry_after"]
    except Unauthenticated:
        pass
    return 0


def pass_time(database: Databases, minutes: float) -> None:
    """Let all failures be older."""
    database.run(
        "auth",
        "UPDATE sign_in_failures SET since = since - make_interval(secs => :s),"
        " paused_until = paused_until - make_interval(secs => :s)",
        s=60 * minutes,
    )


def test_signing_in_answers_tokens_and_who_it_is(service: Any, database: Databases) -> None:
    answer = service.login("ann@example.com", PASSWORD, None, HERE)
    assert (answer["token_type"], answer["expires_in"]) == ("Bearer", 900)
    assert answer["user"] == {"id": "u-ann", "email": "ann@example.com", "name": None, "roles": ["customer"]}
    claims = auth.verify(answer["access_token"], service.settings.auth_keys)
    (session,) = database.rows("auth", "SELECT * FROM sessions")
    assert (claims.identity.user_id, claims.version, claims.session_id) == ("u-ann", 1, str(session["session_id"]))
    assert (session["user_id"], session["client"], session["network"]) == ("u-ann", "app/1", "192.0.2.1")
    (event,) = database.rows("auth", "SELECT * FROM auth_events")
    assert (event["event"], event["user_id"], event["actor_id"]) == ("signed_in", "u-ann", "u-ann")
    assert (event["session_id"], event["network"]) == (session["session_id"], "192.0.2.1")


def test_an_address_signs_in_in_any_case_and_a_name_as_typed(service: Any) -> None:
    assert service.login("ANN@Example.COM", PASSWORD, None, HERE)["user"]["id"] == "u-ann"
    assert service.login("bob", PASSWORD, None, HERE)["user"]["id"] == "bob"
    with pytest.raises(Unauthenticated):
        service.login("BOB", PASSWORD, None, HERE)


def test_an_address_comes_before_a_name_that_looks_like_it(replicas: list[Bench], service: Any) -> None:
    with replicas[0].sessions.begin() as session:
        models.add(session, [Account("old", "ann@example.com", password_hash=passwords.hash_of("another password"))])
    assert service.login("ann@example.com", PASSWORD, None, HERE)["user"]["id"] == "u-ann"


def test_signing_in_takes_three_statements_and_failing_no_more_for_those_who_exist(replicas: list[Bench]) -> None:
    with statements(replicas[0]) as sent:
        replicas[0].service.login("ann@example.com", PASSWORD, None, HERE)
    assert len(sent) == 3, sent
    counts = []
    for login in ("ann@example.com", "nobody@example.com", "bob", "nobody"):
        with statements(replicas[0]) as sent:
            fail(replicas[0].service, 1, login)
        counts.append([statement for statement, _ in sent])
    assert len(counts[0]) == 3
    assert all(count == counts[0] for count in counts)


@pytest.mark.parametrize("login", ["ann@example.com", "nobody@example.com"])
def test_ten_failures_pause_a_name_for_a_minute_whether_anybody_has_it_or_not(service: Any, login: str) -> None:
    for number in range(10):  # from other networks each
        fail(service, 1, login, network=f"192.0.2.{number}")
    assert 55 <= paused(service, login, network="203.0.113.1") <= 60
    assert 55 <= paused(service, login.upper(), network="203.0.113.2") <= 60
    assert not paused(service, "bob", network="203.0.113.1")


def test_a_paused_sign_in_is_refused_before_any_password_is_checked(
    service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(service, 10)
    monkeypatch.setattr(passwords, "fits", None)
    assert paused(service) > 0


def test_a_hundred_failures_pause_a_network(service: Any) -> None:
    for number in range(100):
        assert not paused(service, "bob", network="192.0.2.1")
        fail(service, 1, f"user-{number}")
    assert 55 <= paused(service, "bob", network="192.0.2.1") <= 60
    assert not paused(service, "bob", network="192.0.2.2")


def test_pauses_that_follow_each_other_double_up_to_a_quarter_of_an_hour(service: Any, database: Databases) -> None:
    lengths = []
    for _ in range(6):
        fail(service, 10)
        lengths.append(round(paused(service) / 60))
        pass_time(database, lengths[-1] + 0.1)
        assert not paused(service)
    assert lengths == [1, 2, 4, 8, 15, 15]
    pass_time(database, 15)
    fail(service, 10)
    assert round(paused(service) / 60) == 1


def test_failures_of_a_quarter_of_an_hour_ago_do_not_count(service: Any, database: Databases) -> None:
    fail(service, 9)
    pass_time(database, 15.1)
    fail(service, 9)
    assert not paused(service)
    fail(service, 1)
    assert paused(service)


class Model:
    """A bucket as the rule is told in words, in minutes."""

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.failures: list[float] = []
        self.pauses = 0
        self.paused_until = -math.inf

    def fail(self, at: float) -> bool:
        """Whether a failure at a minute begins a pause."""
        within = self.limit.within.total_seconds() / 60
        if at < self.paused_until:
            return False
        if self.failures and at >= self.failures[0] + within:
            self.failures = []
        self.failures.append(at)
        if len(self.failures) < self.limit.failures:
            return False
        follows = at < self.paused_until + within
        self.pauses = self.pauses + 1 if follows else 1
        longest, first = self.limit.longest.total_seconds() / 60, self.limit.pause.total_seconds() / 60
        self.paused_until = at + min(longest, first * 2 ** (self.pauses - 1))
        self.failures = []
        return True


@pytest.mark.parametrize("kind", Kind)
def test_failures_and_minutes_in_any_order_pause_as_the_rule_says(
    replicas: list[Bench], database: Databases, kind: Kind
) -> None:
    rolls = random.Random(17)
    for sequence in range(4):
        bucket, model, at = f"{kind}:{sequence}", Model(LIMITS[kind]), 0.0
        for _ in range(25):
            minutes = rolls.choice([0.0, 0.5, 1.1, 3.0, 7.0, 14.0, 16.0, 31.0])
            pass_time(database, minutes)
            at += minutes
            for _ in range(rolls.choice([1, 3, LIMITS[kind].failures])):
                at += 1e-6  # each statement takes a moment
                with replicas[0].sessions.begin() as session:
                    begun = queries.count_failure(session, [bucket])
                assert begun == ([bucket] if model.fail(at) else [])
            with replicas[0].sessions.read() as session:
                left = queries.pauses_left(session, [bucket])[bucket]
            assert max(0.0, left) == pytest.approx(max(0.0, 60 * (model.paused_until - at)), abs=5)


def test_a_success_does_not_take_back_failures_of_a_name_or_a_network(service: Any) -> None:
    fail(service, 9)
    service.login("ann@example.com", PASSWORD, None, HERE)
    fail(service, 1)
    assert paused(service)


def test_failures_of_two_replicas_count_together(replicas: list[Bench]) -> None:
    def guess(number: int) -> type[Exception]:
        with pytest.raises((Unauthenticated, SignInPaused)) as caught:
            replicas[number % 2].service.login("ann@example.com", f"a wrong password {number}", None, HERE)
        return caught.type

    for _ in range(5):
        guesses = [eventlet.spawn(guess, number) for number in range(2)]
        assert [one.wait() for one in guesses] == [Unauthenticated] * 2
    assert paused(replicas[0].service) > 0
    assert paused(replicas[1].service) > 0


def test_failures_at_once_are_all_counted_and_make_one_pause(replicas: list[Bench], database: Databases) -> None:
    def guess(number: int) -> None:
        with pytest.raises(Unauthenticated):
            replicas[number % 2].service.login("ann@example.com", "a wrong password", None, HERE)

    guesses = [eventlet.spawn(guess, number) for number in range(9)]
    for one in guesses:
        one.wait()
    counted = database.rows("auth", "SELECT failures, pauses FROM sign_in_failures")
    assert [tuple(row.values()) for row in counted] == [(9, 0)] * 2
    fail(replicas[0].service, 1)
    (event,) = database.rows("auth", "SELECT * FROM auth_events")
    assert (event["event"], event["user_id"], event["details"]) == ("sign_in_paused", "u-ann", {"of": "acct"})


def test_a_known_device_signs_in_while_its_name_and_its_network_are_paused(service: Any) -> None:
    device = service.login("ann@example.com", PASSWORD, None, HERE)["device_token"]
    fail(service, 10)
    for number in range(90):
        fail(service, 1, f"user-{number}")
    assert paused(service, "bob")
    again = service.login("ann@example.com", PASSWORD, device, HERE)
    assert again["device_token"] == device


def test_ten_failures_pause_a_device_for_a_quarter_of_an_hour_and_nobody_else(service: Any) -> None:
    device, other = (service.login("ann@example.com", PASSWORD, None, HERE)["device_token"] for _ in range(2))
    fail(service, 9, device=device)
    assert not paused(service, device=device)  # a success takes back what its device has failed
    fail(service, 10, device=device)
    assert 890 <= paused(service, device=device) <= 900
    assert not paused(service, device=other)
    assert not paused(service)


@pytest.mark.parametrize("whose", ["another user's", "of the password of before", "forged"])
def test_a_device_token_counts_only_for_its_very_user_and_password(
    service: Any, database: Databases, whose: str
) -> None:
    device = service.login("ann@example.com", PASSWORD, None, HERE)["device_token"]
    if whose == "another user's":
        device = service.login("bob", PASSWORD, None, HERE)["device_token"]
    elif whose == "forged":
        device = device[:-2] + ("AA" if device[-2:] != "AA" else "BA")
    else:
        database.run("auth", "UPDATE users SET password_at = now() WHERE user_id = 'u-ann'")
    fail(service, 10)
    assert paused(service, device=device)


def test_whoever_asks_for_the_dashboard_or_a_token_goes_by_the_same_limits(service: Any) -> None:
    for _ in range(5):
        with pytest.raises(Unauthenticated):
            service.issue_token("bob", "a wrong password", HERE)
        with pytest.raises(Unauthenticated):
            service.issue_session("bob", "a wrong password", None, HERE)
    for ask in (service.issue_token, service.issue_session):
        with pytest.raises(RateLimited) as caught:
            ask("bob", PASSWORD)
        assert caught.type is RateLimited  # gateways of the last release can read it
    with pytest.raises(SignInPaused):
        service.login("bob", PASSWORD, None, HERE)


def test_a_session_of_the_dashboard_brings_a_device_token(service: Any) -> None:
    session = service.issue_session("bob", PASSWORD, None, HERE)
    assert auth.verify(session["access_token"], service.settings.auth_keys, audience=auth.DASHBOARD).session_id
    fail(service, 10, "bob")
    assert (
        service.issue_session("bob", PASSWORD, session["device_token"], HERE)["device_token"] == session["device_token"]
    )


def test_what_was_typed_as_a_name_is_not_stored(service: Any, database: Databases) -> None:
    fail(service, 1, "correct horse battery")
    assert "correct" not in str(database.rows("auth", "SELECT * FROM sign_in_failures"))
    assert hashlib.sha256(b"correct horse battery").hexdigest() in str(
        database.rows("auth", "SELECT * FROM sign_in_failures")
    )


@pytest.mark.parametrize(
    "change",
    [
        "version = version + 1",
        "disabled = true",
        "erase_after = now() + interval '14 days'",
        "erased_at = now()",
    ],
)
def test_no_session_opens_for_a_user_who_was_changed_meanwhile(
    replicas: list[Bench], database: Databases, change: str
) -> None:
    with replicas[0].sessions.read() as session:
        account = models.find(session, "bob")
    assert account is not None
    database.run("auth", f"UPDATE users SET {change} WHERE user_id = 'bob'")
    with pytest.raises(Unauthenticated), replicas[0].sessions.begin() as session:
        opening.open_session(session, replicas[0].settings.auth_keys, account, opening.Origin())
    assert not database.rows("auth", "SELECT * FROM sessions")


def test_a_sign_in_waits_for_a_password_that_is_changing(replicas: list[Bench], database: Databases) -> None:
    with replicas[0].sessions.read() as session:
        account = models.find(session, "bob")
    assert account is not None

    def open_it() -> UUID:
        with replicas[1].sessions.begin() as session:
            return opening.open_session(session, replicas[1].settings.auth_keys, account, opening.Origin())

    with replicas[0].sessions.begin() as session:
        user = models.lock(session, "bob")
        assert user is not None
        user.version += 1
        session.flush()
        opens = eventlet.spawn(open_it)
        until(lambda: database.rows("auth", "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))
    with pytest.raises(Unauthenticated):
        opens.wait()


def test_a_hash_of_older_parameters_is_renewed_and_ends_nothing(replicas: list[Bench], database: Databases) -> None:
    service = replicas[0].service
    device = service.login("bob", PASSWORD, None, HERE)["device_token"]
    before = database.rows("auth", "SELECT * FROM users WHERE user_id = 'bob'")[0]
    old = PasswordHasher(time_cost=2, memory_cost=8, parallelism=1).hash(PASSWORD)
    database.run("auth", "UPDATE users SET password_hash = :old WHERE user_id = 'bob'", old=old)
    assert service.login("bob", PASSWORD, device, HERE)["device_token"] == device
    after = database.rows("auth", "SELECT * FROM users WHERE user_id = 'bob'")[0]
    assert not passwords.is_outdated(after["password_hash"])
    assert {**after, "password_hash": ""} == {**before, "password_hash": ""}
    assert service.login("bob", PASSWORD, device, HERE)


def test_more_than_a_second_of_waiting_sign_ins_is_refused_and_counts_for_nobody(
    service: Any, database: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passwords._queue, "waiting", passwords.MAX_WAITING)
    while passwords._AT_ONCE.acquire(blocking=False):
        pass
    try:
        with pytest.raises(CannotWork):
            service.login("ann@example.com", PASSWORD, None, HERE)
    finally:
        for _ in range(passwords.AT_ONCE):
            passwords._AT_ONCE.release()
    assert not database.rows("auth", "SELECT * FROM sign_in_failures")


def test_every_bucket_has_a_limit() -> None:
    assert set(LIMITS) == set(Kind)
    assert [limit.failures for limit in LIMITS.values()] == [10, 10, 100]
    assert len(buckets_without_device("ann", None)) == 1
