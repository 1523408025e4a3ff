"""Why there is no connection, in words that help."""

import socket

import eventlet
import pytest
from amqp.exceptions import AccessRefused, ConnectionForced, NotFound, PreconditionFailed

from shared.edge.broker import BROKER_ERRORS, BrokerConnection, BrokerSilent, in_brief, why
from shared.errors import BrokerInAlarm, CannotWork, ProviderAway
from topology import declare


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionRefusedError(111, "refused"), "the broker is away (ConnectionRefusedError)"),
        (BrokerSilent("silent"), "the broker is away (BrokerSilent)"),
        (ConnectionForced("shutdown"), "the broker is away (ConnectionForced)"),
        (AccessRefused("ACCESS_REFUSED - login refused"), "the broker refuses (AccessRefused)"),
        (PreconditionFailed("PRECONDITION_FAILED - arg"), "the broker refuses (PreconditionFailed)"),
        (
            NotFound("NOT_FOUND - no queue 'q.x' in vhost 'ecom'"),
            "a queue is not there; `ecom topology apply` declares what is missing",
        ),
        (NotFound("NOT_FOUND - queue 'q.x' in vhost 'ecom' process is stopped"), "the broker refuses (NotFound)"),
    ],
)
def test_an_absent_broker_a_refusing_one_and_a_missing_queue_are_told_apart(error, words):
    assert why(error) == words


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (BrokerInAlarm("the broker is in alarm: disk"), "the broker is in alarm: disk"),
        (ProviderAway("no answer from https://..."), "ProviderAway"),
    ],
)
def test_what_there_is_too_little_of_is_said_and_of_other_errors_the_class(error, words):
    assert in_brief(error) == words


@pytest.mark.parametrize(("host", "listens_on"), [("[::1]", "::1"), ("127.0.0.1", "127.0.0.1")])
def test_the_broker_may_have_an_ipv6_address(host, listens_on):
    """A listener that closes each connection stands in for the broker: it has heard the client's greeting."""
    with socket.create_server(
        (listens_on, 0), family=socket.AF_INET6 if ":" in listens_on else socket.AF_INET
    ) as listener:
        heard = eventlet.spawn(greeting, listener)
        with pytest.raises(BROKER_ERRORS):
            BrokerConnection(f"amqp://u:p@{host}:{listener.getsockname()[1]}/v", 10)
        assert heard.wait().startswith(b"AMQP")


def greeting(listener):
    sock, _ = listener.accept()
    with sock:
        return sock.recv(8)


@pytest.mark.parametrize("url", ["http://u:p@[::1]:15672", "http://[::1]"])
def test_the_management_of_the_broker_may_have_an_ipv6_address(url, monkeypatch):
    asked = []

    def refuse(request, timeout, context):
        asked.append(request.full_url)
        raise OSError("nobody is there")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(CannotWork):
        declare.management_of(url, "amqp://u:p@h/ecom").bindings("ecom")
    assert asked == ["http://[::1]:15672/api/bindings/ecom"]
