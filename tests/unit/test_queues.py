"""A row of the table of queues is complete: a handler, a predictor, and rules for every event that it hears."""

import inspect

import pytest

from ops.dlq.diagnose import PREDICTORS
from order_service import domain
from shared.edge.consumer import Handles
from shared.edge.runner import service_class
from shared.events import CATALOGUE
from topology.table import QUEUES, Queue, hears


def handlers_of(service: str) -> list[str]:
    """The queues that the methods of a service handle."""
    return [
        entrypoint.queue
        for _, method in inspect.getmembers(service_class(service), inspect.isfunction)
        for entrypoint in getattr(method, "nameko_entrypoints", ())
        if isinstance(entrypoint, Handles)
    ]


@pytest.mark.parametrize("queue", QUEUES, ids=lambda queue: queue.name)
def test_every_queue_has_one_handler_in_its_service(queue: Queue) -> None:
    assert handlers_of(queue.service).count(queue.name) == 1


def test_every_queue_has_a_predictor() -> None:
    assert set(PREDICTORS) == {queue.name for queue in QUEUES}


@pytest.mark.parametrize("queue", [queue for queue in QUEUES if queue.service == "order"], ids=lambda queue: queue.name)
def test_an_order_has_a_rule_for_every_event_of_its_queues(queue: Queue) -> None:
    known = {rule.hears for rule in domain.TABLE}

    assert [type_ for type_ in CATALOGUE if hears(queue, type_) and type_ not in known] == []
