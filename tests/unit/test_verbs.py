"""Who may do what, by RPC: each method of each service is called by every pair of roles, for the owner and a stranger.

The words of docs/http.md say who may. `tests/unit/test_gateway_http.py` tries the same pairs at the routes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import combinations
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from auth_service.service import AuthService
from catalog_service.service import CatalogService
from inventory_service.service import InventoryService
from ops.service import OpsService
from order_service.models import OrderRow
from order_service.service import OrderService
from payment_service.models import PaymentRow
from payment_service.service import PaymentService
from shared.edge.context import Context, RequestContext
from shared.edge.rpc import Rpc
from shared.errors import NotFound, RoleMissing
from shared.events import Identity
from shared.roles import ADMIN, AUDITOR, CUSTOMER, OPERATOR, ROLES, SERVICE, SYSTEM
from tests.unit.serving import KEYS
from tests.unit.test_gateway_http import documented_words

SERVICES = {
    service.name: service
    for service in (OrderService, InventoryService, PaymentService, AuthService, OpsService, CatalogService)
}
OWNER, STRANGER = "alice", "mallory"
SOME_ID = "01a1fcf8-0515-7912-9139-7154577473a5"

# The route that a method answers, or who may call it where no route does.
METHODS = {
    "order_service.create_order": "POST /api/orders",
    "order_service.create_orders": "the system",
    "order_service.place_order": "POST /api/orders",
    "order_service.place_orders": "the system",
    "order_service.cancel_order": "POST /api/orders/{}/cancel",
    "order_service.retry_refund": "POST /api/orders/{}/refund/retry",
    "order_service.get_order": "GET /api/orders/{}",
    "order_service.list_orders": "GET /api/orders",
    "order_service.timeline": "GET /api/orders/{}/timeline",
    "order_service.notes": "GET /api/orders/{}/notes",
    "order_service.add_note": "POST /api/orders/{}/notes",
    "order_service.steps": "GET /api/orders/{}/events",
    "order_service.all_steps": "GET /api/orders/events",
    "order_service.changed_orders": "the system",
    "order_service.next_steps": "the system",
    "inventory_service.put_stock": "PUT /api/stocks/{}",
    "inventory_service.get_stock": "GET /api/stocks/{}",
    "inventory_service.list_stocks": "GET /api/stocks",
    "inventory_service.reserve_manually": "POST /api/stocks/reserve",
    "inventory_service.release_reservation": "POST /api/stocks/reservations/{}/release",
    "inventory_service.commit_reservation": "POST /api/stocks/reservations/{}/commit",
    "inventory_service.release_events": "GET /api/stocks/release-events",
    "inventory_service.release_events_before": "GET /dashboard",
    "inventory_service.release_event": "GET /api/stocks/release-events/{}",
    "inventory_service.release_totals": "GET /dashboard",
    "inventory_service.release_chain": "GET /dashboard",
    "inventory_service.release_exports": "GET /dashboard",
    "inventory_service.open_release_export": "GET /api/stocks/release-events/export",
    "inventory_service.release_export_page": "GET /api/stocks/release-events/export",
    "inventory_service.close_release_export": "GET /api/stocks/release-events/export",
    "inventory_service.put_recipe": "PUT /api/inventory/recipes/{}",
    "inventory_service.get_recipe": "GET /api/inventory/recipes/{}",
    "inventory_service.delete_recipe": "DELETE /api/inventory/recipes/{}",
    "inventory_service.tell_availability": "POST /api/inventory/reconcile",
    "inventory_service.stock_in": "POST /api/inventory/stock-in",
    "inventory_service.stock_out": "POST /api/inventory/stock-out",
    "inventory_service.adjust_stock": "POST /api/inventory/adjust",
    "inventory_service.stock_levels": "GET /api/inventory/levels",
    "inventory_service.stock_movements": "GET /api/inventory/movements",
    "inventory_service.availability": "POST /api/inventory/batch",
    "inventory_service.get_rule": "GET /api/inventory/rules/{}",
    "inventory_service.put_rule": "PUT /api/inventory/rules/{}",
    "inventory_service.list_suppliers": "GET /api/inventory/suppliers",
    "inventory_service.get_supplier": "GET /api/inventory/suppliers/{}",
    "inventory_service.create_supplier": "POST /api/inventory/suppliers",
    "inventory_service.put_supplier": "PUT /api/inventory/suppliers/{}",
    "inventory_service.list_purchase_orders": "GET /api/inventory/purchase-orders",
    "inventory_service.get_purchase_order": "GET /api/inventory/purchase-orders/{}",
    "inventory_service.create_purchase_order": "POST /api/inventory/purchase-orders",
    "inventory_service.put_purchase_order": "PUT /api/inventory/purchase-orders/{}",
    "inventory_service.order_purchase": "POST /api/inventory/purchase-orders/{}/order",
    "inventory_service.receive_purchase": "POST /api/inventory/purchase-orders/{}/receive",
    "inventory_service.close_purchase": "POST /api/inventory/purchase-orders/{}/close",
    "inventory_service.cancel_purchase": "POST /api/inventory/purchase-orders/{}/cancel",
    "catalog_service.put_offers": "PUT /api/menu/offers",
    "catalog_service.put_offer": "PUT /api/menu/offers/{}",
    "catalog_service.put_category": "PUT /api/menu/categories/{}",
    "catalog_service.delete_category": "DELETE /api/menu/categories/{}",
    "catalog_service.create_item": "POST /api/menu/items",
    "catalog_service.put_item": "PUT /api/menu/items/{}",
    "catalog_service.delete_item": "DELETE /api/menu/items/{}",
    "catalog_service.revert_item": "POST /api/menu/items/{}/revert",
    "catalog_service.editor_items": "GET /api/menu/editor/items",
    "catalog_service.editor_item": "GET /api/menu/editor/items/{}",
    "catalog_service.item_versions": "GET /api/menu/editor/items/{}/versions",
    "catalog_service.item_prices": "GET /api/menu/editor/items/{}/prices",
    "payment_service.get_payment": "GET /api/payments/{}",
    "payment_service.payment_of_order": "GET /api/payments",
    "auth_service.introspect": "POST /api/auth/introspect",
    "auth_service.change_password": "POST /api/auth/password",
    "auth_service.me": "GET /api/auth/me",
    "auth_service.update_me": "PATCH /api/auth/me",
    "auth_service.change_email": "POST /api/auth/me/email",
    "auth_service.erase_me": "POST /api/auth/me/erase",
    "auth_service.export_me": "GET /api/auth/me/export",
    "auth_service.identities": "GET /api/auth/identities",
    "auth_service.unlink_identity": "DELETE /api/auth/identities/{}",
    "auth_service.mail": "service",
    "auth_service.revocations": "the system",
    "auth_service.create_key": "POST /api/services/{}/keys",
    "auth_service.list_keys": "GET /api/services/{}/keys",
    "auth_service.revoke_key": "DELETE /api/services/{}/keys/{}",
    "ops_service.queues": "GET /api/ops/queues",
    "ops_service.dead_letters": "GET /api/ops/dlq/{}",
    "ops_service.start_replay": "POST /api/ops/dlq/{}/replays",
    "ops_service.get_replay": "GET /api/ops/replays/{}",
    "ops_service.dead_of_order": "customer, operator, auditor, admin",
    "ops_service.operations_of": "GET /dashboard",
    "ops_service.audit_status": "GET /dashboard",
    "auth_service.list_people": "GET /api/users",
    "auth_service.get_person": "GET /api/users/{}",
    "auth_service.person_events": "GET /api/users/{}/events",
    "auth_service.look_up_people": "POST /api/users/batch",
    "auth_service.people": "service, operator, admin and the system",
    "auth_service.put_roles": "PUT /api/users/{}/roles",
    "auth_service.disable_person": "POST /api/users/{}/disable",
    "auth_service.enable_person": "POST /api/users/{}/enable",
    "auth_service.end_sessions_of": "DELETE /api/users/{}/sessions",
}
# Methods that anybody may call, and why.
FOR_ANYBODY = {
    "auth_service.issue_token": "whoever signs in has no identity yet; the password decides",
    "auth_service.issue_session": "whoever signs in has no identity yet; the password decides",
    "auth_service.login": "whoever signs in has no identity yet; the password decides",
    "auth_service.register": "whoever registers is nobody yet; it sends a mail to the address",
    "auth_service.verify_email": "the token from the mail decides",
    "auth_service.request_password_reset": "whoever has forgotten a password cannot sign in; it sends a mail",
    "auth_service.confirm_password_reset": "the token from the mail decides",
    "auth_service.keep_account": "the token from the mail decides",
    "auth_service.start_oauth": "whoever signs in has no identity yet; the provider decides, and a session for a link",
    "auth_service.finish_oauth": "whoever signs in has no identity yet; the provider decides",
    "auth_service.link_identity": "the token from the mail decides",
    "auth_service.refresh": "the refresh token decides",
    "auth_service.revoke_token": "whoever has a token may end its session",
    "auth_service.exchange_key": "a service that shows its key has no identity yet; the key decides",
    "auth_service.sign_out": "it ends the caller's own sessions and nobody else's",
    "auth_service.list_sessions": "it lists the caller's own sessions",
    "auth_service.end_session": "it ends one of the caller's own sessions; another's is not found",
    "auth_service.issue_mock_token": "whoever signs in has no identity yet; the setting AUTH_MOCK decides",
    "catalog_service.list_categories": "the menu is public",
    "catalog_service.list_items": "the menu is public",
    "catalog_service.get_item": "the menu is public; a draft is not found",
    "catalog_service.get_offers": "the menu is public; a draft is not found",
    "catalog_service.offers_of": "the menu is public; of drafts it says nothing",
    "catalog_service.offer_versions": "the menu is public; of drafts it says nothing",
}

DONE, FORBIDDEN, NOT_THERE = "done", "forbidden", "not there"
Decision = Callable[[set[str], bool], str]


def one_of(*roles: str) -> Decision:
    return lambda has, owns: DONE if has & set(roles) else FORBIDDEN


def sees(has: set[str], owns: bool) -> str:
    """The owner is a customer; others need a role that sees everything. To anybody else there is no such thing."""
    return DONE if (owns and CUSTOMER in has) or has & {OPERATOR, AUDITOR, ADMIN} else NOT_THERE


def cancels(has: set[str], owns: bool) -> str:
    """To see an order is not enough to cancel it."""
    if (owns and CUSTOMER in has) or ADMIN in has:
        return DONE
    return FORBIDDEN if sees(has, owns) == DONE else NOT_THERE


# What the words of docs/http.md mean.
DECISIONS: dict[str, Decision] = {
    "customer": one_of(CUSTOMER),
    "service": one_of(SERVICE),
    "admin": one_of(ADMIN),
    "owner, admin": cancels,
    "owner, operator, auditor, admin": sees,
    "customer, operator, auditor, admin": one_of(CUSTOMER, OPERATOR, AUDITOR, ADMIN),
    "operator, admin": one_of(OPERATOR, ADMIN),
    "operator, auditor, admin": one_of(OPERATOR, AUDITOR, ADMIN),
    "operator, admin, service": one_of(OPERATOR, ADMIN, SERVICE),
    "any signed-in user": one_of(*ROLES),
    "admin, service": one_of(ADMIN, SERVICE),
    "service, admin": one_of(ADMIN, SERVICE),
    "auditor, admin": one_of(AUDITOR, ADMIN),
    "auditor, admin, signed in there": one_of(AUDITOR, ADMIN),
    "the system": one_of(SYSTEM),
    "service, operator, admin and the system": one_of(SERVICE, OPERATOR, ADMIN, SYSTEM),
}
WORDS = documented_words()
# A list shows each caller what they may see.
DECISION_OF = {method: DECISIONS[WORDS.get(route, route)] for method, route in METHODS.items()} | {
    "order_service.list_orders": one_of(CUSTOMER, OPERATOR, AUDITOR, ADMIN)
}

HAS = [set(), {SYSTEM}, *({role} for role in ROLES), *(set(pair) for pair in combinations(ROLES, 2))]

ORDER = {"currency": "EUR", "payment_method": "mock_ok", "items": [{"sku": "lamp", "quantity": 1, "unit_price": 1}]}
ARGUMENTS: dict[str, Any] = {
    "changes": {"name": "Ann"},
    "current_password": "an agreeable summer",
    "new_password": "a disagreeable winter",
    "password": None,
    "email": "ann@example.com",
    "part": "events",
    "origin": {"network": "203.0.113.7", "client": "a test", "session_id": None},
    "after": 0,
    "components": [],
    "cursor": None,
    "event_id": 7,
    "expires_at": "2026-01-14T10:30:00.123Z",
    "export_id": SOME_ID,
    "filters": {},
    "items": [{"sku": "lamp", "quantity": 1}],
    "key": "key-1",
    "key_id": "0" * 32,
    "known": {},
    "limit": 10,
    "mail_id": SOME_ID,
    "lines": [{"sku": "lamp", "quantity": 1, "counted": 1}],
    "on_hand": 3,
    "offers": [],
    "unit_price": 1,
    "slug": "lamps",
    "name": "lamps",
    "position": 1,
    "item": {},
    "item_id": SOME_ID,
    "document": {},
    "to_version": 1,
    "version": 2,
    "order": ORDER,
    "order_id": SOME_ID,
    "order_ids": [SOME_ID],
    "payment_id": SOME_ID,
    "provider": "google",
    "proposal": {"supplier_id": SOME_ID, "note": None, "lines": []},
    "purchase_order_id": SOME_ID,
    "rule": {"reorder_at": None, "reorder_to": None, "supplier_id": None},
    "supplier": {"name": "Lamps", "email": None, "phone": None, "lead_days": 3, "active": True},
    "supplier_id": SOME_ID,
    "posts": [{"order": ORDER, "key": "key-1", "user_id": OWNER, "roles": [CUSTOMER], "trace_id": "0" * 32}],
    "queue": "q.order.payment-result",
    "reason": "correction",
    "replay_id": SOME_ID,
    "reservation_id": SOME_ID,
    "roles": [SERVICE],
    "rows": 0,
    "sha256": "",
    "sku": "lamp",
    "skus": ["lamp"],
    "text": "The customer called.",
    "shown": True,
    "token": "none",
    "wanted": {"all": True, "why": "a test"},
    "user_id": OWNER,
    "ids": [OWNER],
}


class Reached(Exception):
    """The method was allowed, and has begun its work."""


class Beyond:
    """Whatever is used of it, the rule has been passed."""

    def __init__(self, **there: Any) -> None:
        vars(self).update(there)

    def __getattr__(self, name: str) -> Any:
        raise Reached(name)


ORDER_ROW = OrderRow(order_id=UUID(SOME_ID), user_id=OWNER, version=1)
PAYMENT_ROW = PaymentRow(
    order_id=UUID(SOME_ID),
    payment_id=UUID(SOME_ID),
    user_id=OWNER,
    created_at=datetime.now(UTC),
    updated_at=datetime.now(UTC),
)
# What a rule that asks for the owner reads first.
READS = {
    "order_service": {"get": lambda table, key: ORDER_ROW},
    "payment_service": {"scalars": lambda query: SimpleNamespace(first=lambda: PAYMENT_ROW)},
}


class Tables:
    """A database with one order, or one payment, of the owner."""

    def __init__(self, service: str) -> None:
        self._session = Beyond(**READS.get(service, {}))

    @contextmanager
    def begin(self) -> Iterator[Any]:
        yield self._session

    read = begin


def call(label: str, identity: Identity) -> str:
    """What becomes of a call of a method by somebody."""
    name, _, method = label.partition(".")
    service = SERVICES[name]()
    service.context = RequestContext("0" * 32, identity)
    service.db = Tables(name)
    service.settings = SimpleNamespace(auth_keys=KEYS) if name == "auth_service" else Beyond()
    service.databases = service.background = Beyond()
    required = [
        item.name
        for item in inspect.signature(getattr(service, method)).parameters.values()
        if item.default is item.empty
    ]
    try:
        getattr(service, method)(**{item: ARGUMENTS[item] for item in required})
    except RoleMissing:
        return FORBIDDEN
    except NotFound:
        return NOT_THERE
    except Reached:
        return DONE
    return DONE


def test_every_method_has_a_rule_or_is_for_anybody_with_a_reason() -> None:
    methods = {
        f"{name}.{method}"
        for name, service in SERVICES.items()
        for method, function in inspect.getmembers(service, inspect.isfunction)
        if any(isinstance(item, Rpc) for item in getattr(function, "nameko_entrypoints", ()))
    }
    assert methods == METHODS.keys() | FOR_ANYBODY.keys()


@pytest.mark.parametrize("label", METHODS)
def test_a_method_is_for_those_whom_the_documentation_names_whatever_other_role_they_have(label: str) -> None:
    decide = DECISION_OF[label]
    asked = [(has, user) for has in HAS for user in (OWNER, STRANGER)]

    found = {(*sorted(has), user): call(label, Identity(user, tuple(has))) for has, user in asked}

    assert found == {(*sorted(has), user): decide(has, user == OWNER) for has, user in asked}


@pytest.mark.parametrize(("production", "roles"), [(False, ROLES), (True, ())])
def test_a_call_that_names_no_user_has_every_role_in_development_and_none_in_production(
    production: bool, roles: tuple[str, ...]
) -> None:
    container = SimpleNamespace(config={"settings": SimpleNamespace(production=production)})
    context = Context()
    context.container = container
    caller = SimpleNamespace(data={"roles": ["admin"]})

    assert context.get_dependency(caller).identity == Identity("shell", roles)
