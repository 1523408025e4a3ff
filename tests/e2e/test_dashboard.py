"""The dashboard in a real browser: the work of an auditor with a pointer, with the keyboard alone, and on a phone.

Screenshots of the last run are in artifacts/.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from ops.local.install import HOW_TO_GET_CHROMIUM, find_chromium, must_have_browser
from shared import exports
from tests.e2e.system import ROOT, System

# The last two flags of the first line stop background requests; the others avoid a GPU and a sandbox that needs root.
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
ARTIFACTS = ROOT / "artifacts"
TIMEOUT_MS = 10_000
PHONE, LAPTOP, WIDE = (360, 740), (1280, 900), (1600, 1000)
WIDTHS = (390, 768, 1000, 1280, 1440)
LONGEST_SKU = "dash-12-" + "x" * 56
DECLINED, CANCELLED = 60, 15
PAGE = 50
# Browsers log this for a document with an error status, and here for nothing else.
EXPECTED = re.compile(r"Failed to load resource: the server responded with a status of 4\d\d")


# The focused element, and the width of its outline.
FOCUSED = """() => {
    const focused = document.activeElement, style = getComputedStyle(focused);
    const outline = style.outlineStyle === "none" ? 0 : parseFloat(style.outlineWidth);
    return [focused.id || focused.innerText.trim(), outline];
}"""


@dataclass(frozen=True)
class Shop:
    """A customer with two released orders, one declined and one cancelled, each with a release for each line."""

    system: System
    url: str
    customer: str
    declined: str
    cancelled: str

    def api(self, query: str = "") -> list[dict[str, Any]]:
        """The customer's releases as the API lists them."""
        path = f"/api/stocks/release-events?limit=200&user_id={self.customer}{query}"
        return list(self.system.flow().get(path, "auditor")["items"])


@pytest.fixture(scope="module")
def shop(system: System) -> Shop:
    flow = system.flow()
    customer = system.become(f"shopper-{uuid.uuid4().hex[:8]}", "customer")
    skus = [LONGEST_SKU if number == 12 else f"dash-{number}" for number in range(DECLINED)]
    flow.sell(dict.fromkeys(skus, 100))
    for sku in skus:
        flow.stock(sku, 10, price=100)

    def order(lines: int, payment: str) -> str:
        items = [{"sku": sku, "quantity": 1 + place % 3, "unit_price": 100} for place, sku in enumerate(skus[:lines])]
        body = {"currency": "EUR", "payment_method": payment, "items": items}
        answer = flow.send("POST", "/api/orders", body, customer, Idempotency_Key=str(uuid.uuid4()))
        answer.raise_for_status()
        return str(answer.json()["order_id"])

    def released(order_id: str, lines: int) -> None:
        path = f"/api/stocks/release-events?limit=200&order_id={order_id}"
        flow.until(lambda: flow.get(path, "auditor")["items"], lambda items: len(items) == lines)

    declined = order(DECLINED, "mock_declined")
    released(declined, DECLINED)
    cancelled = order(CANCELLED, "mock_ok")
    flow.until(lambda: flow.get(f"/api/orders/{cancelled}", customer), lambda order: order["status"] == "PAID")
    flow.cancel(cancelled, customer)
    released(cancelled, CANCELLED)
    return Shop(system, system.url("gateway"), customer, declined, cancelled)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = find_chromium()
    if program is None:
        (pytest.fail if must_have_browser() else pytest.skip)(f"no browser; install {HOW_TO_GET_CHROMIUM}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser, shop: Shop) -> Iterator[Callable[..., Page]]:
    """Open pages; at the end none of them has loaded anything from elsewhere or logged an error."""
    wrong: list[str] = []
    contexts: list[BrowserContext] = []

    def hear(kind: str, text: str) -> None:
        if not EXPECTED.match(text):
            wrong.append(f"{kind}: {text}")

    def open_page(size: tuple[int, int] = LAPTOP, **options: Any) -> Page:
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **options)
        context.set_default_timeout(TIMEOUT_MS)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: hear(message.type, message.text))
        page.on("pageerror", lambda error: hear("error", str(error)))
        page.on("request", lambda asked: None if asked.url.startswith(shop.url) else wrong.append(asked.url))
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture(scope="module")
def session(browser: Browser, shop: Shop) -> Any:
    """A session of an auditor, shared by the tests that do not sign in: each sign-in costs 0.1 s of argon2."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{shop.url}/dashboard")
    sign_in(page)
    state = context.storage_state()
    context.close()
    return state


def sign_in(page: Page, name: str = "auditor", password: str | None = None) -> None:
    page.get_by_label("Name", exact=True).fill(name)
    page.get_by_label("Password", exact=True).fill(password or f"demo-{name}")
    page.get_by_role("button", name="Sign in").click()


def rows(page: Page) -> list[dict[str, str]]:
    """The releases that the page shows."""
    names = ("time", "order_id", "sku", "quantity", "reason", "requested_by", "operators")
    cells = page.locator(".releases tbody tr").evaluate_all(
        "rows => rows.map(row => [...row.cells].map(cell => cell.innerText.trim()))"
    )
    return [dict(zip(names, row, strict=True)) for row in cells]


def keys_of(releases: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    return [(row["order_id"], row["sku"], str(row["quantity"])) for row in releases]


def test_an_auditor_signs_in_and_arrives_at_the_requested_page(open_page: Callable[..., Page], shop: Shop) -> None:
    page = open_page()
    wanted = f"{shop.url}/dashboard?user_id={shop.customer}&reason=payment_failed&from="
    assert page.goto(wanted).status == 401
    expect(page).to_have_title("Sign in – release audit")
    sign_in(page, password="wrong")
    expect(page.get_by_role("alert")).to_have_text("The name or the password is wrong.")
    expect(page.get_by_label("Name", exact=True)).to_have_value("auditor")
    assert page.context.cookies() == []
    sign_in(page)
    expect(page.get_by_text("Signed in as auditor")).to_be_visible()
    assert page.url == wanted
    expect(page.get_by_label("Requested by", exact=True)).to_have_value(shop.customer)
    expect(page.get_by_label("Reason", exact=True)).to_have_value("payment_failed")
    assert keys_of(rows(page)) == keys_of(shop.api("&reason=payment_failed"))[:PAGE]
    cookies = {cookie["name"]: cookie for cookie in page.context.cookies()}
    assert cookies.keys() == {"ecom_session", "ecom_device"}
    for cookie in cookies.values():
        assert (cookie["path"], cookie["httpOnly"], cookie["sameSite"]) == ("/dashboard", True, "Lax")
        assert not cookie["secure"]
    assert 86300 < cookies["ecom_session"]["expires"] - time.time() <= 86400


def test_an_ended_session_continues_where_it_was(open_page: Callable[..., Page], shop: Shop, session: Any) -> None:
    page = open_page(storage_state=session)
    (cookie,) = [cookie for cookie in page.context.cookies() if cookie["name"] == "ecom_session"]
    page.context.add_cookies([{**cookie, "value": cookie["value"] + "x"}])
    wanted = f"{shop.url}/dashboard?user_id={shop.customer}&from="
    assert page.goto(wanted).status == 401
    expect(page.get_by_role("status")).to_contain_text("Your session has ended")
    sign_in(page)
    page.wait_for_url(wanted)
    assert len(rows(page)) == PAGE


def test_users_without_the_role_cannot_sign_in(open_page: Callable[..., Page], shop: Shop) -> None:
    page = open_page()
    page.goto(f"{shop.url}/dashboard")
    sign_in(page, "customer")
    expect(page.get_by_role("heading", level=1)).to_have_text("The dashboard is for auditors and administrators.")
    assert page.context.cookies() == []
    page.get_by_role("link", name="Sign in as somebody else").click()
    sign_in(page)
    expect(page.get_by_text("Signed in as auditor")).to_be_visible()


def test_signing_out_works_and_another_site_cannot_cause_it(open_page: Callable[..., Page], shop: Shop) -> None:
    page = open_page()
    page.goto(f"{shop.url}/dashboard/sign-in")
    sign_in(page)
    page.wait_for_url(f"{shop.url}/dashboard")
    for form, headers in (
        ({}, {}),
        ({"token": "0" * 64}, {}),
        ({"token": page.locator(".leave input[name=token]").input_value()}, {"Origin": "https://evil.example"}),
    ):
        answer = page.request.post(f"{shop.url}/dashboard/sign-out", form=form, headers=headers)
        assert (answer.status, answer.headers["content-type"]) == (403, "text/html; charset=utf-8")
        assert len(page.context.cookies()) == 2
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    assert page.url == f"{shop.url}/dashboard/sign-in"
    assert [cookie["name"] for cookie in page.context.cookies()] == ["ecom_device"], "it opens nothing"
    assert page.goto(f"{shop.url}/dashboard").status == 401


def test_a_filter_narrows_rows_totals_and_chart(open_page: Callable[..., Page], shop: Shop, session: Any) -> None:
    page = open_page(storage_state=session)
    page.goto(f"{shop.url}/dashboard")
    expect(page.get_by_label("From (UTC)", exact=True)).not_to_have_value("")
    page.get_by_label("Requested by", exact=True).fill(shop.customer)
    page.get_by_label("Reason", exact=True).fill("order_cancelled")
    page.get_by_role("button", name="Show").click()
    page.wait_for_url("**reason=order_cancelled**")
    expected = shop.api("&reason=order_cancelled")
    assert len(expected) == CANCELLED
    assert keys_of(rows(page)) == keys_of(expected)
    units = sum(row["quantity"] for row in expected)
    total = page.get_by_role("region", name="By reason").locator("tfoot td")
    assert total.all_inner_texts() == [str(CANCELLED), str(units)]
    assert page.locator(".plot title").all_text_contents()[-1].endswith(f"{units} units (order_cancelled {units})")
    page.get_by_text("The same as a table").click()
    assert page.get_by_role("group", name="Units released by day").locator("td").last.inner_text() == str(units)
    page.get_by_label("Order", exact=True).fill("7")
    page.get_by_role("button", name="Show").click()
    expect(page.get_by_text("Not a valid UUID.")).to_be_visible()
    expect(page.get_by_label("Order", exact=True)).to_have_value("7")
    expect(page.get_by_label("Reason", exact=True)).to_have_value("order_cancelled")
    page.goto(f"{shop.url}/dashboard?sku=nobody-has-this")
    expect(page.locator(".releases table")).to_have_count(0)
    expect(page.get_by_text("No release matches these filters.").first).to_be_visible()


def test_pages_show_every_release_once(open_page: Callable[..., Page], shop: Shop, session: Any) -> None:
    page = open_page(storage_state=session)
    page.goto(f"{shop.url}/dashboard?user_id={shop.customer}&from=")
    first = rows(page)
    expect(page.get_by_text("Page 1 of 2")).to_be_visible()
    page.get_by_role("link", name="Next page").click()
    expect(page.get_by_text("Page 2 of 2")).to_be_visible()
    assert keys_of(first + rows(page)) == keys_of(shop.api())
    for back in ("Previous page", "First page"):
        page.get_by_role("link", name=back).click()
        expect(page.get_by_text("Page 1 of 2")).to_be_visible()
        assert rows(page) == first
        page.go_back()
        expect(page.get_by_text("Page 2 of 2")).to_be_visible()


def test_a_row_opens_the_release_with_the_timeline_of_its_order(
    open_page: Callable[..., Page], shop: Shop, session: Any
) -> None:
    page = open_page(storage_state=session)
    (release,) = shop.api("&sku=dash-59")
    page.goto(f"{shop.url}/dashboard?user_id={shop.customer}&sku=dash-59&from=")
    page.get_by_role("link", name=f"#{release['id']}").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("3 × dash-59 released")
    facts = page.locator(".facts").inner_text()
    assert all(release[name] in facts for name in ("order_id", "reservation_id", "trace_id", "reason", "requested_by"))
    shown = page.locator(".timeline code").all_inner_texts()
    steps = shop.system.flow().get(f"/api/orders/{shop.declined}/timeline", "auditor")["steps"]
    assert shown == [step["event"] for step in steps]
    assert {"payment.failed", "inventory.released"} <= set(shown)
    expect(page.locator(".timeline")).to_contain_text("Payment refused")
    expect(page.locator(".timeline")).to_contain_text("Total 120.00 EUR")
    page.get_by_role("link", name="all releases of this order").click()
    page.wait_for_url("**order_id=**")
    assert len(rows(page)) == PAGE
    assert page.goto(f"{shop.url}/dashboard/releases/{10**18}").status == 404


def test_the_csv_is_the_one_for_spreadsheets(open_page: Callable[..., Page], shop: Shop, session: Any) -> None:
    page = open_page(storage_state=session)
    page.goto(f"{shop.url}/dashboard?user_id={shop.customer}&reason=payment_failed&from=")
    with page.expect_download() as download:
        page.get_by_role("button", name=f"Download these {DECLINED} as CSV").click()
    named = f"release-events_reason-payment_failed_user_id-{shop.customer}_for-spreadsheets.csv"
    assert download.value.suggested_filename == named
    file = download.value.path().read_bytes()
    path = f"/api/stocks/release-events/export?for=spreadsheets&user_id={shop.customer}&reason=payment_failed"
    api_file = shop.system.flow().send("GET", path, user="auditor").content
    (whole, last), (apis, _) = ((*content[:-2].rpartition(b"\r\n")[::2],) for content in (file, api_file))
    assert whole == apis
    assert whole.startswith(exports.BOM)
    assert whole.count(b"\r\n") == DECLINED
    manifest = json.loads(next(csv.reader(io.StringIO(last.decode())))[1])
    assert (manifest["rows"], manifest["exported_by"]) == (DECLINED, "auditor")
    assert manifest["sha256"] == hashlib.sha256(whole + b"\r\n").hexdigest()
    page.reload()
    expect(page.get_by_role("region", name="Last exports").get_by_role("cell", name="auditor").first).to_be_visible()


def test_everything_works_with_the_keyboard_alone(open_page: Callable[..., Page], shop: Shop) -> None:
    page = open_page()
    page.goto(f"{shop.url}/dashboard")
    sign_in(page)  # a session of its own, since it signs out
    page.goto(f"{shop.url}/dashboard")

    def tab_to(what: str) -> list[str]:
        """Press Tab until this element has the focus. Returns the elements focused on the way."""
        passed: list[str] = []
        for _ in range(200):
            page.keyboard.press("Tab")
            focused, outline = page.evaluate(FOCUSED)
            assert outline >= 2, f"nobody sees that {focused} has the focus"
            passed.append(focused)
            if re.fullmatch(what, focused):
                return passed
        raise AssertionError(f"Tab does not reach {what}: {passed}")

    assert tab_to("Skip to the content") == ["Skip to the content"]
    page.keyboard.press("Enter")
    order = tab_to("user_id")
    assert list(dict.fromkeys(order)) == ["from", "to", "sku", "reason", "user_id"]
    page.keyboard.type(shop.customer)
    page.keyboard.press("Enter")
    page.wait_for_url(f"**user_id={shop.customer}**")
    on_the_way = tab_to("Next page")
    times = [row["time"] for row in rows(page)]
    assert on_the_way.index(f"Download these {DECLINED + CANCELLED} as CSV") < on_the_way.index(times[0])
    assert [name for name in on_the_way if name in times] == times
    page.keyboard.press("Enter")
    expect(page.get_by_text("Page 2 of 2")).to_be_visible()
    tab_to(re.escape(rows(page)[0]["time"]))
    page.keyboard.press("Enter")
    expect(page.get_by_role("region", name="The order's timeline")).to_be_visible()
    tab_to("Sign out")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


PLACES = {
    "dashboard": "/dashboard?limit=5",
    "wrong-filter": "/dashboard?from=yesterday&order_id=7",
    "empty": "/dashboard?sku=nobody-has-this",
    "error": "/dashboard/nothing",
    "release": "/dashboard/releases/{id}",
}


@pytest.mark.parametrize(
    ("look", "size", "scheme"),
    [("light", LAPTOP, "light"), ("dark", WIDE, "dark"), ("phone", PHONE, "light")],
)
def test_every_page_fits_and_is_accessible(
    open_page: Callable[..., Page], shop: Shop, session: Any, look: str, size: tuple[int, int], scheme: str
) -> None:
    """axe checks for missing names and labels, wrong roles and poor contrast, among others."""
    signed_in = open_page(size, storage_state=session, color_scheme=scheme)
    stranger = open_page(size, color_scheme=scheme)
    event_id = str(shop.api("&sku=dash-0")[0]["id"])
    found = []
    for page, places in ((signed_in, PLACES), (stranger, {"sign-in": "/dashboard"})):
        for name, place in places.items():
            page.goto(shop.url + place.format(id=event_id))
            assert page.get_by_role("button", name="Sign out").is_visible() is (page is signed_in)
            page.screenshot(path=ARTIFACTS / f"{name}-{look}.png", full_page=True)
            width = page.evaluate("document.documentElement.scrollWidth")
            if width > size[0]:
                found.append(f"{name} is {width} px wide")
            report = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
            found += [f"{name}: {item['id']} {[node['html'][:200] for node in item['nodes']]}" for item in report]
    assert found == []


# The names of the cells that have more than one line of text.
BROKEN = """cells => cells.filter(cell => {
    const range = document.createRange();
    range.selectNodeContents(cell);
    const tops = [...range.getClientRects()].map(rect => rect.top);
    return Math.max(...tops) - Math.min(...tops) > 14;
}).map(cell => cell.dataset.label || cell.className)"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_only_the_sku_is_broken_into_lines(
    open_page: Callable[..., Page], shop: Shop, session: Any, scheme: str
) -> None:
    """A page with the longest sku, at the widths of a phone, a tablet, a small window and two laptops."""
    page = open_page(storage_state=session, color_scheme=scheme)
    page.goto(f"{shop.url}/dashboard?user_id={shop.customer}&reason=order_cancelled&from=")
    assert LONGEST_SKU in [row["sku"] for row in rows(page)]
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        page.screenshot(path=ARTIFACTS / f"long-sku-{width}-{scheme}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        is_phone = width == WIDTHS[0]
        broken = page.locator(".releases td:not(.sku)").evaluate_all(BROKEN)
        assert set(broken) <= ({"Order"} if is_phone else set()), f"at {width} px"
        assert page.get_by_role("button", name="Show").is_hidden() == is_phone, f"at {width} px"
    page.set_viewport_size({"width": WIDTHS[0], "height": 900})
    page.get_by_text("Filters", exact=False).first.click()
    expect(page.get_by_label("Reason", exact=True)).to_have_value("order_cancelled")


def test_the_address_of_the_page_has_the_filters_of_the_form(
    open_page: Callable[..., Page], shop: Shop, session: Any
) -> None:
    """The address takes times as the API does, and the form sends them again unchanged."""
    page = open_page(storage_state=session)
    page.goto(
        f"{shop.url}/dashboard?from=2026-01-14T12:00:00.5%2B02:00&to=2030-01-01T00:00:00Z&user_id={shop.customer}"
    )
    assert len(rows(page)) == PAGE
    page.get_by_role("button", name="Show").click()
    page.wait_for_url("**trace_id=**")
    sent = parse_qs(urlsplit(page.url).query)
    assert (sent["from"], sent["to"]) == (["2026-01-14T10:00:00.5"], ["2029-12-31"])
    assert len(rows(page)) == PAGE
