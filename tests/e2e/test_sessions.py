"""Staying signed in and being shut out, over HTTP, with two gateways and two replicas of auth_service."""

from __future__ import annotations

import re
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
import requests
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from auth_service import models, records
from ops.local.processes import Process
from tests.e2e.signed_in import SignedIn, add_user, signed_in
from tests.e2e.system import System, eventually

# From the commit of a revocation to the refusal of its tokens at every gateway.
SHUT_OUT_WITHIN_S = 2.0
GATEWAYS = (0, 1)


@pytest.fixture
def user(system: System) -> str:
    """The id of a customer of this test's own."""
    user_id = f"u-{uuid.uuid4().hex[:12]}"
    add_user(system, user_id, "customer")
    return user_id


def refresh(system: System, token: str, gateway: int = 0) -> requests.Response:
    url = f"{system.url('gateway', gateway)}/api/auth/refresh-token"
    return requests.post(url, json={"refresh_token": token}, timeout=15)


def status(system: System, headers: dict[str, str], gateway: int, path: str = "/api/orders") -> int:
    return requests.get(system.url("gateway", gateway) + path, headers=headers, timeout=15).status_code


def let_in(system: System, headers: dict[str, str], path: str = "/api/orders") -> list[int]:
    return [status(system, headers, gateway, path) for gateway in GATEWAYS]


def is_shut_out(
    system: System, headers: dict[str, str], since: float, path: str = "/api/orders", expected: int = 401
) -> None:
    """At every gateway in time."""
    for gateway in GATEWAYS:
        eventually(partial(status, system, headers, gateway, path), lambda found: found == expected, 10)
    took = time.monotonic() - since
    print(f"\nshut out after {took:.3f} s")
    assert took <= SHUT_OUT_WITHIN_S


def change_by_hand(system: System, user_id: str, change: Callable[[Session, models.User], object]) -> float:
    """Change a user in the database, as an operator's command does: no gateway gets a hint. Returns when."""
    engine = create_engine(system.settings.database_url("auth"))
    try:
        with Session(engine) as session, session.begin():
            user = models.lock(session, user_id)
            assert user is not None
            change(session, user)
    finally:
        engine.dispose()
    return time.monotonic()


def pass_time(system: System, client: SignedIn, seconds: float) -> None:
    system.databases.run(
        "auth",
        "UPDATE sessions SET rotated_at = rotated_at - make_interval(secs => :s) WHERE session_id = :id",
        s=seconds,
        id=client.session_id,
    )


def test_refreshes_at_once_and_soon_answer_one_token_and_a_later_one_ends_the_session(
    system: System, user: str
) -> None:
    client = signed_in(system, user)
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda n: refresh(system, client.refresh_token, n % 2), range(20)))
    assert {answer.status_code for answer in answers} == {200}
    (successor,) = {answer.json()["refresh_token"] for answer in answers}
    pass_time(system, client, 30)
    late = refresh(system, client.refresh_token).json()
    assert late["refresh_token"] == successor
    headers = {"Authorization": f"Bearer {late['access_token']}"}
    assert let_in(system, headers) == [200, 200]
    pass_time(system, client, 31)
    reused = refresh(system, client.refresh_token)
    ended = time.monotonic()
    assert (reused.status_code, reused.json()["error"]["code"]) == (401, "invalid_grant")
    is_shut_out(system, headers, ended)
    assert refresh(system, successor).json()["error"]["code"] == "invalid_grant"


def test_signing_out_everywhere_is_known_at_both_gateways_in_time_and_to_nobody_else(system: System, user: str) -> None:
    here, there, other = signed_in(system, user), signed_in(system, user), signed_in(system, "customer")
    assert [let_in(system, one.headers) for one in (here, there, other)] == [[200, 200]] * 3
    url = f"{system.url('gateway')}/api/auth/logout"
    assert requests.post(url, json={"all": True}, headers=here.headers, timeout=15).status_code == 204
    ended = time.monotonic()
    is_shut_out(system, here.headers, ended)
    is_shut_out(system, there.headers, ended)
    assert let_in(system, other.headers) == [200, 200]


def test_one_of_a_users_sessions_is_ended_by_another(system: System, user: str) -> None:
    lost, here = signed_in(system, user), signed_in(system, user)
    base = f"{system.url('gateway')}/api/auth/sessions"
    listed = requests.get(base, headers=here.headers, timeout=15).json()["items"]
    assert {item["id"]: item["current"] for item in listed} == {
        str(here.session_id): True,
        str(lost.session_id): False,
    }
    assert requests.delete(f"{base}/{lost.session_id}", headers=here.headers, timeout=15).status_code == 204
    is_shut_out(system, lost.headers, time.monotonic())
    assert let_in(system, here.headers) == [200, 200]
    stranger = signed_in(system, "customer")
    assert requests.delete(f"{base}/{here.session_id}", headers=stranger.headers, timeout=15).status_code == 404


def test_whoever_is_disabled_without_any_hint_is_shut_out_in_time(system: System, user: str) -> None:
    client = signed_in(system, user)
    assert let_in(system, client.headers) == [200, 200]

    def disable(session: Session, row: models.User) -> None:
        row.disabled = True
        records.revoke_all(session, row, "disabled")

    is_shut_out(system, client.headers, change_by_hand(system, user, disable))
    assert refresh(system, client.refresh_token).json()["error"]["code"] == "invalid_grant"


def test_a_role_that_was_taken_is_missed_in_time_and_the_session_goes_on(system: System, user: str) -> None:
    system.databases.run("auth", "UPDATE users SET roles = '{operator}' WHERE user_id = :id", id=user)
    client = signed_in(system, user)
    queues = "/api/ops/queues"
    assert let_in(system, client.headers, queues) == [200, 200]

    def take(session: Session, row: models.User) -> None:
        row.roles = ["customer"]
        records.revoke_all(session, row, "roles", but=client.session_id)

    is_shut_out(system, client.headers, change_by_hand(system, user, take), queues)
    renewed = refresh(system, client.refresh_token).json()
    headers = {"Authorization": f"Bearer {renewed['access_token']}"}
    assert let_in(system, headers, queues) == [403, 403]
    assert let_in(system, headers) == [200, 200]


@contextmanager
def auth_is_away(system: System) -> Iterator[None]:
    """Every replica of auth_service stands still: it answers nothing, and nothing restarts it."""
    frozen = [process for pid in system.replicas_of("auth").values() if (process := Process.of(pid))]
    for process in frozen:
        process.send(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in frozen:
            process.send(signal.SIGCONT)


def test_while_auth_service_is_away_tokens_work_and_revoked_ones_stay_refused(system: System, user: str) -> None:
    flow = system.flow()
    flow.stock("auth-is-away", 10)
    flow.token("customer")  # while auth_service is away nobody signs in
    shut_out, client = signed_in(system, user), signed_in(system, "customer")
    requests.post(f"{system.url('gateway')}/api/auth/logout", json={}, headers=shut_out.headers, timeout=15)
    is_shut_out(system, shut_out.headers, time.monotonic())
    with auth_is_away(system):
        heard = eventually(lambda: age_of_revocations(system, 0), lambda age: age > 3, 10)
        assert let_in(system, shut_out.headers) == [401, 401]
        assert let_in(system, client.headers) == [200, 200]
        order = flow.order("auth-is-away")
        assert flow.at_rest(order["order_id"])["status"] == "PAID"
        refused = refresh(system, client.refresh_token)
        assert (refused.status_code, "Retry-After" in refused.headers) == (503, True)
        assert heard > 3
    # What was asked before stays in doubt: the client asks again and gets one answer.
    again = eventually(lambda: refresh(system, client.refresh_token), lambda answer: answer.status_code == 200, 30)
    assert refresh(system, client.refresh_token).json()["refresh_token"] == again.json()["refresh_token"]
    eventually(lambda: age_of_revocations(system, 0), lambda age: age < 2, 10)
    system.wait_ready()


def age_of_revocations(system: System, gateway: int) -> float:
    metrics = requests.get(f"{system.probe_url('gateway', gateway)}/metrics", timeout=5).text
    (age,) = re.findall(r'^ecom_revocations_age_seconds\{service="gateway"\} (\S+)$', metrics, re.MULTILINE)
    return float(age)


def test_a_key_of_a_service_works_at_every_gateway_and_is_dead_in_time_once_it_is_revoked(system: System) -> None:
    flow, name = system.flow(), f"till-{uuid.uuid4().hex[:8]}"
    wanted = {"roles": ["ROLE_SERVICE"], "expires_at": f"{datetime.now(UTC) + timedelta(days=1):%Y-%m-%dT%H:%M:%SZ}"}
    keys = f"/api/services/{name}/keys"
    leaked, good = (flow.send("POST", keys, wanted, "admin").json() for _ in range(2))
    headers = [{"X-API-Key": one["key"], "X-Service-Name": name} for one in (leaked, good)]
    feed = "/api/orders/events?limit=1"
    for each in headers:
        assert let_in(system, each, feed) == [200, 200]
    assert flow.send("DELETE", f"{keys}/{leaked['key_id']}", None, "admin").status_code == 204
    revoked = time.monotonic()
    is_shut_out(system, headers[0], revoked, feed)
    assert let_in(system, headers[1], feed) == [200, 200]
    token = requests.post(
        f"{system.url('gateway', 1)}/api/auth/token",
        data={"grant_type": "client_credentials"},
        auth=(name, good["key"]),
        timeout=15,
    ).json()["access_token"]
    assert let_in(system, {"Authorization": f"Bearer {token}"}, feed) == [200, 200]
    answer = requests.post(
        f"{system.url('gateway')}/api/auth/token",
        data={"grant_type": "client_credentials", "client_id": name, "client_secret": leaked["key"]},
        timeout=15,
    )
    assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client")


def test_a_cookie_of_the_dashboard_is_worthless_after_signing_out(system: System) -> None:
    browser = requests.Session()
    base = f"{system.url('gateway')}/dashboard"
    browser.post(f"{base}/sign-in", {"username": "auditor", "password": "demo-auditor"}, timeout=15)
    page = browser.get(base, timeout=15)
    assert page.status_code == 200
    stolen = {"Cookie": f"ecom_session={browser.cookies['ecom_session']}"}
    token = re.findall(r'name="token" value="([0-9a-f]+)"', page.text)[0]
    browser.post(f"{base}/sign-out", {"token": token}, timeout=15)
    is_shut_out(system, stolen, time.monotonic(), "/dashboard")


def test_no_log_and_no_table_holds_a_token_or_a_key(system: System, user: str) -> None:
    client = signed_in(system, user)
    token = client.refresh_token
    for gateway in GATEWAYS:
        token = refresh(system, token, gateway).json()["refresh_token"]
    refresh(system, client.refresh_token)  # used again: its session ends
    flow, name = system.flow(), f"till-{uuid.uuid4().hex[:8]}"
    wanted = {"roles": ["service"], "expires_at": f"{datetime.now(UTC) + timedelta(days=1):%Y-%m-%dT%H:%M:%SZ}"}
    key = flow.send("POST", f"/api/services/{name}/keys", wanted, "admin").json()["key"]
    let_in(system, {"X-API-Key": key, "X-Service-Name": name})
    let_in(system, {"X-API-Key": key, "X-Service-Name": "another"})
    logs = "".join(path.read_text(encoding="utf-8", errors="replace") for path in system.directory.glob("*.log"))
    tables = "".join(
        str(row)
        for table in ("outbox", "auth_events", "sessions", "api_keys", "revocations", "users", "proofs")
        for row in system.databases.rows("auth", f"SELECT * FROM {table}")
    )
    assert re.findall("ert_[A-Za-z0-9_-]{20}|ek_[0-9a-f]{32}", logs + tables) == []
