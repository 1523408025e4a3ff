"""deploy/tls.yml and what make_secrets.py makes for it fit docker-compose.yml and the code, without Docker."""

import os
import re
import shutil
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from shared import config
from tests.unit.test_compose import DEPLOY, PROXY, ROOT, make_secrets, owners, without_proxy
from topology import broker_uri
from topology.broker_uri import TlsFiles
from topology.services import BY_NAME
from topology.tls import client_context

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("openssl") is None, reason="certificates are made by root, with openssl"
)

OVERRIDE = yaml.safe_load((DEPLOY / "tls.yml").read_text(encoding="utf-8"))["services"]
CONTAINERS = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
COMPOSE = without_proxy(CONTAINERS)  # those with a certificate of their own
SERVERS = ("rabbitmq", "postgres")


@pytest.fixture(scope="module")
def secrets(tmp_path_factory):
    """A folder as `make_secrets.py --tls` makes it."""
    folder = tmp_path_factory.mktemp("deploy") / "secrets"
    made = make_secrets("--tls", folder)
    assert made.returncode == 0, made.stderr
    return folder


def talk(server, client, host):
    """A handshake in memory of two folders of files. Raises ssl.SSLError when one refuses the other."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.verify_mode = ssl.CERT_REQUIRED
    serving.load_verify_locations(server / "ca.crt")
    serving.load_cert_chain(server / "tls.crt", server / "tls.key")
    calling = client_context(TlsFiles(*(str(client / name) for name in ("ca.crt", "tls.crt", "tls.key"))))
    calling.verify_flags |= ssl.VERIFY_X509_STRICT  # what Python 3.13 and others ask for
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        calling.wrap_bio(to_client, to_server, server_hostname=host),
        serving.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(4):
        for side in sides:
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert all(side.version() for side in sides)


def test_every_container_trusts_every_other_by_its_name(secrets):
    tls = secrets / "tls"
    for name in COMPOSE:
        for server in SERVERS:
            talk(tls / server, tls / name, server)
    talk(tls / "gateway", tls / "ops", "localhost")
    talk(tls / "gateway", tls / "ops", "127.0.0.1")
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        talk(tls / "order", tls / "ops", "rabbitmq")


def test_each_key_belongs_to_the_user_of_its_container_and_that_of_the_ca_to_root(secrets):
    seen = owners(secrets)
    for name in COMPOSE:
        user = 999 if name in SERVERS else 10001
        assert seen[f"tls/{name}"] == (user, 0o700)
        assert seen[f"tls/{name}/tls.key"] == (user, 0o400)
    assert seen["tls/ca/ca.key"] == (0, 0o400)


def test_every_container_mounts_its_own_folder_and_no_other(secrets):
    assert set(OVERRIDE) == set(CONTAINERS)
    for name, service in OVERRIDE.items():
        mounted = [volume for volume in service["volumes"] if "/secrets/" in volume]
        folder = "gateway" if name in PROXY else name  # clients and nginx call them by this name
        assert mounted == [f"./deploy/secrets/tls/{folder}:/run/tls:ro"]
        for volume in service["volumes"]:
            source = volume.partition(":")[0].replace("./deploy/secrets", str(secrets)).replace("./", f"{ROOT}/")
            assert Path(source).exists()


def test_every_process_reads_settings_that_verify_broker_and_databases(secrets):
    assert OVERRIDE["gateway2"] == OVERRIDE["gateway"]
    for name, service in without_proxy(OVERRIDE).items():
        if name in SERVERS:
            continue
        environment = COMPOSE[name]["environment"] | service["environment"]
        given = {
            variable: value.replace("/run/tls", str(secrets / "tls" / name)).replace("/run/secrets", str(secrets))
            for variable, value in environment.items()
            if isinstance(value, str) and not value.startswith("$")
        }
        settings = config.read(given)
        uris = [settings.amqp_uri, settings.amqp_admin_uri, *settings.amqp_uris.values()]
        assert any(uris) == (name in {*BY_NAME, "topology"})
        for address in (broker_uri.parse(uri) for uri in uris if uri):
            assert (address.host, address.port) == ("rabbitmq", 5671)
            assert address.tls is not None
            assert address.tls.ca == given["TLS_CA_FILE"]
        assert all("sslmode=verify-full" in url for url in settings.database_urls.values())
        assert bool(settings.gateway_tls_certificate) == (name == "gateway")


def test_the_proxy_hears_and_calls_nobody_in_clear_text():
    target = "/etc/ecom/gateways.conf:ro"
    assert f"./deploy/proxy/plain.conf:{target}" in CONTAINERS["proxy"]["volumes"]
    assert f"./deploy/proxy/tls.conf:{target}" in OVERRIDE["proxy"]["volumes"]
    said = (DEPLOY / "proxy" / "tls.conf").read_text()
    assert re.findall(r"^listen (.*);$", said, re.M) == ["8080 ssl"]
    assert re.findall(r"^set \$gateways (.*);$", said, re.M) == ["https://gateways:8000"]
    assert "proxy_ssl_verify on;" in said


def test_the_servers_hear_nobody_in_clear_text():
    broker = (DEPLOY / "tls" / "rabbitmq.conf").read_text()
    (port,) = re.findall(r"^listeners.ssl.default = (\d+)$", broker, re.M)
    assert OVERRIDE["rabbitmq"]["healthcheck"]["test"][-1].endswith(f"/{port}")
    assert "listeners.tcp = none" in broker
    assert "ssl_options.fail_if_no_peer_cert = true" in broker
    lines = [line.split() for line in (DEPLOY / "tls" / "pg_hba.conf").read_text().splitlines() if line[0] != "#"]
    assert {line[0] for line in lines} == {"local", "hostssl"}
    assert all("clientcert=verify-ca" in line for line in lines if line[0] == "hostssl")
    plain, encrypted = (service["postgres"]["command"] for service in (COMPOSE, OVERRIDE))
    settings = " ".join(plain[1:]).replace("-c ", "-c").split()
    assert set(settings) < set(encrypted)


def serials(folder):
    return {
        path.parent.name: ssl._ssl._test_decode_cert(str(path))["serialNumber"] for path in folder.glob("tls/*/tls.crt")
    }


def test_certificates_are_kept_until_they_end_soon_and_the_ca_is_changed_in_three_steps(tmp_path):
    folder, tls = tmp_path / "secrets", tmp_path / "secrets" / "tls"
    make_secrets("--tls", folder)
    first = serials(folder)
    assert make_secrets("--tls", folder).stdout == f"{folder}: everything is there\n"
    assert serials(folder) == first

    (tls / "ca").rename(tls / "old-ca")
    make_secrets("--tls", folder)  # a new CA, which everybody trusts beside the old one
    assert serials(folder) == first
    talk(tls / "rabbitmq", tls / "order", "rabbitmq")
    shutil.copytree(tls / "order", tmp_path / "order-before")

    make_secrets("--tls", "--renew", folder)
    assert not set(serials(folder).values()) & set(first.values())
    talk(tls / "rabbitmq", tmp_path / "order-before", "rabbitmq")  # a connection that was made a moment ago

    shutil.rmtree(tls / "old-ca")
    make_secrets("--tls", folder)
    talk(tls / "rabbitmq", tls / "order", "rabbitmq")
    with pytest.raises(ssl.SSLError):
        talk(tls / "rabbitmq", tmp_path / "order-before", "rabbitmq")


def test_a_certificate_that_ends_within_a_month_is_made_anew(tmp_path):
    folder = tmp_path / "secrets"
    make_secrets("--tls", folder)
    before = serials(folder)
    own, ca = folder / "tls" / "order", folder / "tls" / "ca"
    request = subprocess.run(
        ["openssl", "req", "-new", "-key", own / "tls.key", "-subj", "/CN=order"], capture_output=True, check=True
    ).stdout
    ending = ["-days", "20", "-CA", ca / "ca.crt", "-CAkey", ca / "ca.key", "-set_serial", "7", "-out", own / "tls.crt"]
    subprocess.run(["openssl", "x509", "-req", *ending], input=request, capture_output=True, check=True)
    assert make_secrets("--tls", folder).stdout == f"{folder}: order\n"
    after = serials(folder)
    assert after.pop("order") not in {"07", before.pop("order")}
    assert after == before


def test_without_openssl_it_says_what_to_do(tmp_path):
    command = [sys.executable, DEPLOY / "make_secrets.py", "--tls", tmp_path]
    said = subprocess.run(command, capture_output=True, text=True, env={"PATH": "/nowhere"}, check=False)
    assert (said.returncode, re.search("openssl is missing", said.stderr) is not None) == (1, True)
