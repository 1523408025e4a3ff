"""The gateway and tokens that were revoked, keys of services, and the forms of OAuth 2.0; auth_service is a fake."""

import json
from base64 import b64encode
from unittest.mock import ANY
from urllib.parse import quote, urlencode

import eventlet
import pytest

from gateway.api import callers
from gateway.service import GatewayService
from shared import auth
from shared.edge.revocation_feed import RevocationFeed
from shared.errors import CannotWork, InvalidGrant, ServiceUnavailable, Unauthenticated
from tests.unit.serving import KEYS, REVOKED, ask, serving
from tests.unit.test_gateway_http import BEHIND, JSON, ORDER_ID, Gateway, bearer, code, post_order

FORM = {"Content-Type": "application/x-www-form-urlencoded"}
SHOWN = "ek_01a1fcf80515791291397154577473a5_" + "s" * 43
ANOTHER = "ek_01a1fcf80515791291397154577473a6_" + "s" * 43
HERE = {"network": "127.0.0.1", "client": "", "session_id": None}
LOGIN = {
    "access_token": "a.b.c",
    "token_type": "Bearer",
    "expires_in": 900,
    "refresh_token": "ert_x",
    "user": {"id": "ann", "email": None, "name": "Ann", "roles": ["customer"]},
}


@pytest.fixture
def gateway():
    BEHIND.asked.clear()
    BEHIND.answer = {}
    REVOKED.__init__()
    with eventlet.Timeout(20), serving(Gateway, max_workers=30) as server:
        yield server
    REVOKED.__init__()


def feed_of(gateway):
    return next(item for item in gateway.container.subextensions if isinstance(item, RevocationFeed))


def revoke(gateway, user_id=None, version=None, session_id=None):
    """Let auth_service say so, and the gateway hear it."""
    REVOKED.items = [*REVOKED.items, {"user_id": user_id, "version": version, "session_id": session_id}]
    assert feed_of(gateway).ask()


def token_of(sub="ann", version=1, session_id=ORDER_ID, roles=("customer",)):
    return auth.issue(KEYS, sub, roles, version=version, session_id=session_id)


def with_token(**claims):
    return {"Authorization": f"Bearer {token_of(**claims)}"}


def with_key(key=SHOWN, name="till", **headers):
    return {"X-API-Key": key, "X-Service-Name": name, **headers}


def service_token(version=1, roles=("service",)):
    return auth.issue(KEYS, "service:till", roles, version=version)


def get(gateway, headers, path="/api/orders/" + ORDER_ID):
    return ask(gateway, "GET", path, headers=headers)


def exchanges():
    return [args for method, args, _ in REVOKED.asked if method == "auth_service.exchange_key"]


@pytest.mark.parametrize("what", [{"user_id": "ann", "version": 2}, {"session_id": ORDER_ID}])
def test_a_token_that_was_revoked_is_401_on_every_route_and_no_service_is_asked(gateway, what):
    visit = with_token()
    assert get(gateway, visit)[0] == 200
    revoke(gateway, **what)
    BEHIND.asked.clear()
    for method, path in (("GET", "/api/orders"), ("POST", "/api/orders"), ("POST", "/api/auth/validate-token")):
        answer = ask(gateway, method, path, b"{}", {**JSON, **visit})
        assert code(answer) == (401, "unauthenticated")
        assert 'error="invalid_token"' in answer[1]["WWW-Authenticate"]
    assert BEHIND.asked == []


def test_tokens_of_another_session_user_or_version_go_on(gateway):
    revoke(gateway, user_id="ann", version=2)
    revoke(gateway, session_id="an-other")
    for visit in (with_token(version=2), with_token(sub="bob"), with_token(version=None, session_id=None)):
        assert get(gateway, visit)[0] == 200
    assert get(gateway, bearer("customer", sub="ann"))[0] == 200, "a token of the version before lives to its end"


def test_posting_an_order_asks_nobody_but_the_order_service(gateway):
    feed_of(gateway).ask()
    REVOKED.asked.clear()
    BEHIND.answer = {"status": 201, "body": {}, "location": "/x", "replayed": False}
    assert post_order(gateway, **with_token())[0] == 201
    assert len(BEHIND.asked) == 1
    assert [method for method, *_ in REVOKED.asked if method != "auth_service.revocations"] == []


def test_what_is_known_is_refused_while_auth_service_is_away(gateway):
    revoke(gateway, user_id="ann", version=2)
    REVOKED.error = ServiceUnavailable()
    assert not feed_of(gateway).ask()
    assert get(gateway, with_token())[0] == 401
    assert get(gateway, with_token(sub="bob"))[0] == 200


def test_a_key_is_changed_into_a_token_once_and_counts_as_its_service(gateway):
    REVOKED.keys[("till", SHOWN)] = service_token()
    for _ in range(3):
        assert ask(gateway, "POST", "/api/auth/validate-token", headers=with_key())[2] == {
            "valid": True,
            "sub": "service:till",
            "roles": ["service"],
            "exp": ANY,
        }
    assert exchanges() == [["till", SHOWN]]


def test_a_role_that_the_key_has_not_is_403(gateway):
    REVOKED.keys[("till", SHOWN)] = service_token()
    assert code(get(gateway, with_key(), "/api/stocks/release-events"))[0] == 403


def test_many_requests_with_a_new_key_at_once_are_one_exchange(gateway):
    REVOKED.keys[("till", SHOWN)] = service_token()
    runs = [eventlet.spawn(ask, gateway, "POST", "/api/auth/validate-token", None, with_key()) for _ in range(20)]
    assert {run.wait()[0] for run in runs} == {200}
    assert len(exchanges()) <= callers.AT_ONCE


@pytest.mark.parametrize(
    ("headers", "expected", "says"),
    [
        (with_key(**bearer("admin")), (400, "bad_request"), "either Authorization or X-API-Key"),
        ({"X-API-Key": SHOWN}, (400, "bad_request"), "X-Service-Name must name"),
        ({"X-Service-Name": "till"}, (401, "unauthenticated"), "A valid bearer token is required."),
        (with_key(key="nonsense"), (401, "unauthenticated"), "The key is not valid"),
        (with_key(key=""), (401, "unauthenticated"), "The key is not valid"),
        (with_key(key=SHOWN + "s"), (401, "unauthenticated"), "The key is not valid"),
        (with_key(name="Till"), (401, "unauthenticated"), "The key is not valid"),
    ],
)
def test_what_cannot_be_a_key_is_refused_without_asking(gateway, headers, expected, says):
    answer = get(gateway, headers)
    assert code(answer) == expected
    assert says in answer[2]["error"]["message"]
    assert exchanges() == []


def test_a_key_that_nobody_knows_is_401_and_kept_nowhere(gateway):
    REVOKED.keys[("till", SHOWN)] = service_token()
    for headers in (with_key(key=ANOTHER), with_key(name="other")):
        answer = get(gateway, headers)
        assert code(answer) == (401, "unauthenticated")
        assert "ek_" not in json.dumps(answer[2])
    assert len(get_tokens(gateway)) == 0


def get_tokens(gateway):
    route = next(item for item in gateway.container.entrypoints if getattr(item, "service_tokens", None))
    return route.service_tokens.made


def test_a_key_that_was_revoked_is_refused_and_the_other_key_gets_a_new_token(gateway):
    REVOKED.keys |= {("till", SHOWN): service_token(), ("till", ANOTHER): service_token()}
    for key in (SHOWN, ANOTHER):
        assert get(gateway, with_key(key), "/api/orders/events")[0] == 200
    del REVOKED.keys[("till", SHOWN)]
    REVOKED.keys[("till", ANOTHER)] = service_token(version=2)
    revoke(gateway, user_id="service:till", version=2)
    REVOKED.asked.clear()
    assert get(gateway, with_key(SHOWN), "/api/orders/events")[0] == 401
    for _ in range(2):
        assert get(gateway, with_key(ANOTHER), "/api/orders/events")[0] == 200
    assert exchanges() == [["till", SHOWN], ["till", ANOTHER]]


def test_a_token_of_a_key_that_is_over_is_renewed(gateway):
    REVOKED.keys[("till", SHOWN)] = auth.issue(KEYS, "service:till", ("service",), 1, version=1)
    assert get(gateway, with_key(), "/api/orders/events")[0] == 200
    REVOKED.keys[("till", SHOWN)] = service_token()
    while len(exchanges()) < 2:
        assert get(gateway, with_key(), "/api/orders/events")[0] == 200
        eventlet.sleep(0.1)


def test_while_auth_service_is_away_known_keys_work_and_new_ones_are_503(gateway):
    REVOKED.keys |= {("till", SHOWN): service_token(), ("till", ANOTHER): service_token()}
    assert get(gateway, with_key(), "/api/orders/events")[0] == 200
    for error in (ServiceUnavailable(), CannotWork("no database")):
        REVOKED.error = error
        assert get(gateway, with_key(), "/api/orders/events")[0] == 200
        assert get(gateway, with_key(ANOTHER), "/api/orders/events")[0] == 503


def test_only_so_many_tokens_of_keys_are_kept_those_used_last(gateway, monkeypatch):
    monkeypatch.setattr(callers, "MOST_TOKENS", 2)
    keys = [SHOWN[:-1] + letter for letter in "abc"]
    REVOKED.keys |= {("till", key): service_token() for key in keys}
    for key in (keys[0], keys[1], keys[0], keys[2], keys[0]):
        get(gateway, with_key(key))
    assert [key for _, key in exchanges()] == keys
    assert len(get_tokens(gateway)) == 2
    get(gateway, with_key(keys[1]))
    assert exchanges()[-1] == ["till", keys[1]]


def test_a_key_opens_no_page_of_the_dashboard(gateway):
    REVOKED.keys[("till", SHOWN)] = service_token(roles=("admin",))
    assert get(gateway, with_key(), "/dashboard")[0] == 401
    assert exchanges() == []


def form(gateway, path="/api/auth/token", headers=None, **fields):
    return ask(gateway, "POST", path, urlencode(fields), {**FORM, **(headers or {})})


def test_client_credentials_are_changed_into_a_token(gateway):
    BEHIND.answer = {"access_token": "a.b.c", "token_type": "Bearer", "expires_in": 900}
    basic = b64encode(f"{quote('till')}:{quote(SHOWN)}".encode()).decode()
    for answer in (
        form(gateway, grant_type="client_credentials", client_id="till", client_secret=SHOWN, scope="ignored"),
        form(gateway, headers={"Authorization": f"Basic {basic}"}, grant_type="client_credentials"),
    ):
        assert (answer[0], answer[2]) == (200, BEHIND.answer)
        assert answer[1]["Cache-Control"] == "no-store"
    assert [asked[:2] for asked in BEHIND.asked] == [("exchange_key", ("till", SHOWN))] * 2


def test_a_refresh_token_is_a_grant(gateway):
    BEHIND.answer = LOGIN
    status, _, body = form(gateway, grant_type="refresh_token", refresh_token="ert_x")
    assert (status, body) == (200, {name: LOGIN[name] for name in LOGIN if name != "user"})
    assert BEHIND.asked[0][:2] == ("refresh", ("ert_x", HERE))


BASIC = {"Authorization": "Basic " + b64encode(b"till:" + SHOWN.encode()).decode()}


@pytest.mark.parametrize(
    ("fields", "headers", "behind", "status", "word"),
    [
        ({"grant_type": "refresh_token", "refresh_token": "x"}, {}, InvalidGrant(), 400, "invalid_grant"),
        ({"grant_type": "client_credentials"}, BASIC, InvalidGrant(), 401, "invalid_client"),
        ({"grant_type": "password", "username": "a", "password": "b"}, {}, None, 400, "unsupported_grant_type"),
        ({}, {}, None, 400, "invalid_request"),
        ({"grant_type": "refresh_token"}, {}, None, 400, "invalid_request"),
        ({"grant_type": "client_credentials", "client_id": "till"}, {}, None, 400, "invalid_request"),
        ({"grant_type": "client_credentials", "client_id": "till"}, BASIC, None, 400, "invalid_request"),
        ({"grant_type": "client_credentials"}, {"Authorization": "Basic é"}, None, 400, "invalid_request"),
        ({"grant_type": "client_credentials"}, {"Authorization": "Basic eA=="}, None, 400, "invalid_request"),
        ({"grant_type": "refresh_token", "refresh_token": "x" * 9000}, {}, None, 400, "invalid_request"),
        ({"grant_type": "refresh_token", "refresh_token": "x"}, {}, ServiceUnavailable(), 503, "unavailable"),
    ],
)
def test_errors_of_forms_have_the_words_of_rfc_6749(gateway, fields, headers, behind, status, word):
    BEHIND.answer = behind or {}
    answered, response_headers, body = form(gateway, headers=headers, **fields)
    assert (answered, body.keys(), body["error"]) == (status, {"error", "error_description"}, word)
    assert not set(body["error_description"]) & set('"\\\n')
    assert SHOWN not in body["error_description"]
    challenge = 'Basic realm="ecom"' if word == "invalid_client" else None
    assert response_headers["WWW-Authenticate"] == challenge
    if behind is None:
        assert BEHIND.asked == []


def test_a_field_of_a_form_given_twice_is_refused(gateway):
    answer = ask(gateway, "POST", "/api/auth/token", "grant_type=refresh_token&grant_type=x", FORM)
    assert (answer[0], answer[2]["error"]) == (400, "invalid_request")


def test_a_sign_in_by_json_is_as_before(gateway):
    BEHIND.answer = {"access_token": "a.b.c", "token_type": "Bearer", "expires_in": 900}
    sent = json.dumps({"username": "ann", "password": "secret"})
    assert ask(gateway, "POST", "/api/auth/token", sent, JSON)[2] == BEHIND.answer
    assert BEHIND.asked[0][:2] == ("issue_token", ("ann", "secret", HERE))
    BEHIND.answer = Unauthenticated()
    assert code(ask(gateway, "POST", "/api/auth/token", sent, JSON)) == (401, "unauthenticated")


def test_a_refresh_by_json_answers_as_a_sign_in_does(gateway):
    BEHIND.answer = LOGIN
    sent = json.dumps({"refresh_token": "ert_x"})
    assert ask(gateway, "POST", "/api/auth/refresh-token", sent, JSON)[2] == LOGIN
    BEHIND.answer = InvalidGrant()
    assert code(ask(gateway, "POST", "/api/auth/refresh-token", sent, JSON)) == (401, "invalid_grant")


@pytest.mark.parametrize(("body", "everywhere"), [(b"", False), (b"{}", False), (b'{"all": true}', True)])
def test_signing_out_says_which_session_and_whether_all(gateway, body, everywhere):
    status, _, answered = ask(gateway, "POST", "/api/auth/logout", body, {**JSON, **with_token()})
    assert (status, answered) == (204, "")
    assert BEHIND.asked[0][:2] == ("sign_out", (everywhere, {**HERE, "session_id": ORDER_ID}))
    assert BEHIND.asked[0][3]["user_id"] == "ann"


def test_a_logout_without_any_content_type_is_read(gateway):
    assert ask(gateway, "POST", "/api/auth/logout", None, with_token())[0] == 204


@pytest.mark.parametrize("body", [b"[]", b'{"all": 1}', b'{"every": true}'])
def test_a_logout_that_cannot_be_read_ends_nothing(gateway, body):
    assert ask(gateway, "POST", "/api/auth/logout", body, {**JSON, **with_token()})[0] == 422
    assert BEHIND.asked == []


@pytest.mark.parametrize("as_form", [True, False])
def test_anybody_may_revoke_a_token_they_have(gateway, as_form):
    sent = {"token": "ert_x", "token_type_hint": "refresh_token"}
    body, headers = (urlencode(sent), FORM) if as_form else (json.dumps(sent), JSON)
    assert ask(gateway, "POST", "/api/auth/revoke", body, headers)[0] == 200
    assert BEHIND.asked[0][:2] == ("revoke_token", ("ert_x", HERE))


def test_a_revocation_without_a_token_is_refused_in_the_words_of_its_form(gateway):
    assert form(gateway, "/api/auth/revoke")[2]["error"] == "invalid_request"
    assert code(ask(gateway, "POST", "/api/auth/revoke", "{}", JSON)) == (422, "validation_failed")


def test_every_route_of_the_api_verifies_revocations_by_the_same_feed(gateway):
    feeds = {item.revocations for item in gateway.container.entrypoints if hasattr(item, "revocations")}
    assert feeds == {feed_of(gateway)}
    assert GatewayService.name == "gateway"


def test_a_gateway_is_not_ready_before_it_knows_what_is_revoked():
    REVOKED.__init__()
    REVOKED.error = ServiceUnavailable()
    with serving(Gateway) as server:
        health = server.container
        reasons = [item.not_ready_reason() for item in health.extensions if isinstance(item, RevocationFeed)]
        assert reasons == ["what is revoked is not loaded yet"]
        REVOKED.error = None
        with eventlet.Timeout(5):
            while not feed_of(server).loaded:
                eventlet.sleep(0.01)
        assert feed_of(server).not_ready_reason() is None
