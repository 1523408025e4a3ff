"""New code on a database of an older version does nothing, says why, and begins by itself once it is migrated."""

import http.client
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import eventlet
import pytest
from alembic import command
from sqlalchemy import Connection, text

from ops.local.servers import free_port
from payment_service.service import PaymentService
from shared.config import Settings
from shared.edge.green import Event
from shared.edge.runner import nameko_config
from shared.edge.schema_wait import wait_for_schema
from shared.revisions import needed_revision, revisions_of
from tests.commands import started
from tests.integration.support import Mail, alembic, reserved_event, throughout, until
from topology.table import rpc_queue

# A process starts in two seconds where it has a core to itself.
STARTS_WITHIN_S = 60.0

QUEUE, CALLS = "q.payment.inventory-reserved", rpc_queue("payment_service")

pytestmark = pytest.mark.parametrize("service", ["payment"])


def previous_revision(service: str) -> str:
    """The last revision at which a service cannot work."""
    names = [revision.name for revision in revisions_of(service)]
    return names[names.index(needed_revision(service)) - 1]


def upgrade(scratch: Connection, service: str, revision: str) -> None:
    command.upgrade(alembic(service, scratch), revision)
    scratch.commit()


def url_of(scratch: Connection) -> str:
    return scratch.engine.url.render_as_string(hide_password=False)


def answer(port: int, path: str = "/readyz") -> tuple[int, Any]:
    """The status and the body of a probe; (0, None) while nobody listens."""
    line = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    with suppress(OSError):
        line.request("GET", path)
        response = line.getresponse()
        return response.status, json.loads(response.read())
    return 0, None


def test_a_process_on_the_previous_schema_works_for_nobody_and_begins_once_it_is_migrated(
    scratch: Connection, service: str, mail: Mail, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, previous = free_port(), previous_revision(service)
    upgrade(scratch, service, previous)
    monkeypatch.setenv("PAYMENT_DATABASE_URL", url_of(scratch))
    monkeypatch.setenv("PAYMENT_PORT", str(port))
    mail.publish([reserved_event()])

    def consumers() -> int:
        return sum(mail.channel.queue_declare(queue, passive=True).consumer_count for queue in (QUEUE, CALLS))

    def does_nothing() -> bool:
        sessions = "SELECT application_name FROM pg_stat_activity WHERE datname = current_database()"
        connected = set(scratch.scalars(text(sessions)))
        scratch.commit()
        # The relay and the provider have sessions by other names.
        return consumers() == 0 and mail.waiting(QUEUE) == 1 and connected <= {"", "payment_service"}

    with started("run", service) as process:
        until(lambda: answer(port)[0] == 503 or not process.running(), STARTS_WITHIN_S)
        assert process.running(), process.end().err
        throughout(does_nothing, for_s=1.5)
        lack = f"the database is at revision {previous}, this version needs {needed_revision(service)};"
        assert answer(port)[1]["reasons"] == [f"{lack} `ecom migrate` does it", "the service has not started"]
        assert answer(port, "/healthz")[0] == 200

        upgrade(scratch, service, needed_revision(service))

        until(lambda: answer(port)[0] == 200, STARTS_WITHIN_S)
        until(lambda: scratch.scalar(text("SELECT status FROM payments")) == "COMPLETED")
        until(lambda: consumers() == 2)  # a consumer subscribes again after its first message
        process.process.terminate()
        assert process.end().code == 0


def waiting(settings: Settings, scratch: Connection, **config: object) -> tuple[Any, Event]:
    """The wait of a process for its schema, in a greenlet of this one, and the event that asks it to stop."""
    own: Mapping[str, object] = {
        **nameko_config(settings, "payment"),
        "DB_URIS": {"payment_service:Base": url_of(scratch)},
        **config,
    }
    asked = Event()
    return eventlet.spawn(wait_for_schema, "payment", PaymentService, own, asked), asked


def test_a_process_that_is_asked_to_stop_does_not_wait_any_more(
    settings: Settings, scratch: Connection, service: str
) -> None:
    port = free_port()
    wait, asked = waiting(settings, scratch, WEB_SERVER_ADDRESS=f"127.0.0.1:{port}")
    until(lambda: answer(port)[0] == 503)
    assert "the database is not migrated; `ecom migrate` does it" in answer(port)[1]["reasons"]

    asked.send("SIGTERM")

    with eventlet.Timeout(10):
        assert wait.wait() is False
    assert answer(port) == (0, None)


@pytest.mark.parametrize("newer", [False, True])
def test_a_database_at_the_newest_revision_or_at_one_that_nobody_here_knows_is_not_waited_for(
    settings: Settings, scratch: Connection, service: str, newer: bool
) -> None:
    upgrade(scratch, service, "head")
    if newer:
        scratch.execute(text("UPDATE alembic_version SET version_num = '0000c0ffee'"))
        scratch.commit()

    wait, _ = waiting(settings, scratch, WEB_SERVER_ADDRESS=f"127.0.0.1:{free_port()}")

    with eventlet.Timeout(10):
        assert wait.wait() is True
