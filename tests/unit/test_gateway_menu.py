"""The routes of the menu with a fake catalog: what a cache may keep, and what is refused before it is asked."""

import hashlib
import json
import re

import pytest

from gateway.menu_editor import HTTPS
from shared import errors
from shared.config import Settings
from tests.unit.serving import KEYS, ask, say, serving
from tests.unit.test_gateway_http import BEHIND, JSON, ORDER_ID, Gateway, bearer, code

ITEM = f"/api/menu/items/{ORDER_ID}"
OFFERS = {"offers": [], "unknown": ["lamp"]}
# What a route that anyone may read gets from the catalog.
PUBLIC = {
    "/api/menu/categories": {"items": []},
    "/api/menu/items": {"items": [], "next_cursor": None},
    ITEM: {"item_id": ORDER_ID},
    "/api/menu/offers?skus=lamp": OFFERS,
}
ADMIN = {**JSON, **bearer("admin")}
OFFER = {"currency": "EUR", "unit_price": 1}


@pytest.fixture(scope="module")
def running():
    with serving(Gateway) as server:
        yield server


@pytest.fixture
def gateway(running):
    BEHIND.asked.clear()
    BEHIND.answer = OFFERS
    return running


def read(gateway, path="/api/menu/offers?skus=lamp", method="GET", **headers):
    return ask(gateway, method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})


@pytest.mark.parametrize("path", PUBLIC)
def test_what_anyone_reads_has_the_hash_of_its_body_and_may_be_kept_for_seconds(gateway, path):
    BEHIND.answer = PUBLIC[path]
    head, _, body = say(gateway, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 200 ")
    assert f'ETag: "{hashlib.sha256(body.encode()).hexdigest()}"' in head
    assert "Cache-Control: public, max-age=5" in head
    assert head.count("\r\nDate: ") == 1


@pytest.mark.parametrize("known", ['"x", {}', "W/{}", "{}", "*"])
def test_an_answer_that_the_reader_knows_is_304_without_a_body(gateway, known):
    etag = read(gateway)[1]["ETag"]
    status, headers, body = read(gateway, If_None_Match=known.format(etag))
    assert (status, body) == (304, "")
    assert (headers["ETag"], headers["Cache-Control"]) == (etag, "public, max-age=5")
    assert "Content-Type" not in headers


def test_another_answer_is_sent_with_another_etag(gateway):
    etag = read(gateway)[1]["ETag"]
    BEHIND.answer = {"offers": [], "unknown": ["desk"]}
    status, headers, body = read(gateway, If_None_Match=etag)
    assert (status, body) == (200, BEHIND.answer)
    assert headers["ETag"] != etag


def test_a_reader_who_wants_one_state_only_gets_it_or_412(gateway):
    etag = read(gateway)[1]["ETag"]
    assert [read(gateway, If_Match=wanted)[0] for wanted in (etag, f'"x", {etag}', "*")] == [200] * 3
    assert read(gateway, If_Match=etag, If_None_Match=etag)[0] == 304
    for wanted in ('"x"', f"W/{etag}"):
        assert code(read(gateway, If_Match=wanted)) == (412, "precondition_failed")


def test_the_answer_to_head_has_the_etag(gateway):
    status, headers, body = read(gateway, method="HEAD")
    assert (status, body) == (200, "")
    assert headers["ETag"] == read(gateway)[1]["ETag"]


def test_an_error_is_kept_by_no_cache(gateway):
    BEHIND.answer = errors.NotFound()
    answer = read(gateway, ITEM)
    assert code(answer) == (404, "not_found")
    assert (answer[1]["Cache-Control"], answer[1]["ETag"]) == ("no-store", None)


def test_a_token_is_not_needed_and_not_looked_at(gateway):
    assert read(gateway, Authorization="Bearer nonsense")[0] == 200
    ((_, _, _, context),) = BEHIND.asked
    assert "user_id" not in context


@pytest.mark.parametrize(
    "path", [f"/api/menu/editor/items{rest}" for rest in ("", f"/{ORDER_ID}", f"/{ORDER_ID}/versions")]
)
def test_what_editors_read_is_kept_by_no_cache(gateway, path):
    BEHIND.answer = {"items": [], "next_cursor": None}
    status, headers, _ = ask(gateway, "GET", path, headers=bearer("auditor"))
    assert (status, headers["Cache-Control"], headers["ETag"]) == (200, "private, no-store", None)


def test_readers_without_a_token_are_limited_by_their_address():
    BEHIND.answer = OFFERS
    with serving(Gateway, settings=Settings(auth_keys=KEYS, rate_address_per_min=2)) as server:
        answers = [read(server) for _ in range(3)]
    assert [status for status, _, _ in answers[:2]] == [200, 200]
    assert code(answers[2]) == (429, "rate_limited")


@pytest.mark.parametrize(("created", "status"), [(True, 201), (False, 200)])
def test_a_new_offer_and_a_new_category_are_201(gateway, created, status):
    for path, body, name in (("offers/lamp", OFFER, "offer"), ("categories/lamps", {"name": "Lamps"}, "category")):
        BEHIND.answer = {name: {}, "created": created}
        assert ask(gateway, "PUT", f"/api/menu/{path}", json.dumps(body), ADMIN)[0] == status


def skus(count):
    return ",".join(f"s-{number}" for number in range(count))


# The longest that is taken, and what is over the limit.
IN_QUERY = {
    "skus": ("/api/menu/offers?skus=", skus(100), skus(101)),
    "a sku": ("/api/menu/offers?skus=", "lamp,desk", "lamp,,desk"),
    "no sku": ("/api/menu/offers?skus=", "lamp", ""),
    "q": ("/api/menu/items?q=", "q" * 100, "q" * 101),
    "limit": ("/api/menu/items?limit=", "200", "201"),
    "currency": ("/api/menu/items?currency=", "EUR", "eur"),
    "available": ("/api/menu/items?available=", "true", "yes"),
    "category": ("/api/menu/items?category=", "lamps", "No%20slug"),
}


@pytest.mark.parametrize(("path", "longest", "refused"), IN_QUERY.values(), ids=IN_QUERY)
def test_what_readers_may_ask_has_limits(gateway, path, longest, refused):
    BEHIND.answer = OFFERS
    assert read(gateway, path + longest)[0] == 200
    BEHIND.asked.clear()
    assert code(read(gateway, path + refused)) == (400, "bad_request")
    assert BEHIND.asked == []


IMAGE = {"url": "https://pictures.example/a.jpg"}


def variants(count):
    return [{"sku": f"s-{number}"} for number in range(count)]


def offers(count):
    return [{"sku": f"s-{number}", **OFFER} for number in range(count)]


IN_BODY = {
    "a name": ("name", "n" * 120, "n" * 121),
    "a description": ("description", "d" * 4000, "d" * 4001),
    "images": ("images", [IMAGE] * 10, [IMAGE] * 11),
    "an address": ("images", [{"url": f"https://{'u' * 492}"}], [{"url": f"https://{'u' * 493}"}]),
    "https": ("images", [IMAGE], [{"url": "http://pictures.example/a.jpg"}]),
    "no script": ("images", [IMAGE], [{"url": "javascript:alert(1)"}]),
    "variants": ("variants", variants(20), variants(21)),
    "offers": ("offers", offers(200), offers(201)),
    "some offer": ("offers", offers(1), []),
    "a currency": ("offers", offers(1), [{"sku": "s", **OFFER, "currency": "EURO"}]),
    "a price": ("offers", offers(1), [{"sku": "s", **OFFER, "unit_price": -1}]),
    "a tier": ("offers", offers(1), [{"sku": "s", **OFFER, "min_quantity": 0}]),
    "a date": ("offers", offers(1), [{"sku": "s", **OFFER, "valid_from": "2026-01-14"}]),
}


@pytest.mark.parametrize(("name", "longest", "refused"), IN_BODY.values(), ids=IN_BODY)
def test_what_editors_may_write_has_limits(gateway, name, longest, refused):
    BEHIND.answer = {"status": 201, "body": {}, "location": "/x", "replayed": False}

    def write(value):
        method, path, body = (
            ("PUT", "offers", {name: value}) if name == "offers" else ("POST", "items", {"name": "n", name: value})
        )
        return ask(gateway, method, f"/api/menu/{path}", json.dumps(body), {**ADMIN, "Idempotency-Key": "k"})

    assert write(longest)[0] < 300
    BEHIND.asked.clear()
    answer = write(refused)
    assert code(answer) == (422, "validation_failed")
    assert list(answer[2]["error"]["details"]) == [name]
    assert BEHIND.asked == []


def test_an_address_has_no_space_or_control_character_of_any_alphabet_and_its_pattern_says_so_to_every_language():
    ecma_only = {"\ufeff"}  # what \s means in JSON Schema beside what it means here
    refused = {chr(code) for code in range(0x10000) if not HTTPS.fullmatch(f"https://a{chr(code)}b")}
    controls = {chr(code) for code in (*range(0x20), *range(0x7F, 0xA0))}
    assert refused == {chr(code) for code in range(0x10000) if chr(code).isspace()} | controls | ecma_only
    assert not re.search(r"\\[sSwWdDbB]", HTTPS.pattern)
