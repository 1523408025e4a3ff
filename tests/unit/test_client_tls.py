"""How a client of the broker finds its TLS, and what TLS changes at its connection."""

import socket
import ssl

import eventlet
import pytest

from ops.cli.shell import nameko_config
from shared.edge.amqp_client import _TcpTransport
from shared.edge.broker import BROKER_ERRORS, BrokerConnection, why
from shared.errors import ConfigurationFault
from shared.parsers import with_verified_tls
from tests.certificates import Authority
from topology import broker_uri
from topology.broker_uri import BrokerAddress, TlsFiles
from topology.declare import parameters
from topology.tls import client_context

FILES = TlsFiles("/tls/ca.crt", "/tls/me.crt", "/tls/me.key")
WITH_FILES = "amqps://u:p@broker/v?cacertfile=/tls/ca.crt&certfile=/tls/me.crt&keyfile=/tls/me.key"


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("amqp://u:p%40@broker:1/v%2f", BrokerAddress("broker", 1, "u", "p@", "v/", None)),
        ("amqp://broker//", BrokerAddress("broker", 5672, "guest", "guest", "/", None)),
        ("amqp://broker/v?heartbeat=10", BrokerAddress("broker", 5672, "guest", "guest", "v", None)),
        ("amqps://u:p@[::1]/v", BrokerAddress("::1", 5671, "u", "p", "v", TlsFiles())),
        (WITH_FILES, BrokerAddress("broker", 5671, "u", "p", "v", FILES)),
    ],
)
def test_a_uri_says_all_that_a_client_needs(uri, address):
    assert broker_uri.parse(uri) == address


@pytest.mark.parametrize(
    "uri", ["http://broker/v", "amqp://broker:port/v", "amqps://broker/v?verify=verify_none", "amqps://broker/v?ca=x"]
)
def test_a_uri_that_would_be_misread_is_refused(uri):
    with pytest.raises(ConfigurationFault, match="AMQP_URI"):
        broker_uri.parse(uri)


def test_the_files_of_the_settings_complete_a_uri_that_names_none():
    assert broker_uri.with_tls("amqps://u:p@broker/v", FILES) == WITH_FILES
    for unchanged in ("amqp://u:p@broker/v", "amqps://u:p@broker/v?cacertfile=/other"):
        assert broker_uri.with_tls(unchanged, FILES) == unchanged


def test_a_database_is_verified_in_full_unless_its_url_says_otherwise():
    verified = "sslmode=verify-full&sslrootcert=/tls/ca.crt&sslcert=/tls/me.crt&sslkey=/tls/me.key"
    assert with_verified_tls("postgresql://a@db/x", FILES) == f"postgresql://a@db/x?{verified}"
    assert with_verified_tls("postgresql://a@db/x?options=y", FILES) == f"postgresql://a@db/x?options=y&{verified}"
    for url, files in (("postgresql://a@db/x?sslmode=disable", FILES), ("postgresql://a@db/x", TlsFiles())):
        assert with_verified_tls(url, files) == url


def test_the_shell_verifies_the_broker():
    config = nameko_config(WITH_FILES)
    assert config["AMQP_URI"] == "amqps://u:p@broker/v"
    assert config["AMQP_SSL"]["ca_certs"] == FILES.ca
    assert config["AMQP_SSL"]["server_hostname"] == "broker"
    assert nameko_config("amqp://u:p@broker/v") == {"AMQP_URI": "amqp://u:p@broker/v"}


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ca"))


def test_every_client_verifies_name_and_certificate_and_speaks_no_old_tls(authority):
    me = authority.issue("me")
    files = TlsFiles(str(authority.file), str(me.certificate), str(me.key))
    uri = broker_uri.with_tls("amqps://u:p@broker/v", files)
    for context in (client_context(files), client_context(TlsFiles()), parameters(uri).ssl_options.context):
        assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert parameters(uri).ssl_options.server_hostname == "broker"


def test_a_file_that_is_missing_or_does_not_fit_is_an_error_that_is_tried_again(authority):
    one, other = authority.issue("one"), authority.issue("other")
    for files in (TlsFiles("/nowhere/ca.crt"), TlsFiles("", str(one.certificate), str(other.key))):
        with pytest.raises(BROKER_ERRORS):
            client_context(files)


def test_a_broker_that_does_not_answer_the_handshake_is_left_in_time(monkeypatch):
    monkeypatch.setattr("shared.edge.broker.CONNECT_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(BROKER_ERRORS):
            BrokerConnection(f"amqps://u:p@127.0.0.1:{silent.getsockname()[1]}/v", 10)


def test_faults_of_tls_are_named():
    refused = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED]")
    refused.verify_message = "certificate has expired"
    assert why(refused) == "the certificate of the broker is not accepted (certificate has expired)"
    unheard = ssl.SSLError(1, "[SSL] ...")
    unheard.reason = "TLSV1_ALERT_UNKNOWN_CA"
    assert why(unheard) == "TLS with the broker fails (TLSV1_ALERT_UNKNOWN_CA)"


def test_a_heartbeat_waits_until_a_frame_that_the_broker_takes_in_slowly_is_whole():
    ours, brokers = socket.socketpair()
    transport = _TcpTransport("broker:5672")
    transport.sock = ours
    transport._setup_transport()
    frame, heartbeat = b"f" * 4_000_000, b"h" * 8  # more than the buffers of a socket hold
    writers = [eventlet.spawn(transport.write, piece) for piece in (frame, heartbeat)]
    eventlet.sleep(0)
    heard = b""
    with eventlet.Timeout(10):
        while len(heard) < len(frame) + len(heartbeat):
            heard += brokers.recv(65536)
        for writer in writers:
            writer.wait()
    assert heard == frame + heartbeat
    brokers.close()
    ours.close()
