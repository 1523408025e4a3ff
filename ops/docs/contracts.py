"""Writes docs/contracts from the catalogue and the topology, and calls the writers of other generated pages:

    python -m ops.docs.contracts

It writes one JSON Schema for each event type, and an AsyncAPI 3 document that says which service publishes and which
consumes each type. A test fails when the files differ from what this writes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ops.docs import architecture, budgets, diagrams, readme, settings
from ops.release import compatibility
from shared.envelope import CONTRACT_VERSION, json_schema
from shared.events import CATALOGUE
from shared.version import VERSION
from topology.services import BY_NAME, PUBLISHERS, publisher_of
from topology.table import EVENTS_EXCHANGE, QUEUES, RETRY_WAITS_S, UNHEARD, Queue, dead_letter_queue, hears

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "contracts"


def documents() -> dict[str, dict[str, Any]]:
    """The content of every file under docs/contracts, by name."""
    schemas = {f"{CONTRACT_VERSION}/{type_}.schema.json": json_schema(type_) for type_ in CATALOGUE}
    return {**schemas, "asyncapi.json": asyncapi()}


def asyncapi() -> dict[str, Any]:
    """The AsyncAPI 3.1 document."""
    operations: dict[str, Any] = {}
    for type_ in CATALOGUE:
        operations[f"tell-{type_}"] = {
            "action": "send",
            "channel": {"$ref": f"#/channels/{_key(type_)}"},
            "summary": f"{publisher_of(type_)} publishes {type_}",
            "description": f"{_meaning(type_)} It is committed to the outbox with its change; the relay publishes it.",
            "tags": [{"name": publisher_of(type_)}],
            "bindings": {"amqp": {"mandatory": type_ not in UNHEARD, "deliveryMode": 2, "bindingVersion": "0.3.0"}},
        }
    for queue in QUEUES:
        for type_ in consumed_from(queue):
            operations[f"hear-{queue.name}-{type_}"] = {
                "action": "receive",
                "channel": {"$ref": f"#/channels/{_key(type_)}"},
                "summary": f"{queue.service} consumes {type_} from {queue.name}",
                "description": (
                    f"{_meaning(type_)} A message may arrive more than once and in any order. One that fails is tried "
                    f"again {len(RETRY_WAITS_S)} times and then goes to {dead_letter_queue(queue.name)}."
                ),
                "tags": [{"name": queue.service}],
                "bindings": {"amqp": {"ack": True, "bindingVersion": "0.3.0"}},
            }
    return {
        "asyncapi": "3.1.0",
        "info": {
            "title": "ecom events",
            "version": VERSION,
            "description": "Order, inventory and payment settle each order among themselves by these events.",
            "contact": {"name": "The operators of this installation"},
            "tags": [{"name": name, "description": BY_NAME[name].purpose} for name in PUBLISHERS],
        },
        "servers": {
            "broker": {
                "host": "{host}",
                "protocol": "amqp",
                "description": "The broker of the setting AMQP_URI.",
                "variables": {"host": {"default": "localhost:5672", "description": "Its host and port."}},
            }
        },
        "defaultContentType": "application/json",
        "channels": {
            _key(type_): {
                "address": type_,
                "messages": {_key(type_): {"$ref": f"#/components/messages/{_key(type_)}"}},
                "bindings": {
                    "amqp": {
                        "is": "routingKey",
                        "exchange": {"name": EVENTS_EXCHANGE, "type": "topic", "durable": True, "autoDelete": False},
                        "bindingVersion": "0.3.0",
                    }
                },
            }
            for type_ in CATALOGUE
        },
        "operations": operations,
        "components": {
            "messages": {
                _key(type_): {
                    "name": type_,
                    "contentType": "application/json",
                    "payload": {key: value for key, value in json_schema(type_).items() if key != "$schema"},
                }
                for type_ in CATALOGUE
            }
        },
    }


def consumed_from(queue: Queue) -> list[str]:
    """The event types a queue is bound to."""
    return [type_ for type_ in CATALOGUE if hears(queue, type_)]


def _meaning(type_: str) -> str:
    return (CATALOGUE[type_].__doc__ or "").strip()


def _key(type_: str) -> str:
    return type_.replace(".", "-")


def text(document: dict[str, Any]) -> str:
    """A document as the text of its file."""
    return json.dumps(document, indent=2) + "\n"


def main() -> None:
    """Write docs/contracts, docs/sagas.md, docs/settings.md, docs/compatibility.md, the architecture's picture, and two
    tables in other pages.

    These are the processes in README.md and the budgets in docs/performance.md.
    """
    for name, document in documents().items():
        path = FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text(document), encoding="utf-8")
    diagrams.FILE.write_text(diagrams.document(), encoding="utf-8")
    architecture.main()
    readme.main()
    settings.main()
    compatibility.main()
    budgets.main()


if __name__ == "__main__":
    main()
