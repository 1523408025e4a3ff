"""The rights on every table of every service: which rows can change, and which can be deleted."""

import pytest
from sqlalchemy import make_url

import shared.idempotency  # noqa: F401
from ops.roles import rights_of, url_as
from shared import config
from shared.rights import OPERATOR, READER
from shared.tables import MESSAGING_RIGHTS, Base
from topology.services import DATABASES

# Every table of every service is append-only for the service's own role, but these, each with the reason.
CHANGES = {
    "consumed_messages": "the inbox forgets what is older than any dead message",
    "outbox": "the relay marks what it has published, and deletes it after a week",
    "dead_messages": "a message leaves its DLQ, and may die again",
    "idempotency_keys": "an answer is promised for a day",
    "orders": "an order goes on to its next state; order_events has every step",
    "offers": "a copy of what the catalog service said last",
    "stock_items": "the stock as it is now; stock_movements has every change",
    "stock_signals": "what was told last; inventory tells it again when it changes",
    "reservations": "a reservation is committed or released; movements and release events say so",
    "release_exports": "an export finishes once",
    "payments": "a payment goes on to its next state; payment_log has every step",
    "refunds": "a refund goes on to its next state; payment_log has every step",
    "users": "a user as they are now; auth_events has every change",
    "proofs": "a proof is used once, and the mail that asks for it is sent again until the server takes it",
    "sessions": "a session goes on to its next refresh token, and ends; auth_events has its beginning and its end",
    "revocations": "no token lives as long as a revocation is kept",
    "auth_events": "a person who is erased leaves no network behind; everything else in the row stays",
    "api_keys": "a key is used and revoked; auth_events has both ends of its life",
    "identities": "an identity is forgotten with the person",
    "oauth_attempts": "an attempt is used once and forgotten",
    "sign_in_failures": "a count of some minutes",
    "operations": "an operation goes on and ends",
    "operation_messages": "a message of an operation gets its result",
    "categories": "a heading is renamed or moved; nothing but items refers to it",
    "items": "the menu as it is now; item_versions has every change",
    "variants": "the menu as it is now; item_versions and prices have every change",
    "availability": "a copy of what the inventory service said last",
    "recipes": "the recipe as it is now; what an order holds never changes with it",
    "recipe_lines": "the recipe as it is now; what an order holds never changes with it",
    "suppliers": "how a supplier is reached now; nobody reads how they were reached",
    "stock_rules": "the rule as it is now; it only says what will be told and proposed",
    "purchase_orders": "a purchase order goes on to its next state; its times say when",
    "purchase_order_lines": "a proposal is edited; what comes is a movement",
    "dlq_holders": "who works on a DLQ now: no trace, the operations are",
}
# What is lost with a deleted row is nobody's trace.
DELETED = {
    "consumed_messages",
    "outbox",
    "idempotency_keys",
    "categories",
    "items",
    "variants",
    "recipes",
    "recipe_lines",
    "purchase_order_lines",
    "proofs",
    "sessions",
    "revocations",
    "identities",
    "oauth_attempts",
    "sign_in_failures",
}

# Columns that say who, what, how much or since when. Nobody rewrites them.
FACTS = {
    "user_id",
    "made_by",
    "moved_by",
    "requested_by",
    "exported_by",
    "roles",
    "amount",
    "currency",
    "total",
    "method",
    "payment_method",
    "quantity",
    "unit_price",
    "created_at",
    "started_at",
    "why",
    "kind",
    "sku",
    "body",
}

# An item moves from one category to another, and a sku is bought from another supplier.
MOVES = {"category_id", "supplier_id"}

# Admins give and take roles. auth_events says who did when, and which roles there were before.
GIVEN = {("users", "roles")}

TABLES = [(service, table) for service in DATABASES for table in rights_of(service)]


def test_every_table_is_append_only_or_an_exception_with_its_reason() -> None:
    assert {table for service, table in TABLES if not rights_of(service)[table].append_only} == {*CHANGES}


def test_only_rows_that_are_nobodys_trace_are_deleted() -> None:
    assert {table for service, table in TABLES if rights_of(service)[table].deleted_because} == DELETED


@pytest.mark.parametrize(("service", "table"), TABLES)
def test_what_says_who_did_what_never_changes(service: str, table: str) -> None:
    columns = Base.metadata.tables[table].columns
    keys = {column.name for column in columns if column.primary_key or column.foreign_keys}
    given = {column for owner, column in GIVEN if owner == table}
    assert not {*rights_of(service)[table].changed} & (FACTS - given | keys - MOVES)


@pytest.mark.parametrize(("service", "table"), TABLES)
def test_rights_name_columns_that_the_table_has(service: str, table: str) -> None:
    its = rights_of(service)[table]
    named = {*its.changed, *its.read, *its.operator_adds, *its.operator_changes}
    assert named <= {*Base.metadata.tables[table].columns.keys()}


def test_the_reader_sees_what_operators_need_and_no_secret() -> None:
    assert {service for service, table in TABLES if rights_of(service)[table].read} == {
        "order",
        "inventory",
        "payment",
        "catalog",
        "auth",
    }
    assert {table for table, its in rights_of("auth").items() if its.read} == {*MESSAGING_RIGHTS}
    unseen = {
        table for service, table in TABLES if not rights_of(service)[table].read and service not in ("auth", "ops")
    }
    assert unseen == {"idempotency_keys", "provider_ledger", "payment_log", "order_notes"}
    assert {"body", "traceparent"}.isdisjoint(rights_of("order")["outbox"].read)


def test_the_operator_writes_the_record_of_dead_messages_and_nothing_else() -> None:
    writes = {
        table
        for service, table in TABLES
        if rights_of(service)[table].operator_adds or rights_of(service)[table].operator_changes
    }
    assert writes == {"dead_messages"}


@pytest.mark.parametrize("url", ["postgresql://h:1/order", "postgresql://order_app:own@h:1/order"])
def test_the_reader_and_the_operator_use_their_own_passwords_whatever_the_url_holds(url: str) -> None:
    settings = config.read({"ORDER_DATABASE_URL": url, "READER_PASSWORD": "r", "OPERATOR_PASSWORD": "o"})
    place = "postgresql+psycopg2://{}@h:1/order"
    assert url_as(settings, "order", READER) == make_url(place.format("ecom_reader:r"))
    assert url_as(settings, "order", OPERATOR) == make_url(place.format("ecom_operator:o"))


def test_without_passwords_for_them_the_role_of_the_url_does_their_work() -> None:
    settings = config.read({"ORDER_DATABASE_URL": "postgresql://mine:own@h:1/order"})
    for role in (READER, OPERATOR):
        assert url_as(settings, "order", role) == make_url("postgresql+psycopg2://mine:own@h:1/order")
