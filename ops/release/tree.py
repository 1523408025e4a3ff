"""What a version shares with the versions beside it, read from its code as one JSON value.

Stored messages, queues, tables, calls and formats: the rules in rules.py compare two such values. Reading it imports
every service, so shared.edge.patched must be imported first (ops.cli.green does so).
"""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, get_args, get_origin, get_type_hints
from uuid import UUID

from gateway.api.cursors import Cursors
from gateway.api.openapi import document
from gateway.site.sessions import SIGN_OUT, cookie_name, form_token
from inventory_service.domain import Kind, fingerprint
from ops.domain import Fate
from ops.release import calls, tables
from ops.release.samples import sample
from order_service.domain import TABLE as LIFE
from payment_service.domain import RefundStatus, payment_id_of
from shared import auth, config, seals
from shared.edge.runner import service_class
from shared.enumerations import OperationKind, OperationStatus, PaymentStatus, ReleaseReason, ReservationState
from shared.envelope import VERSION as MESSAGE_VERSION
from shared.envelope import json_schema
from shared.events import CATALOGUE
from shared.idempotency import KeyedRequest
from shared.ids import aggregate_of
from shared.order_states import Command, Reason, Status
from shared.paging import encode_cursor
from shared.roles import ROLES
from shared.seals import Place
from shared.version import from_setup
from topology import table
from topology.services import SERVICES, publisher_of

# Advisory locks: the module and the name of each number. Two versions lock each other out by the same number only.
LOCKS = {
    "relay": ("shared.relay", "LOCK_ID"),
    "migrate": ("ops.roles", "LOCK_ID"),
    "work on a DLQ": ("ops.locks", "LOCK_CLASS"),
    "orders of a user": ("order_service.new_orders", "TURNS_OF_USERS"),
    "new skus": ("catalog_service.editor", "NEW_SKUS"),
    "seal": ("inventory_service.audit.chain", "SEAL_LOCK"),
    "whether a sku is stocked or made": ("inventory_service.recipes.queries", "LOCK_CLASS"),
    "mails of an address or a network": ("auth_service.proofs", "TURNS_OF_MAILS"),
}

# Ids that are made of a name: the module and the name of each namespace.
NAMESPACES = {
    "aggregates": ("shared.ids", "AGGREGATE_NAMESPACE"),
    "payments": ("payment_service.domain", "PAYMENT_NAMESPACE"),
    "dead messages": ("ops.dlq.dead_messages", "NAMESPACE"),
}

# Words that one version writes and another reads. The lists of the order's life are made from its table instead.
WORDS: dict[str, type[StrEnum]] = {
    "reservation state": ReservationState,
    "reservation kind": Kind,
    "release reason": ReleaseReason,
    "payment status": PaymentStatus,
    "refund status": RefundStatus,
    "operation kind": OperationKind,
    "operation status": OperationStatus,
    "fate of a dead message": Fate,
    "command to an order": Command,
}

_KEY, _KEYS = "k" * 32, (("a", "k" * 32),)
_ID = UUID("6f1b1b5e-6c0a-4d56-9b1e-2f1f0f8f5a01")
_THEN = datetime(2026, 1, 14, 10, 30, tzinfo=UTC)

# Formats that one version writes and another reads: an example of each, with a fixed key, id and time.
FORMATS: dict[str, Callable[[], str]] = {
    "cursor": lambda: Cursors(_KEYS, "/api/orders").sign(encode_cursor(["a", 1], {"status": "PAID"})),
    "claims of a token": lambda: json.dumps([auth.ALGORITHM, auth.ISSUER, auth.AUDIENCE, auth.REQUIRED]),
    "claims of a session": lambda: json.dumps([auth.ALGORITHM, auth.ISSUER, auth.DASHBOARD, auth.REQUIRED]),
    "cookie": lambda: cookie_name(production=True),
    "token of a form": lambda: form_token(_KEY, SIGN_OUT, "a"),
    "fingerprint of a request": lambda: KeyedRequest("ann", "POST /", "key", {"b": 1, "a": "é"}).fingerprint,
}

# What this version reads and does not write, not yet or no more, by the name of its list: event types under "event",
# words, examples of a format. The release after this one may write it, or not read it any more.
NOT_WRITTEN: dict[str, tuple[str, ...]] = {"event": ()}

_OF_RECIPES = (
    "more than a million of a sku comes of recipes alone. Only the gateway of this release has a call that makes one, "
    "and the gateway comes last"
)
# Fields of events whose limits are wider than in the last release, and why it never meets what it would refuse.
WIDENED: dict[str, str] = {
    "inventory.committed payload.items[].quantity": _OF_RECIPES,
    "inventory.failed payload.shortages[].requested": _OF_RECIPES,
    "inventory.released payload.items[].quantity": _OF_RECIPES,
}

# New columns without a default that the last release fills without naming them, and how.
FILLED: dict[str, str] = {
    "auth.users.user_id": "a trigger fills in the name, which the last release always gives",
}

Tree = dict[str, Any]


def tree() -> Tree:
    """The whole, as plain JSON values."""
    read = {
        "version": from_setup(),
        "events": events(),
        "widened": WIDENED,
        "filled": FILLED,
        "exchanges": table.exchanges(),
        "queues": queues(),
        "bindings": [list(binding) for binding in table.bindings()],
        "services": {
            row.name: {"calls": list(row.calls), "publishes": list(row.publishes), "hints": row.hints}
            for row in SERVICES
        },
        "rpc": calls.methods(),
        "calls": calls.calls(),
        "errors": calls.error_classes(),
        "tables": tables.tables(),
        "migrations": tables.migrations(),
        "words": words(),
        "fixed": fixed(),
        "settings": settings(),
        "http": http(),
    }
    return json.loads(json.dumps(read))


def events() -> dict[str, Any]:
    """Each type: who publishes it, whether this version does, its fields, and a message with all of them."""
    found = {}
    for type_, payload in CATALOGUE.items():
        defaults = dict(_defaults(payload, "payload"))
        found[type_] = {
            "version": MESSAGE_VERSION,
            "publisher": publisher_of(type_),
            "published": type_ not in NOT_WRITTEN["event"],
            "fields": {
                path: about | ({} if about["required"] else {"default": defaults.get(path)})
                for path, about in fields_of(json_schema(type_))
            },
            "sample": sample(type_),
        }
    return found


def fields_of(schema: Mapping[str, Any], path: str = "", required: bool = True) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each value of a JSON Schema by its path, as in `payload.items[].sku`; lists and objects are values too."""
    inner, nullable = schema, False
    if "anyOf" in schema:
        (inner,) = [one for one in schema["anyOf"] if one != {"type": "null"}]
        nullable = True
    parts = ("properties", "required", "items", "description", "title", "$schema")
    about = {name: value for name, value in inner.items() if name not in parts}
    if path:
        yield path, about | {"required": required, "nullable": nullable}
    for name, one in inner.get("properties", {}).items():
        yield from fields_of(one, f"{path}.{name}".lstrip("."), name in inner["required"])
    if "items" in inner:
        yield from fields_of(inner["items"], f"{path}[]")


def _defaults(kind: Any, path: str) -> Iterator[tuple[str, Any]]:
    hints = get_type_hints(kind, include_extras=True)
    for one in dataclasses.fields(kind):
        place, hint = f"{path}.{one.name}", hints[one.name]
        if one.default is not dataclasses.MISSING:
            yield place, one.default
        inner = get_args(hint)[0] if get_origin(hint) is tuple else hint
        if dataclasses.is_dataclass(inner):
            yield from _defaults(inner, f"{place}[]" if inner is not hint else place)


def queues() -> dict[str, Any]:
    """Every lasting queue: its arguments, and for a main queue the service that consumes it."""
    consumers = {queue.name: queue.service for queue in table.QUEUES}
    arguments = table.queue_arguments() | {name: {} for name in table.rpc_queues()}
    return {name: {"consumer": consumers.get(name), "arguments": of} for name, of in arguments.items()}


def words() -> dict[str, dict[str, list[str]]]:
    """Each list of words and each format: what this version reads, and what it writes."""
    lists = {name: ([word.value for word in kind], [word.value for word in kind]) for name, kind in WORDS.items()}
    lists["order status"] = (
        [word.value for word in Status],
        [Status.PENDING.value, *sorted({rule.becomes.value for rule in LIFE if rule.becomes})],
    )
    lists["order reason"] = ([word.value for word in Reason], sorted({rule.reason for rule in LIFE if rule.reason}))
    lists["role"] = (list(ROLES), list(ROLES))
    for name, example in FORMATS.items():
        lists[name] = ([example(), *NOT_WRITTEN.get(name, ())], [example()])
    return {
        name: {"reads": reads, "writes": [word for word in writes if word not in NOT_WRITTEN.get(name, ())]}
        for name, (reads, writes) in lists.items()
    }


def fixed() -> dict[str, str]:
    """What never changes, each under its name."""
    seal = Place(7, (70, 700), 7000, _THEN)
    return {
        **{f"lock: {name}": str(_named(*place)) for name, place in LOCKS.items()},
        **{f"namespace: {name}": str(_named(*place)) for name, place in NAMESPACES.items()},
        "id of an aggregate": str(aggregate_of("sku", "lamp")),
        "id of a payment": str(payment_id_of(_ID)),
        "seal": seals.seal_mac(_KEY, seals.GENESIS, seal, [["a", 1, None]]),
        "manifest of an export": seals.manifest_mac(_KEY, {"rows": 1}),
        "fingerprint of what an order asks for": str(fingerprint({"lamp": 2, "desk": 1})),
        "name of a key": seals.key_id(_KEY),
    }


def settings() -> dict[str, Any]:
    """Each setting: its defaults and who reads it."""
    return {
        row.variable: {
            "default": row.default,
            "production": row.default_in("production"),
            "secret": row.secret is not None,
            "roles": list(row.roles),
        }
        for row in config.TABLE
    }


def http() -> dict[str, Any]:
    """Every route of the API with what it reads and answers, and the schemas that they name."""
    read = document(service_class("gateway"))
    routes = {
        f"{verb.upper()} {path}": _route(operation)
        for path, operations in read["paths"].items()
        for verb, operation in operations.items()
    }
    return {"routes": routes, "schemas": {name: _shape(one) for name, one in read["components"]["schemas"].items()}}


def _route(operation: Mapping[str, Any]) -> dict[str, Any]:
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    return {
        "roles": operation.get("x-roles"),
        "parameters": {
            f"{one['in']} {one['name']}": {"required": one.get("required", False), "schema": _shape(one["schema"])}
            for one in operation["parameters"]
        },
        "body": _shape(body) if body else None,
        "answers": {
            status: {kind: _shape(content["schema"]) for kind, content in answer.get("content", {}).items()}
            for status, answer in operation["responses"].items()
        },
    }


_PROSE = frozenset({"deprecated", "description", "example", "examples", "title"})


def _shape(schema: Any) -> Any:
    """A schema without what only people read."""
    if isinstance(schema, list):
        return [_shape(one) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    if set(schema) == {"$ref"}:
        return str(schema["$ref"]).removeprefix("#/components/schemas/")
    return {
        name: {field: _shape(one) for field, one in value.items()} if name == "properties" else _shape(value)
        for name, value in schema.items()
        if name not in _PROSE
    }


def _named(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)
