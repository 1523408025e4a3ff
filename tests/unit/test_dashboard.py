"""The dashboard with fake services: sessions and forms, pages with hostile data, error pages."""

import re
import time
from base64 import b64encode
from datetime import UTC, date, datetime, timedelta
from hashlib import sha256
from html.parser import HTMLParser
from unittest.mock import ANY
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import pytest

from gateway.site import sessions
from gateway.site.chart import COLOURS, MAX_LABELS, MIN_SLOTS, OTHER, PLOT_PX, REASONS, chart
from gateway.site.dashboard import as_typed, described, findings
from gateway.site.words import STEPS, details, money
from order_service.domain import TABLE
from shared import auth, errors
from shared.config import Settings
from shared.edge.revocation_feed import RevocationFeed
from shared.enumerations import ReleaseReason
from shared.events import ReleaseRequested
from shared.schema import schema_of
from shared.times import timestamp
from tests.unit.serving import KEYS, Fake, ask, serving, signed_cursor
from tests.unit.test_gateway_http import EXPECTED_ROLES, PAGES, Gateway, Service, bearer

FORM = {"Content-Type": "application/x-www-form-urlencoded"}
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{7*7}}"
ORDER_ID = "01a1fcf8-0515-7912-9139-7154577473a5"
NOW = datetime.now(UTC)
SEAL = {"seq": 12, "mac": "ab", "sealed_at": timestamp(NOW)}
CHAIN = {"seals": 12, "rows": 345, "newest": SEAL, "waiting": 0, "oldest_waiting_at": None, "trouble": None}
INTACT = {"actor": "olga", "intact": True, "seals": 12, "rows": 345, "outcome": "", "finished_at": timestamp(NOW)}
WITNESS = {
    "head": {"seq": 12, "mac": "ab", "total": 345, "at": timestamp(NOW)},
    "verification": INTACT,
    "trouble": None,
}


def release(**changes):
    return {
        "id": 7,
        "order_id": ORDER_ID,
        "reservation_id": ORDER_ID,
        "sku": "lamp",
        "quantity": 2,
        "reason": "payment_failed",
        "requested_by": "customer",
        "roles": ["customer"],
        "trace_id": "ab" * 16,
        "released_at": "2026-01-14T10:30:00.123Z",
    } | changes


def operation(**changes):
    return {
        "operation_id": ORDER_ID,
        "kind": "replay",
        "queue": "q.inventory.release-requested",
        "actor": "olga",
        "why": "stock was locked",
        "message_id": ORDER_ID,
        "event_type": "inventory.release.requested",
        "at": "2026-01-14T10:29:00.000Z",
    } | changes


class Elements(HTMLParser):
    """The elements and the text of a page. Every element that needs an end tag must have one."""

    def __init__(self, text):
        super().__init__()
        self.found, self.words, self._open = [], [], []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in ("meta", "input"):
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


class Behind(Service):
    """Fakes of the services behind the dashboard. Each answer can be replaced, also by an error."""

    def __init__(self):
        super().__init__()
        self.reset()

    def reset(self):
        self.asked.clear()
        self.answers = {
            "release_events": {"items": [release()], "next_cursor": None, "total": None},
            "release_events_before": {"items": [release()], "next_cursor": "abc", "is_first": True},
            "release_totals": [{"day": "2026-01-14", "reason": "payment_failed", "releases": 1, "quantity": 2}],
            "release_chain": CHAIN,
            "release_exports": {"items": [], "next_cursor": None},
            "release_event": release(seal={"seq": 12, "sealed_at": timestamp(NOW)}),
            "audit_status": WITNESS,
            "operations_of": {},
            "timeline": {"status": "CANCELLED", "reason": None, "steps": []},
            "sign_out": None,
            "revoke_token": None,
        }

    def under(self, context):
        return _Told(self, super().under(context))


class _Told:
    def __init__(self, behind, asked):
        self._behind, self._asked = behind, asked

    def __getattr__(self, method):
        self._behind.answer = self._behind.answers[method]
        return getattr(self._asked, method)


BEHIND = Behind()


class Paged(Gateway):
    name = "gateway"
    auth = orders = inventory = payments = ops = ops_soon = Fake(BEHIND)


@pytest.fixture(scope="module")
def running():
    with serving(Paged) as server:
        yield server


@pytest.fixture
def gateway(running):
    BEHIND.reset()
    return running


def session(*roles, sub="ann", audience=auth.DASHBOARD):
    token = auth.issue(KEYS, sub, roles or ("auditor",), auth.SESSION_S, audience=audience)
    return {"Cookie": f"ecom_session={token}"}


def get(gateway, path="/dashboard", headers=None):
    return ask(gateway, "GET", path, headers=session() if headers is None else headers)


def post(gateway, path, fields, headers=None):
    return ask(gateway, "POST", path, urlencode(fields), {**FORM, **(headers or {})})


def sign_in(gateway, roles=("auditor",), headers=None, **fields):
    token = auth.issue(KEYS, "ann", roles, auth.SESSION_S, audience=auth.DASHBOARD)
    answer = {"access_token": token, "token_type": "Bearer", "expires_in": 3600, "device_token": "this-device"}
    BEHIND.answers.setdefault("issue_session", answer)
    return post(gateway, "/dashboard/sign-in", {"username": "ann", "password": "secret", **fields}, headers)


def field_of(text, name):
    """The value of a form field."""
    (found,) = [attributes for tag, attributes in Elements(text).found if attributes.get("name") == name]
    return found["value"]


def form_token(headers, purpose=sessions.SIGN_OUT):
    claims = auth.verify(headers["Cookie"].partition("=")[2], KEYS, audience=auth.DASHBOARD)
    return sessions.form_token(KEYS[0][1], purpose, claims.token_id)


def export(gateway, query="", headers=None):
    """Send the form that downloads the releases."""
    headers = session() if headers is None else headers
    token = form_token(headers, sessions.EXPORT) if headers else ""
    return post(gateway, f"/dashboard/export{query}", {"token": token}, headers)


CLOSED = sorted(route for route in PAGES if EXPECTED_ROLES[route])


@pytest.mark.parametrize("route", CLOSED)
@pytest.mark.parametrize(
    "headers", [{}, {"Cookie": "ecom_session="}, {"Cookie": "ecom_session=a.b.c"}, session(audience=auth.AUDIENCE)]
)
def test_without_a_session_every_page_shows_the_sign_in_form(gateway, route, headers):
    method, label = route
    path = label.replace("{event_id}", "7")
    for shown in (headers, headers | bearer("auditor")):
        status, response_headers, text = ask(gateway, method, path, b"", shown)
        assert (status, response_headers["Content-Type"]) == (401, "text/html; charset=utf-8")
        assert response_headers["WWW-Authenticate"].startswith("Cookie ")
        assert 'action="/dashboard/sign-in"' in text
    assert BEHIND.asked == []


@pytest.mark.parametrize("route", CLOSED)
@pytest.mark.parametrize("role", sorted(set(auth.ROLES) - {"auditor", "admin"}))
def test_a_session_without_the_role_sees_nothing(gateway, route, role):
    method, label = route
    status, response_headers, text = ask(gateway, method, label.replace("{event_id}", "7"), b"", session(role))
    assert (status, response_headers["Content-Type"]) == (403, "text/html; charset=utf-8")
    assert "This user may not do that." in text
    assert BEHIND.asked == []


def test_the_cookie_does_not_open_the_api(gateway):
    assert ask(gateway, "GET", "/api/stocks/release-events", headers=session())[0] == 401
    token = session()["Cookie"].partition("=")[2]
    assert ask(gateway, "GET", "/api/stocks/release-events", headers={"Authorization": f"Bearer {token}"})[0] == 401


def test_signing_in_sets_a_cookie_hidden_from_scripts_and_other_sites(gateway):
    status, response_headers, text = sign_in(gateway)
    assert (status, response_headers["Location"], text) == (303, "/dashboard", "")
    value, *attributes = response_headers["Set-Cookie"].split("; ")
    attributes = [attribute for attribute in attributes if not attribute.startswith("Expires=")]
    assert sorted(attributes) == ["HttpOnly", "Max-Age=86400", "Path=/dashboard", "SameSite=Lax"]
    (asked,) = BEHIND.asked
    origin = {"network": "127.0.0.1", "client": ANY, "session_id": None}
    assert asked[:2] == ("issue_session", ("ann", "secret", None, origin))
    BEHIND.reset()
    assert get(gateway, headers={"Cookie": value})[0] == 200


@pytest.mark.parametrize("production", [True, False])
def test_a_device_that_signed_in_before_names_itself_at_the_next_sign_in(production):
    prefix = "__Secure-" if production else ""
    with serving(Paged, settings=Settings(env="production" if production else "development", auth_keys=KEYS)) as server:
        BEHIND.reset()
        (value, *attributes), *others = [
            cookie.split("; ") for cookie in sign_in(server)[1].get_all("Set-Cookie") if "ecom_device" in cookie
        ]
        assert (value, others) == (f"{prefix}ecom_device=this-device", [])
        assert {"HttpOnly", "SameSite=Lax", "Path=/dashboard", "Max-Age=34560000"} <= set(attributes)
        assert ("Secure" in attributes) == production
        for sent, shown in ((value, "this-device"), (f"{prefix}ecom_device=", None), ("ecom_device_=x", None)):
            BEHIND.reset()
            sign_in(server, headers={"Cookie": sent})
            assert BEHIND.asked[0][1][2] == shown


def test_a_cookie_whose_session_has_ended_shows_the_sign_in_form_at_once(gateway):
    ended, goes_on = (
        auth.issue(KEYS, "ann", ("auditor",), 3600, audience=auth.DASHBOARD, version=1, session_id=session_id)
        for session_id in ("ended", "goes on")
    )
    feed = next(item for item in gateway.container.subextensions if isinstance(item, RevocationFeed))
    cookies = [{"Cookie": f"ecom_session={token}"} for token in (ended, goes_on)]
    assert [get(gateway, headers=cookie)[0] for cookie in cookies] == [200, 200]
    feed._known.take([{"user_id": None, "version": None, "session_id": "ended"}])
    assert [get(gateway, headers=cookie)[0] for cookie in cookies] == [401, 200]
    assert "Your session has ended" in get(gateway, headers=cookies[0])[2]
    feed._known.take([{"user_id": "ann", "version": 2, "session_id": None}])
    assert [get(gateway, headers=cookie)[0] for cookie in cookies] == [401, 401]
    assert get(gateway)[0] == 200, "a cookie of the version before, which belongs to no session"


def test_signing_out_ends_the_session_where_it_is_kept(gateway):
    token = auth.issue(KEYS, "ann", ("auditor",), 3600, audience=auth.DASHBOARD, version=9, session_id=ORDER_ID)
    visit = {"Cookie": f"ecom_session={token}"}
    post(gateway, "/dashboard/sign-out", {"token": form_token(visit)}, visit)
    (asked,) = BEHIND.asked
    assert asked[:2] == ("sign_out", (False, {"network": "127.0.0.1", "client": ANY, "session_id": ORDER_ID}))
    assert asked[3]["user_id"] == "ann"


def test_a_session_that_could_not_be_ended_is_not_called_signed_out(gateway):
    BEHIND.answers["sign_out"] = errors.ServiceUnavailable()
    visit = session()
    status, headers, _ = post(gateway, "/dashboard/sign-out", {"token": form_token(visit)}, visit)
    assert (status, headers["Set-Cookie"]) == (503, None)


def test_a_user_without_the_role_leaves_no_session_behind(gateway):
    sign_in(gateway, ("customer",))
    token = BEHIND.answers["issue_session"]["access_token"]
    assert [(method, args[0]) for method, args, *_ in BEHIND.asked] == [
        ("issue_session", "ann"),
        ("revoke_token", token),
    ]


def test_in_production_the_cookie_is_sent_over_tls_only():
    with serving(Paged, settings=Settings(env="production", auth_keys=KEYS)) as production:
        BEHIND.reset()
        value, *attributes = sign_in(production)[1]["Set-Cookie"].split("; ")
        assert value.startswith("__Secure-ecom_session=")
        assert "Secure" in attributes
        assert get(production, headers={"Cookie": value})[0] == 200
        # Whoever can change plain HTTP of the host can plant a cookie of the other name.
        status, headers, _ = get(production, headers={"Cookie": value.removeprefix("__Secure-")})
        assert (status, "__Secure-ecom_session" in headers["WWW-Authenticate"]) == (401, True)
        leave = post(production, "/dashboard/sign-out", {"token": form_token({"Cookie": value})}, {"Cookie": value})
        assert leave[1]["Set-Cookie"].startswith("__Secure-ecom_session=;")


@pytest.mark.parametrize("roles", [("customer",), ("operator", "service"), ()])
def test_a_user_without_the_role_gets_403_and_no_cookie(gateway, roles):
    status, response_headers, text = sign_in(gateway, roles)
    assert (status, response_headers["Set-Cookie"]) == (403, None)
    assert "for auditors and administrators" in text


def test_after_a_wrong_password_the_form_keeps_everything_but_the_password(gateway):
    BEHIND.answers["issue_session"] = errors.Unauthenticated("The name or the password is wrong.")
    status, response_headers, text = sign_in(
        gateway, username=HOSTILE, password="open sesame", next="/dashboard?sku=lamp"
    )
    assert (status, response_headers["Set-Cookie"]) == (401, None)
    assert "The name or the password is wrong." in text
    assert (field_of(text, "username"), field_of(text, "next")) == (HOSTILE, "/dashboard?sku=lamp")
    assert "open sesame" not in text


@pytest.mark.parametrize("fields", [{"username": ""}, {"password": ""}, {"password": "x" * 1025}, {"colour": "red"}])
def test_an_invalid_form_is_shown_again(gateway, fields):
    status, response_headers, text = sign_in(gateway, **fields)
    assert (status, response_headers["Set-Cookie"]) == (422, None)
    assert 'action="/dashboard/sign-in"' in text
    assert BEHIND.asked == []


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b'{"username": "ann", "password": "secret"}', "application/json", 415),
        (b"username=ann&password=secret", "text/plain", 415),
        (b"username=ann&username=bob&password=secret", FORM["Content-Type"], 400),
        (b"username=%ff&password=secret", FORM["Content-Type"], 400),
        (b"username=\xff&password=secret", FORM["Content-Type"], 400),
        ("&".join(f"f{number}=1" for number in range(21)).encode(), FORM["Content-Type"], 400),
        (b"username=" + b"a" * 70_000, FORM["Content-Type"], 413),
    ],
)
def test_a_body_that_is_not_a_form_is_refused_with_a_page(gateway, body, kind, status):
    answered, response_headers, text = ask(gateway, "POST", "/dashboard/sign-in", body, {"Content-Type": kind})
    assert (answered, response_headers["Content-Type"]) == (status, "text/html; charset=utf-8")
    assert f"Error {status}." in text
    assert BEHIND.asked == []


def test_rate_limits_apply_to_forms_and_pages():
    with serving(Paged, settings=Settings(auth_keys=KEYS, rate_address_per_min=3)) as limited:
        BEHIND.reset()
        BEHIND.answers["issue_session"] = errors.Unauthenticated()
        assert [sign_in(limited)[0] for _ in range(4)] == [401, 401, 401, 429]
    with serving(Paged, settings=Settings(auth_keys=KEYS, rate_user_per_min=2)) as limited:
        BEHIND.reset()
        assert [get(limited)[0] for _ in range(3)] == [200, 200, 429]
        _, response_headers, text = get(limited)
        assert int(response_headers["Retry-After"]) > 0
        assert "Too many requests" in text


@pytest.mark.parametrize(
    "path",
    ["/dashboard", "/dashboard?sku=lamp&from=&user_id=a%26b", "/dashboard/releases/7", "/dashboard?sku=%22%3E%27"],
)
def test_signing_in_leads_to_the_requested_page_with_its_filters(gateway, path):
    _, _, text = get(gateway, path, headers={})
    leads_to = field_of(text, "next")
    assert leads_to == path
    assert sign_in(gateway, next=leads_to)[1]["Location"] == path


def test_an_ended_session_says_so_and_goes_on_where_it_was(gateway):
    token = auth.issue(KEYS, "ann", ("auditor",), auth.SESSION_S, time.time() - auth.SESSION_S - 1, auth.DASHBOARD)
    status, _, text = get(gateway, "/dashboard?sku=lamp", {"Cookie": f"ecom_session={token}"})
    assert status == 401
    assert "Your session has ended: it lasts one hour." in text
    assert sign_in(gateway, next=field_of(text, "next"))[1]["Location"] == "/dashboard?sku=lamp"
    for headers in ({}, {"Cookie": "ecom_session="}):
        assert "session has ended" not in get(gateway, headers=headers)[2], "there was none"


def test_a_user_without_the_role_can_sign_in_as_somebody_else(gateway):
    wanted = "/dashboard?sku=lamp&reason=deadline"
    refused = get(gateway, wanted, session("customer")), sign_in(gateway, ("customer",), next=wanted)
    for status, _, text in refused:
        assert status == 403
        form = get(gateway, links(text)["Sign in as somebody else"], session("customer"))
        assert (form[0], field_of(form[2], "next")) == (200, wanted)
    assert field_of(get(gateway, "/dashboard/sign-in?next=//evil.example", {})[2], "next") == "/dashboard"


def test_signing_in_after_requesting_a_file_or_a_form_action_leads_to_a_page(gateway):
    assert field_of(export(gateway, "?sku=lamp", headers={})[2], "next") == "/dashboard?sku=lamp"
    assert field_of(post(gateway, "/dashboard/sign-out", {})[2], "next") == "/dashboard"


@pytest.mark.parametrize(
    "address",
    [
        *(
            "//evil.example",
            "/\\evil.example",
            "\\\\evil.example",
            "https://evil.example",
            "https:",
            "javascript:alert(1)",
        ),
        *(
            "/dashboard//evil.example",
            "/dashboard/../api",
            "/dashboard@evil.example",
            "/dashboardx",
            "/api/stocks",
            "/",
        ),
        *("dashboard", " /dashboard", "/dashboard\r\nSet-Cookie: a=b", "/dashboard?a\r\nX: y", "/dashboard?\\", ""),
        *(
            "/dashboard/sign-out",
            "/dashboard/sign-in",
            "/dashboard/%2e%2e/docs",
            "/dashboard#//evil",
            "/dashboard?\u2028",
        ),
    ],
)
def test_signing_in_never_leads_to_another_site(gateway, address):
    status, response_headers, _ = sign_in(gateway, next=address)
    assert (status, response_headers["Location"]) == (303, "/dashboard")
    assert response_headers["Set-Cookie"].startswith("ecom_session=")


@pytest.mark.parametrize(
    ("headers", "own"),
    [
        ({}, True),
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://shop.example"}, True),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Origin": "http://{host}"}, True),
        ({"Origin": "https://{host}"}, True),
        ({"Origin": "null"}, False),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": "http://{host}.evil.example"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://{host}"}, False),
    ],
)
def test_a_form_of_another_site_is_refused(gateway, headers, own):
    sent = {name: value.replace("{host}", f"127.0.0.1:{gateway.port}") for name, value in headers.items()}
    status, response_headers, _ = sign_in(gateway, headers=sent)
    assert (status, response_headers["Set-Cookie"] is not None) == ((303, True) if own else (403, False))
    visit = session()
    answer = post(gateway, "/dashboard/sign-out", {"token": form_token(visit)}, visit | sent)
    assert answer[0] == (303 if own else 403)


def test_signing_out_needs_the_token_of_the_same_session(gateway):
    visit, other = session(), session()
    for token in ("", "0" * 64, form_token(other), form_token(visit, sessions.EXPORT), "\u2603"):
        status, response_headers, _ = post(gateway, "/dashboard/sign-out", {"token": token}, visit)
        assert (status, response_headers["Set-Cookie"]) == (403, None)
    assert post(gateway, "/dashboard/sign-out", {}, visit)[0] == 403
    token = field_of(get(gateway, "/dashboard/releases/7", headers=visit)[2], "token")
    assert token == form_token(visit)
    status, response_headers, _ = post(gateway, "/dashboard/sign-out", {"token": token}, visit)
    assert (status, response_headers["Location"]) == (303, "/dashboard/sign-in")
    name, *attributes = response_headers["Set-Cookie"].split("; ")
    assert (name, "Max-Age=0" in attributes, "Path=/dashboard" in attributes) == ("ecom_session=", True, True)


def test_a_form_made_before_the_keys_were_rotated_still_signs_out():
    token = sessions.form_token(KEYS[0][1], sessions.SIGN_OUT, "a-session")
    rotated = (("k2", "another-secret-of-more-than-thirty-two-bytes"), *KEYS)
    sessions.check_form(token, sessions.SIGN_OUT, "a-session", rotated)
    with pytest.raises(errors.Forbidden):
        sessions.check_form(token, sessions.SIGN_OUT, "a-session", rotated[:1])


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/dashboard", session()),
        ("/dashboard/releases/7", session()),
        ("/dashboard", {}),
        ("/dashboard/sign-in", {}),
        ("/dashboard/nothing", {}),
        ("/dashboard?sku=-", session()),
    ],
)
def test_pages_are_not_cached_run_no_script_and_load_nothing_from_elsewhere(gateway, path, headers):
    _, response_headers, text = get(gateway, path, headers)
    assert response_headers["Cache-Control"] == "no-store"
    assert (response_headers["X-Content-Type-Options"], response_headers["X-Frame-Options"]) == ("nosniff", "DENY")
    assert response_headers["Referrer-Policy"] == "same-origin"
    policy = dict(part.split(" ", 1) for part in response_headers["Content-Security-Policy"].split("; "))
    (style,) = re.findall("<style>(.*?)</style>", text, re.DOTALL)
    assert policy == {
        "default-src": "'none'",
        "style-src": f"'sha256-{b64encode(sha256(style.encode()).digest()).decode()}'",
        "base-uri": "'none'",
        "form-action": "'self'",
        "frame-ancestors": "'none'",
    }
    for tag, attributes in Elements(text).found:
        assert tag not in ("script", "img", "link", "iframe", "object", "base")
        assert not {name for name in attributes if name.startswith("on")} | ({"src", "style"} & attributes.keys())
        assert re.match(r"#|/dashboard", attributes.get("href", attributes.get("action", "#")))


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/dashboard/nothing", 404),
        ("/dashboard/releases/x", 404),
        (f"/dashboard/releases/{2**63}", 404),
        ("/dashboard/", 404),
    ],
)
def test_an_unknown_path_of_the_dashboard_is_a_404_page(gateway, path, status):
    answered, response_headers, text = export(gateway) if path.endswith("/export") else get(gateway, path)
    assert (answered, response_headers["Content-Type"]) == (status, "text/html; charset=utf-8")
    trace = response_headers["X-Correlation-ID"]
    assert f"If you ask for help, quote this trace: <code>{trace}</code>" in text
    assert "<title>There is nothing here by that name – release audit</title>" in text
    assert ask(gateway, "GET", "/dashboards")[1]["Content-Type"] == "application/json"


def test_an_unsupported_method_is_a_405_page(gateway):
    status, response_headers, _ = ask(gateway, "DELETE", "/dashboard")
    assert (status, response_headers["Content-Type"], response_headers["Allow"]) == (
        405,
        "text/html; charset=utf-8",
        "GET, HEAD",
    )


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.ServiceUnavailable("inventory_service did not answer"), 503),
        (errors.CannotWork("the database the-db-host is away"), 503),
        (RuntimeError("password=secret"), 500),
        (errors.NotFound("There is no release event 7."), 404),
    ],
)
@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("/dashboard/releases/7", "release_event"),
        ("/dashboard", "release_events"),
        ("/dashboard/export", "open_release_export"),
    ],
)
def test_an_error_page_shows_its_trace_and_no_secret(gateway, error, status, path, method):
    BEHIND.answers[method] = error
    answered, response_headers, text = export(gateway) if path.endswith("/export") else get(gateway, path)
    assert (answered, response_headers["Content-Type"]) == (status, "text/html; charset=utf-8")
    assert response_headers["X-Correlation-ID"] in text
    assert "secret" not in text
    assert "the-db-host" not in text
    assert (response_headers["Retry-After"] is not None) == (status == 503)


def test_user_input_is_shown_escaped(gateway):
    hostile = release(sku=HOSTILE, reason=HOSTILE, requested_by=HOSTILE, roles=[HOSTILE], trace_id=HOSTILE)
    BEHIND.answers["release_events"] = {"items": [hostile], "next_cursor": '"><script>', "total": None}
    BEHIND.answers["release_totals"] = [{"day": "2026-01-14", "reason": HOSTILE, "releases": 1, "quantity": 2}]
    BEHIND.answers["operations_of"] = {ORDER_ID: [operation(actor=HOSTILE, why=HOSTILE, event_type=HOSTILE)]}
    BEHIND.answers["release_exports"] = {
        "items": [
            {
                "started_at": timestamp(NOW),
                "finished_at": None,
                "rows": None,
                "exported_by": HOSTILE,
                "filters": {"sku": HOSTILE},
            }
        ]
    }
    BEHIND.answers["audit_status"] = WITNESS | {
        "verification": INTACT | {"intact": False, "actor": HOSTILE, "outcome": HOSTILE},
        "trouble": HOSTILE,
    }
    BEHIND.answers["release_event"] = hostile | {"seal": None}
    step = {
        "id": 1,
        "at": timestamp(NOW),
        "event": HOSTILE,
        "from": HOSTILE,
        "to": "PAID",
        "source": HOSTILE,
        "by": HOSTILE,
    }
    BEHIND.answers["timeline"] = {
        "status": HOSTILE,
        "reason": HOSTILE,
        "steps": [step | {"details": {HOSTILE: HOSTILE}}],
    }
    query = urlencode({"user_id": HOSTILE, "reason": HOSTILE})
    for path in (
        f"/dashboard?{query}",
        "/dashboard/releases/7",
        f"/dashboard?sku={quote(HOSTILE)}",
        f"/dashboard?{query}&{quote(HOSTILE)}=1",
    ):
        _, _, text = get(gateway, path, session(sub=HOSTILE))
        page = Elements(text)
        assert not {"script", "img"} & {tag for tag, _ in page.found}
        assert not any(name.startswith("on") for _, attributes in page.found for name in attributes)
        assert HOSTILE in "".join(page.words), "as it was written, {{7*7}} too"


def asked_with(gateway, query):
    """The filters that reach the inventory."""
    BEHIND.asked.clear()
    status, _, text = get(gateway, f"/dashboard{query}")
    assert status == 200, text
    return next(asked[1] for asked in BEHIND.asked if asked[0] == "release_events")


def test_without_filters_the_page_shows_the_last_thirty_days(gateway):
    start = (datetime.now(UTC) - timedelta(days=29)).date()
    (filters, limit, cursor) = asked_with(gateway, "")
    assert (filters, limit, cursor) == ({"from": f"{start}T00:00:00.000Z"}, 50, None)
    assert field_of(get(gateway)[2], "from") == str(start)
    assert asked_with(gateway, "?limit=7")[:2] == ({"from": f"{start}T00:00:00.000Z"}, 7)


def test_an_emptied_field_shows_all_releases(gateway):
    assert asked_with(gateway, "?from=&to=&order_id=&sku=&reason=&user_id=&trace_id=")[0] == {}
    assert asked_with(gateway, "?sku=lamp")[0] == {"sku": "lamp"}


@pytest.mark.parametrize(
    ("query", "filters", "shown"),
    [
        (
            {"from": "2026-01-14", "to": "2026-01-14"},
            {"from": "2026-01-14T00:00:00.000Z", "to": "2026-01-15T00:00:00.000Z"},
            {"from": "2026-01-14", "to": "2026-01-14"},
        ),
        (
            {"from": "2026-01-14T12:30:00+02:00", "to": "2026-01-15T00:00:00Z"},
            {"from": "2026-01-14T10:30:00.000Z", "to": "2026-01-15T00:00:00.000Z"},
            {"from": "2026-01-14T10:30:00", "to": "2026-01-14"},
        ),
        (
            {"from": "2026-01-14T10:30", "to": "2026-01-14T10:30:00.123"},
            {"from": "2026-01-14T10:30:00.000Z", "to": "2026-01-14T10:30:00.123Z"},
            {"from": "2026-01-14T10:30:00", "to": "2026-01-14T10:30:00.123"},
        ),
        (
            {"order_id": ORDER_ID.upper(), "trace_id": ORDER_ID},
            {"order_id": ORDER_ID, "trace_id": ORDER_ID.replace("-", "")},
            {"order_id": ORDER_ID, "trace_id": ORDER_ID.replace("-", "")},
        ),
    ],
)
def test_filters_are_those_of_the_api_and_take_dates(gateway, query, filters, shown):
    assert asked_with(gateway, f"?{urlencode(query)}")[0] == filters
    assert as_typed(filters) == shown
    assert asked_with(gateway, f"?{urlencode(shown)}")[0] == filters, "read again they are the same"


def test_the_earliest_and_latest_dates_are_valid_filters(gateway):
    for query in ("from=0001-01-01&to=0001-01-01", "to=0001-01-01T00:00:00Z", "from=9999-12-31T23:59:59.999"):
        assert get(gateway, f"/dashboard?{query}")[0] == 200


@pytest.mark.parametrize(
    ("query", "wrong"),
    [
        *(
            ({"from": value}, "from")
            for value in (
                "yesterday",
                "2026-02-30",
                "2026-1-1",
                "<script>",
                "2026-01-14T25:00",
                "0001-01-01T00:00+02:00",
            )
        ),
        *(({"to": value}, "to") for value in ("9999-12-31", "20260114", "2026-W03-3")),
        ({"from": "2026-01-15", "to": "2026-01-13"}, "to"),
        ({"order_id": "7"}, "order_id"),
        ({"sku": "-"}, "sku"),
        ({"trace_id": "7"}, "trace_id"),
        ({"reason": "x" * 201}, "reason"),
        ({"user_id": "a\0b"}, "user_id"),
    ],
)
def test_a_wrong_filter_is_shown_at_its_field_with_the_typed_text(gateway, query, wrong):
    status, response_headers, text = get(gateway, f"/dashboard?{urlencode(query | {'limit': '5'})}")
    assert (status, response_headers["Content-Type"]) == (400, "text/html; charset=utf-8")
    fields = {attributes.get("name"): attributes for tag, attributes in Elements(text).found if tag == "input"}
    assert {name for name, attributes in fields.items() if "aria-invalid" in attributes} == {wrong}
    assert f'id="{fields[wrong]["aria-describedby"]}" class="wrong"' in text
    assert {name: fields[name]["value"] for name in query} == query
    assert not (fields["from"]["type"] == "date" and not re.fullmatch(r"|\d{4}-\d\d-\d\d", fields["from"]["value"]))
    assert BEHIND.asked == []


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ({"from": "yesterday"}, "Must be a date such as 2026-01-14, or a time such as 2026-01-14T10:30Z."),
        ({"from": "20260114"}, "Must be a date such as 2026-01-14, or a time such as 2026-01-14T10:30Z."),
        ({"from": "2026-02-30"}, "There is no such day or time."),
        ({"from": "2026-01-14T25:00"}, "There is no such day or time."),
        ({"to": "9999-12-31"}, "Is out of range."),
        ({"from": "0001-01-01T00:00+02:00"}, "Is out of range."),
        ({"reason": "a\0b"}, "Has a character that cannot be stored: NUL, or half of a surrogate pair."),
    ],
)
def test_a_wrong_filter_is_explained(gateway, query, says):
    assert f'class="wrong">{says}</span>' in get(gateway, f"/dashboard?{urlencode(query)}")[2]


@pytest.mark.parametrize("query", ["limit=0", "cursor=", "sku=a&sku=b", "limit=x", "page=0", "before=-1"])
def test_an_error_without_a_field_is_shown_above_the_form(gateway, query):
    status, _, text = get(gateway, f"/dashboard?{query}")
    if query == "cursor=":
        assert status == 200, "an empty field was not given"
    else:
        assert status == 400
        assert "A query parameter is not valid." in text or "Given more than once." in text


def test_a_cursor_of_other_filters_is_reported_above_the_form(gateway):
    BEHIND.answers["release_events"] = errors.InvalidCursor()
    status, _, text = get(gateway, f"/dashboard?cursor={signed_cursor('/dashboard', 'abc')}&sku=lamp")
    assert status == 400
    assert "The cursor was not made" in text
    assert field_of(text, "sku") == "lamp"


def test_an_unknown_parameter_is_an_error_page(gateway):
    status, _, text = get(gateway, "/dashboard?colour=red")
    assert status == 400
    assert "colour" in text


def links(text):
    """The addresses of the links of a page, by their text."""
    return {
        words: href.replace("&amp;", "&")
        for href, words in re.findall(r'<a [^>]*?href="([^"]+)"[^>]*>([^<]+)</a>', text)
    }


def queries(text):
    """The parameters of the links of a page, by their text."""
    return {words: parse_qs(urlsplit(href).query, keep_blank_values=True) for words, href in links(text).items()}


def test_links_keep_the_filters(gateway):
    BEHIND.answers["release_events"] = {"items": [release()], "next_cursor": "abc", "total": None}
    BEHIND.answers["release_totals"] = [{"day": "2026-01-14", "reason": "manual", "releases": 54, "quantity": 60}]
    _, _, text = get(
        gateway, f"/dashboard?sku=lamp&to=2026-01-14&limit=5&cursor={signed_cursor('/dashboard', 'xyz')}&page=3"
    )
    found = queries(text)
    kept = {"from": [""], "sku": ["lamp"], "to": ["2026-01-14"]}
    assert found["First page"] == kept | {"limit": ["5"]}
    assert found["Previous page"] == kept | {"limit": ["5"], "before": ["7"], "page": ["2"]}
    assert found["Next page"] == kept | {"limit": ["5"], "cursor": [signed_cursor("/dashboard", "abc")], "page": ["4"]}
    assert ">Download these 54 as CSV</button>" in text
    assert "Page 3 of 11" in text


def test_the_first_page_has_no_page_before_it_and_the_last_none_after_it(gateway):
    text = get(gateway)[2]
    assert not {"First page", "Previous page", "Next page"} & links(text).keys()
    assert "Page 1 of 1" in text
    text = get(gateway, "/dashboard?before=9&page=2")[2]
    assert ("release_events_before", (ANY, 50, 9)) in [asked[:2] for asked in BEHIND.asked]
    assert "Page 1 of 1" in text, "it became the first one"
    assert "Previous page" not in links(text)
    BEHIND.answers["release_events_before"] = {"items": [release()], "next_cursor": "abc", "is_first": False}
    text = get(gateway, "/dashboard?before=9&page=1&sku=lamp")[2]
    assert "Page 2 of 2" in text, "newer releases have come"
    assert (queries(text)["Previous page"]["before"], queries(text)["Next page"]["page"]) == (["7"], ["3"])
    assert get(gateway, "/dashboard?before=9&cursor=abc")[0] == 400


@pytest.mark.parametrize(
    ("query", "releases", "words"),
    [
        ("", 1234, "Download these 1,234 as CSV"),
        ("?from=", 1234, "Download all 1,234 as CSV"),
        ("?sku=lamp", 1, "Download this one as CSV"),
        ("?sku=lamp", 0, "Download the empty list as CSV"),
    ],
)
def test_the_button_for_the_csv_says_how_many_releases_it_has(gateway, query, releases, words):
    totals = [{"day": "2026-01-14", "reason": "manual", "releases": releases, "quantity": 9}]
    BEHIND.answers["release_totals"] = totals if releases else []
    assert f"<button>{words}</button>" in get(gateway, f"/dashboard{query}")[2]


def test_a_release_is_linked_by_its_number(gateway):
    elements = Elements(get(gateway)[2])
    assert {"href": "/dashboard/releases/7"} in [attributes for tag, attributes in elements.found if tag == "a"]
    assert [words.strip() for words in elements.words if words.startswith("#")] == ["#7"]


def test_an_empty_list_says_that_upper_and_lower_case_differ(gateway):
    BEHIND.answers |= {"release_events": {"items": [], "next_cursor": None, "total": None}, "release_totals": []}
    assert "Upper and lower case are different" in get(gateway, "/dashboard?sku=LAMP")[2]
    assert "Upper and lower case are different" not in get(gateway, "/dashboard?from=2026-01-14")[2]


def test_the_filters_of_an_export_are_shown_as_they_are_typed(gateway):
    filters = {"to": "2026-01-16T00:00:00.000Z", "reason": "deadline", "from": "2026-01-14T10:30:00.000Z", "sku": "m"}
    words = "From 2026-01-14T10:30:00, To 2026-01-15, SKU m, Reason deadline"
    assert described(filters) == words
    export = {"started_at": timestamp(NOW), "finished_at": timestamp(NOW), "rows": 3, "exported_by": "ann"}
    BEHIND.answers["release_exports"]["items"] = [export | {"filters": filters}]
    assert f">{words}<" in get(gateway)[2]


def test_only_a_form_with_a_problem_is_unfolded_on_a_phone(gateway):
    for query, unfolded in (("?sku=lamp", 0), ("?sku=-", 1), ("?limit=0", 1)):
        elements = Elements(get(gateway, f"/dashboard{query}")[2])
        (fold,) = [attributes for tag, attributes in elements.found if attributes.get("class") == "panel fold"]
        assert ("open" in fold) == unfolded
    assert "SKU lamp" in Elements(get(gateway, "/dashboard?sku=lamp&from=")[2]).words, (
        "the folded form names its filters"
    )


def test_an_export_needs_a_form_of_this_session(gateway):
    BEHIND.answers["open_release_export"] = errors.ServiceUnavailable()
    visit, other = session(), session()
    assert get(gateway, "/dashboard/export", visit)[0] == 405, "a link on another site sends a GET with the cookie"
    for token in ("", form_token(other, sessions.EXPORT), form_token(visit)):
        assert post(gateway, "/dashboard/export", {"token": token}, visit)[0] == 403
    elsewhere = {"Sec-Fetch-Site": "cross-site"}
    assert (
        post(gateway, "/dashboard/export", {"token": form_token(visit, sessions.EXPORT)}, visit | elsewhere)[0] == 403
    )
    assert BEHIND.asked == []
    assert export(gateway, headers=visit)[0] == 503, "it was opened"


def test_the_export_form_has_the_filters_of_the_page(gateway):
    text = get(gateway, "/dashboard?sku=lamp&to=2026-01-14")[2]
    (action,) = [one["action"] for tag, one in Elements(text).found if "/export" in one.get("action", "")]
    BEHIND.answers["open_release_export"] = errors.ServiceUnavailable()
    BEHIND.asked.clear()
    export(gateway, action.removeprefix("/dashboard/export"))
    assert BEHIND.asked[0][:2] == ("open_release_export", ({"sku": "lamp", "to": "2026-01-15T00:00:00.000Z"},))


def test_the_filters_of_an_export_are_those_of_the_page(gateway):
    BEHIND.answers["open_release_export"] = errors.ServiceUnavailable()
    export(gateway, "?from=&sku=lamp&to=2026-01-14")
    (asked,) = BEHIND.asked
    assert asked[:2] == ("open_release_export", ({"sku": "lamp", "to": "2026-01-15T00:00:00.000Z"},))
    BEHIND.asked.clear()
    status, response_headers, text = export(gateway, "?from=yesterday")
    assert (status, response_headers["Content-Type"]) == (400, "text/html; charset=utf-8")
    assert "Must be a date" in text
    assert BEHIND.asked == []


def test_the_page_works_without_ops_service_and_asks_it_once(gateway):
    BEHIND.answers["audit_status"] = errors.ServiceUnavailable()
    BEHIND.answers["operations_of"] = {}
    status, _, text = get(gateway)
    assert status == 200
    assert text.count("service is unavailable") == 2
    assert ">unknown</span>" in text
    assert "operations_of" not in [asked[0] for asked in BEHIND.asked]


def test_a_release_is_shown_without_unavailable_parts(gateway):
    BEHIND.answers["operations_of"] = errors.ServiceUnavailable()
    for error, says in (
        (errors.ServiceUnavailable(), "the order service is unavailable"),
        (errors.NotFound(), "reserved manually"),
    ):
        BEHIND.answers["timeline"] = error
        status, _, text = get(gateway, "/dashboard/releases/7")
        assert status == 200
        assert says in text
        assert "Unknown: the operators' service" in text


def test_a_release_names_the_operator_who_replayed_its_message(gateway):
    later = operation(actor="too-late", at="2026-01-14T10:31:00.000Z")
    BEHIND.answers["operations_of"] = {ORDER_ID: [operation(), later]}
    for path in ("/dashboard", "/dashboard/releases/7"):
        _, _, text = get(gateway, path)
        assert "eplayed by olga" in text
        assert "too-late" not in text
    assert "stock was locked" in text


OLD = timestamp(NOW - timedelta(minutes=5))


@pytest.mark.parametrize(
    ("chain", "witness", "levels"),
    [
        ({}, {}, ["good", "good", "good", "good"]),
        ({"newest": None, "rows": 0}, {"head": None, "verification": None}, ["note", "good", "note", "note"]),
        ({"newest": None, "rows": 0}, {}, ["note", "good", "alarm", "good"]),
        ({"newest": SEAL | {"seq": 11}}, {}, ["good", "good", "alarm", "good"]),
        ({"newest": SEAL | {"mac": "cd"}}, {}, ["good", "good", "alarm", "good"]),
        ({"newest": SEAL | {"seq": 13}}, {}, ["good", "good", "good", "good"]),
        ({"newest": SEAL | {"seq": 13, "sealed_at": OLD}}, {}, ["good", "good", "warning", "good"]),
        ({}, {"trouble": "the ledger knows seal 3 as another one"}, ["good", "good", "alarm", "good"]),
        (
            {},
            {"verification": INTACT | {"intact": False, "outcome": "Row 7 differs."}},
            ["good", "good", "good", "alarm"],
        ),
        ({"waiting": 3, "oldest_waiting_at": timestamp(NOW)}, {}, ["good", "note", "good", "note"]),
        ({"waiting": 3, "oldest_waiting_at": OLD}, {}, ["good", "warning", "good", "note"]),
        ({"trouble": "its ids fell back"}, {}, ["good", "alarm", "good", "good"]),
        ({"rows": 346}, {}, ["good", "good", "good", "note"]),
        ({"waiting": 1, "oldest_waiting_at": timestamp(NOW)}, {}, ["good", "note", "good", "note"]),
        (
            {},
            {"verification": INTACT | {"finished_at": timestamp(NOW - timedelta(days=3))}},
            ["good", "good", "good", "note"],
        ),
        ({}, None, ["good", "good", "unknown", "unknown"]),
    ],
)
def test_problems_of_the_seals_are_shown(gateway, chain, witness, levels):
    found = findings(CHAIN | chain, None if witness is None else WITNESS | witness, NOW)
    assert [finding.level for finding in found] == levels
    BEHIND.answers["release_chain"] = CHAIN | chain
    BEHIND.answers["audit_status"] = errors.ServiceUnavailable() if witness is None else WITNESS | witness
    text = get(gateway)[2]
    assert text.count('role="alert"') == levels.count("alarm")
    assert ("the audit cannot be trusted" in text) == ("alarm" in levels)


@pytest.mark.parametrize(
    ("rows", "waiting", "age", "says"),
    [
        (345, 0, 0, "All of 345 releases verified and intact. Verified by olga, {at} UTC."),
        (345, 0, 3, "All of 345 releases verified and intact. Verified by olga, {at} UTC. That was 3 days ago."),
        (346, 0, 0, "345 of 346 releases verified and intact; 1 newer one is not yet verified. Verified by olga,"),
        (1460, 3, 9, "345 of 1,463 releases verified and intact; 1,118 newer ones are not yet verified. Verified by"),
    ],
)
def test_a_verification_says_of_how_many_releases_it_was(rows, waiting, age, says):
    chain = CHAIN | {"rows": rows, "waiting": waiting, "oldest_waiting_at": timestamp(NOW)}
    finished = timestamp(NOW - timedelta(days=age))
    found = findings(chain, WITNESS | {"verification": INTACT | {"finished_at": finished}}, NOW)[-1]
    assert found.text.startswith(says.format(at=finished[:19].replace("T", " ")))


def test_the_ledger_is_read_before_the_chain(gateway):
    get(gateway)
    asked = [asked[0] for asked in BEHIND.asked]
    assert asked.index("audit_status") < asked.index("release_chain")


TODAY = date(2026, 1, 31)


def totals_of(*days, reason="deadline", quantity=1):
    return [{"day": day.isoformat(), "reason": reason, "releases": 1, "quantity": quantity} for day in days]


def test_without_a_release_there_is_no_chart():
    assert chart([], TODAY, TODAY) is None


def test_one_day_is_one_narrow_bar_in_the_middle():
    drawn = chart(totals_of(TODAY), TODAY, TODAY)
    assert (drawn.unit, len(drawn.bars), len(drawn.labels)) == ("day", 1, 1)
    (bar,) = drawn.bars
    assert bar.width < 100 / MIN_SLOTS
    assert bar.x + bar.width / 2 == pytest.approx(50, abs=0.01)
    assert drawn.labels[0].at == pytest.approx(50, abs=0.01)


def test_without_a_range_the_chart_has_the_days_of_the_releases(gateway):
    drawn = chart(totals_of(TODAY - timedelta(days=3), TODAY), None, None)
    assert [bar.label for bar in drawn.bars] == ["28 Jan", "29 Jan", "30 Jan", "31 Jan"]
    yesterday = (NOW - timedelta(days=1)).date()
    BEHIND.answers["release_totals"] = totals_of(yesterday)
    for query, bars in (("", 1), (f"?from={yesterday - timedelta(days=1)}", 3)):
        assert sum(tag == "g" for tag, _ in Elements(get(gateway, f"/dashboard{query}")[2]).found) == bars


def test_days_without_a_release_keep_their_place():
    drawn = chart(totals_of(TODAY - timedelta(days=3)), TODAY - timedelta(days=29), TODAY)
    assert len(drawn.bars) == 30
    assert [bar.label for bar in drawn.bars if bar.segments] == ["28 Jan"]
    assert [row[0] for row in drawn.rows] == ["2026-01-28"]


@pytest.mark.parametrize(
    ("days", "unit", "most"),
    [(1, "day", 1), (92, "day", 92), (93, "week", 15), (728, "week", 105), (1096, "month", 37), (9000, "year", 26)],
)
def test_a_long_range_has_longer_bars_and_loses_no_unit(days, unit, most):
    first = TODAY - timedelta(days=days - 1)
    drawn = chart(totals_of(*(first + timedelta(days=number) for number in range(days))), None, TODAY)
    assert drawn.unit == unit
    assert len(drawn.bars) <= most
    assert sum(row[2] for row in drawn.rows) == days
    assert len(drawn.labels) <= MAX_LABELS + 1
    assert all(bar.x >= 0 and bar.x + bar.width <= 100 for bar in drawn.bars)


def test_a_range_far_beyond_the_releases_is_cut_to_them():
    drawn = chart(totals_of(TODAY - timedelta(days=1), TODAY), date.min, date.max)
    assert (drawn.unit, len(drawn.bars)) == ("day", 2)


def test_bars_begin_at_zero_and_stay_below_the_highest_number():
    totals = totals_of(TODAY, quantity=117) + totals_of(TODAY, reason="expired", quantity=3)
    ((segments),) = [bar.segments for bar in chart(totals, TODAY, TODAY).bars]
    assert segments[0].y + segments[0].height == pytest.approx(PLOT_PX, abs=0.02)
    assert segments[0].y == pytest.approx(segments[1].y + segments[1].height, abs=0.02)
    assert segments[1].y >= 0


@pytest.mark.parametrize(
    ("units", "top"),
    [(1, "2"), (2, "2"), (3, "4"), (117, "120"), (120, "120"), (121, "160"), (10**9 + 1, "1,200,000,000")],
)
def test_the_numbers_beside_the_chart_are_round(units, top):
    drawn = chart(totals_of(TODAY, quantity=units), TODAY, TODAY)
    assert [tick.text for tick in drawn.numbers][::2] == ["0", top]


def test_every_reason_has_a_colour():
    assert sorted(REASONS) == sorted(ReleaseReason)


def test_a_reason_has_the_same_colour_whatever_the_filters():
    together = [row for reason in REASONS for row in totals_of(TODAY, reason=reason)]
    (bar,) = chart(together, TODAY, TODAY).bars
    colours = {part.colour for part in bar.segments}
    assert colours == {COLOURS.index(reason) for reason in REASONS}
    for reason in REASONS:
        drawn = chart(totals_of(TODAY, reason=reason), TODAY, TODAY)
        assert (drawn.series, [part.colour for part in drawn.bars[0].segments]) == ((reason,), [COLOURS.index(reason)])


def test_every_reason_of_a_release_has_a_colour(gateway):
    words = schema_of(ReleaseRequested)["properties"]["reason"]["enum"]
    assert set(words) < set(REASONS), "the others are those of reservations by hand"
    style = re.findall("<style>(.*?)</style>", get(gateway)[2], re.DOTALL)[0]
    for number in range(len(COLOURS)):
        assert f".series-{number} {{ fill: var(--series-{number}); }}" in style
        assert style.count(f"--series-{number}: #") == 2, "in light and in dark"


def test_unknown_reasons_share_the_last_colour():
    drawn = chart([row for number in range(3) for row in totals_of(TODAY, reason=f"r{number}")], TODAY, TODAY)
    assert drawn.series == (OTHER,)
    assert [part.colour for part in drawn.bars[0].segments] == [len(COLOURS) - 1]
    assert drawn.rows == (("2026-01-31", (3,), 3),)


def test_every_step_of_an_order_has_plain_words(gateway):
    assert STEPS.keys() == {rule.hears for rule in TABLE} | {"order.created"}
    step = {
        "id": 1,
        "at": timestamp(NOW),
        "from": "PAID",
        "to": "REFUND_PENDING",
        "source": "order_service",
        "by": "ann",
    }
    BEHIND.answers["timeline"]["steps"] = [
        step | {"event": "cancel", "details": {}},
        step | {"event": "order.created", "details": {"total": 900, "currency": "EUR"}},
        step | {"event": "later.version", "details": {"colour": "red"}},
    ]
    text = " ".join("".join(Elements(get(gateway, "/dashboard/releases/7")[2]).words).split())
    assert "Cancellation requested paid → refund pending cancel caused by ann, reported by the order service" in text
    assert "Order placed paid → refund pending Total 9.00 EUR order.created caused by" in text
    assert "later.version paid → refund pending colour: red later.version caused by" in text


@pytest.mark.parametrize(
    ("amount", "currency", "written"),
    [
        (900, "EUR", "9.00 EUR"),
        (5, "USD", "0.05 USD"),
        (0, "EUR", "0.00 EUR"),
        (900, "JPY", "900 JPY"),
        (9001, "KWD", "9.001 KWD"),
        (12, "UYW", "0.0012 UYW"),
        (2**53 - 1, "EUR", "90,071,992,547,409.91 EUR"),
    ],
)
def test_money_has_the_decimals_of_its_currency(amount, currency, written):
    assert money(amount, currency) == written


def test_details_of_a_step_are_phrases():
    shortages = [{"sku": "lamp", "requested": 1000, "available": 2}]
    assert details({"reason": "out_of_stock", "shortages": shortages}) == [
        "Reason: out_of_stock",
        "lamp: 1,000 requested, 2 available",
    ]
    assert details({"provider_reference": "ch_1"}) == ["Reference of the payment provider: ch_1"]
    assert details({"total": 5}) == ["total: 5"]
