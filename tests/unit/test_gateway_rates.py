"""Rate limits by user and by address."""

import json
import time

import eventlet
import pytest
from limits.storage import MemoryStorage

from gateway.api import rates
from gateway.api.rates import Rate, Rates
from shared.config import Settings
from shared.edge.shares import network_of
from shared.errors import RateLimited
from shared.events import Identity
from tests.unit.serving import KEYS, ask, serving
from tests.unit.test_gateway_http import BEHIND, Gateway, bearer, code


@pytest.fixture
def gateway(request):
    BEHIND.answer = {}
    BEHIND.asked.clear()
    with serving(Gateway, settings=Settings(auth_keys=KEYS, **request.param)) as server:
        yield server


def limits(**settings):
    return pytest.mark.parametrize("gateway", [settings], indirect=True, ids=str)


def stocks(gateway, sub="alice", role="customer"):
    return ask(gateway, "GET", "/api/stocks", headers=bearer(role, sub=sub))


@limits(rate_user_per_min=3)
def test_a_user_with_too_many_requests_gets_429_with_retry_after(gateway):
    assert [stocks(gateway)[0] for _ in range(3)] == [200] * 3
    answer = stocks(gateway)
    assert code(answer) == (429, "rate_limited")
    assert 1 <= int(answer[1]["Retry-After"]) <= 61
    assert answer[2]["error"]["details"] == {"limit": 3, "retry_after": int(answer[1]["Retry-After"])}
    assert len(BEHIND.asked) == 3


@limits(rate_user_per_min=7, rate_address_per_min=100, rate_shares=3)
def test_a_gateway_that_shares_its_limits_with_others_allows_its_part_and_names_the_whole(gateway):
    assert [stocks(gateway)[0] for _ in range(3)] == [200, 200, 429]
    assert stocks(gateway)[2]["error"]["details"]["limit"] == 7
    for sub in range(100):  # 29 of the 33 that are its part are left for their address
        if stocks(gateway, sub=f"user-{sub}")[0] == 429:
            break
    assert sub == 29


@limits(rate_user_per_min=2, rate_shares=3)
def test_a_share_is_at_least_one_request(gateway):
    assert [stocks(gateway)[0] for _ in range(2)] == [200, 429]


@limits(rate_user_per_min=3)
def test_each_user_has_one_limit_for_all_routes(gateway):
    for path in ("/api/stocks", "/api/v1/stocks", "/api/stocks/release-events"):  # the last is 403
        ask(gateway, "GET", path, headers=bearer("customer"))
    assert stocks(gateway)[0] == 429
    assert stocks(gateway, sub="bob")[0] == 200


@limits(rate_user_per_min=1)
def test_requests_with_a_forged_token_do_not_count_against_the_user(gateway):
    token = bearer("customer")["Authorization"]
    for _ in range(3):
        assert ask(gateway, "GET", "/api/stocks", headers={"Authorization": token + "x"})[0] == 401
    assert stocks(gateway)[0] == 200


@limits(rate_user_per_min=1)
def test_probes_documents_and_signing_in_have_no_user_limit(gateway):
    stocks(gateway)
    for path in ("/healthz", "/docs", "/api/openapi.json"):
        assert [ask(gateway, "GET", path, headers=bearer("customer"))[0] for _ in range(3)] == [200] * 3
    assert ask(gateway, "POST", "/api/auth/token", b"{}", bearer("customer"))[0] == 415


@limits(rate_address_per_min=3)
def test_the_address_limit_is_checked_before_the_token(gateway):
    assert [ask(gateway, "GET", "/api/stocks")[0] for _ in range(5)] == [401] * 3 + [429] * 2
    assert code(stocks(gateway)) == (429, "rate_limited")
    assert code(ask(gateway, "POST", "/api/auth/token", b"{}")) == (429, "rate_limited")
    assert ask(gateway, "GET", "/healthz")[0] == 200


@limits(rate_address_per_min=2)
def test_forwarding_headers_are_ignored_without_trusted_proxies(gateway):
    answers = [
        ask(gateway, "GET", "/api/stocks", headers={"X-Forwarded-For": f"192.0.2.{n}", "Forwarded": f"for=192.0.2.{n}"})
        for n in range(3)
    ]
    assert [status for status, _, _ in answers] == [401, 401, 429]


@limits(rate_user_per_min=0, rate_address_per_min=0)
def test_zero_means_no_limit(gateway, monkeypatch):
    monkeypatch.setattr(MemoryStorage, "incr", lambda *_: pytest.fail("counted"))
    assert [stocks(gateway)[0] for _ in range(20)] == [200] * 20


def refused(rate, name="alice"):
    try:
        while True:
            rate.check(name)
    except RateLimited as error:
        return error.details["retry_after"]


def test_a_client_that_waits_for_retry_after_is_let_in():
    rate = Rate("user", 5, window_s=2)
    for _ in range(3):
        eventlet.sleep(refused(rate))
        rate.check("alice")


def test_waiting_for_the_end_of_a_window_does_not_double_the_limit():
    rate = Rate("user", 20, window_s=2)
    eventlet.sleep(2 - time.time() % 2 - 0.1)  # the end of a fixed window
    admitted = 0
    began = time.time()
    while time.time() - began < 0.4:
        try:
            rate.check("alice")
            admitted += 1
        except RateLimited:
            eventlet.sleep(0.01)
    assert 20 <= admitted <= 25


def test_counters_are_bounded_and_addresses_do_not_reset_users(monkeypatch, caplog):
    monkeypatch.setattr(rates, "MAX_TRACKED", 50)
    both = Rates(Settings(rate_user_per_min=1, rate_address_per_min=1))
    both.check_user(Identity("alice", ("customer",)))
    for n in range(200):
        both.check_address(f"192.0.2.{n}")
        assert len(both._of_address._storage.storage) <= 51
    assert "all were reset" in caplog.text
    with pytest.raises(RateLimited):
        both.check_user(Identity("alice", ("customer",)))


def test_counters_are_deleted_after_their_windows():
    rate = Rate("address", 5, window_s=1)
    for n in range(20):
        rate.check(f"192.0.2.{n}")
    eventlet.sleep(2.1)
    rate.check("198.51.100.1")
    eventlet.sleep(0.05)
    assert len(rate._storage.storage) == 1
    assert len(rate._storage.locks) <= 1


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("no:address", "no:address"),
    ],
)
def test_an_ipv6_network_counts_as_one_client(address, network):
    assert network_of(address) == network


PROOFS = (
    ("/api/auth/register", {"email": "ann@example.com"}),
    ("/api/auth/verify-email", {"token": "t", "password": "an agreeable summer"}),
    ("/api/auth/password/reset", {"email": "ann@example.com"}),
    ("/api/auth/password/reset/confirm", {"token": "t", "password": "an agreeable summer"}),
    ("/api/auth/keep", {"token": "t"}),
)


@limits(rate_proofs_per_min=len(PROOFS))
def test_an_address_has_one_limit_for_all_routes_that_send_mails_or_take_tokens_from_them(gateway):
    headers = {"Content-Type": "application/json"}

    def post(path, body):
        return ask(gateway, "POST", path, json.dumps(body), headers)

    assert [post(*proof)[0] < 300 for proof in PROOFS] == [True] * len(PROOFS)
    for proof in PROOFS:
        assert code(post(*proof)) == (429, "rate_limited")
    assert len(BEHIND.asked) == len(PROOFS)
    assert post("/api/auth/login", {"login": "ann", "password": "an agreeable summer"})[0] == 200
