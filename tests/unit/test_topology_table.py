"""The topology as data: every name is derived, and every queue has its retry levels and its DLQ."""

import pytest

from shared import config
from shared.errors import ConfigurationFault
from topology import services, table
from topology.declare import Drift, Thing, _difference, binding_drift, things

names = services.NAMES
QUEUES = [queue.name for queue in table.QUEUES]


def test_names_are_derived_from_the_name_of_the_main_queue():
    assert table.retry_queues("q.a.b") == ("q.a.b.retry", "q.a.b.retry.2s", "q.a.b.retry.4s")
    assert table.dead_letter_queue("q.a.b") == "q.a.b.dlq"
    assert table.dead_letter_queue("q.a.b.dlq") == "q.a.b.dlq"
    assert table.main_queue("q.a.b.dlq") == table.main_queue("q.a.b") == "q.a.b"
    assert table.failed_exchange("order") == "ecom.failed.order"


def test_a_queue_is_named_for_its_service():
    for queue in table.QUEUES:
        assert queue.name.startswith(f"q.{queue.service}."), queue


def test_no_queue_has_two_rows():
    assert len(table.BY_NAME) == len(table.QUEUES)


@pytest.mark.parametrize("name", QUEUES)
def test_every_queue_has_its_retry_levels_and_its_dlq_only(name):
    derived = {name, *table.retry_queues(name), table.dead_letter_queue(name)}
    assert len(derived) == 2 + len(table.RETRY_WAITS_S)
    assert {queue for queue in table.queue_arguments() if queue == name or queue.startswith(f"{name}.")} == derived
    assert len(table.queue_arguments()) == len(table.QUEUES) * len(derived)


@pytest.mark.parametrize("name", QUEUES)
def test_a_retry_returns_to_its_own_queue_only(name):
    arguments = table.queue_arguments()
    for level, wait in zip(table.retry_queues(name), (1, 2, 4), strict=True):
        # The default exchange: through the topic exchange every other subscriber would get a copy.
        assert arguments[level]["x-dead-letter-exchange"] == ""
        assert arguments[level]["x-dead-letter-routing-key"] == name
        assert arguments[level]["x-message-ttl"] == wait * 1000
        assert "x-delivery-limit" not in arguments[level]


@pytest.mark.parametrize("name", QUEUES)
def test_a_message_over_the_delivery_limit_goes_to_the_dlq(name):
    arguments = table.queue_arguments()[name]
    assert arguments["x-dead-letter-exchange"] == ""
    assert arguments["x-dead-letter-routing-key"] == table.dead_letter_queue(name)
    assert arguments["x-delivery-limit"] == table.BY_NAME[name].delivery_limit


@pytest.mark.parametrize("name", QUEUES)
def test_a_dlq_drops_no_message(name):
    assert table.queue_arguments()[table.dead_letter_queue(name)] == {
        "x-queue-type": "quorum",
        "x-delivery-limit": 2_147_483_647,
    }


def test_dead_lettering_is_at_least_once():
    for name, arguments in table.queue_arguments().items():
        assert arguments["x-queue-type"] == "quorum", name
        if "x-dead-letter-routing-key" in arguments:
            assert arguments["x-dead-letter-strategy"] == "at-least-once", name
            assert arguments["x-overflow"] == "reject-publish", name


def test_every_dead_letter_has_a_target():
    arguments = table.queue_arguments()
    targets = {
        value["x-dead-letter-routing-key"] for value in arguments.values() if "x-dead-letter-routing-key" in value
    }
    assert targets <= set(arguments)


def test_every_queue_has_the_bindings_of_its_row_and_of_its_failed_exchange():
    bindings = table.bindings()
    assert len(set(bindings)) == len(bindings)
    for queue in table.QUEUES:
        bound = tuple(key for exchange, name, key in bindings if (exchange, name) == ("ecom.events", queue.name))
        assert bound == queue.bindings
        for name in (queue.name, *table.retry_queues(queue.name), table.dead_letter_queue(queue.name)):
            assert (f"ecom.failed.{queue.service}", name, name) in bindings
    # Queues for hints are made by gateways while they run, so the table has no binding for them.
    assert {exchange for exchange, _, _ in bindings} == set(table.exchanges()) - {table.HINTS_EXCHANGE}


def test_events_and_calls_have_topic_exchanges_and_hints_fan_out():
    kinds = table.exchanges()
    assert kinds.pop(table.EVENTS_EXCHANGE) == "topic"
    assert kinds.pop(table.RPC_EXCHANGE) == "topic"
    assert kinds.pop(table.HINTS_EXCHANGE) == "fanout"
    assert set(kinds.values()) == {"direct"}


@pytest.mark.parametrize(
    ("binding", "routing_key", "matches"),
    [
        ("order.created", "order.created", True),
        ("order.created", "order.cancelled", False),
        ("order.created", "order.created.again", False),
        ("order.created", "order", False),
        ("inventory.*", "inventory.reserved", True),
        ("inventory.*", "inventory.release.requested", False),
        ("inventory.*", "inventory", False),
        ("inventory.*", "payment.failed", False),
        ("*.failed", "payment.failed", True),
    ],
)
def test_a_binding_matches_as_in_a_topic_exchange(binding, routing_key, matches):
    assert table.hears(table.Queue("q.x.y", "x", (binding,)), routing_key) == matches


def calls_of(things):
    return [thing for thing in things if thing.name in table.rpc_queues()]


def test_each_service_that_others_call_has_a_queue_for_its_calls_as_stock_nameko_declares_it():
    called = {name for row in services.SERVICES for name in row.calls}
    assert table.rpc_queues() == {
        f"rpc-{name}_service": f"{name}_service.*" for name in sorted(called, key=names.index)
    }
    stock = {"durable": True, "auto_delete": False}
    assert calls_of(things()) == [Thing("queue", name, stock) for name in table.rpc_queues()]
    for queue, key in table.rpc_queues().items():
        assert ("nameko-rpc", queue, key) in table.bindings()


def test_queues_of_calls_may_be_quorum_queues():
    properties = {"durable": True, "auto_delete": False, "x-queue-type": "quorum"}
    assert calls_of(things(table.QUORUM)) == [Thing("queue", name, properties) for name in table.rpc_queues()]


@pytest.mark.parametrize(("environment", "type_"), [("development", "classic"), ("production", "quorum")])
def test_production_has_quorum_queues_of_calls(environment, type_):
    assert config.read({"ECOM_ENV": environment}, config.TOPOLOGY).rpc_queue_type == type_
    with pytest.raises(ConfigurationFault, match="RPC_QUEUE_TYPE must be classic or quorum"):
        config.read({"ECOM_ENV": environment, "RPC_QUEUE_TYPE": "stream"}, config.TOPOLOGY)


def test_results_do_not_reach_the_queues_of_commands():
    def queues_of(routing_key):
        return {queue.name for queue in table.QUEUES if table.hears(queue, routing_key)}

    assert queues_of("inventory.released") == {"q.order.inventory-result"}
    assert queues_of("inventory.reserved") == {"q.order.inventory-result", "q.payment.inventory-reserved"}
    assert queues_of("inventory.release.requested") == {"q.inventory.release-requested"}


def test_a_queue_is_declared_after_the_target_of_its_dead_letters():
    order = [thing.name for thing in things() if thing.kind == "queue"]
    assert sorted(order) == sorted([*table.queue_arguments(), *table.rpc_queues()])
    for name, arguments in table.queue_arguments().items():
        target = arguments.get("x-dead-letter-routing-key")
        assert target is None or order.index(str(target)) < order.index(name)


# What a RabbitMQ 3.10.8 said, word for word.
REFUSALS = [
    ("inequivalent arg 'x-message-ttl' for queue 'q.x' in vhost '/': received '1000' but current is '5000'", 5000),
    (
        "inequivalent arg 'x-message-ttl' for queue 'q.x' in vhost '/': received none but current is"
        " the value '5000' of type 'signedint'",
        5000,
    ),
    (
        "inequivalent arg 'x-message-ttl' for queue 'q.x' in vhost '/': received the value '5' of type 'signedint'"
        " but current is none",
        None,
    ),
    ("inequivalent arg 'durable' for queue 'q.x' in vhost '/': received 'true' but current is 'false'", False),
    ("inequivalent arg 'x-overflow' for queue 'q.x' in vhost '/': received 'a' but current is ''", ""),
]


@pytest.mark.parametrize(("text", "current"), REFUSALS)
def test_a_refusal_names_the_argument_and_its_value_at_the_broker(text, current):
    name = text.split("'")[1]
    assert _difference(f"PRECONDITION_FAILED - {text}") == (name, current)


@pytest.mark.parametrize(
    "text",
    [
        "PRECONDITION_FAILED - invalid arg 'x-dead-letter-strategy' for queue 'q.x' in vhost '/'",
        # The broker cuts its text at 255 bytes.
        "PRECONDITION_FAILED - inequivalent arg 'x-dead-letter-routing-key' for queue 'q.x' in vhost '/': rece...",
    ],
)
def test_a_refusal_without_a_difference_yields_none(text):
    assert _difference(text) is None


def test_bindings_of_the_table_and_of_other_queues_are_no_drift():
    seen = {*table.bindings(), ("", "q.order.inventory-result", "q.order.inventory-result")}
    assert binding_drift({*seen, ("ecom.events", "somebody-elses", "#")}) == []


def test_a_missing_binding_and_an_extra_one_are_drift():
    lost = ("ecom.events", "q.order.inventory-result", "inventory.*")
    seen = {*table.bindings(), ("ecom.events", "q.order.inventory-result", "inventory.#")} - {lost}
    assert binding_drift(seen) == [
        Drift("binding", "ecom.events -> q.order.inventory-result (inventory.*)", "is missing"),
        Drift("binding", "ecom.events -> q.order.inventory-result (inventory.#)", "is not in the table"),
    ]


def test_a_queue_hears_what_any_of_its_bindings_matches():
    queue = table.Queue("q.x.y", "x", ("order.paid", "user.*"))
    assert [key for key in ("order.paid", "user.left", "order.created", "user") if table.hears(queue, key)] == [
        "order.paid",
        "user.left",
    ]


def test_a_queue_is_bound_by_every_one_of_its_bindings(monkeypatch):
    queue = table.Queue("q.x.y", "x", ("order.paid", "user.*"))
    monkeypatch.setattr(table, "QUEUES", (queue,))
    bound = [key for exchange, name, key in table.bindings() if exchange == table.EVENTS_EXCHANGE]
    assert bound == ["order.paid", "user.*"]
