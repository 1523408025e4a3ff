"""The client's address: X-Forwarded-For counts only when a trusted proxy sent it."""

import pytest

from gateway.api.addresses import Proxies
from shared.config import Settings
from tests.unit.serving import KEYS, ask, serving
from tests.unit.test_gateway_http import Gateway

PROXY, INNER, CLIENT, OTHER = "10.0.0.1", "10.0.0.2", "192.0.2.7", "198.51.100.9"


@pytest.mark.parametrize(
    ("trusted", "peer", "header", "address"),
    [
        ((), PROXY, CLIENT, PROXY),
        ((PROXY,), CLIENT, OTHER, CLIENT),
        ((PROXY,), PROXY, None, PROXY),
        ((PROXY,), PROXY, CLIENT, CLIENT),
        ((PROXY,), PROXY, f"{OTHER}, {CLIENT}", CLIENT),  # the client wrote the first one itself
        ((PROXY,), PROXY, f"{OTHER},{CLIENT},{INNER}", INNER),
        (("10.0.0.0/8",), PROXY, f"{OTHER}, {CLIENT}, {INNER}", CLIENT),
        (("10.0.0.0/8",), PROXY, f"{INNER}, {INNER}", INNER),
        (("10.0.0.0/8",), PROXY, "", PROXY),
        (("10.0.0.0/8",), PROXY, "unknown", PROXY),
        (("10.0.0.0/8",), PROXY, f"{CLIENT}, 999.1.1.1, {INNER}", INNER),
        (("10.0.0.0/8",), PROXY, f"{CLIENT},,{INNER}", INNER),
        (("10.0.0.0/8",), PROXY, f"{CLIENT}:4711", PROXY),
        (("2001:db8::/32",), "2001:db8::1", "2001:DB8:1::7, 2001:db9::7", "2001:db9::7"),
        (("2001:db8::/32",), "2001:db8::1", CLIENT, CLIENT),
        ((PROXY,), f"::ffff:{PROXY}", f"::ffff:{CLIENT}", CLIENT),
        ((PROXY,), "no address", CLIENT, "no address"),
        ((PROXY,), f"::ffff:{PROXY}", "[2001:db8::7]:4711", "2001:db8::7"),
        ((PROXY,), PROXY, "[2001:db8::7]", "2001:db8::7"),
        ((PROXY,), PROXY, "[2001:db8::7", PROXY),
        (("0.0.0.0/0",), PROXY, f"{OTHER}, {CLIENT}", OTHER),
    ],
)
def test_the_address_is_the_first_from_the_right_that_is_no_trusted_proxy(trusted, peer, header, address):
    environ = {"REMOTE_ADDR": peer} | ({} if header is None else {"HTTP_X_FORWARDED_FOR": header})
    assert Proxies(trusted).client_address(environ) == address


@pytest.mark.parametrize(("trusted", "limited"), [(("127.0.0.0/8",), False), (("10.0.0.0/8",), True), ((), True)])
def test_clients_behind_a_trusted_proxy_have_a_limit_each(trusted, limited):
    settings = Settings(auth_keys=KEYS, rate_address_per_min=1, trusted_proxies=trusted)
    with serving(Gateway, settings=settings) as server:
        first, second = (
            ask(server, "GET", "/api/stocks", headers={"X-Forwarded-For": f"{OTHER}, 192.0.2.{n}"})[0] for n in (1, 2)
        )
        again = ask(server, "GET", "/api/stocks", headers={"X-Forwarded-For": "203.0.113.1, 192.0.2.1"})[0]
    assert (first, second, again) == (401, 429 if limited else 401, 429)


def test_a_header_spelled_with_underscores_is_not_read():
    settings = Settings(auth_keys=KEYS, rate_address_per_min=1, trusted_proxies=("127.0.0.1",))
    with serving(Gateway, settings=settings) as server:
        statuses = [
            ask(server, "GET", "/api/stocks", headers={"X-Forwarded-For": CLIENT, "X_Forwarded_For": f"192.0.2.{n}"})[0]
            for n in (1, 2)
        ]
    assert statuses == [401, 429]
