"""The tables and the services agree: queues have handlers, predictors and rules; events and calls have both ends."""

import ast
import inspect
from pathlib import Path

import pytest

from ops.dlq.diagnose import PREDICTORS
from ops.release.tree import NOT_WRITTEN
from order_service import domain
from shared.edge.consumer import Handles
from shared.edge.rpc import Rpc
from shared.edge.rpc_proxy import RpcProxy
from shared.edge.runner import service_class
from shared.events import CATALOGUE, OrderPayload
from topology import services
from topology.table import QUEUES, Queue, hears

ROOT = Path(__file__).resolve().parents[2]


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

    about_orders = [type_ for type_, payload in CATALOGUE.items() if issubclass(payload, OrderPayload)]
    assert [type_ for type_ in about_orders if hears(queue, type_) and type_ not in known] == []


@pytest.mark.parametrize("type_", CATALOGUE)
def test_every_event_is_made_somewhere_in_its_publisher(type_: str) -> None:
    package = services.BY_NAME[services.publisher_of(type_) or ""].package
    made = {node.id for tree in trees(package) for node in ast.walk(tree) if isinstance(node, ast.Name)}

    if type_ in NOT_WRITTEN["event"]:
        assert CATALOGUE[type_].__name__ not in made, f"{package} makes {type_}: take it out of NOT_WRITTEN"
    else:
        assert CATALOGUE[type_].__name__ in made, f"nothing in {package} makes {type_}"


def test_every_call_of_the_gateway_has_an_rpc_method() -> None:
    proxies = {
        name: proxy.service
        for name, proxy in inspect.getmembers(service_class("gateway"), lambda item: isinstance(item, RpcProxy))
    }
    calls = {
        (proxies[node.value.attr], node.attr)
        for tree in trees("gateway")
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Attribute)
        and isinstance(node.value.value, ast.Name)
        and (node.value.value.id, node.value.attr in proxies) == ("self", True)
    }
    answered = {
        (service_class(row.name).name, name)
        for row in services.SERVICES
        for name, method in inspect.getmembers(service_class(row.name), inspect.isfunction)
        if any(isinstance(entrypoint, Rpc) for entrypoint in getattr(method, "nameko_entrypoints", ()))
    }

    assert len(calls) > 20
    assert calls - answered == set()


def trees(package: str) -> list[ast.Module]:
    """The modules of a package, without its migrations."""
    files = [file for file in (ROOT / package).rglob("*.py") if "migrations" not in file.parts]
    return [ast.parse(file.read_text(encoding="utf-8")) for file in files]
