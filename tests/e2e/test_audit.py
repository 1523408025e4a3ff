"""Auditors read what was released, by whom and why, on two replicas of every service.

tests/audit has the same for many rows.
"""

from __future__ import annotations

import csv
import io
import json
import uuid
from typing import Any

import pytest
import requests

from shared import exports
from tests.e2e.broker import publish_by_hand
from tests.e2e.system import System, eventually

EVENTS = "/api/stocks/release-events"
EXPORT = f"{EVENTS}/export"
COMMITS = "q.inventory.commit-requested"


def ask(system: System, path: str, user: str = "auditor", replica: int = 0) -> requests.Response:
    answer = system.flow(replica).send("GET", path, user=user)
    assert answer.status_code == 200, answer.text
    return answer


def listed(system: System, query: str, user: str = "auditor") -> list[dict[str, Any]]:
    return list(ask(system, f"{EVENTS}?{query}", user).json()["items"])


def reserve(system: System, sku: str, order_id: str | None = None, user: str = "admin") -> dict[str, Any]:
    """A manual reservation of one unit."""
    body = {"order_id": order_id or str(uuid.uuid4()), "items": [{"sku": sku, "quantity": 1}]}
    answer = system.flow().send("POST", "/api/stocks/reserve", body, user)
    answer.raise_for_status()
    return dict(answer.json())


def release(system: System, reservation: dict[str, Any], user: str = "admin") -> None:
    path = f"/api/stocks/reservations/{reservation['reservation_id']}/release"
    system.flow().send("POST", path, user=user).raise_for_status()


def released(system: System, sku: str, count: int) -> None:
    """Make this many manual releases of a sku."""
    system.flow().stock(sku, count)
    for _ in range(count):
        release(system, reserve(system, sku))


def lines_of(file: str) -> tuple[list[dict[str, str]], dict[str, Any]]:
    *lines, last = csv.DictReader(io.StringIO(file, newline=""), strict=True)
    assert last["id"] == exports.MANIFEST
    return lines, json.loads(last["order_id"])


def test_each_filter_finds_its_releases(system: System) -> None:
    flow, sku = system.flow(), "audit-filters"
    flow.stock(sku, 100)
    refused = flow.at_rest(flow.order(sku, payment="mock_declined")["order_id"])["order_id"]
    cancelled = flow.at_rest(flow.order(sku)["order_id"])["order_id"]
    flow.cancel(cancelled)
    release(system, reserve(system, sku, user="service"), user="service")
    found = eventually(lambda: listed(system, f"sku={sku}"), lambda items: len(items) == 3)
    assert {item["reason"] for item in found} == {"payment_failed", "order_cancelled", "manual"}
    assert found == sorted(found, key=lambda item: (item["released_at"], item["id"]), reverse=True)
    middle = found[1]["released_at"].replace("+", "%2B")
    for query, passes in {
        f"order_id={refused}": lambda item: item["order_id"] == refused,
        "reason=order_cancelled": lambda item: item["reason"] == "order_cancelled",
        "user_id=service": lambda item: item["requested_by"] == "service",
        f"trace_id={found[2]['trace_id']}": lambda item: item["trace_id"] == found[2]["trace_id"],
        f"from={middle}": lambda item: item["released_at"] >= found[1]["released_at"],
        f"to={middle}": lambda item: item["released_at"] < found[1]["released_at"],
        "reason=manual&user_id=customer": lambda item: False,
    }.items():
        wanted = [item for item in found if passes(item)]
        assert listed(system, f"sku={sku}&{query}", "admin") == wanted, query
        exported, _ = lines_of(ask(system, f"{EXPORT}?sku={sku}&{query}").text)
        assert [line["id"] for line in exported] == [str(item["id"]) for item in wanted], query


@pytest.mark.parametrize("prefix", ["/api/", "/api/v1/"])
def test_next_links_lead_through_all_pages(system: System, prefix: str) -> None:
    sku = f"audit-pages-{prefix.count('/')}"
    released(system, sku, 5)
    whole = listed(system, f"sku={sku}&limit=200")
    seen, path, pages = [], f"{EVENTS.replace('/api/', prefix)}?sku={sku}&limit=2&include_total=true", 0
    while path:
        answer = ask(system, path, replica=pages % 2)
        seen += answer.json()["items"]
        assert answer.json()["total"] == 5
        pages += 1
        path = answer.links["next"]["url"] if "next" in answer.links else ""
        assert not path or path.startswith(prefix)
    assert (seen, pages) == (whole, 3)


def test_an_offset_skips_and_a_total_counts_all(system: System) -> None:
    sku = "audit-offset"
    released(system, sku, 3)
    whole = listed(system, f"sku={sku}")
    skipped = ask(system, f"{EVENTS}?sku={sku}&offset=1&limit=1&include_total=true")
    assert (skipped.json()["items"], skipped.json()["total"]) == (whole[1:2], 3)
    assert ask(system, skipped.links["next"]["url"]).json()["items"] == whole[2:]
    assert ask(system, f"{EVENTS}?sku={sku}&offset=10000").json()["items"] == []
    (there,) = system.databases.rows("inventory", "SELECT count(*) AS n FROM inventory_release_events")
    assert ask(system, f"{EVENTS}?limit=1&include_total=true").json()["total"] == there["n"]
    refused = system.flow().send("GET", f"{EVENTS}?offset=1&cursor={skipped.json()['next_cursor']}", user="auditor")
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "bad_request")


def test_a_release_has_its_seal_and_the_timeline_of_its_order(system: System) -> None:
    flow, sku = system.flow(), "audit-one"
    flow.stock(sku, 10)
    order_id = flow.at_rest(flow.order(sku)["order_id"])["order_id"]
    flow.cancel(order_id)
    flow.timeline(order_id, last="inventory.released")
    (found,) = listed(system, f"order_id={order_id}")

    def read() -> dict[str, Any]:
        return dict(ask(system, f"{EVENTS}/{found['id']}").json())

    release = eventually(read, lambda release: release["seal"] is not None, 3)
    assert {name: release[name] for name in found} == found
    assert release["timeline"] == flow.get(f"/api/orders/{order_id}/timeline", "auditor")
    (covered,) = system.databases.rows("inventory", "SELECT * FROM release_seals WHERE seq = :seq", **release["seal"])
    assert covered["rows"] >= 1
    (row,) = system.databases.rows("inventory", "SELECT * FROM inventory_release_events WHERE id = :id", id=found["id"])
    assert (row["xid"], row["id"]) <= (covered["until_xid"], covered["until_id"])


def test_a_manual_release_has_no_timeline_and_an_unknown_one_is_404(system: System) -> None:
    released(system, "audit-hand", 1)
    (found,) = listed(system, "sku=audit-hand")
    assert ask(system, f"{EVENTS}/{found['id']}").json()["timeline"] is None
    for event_id in (10**12, 2**63, "no-number"):
        answer = system.flow().send("GET", f"{EVENTS}/{event_id}", user="auditor")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


def test_a_release_is_linked_to_earlier_replays_and_not_to_later_ones(system: System) -> None:
    flow, sku, order_id = system.flow(), "audit-replay", str(uuid.uuid4())
    flow.stock(sku, 10)
    letters = f"/api/ops/dlq/{COMMITS}"
    publish_by_hand(system.amqp_uri, "inventory.commit.requested", {"order_id": order_id})
    eventually(lambda: flow.get(letters, "operator")["items"], bool)
    reservation = reserve(system, sku, order_id)
    wanted = {"all": True, "why": "=it is reserved, now"}
    replay = flow.send("POST", f"{letters}/replays", wanted, system.become("olga", "operator")).headers["Location"]
    ended = eventually(lambda: flow.get(replay, "operator"), lambda replay: replay["status"] == "done")
    assert ended["counts"]["applied"] == 1
    release(system, reservation)

    (found,) = listed(system, f"order_id={order_id}")
    (operation,) = found["operations"]
    assert (operation["operation_id"], operation["kind"]) == (ended["replay_id"], "replay")
    assert (operation["actor"], operation["why"]) == ("olga", wanted["why"])
    assert operation["event_type"] == "inventory.commit.requested"
    assert operation["at"] <= found["released_at"]
    assert ask(system, f"{EVENTS}/{found['id']}").json()["operations"] == [operation]
    ((line,), _) = lines_of(ask(system, f"{EXPORT}?order_id={order_id}").text)
    assert line["operations"] == f"replay {ended['replay_id']} by olga: {wanted['why']}"


def test_an_export_is_recorded_with_user_and_filters(system: System) -> None:
    released(system, "audit-record", 2)
    user = system.become("carla", "auditor")
    answer = ask(system, f"{EXPORT}?sku=audit-record&from=2026-01-14T10:00:00Z", user)
    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
    assert (
        'filename="release-events_20260114T100000Z_now_sku-audit-record.csv"' in answer.headers["Content-Disposition"]
    )
    lines, manifest = lines_of(answer.content.decode())
    (record,) = system.databases.rows(
        "inventory", "SELECT * FROM release_exports WHERE export_id = :id", id=uuid.UUID(manifest["export_id"])
    )
    assert (record["exported_by"], record["roles"]) == ("carla", ["auditor"])
    assert record["filters"] == {"sku": "audit-record", "from": "2026-01-14T10:00:00.000Z"}
    assert (record["rows"], record["sha256"]) == (len(lines), manifest["sha256"]) == (2, manifest["sha256"])
    assert record["finished_at"] >= record["started_at"]
    assert manifest["exported_by"] == "carla"
    system.flow().send("HEAD", EXPORT, user=user).raise_for_status()
    (exported,) = system.databases.rows(
        "inventory", "SELECT count(*) AS n FROM release_exports WHERE exported_by = 'carla'"
    )
    assert exported["n"] == 1


def test_the_newest_release_is_in_the_export(system: System) -> None:
    for count in range(1, 6):
        released(system, "audit-moment", 1)
        lines, _ = lines_of(ask(system, f"{EXPORT}?sku=audit-moment", replica=count % 2).text)
        assert len(lines) == count


@pytest.mark.parametrize("path", [EVENTS, f"{EVENTS}/1", EXPORT])
def test_only_auditors_and_admins_read_the_audit(system: System, path: str) -> None:
    flow = system.flow()
    answers = {user: flow.send("GET", path, user=user) for user in ("customer", "operator", "service", None)}
    assert {user: answer.status_code for user, answer in answers.items()} == {
        **dict.fromkeys(("customer", "operator", "service"), 403),
        None: 401,
    }
    assert all(answer.headers["Content-Type"] == "application/json" for answer in answers.values())
