"""Who may send what: the table of senders, for events, calls and replies."""

from dataclasses import replace

import pytest

from shared.config import Settings, read
from shared.edge.settings import sender_rules
from shared.errors import Forbidden, Forged
from shared.events import CATALOGUE
from shared.senders import PUBLISHER, SHELL_USER, UNSIGNED, SenderRules, is_by_hand, known, sender_of
from topology.services import NAMES, SERVICES, publisher_of
from topology.users import broker_user

STRICT = SenderRules(checked=True, unsigned=False, shell=False)
DEVELOPMENT = replace(STRICT, shell=True)
UPGRADE = replace(STRICT, unsigned=True)
UNCHECKED = replace(STRICT, checked=False)

EVENT = "order.cancelled"  # order publishes it, payment hears it
PAYMENT, ORDER, OPS, GATEWAY = map(broker_user, ("payment", "order", "ops", "gateway"))


def accepted(rules: SenderRules, sender: str | None, type_: str = EVENT, by_hand: bool = False) -> bool:
    try:
        rules.check_event(sender, type_, by_hand)
    except Forged:
        return False
    return True


def may_call(
    rules: SenderRules, user: str | None, rpc_name: str = "order_service", key: str = "order_service.cancel"
) -> bool:
    try:
        rules.check_caller(user, rpc_name, key)
    except Forbidden:
        return False
    return True


@pytest.mark.parametrize(
    ("user_id", "told", "sender"),
    [
        (ORDER, None, ORDER),
        (ORDER, PAYMENT, ORDER),  # from a publisher the header means nothing
        (GATEWAY, ORDER, GATEWAY),
        (SHELL_USER, ORDER, SHELL_USER),
        (None, None, None),
        ("", ORDER, None),
        (None, ORDER, None),
        (None, UNSIGNED, None),
        (["order"], ORDER, None),  # a person may have written it into a file
        (PAYMENT, ORDER, ORDER),  # sent on by its consumer
        (OPS, ORDER, ORDER),  # replayed
        (PAYMENT, UNSIGNED, UNSIGNED),
        (OPS, UNSIGNED, UNSIGNED),
        (PAYMENT, None, PAYMENT),
        (OPS, None, OPS),
        (OPS, 7, OPS),
        (OPS, "", OPS),
    ],
)
def test_the_sender_is_the_user_who_published_it_as_those_may_say_who_have_sent_it_on(user_id, told, sender):
    headers = {} if told is None else {PUBLISHER: told}
    assert sender_of(user_id, headers, "payment") == sender


@pytest.mark.parametrize("event_type", CATALOGUE)
def test_each_event_is_accepted_from_its_publisher_and_from_no_other_service(event_type):
    for service in NAMES:
        is_publisher = service == publisher_of(event_type)
        for rules in (STRICT, DEVELOPMENT, UPGRADE):
            assert accepted(rules, broker_user(service), event_type) == is_publisher, (service, rules)


@pytest.mark.parametrize(
    ("rules", "sender", "by_hand", "expected"),
    [
        (STRICT, None, False, False),
        (STRICT, None, True, False),
        (STRICT, SHELL_USER, True, False),
        (STRICT, "guest", False, False),
        (STRICT, UNSIGNED, False, True),  # its consumer or an operator vouches for it
        (UPGRADE, None, False, True),
        (UPGRADE, SHELL_USER, True, False),
        (DEVELOPMENT, None, False, False),
        (DEVELOPMENT, None, True, True),  # a stock nameko shell
        (DEVELOPMENT, SHELL_USER, False, True),
        (UNCHECKED, None, False, True),
        (UNCHECKED, "guest", False, True),
        (UNCHECKED, PAYMENT, False, True),
    ],
)
def test_an_event_that_no_service_has_signed(rules, sender, by_hand, expected):
    assert accepted(rules, sender, by_hand=by_hand) == expected


@pytest.mark.parametrize(
    ("source", "key", "expected"),
    [("shell", EVENT, True), ("order_service", EVENT, False), ("shell", "payment.failed", False)],
)
def test_an_event_is_by_hand_if_it_says_so_and_came_by_its_own_key(source, key, expected):
    assert is_by_hand(source, EVENT, key) == expected


def test_a_forged_event_is_named_with_its_sender_and_its_publisher():
    with pytest.raises(Forged, match=f"^{EVENT} was sent by {PAYMENT}, and {ORDER} publishes it$"):
        STRICT.check_event(PAYMENT, EVENT)
    with pytest.raises(Forged, match=f"^{EVENT} was sent without user_id, and {ORDER} publishes it$"):
        STRICT.check_event(None, EVENT)


@pytest.mark.parametrize("callee", SERVICES, ids=lambda service: service.name)
def test_each_service_is_called_by_those_that_the_table_names_and_by_no_other(callee):
    for caller in SERVICES:
        for rules in (STRICT, DEVELOPMENT, UPGRADE):
            assert may_call(rules, broker_user(caller.name), callee.rpc_name) == (callee.name in caller.calls)


@pytest.mark.parametrize(
    ("rules", "user", "expected"),
    [
        (STRICT, None, False),
        (STRICT, SHELL_USER, False),
        (STRICT, UNSIGNED, False),
        (STRICT, "guest", False),
        (UPGRADE, None, True),
        (UPGRADE, SHELL_USER, False),
        (DEVELOPMENT, None, True),
        (DEVELOPMENT, SHELL_USER, True),
        (DEVELOPMENT, "guest", False),
        (UNCHECKED, "guest", True),
        (UNCHECKED, None, True),
    ],
)
def test_a_call_that_no_service_has_signed(rules, user, expected):
    assert may_call(rules, user) == expected


@pytest.mark.parametrize("rules", [STRICT, DEVELOPMENT, UPGRADE])
def test_a_call_that_nobody_has_signed_must_have_come_by_the_key_of_the_service(rules):
    assert not may_call(rules, None, key="reply.gateway.1.cancel")


@pytest.mark.parametrize(
    ("rules", "user", "expected"),
    [
        (STRICT, ORDER, True),
        (STRICT, PAYMENT, False),
        (STRICT, None, False),
        (DEVELOPMENT, None, False),
        (DEVELOPMENT, SHELL_USER, False),
        (UPGRADE, None, True),
        (UPGRADE, PAYMENT, False),
        (UNCHECKED, None, True),
    ],
)
def test_a_reply_is_believed_from_the_service_that_was_called(rules, user, expected):
    assert rules.believes_answer(user, "order_service") == expected
    assert rules.believes_answer(user, "nobody_service") == (expected and user is None)


@pytest.mark.parametrize(
    ("environment", "rules"),
    [
        ({"AMQP_URI": "amqp://ecom-order:x@h/ecom"}, DEVELOPMENT),
        ({"AMQP_URI": "amqp://ecom-order:x@h/ecom", "ACCEPT_UNSIGNED": "1"}, replace(DEVELOPMENT, unsigned=True)),
        ({"AMQP_URI": "amqp://ecom%2Dorder:x@h/ecom"}, DEVELOPMENT),
        ({"AMQP_URI": "amqp://guest:guest@h//"}, replace(DEVELOPMENT, checked=False)),
        ({"AMQP_URI": "amqp://ecom-shell:x@h/ecom"}, replace(DEVELOPMENT, checked=False)),
        ({}, replace(DEVELOPMENT, checked=False)),
    ],
)
def test_the_rules_follow_from_the_settings(environment, rules):
    assert sender_rules(read({"ECOM_ENV": "development", **environment})) == rules


def test_in_production_no_shell_is_accepted():
    assert sender_rules(Settings(env="production", amqp_uri="amqp://ecom-order:x@h/ecom")) == STRICT


@pytest.mark.parametrize(
    ("sender", "label"),
    [(PAYMENT, PAYMENT), (SHELL_USER, SHELL_USER), (None, UNSIGNED), (UNSIGNED, UNSIGNED), ("x" * 300, "other")],
)
def test_a_metric_has_few_senders(sender, label):
    assert known(sender) == label
