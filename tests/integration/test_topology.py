"""`apply` declares the table on the broker, and `check` reports where broker and table differ."""

import json
import os
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import pika
import pytest
from kombu import Connection
from nameko.standalone.events import get_event_exchange

from ops.cli import main as cli
from shared.errors import CannotWork, ConfigurationFault, Conflict, TopologyDrift
from topology import declare, table
from topology.retire import Retired, retire

QUEUE = "q.order.payment-result"
RETRY = f"{QUEUE}.retry"
DLQ = f"{QUEUE}.dlq"
QUEUES = [*table.queue_arguments(), *table.rpc_queues()]


@pytest.fixture(scope="module")
def amqp_uri():
    uri = os.environ.get("AMQP_URI")
    if uri is None and os.environ.get("CI") == "true":
        raise RuntimeError("AMQP_URI is not set: in CI the broker must be there")
    if uri is None:
        pytest.skip("AMQP_URI is not set")
    return uri


@pytest.fixture
def channel(amqp_uri):
    """A channel to change the topology with. The fixture undoes the changes after the test."""
    declare.apply(amqp_uri)
    connection = pika.BlockingConnection(declare.parameters(amqp_uri))
    yield connection.channel()
    with connection.channel() as cleaner:
        for drift in declare.check(amqp_uri):
            if drift.kind == "queue":
                cleaner.queue_delete(drift.name)
            elif drift.kind == "exchange":
                cleaner.exchange_delete(drift.name)
        cleaner.queue_unbind(QUEUE, table.EVENTS_EXCHANGE, "payment.#")
    connection.close()
    declare.apply(amqp_uri)


def lines(drift):
    return [str(found) for found in drift]


def exists(amqp_uri, queue):
    connection = pika.BlockingConnection(declare.parameters(amqp_uri))
    try:
        connection.channel().queue_declare(queue, passive=True)
    except pika.exceptions.ChannelClosedByBroker:
        return False
    finally:
        connection.close()
    return True


def routes(channel, exchange, routing_key):
    """Whether a message reaches a queue. For a DLQ only: no consumer may take the message before it is purged."""
    channel.confirm_delivery()
    try:
        channel.basic_publish(exchange, routing_key, b"{}", mandatory=True)
    except pika.exceptions.UnroutableError:
        return False
    channel.queue_purge(routing_key)
    return True


def test_check_reports_everything_missing_on_an_empty_broker_and_declares_nothing(amqp_uri, channel):
    for name in QUEUES:
        channel.queue_delete(name)
    for name in table.exchanges():
        channel.exchange_delete(name)
    missing = [f"{thing.kind} {thing.name}: is missing" for thing in declare.things()]
    assert lines(declare.check(amqp_uri)) == missing
    assert lines(declare.check(amqp_uri)) == missing


def test_apply_leaves_no_drift_and_may_be_repeated(amqp_uri, channel):
    assert declare.check(amqp_uri) == []
    declare.apply(amqp_uri)
    assert declare.check(amqp_uri) == []


def test_apply_may_run_several_times_at_once(amqp_uri, channel):
    for name in QUEUES:
        channel.queue_delete(name)
    faults = []

    def apply():
        try:
            declare.apply(amqp_uri)
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=apply) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert declare.check(amqp_uri) == []


def test_a_missing_queue_is_reported_by_check_and_declared_by_apply(amqp_uri, channel):
    channel.queue_delete(RETRY)
    assert lines(declare.check(amqp_uri)) == [f"queue {RETRY}: is missing"]
    assert not exists(amqp_uri, RETRY)
    declare.apply(amqp_uri)
    assert declare.check(amqp_uri) == []


def test_a_queue_with_another_ttl_is_reported_with_both_values_and_not_changed(amqp_uri, channel):
    channel.queue_delete(RETRY)
    channel.queue_declare(RETRY, durable=True, arguments={**table.queue_arguments()[RETRY], "x-message-ttl": 5000})
    drift = [f"queue {RETRY}: x-message-ttl is 5000, the table says 1000"]
    assert lines(declare.check(amqp_uri)) == drift
    with pytest.raises(TopologyDrift) as refused:
        declare.apply(amqp_uri)
    assert drift[0] in str(refused.value)
    assert lines(declare.Drift(**found) for found in refused.value.details["drift"]) == drift
    assert lines(declare.check(amqp_uri)) == drift


def test_every_difference_of_a_queue_is_reported(amqp_uri, channel):
    channel.queue_delete(DLQ)
    channel.queue_declare(
        DLQ, durable=False, arguments={"x-queue-type": "classic", "x-message-ttl": 60_000, "x-max-length": 7}
    )
    assert sorted(lines(declare.check(amqp_uri))) == [
        f"queue {DLQ}: durable is false, the table says true",
        f"queue {DLQ}: x-max-length is 7, the table says not set",
        f"queue {DLQ}: x-message-ttl is 60000, the table says not set",
        f"queue {DLQ}: x-queue-type is classic, the table says quorum",
    ]


def test_apply_declares_the_rest_despite_drift(amqp_uri, channel):
    channel.queue_delete(DLQ)
    channel.queue_declare(DLQ, durable=False)
    channel.queue_delete(RETRY)
    with pytest.raises(TopologyDrift):
        declare.apply(amqp_uri)
    assert exists(amqp_uri, RETRY)


def test_an_exchange_of_another_type_is_reported_and_not_changed(amqp_uri, channel):
    exchange = table.failed_exchange("order")
    channel.exchange_delete(exchange)
    channel.exchange_declare(exchange, "fanout", durable=True, arguments={"alternate-exchange": "amq.fanout"})
    drift = [
        f"exchange {exchange}: type is fanout, the table says direct",
        f"exchange {exchange}: alternate-exchange is amq.fanout, the table says not set",
    ]
    assert lines(declare.check(amqp_uri)) == drift
    with pytest.raises(TopologyDrift):
        declare.apply(amqp_uri)
    assert lines(declare.check(amqp_uri)) == drift


@pytest.fixture
def with_bindings(amqp_uri, channel, monkeypatch):
    """Give the first queue of the table other bindings; they are taken away afterwards."""
    queue, *others = table.QUEUES
    given = []

    def give(*bindings):
        given.extend(bindings)
        monkeypatch.setattr(table, "QUEUES", (replace(queue, bindings=bindings), *others))
        declare.apply(amqp_uri)
        channel.queue_purge(queue.name)
        return queue.name

    yield give
    for binding in set(given) - set(queue.bindings):
        channel.queue_unbind(queue.name, table.EVENTS_EXCHANGE, binding)


def test_a_queue_with_several_bindings_gets_once_what_any_of_them_matches(channel, with_bindings):
    queue = with_bindings("order.created", "inventory.reserved", "order.*")
    channel.confirm_delivery()
    for key in ("order.created", "inventory.reserved", "payment.failed"):
        channel.basic_publish(table.EVENTS_EXCHANGE, key, key.encode())
    bodies = [channel.basic_get(queue, auto_ack=True)[2] for _ in range(3)]
    assert bodies == [b"order.created", b"inventory.reserved", None]


def test_apply_restores_a_lost_binding(amqp_uri, channel):
    exchange = table.failed_exchange("order")
    assert routes(channel, exchange, DLQ)
    channel.queue_unbind(DLQ, exchange, DLQ)
    assert not routes(channel, exchange, DLQ)
    declare.apply(amqp_uri)
    assert routes(channel, exchange, DLQ)


class Management(BaseHTTPRequestHandler):
    """Answers the request for bindings as RabbitMQ's management API does."""

    rows: ClassVar[list[dict]] = []
    asked: ClassVar[list[tuple[str, str]]] = []

    def do_GET(self):
        self.asked.append((self.path, self.headers["Authorization"]))
        body = json.dumps(self.rows).encode()
        self.send_response(200 if self.rows else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def management_url():
    """A management API with every binding of the table and one default binding of the broker."""
    Management.rows = [
        {"source": exchange, "destination": queue, "routing_key": key, "destination_type": "queue", "arguments": {}}
        for exchange, queue, key in [*table.bindings(), ("", QUEUE, QUEUE)]
    ]
    Management.asked = []
    server = HTTPServer(("127.0.0.1", 0), Management)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://auditor:p%40ss@127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def test_check_compares_bindings_when_it_has_a_management_url(amqp_uri, channel, management_url):
    assert declare.check(amqp_uri, management_url) == []
    lost = next(row for row in Management.rows if row["source"] == table.EVENTS_EXCHANGE)
    Management.rows.remove(lost)
    Management.rows.append({**lost, "destination": QUEUE, "routing_key": "payment.#"})
    assert lines(declare.check(amqp_uri, management_url)) == [
        f"binding ecom.events -> {lost['destination']} ({lost['routing_key']}): is missing",
        f"binding ecom.events -> {QUEUE} (payment.#): is not in the table",
    ]
    path, authorization = Management.asked[0]
    assert path.startswith("/api/bindings/")
    assert "/" not in path.removeprefix("/api/bindings/")
    assert authorization == "Basic YXVkaXRvcjpwQHNz"  # auditor:p@ss


def test_a_refusal_of_the_management_api_is_one_line(amqp_uri, channel, management_url):
    Management.rows = []
    with pytest.raises(CannotWork, match=r"management API at .* 404") as refused:
        declare.check(amqp_uri, management_url)
    assert "\n" not in str(refused.value)


OLD = "q.order.retired"


@pytest.fixture
def old_queue(channel, management_url):
    """A queue that the table does not have, with its DLQ, bound to two keys as the management API says."""
    names = (OLD, table.dead_letter_queue(OLD))
    for name in names:
        channel.queue_declare(name, durable=True)
    for key in ("old.one", "old.*"):
        channel.queue_bind(OLD, table.EVENTS_EXCHANGE, key)
        row = {"source": table.EVENTS_EXCHANGE, "destination": OLD, "routing_key": key, "destination_type": "queue"}
        Management.rows.append(row)
    yield
    for name in names:
        channel.queue_delete(name)


def test_a_queue_that_the_table_binds_is_not_retired(amqp_uri, channel, management_url):
    with pytest.raises(Conflict, match=r"the table binds q.order.payment-result to payment\.\*"):
        retire(amqp_uri, management_url, QUEUE)
    assert lines(declare.check(amqp_uri)) == []


def test_a_queue_whose_bindings_left_the_table_is_unbound_and_stays(
    amqp_uri, channel, management_url, old_queue, monkeypatch
):
    monkeypatch.setitem(table.BY_NAME, OLD, table.Queue(OLD, "order", ()))
    assert retire(amqp_uri, management_url, OLD) == Retired(("old.*", "old.one"), ())
    assert exists(amqp_uri, OLD)
    channel.confirm_delivery()
    with pytest.raises(pika.exceptions.UnroutableError):
        channel.basic_publish(table.EVENTS_EXCHANGE, "old.one", b"{}", mandatory=True)


def test_a_queue_that_left_the_table_is_deleted_when_it_is_empty(amqp_uri, channel, management_url, old_queue):
    channel.confirm_delivery()
    channel.basic_publish("", table.dead_letter_queue(OLD), b"{}")
    with pytest.raises(Conflict, match=r"nothing is deleted: q\.order\.retired\.dlq has 1 messages and 0 consumers"):
        retire(amqp_uri, management_url, OLD)
    assert exists(amqp_uri, OLD)
    channel.queue_purge(table.dead_letter_queue(OLD))
    assert retire(amqp_uri, management_url, OLD).deleted == (OLD, table.dead_letter_queue(OLD))
    assert not exists(amqp_uri, OLD)


def test_nameko_and_apply_declare_the_events_exchange_alike(amqp_uri, channel):
    assert get_event_exchange("ecom", {}).name == table.EVENTS_EXCHANGE
    with Connection(amqp_uri) as connection:
        get_event_exchange("ecom", {})(connection.channel()).declare()
    assert declare.check(amqp_uri) == []
    # The other way round: a Nameko shell declared it first.
    channel.exchange_delete(table.EVENTS_EXCHANGE)
    with Connection(amqp_uri) as connection:
        get_event_exchange("ecom", {})(connection.channel()).declare()
    declare.apply(amqp_uri)
    assert declare.check(amqp_uri) == []


def test_what_services_of_the_previous_version_declared_for_their_calls_is_no_drift(amqp_uri, channel):
    for queue, key in table.rpc_queues().items():
        channel.queue_delete(queue)
        channel.queue_declare(queue, durable=True, auto_delete=False)
        channel.queue_bind(queue, table.RPC_EXCHANGE, key)
    declare.apply(amqp_uri)
    assert declare.check(amqp_uri) == []


@pytest.fixture
def quorum_calls(amqp_uri, channel, monkeypatch):
    """`ecom topology` as in production; the queues of calls are classic again afterwards."""
    monkeypatch.setenv("AMQP_URI", amqp_uri)
    monkeypatch.setenv("RPC_QUEUE_TYPE", table.QUORUM)
    yield
    for queue in table.rpc_queues():
        channel.queue_delete(queue)


def test_classic_queues_of_calls_of_an_older_version_are_left_and_the_operator_is_told_how_to_replace_them(
    channel, quorum_calls, capsys
):
    queue = next(iter(table.rpc_queues()))
    assert ecom("topology", "apply") == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == len(table.rpc_queues()) + 1
    assert said[0].startswith(f"queue {queue}: x-queue-type is classic, the table says quorum. Calls cross it")
    assert f"`rabbitmqctl delete_queue -p VHOST {queue}`, then `ecom topology apply`" in said[0]
    assert said[-1].startswith("applied: ")
    assert ecom("topology", "apply", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["drift"], [found["name"] for found in answer["left"]]) == ([], list(table.rpc_queues()))
    assert ecom("topology", "check") == 1
    assert capsys.readouterr().out.splitlines() == said[:-1]

    for name in table.rpc_queues():
        channel.queue_delete(name)
    assert ecom("topology", "apply") == 0
    assert capsys.readouterr().out.startswith("applied: ")
    assert ecom("topology", "check") == 0


def test_other_drift_of_a_queue_of_calls_is_drift(amqp_uri, channel):
    queue = next(iter(table.rpc_queues()))
    channel.queue_delete(queue)
    channel.queue_declare(queue, durable=True, arguments={"x-message-ttl": 5})
    with pytest.raises(TopologyDrift, match=f"queue {queue}: x-message-ttl is 5, the table says not set"):
        declare.apply(amqp_uri, table.CLASSIC)


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("amqp://guest:hidden@127.0.0.1:1//", "127.0.0.1:1"),
        ("amqp://guest:hidden@nowhere.invalid//", "nowhere.invalid:5672"),
    ],
)
def test_the_error_of_a_broker_that_is_away_is_one_line_without_the_password(uri, said):
    for ask in (declare.apply, declare.check):
        with pytest.raises(CannotWork) as refused:
            ask(uri)
        assert said in str(refused.value)
        assert "hidden" not in str(refused.value)
        assert "\n" not in str(refused.value)


def test_a_wrong_password_and_an_unknown_vhost_have_different_errors(amqp_uri):
    base, _, _ = amqp_uri.rpartition("/")
    base = base.rstrip("/")
    with pytest.raises(CannotWork, match=r"vhost nowhere.*not found"):
        declare.check(f"{base}/nowhere")
    scheme, _, rest = amqp_uri.partition("://")
    with pytest.raises(CannotWork, match="ACCESS_REFUSED"):
        declare.check(f"{scheme}://guest:wrong@{rest.rpartition('@')[2]}")


@pytest.mark.parametrize("uri", ["amqp://guest@127.0.0.1:many//", "http://guest@127.0.0.1//", "127.0.0.1:5672"])
def test_an_invalid_amqp_uri_is_a_configuration_fault(uri):
    for ask in (declare.apply, declare.check):
        with pytest.raises(ConfigurationFault, match="AMQP_URI"):
            ask(uri)


@pytest.mark.parametrize("url", ["http://127.0.0.1:many", "ftp://127.0.0.1", "127.0.0.1:15672"])
def test_an_invalid_management_url_is_a_configuration_fault(amqp_uri, channel, url):
    with pytest.raises(ConfigurationFault, match="management URL"):
        declare.check(amqp_uri, url)


def test_a_user_without_permissions_is_refused_and_no_queue_is_reported_missing(amqp_uri, servers_of_this_run):
    declare.apply(amqp_uri)
    broker = servers_of_this_run.broker
    _, _, rest = amqp_uri.partition("@")
    broker.rabbitmqctl("add_user", "stranger", "secret")
    try:
        broker.rabbitmqctl("set_permissions", "-p", amqp_uri.rpartition("/")[2], "stranger", "", "", "")
        for ask in (declare.apply, declare.check):
            with pytest.raises(CannotWork, match="ACCESS_REFUSED"):
                ask(f"amqp://stranger:secret@{rest}")
    finally:
        broker.rabbitmqctl("delete_user", "stranger")


def ecom(*arguments):
    """The command line's exit code."""
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    return ended.value.code or 0


def test_the_command_line_applies_and_checks(amqp_uri, channel, monkeypatch, capsys):
    monkeypatch.setenv("AMQP_URI", amqp_uri)
    assert ecom("topology", "apply") == 0
    counts = f"{len(table.exchanges())} exchanges, {len(QUEUES)} queues"
    assert capsys.readouterr().out == f"applied: {counts}, {len(table.bindings())} bindings\n"
    assert ecom("topology", "check") == 0
    assert capsys.readouterr().out.startswith(f"clean: {counts}\nbindings were not compared, because AMQP")
    channel.queue_delete(RETRY)
    assert ecom("topology", "check") == 1
    assert capsys.readouterr().out == f"queue {RETRY}: is missing\n"
    assert ecom("topology", "check", "--json") == 1
    assert json.loads(capsys.readouterr().out) == {
        "drift": [{"kind": "queue", "name": RETRY, "problem": "is missing"}],
        "left": [],
        "compared": {"exchanges": len(table.exchanges()), "queues": len(QUEUES), "bindings": None, "users": None},
    }
    channel.queue_declare(RETRY, durable=False)
    assert ecom("topology", "apply") == 1
    assert f"queue {RETRY}: durable is false, the table says true" in capsys.readouterr().out


def test_the_exit_code_is_3_when_the_broker_is_away(monkeypatch, capsys):
    monkeypatch.setenv("AMQP_URI", "amqp://guest:guest@127.0.0.1:1//")
    for command in ("apply", "check"):
        assert ecom("topology", command, "--json") == 3
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.count("\n") == 1
        assert said.err.startswith("ecom: the broker at 127.0.0.1:1 ")
