"""The broker's users as data: what each may do, how it is written for the broker, and what counts as drift."""

from __future__ import annotations

import copy
import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from click.testing import CliRunner

from ops.cli.main import ecom
from ops.cli.topology import wanted_users
from shared import config
from shared.errors import CannotWork, ConfigurationFault
from shared.events import CATALOGUE
from topology import definitions, permissions
from topology.management import Management
from topology.services import NAMES
from topology.users import NOTHING, Rights, broker_user, may_answer, reply_key, rights, service_of

UUID = "01a1fd23-2d2f-432b-b195-616d1091d2a3"
URIS = {f"{name.upper()}_AMQP_URI": f"amqp://ecom-{name}:secret-of-{name}@broker/shop" for name in NAMES}
ENVIRONMENT = {"AMQP_URI": "amqp://chief:of-all@broker/shop", **URIS}


def fits(pattern: str, text: str) -> bool:
    """As RabbitMQ matches."""
    return re.search(pattern, text) is not None


@pytest.mark.parametrize("development", [False, True])
def test_each_pattern_matches_whole_names_only(development: bool) -> None:
    for user, own in rights(CATALOGUE, with_shell=development).items():
        topics = [pattern for topic in own.topics.values() for pattern in (topic.write, topic.read)]
        for pattern in (own.configure, own.write, own.read, *topics):
            assert pattern.startswith("^"), user
            assert pattern.endswith("$"), user
            for loose in ("", "x", "#", "*", "ecom.events.more", "a-nameko-rpc", "amq.default", "amq.rabbitmq.trace"):
                assert not fits(pattern, loose) or (pattern == NOTHING and loose == ""), (user, pattern, loose)


def test_each_user_has_a_row_for_every_topic_exchange() -> None:
    """Where there is no row, RabbitMQ allows every routing key."""
    for own in rights(CATALOGUE, with_shell=True).values():
        assert set(own.topics) == {"ecom.events", "nameko-rpc"}


def test_each_event_has_one_service_that_may_publish_it() -> None:
    for type_ in CATALOGUE:
        may = [user for user, own in rights(CATALOGUE).items() if fits(own.topics["ecom.events"].write, type_)]
        assert len(may) == 1, (type_, may)


def test_no_service_may_declare_what_others_use() -> None:
    for own in rights(CATALOGUE).values():
        for name in ("ecom.events", "nameko-rpc", "q.order.payment-result", "rpc-order_service", "amq.gen-x"):
            assert not fits(own.configure, name)


def test_only_a_shell_may_read_replies_to_a_bare_uuid_and_it_may_read_no_others() -> None:
    for user, own in rights(CATALOGUE, with_shell=True).items():
        shell = user == broker_user("shell")
        assert fits(own.topics["nameko-rpc"].read, UUID) == shell
        assert fits(own.topics["nameko-rpc"].read, reply_key("gateway", UUID)) == (user == "ecom-gateway")


@pytest.mark.parametrize(
    ("user", "key", "may"),
    [
        ("ecom-order", reply_key("gateway", UUID), True),
        ("ecom-order", UUID, True),
        ("ecom-order", reply_key("order", UUID), False),
        ("ecom-order", "auth_service.authenticate", False),
        ("ecom-order", "", False),
        ("ecom-gateway", reply_key("gateway", UUID), False),
        ("ecom", "anything", True),  # one user for all
    ],
)
def test_a_service_answers_only_where_the_broker_lets_it(user: str, key: str, may: bool) -> None:
    assert may_answer(user, key) == may
    service = service_of(user)
    if service:
        assert fits(rights(CATALOGUE)[user].topics["nameko-rpc"].write, key) == may


def test_a_hash_fits_its_own_password_only() -> None:
    row = definitions.user("ecom-order", "right")
    assert definitions.has_password(row, "right")
    assert not definitions.has_password(row, "wrong")
    assert "right" not in json.dumps(row)
    for broken in ({}, {"password_hash": "?"}, {"password_hash": row["password_hash"], "hashing_algorithm": "other"}):
        assert not definitions.has_password({"hashing_algorithm": definitions.HASHING, **broken}, "right")


@pytest.fixture
def users() -> permissions.Users:
    return wanted_users(config.read(ENVIRONMENT))


@pytest.fixture
def seen(users: permissions.Users) -> dict[str, Any]:
    """A broker as it is to be, with another vhost that is somebody else's."""
    found = definitions.definitions(users.vhost, users.passwords, users.rights)
    everything = Rights(".*", ".*", ".*", {})
    found["users"] += [definitions.user("chief", "of-all", "administrator"), definitions.user("other", "x")]
    found["permissions"] += [
        definitions.permission("chief", "shop", everything),
        definitions.permission("other", "elsewhere", everything),
    ]
    return dict(found)


def row(seen: dict[str, Any], kind: str, user: str) -> dict[str, Any]:
    """The first row of a user."""
    found: dict[str, Any] = next(one for one in seen[kind] if one.get("user", one.get("name")) == user)
    return found


def without(kind: str, user: str) -> Callable[[dict[str, Any]], None]:
    return lambda seen: seen[kind].remove(row(seen, kind, user))


def changed(kind: str, user: str, **values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda seen: row(seen, kind, user).update(values)


def added(kind: str, like: str, **values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda seen: seen[kind].append({**row(seen, kind, like), **values})


DRIFTS = {
    "user ecom-order: is missing": without("users", "ecom-order"),
    "user ecom-order: has another password": lambda seen: row(seen, "users", "ecom-order").update(
        definitions.user("ecom-order", "other")
    ),
    "user ecom-auth: has the tag monitoring, the table says none": changed("users", "ecom-auth", tags=["monitoring"]),
    "user ecom-ops: has the tag a, b, the table says none": changed("users", "ecom-ops", tags="a,b"),
    "user guest: is not in the table": added("users", "other", name="guest"),
    "user ecom-shell: is not in the table": added("users", "other", name="ecom-shell"),
    "user other: is not in the table": added("permissions", "other", vhost="shop"),
    "permission ecom-order: is missing": without("permissions", "ecom-order"),
    "permission ecom-auth: configure is .*, the table says ^$": changed("permissions", "ecom-auth", configure=".*"),
    "permission ecom-auth: vhost elsewhere is not in the table": added("permissions", "ecom-auth", vhost="elsewhere"),
    "topic permission ecom-ops on ecom.events: is missing": without("topic_permissions", "ecom-ops"),
    "topic permission ecom-ops on ecom.events: read is #, the table says ^$": changed(
        "topic_permissions", "ecom-ops", read="#"
    ),
    "topic permission ecom-ops on amq.topic: is not in the table": added(
        "topic_permissions", "ecom-ops", exchange="amq.topic"
    ),
}


def test_a_broker_with_the_users_of_the_table_has_no_drift(users: permissions.Users, seen: dict[str, Any]) -> None:
    assert permissions.drift(users, seen) == []


@pytest.mark.parametrize(("said", "change"), DRIFTS.items(), ids=DRIFTS)
def test_each_difference_is_drift(
    said: str, change: Callable[[dict[str, Any]], None], users: permissions.Users, seen: dict[str, Any]
) -> None:
    change(seen)
    assert [str(line) for line in permissions.drift(users, seen)] == [said]


class Broker(BaseHTTPRequestHandler):
    """A management API: definitions are added or replace those of the same name; users can be deleted."""

    holds: ClassVar[dict[str, Any]] = {}
    refuses: ClassVar[bool] = False
    KEYS: ClassVar[dict[str, tuple[str, ...]]] = {
        "users": ("name",),
        "permissions": ("user", "vhost"),
        "topic_permissions": ("user", "vhost", "exchange"),
    }

    def do_GET(self) -> None:
        assert self.path == "/api/definitions"
        self.answer(self.holds)

    def do_POST(self) -> None:
        given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        for kind, names in self.KEYS.items():
            rows = {tuple(one[name] for name in names): one for one in (*self.holds.get(kind, ()), *given[kind])}
            self.holds[kind] = list(rows.values())
        self.answer(None)

    def do_DELETE(self) -> None:
        name = self.path.removeprefix("/api/users/")
        for kind in self.KEYS:
            self.holds[kind] = [one for one in self.holds[kind] if name not in (one.get("name"), one.get("user"))]
        self.answer(None)

    def answer(self, body: Any) -> None:
        text = b"" if body is None else json.dumps(body).encode()
        self.send_response(401 if self.refuses else 200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def management() -> Iterator[Management]:
    """The management API of a new broker: guest and one administrator."""
    Broker.refuses = False
    Broker.holds = {
        "users": [definitions.user("guest", "guest", "administrator"), definitions.user("chief", "x", "administrator")],
        "permissions": [definitions.permission("guest", "/", Rights(".*", ".*", ".*", {}))],
        "topic_permissions": [],
    }
    server = HTTPServer(("127.0.0.1", 0), Broker)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield Management(f"http://127.0.0.1:{server.server_port}", "chief", "x")
    server.shutdown()
    thread.join()
    server.server_close()


def test_applying_the_users_leaves_no_drift_and_no_guest_and_may_be_repeated(
    users: permissions.Users, management: Management
) -> None:
    assert permissions.apply(users, management) == []
    assert {one["name"] for one in Broker.holds["users"]} == {"chief", *users.rights}
    before = copy.deepcopy(Broker.holds["permissions"])
    assert permissions.apply(users, management) == []
    assert Broker.holds["permissions"] == before


def test_applying_the_users_deletes_ours_that_the_table_lacks_and_reports_strangers_with_rights(
    users: permissions.Users, management: Management
) -> None:
    Broker.holds["users"] += [definitions.user("ecom-shell", "x"), definitions.user("stranger", "x")]
    Broker.holds["permissions"].append(definitions.permission("stranger", "shop", Rights("", "", ".*", {})))
    assert [str(line) for line in permissions.apply(users, management)] == ["user stranger: is not in the table"]
    assert "ecom-shell" not in {one["name"] for one in Broker.holds["users"]}


def test_a_management_api_that_refuses_is_one_line(users: permissions.Users, management: Management) -> None:
    Broker.refuses = True
    with pytest.raises(CannotWork, match=r"management API at .* 401"):
        permissions.apply(users, management)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ORDER_AMQP_URI": ""}, "not set: ORDER_AMQP_URI"),
        ({"ORDER_AMQP_URI": URIS["OPS_AMQP_URI"]}, "ORDER_AMQP_URI must have the user ecom-order"),
        ({"ORDER_AMQP_URI": "amqp://ecom-order@broker/shop"}, "ORDER_AMQP_URI must have the user ecom-order"),
        ({"ORDER_AMQP_URI": "amqp://ecom-order:x@broker/other"}, "ORDER_AMQP_URI has another vhost"),
    ],
)
def test_the_uris_of_the_users_are_checked_before_anything_is_changed(change: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigurationFault, match=said):
        wanted_users(config.read(ENVIRONMENT | change))


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The URIs of this file, and none of the stack in which it may run."""
    monkeypatch.delenv("SHELL_AMQP_URI", raising=False)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def test_users_are_printed_with_hashes_and_without_a_password(environment: None) -> None:
    said = CliRunner().invoke(ecom, ["topology", "users"])
    assert said.exit_code == 0, said.output
    assert {one["name"] for one in json.loads(said.output)["users"]} == {broker_user(name) for name in NAMES}
    assert "secret-of" not in said.output


def test_users_are_applied_through_a_management_api_only(environment: None) -> None:
    said = CliRunner().invoke(ecom, ["topology", "apply", "--users"])
    assert said.exit_code == 2
    assert "--users needs --management" in said.output


def test_a_file_without_users_is_refused(tmp_path: Path, environment: None) -> None:
    file = tmp_path / "exported.json"
    for text in ("{", "[]", "{}"):
        file.write_text(text)
        said = CliRunner().invoke(ecom, ["topology", "check", "--definitions", str(file)])
        assert said.exit_code == 2, said.output
        assert "--definitions" in said.output
