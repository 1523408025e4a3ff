"""Exports of thousands of rows equal the query, are consistent, and survive restarts."""

from __future__ import annotations

import random
import socket
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest

from shared import exports
from tests import releases
from tests.audit.support import EVENTS, EXPORT, FIRST, begin, plant, verified, wait_sealed
from tests.e2e.system import System, eventually

pytestmark = pytest.mark.timeout(300)

# More than the sockets on the way can buffer, and many pages.
ROWS = 50_000
FEW = 3000


def queried(system: System, query: dict[str, str]) -> list[dict[str, Any]]:
    """All releases that match the filters, read page by page."""
    flow = system.flow()
    found, path = [], f"{EVENTS}?{urllib.parse.urlencode(query | {'limit': '200'})}"
    while path:
        answer = flow.send("GET", path, user="auditor")
        assert answer.status_code == 200, answer.text
        found += answer.json()["items"]
        path = answer.links["next"]["url"] if "next" in answer.links else ""
    return found


def cells(release: dict[str, Any]) -> list[str]:
    return [
        *(str(release[name]) for name in exports.COLUMNS[:7]),
        " ".join(release["roles"]),
        *(release[name] for name in ("trace_id", "released_at")),
        "",
    ]


def test_the_export_equals_the_query_whatever_the_filters(system: System) -> None:
    plant(system, FEW)
    rows = system.databases.rows("inventory", "SELECT * FROM inventory_release_events")
    chance = random.Random(6)
    sizes = set()
    for _ in range(12):
        row, other = chance.choice(rows), chance.choice(rows)
        since, until = sorted((row["released_at"], other["released_at"]))
        values = {
            "order_id": str(row["order_id"]),
            "sku": row["sku"],
            "reason": row["reason"],
            "user_id": row["requested_by"],
            "trace_id": row["trace_id"],
            "from": since.isoformat(),
            "to": until.isoformat(),
        }
        some = chance.sample(["sku", "reason", "user_id", "from", "to"], chance.randint(1, 3))
        names = chance.choice([some, some, ["order_id"], ["trace_id", *some[:1]]])
        query = {name: values[name] for name in names}
        answer = system.flow().send("GET", f"{EXPORT}?{urllib.parse.urlencode(query)}", user="auditor")
        lines, manifest = verified(system, answer.content)
        assert lines == [cells(release) for release in queried(system, query)], query
        assert manifest["filters"].keys() == query.keys()
        sizes.add(len(lines))
    assert len(sizes) > 5


def slow_reader(system: System, query: str = "") -> socket.socket:
    """A client that has requested an export and reads almost nothing of it."""
    flow = system.flow()
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    address = urllib.parse.urlsplit(flow.url)
    sock.connect((address.hostname, address.port))
    sock.settimeout(60)
    head = f"GET {EXPORT}{query} HTTP/1.0\r\nAuthorization: Bearer {flow.token('auditor')}\r\n\r\n"
    sock.sendall(head.encode())
    return sock


def test_releases_during_an_export_do_not_change_it(system: System) -> None:
    plant(system, ROWS)
    before = {str(row["id"]) for row in system.databases.rows("inventory", "SELECT id FROM inventory_release_events")}
    with slow_reader(system) as client:
        heard = client.recv(1000)
        (record,) = system.databases.rows("inventory", "SELECT * FROM release_exports WHERE finished_at IS NULL")
        # Rows between, before and after the existing ones, in the order of the export. None in the middle, where
        # test_size counts the blocks of a page: scattered rows of one page would cost a block each.
        for first in (FIRST + ROWS // 3, 0, FIRST + 10 * ROWS):
            releases.write(system.databases, 500, first)
        wait_sealed(system)
        (now,) = system.databases.rows("inventory", "SELECT max(seq) AS seq FROM release_seals")
        assert now["seq"] > record["sealed_to"]
        (again,) = system.databases.rows("inventory", "SELECT * FROM release_exports WHERE finished_at IS NULL")
        assert again == record, "it was still under way"
        while chunk := client.recv(1024 * 1024):
            heard += chunk
    head, _, file = heard.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    lines, manifest = verified(system, file)
    assert {line[0] for line in lines} == before
    assert len(lines) == len(before)
    assert manifest["sealed_to"] == record["sealed_to"]


@pytest.mark.parametrize("service", ["inventory", "ops"])
def test_an_export_survives_the_restart_of_a_service(system: System, service: str) -> None:
    plant(system, ROWS)
    with begin(system) as answer:
        pieces = answer.iter_content(100_000)
        file = next(pieces)
        system.kill(*system.replicas_of(service))
        file += b"".join(pieces)
    lines, _ = verified(system, file)
    (there,) = system.databases.rows("inventory", "SELECT count(*) AS n FROM inventory_release_events")
    assert len({line[0] for line in lines}) == len(lines) == there["n"]


def test_an_export_survives_a_short_database_outage(system: System) -> None:
    plant(system, ROWS)
    name = system.databases.engines["inventory"].url.database
    with ThreadPoolExecutor(1) as threads, begin(system) as answer:
        pieces = answer.iter_content(100_000)
        file = next(pieces)
        system.databases.run("ops", f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        try:
            end_all = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :database"
            system.databases.run("ops", end_all, database=name)
            rest = threads.submit(b"".join, pieces)
            eventually(lambda: system.troubles("inventory"), bool, 20, "ready")
            assert not rest.done()
        finally:
            system.databases.run("ops", f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
        file += rest.result(60)
    lines, _ = verified(system, file)
    (there,) = system.databases.rows("inventory", "SELECT count(*) AS n FROM inventory_release_events")
    assert len(lines) == there["n"]


def connections(system: System) -> int:
    port = system.settings.port("gateway", 0)
    process = psutil.Process(system.supervisor.pids()["gateway-0"])
    return sum(item.laddr.port == port and item.status == "ESTABLISHED" for item in process.net_connections("tcp"))


def test_an_export_leaves_nothing_behind_when_its_client_goes(system: System) -> None:
    plant(system, ROWS)
    eventually(lambda: connections(system), lambda n: n == 0, 20, "connections are open")
    files = psutil.Process(system.supervisor.pids()["gateway-0"]).num_fds()
    clients = [slow_reader(system, f"?sku=sku-{number % 7}") for number in range(5)]
    clients += [slow_reader(system) for _ in range(5)]
    for client in clients:
        client.recv(1000)
        client.close()
    eventually(lambda: connections(system), lambda n: n == 0, 20, "connections are open")
    eventually(
        lambda: psutil.Process(system.supervisor.pids()["gateway-0"]).num_fds(), lambda n: n <= files, 20, "open files"
    )
    assert "its client has gone" in (system.directory / "gateway-0.log").read_text()


def test_a_stopping_gateway_ends_an_export_in_time_without_a_manifest(system: System) -> None:
    plant(system, ROWS)
    (pid,) = system.replicas_of("gateway").values()
    with slow_reader(system) as client:
        heard = client.recv(1000)
        began = time.monotonic()
        psutil.Process(pid).terminate()
        eventually(lambda: psutil.pid_exists(pid), lambda there: not there, 20, "it runs")
        assert time.monotonic() - began < 18
        try:
            while chunk := client.recv(1024 * 1024):
                heard += chunk
        except ConnectionResetError:
            pass
    assert b"manifest" not in heard
