"""Where a request of a person came from."""

import pytest

from auth_service.records import Origin
from gateway.api.http import Call
from gateway.origins import origin_of
from shared.events import Identity
from shared.ids import new_trace_id, uuid7


def call(**more):
    return Call(new_trace_id(), None, **more)


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_a_household_with_ipv6_is_one_network(address, network):
    assert origin_of(call(address=address))["network"] == network


@pytest.mark.parametrize(
    ("sent", "kept"),
    [("curl/8.5", "curl/8.5"), ("a" * 200, "a" * 100), (" a\x00b\x1b[31mc\xffd ", "a b [31mc d"), ("", "")],
)
def test_what_a_client_calls_itself_is_short_and_printable(sent, kept):
    assert origin_of(call(client=sent))["client"] == kept


def test_auth_service_reads_what_the_gateway_says():
    session_id = uuid7()
    said = origin_of(call(address="192.0.2.7", client="app", session_id=str(session_id)))
    assert Origin.read(said, Identity("ann", ())) == Origin("ann", "192.0.2.7", session_id, "app")
    assert Origin.read(origin_of(call())) == Origin()
