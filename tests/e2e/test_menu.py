"""The menu over HTTP: anyone reads it, admins write it, and a price changes by the clock."""

import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import requests

from ops.cli.flow import Flow
from shared.times import timestamp
from tests.e2e.system import System, eventually

PUBLIC_FIELDS = {
    "item_id", "name", "description", "category", "images", "position", "status", "variants", "updated_at"
}  # fmt: skip
SCRIPT = "<script>alert('x')</script> & \"quotes\""


@pytest.fixture
def flow(system: System) -> Flow:
    return system.flow()


@pytest.fixture
def sku() -> str:
    return f"menu-{uuid.uuid4().hex[:10]}"


def put_offer(flow: Flow, sku: str, unit_price: int, user: str = "admin", **more: Any) -> requests.Response:
    return flow.send("PUT", f"/api/menu/offers/{sku}", {"currency": "EUR", "unit_price": unit_price, **more}, user=user)


def anyone(flow: Flow, path: str, **headers: str) -> requests.Response:
    return flow.send("GET", path, user=None, **headers)


def test_anyone_reads_what_only_an_admin_writes(flow: Flow, sku: str) -> None:
    body = {"currency": "EUR", "unit_price": 1}
    assert flow.send("PUT", f"/api/menu/offers/{sku}", body, user=None).status_code == 401
    assert put_offer(flow, sku, 1, user="customer").status_code == 403
    assert [put_offer(flow, sku, 1999).status_code for _ in range(2)] == [201, 200]

    (offer,) = anyone(flow, f"/api/menu/offers?skus={sku},nothing").json()["offers"]
    assert offer["prices"] == {"EUR": [{"min_quantity": 1, "unit_price": 1999}]}
    item = anyone(flow, f"/api/menu/items/{offer['item_id']}")
    assert (item.status_code, item.headers["Cache-Control"]) == (200, "public, max-age=5")
    assert "set_by" not in item.text
    for path in ("editor/items", f"editor/items/{offer['item_id']}", f"editor/items/{offer['item_id']}/prices"):
        assert anyone(flow, f"/api/menu/{path}").status_code == 401
        assert flow.send("GET", f"/api/menu/{path}").status_code == 403
        seen = flow.send("GET", f"/api/menu/{path}", user="auditor")
        assert (seen.status_code, seen.headers["Cache-Control"]) == (200, "private, no-store")


def test_a_price_from_a_date_changes_answer_and_etag_at_that_moment_without_a_write(flow: Flow, sku: str) -> None:
    put_offer(flow, sku, 10)
    path = f"/api/menu/offers?skus={sku}"
    at = datetime.now(UTC) + timedelta(seconds=2)
    put_offer(flow, sku, 12, valid_from=timestamp(at))

    before = anyone(flow, path)
    same = anyone(flow, path, If_None_Match=before.headers["ETag"])
    assert (same.status_code, same.content) == (304, b"")
    assert same.headers["ETag"] == before.headers["ETag"]

    after = eventually(
        lambda: anyone(flow, path, If_None_Match=before.headers["ETag"]), lambda answer: answer.status_code == 200
    )
    assert datetime.now(UTC) >= at
    assert after.headers["ETag"] != before.headers["ETag"]
    assert after.json()["offers"][0]["prices"]["EUR"][0]["unit_price"] == 12


def test_a_price_from_a_date_is_charged_from_that_moment_on_without_a_write(flow: Flow, sku: str) -> None:
    def order(**claim: int) -> requests.Response:
        body = {"currency": "EUR", "payment_method": "mock_ok", "items": [{"sku": sku, "quantity": 1, **claim}]}
        return flow.send("POST", "/api/orders", body, Idempotency_Key=str(uuid.uuid4()))

    flow.send("PUT", f"/api/stocks/{sku}", {"on_hand": 100}, user="admin").raise_for_status()
    put_offer(flow, sku, 10)
    at = datetime.now(UTC) + timedelta(seconds=2)
    put_offer(flow, sku, 12, valid_from=timestamp(at))

    taken = order()
    assert datetime.now(UTC) < at, "too slow to see the first price"
    assert (taken.status_code, taken.json()["total"]) == (201, 10)
    later = eventually(lambda: order(unit_price=12), lambda answer: answer.status_code == 201)
    assert datetime.now(UTC) >= at
    assert (later.json()["total"], order().json()["total"]) == (12, 12)
    refused = order(unit_price=10)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "price_changed")
    assert flow.at_rest(taken.json()["order_id"])["total"] == 10


def test_an_item_goes_back_to_an_earlier_version_and_every_version_stays(flow: Flow, sku: str) -> None:
    def send(method: str, path: str, body: dict[str, Any], **headers: str) -> requests.Response:
        return flow.send(method, f"/api/menu/items{path}", body, user="admin", **headers)

    draft = {"name": "First", "variants": [{"sku": sku}]}
    item_id = send("POST", "", draft, Idempotency_Key=str(uuid.uuid4())).json()["item_id"]
    for version, name in enumerate(("First", "Second"), start=1):
        document = {**draft, "name": name, "status": "published", "version": version}
        assert send("PUT", f"/{item_id}", document).status_code == 200

    stale = send("POST", f"/{item_id}/revert", {"to_version": 2, "version": 2})
    assert (stale.status_code, stale.json()["error"]["code"]) == (409, "version_moved")
    reverted = send("POST", f"/{item_id}/revert", {"to_version": 2, "version": 3})
    assert (reverted.status_code, reverted.json()["version"]) == (200, 4)
    assert anyone(flow, f"/api/menu/items/{item_id}").json()["name"] == "First"
    versions = flow.get(f"/api/menu/editor/items/{item_id}/versions", user="auditor")["items"]
    assert [(one["version"], one["document"]["name"], one["changed_by"]) for one in versions] == [
        (4, "First", "admin"),
        (3, "Second", "admin"),
        (2, "First", "admin"),
        (1, "First", "admin"),
    ]


def test_a_draft_is_hidden_until_it_is_published_and_its_text_comes_back_as_text(flow: Flow, sku: str) -> None:
    draft = {
        "name": SCRIPT,
        "description": SCRIPT,
        "images": [{"url": "https://pictures.example/a.jpg", "alt": SCRIPT}],
        "variants": [{"sku": sku, "name": "small"}],
    }
    key = {"Idempotency_Key": str(uuid.uuid4())}
    made = flow.send("POST", "/api/menu/items", draft, user="admin", **key)
    again = flow.send("POST", "/api/menu/items", draft, user="admin", **key)
    assert (made.status_code, again.status_code, again.content) == (201, 201, made.content)
    assert again.headers["Idempotent-Replayed"] == "true"
    item_id = made.json()["item_id"]
    path = f"/api/menu/items/{item_id}"
    assert anyone(flow, path).status_code == 404
    assert flow.get(made.headers["Location"], user="auditor") == made.json()

    document = {**draft, "status": "published", "version": 1}
    assert flow.send("PUT", path, document, user="admin").status_code == 200
    assert set(anyone(flow, path).json()) == PUBLIC_FIELDS
    moved = flow.send("PUT", path, document, user="admin")
    assert (moved.status_code, moved.json()["error"]["code"]) == (409, "version_moved")

    shown = anyone(flow, path)
    assert shown.headers["Content-Type"] == "application/json"
    assert shown.headers["X-Content-Type-Options"] == "nosniff"
    item = shown.json()
    assert (item["name"], item["description"], item["images"][0]["alt"]) == (SCRIPT, SCRIPT, SCRIPT)

    assert flow.send("DELETE", path, user="admin").status_code == 204
    gone = anyone(flow, path).json()
    assert (gone["status"], gone["variants"][0]["prices"]) == ("withdrawn", {})
    assert anyone(flow, f"/api/menu/items?sku={sku}").json()["items"] == []


def test_stock_is_in_the_menu_within_seconds(flow: Flow, sku: str) -> None:
    put_offer(flow, sku, 10)

    def offer() -> tuple[bool, int | None]:
        (found,) = anyone(flow, f"/api/menu/offers?skus={sku}").json()["offers"]
        return found["sold_out"], found["few"]

    assert offer() == (True, None)
    for on_hand, shown in ((100, (False, None)), (3, (False, 3)), (0, (True, None))):
        flow.send("PUT", f"/api/stocks/{sku}", {"on_hand": on_hand}, user="admin")
        began = time.monotonic()
        eventually(offer, lambda found: found == shown, patience_s=10)  # noqa: B023
        print(f"{on_hand} on hand was seen after {time.monotonic() - began:.1f} s")
    told = flow.send("POST", "/api/inventory/reconcile", {"skus": [sku]}, user="admin")
    assert (told.status_code, told.json()["told"], told.json()["left"]) == (202, 1, 0)


def test_twenty_admins_who_list_one_sku_at_once_make_one_item(flow: Flow, sku: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    flow.token("admin")
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: put_offer(flow, sku, 10), range(20)))

    codes = {answer.status_code for answer in answers}
    assert codes <= {200, 201, 503}, codes
    assert sum(answer.status_code == 201 for answer in answers) == 1
    assert len(anyone(flow, f"/api/menu/items?sku={sku}").json()["items"]) == 1


def test_the_menu_is_browsed_by_pages_and_words(flow: Flow) -> None:
    word = f"w{uuid.uuid4().hex[:10]}"
    slug = f"c-{word}"
    assert flow.send("PUT", f"/api/menu/categories/{slug}", {"name": "Things"}, user="admin").status_code == 201
    offers = [
        {"sku": f"{word}-{n}", "currency": "EUR", "unit_price": n, "name": f"Thing {word}", "category": slug}
        for n in range(1, 6)
    ]
    listed = flow.send("PUT", "/api/menu/offers", {"offers": offers}, user="admin").json()
    assert (listed["created"], listed["changed"]) == (5, 0)

    found, path = [], f"/api/menu/items?q={word[:6]}&category={slug}&limit=2"
    while path:
        page = anyone(flow, path)
        found += [variant["sku"] for item in page.json()["items"] for variant in item["variants"]]
        link = page.headers.get("Link", "")
        path = link.partition("<")[2].partition(">")[0]
    assert sorted(found) == sorted(offer["sku"] for offer in offers)
    assert flow.send("DELETE", f"/api/menu/categories/{slug}", user="admin").status_code == 409
