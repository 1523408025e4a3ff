"""What the gateway answers goes out as Werkzeug would send it."""

import pytest
from werkzeug.test import EnvironBuilder
from werkzeug.wrappers import Response

from gateway.api.answering import GatewayResponse

ADDRESS = ("Location", "/api/orders/0199b2a4-54d1-7b52-8a53-0c6a2d3a9f10")
PLAIN = ("X-Plain", "x")


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (200, '{"name":"é"}\n', [PLAIN]),
        (201, "{}\n", [ADDRESS]),
        (404, "", [PLAIN]),
        (204, "", [PLAIN]),
        (303, "", [("Location", "/sign-in?next=/é ü")]),
        (200, iter([b"a stream"]), [PLAIN]),
    ],
)
def test_a_response_is_sent_as_werkzeug_sends_it(method, status, body, headers):
    environ = EnvironBuilder(method=method).get_environ()
    body = list(body) if not isinstance(body, str) else body
    streams = isinstance(body, list)

    ours, werkzeugs = (
        sent(kind(iter(body) if streams else body, status, headers), environ) for kind in (GatewayResponse, Response)
    )

    assert ours == werkzeugs


def sent(response, environ):
    """The body, the status and the headers, in any order."""
    body, status, headers = response.get_wsgi_response(environ)
    return b"".join(body), status, sorted(headers)
