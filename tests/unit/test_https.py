"""HTTPS at the edge: a client sees a certificate that it can verify, and a bad client harms nobody."""

import http.client
import socket
import ssl

import eventlet
import pytest
from eventlet.event import Event
from werkzeug.wrappers import Response

from shared.edge import webserver
from shared.edge.connection import HAS_GONE
from shared.edge.http import Probes, Route
from shared.errors import ConfigurationFault
from tests.certificates import Authority
from tests.unit.serving import serving

route = Route.decorator


class Simple(Probes):
    """Answers what it knows of a request."""

    name = "simple"
    seen_to_go = None

    @route("GET", "/scheme")
    def scheme(self, request):
        return Response(request.environ["wsgi.url_scheme"])

    @route("GET", "/until-gone")
    def until_gone(self, request):
        with eventlet.Timeout(4):
            while not request.environ[HAS_GONE]():
                eventlet.sleep(0.01)
        Simple.seen_to_go.send()
        return Response("")


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def certificate(authority):
    return authority.issue("gateway", "localhost")


@pytest.fixture
def server(certificate, monkeypatch):
    monkeypatch.setattr(Simple, "seen_to_go", Event())
    with serving(Simple, max_workers=2, tls=(certificate.certificate, certificate.key)) as server:
        yield server


def context(ca):
    return ssl.create_default_context(cafile=ca)


def get(server, path, ca, host="localhost"):
    """The body of an answer."""
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    with context(ca).wrap_socket(sock, server_hostname=host, suppress_ragged_eofs=False) as secured:
        secured.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        text = b""
        while piece := secured.recv(65536):  # a cut without a goodbye would raise
            text += piece
    return text.decode().partition("\r\n\r\n")[2]


def serial_of(server, ca):
    """The serial number of the certificate that a new connection sees."""
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    with context(ca).wrap_socket(sock, server_hostname="localhost") as secured:
        return secured.getpeercert()["serialNumber"]


def test_a_request_is_answered_over_tls_and_ended_with_a_goodbye(server, authority):
    assert get(server, "/scheme", authority.file) == "https"


@pytest.mark.parametrize("fault", ["another CA", "another host", "expired"])
def test_a_client_refuses_a_wrong_certificate(fault, authority, tmp_path):
    ca = Authority(tmp_path, "other").file if fault == "another CA" else authority.file
    issued = authority.issue("gateway", "localhost", expired=fault == "expired")
    with serving(Simple, tls=(issued.certificate, issued.key)) as server:
        with pytest.raises(ssl.SSLCertVerificationError):
            get(server, "/scheme", ca, host="elsewhere" if fault == "another host" else "localhost")


def test_a_client_that_speaks_no_tls_is_cut_off_and_hears_nothing(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
        sock.sendall(b"GET /scheme HTTP/1.1\r\nHost: localhost\r\n\r\n")
        heard = sock.recv(100)
    assert b"HTTP" not in heard


def test_old_versions_of_tls_are_refused(server, authority):
    old = context(authority.file)
    old.minimum_version = ssl.TLSVersion.TLSv1
    old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    with pytest.raises(ssl.SSLError, match=r"(?i)protocol"):
        old.wrap_socket(sock, server_hostname="localhost")


def test_a_handshake_that_does_not_end_is_cut_off_and_holds_up_nobody(server, authority, monkeypatch):
    monkeypatch.setattr(webserver, "HEAD_S", 0.3)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as silent:
        assert get(server, "/scheme", authority.file) == "https"
        assert silent.recv(1) == b""


def test_a_wait_notices_that_its_client_has_gone(server, authority):
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    with context(authority.file).wrap_socket(sock, server_hostname="localhost") as secured:
        secured.sendall(b"GET /until-gone HTTP/1.1\r\nHost: localhost\r\n\r\n")
        eventlet.sleep(0.1)
        assert not Simple.seen_to_go.ready()
    with eventlet.Timeout(5):
        Simple.seen_to_go.wait()


def test_a_client_too_many_is_told_so_over_tls(server, authority, monkeypatch):
    monkeypatch.setattr(server.connections, "most", 0)
    assert get(server, "/scheme", authority.file) == "Service Unavailable\n"


def test_a_renewed_certificate_serves_the_next_connection(server, certificate, authority):
    before = serial_of(server, authority.file)
    kept = http.client.HTTPSConnection("localhost", server.port, context=context(authority.file), timeout=10)
    kept.request("GET", "/scheme")
    assert kept.getresponse().read() == b"https"
    certificate.replace(authority.issue("renewed", "localhost"))
    assert serial_of(server, authority.file) != before
    kept.request("GET", "/scheme")  # the connection that was open goes on
    assert kept.getresponse().read() == b"https"
    kept.close()


def test_half_a_renewal_leaves_the_old_certificate_in_use(server, certificate, authority, caplog):
    before = serial_of(server, authority.file)
    renewed = authority.issue("renewed", "localhost")
    certificate.key.write_bytes(renewed.key.read_bytes())
    assert serial_of(server, authority.file) == serial_of(server, authority.file) == before
    assert caplog.text.count("the renewed certificate cannot be used") == 1
    certificate.certificate.write_bytes(renewed.certificate.read_bytes())
    assert serial_of(server, authority.file) != before


def test_a_certificate_that_does_not_fit_its_key_stops_the_start(authority):
    one, other = authority.issue("one", "localhost"), authority.issue("other", "localhost")
    with pytest.raises(ConfigurationFault, match="cannot be used"):
        with serving(Simple, tls=(one.certificate, other.key)):
            pass
