"""A new version that starts before its schema is there waits for it, and the old one does all the work."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.broker import consumers
from tests.e2e.system import eventually, readiness
from tests.upgrade import journeys
from tests.upgrade.conftest import StartFleet
from tests.upgrade.versions import NOW, planted
from topology.table import QUEUES, rpc_queue

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]


def test_a_new_version_is_not_ready_and_consumes_nothing_before_its_migration(
    start_fleet: StartFleet, tmp_path: Path
) -> None:
    fleet, new = start_fleet(NOW, replicas=1), planted("added_column", tmp_path / "new")
    queues = [queue.name for queue in QUEUES if queue.service == "inventory"] + [rpc_queue("inventory_service")]
    consumed_by = consumers(fleet.amqp_uri, queues)
    started = fleet.add("inventory", new)
    eventually(lambda: readiness(started.probe_url) or "", lambda why: "ecom migrate" in why)
    for _ in range(5):
        journeys.refund(fleet)
    assert "ecom migrate" in (readiness(started.probe_url) or "")
    assert consumers(fleet.amqp_uri, queues) == consumed_by

    fleet.prepare(new)
    fleet.serve()
    assert all(count == consumed_by[queue] + 1 for queue, count in consumers(fleet.amqp_uri, queues).items())
    (old,) = [child for child in fleet.children_of("inventory") if child is not started]
    journeys.refund(fleet)
    fleet.remove(old)
    journeys.refund(fleet)
    fleet.check()
