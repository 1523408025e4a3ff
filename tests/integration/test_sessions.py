"""Sessions on a real database: refresh tokens, sign-out, what is revoked, and introspection. Time is moved by SQL."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import eventlet
import pytest

from auth_service import derived, models, proofs, records
from auth_service.accounts import forgetting
from auth_service.domain import Account
from auth_service.records import Origin
from auth_service.sessions import opening, queries
from auth_service.sessions.domain import Kind
from shared import auth
from shared.changes import notify_after_commit
from shared.errors import InvalidCursor, InvalidGrant, NotFound, RoleMissing
from shared.events import Identity
from shared.revocations import REVOKED, Revocations
from tests.databases import Databases
from tests.integration.support import WAITING, Bench, assert_read_by_index, statements, until

HERE = {"network": "192.0.2.1", "client": "app/1", "session_id": None}
GATEWAY = Identity("system:gateway", ("system",))
SERVICE = Identity("shop", ("service",))
K1, K2 = ("k1", "the-first-secret-of-more-than-thirty-two"), ("k2", "another-secret-of-more-than-thirty-two")


class Client:
    """Somebody who has signed in, and whoever has stolen one of their tokens."""

    def __init__(self, bench: Bench, user_id: str = "ann", kind: Kind = Kind.API) -> None:
        self.service = bench.service
        self.settings = bench.service.settings
        with bench.sessions.begin() as session:
            account = models.account_of(session.get(models.User, user_id))
            self.session_id = opening.open_session(
                session, self.settings.auth_keys, account, Origin(None, "192.0.2.1", None, "app/1"), kind
            )
        answer = opening.answer(self.settings.auth_keys, account, self.session_id, None)
        self.tokens = [answer["refresh_token"]]
        self.access = answer["access_token"]

    @property
    def here(self) -> dict[str, Any]:
        return {**HERE, "session_id": str(self.session_id)}

    def refresh(self, generation: int | None = None, service: Any = None) -> str:
        """The refresh token that is answered to the one of a generation, by default the newest."""
        shown = self.tokens[-1] if generation is None else self.tokens[generation - 1]
        answer = (service or self.service).refresh(shown, HERE)
        if answer["refresh_token"] not in self.tokens:
            self.tokens.append(answer["refresh_token"])
        self.access = answer["access_token"]
        return str(answer["refresh_token"])

    def is_refused(self, generation: int | None = None) -> bool:
        try:
            self.refresh(generation)
        except InvalidGrant as refused:
            error = refused
        else:
            return False
        assert (error.message, error.details) == (InvalidGrant().message, {}), "the same words for every reason"
        return True


@pytest.fixture
def replicas(bench: Callable[..., Bench]) -> list[Bench]:
    """Two replicas of auth_service, with the users ann, bob and a service."""
    made = [bench("auth"), bench("auth")]
    with made[0].sessions.begin() as session:
        accounts = [
            Account("ann", "ann", "ann@example.com", "Ann", roles=("customer",)),
            Account("bob", "bob", roles=("auditor",)),
        ]
        models.add(session, accounts)
    return made


@pytest.fixture
def auth_bench(replicas: list[Bench]) -> Bench:
    return replicas[0]


@pytest.fixture
def service(auth_bench: Bench) -> Any:
    return auth_bench.service


@pytest.fixture
def ann(auth_bench: Bench) -> Client:
    return Client(auth_bench)


def pass_time(database: Databases, **ago: float) -> None:
    """Let every session and revocation be older."""
    seconds = timedelta(**ago).total_seconds()
    database.run(
        "auth",
        "UPDATE sessions SET rotated_at = rotated_at - make_interval(secs => :s),"
        " created_at = created_at - make_interval(secs => :s), expires_at = expires_at - make_interval(secs => :s),"
        " ends_at = ends_at - make_interval(secs => :s)",
        s=seconds,
    )
    database.run("auth", "UPDATE revocations SET at = at - make_interval(secs => :s)", s=seconds)


def row_of(database: Databases, client: Client) -> dict[str, Any]:
    (row,) = database.rows("auth", "SELECT * FROM sessions WHERE session_id = :id", id=client.session_id)
    return dict(row)


def told(bench: Bench) -> Revocations:
    """What a gateway knows that has just started."""
    bench.called_by(GATEWAY)
    known, position = Revocations(lambda: 0.0), None
    while True:
        page = bench.service.revocations(position)
        known.take(page["items"])
        position = page["next"]
        if position is None:
            return known


def is_revoked(bench: Bench, token: str, audience: str = auth.AUDIENCE) -> bool:
    claims = auth.verify(token, bench.settings.auth_keys, audience=audience)
    return told(bench).is_revoked(claims.identity.user_id, claims.version, claims.session_id)


def use_keys(*benches: Bench, keys: auth.Keys) -> None:
    for one in benches:
        one.service.settings = replace(one.service.settings, auth_keys=keys)


def test_a_refresh_answers_what_a_sign_in_does_but_the_device(service: Any, ann: Client, database: Databases) -> None:
    first = ann.tokens[0]
    answer = service.refresh(first, HERE)
    assert answer.keys() == {"access_token", "token_type", "expires_in", "refresh_token", "user"}
    assert answer["user"] == {"id": "ann", "email": "ann@example.com", "name": "Ann", "roles": ["customer"]}
    claims = auth.verify(answer["access_token"], service.settings.auth_keys)
    assert (claims.identity, claims.version) == (Identity("ann", ("customer",)), 1)
    assert claims.session_id == str(ann.session_id)
    row = row_of(database, ann)
    assert row["generation"] == 2
    assert row["expires_at"] - row["rotated_at"] == timedelta(days=7)


def test_a_refresh_is_one_statement(auth_bench: Bench, ann: Client) -> None:
    with statements(auth_bench) as sent:
        ann.refresh()
    assert len(sent) == 1


def test_a_repeat_is_two_statements(auth_bench: Bench, ann: Client) -> None:
    ann.refresh()
    with statements(auth_bench) as sent:
        ann.refresh(1)
    assert len(sent) == 2


@pytest.mark.parametrize("change", [lambda t: t[:-2] + "AA", lambda t: "ert_", lambda t: "", lambda t: t.upper()])
def test_a_forged_token_costs_no_sql(auth_bench: Bench, ann: Client, change: Callable[[str], str]) -> None:
    ann.tokens.append(change(ann.tokens[0]))
    with statements(auth_bench) as sent:
        assert ann.is_refused()
    assert sent == []


def test_a_lost_answer_is_repeated_within_the_grace_and_not_later(
    ann: Client, auth_bench: Bench, database: Databases
) -> None:
    second = ann.refresh(1)
    before = row_of(database, ann)
    assert ann.refresh(1) == second
    assert row_of(database, ann) == before, "a repeat changes nothing"
    pass_time(database, seconds=58)
    assert ann.refresh(1) == second
    pass_time(database, seconds=3)
    access = ann.access
    assert ann.is_refused(1)
    assert is_revoked(auth_bench, access)
    assert ann.is_refused(2), "the session has ended, whoever has the newest token"


def test_twenty_refreshes_of_one_token_at_once_answer_one_token(
    replicas: list[Bench], ann: Client, database: Databases
) -> None:
    runs = [eventlet.spawn(ann.refresh, 1, replicas[n % 2].service) for n in range(20)]
    assert len({run.wait() for run in runs}) == 1
    assert row_of(database, ann)["generation"] == 2


def test_an_older_token_ends_the_session_and_its_user_is_mailed_once(
    ann: Client, auth_bench: Bench, database: Databases
) -> None:
    ann.refresh()
    ann.refresh()
    other = Client(auth_bench)
    assert ann.is_refused(1)
    row = row_of(database, ann)
    assert (row["ended_why"], row["generation"]) == ("reuse", 3)
    assert ann.is_refused(1)
    assert ann.is_refused(3)
    (mail,) = database.rows("auth", "SELECT kind, about, email, user_id FROM proofs")
    assert tuple(mail.values()) == (proofs.Kind.NOTICE, proofs.About.SESSION_REUSED, "ann@example.com", "ann")
    (event,) = database.rows("auth", "SELECT event_type, body FROM outbox")
    assert event["event_type"] == "user.mail.requested"
    assert "example.com" not in str(event["body"])
    (record,) = database.rows("auth", "SELECT * FROM auth_events WHERE event = 'session_reused'")
    assert (record["user_id"], record["actor_id"], record["session_id"]) == ("ann", None, ann.session_id)
    assert record["network"] == "192.0.2.1"
    assert not other.is_refused(), "another session goes on"


def test_a_user_without_an_address_gets_no_mail_and_their_session_ends(auth_bench: Bench, database: Databases) -> None:
    bob = Client(auth_bench, "bob")
    bob.refresh()
    bob.refresh()
    assert bob.is_refused(1)
    assert row_of(database, bob)["ended_why"] == "reuse"
    assert database.rows("auth", "SELECT 1 FROM proofs") == []


def test_a_session_lives_for_a_week_after_its_last_refresh_and_a_month_at_most(
    ann: Client, auth_bench: Bench, database: Databases
) -> None:
    other = Client(auth_bench)
    for _ in range(4):
        pass_time(database, days=6, hours=23)
        ann.refresh()
    assert other.is_refused(), "nobody has used it for a week"
    row = row_of(database, ann)
    assert row["expires_at"] == row["ends_at"]
    pass_time(database, days=2, hours=5)
    assert ann.is_refused(), "a month is over"


@pytest.mark.parametrize(
    "change",
    ["disabled = true", "erase_after = now() + interval '14 days'", "erased_at = now()"],
)
def test_whoever_may_not_sign_in_gets_no_new_token(ann: Client, database: Databases, change: str) -> None:
    ann.refresh()
    database.run("auth", f"UPDATE users SET {change} WHERE user_id = 'ann'")
    assert ann.is_refused(2)
    assert ann.is_refused(1)
    assert row_of(database, ann)["ended_at"] is None, "whether it is a reuse is nobody's business"


def test_a_token_of_the_dashboard_has_no_refresh(auth_bench: Bench) -> None:
    assert Client(auth_bench, "bob", Kind.DASHBOARD).is_refused()


def test_a_new_role_is_in_the_next_token(ann: Client, auth_bench: Bench, database: Databases) -> None:
    database.run("auth", "UPDATE users SET roles = '{operator}', version = 2 WHERE user_id = 'ann'")
    ann.refresh()
    claims = auth.verify(ann.access, auth_bench.settings.auth_keys)
    assert (claims.identity.roles, claims.version) == (("operator",), 2)


def test_a_session_moves_to_the_first_key_as_it_is_refreshed(replicas: list[Bench], database: Databases) -> None:
    use_keys(*replicas, keys=(K1,))
    ann = Client(replicas[0])
    use_keys(*replicas, keys=(K2, K1))
    second = ann.refresh(1)
    assert row_of(database, ann)["kid"] == "k2"
    assert ann.refresh(1) == second, "the successor of a token of the old key can be derived again"
    third = ann.refresh(2)
    assert ann.refresh(2) == third
    use_keys(*replicas, keys=(K2,))
    assert not ann.is_refused(3)


def test_replicas_of_which_one_signs_by_the_old_key_still_answer_one_token(
    replicas: list[Bench], database: Databases
) -> None:
    use_keys(*replicas, keys=(K1,))
    ann = Client(replicas[0])
    use_keys(replicas[0], keys=(K2, K1))
    use_keys(replicas[1], keys=(K1, K2))
    old, new = replicas[1].service, replicas[0].service
    second = ann.refresh(1, new)
    assert ann.refresh(1, old) == second
    third = ann.refresh(2, old)
    assert row_of(database, ann)["kid"] == "k1"
    assert ann.refresh(2, new) == third


def test_a_key_that_was_dropped_too_early_signs_out_and_nothing_else(
    replicas: list[Bench], database: Databases
) -> None:
    use_keys(*replicas, keys=(K1,))
    ann = Client(replicas[0])
    use_keys(*replicas, keys=(K2,))
    assert ann.is_refused(1)
    use_keys(*replicas, keys=(K1, K2))
    assert not ann.is_refused(1)
    # A token of a known key whose successor has an unknown one is refused in the same words.
    database.run("auth", "UPDATE sessions SET kid = 'gone'")
    assert ann.is_refused(1)


def test_signing_out_ends_this_session_only(ann: Client, auth_bench: Bench, database: Databases) -> None:
    other, bob = Client(auth_bench), Client(auth_bench, "bob")
    auth_bench.called_by(Identity("ann", ("customer",)))
    for _ in range(2):  # again: it has ended already
        ann.service.sign_out(False, ann.here)
    assert row_of(database, ann)["ended_why"] == "signed_out"
    assert ann.is_refused()
    assert [is_revoked(auth_bench, client.access) for client in (ann, other, bob)] == [True, False, False]
    (record,) = database.rows("auth", "SELECT * FROM auth_events WHERE event = 'session_ended'")
    assert (record["user_id"], record["actor_id"], record["details"]) == ("ann", "ann", {"why": "signed_out"})


def test_signing_out_everywhere_ends_every_session_and_token_of_this_user(
    ann: Client, auth_bench: Bench, database: Databases
) -> None:
    other, bob = Client(auth_bench), Client(auth_bench, "bob")
    without = opening.access(auth_bench.settings.auth_keys, Account("ann", None, roles=("customer",)), None)
    auth_bench.called_by(Identity("ann", ("customer",)))
    ann.service.sign_out(True, ann.here)
    assert [client.is_refused() for client in (ann, other, bob)] == [True, True, False]
    assert [is_revoked(auth_bench, client.access) for client in (ann, other, bob)] == [True, True, False]
    assert is_revoked(auth_bench, without["access_token"])
    assert not is_revoked(auth_bench, Client(auth_bench).access), "who signs in again is let in"
    assert len(database.rows("auth", "SELECT 1 FROM auth_events WHERE event = 'signed_out_everywhere'")) == 1


@pytest.mark.parametrize("everywhere", [True, False])
def test_a_token_without_session_or_user_has_nothing_to_end(
    auth_bench: Bench, database: Databases, everywhere: bool
) -> None:
    auth_bench.called_by(Identity("mocked", ("customer",)))
    auth_bench.service.sign_out(everywhere, HERE)
    assert database.rows("auth", "SELECT 1 FROM revocations") == []


def test_a_revocation_tells_the_gateways_at_once(ann: Client, auth_bench: Bench) -> None:
    hinted: list[set[str]] = []
    notify_after_commit(auth_bench.database.Session, hinted.append)
    auth_bench.called_by(Identity("ann", ("customer",)))
    ann.service.sign_out(False, ann.here)
    assert hinted == [{str(REVOKED)}]


def test_sessions_are_listed_page_by_page_the_newest_first(auth_bench: Bench, database: Databases) -> None:
    clients = [Client(auth_bench) for _ in range(5)]
    Client(auth_bench, "bob")
    auth_bench.called_by(Identity("ann", ("customer",)))
    clients[1].service.sign_out(False, clients[1].here)
    database.run("auth", "UPDATE sessions SET expires_at = now() WHERE session_id = :id", id=clients[2].session_id)
    listed, cursor = [], None
    for _ in range(2):
        page = clients[0].service.list_sessions(2, cursor, clients[3].here)
        listed += page["items"]
        cursor = page["next_cursor"]
    assert cursor is None
    assert [item["id"] for item in listed] == [str(clients[n].session_id) for n in (4, 3, 0)]
    assert [item["current"] for item in listed] == [False, True, False]
    assert {(item["client"], item["network"]) for item in listed} == {("app/1", "192.0.2.1")}


def test_a_page_of_sessions_is_read_by_an_index(auth_bench: Bench, database: Databases) -> None:
    database.run(
        "auth",
        "INSERT INTO sessions (session_id, user_id, kind, kid, client, network, expires_at, ends_at)"
        " SELECT gen_random_uuid(), CASE WHEN n % 50 = 0 THEN 'ann' ELSE 'bob' END, 'api', 'k1', '', '',"
        " now() + interval '1 day', now() + interval '1 day' FROM generate_series(1, 5000) AS n",
    )
    database.run("auth", "ANALYZE sessions")
    auth_bench.called_by(Identity("ann", ("customer",)))
    with statements(auth_bench) as sent:
        auth_bench.service.list_sessions(20, None, HERE)
    assert_read_by_index(auth_bench, sent, most=21)


def test_a_cursor_of_another_user_is_refused(auth_bench: Bench) -> None:
    for user in ("ann", "bob"):
        for _ in range(2):
            Client(auth_bench, user)
    auth_bench.called_by(Identity("ann", ("customer",)))
    cursor = auth_bench.service.list_sessions(1, None, HERE)["next_cursor"]
    auth_bench.called_by(Identity("bob", ("auditor",)))
    with pytest.raises(InvalidCursor):
        auth_bench.service.list_sessions(1, cursor, HERE)


def test_a_user_ends_one_of_their_sessions_and_nobody_elses(
    ann: Client, auth_bench: Bench, database: Databases
) -> None:
    bob = Client(auth_bench, "bob")
    auth_bench.called_by(Identity("ann", ("customer",)))
    for session_id in (bob.session_id, uuid4()):
        with pytest.raises(NotFound):
            ann.service.end_session(str(session_id), ann.here)
    for _ in range(2):
        ann.service.end_session(str(ann.session_id), HERE)
    assert ann.is_refused()
    assert not bob.is_refused()
    assert len(database.rows("auth", "SELECT 1 FROM revocations")) == 1


def test_whoever_has_a_token_ends_its_session(ann: Client, auth_bench: Bench) -> None:
    other, bob = Client(auth_bench), Client(auth_bench, "bob", Kind.DASHBOARD)
    account = Account("bob", None, roles=("auditor",))
    cookie = opening.access(auth_bench.settings.auth_keys, account, bob.session_id, 3600, auth.DASHBOARD)
    for token in (ann.tokens[0], other.access, cookie["access_token"]):
        for _ in range(2):
            ann.service.revoke_token(token, HERE)
    assert ann.is_refused()
    assert other.is_refused()
    assert is_revoked(auth_bench, cookie["access_token"], auth.DASHBOARD)


@pytest.mark.parametrize("token", ["", "nonsense", "ert_nonsense", "a.b.c", "é", "x" * 100_000])
def test_revoking_anything_else_does_nothing_and_costs_no_sql(auth_bench: Bench, token: str) -> None:
    with statements(auth_bench) as sent:
        auth_bench.service.revoke_token(token, HERE)
    assert sent == []


def test_introspection_names_session_and_version(ann: Client, auth_bench: Bench) -> None:
    auth_bench.called_by(SERVICE)
    answer = ann.service.introspect(ann.access)
    assert (answer["active"], answer["sub"], answer["username"]) == (True, "ann", "ann")
    assert (answer["sid"], answer["ver"]) == (str(ann.session_id), 1)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE sessions SET ended_at = now()",
        "UPDATE sessions SET ends_at = now()",
        "DELETE FROM sessions",
        "UPDATE sessions SET user_id = 'bob'",
        "UPDATE users SET version = 2",
        "UPDATE users SET disabled = true",
        "UPDATE users SET erase_after = now()",
        "UPDATE users SET erased_at = now()",
    ],
)
def test_introspection_of_a_token_that_has_ended_answers_not_active(
    ann: Client, auth_bench: Bench, database: Databases, change: str
) -> None:
    auth_bench.called_by(SERVICE)
    with statements(auth_bench) as sent:
        assert ann.service.introspect(ann.access)["active"]
    assert len(sent) == 1
    database.run("auth", change)
    assert ann.service.introspect(ann.access) == {"active": False}


def test_introspection_of_a_token_without_version_follows_its_user_if_there_is_one(
    auth_bench: Bench, database: Databases
) -> None:
    auth_bench.called_by(SERVICE)
    keys = auth_bench.settings.auth_keys
    mocked, old = auth.issue(keys, "mocked", ("customer",)), auth.issue(keys, "ann", ("customer",))
    database.run("auth", "UPDATE users SET version = 7")
    assert auth_bench.service.introspect(mocked)["active"]
    assert auth_bench.service.introspect(old)["active"], "it lives to its end"
    database.run("auth", "UPDATE users SET disabled = true")
    assert not auth_bench.service.introspect(old)["active"]


def test_only_gateways_are_told_what_is_revoked(auth_bench: Bench) -> None:
    auth_bench.called_by(Identity("root", auth.ROLES))
    with pytest.raises(RoleMissing):
        auth_bench.service.revocations()


def revoke(bench: Bench, count: int = 1) -> None:
    for _ in range(count):
        with bench.sessions.begin() as session:
            records.revoke_session(session, Client(bench).session_id, "test")


def test_revocations_come_in_pages_of_one_statement_each(
    auth_bench: Bench, database: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "REVOCATIONS_PER_PAGE", 3)
    revoke(auth_bench, 7)
    database.run("auth", "UPDATE revocations SET at = now()")  # one moment: the number decides
    auth_bench.called_by(GATEWAY)
    found, position, pages = [], None, 0
    while True:
        with statements(auth_bench) as sent:
            page = auth_bench.service.revocations(position)
        assert len(sent) == 1
        found += [item["session_id"] for item in page["items"]]
        position, pages = page["next"], pages + 1
        if position is None:
            break
    assert pages == 3
    assert len(found) == len(set(found)) == 7


def test_a_revocation_that_commits_late_is_told_although_a_later_one_was(auth_bench: Bench) -> None:
    late, early = Client(auth_bench), Client(auth_bench)
    auth_bench.called_by(GATEWAY)
    with auth_bench.sessions.begin() as slow:
        records.revoke_session(slow, late.session_id, "test")
        with auth_bench.sessions.begin() as session:
            records.revoke_session(session, early.session_id, "test")
        first = auth_bench.service.revocations(None)
        assert [item["session_id"] for item in first["items"]] == [str(early.session_id)]
    then = auth_bench.service.revocations(first["since"])
    assert str(late.session_id) in [item["session_id"] for item in then["items"]]


def test_a_round_tells_the_last_minute_and_the_first_one_two_hours(auth_bench: Bench, database: Databases) -> None:
    auth_bench.called_by(GATEWAY)
    revoke(auth_bench)
    pass_time(database, minutes=118)
    revoke(auth_bench)
    pass_time(database, seconds=61)
    since = auth_bench.service.revocations(None)["since"]
    assert len(auth_bench.service.revocations(None)["items"]) == 2
    assert auth_bench.service.revocations(since)["items"] == []
    pass_time(database, minutes=1)
    assert len(auth_bench.service.revocations(None)["items"]) == 1, "no token is as old as the first"


def test_a_question_for_revocations_reads_by_an_index(auth_bench: Bench, database: Databases) -> None:
    database.run(
        "auth",
        "INSERT INTO revocations (session_id, at) SELECT gen_random_uuid(), now() - n * interval '1 second'"
        " FROM generate_series(1, 7000) AS n",
    )
    database.run("auth", "ANALYZE revocations")
    auth_bench.called_by(GATEWAY)
    since = auth_bench.service.revocations(None)["since"]
    with statements(auth_bench) as sent:
        auth_bench.service.revocations(since)
    assert_read_by_index(auth_bench, sent, most=70)


@pytest.mark.parametrize("since", ["nonsense", "WyJ4Il0", ""])
def test_a_position_that_is_none_is_refused(auth_bench: Bench, since: str) -> None:
    auth_bench.called_by(GATEWAY)
    if since:
        with pytest.raises(InvalidCursor):
            auth_bench.service.revocations(since)
    else:
        assert auth_bench.service.revocations(since)["items"] == []


def test_old_revocations_and_sessions_are_forgotten_and_no_others(
    auth_bench: Bench, database: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forgetting, "MOST_DELETED", 2)
    revoke(auth_bench, 5)
    pass_time(database, days=38)
    revoke(auth_bench, 1)
    live = Client(auth_bench)
    auth_bench.service.forget()
    assert len(database.rows("auth", "SELECT 1 FROM revocations")) == 1
    assert len(database.rows("auth", "SELECT 1 FROM sessions")) == 2
    assert not live.is_refused()


def test_a_reuse_and_a_change_of_the_user_at_once_both_happen(replicas: list[Bench], database: Databases) -> None:
    """Each locks what the other wants: neither may wait for ever, nor fail."""
    ann = Client(replicas[0])
    ann.refresh()
    ann.refresh()
    with replicas[1].sessions.begin() as session:
        user = models.lock(session, "ann")
        assert user is not None
        reused = eventlet.spawn(ann.is_refused, 1)
        until(lambda: reused.dead or database.rows("auth", WAITING))
        records.revoke_all(session, user, "test")
    assert reused.wait()
    assert row_of(database, ann)["ended_at"] is not None


def test_a_refresh_that_waits_for_the_end_of_its_session_is_refused(replicas: list[Bench], database: Databases) -> None:
    ann = Client(replicas[0])
    with replicas[1].sessions.begin() as session:
        records.revoke_session(session, ann.session_id, "test")
        refreshing = eventlet.spawn(ann.is_refused)
        until(lambda: database.rows("auth", WAITING))
    assert refreshing.wait()


def test_a_refresh_token_of_another_session_has_another_text(auth_bench: Bench) -> None:
    one, two = Client(auth_bench), Client(auth_bench)
    assert one.tokens != two.tokens
    read = derived.read_refresh_token(auth_bench.settings.auth_keys, one.tokens[0])
    assert read is not None
    assert (read.session_id, read.generation) == (UUID(str(one.session_id)), 1)
