"""What one release may change: each row of the table with changes that it refuses and changes that it allows."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import Column, Index, Text, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import ops.cli.green  # noqa: F401
from ops.cli.release import release
from ops.release import releases, semver, tables
from ops.release.rules import RULES, breaches
from ops.release.tree import LOCKS, NAMESPACES, tree
from shared.envelope import decode
from shared.errors import Conflict, NotFound
from topology.services import SERVICES

ROOT = Path(__file__).resolve().parents[2]

Tree = dict[str, Any]
Change = Callable[[Tree], object]


@pytest.fixture(scope="module")
def read() -> Tree:
    """This version."""
    return tree()


def test_this_version_can_run_beside_the_last_release(read: Tree) -> None:
    assert [str(breach) for breach in breaches(releases.last(), read)] == []


def test_the_version_is_high_enough_for_what_changed_since_the_last_release(read: Tree) -> None:
    last, now = releases.last(), semver.version(read["version"])

    assert now == semver.version(last["version"]) or now >= semver.least(last, read)


def test_messages_of_every_release_are_read() -> None:
    samples = [event["sample"] for frozen in releases.every() for event in frozen["events"].values()]

    assert len(samples) >= 14
    for message in samples:
        decode(json.dumps(message), message["type"])


def test_a_version_and_itself_have_no_breach(read: Tree) -> None:
    assert breaches(read, copy.deepcopy(read)) == []


def test_two_readings_of_one_version_are_the_same_text(read: Tree) -> None:
    assert releases.as_text(read) == releases.as_text(tree())


def test_an_rpc_method_is_read_with_its_arguments_its_result_and_its_errors(read: Tree) -> None:
    method = read["rpc"]["order_service.list_orders"]
    assert method["arguments"] == [
        {"name": "limit", "required": True},
        {"name": "cursor", "required": False, "default": None},
        {"name": "filters", "required": False, "default": None},
    ]
    assert method["result"] == ["items", "next_cursor"]
    assert read["rpc"]["order_service.get_order"]["result"] is None
    # A function that it calls raises UnknownOrder; the docstring of introspect promises RoleMissing.
    assert "UnknownOrder" in read["rpc"]["inventory_service.release_reservation"]["errors"]
    introspect = read["rpc"]["auth_service.introspect"]["errors"]
    assert "RoleMissing" in introspect
    assert "Unauthenticated" not in introspect, "it catches that"
    assert read["calls"]["gateway"]["order_service.place_order"] == {"positional": 0, "keywords": ["key", "order"]}


def test_a_migration_is_read_with_what_it_takes_away(tmp_path: Path) -> None:
    migration = tmp_path / "0001.py"
    migration.write_text(
        "def downgrade():\n    op.drop_column('a', 'b')\n"
        "def upgrade():\n    op.drop_column('orders', 'colour')\n    op.drop_table('lamps')\n"
    )

    assert tables.taken_away(migration) == {"orders.colour", "lamps"}


def test_a_column_that_no_class_maps_is_read_as_one_that_nobody_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    class Base(DeclarativeBase):
        pass

    class Lamp(Base):
        __tablename__ = "lamps"
        __table_args__ = (
            Column("colour", Text),
            Index("one", "sku", "colour", unique=True, postgresql_where=text("true")),
        )
        __mapper_args__ = {"exclude_properties": ["colour"]}  # noqa: RUF012
        sku: Mapped[str] = mapped_column(primary_key=True)

    monkeypatch.setattr(tables, "Base", Base)

    columns = tables.columns_of(Base.metadata.tables["lamps"])

    assert {name: about["mapped"] for name, about in columns.items()} == {"colour": False, "sku": True}
    assert "colour" not in str(select(Lamp))
    assert tables.keys_of(Base.metadata.tables["lamps"]) == [
        "primary key (sku)",
        "unique (lamps.sku, lamps.colour) where true",
    ]


# Parts of a version to change, by their place.
def event(read: Tree, type_: str = "order.created") -> Tree:
    return read["events"][type_]


def column(read: Tree, name: str, table: str = "order.orders") -> Tree:
    return read["tables"][table]["columns"][name]


def route(read: Tree, label: str = "GET /api/orders") -> Tree:
    return read["http"]["routes"][label]


def put(place: Tree, **values: Any) -> None:
    place.update(values)


FIELD = {"type": "string", "required": True, "nullable": False}
OPTIONAL = {**FIELD, "required": False, "nullable": True, "default": None}
COLUMN = {"type": "TEXT", "nullable": True, "default": None, "mapped": True}


def new_event(type_: str) -> Change:
    return lambda read: read["events"].update({type_: {**event(read), "published": True}})


def widen(read: Tree, **limits: Any) -> None:
    read["widened"] = {"order.created payload.total": "a reason"}
    event(read)["fields"]["payload.total"].update(limits)


def new_primary_key(read: Tree, filled: bool = True, stays_unique: bool = True) -> None:
    table = read["tables"]["order.orders"]
    table["columns"]["row"] = {**COLUMN, "nullable": False}
    table["keys"].remove("primary key (order_id)")
    table["keys"] += ["primary key (row)", *(["unique (order_id)"] if stays_unique else [])]
    read["filled"] = {"order.orders.row": "a reason"} if filled else {}


def bind(queue: str, key: str) -> Change:
    return lambda read: read["bindings"].append(["ecom.events", queue, key])


def no_bindings(read: Tree, queue: str) -> None:
    read["bindings"] = [one for one in read["bindings"] if one[1] != queue]


def new_queue(read: Tree) -> None:
    read["queues"]["q.payment.new"] = {"consumer": "payment", "arguments": {}}
    bind("q.payment.new", "inventory.*")(read)
    new_event("stock.counted")(read)
    bind("q.payment.new", "stock.*")(read)


def rename(names: Tree, old: str, new: str) -> None:
    names[new] = names.pop(old)


def migration(takes_away: list[str], phase: str) -> Change:
    about = {"before": "0012", "phase": phase, "takes_away": takes_away}

    def change(read: Tree) -> None:
        read["migrations"]["order"]["revisions"]["9999"] = about
        read["migrations"]["order"]["heads"] = ["9999"]

    return change


def arguments(read: Tree, method: str = "order_service.get_order") -> list[Tree]:
    return read["rpc"][method]["arguments"]


def call(caller: str, method: str, positional: int = 1, keywords: tuple[str, ...] = ()) -> Change:
    return lambda read: (
        read["calls"].setdefault(caller, {}).update({method: {"positional": positional, "keywords": list(keywords)}})
    )


NEW_METHOD = {"arguments": [], "result": None, "errors": ["BrandNew"]}

# The row of the table, a change of this version after the last release, and the place that the breach names.
REFUSED: list[tuple[str, Change, str]] = [
    (
        "stored",
        lambda new: put(event(new)["fields"], **{"payload.colour": FIELD}),
        "order.created, field payload.colour",
    ),
    ("stored", lambda new: event(new)["fields"]["payload.customer_id"].update(required=True), "payload.customer_id"),
    ("stored", lambda new: event(new)["fields"].pop("payload.total"), "order.created, field payload.total"),
    ("stored", lambda new: event(new).update(publisher="payment"), "event order.created: was published by order"),
    ("stored", lambda new: new["events"].pop("order.paid"), "event order.paid"),
    ("new event", new_event("inventory.counted"), "inventory.counted: matches the binding inventory.* of q.order"),
    (
        "new event",
        lambda new: (new_event("stock.low")(new), bind("q.order.payment-result", "stock.#")(new)),
        "stock.low",
    ),
    ("new event", bind("q.payment.order-cancelled", "order.*"), "q.payment.order-cancelled: hears order.created"),
    ("change of an event", lambda new: event(new).update(version=2), "event order.created: has version 2"),
    ("change of an event", lambda new: event(new)["fields"]["payload.total"].update(type="string"), "payload.total"),
    ("change of an event", lambda new: event(new)["fields"]["payload.total"].update(maximum=9), "payload.total"),
    ("change of an event", lambda new: event(new)["fields"]["payload.total"].update(maximum=2**60), "payload.total"),
    ("change of an event", lambda new: widen(new, maximum=9), "payload.total: was maximum 9007199254740991"),
    ("change of an event", lambda new: widen(new, maximum=2**60, type="string"), "payload.total"),
    ("change of an event", lambda new: event(new)["fields"]["payload.total"].update(nullable=True), "payload.total"),
    (
        "queues",
        lambda new: new["queues"]["q.order.payment-result"]["arguments"].update({"x-delivery-limit": 5}),
        "queue q.order.payment-result: x-delivery-limit was 20 and is 5",
    ),
    ("queues", lambda new: new["queues"]["rpc-order_service"]["arguments"].update({"x-max": 1}), "rpc-order_service"),
    ("queues", lambda new: new["queues"].pop("q.order.payment-result"), "queue q.order.payment-result: is gone"),
    (
        "queues",
        lambda new: new["queues"]["q.order.payment-result"].update(consumer="payment"),
        "is consumed by payment",
    ),
    ("tables", lambda new: new["tables"].pop("order.order_items"), "table order.order_items: is gone"),
    (
        "tables",
        lambda new: new["tables"]["order.orders"]["columns"].pop("reason"),
        "column order.orders.reason: is gone",
    ),
    ("tables", lambda new: rename(new["tables"]["order.orders"]["columns"], "reason", "why"), "order.orders.reason"),
    ("tables", lambda new: column(new, "total").update(type="TEXT"), "order.orders.total: was BIGINT and is TEXT"),
    ("tables", lambda new: column(new, "reason").update(nullable=False), "order.orders.reason: is NOT NULL"),
    ("tables", lambda new: column(new, "version").update(default=None), "order.orders.version: lost its default"),
    ("tables", lambda new: column(new, "currency").update(mapped=False), "this version cannot insert rows"),
    (
        "tables",
        lambda new: put(new["tables"]["order.orders"]["columns"], colour={**COLUMN, "nullable": False}),
        "column order.orders.colour: is new and NOT NULL without a default",
    ),
    (
        "tables",
        lambda new: new["tables"]["order.orders"]["keys"].append("unique (trace_id)"),
        "key `unique (trace_id)`",
    ),
    (
        "tables",
        lambda new: new["tables"]["order.orders"]["keys"].pop(),
        "key `unique (user_id, idempotency_key)`: is gone",
    ),
    (
        "tables",
        lambda new: new_primary_key(new, filled=False),
        "order.orders.row: is new and NOT NULL without a default",
    ),
    ("tables", lambda new: new_primary_key(new, filled=False), "key `primary key (row)`: is new"),
    ("tables", lambda new: new_primary_key(new, stays_unique=False), "key `primary key (order_id)`: is gone"),
    ("tables", lambda new: new["tables"]["order.orders"]["rights"].remove("change reason"), "right `change reason`"),
    ("migrations", lambda new: new["migrations"]["order"]["revisions"].pop("0007"), "migration order 0007: is gone"),
    ("migrations", lambda new: new["migrations"].pop("ops"), "database ops: has no migrations any more"),
    ("migrations", lambda new: new["migrations"]["order"].update(heads=["0012", "0013"]), "has 2 newest migrations"),
    ("migrations", migration(["orders.colour"], "expand"), "migration order 9999: takes away orders.colour"),
    ("RPC", lambda new: new["rpc"].pop("order_service.get_order"), "RPC order_service.get_order: is gone"),
    ("RPC", lambda new: arguments(new)[0].update(name="id"), "get_order, argument order_id: is gone, renamed or moved"),
    (
        "RPC",
        lambda new: arguments(new).append({"name": "why", "required": True}),
        "get_order, argument why: is required",
    ),
    ("RPC", lambda new: arguments(new, "order_service.list_orders").pop(), "list_orders, argument filters: is gone"),
    (
        "RPC",
        lambda new: arguments(new, "order_service.list_orders")[1].update(required=True),
        "argument cursor: is req",
    ),
    ("RPC", lambda new: new["rpc"]["order_service.list_orders"]["result"].remove("items"), "result field items"),
    ("RPC", lambda new: new["services"]["gateway"]["calls"].remove("ops"), "service gateway: may not call ops"),
    (
        "RPC",
        lambda new: (new["rpc"].update({"order_service.new": NEW_METHOD}), call("payment", "order_service.new")(new)),
        "call of order_service.new by payment: is of a method that the last release does not have",
    ),
    ("RPC", call("payment", "order_service.get_order", keywords=("why",)), "get_order by payment: sends arguments"),
    (
        "errors",
        lambda new: new["rpc"]["order_service.get_order"]["errors"].append("BrandNew"),
        "RPC order_service.get_order, error BrandNew: is new",
    ),
    ("errors", lambda new: new["errors"].pop("Conflict"), "error Conflict: is gone"),
    ("errors", lambda new: new["errors"]["Conflict"].update(code="clash"), "error Conflict: had the code conflict"),
    (
        "states",
        lambda new: new["words"]["order status"]["writes"].append("SHIPPED"),
        "order status SHIPPED: is written",
    ),
    (
        "states",
        lambda new: new["words"]["order reason"]["reads"].remove("deadline"),
        "order reason deadline: is not read",
    ),
    ("states", lambda new: new["words"]["role"]["writes"].append("guest"), "role guest: is written"),
    ("states", lambda new: new["words"]["cursor"].update(reads=["v2"], writes=["v2"]), "cursor v2: is written"),
    ("states", lambda new: new["words"].pop("cookie"), "cookie __Secure-ecom_session: is not read"),
    ("lock", lambda new: new["fixed"].update({"lock: relay": "7"}), "lock: relay: was 1701015405 and is 7"),
    ("lock", lambda new: new["fixed"].update({"namespace: payments": "7"}), "namespace: payments"),
    ("lock", lambda new: new["fixed"].update({"seal": "7"}), "seal: was"),
    ("lock", lambda new: new["exchanges"].update({"ecom.events": "direct"}), "exchange ecom.events: was topic"),
    ("lock", lambda new: new["exchanges"].pop("ecom.hints"), "exchange ecom.hints: was fanout and is gone"),
]

# The row of the table, a change that prepares the last release, and the change after it that is allowed.
ALLOWED: list[tuple[str, Change, Change]] = [
    ("stored", lambda old: None, lambda new: put(event(new)["fields"], **{"payload.colour": OPTIONAL})),
    (
        "stored",
        lambda old: None,
        lambda new: put(event(new)["fields"], **{"payload.tags": OPTIONAL, "payload.tags[]": FIELD}),
    ),
    ("stored", lambda old: None, lambda new: put(event(new)["fields"]["payload.total"], required=False, nullable=True)),
    ("stored", lambda old: None, lambda new: event(new)["fields"].pop("payload.customer_id")),
    (
        "stored",
        lambda old: event(old, "order.paid").update(published=False),
        lambda new: new["events"].pop("order.paid"),
    ),
    ("new event", lambda old: None, new_event("stock.counted")),
    (
        "new event",
        lambda old: None,
        lambda new: put(new["events"], **{"inventory.counted": {**event(new), "published": False}}),
    ),
    ("new event", new_event("inventory.counted"), lambda new: None),
    ("change of an event", lambda old: None, lambda new: new_event("order.created2")(new)),
    ("queues", lambda old: None, new_queue),
    ("queues", lambda old: None, lambda new: no_bindings(new, "q.order.payment-result")),
    (
        "queues",
        lambda old: no_bindings(old, "q.order.payment-result"),
        lambda new: new["queues"].pop("q.order.payment-result"),
    ),
    ("queues", lambda old: None, lambda new: new["queues"].pop("q.order.payment-result.retry.4s")),
    ("tables", lambda old: None, lambda new: put(new["tables"], **{"order.new": new["tables"]["order.order_items"]})),
    ("tables", lambda old: None, lambda new: put(new["tables"]["order.orders"]["columns"], colour=COLUMN)),
    (
        "tables",
        lambda old: None,
        lambda new: put(
            new["tables"]["order.orders"]["columns"], colour={**COLUMN, "nullable": False, "default": "''"}
        ),
    ),
    ("tables", lambda old: None, lambda new: column(new, "reason").update(mapped=False)),
    (
        "tables",
        lambda old: column(old, "reason").update(mapped=False),
        lambda new: (
            new["tables"]["order.orders"]["columns"].pop("reason"),
            new["tables"]["order.orders"]["rights"].remove("change reason"),
            new["tables"]["order.orders"]["rights"].remove("reader: see reason"),
        ),
    ),
    ("tables", lambda old: None, lambda new: column(new, "total").update(nullable=True)),
    ("tables", lambda old: None, new_primary_key),
    ("migrations", lambda old: None, migration([], "expand")),
    ("migrations", lambda old: None, migration(["orders.colour"], "contract")),
    ("RPC", lambda old: None, lambda new: new["rpc"].update({"order_service.new": NEW_METHOD})),
    (
        "RPC",
        lambda old: None,
        lambda new: (new["rpc"].update({"order_service.new": NEW_METHOD}), call("gateway", "order_service.new")(new)),
    ),
    ("RPC", lambda old: None, lambda new: arguments(new).append({"name": "why", "required": False, "default": None})),
    ("RPC", lambda old: None, lambda new: new["rpc"]["order_service.list_orders"]["result"].append("total")),
    ("RPC", lambda old: None, call("payment", "order_service.get_order")),
    (
        "RPC",
        lambda old: old["calls"]["gateway"].pop("order_service.get_order"),
        lambda new: new["rpc"].pop("order_service.get_order"),
    ),
    ("errors", lambda old: None, lambda new: new["rpc"].update({"order_service.new": NEW_METHOD})),
    (
        "errors",
        lambda old: old["errors"].update({"BrandNew": {"code": "new", "kinds": []}}),
        lambda new: new["rpc"]["order_service.get_order"]["errors"].append("BrandNew"),
    ),
    ("states", lambda old: None, lambda new: new["words"]["order status"]["reads"].append("SHIPPED")),
    (
        "states",
        lambda old: old["words"]["order status"]["reads"].append("SHIPPED"),
        lambda new: new["words"]["order status"]["writes"].append("SHIPPED"),
    ),
    (
        "states",
        lambda old: old["words"]["cursor"]["reads"].append("v2"),
        lambda new: put(new["words"]["cursor"], reads=["v2", *new["words"]["cursor"]["reads"]], writes=["v2"]),
    ),
    ("lock", lambda old: None, lambda new: new["fixed"].update({"lock: new": "7"})),
    ("lock", lambda old: None, lambda new: new["exchanges"].update({"ecom.new": "topic"})),
]


@pytest.mark.parametrize(("row", "change", "named"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_a_change_that_the_last_release_would_not_survive_is_refused(
    read: Tree, row: str, change: Change, named: str
) -> None:
    new = copy.deepcopy(read)
    change(new)

    found = [one for one in breaches(read, new) if row in one.rule.shared]

    assert any(named in str(one) for one in found), [str(one) for one in found]
    assert all(one.rule.two in str(one) for one in found)


@pytest.mark.parametrize(
    ("row", "before", "change"), ALLOWED, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_change_in_two_steps_or_beside_the_old_is_allowed(
    read: Tree, row: str, before: Change, change: Change
) -> None:
    old = copy.deepcopy(read)
    before(old)
    new = copy.deepcopy(old)
    change(new)

    assert [str(one) for one in breaches(old, new)] == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.shared)
def test_every_row_has_changes_that_are_refused_and_changes_that_are_allowed(rule: Any) -> None:
    assert any(row in rule.shared for row, _, _ in REFUSED)
    assert any(row in rule.shared for row, _, _ in ALLOWED)


@pytest.mark.parametrize(
    ("change", "least"),
    [
        (lambda new: None, {"0.2.0": "0.2.1", "1.2.3": "1.2.4"}),
        (lambda new: new["settings"].update(NEW={}), {"0.2.0": "0.2.1", "1.2.3": "1.3.0"}),
        (lambda new: new["settings"].pop("LOG_LEVEL"), {"0.2.0": "0.3.0", "1.2.3": "2.0.0"}),
        (lambda new: new["http"]["routes"].pop("GET /api/orders"), {"0.2.0": "0.3.0", "1.2.3": "2.0.0"}),
        (
            lambda new: new["http"]["routes"]["GET /api/orders"]["parameters"].update(
                {"query why": {"required": True, "schema": {}}}
            ),
            {"0.2.0": "0.3.0", "1.2.3": "2.0.0"},
        ),
        (lambda new: new["http"]["schemas"]["Order"]["properties"].pop("total"), {"1.2.3": "2.0.0"}),
        (lambda new: new["http"]["schemas"]["OrderRequest"]["required"].append("why"), {"1.2.3": "2.0.0"}),
        (lambda new: new["http"]["schemas"]["OrderStatus"]["enum"].remove("PAID"), {"1.2.3": "2.0.0"}),
        (lambda new: new["http"]["routes"]["GET /api/orders"]["roles"].remove("customer"), {"1.2.3": "2.0.0"}),
        (lambda new: event(new)["fields"].pop("payload.customer_id"), {"1.2.3": "2.0.0"}),
        (lambda new: route(new)["parameters"].pop("query status"), {"1.2.3": "2.0.0"}),
        (lambda new: route(new)["answers"].pop("200"), {"1.2.3": "2.0.0"}),
        (lambda new: route(new)["answers"]["400"].update(new="Error"), {"1.2.3": "1.3.0"}),
        (lambda new: route(new)["answers"]["400"].clear(), {"1.2.3": "1.3.0"}),
        (lambda new: route(new, "GET /api/openapi.json").update(roles=["admin"]), {"1.2.3": "2.0.0"}),
        (lambda new: route(new, "POST /api/orders").update(body="Other"), {"1.2.3": "2.0.0"}),
        (
            lambda new: new["http"]["schemas"]["Order"]["properties"].update(total={"type": "string"}),
            {"1.2.3": "2.0.0"},
        ),
        (lambda new: new["http"]["schemas"]["Order"]["properties"].update(why={"type": "string"}), {"1.2.3": "1.3.0"}),
        (lambda new: new["http"]["schemas"]["OrderStatus"]["enum"].append("SHIPPED"), {"1.2.3": "1.3.0"}),
    ],
)
def test_the_least_version_says_what_a_change_means_for_clients(
    read: Tree, change: Change, least: dict[str, str]
) -> None:
    for last, wanted in least.items():
        old = {**copy.deepcopy(read), "version": last}
        new = copy.deepcopy(old)
        change(new)

        assert str(semver.least(old, new)) == wanted, semver.breaks(old, new)


def test_a_frozen_release_is_never_changed(read: Tree, tmp_path: Path) -> None:
    path = releases.freeze(read, tmp_path)
    before = path.read_bytes()
    assert releases.freeze(read, tmp_path) == path

    with pytest.raises(Conflict, match="raise the version"):
        releases.freeze({**read, "fixed": {}}, tmp_path)

    assert path.read_bytes() == before


def test_the_last_release_is_that_with_the_highest_number(read: Tree, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no release"):
        releases.last(tmp_path)
    for version in ("0.10.0", "0.9.0"):
        releases.freeze({**read, "version": version}, tmp_path)

    assert [one["version"] for one in releases.every(tmp_path)] == ["0.9.0", "0.10.0"]
    assert releases.last(tmp_path)["version"] == "0.10.0"


def test_one_release_is_replaced_by_a_neighbour_only(read: Tree, tmp_path: Path) -> None:
    for version in ("0.2.0", "0.3.0", "0.10.0"):
        releases.freeze({**read, "version": version}, tmp_path)

    for running, wanted in [("0.3.0", "0.10.0"), ("0.10.0", "0.3.0"), ("0.3.0", "0.3.0"), ("0.10.0", "0.11.0")]:
        releases.check_step(running, wanted, tmp_path)
    with pytest.raises(Conflict, match=r"0\.2\.0 runs, and 0\.10\.0 is 2 releases away: go to 0\.3\.0 first"):
        releases.check_step("0.2.0", "0.10.0", tmp_path)
    with pytest.raises(Conflict, match=r"go to 0\.10\.0 first"):
        releases.check_step("0.3.0", "0.11.0", tmp_path)
    with pytest.raises(NotFound, match=r"release 0\.1\.0 is not in"):
        releases.check_step("0.1.0", "0.2.0", tmp_path)


def test_the_command_names_each_breach_and_exits_with_1(read: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    old = copy.deepcopy(read)
    old["rpc"]["order_service.get_order"]["arguments"][0]["name"] = "id"
    monkeypatch.setattr(releases, "last", lambda: old)

    result = CliRunner().invoke(release, ["check"])

    assert result.exit_code == 1
    breach, summary = result.output.splitlines()
    assert breach.startswith("RPC order_service.get_order, argument id: is gone, renamed or moved; ")
    assert "Instead: add the new form beside the old one" in breach
    assert summary == "1 change that release 0.2.0 would not survive; the next version is at least 0.2.1"


@pytest.mark.parametrize(
    ("words", "table"), [(("advisory_lock(", "advisory_xact_lock("), LOCKS), (("uuid5(",), NAMESPACES)]
)
def test_every_lock_and_every_id_made_of_a_name_is_frozen(
    words: tuple[str, ...], table: dict[str, tuple[str, str]]
) -> None:
    packages = ("shared", "topology", *(service.package for service in SERVICES))
    files = [file for package in packages for file in (ROOT / package).rglob("*.py") if "local" not in file.parts]
    users = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for file in files
        if any(word in file.read_text(encoding="utf-8") for word in words)
    }

    assert users - {module for module, _ in table.values()} <= USERS_OF_OTHERS


# These lock by a number, or make ids by a namespace, of another module.
USERS_OF_OTHERS = {"ops.cli.migrate", "ops.release.samples"}
