"""Mails on a real database: each is sent, once by one replica at a time, until it was sent or is of no use."""

import json
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import eventlet
import pytest

from auth_service import derived, proofs
from auth_service.mail import domain
from auth_service.mail.door import Folder, Mail, MailFailed, MailRefused
from auth_service.mail.entrypoints import AT_ONCE
from auth_service.proofs import About, Kind
from shared.edge.context import RequestContext
from shared.errors import NotFound, RoleMissing
from shared.events import Identity
from shared.ids import new_trace_id
from tests.databases import Databases
from tests.integration.people import add_people, ann
from tests.integration.support import Bench, assert_read_by_index, statements, until

ADDRESS = "ann@example.com"


class Postbox:
    """A door that keeps what it is given, and fails as it is told."""

    def __init__(self) -> None:
        self.mails: list[Mail] = []
        self.fault: Exception | None = None
        self.wait: Any = None  # an Event: each mail waits for it

    def send(self, mail: Mail) -> None:
        self.mails.append(mail)
        if self.wait is not None:
            self.wait.wait()
        if self.fault is not None:
            raise self.fault


@pytest.fixture
def box() -> Postbox:
    return Postbox()


@pytest.fixture
def replicas(bench, box: Postbox) -> list[Bench]:
    """Two replicas of auth_service, with the same door, and ann."""
    made = [bench("auth"), bench("auth")]
    for one in made:
        one.service.mail_door = box
    add_people(made[0], ann(password_hash="x"))
    return made


@pytest.fixture
def one(replicas: list[Bench]) -> Bench:
    return replicas[0]


def ask(bench: Bench, about: About = About.RESET, email: str = ADDRESS, kind: Kind | None = None, **more: Any) -> None:
    """Ask for a mail, as the accounts do."""
    kind = kind or (Kind(about.value) if about.value in set(Kind) else Kind.NOTICE)
    with bench.sessions.begin() as session:
        assert proofs.ask(session, kind, about, email, "192.0.2.1", limited=False, **{"user_id": "u-ann", **more})


def rows(database: Databases) -> list[dict[str, Any]]:
    return database.rows("auth", "SELECT * FROM proofs ORDER BY proof_id")


def due_now(database: Databases) -> None:
    """Let all pauses be over."""
    database.run("auth", "UPDATE proofs SET send_after = now()")


def test_a_mail_is_sent_with_its_token_and_once(one: Bench, box: Postbox, database: Databases) -> None:
    ask(one)
    for _ in range(2):
        one.service.send_mails()
    (mail,) = box.mails
    (row,) = rows(database)
    token = derived.proof_token(one.settings.auth_keys, "reset", row["proof_id"], ADDRESS)
    assert mail.address == ADDRESS
    assert mail.written.link == f"{one.settings.account_url}/reset?token={token}"
    assert "Hello Ann," in mail.written.plain
    assert row["sent_at"] is not None
    assert row["given_up_at"] is None
    assert derived.is_proof(one.settings.auth_keys, token, "reset", row["proof_id"], ADDRESS)
    with one.sessions.begin() as session:
        assert proofs.use(session, one.settings.auth_keys, token, Kind.RESET).user_id == "u-ann"


def test_all_that_is_due_is_sent_in_one_run(one: Bench, box: Postbox) -> None:
    for number in range(2 * AT_ONCE + 1):
        ask(one, email=f"a{number}@example.com")
    one.service.send_mails()
    assert len(box.mails) == len({mail.address for mail in box.mails}) == 2 * AT_ONCE + 1


def test_a_mail_that_is_being_sent_is_no_other_replicas(replicas: list[Bench], box: Postbox) -> None:
    ask(replicas[0])
    box.wait = eventlet.event.Event()
    first = eventlet.spawn(replicas[0].service.send_mails)
    until(lambda: box.mails)
    replicas[1].service.send_mails()
    assert len(box.mails) == 1
    box.wait.send()
    first.wait()
    replicas[1].service.send_mails()
    assert len(box.mails) == 1


def test_replicas_that_claim_at_once_share_the_mails(replicas: list[Bench], box: Postbox) -> None:
    for number in range(30):
        ask(replicas[0], email=f"a{number}@example.com")
    for run in [eventlet.spawn(one.service.send_mails) for one in replicas for _ in range(3)]:
        run.wait()
    assert sorted(mail.address for mail in box.mails) == sorted(f"a{number}@example.com" for number in range(30))


def test_no_transaction_is_open_while_a_mail_is_sent(one: Bench, box: Postbox, database: Databases) -> None:
    ask(one)
    box.wait = eventlet.event.Event()
    run = eventlet.spawn(one.service.send_mails)
    until(lambda: box.mails)
    busy = database.rows(
        "auth",
        "SELECT query FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND state LIKE 'idle in transaction%'",
    )
    assert busy == []
    assert database.rows("auth", "SELECT 1 FROM proofs FOR UPDATE NOWAIT")
    box.wait.send()
    run.wait()


def test_a_mail_whose_sender_dies_is_sent_again(replicas: list[Bench], box: Postbox, database: Databases) -> None:
    ask(replicas[0])
    box.wait = eventlet.event.Event()
    run = eventlet.spawn(replicas[0].service.send_mails)
    until(lambda: box.mails)
    run.kill()
    replicas[1].service.send_mails()
    assert len(box.mails) == 1  # it may still be under way
    due_now(database)
    box.wait = None
    replicas[1].service.send_mails()
    assert len(box.mails) == 2
    assert box.mails[0] == box.mails[1]  # with the same Message-ID
    assert rows(database)[0]["sent_at"] is not None


def test_a_mail_that_is_not_taken_is_tried_again_with_growing_pauses(
    one: Bench, box: Postbox, database: Databases
) -> None:
    ask(one, About.REGISTER, user_id=None)
    box.fault = MailFailed("the server is away")
    pauses = []
    for _ in range(3):
        one.service.send_mails()
        (row,) = rows(database)
        pauses.append(row["send_after"] - datetime.now(UTC))
        due_now(database)
    assert row["attempts"] == len(box.mails) == 3
    for pause, expected in zip(pauses, domain.PAUSES, strict=False):
        assert expected - timedelta(seconds=30) < pause <= expected
    box.fault = None
    one.service.send_mails()
    assert len(box.mails) == 4
    assert rows(database)[0]["sent_at"] is not None


def test_a_refused_mail_is_given_up_at_once_and_recorded_without_the_address(
    one: Bench, box: Postbox, database: Databases
) -> None:
    ask(one)
    box.fault = MailRefused("the server refuses the address: code 550")
    one.service.send_mails()
    due_now(database)
    one.service.send_mails()
    assert len(box.mails) == 1
    (row,) = rows(database)
    assert row["given_up_at"] is not None
    assert row["sent_at"] is None
    (event,) = database.rows("auth", "SELECT * FROM auth_events")
    assert (event["event"], event["user_id"]) == ("mail_refused", "u-ann")
    assert event["details"] == {"mail_id": str(row["proof_id"]), "about": "reset"}


@pytest.mark.parametrize("change", ["expires_at = now()", "used_at = now()"])
def test_a_mail_of_no_use_any_more_is_given_up_unsent(
    one: Bench, box: Postbox, database: Databases, change: str
) -> None:
    ask(one)
    database.run("auth", f"UPDATE proofs SET {change}")
    one.service.send_mails()
    assert box.mails == []
    assert rows(database)[0]["given_up_at"] is not None


def test_a_mail_that_cannot_be_sent_keeps_no_other(one: Bench, database: Databases, tmp_path: Path) -> None:
    ask(one, email="not an address")
    ask(one)
    one.service.mail_door = Folder(tmp_path, "Shop <shop@shop.example>")
    one.service.send_mails()
    assert [row["sent_at"] is not None for row in rows(database)] == [False, True]


def test_without_a_door_mails_wait(one: Bench, database: Databases) -> None:
    ask(one)
    one.service.mail_door = None
    one.service.send_mails()
    assert rows(database)[0]["attempts"] == 0


def test_neither_log_nor_event_names_an_address(
    one: Bench, box: Postbox, database: Databases, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    ask(one)
    for fault in (MailFailed("code 450"), MailRefused("code 550")):
        box.fault = fault
        one.service.send_mails()
        due_now(database)
    assert "was not sent: code 450" in caplog.text
    ours = "\n".join(record.getMessage() for record in caplog.records if not record.name.startswith("sqlalchemy"))
    said = ours + json.dumps(database.rows("auth", "SELECT details, network, event FROM auth_events"))
    assert ADDRESS not in said
    assert "token=" not in said


def test_a_mail_greets_by_a_name_only_at_the_address_of_its_owner(one: Bench, box: Postbox) -> None:
    """Anybody may have a mail sent to any address: what they call themselves stays out of it."""
    ask(one, About.REGISTER, "bob@example.com", user_id=None, display_name="Mallory")
    ask(one, About.CHANGE_EMAIL, "bob@example.com")
    ask(one, About.ACCOUNT_EXISTS, "bob@example.com")
    ask(one, About.PASSWORD_CHANGED)
    one.service.send_mails()
    greetings = {mail.written.plain.splitlines()[0] for mail in box.mails if mail.address == "bob@example.com"}
    assert greetings == {"Hello,"}
    assert [mail.written.plain.splitlines()[0] for mail in box.mails if mail.address == ADDRESS] == ["Hello Ann,"]


def test_a_run_costs_a_statement_and_another_for_each_mail(one: Bench, box: Postbox) -> None:
    with statements(one) as sent:
        one.service.send_mails()
    assert len(sent) == 1
    ask(one)
    with statements(one) as sent:
        one.service.send_mails()
    assert len(sent) == 2  # claim and settle


def test_due_mails_are_found_by_an_index(one: Bench, box: Postbox, database: Databases) -> None:
    database.run(
        "auth",
        "INSERT INTO proofs (proof_id, kind, about, email, locale, network, expires_at, sent_at)"
        " SELECT gen_random_uuid(), 'reset', 'reset', 'a' || n || '@example.com', 'en', '192.0.2.1', now(), now()"
        " FROM generate_series(1, 5000) AS n",
    )
    database.run("auth", "ANALYZE proofs")
    ask(one)
    with statements(one) as sent:
        one.service.send_mails()
    assert_read_by_index(one, sent, most=1)


def as_service(bench: Bench, *roles: str) -> Any:
    bench.service.context = RequestContext(new_trace_id(), Identity("service:notifications", roles))
    return bench.service


def test_a_service_reads_what_it_needs_to_send_a_mail(one: Bench, box: Postbox, database: Databases) -> None:
    ask(one)
    (row,) = rows(database)
    answer = as_service(one, "service").mail(str(row["proof_id"]))
    one.service.send_mails()
    (mail,) = box.mails
    assert answer == {
        "mail_id": str(row["proof_id"]),
        "user_id": "u-ann",
        "address": ADDRESS,
        "about": "reset",
        "locale": "en",
        "subject": mail.written.subject,
        "link": mail.written.link,
        "text": mail.written.plain,
        "html": mail.written.html,
        "expires_at": row["expires_at"].isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    }


@pytest.mark.parametrize("role", ["customer", "operator", "auditor", "admin"])
def test_nobody_but_services_reads_a_mail(one: Bench, database: Databases, role: str) -> None:
    ask(one)
    with pytest.raises(RoleMissing):
        as_service(one, role).mail(str(rows(database)[0]["proof_id"]))


def test_a_mail_of_no_use_is_not_found(one: Bench, database: Databases) -> None:
    service = as_service(one, "service")
    with pytest.raises(NotFound):
        service.mail(str(UUID(int=7)))
    for change in ("expires_at = now()", "used_at = now()"):
        ask(one)
        database.run("auth", f"UPDATE proofs SET {change}")
        with pytest.raises(NotFound):
            service.mail(str(rows(database)[-1]["proof_id"]))
