"""Why there is no connection, in words that help."""

import pytest
from amqp.exceptions import AccessRefused, ConnectionForced, NotFound, PreconditionFailed

from shared.edge.broker import BrokerSilent, in_brief, why
from shared.errors import BrokerInAlarm, ProviderAway


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
