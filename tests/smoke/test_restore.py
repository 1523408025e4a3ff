"""The page about restoring, command by command: orders from before the backup go on, later ones are unknown."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url, text

from ops.local.postgres import find_postgres
from tests.e2e.replayed import Replayed
from tests.e2e.system import System, eventually
from topology.services import DATABASES


class Restore(Replayed):
    """The page's scenes: what happens to the system between its commands."""

    def __init__(self, system: System, directory: Path) -> None:
        super().__init__(system, directory)
        self.flow = system.flow()
        self.sku, self.slow = f"restore-{uuid.uuid4().hex[:8]}", f"slow-{uuid.uuid4().hex[:8]}"
        self.paid: dict[str, Any] = {}
        self.under_way, self.lost, self.half_lost = "", "", ""
        self.holding = ExitStack()

    def services_stop(self) -> None:
        """One order is paid at T, and the first message of another waits at the broker.

        Nothing else works or is written, so the dumps are of one moment without the time that a stop takes.
        """
        for sku in (self.sku, self.slow):
            self.flow.stock(sku, 10)
        paid = self.flow.at_rest(self.flow.order(self.sku)["order_id"])["order_id"]
        self.flow.timeline(paid, last="inventory.committed")
        self.paid = self.flow.get(f"/api/orders/{paid}")  # read now: the sale of its stock changes its version
        self.under_way = self.order_that_waits()

    def order_that_waits(self) -> str:
        """An order whose first message waits at the broker: its row of stock is locked."""
        self.holding.enter_context(locked(self.system, self.slow))
        order_id = str(self.flow.order(self.slow)["order_id"])
        waiting = "SELECT id FROM outbox WHERE published_at IS NULL"
        eventually(lambda: self.system.databases.rows("order", waiting), lambda rows: not rows)
        return order_id

    def services_start_and_work_goes_on(self) -> None:
        """After T: the waiting order is paid, another is made and paid, and a third one waits."""
        self.holding.close()
        assert self.flow.at_rest(self.under_way)["status"] == "PAID"
        self.flow.timeline(self.under_way, last="inventory.committed")
        self.lost = self.flow.at_rest(self.flow.order(self.sku)["order_id"])["order_id"]
        self.flow.timeline(self.lost, last="inventory.committed")
        self.half_lost = self.order_that_waits()

    def services_stop_again(self) -> None:
        self.stopped = ExitStack()
        self.stopped.enter_context(all_stopped(self.system))
        self.holding.close()
        self.system.databases.close()  # pools: a database that is used cannot be renamed

    def services_start(self) -> None:
        self.stopped.close()
        self.system.wait_ready()
        eventually(self.system.deaths, lambda deaths: len(deaths) == 2, otherwise="not dead")


@contextmanager
def all_stopped(system: System) -> Iterator[None]:
    """No service runs inside the block; after it the supervisor starts all of them."""
    supervisor = system.supervisor
    supervisor.run_once = lambda: 0  # type: ignore[method-assign]  # else it starts them again at once
    try:
        supervisor.stop()
        yield
    finally:
        del supervisor.run_once  # type: ignore[method-assign]


@contextmanager
def locked(system: System, sku: str) -> Iterator[None]:
    """Somebody holds the row of a sku's stock, so that its orders wait."""
    engine = system.databases.engines["inventory"].execution_options(isolation_level="READ COMMITTED")
    with engine.connect() as somebody:
        somebody.execute(text("SELECT FROM stock_items WHERE sku = :sku FOR UPDATE"), {"sku": sku})
        yield


def point_tools_at(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the page lets its reader export."""
    admin = make_url(system.settings.database_admin_url)
    monkeypatch.setenv("PGHOST", str(admin.host))
    monkeypatch.setenv("PGPORT", str(admin.port))
    monkeypatch.setenv("PGUSER", str(admin.username))
    monkeypatch.setenv("PGPASSWORD", str(admin.password))
    for name in DATABASES:
        monkeypatch.setenv(name, str(make_url(system.settings.database_url(name)).database))
    monkeypatch.setenv("PATH", f"{find_postgres()}:{os.environ['PATH']}")


@pytest.mark.long
@pytest.mark.timeout(240)  # the services stop and start, and each command takes a second
def test_a_restore_brings_back_what_was_and_tells_what_is_missing(
    system: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point_tools_at(system, monkeypatch)
    with Restore(system, tmp_path) as book:
        book.replay("restore.md")
    assert book.commands >= 18

    flow = book.flow
    assert flow.get(f"/api/orders/{book.paid['order_id']}") == book.paid
    assert flow.send("GET", f"/api/orders/{book.lost}").status_code == 404
    for order_id in (book.under_way, book.half_lost, flow.order(book.sku)["order_id"]):
        assert flow.at_rest(order_id)["status"] == "PAID"
        flow.timeline(order_id, last="inventory.committed")
    # What the fixture asks for after every test holds here, too: all books agree, and no message is dead.
