"""A CA of the test's own, broker and database server that let in whom it has certified, and a gateway with HTTPS."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psycopg2
import pytest
import requests
from sqlalchemy import make_url

from ops.cli.flow import Flow
from ops.local.broker import MAIN_VHOST
from ops.local.servers import Broker, Postgres, Servers, ServerTls
from ops.local.supervisor import is_ready, readiness
from shared.parsers import with_verified_tls
from tests.certificates import Authority, Issued
from tests.e2e.conftest import refuse_patched_process
from tests.e2e.system import ECOM, ROOT, System, Systems, eventually
from topology.broker_uri import TlsFiles, with_tls
from topology.services import DATABASES

# The first test starts the servers, and each call of rabbitmqctl starts an Erlang of its own.
pytestmark = pytest.mark.timeout(300)

HOST = "localhost"  # the certificates are for this name; 127.0.0.1 is thus a wrong one


@dataclass
class Encrypted:
    """The servers with TLS, a system of one replica of each service that uses it, and the files of all of them."""

    authority: Authority
    stranger: Authority
    ca: Path  # what clients believe
    server_ca: Path  # what the broker believes; the database server has a copy of its own
    server: Issued
    client: Issued
    broker: Broker
    postgres: Postgres
    environment: dict[str, str]
    system: System

    @property
    def files(self) -> TlsFiles:
        return TlsFiles(str(self.ca), str(self.client.certificate), str(self.client.key))

    def flow(self) -> Flow:
        """A client that verifies the gateway."""
        flow = Flow(f"https://{HOST}:{self.system.settings.port('gateway')}")
        flow.http.verify = str(self.ca)
        flow.http.trust_env = False  # a CA bundle in the environment would be believed instead
        return flow

    def wait_ready(self) -> None:
        """Return when every service is ready."""
        children = self.system.supervisor.children
        eventually(
            lambda: [child.name for child in children if not is_ready(child.probe_url)], lambda names: not names, 60
        )

    def reasons(self, service: str) -> str:
        """Why a service is not ready."""
        (url,) = [child.probe_url for child in self.system.supervisor.children if child.service == service]
        return "; ".join(readiness(url).reasons)

    def pay(self, sku: str) -> None:
        """An order goes all its way."""
        flow = self.flow()
        flow.stock(sku, 5)
        order = flow.at_rest(flow.order(sku)["order_id"])
        assert order["status"] == "PAID"
        flow.timeline(order["order_id"], last="inventory.committed")

    def amqp_uri(self, files: TlsFiles, host: str = HOST) -> str:
        user = f"{self.broker.user}:{self.broker.facts['password']}"
        return with_tls(f"amqps://{user}@{host}:{self.broker.tls_port}/{MAIN_VHOST}", files)

    def database_url(self, files: TlsFiles, host: str = HOST) -> str:
        url = make_url(os.environ["ORDER_DATABASE_URL"]).set(host=host, drivername="postgresql")
        return with_verified_tls(url.render_as_string(hide_password=False), files)

    def renew_servers(self, new: Issued) -> None:
        """Give broker, database server and gateway another certificate, without a stop of any of them."""
        self.server.replace(new)
        Issued(self.postgres.tls.certificate, self.postgres.tls.key).replace(new)
        self.let_servers_read()

    def trust(self, text: bytes) -> None:
        """Give clients and servers another list of CAs. The servers are still to read it."""
        for path in (self.ca, self.server_ca, self.postgres.tls.ca):
            path.write_bytes(text)

    def let_servers_read(self) -> None:
        self.broker.rabbitmqctl("eval", "ssl:clear_pem_cache().")
        self.postgres.reload()

    def broker_clients(self) -> list[tuple[bool, str]]:
        """Of each connection to the broker, whether it uses TLS and the name of its certificate."""
        rows = json.loads(self.broker.rabbitmqctl("list_connections", "--formatter=json", "ssl", "peer_cert_subject"))
        return [(row["ssl"], row["peer_cert_subject"]) for row in rows]

    def database_clients(self) -> list[tuple[bool, str]]:
        """The same of each connection of a service's role to its database."""
        rows = self.system.databases.rows(
            "order",
            "SELECT ssl, client_dn FROM pg_stat_activity JOIN pg_stat_ssl USING (pid) WHERE usename LIKE '%\\_app'",
        )
        return [(row["ssl"], row["client_dn"]) for row in rows]

    def cut_connections(self) -> None:
        """Let broker and database server end every connection of the services."""
        self.broker.rabbitmqctl("close_all_connections", "--global", "test")
        self.system.databases.rows(
            "order", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename LIKE '%\\_app'"
        )


@pytest.fixture(scope="module")
def encrypted(systems: Systems, tmp_path_factory: pytest.TempPathFactory) -> Encrypted:
    refuse_patched_process()
    folder = tmp_path_factory.mktemp("tls")
    authority, stranger = Authority(folder / "ours"), Authority(folder / "theirs", "stranger")
    server, client = authority.issue("server", HOST), authority.issue("service")
    ca, server_ca = folder / "clients-believe.crt", folder / "servers-believe.crt"
    for path in (ca, server_ca):
        shutil.copy(authority.file, path)
    servers = Servers.attach(os.environ["ECOM_TEST_STACK"])
    broker, postgres = servers.broker, servers.postgres
    assert broker
    assert postgres
    systems.stop()
    servers.stop()
    broker.prepare(tls=ServerTls(server_ca, server.certificate, server.key))
    postgres.prepare(tls=ServerTls(server_ca, server.certificate, server.key))
    for each in servers.each():
        each.launch()
    for each in servers.each():
        each.wait()
    environment = {
        **{
            name: f"amqps://{urlsplit(uri).netloc.partition('@')[0]}@{HOST}:{broker.tls_port}/{MAIN_VHOST}"
            for name, uri in os.environ.items()
            if name.endswith("AMQP_URI")
        },
        "AMQP_HEARTBEAT_S": "2",
        "TLS_CA_FILE": str(ca),
        "TLS_CERT_FILE": str(client.certificate),
        "TLS_KEY_FILE": str(client.key),
        "GATEWAY_TLS_CERT_FILE": str(server.certificate),
        "GATEWAY_TLS_KEY_FILE": str(server.key),
        **{
            name: os.environ[name].replace("127.0.0.1", HOST)
            for name in ("DATABASE_ADMIN_URL", *(f"{database.upper()}_DATABASE_URL" for database in DATABASES))
        },
    }
    system = systems.like(1, **environment)
    # Nothing is undone: the tests of this folder are the last of their run.
    return Encrypted(authority, stranger, ca, server_ca, server, client, broker, postgres, environment, system)


def attempts(uris: list[str]) -> list[str]:
    """What comes of connecting as the services do."""
    command = [sys.executable, "-m", "tests.tls.try_broker"]
    ended = subprocess.run(command, cwd=ROOT, input=json.dumps(uris), capture_output=True, text=True, check=True)
    found: list[str] = json.loads(ended.stdout)
    return found


def open_database(url: str) -> str:
    """What comes of a connection."""
    try:
        psycopg2.connect(url).close()
    except psycopg2.OperationalError as error:
        return str(error)
    return ""


def test_a_saga_runs_over_mutual_tls_alone(encrypted: Encrypted) -> None:
    encrypted.pay("encrypted")
    for clients in (encrypted.broker_clients(), encrypted.database_clients()):
        assert len(clients) >= 5
        assert all(secure and "CN=service" in name for secure, name in clients), clients


def test_an_operator_uses_the_same_settings(encrypted: Encrypted) -> None:
    environment = os.environ | encrypted.environment
    commands = [
        subprocess.Popen([ECOM, *words], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for words in (("topology", "check"), ("migrate",))
    ]
    said = [command.communicate()[0].decode() for command in commands]
    assert [command.returncode for command in commands] == [0, 0], said


def test_the_broker_and_its_clients_refuse_each_wrong_certificate(encrypted: Encrypted) -> None:
    ours, others = encrypted.files, encrypted.stranger.issue("service")
    alien = TlsFiles(ours.ca, str(others.certificate), str(others.key))
    *refusals, accepted = attempts(
        [
            encrypted.amqp_uri(TlsFiles(str(encrypted.stranger.file), ours.certificate, ours.key)),
            encrypted.amqp_uri(TlsFiles("", ours.certificate, ours.key)),
            encrypted.amqp_uri(ours, host="127.0.0.1"),
            encrypted.amqp_uri(TlsFiles(ours.ca)),
            encrypted.amqp_uri(alien),
            encrypted.amqp_uri(ours).replace("amqps:", "amqp:").partition("?")[0],
            encrypted.amqp_uri(ours),
        ]
    )
    assert accepted == ""
    reasons = (
        "self-signed certificate in certificate chain",
        "self-signed certificate in certificate chain",
        "certificate is not valid for '127.0.0.1'",
        "the broker",  # it ends the connection: its alert, or only the end, is heard first
        "the broker",
        "the broker is away",
    )
    for reason, refusal in zip(reasons, refusals, strict=True):
        assert reason in refusal


def test_the_database_server_and_its_clients_refuse_each_wrong_certificate(encrypted: Encrypted) -> None:
    ours, others = encrypted.files, encrypted.stranger.issue("service")
    alien = TlsFiles(ours.ca, str(others.certificate), str(others.key))
    assert open_database(encrypted.database_url(ours)) == ""
    strange = TlsFiles(str(encrypted.stranger.file), ours.certificate, ours.key)
    assert "certificate verify failed" in open_database(encrypted.database_url(strange))
    assert 'does not match host name "127.0.0.1"' in open_database(encrypted.database_url(ours, host="127.0.0.1"))
    assert "requires a valid client certificate" in open_database(encrypted.database_url(TlsFiles(ours.ca)))
    assert "alert unknown ca" in open_database(encrypted.database_url(alien))
    plain = encrypted.database_url(TlsFiles(), host="127.0.0.1") + "?sslmode=disable"
    assert "no encryption" in open_database(plain)


def test_a_gateway_of_another_ca_or_name_is_refused_by_its_client(encrypted: Encrypted) -> None:
    port = encrypted.system.settings.port("gateway")
    for url, ca in ((f"https://{HOST}:{port}", encrypted.stranger.file), (f"https://127.0.0.1:{port}", encrypted.ca)):
        with pytest.raises(requests.exceptions.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
            requests.get(f"{url}/healthz", verify=str(ca), timeout=5)
    with pytest.raises(requests.exceptions.ConnectionError):
        requests.get(f"http://{HOST}:{port}/healthz", timeout=5)


def test_a_frozen_broker_is_noticed_and_left_over_tls_too(encrypted: Encrypted) -> None:
    encrypted.broker.pause()
    try:
        eventually(lambda: encrypted.reasons("order"), lambda why: "BrokerSilent" in why, 20)
    finally:
        encrypted.broker.resume()
    encrypted.wait_ready()
    encrypted.pay("thawed")


@pytest.mark.long
def test_an_alarm_of_the_broker_is_heard_over_tls(encrypted: Encrypted) -> None:
    flow = encrypted.flow()
    flow.stock("before-the-alarm", 1)
    flow.timeout_s = 1.0

    def told() -> str:
        with suppress(requests.Timeout):  # the broker tells only those who go on publishing
            flow.send("GET", "/api/stocks/before-the-alarm")
        return encrypted.reasons("gateway")

    encrypted.broker.rabbitmqctl("set_vm_memory_high_watermark", "0.0000001")
    try:
        eventually(told, lambda why: "in alarm: memory" in why, 20)
    finally:
        encrypted.broker.rabbitmqctl("set_vm_memory_high_watermark", "absolute", "1GB")
    encrypted.wait_ready()
    encrypted.pay("calmed")


def test_an_expired_certificate_of_a_server_is_refused_and_a_renewed_one_accepted(encrypted: Encrypted) -> None:
    encrypted.renew_servers(encrypted.authority.issue("server", HOST, expired=True))
    (said,) = attempts([encrypted.amqp_uri(encrypted.files)])
    assert said == "the certificate of the broker is not accepted (certificate has expired)"
    eventually(
        lambda: open_database(encrypted.database_url(encrypted.files)),
        lambda said: "certificate verify failed" in said,
    )
    with pytest.raises(requests.exceptions.SSLError, match="has expired"):
        encrypted.flow().send("GET", "/healthz", user=None)
    encrypted.renew_servers(encrypted.authority.issue("renewed", HOST))
    eventually(lambda: open_database(encrypted.database_url(encrypted.files)), lambda said: not said)
    assert attempts([encrypted.amqp_uri(encrypted.files)]) == [""]


def test_certificates_and_their_ca_are_changed_while_all_runs(encrypted: Encrypted) -> None:
    pids = encrypted.system.supervisor.pids()
    next_ca = Authority(encrypted.authority.folder, "next")
    encrypted.trust(encrypted.authority.file.read_bytes() + next_ca.file.read_bytes())
    encrypted.client.replace(next_ca.issue("of-next"))
    encrypted.renew_servers(next_ca.issue("server", HOST))
    encrypted.trust(next_ca.file.read_bytes())
    encrypted.let_servers_read()
    encrypted.cut_connections()
    eventually(lambda: len(encrypted.database_clients()), lambda count: count >= 5)
    encrypted.wait_ready()
    encrypted.pay("rotated")
    clients = eventually(
        lambda: [*encrypted.broker_clients(), *encrypted.database_clients()],
        lambda clients: all(secure and "CN=of-next" in name for secure, name in clients),
        60,
    )
    assert clients
    assert encrypted.system.supervisor.pids() == pids
