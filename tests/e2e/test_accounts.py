"""Accounts over HTTP: two gateways, two replicas of auth_service, and the mails that people get."""

from __future__ import annotations

import itertools
import math
import statistics
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
from requests.adapters import HTTPAdapter

from ops.cli.flow import Token
from tests.e2e.persons import new_address, token_to
from tests.e2e.system import System

PASSWORD, OTHER_PASSWORD = ("an agreeable summer", "a disagreeable winter")


class From(HTTPAdapter):
    """Connects from an address of its own: every address of 127.0.0.0/8 is this machine."""

    def __init__(self, address: str) -> None:
        self.address = address
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, source_address=(self.address, 0), **kwargs)


class Client:
    """A client app of a person: somewhere, with the tokens that it got last."""

    def __init__(self, system: System, address: str = "127.0.0.1") -> None:
        self.system = system
        self.http = requests.Session()
        self.http.mount("http://", From(address))
        self.replicas = itertools.cycle(range(system.replicas))
        self.tokens: dict[str, Any] = {}

    def send(self, method: str, path: str, body: Any = None, status: int | None = None) -> requests.Response:
        """One request, to the other gateway each time."""
        token = self.tokens.get("access_token")
        headers = {"User-Agent": "test/1", **({"Authorization": f"Bearer {token}"} if token else {})}
        url = self.system.url("gateway", next(self.replicas)) + path
        answer = self.http.request(method, url, json=body, headers=headers, timeout=20)
        if status is not None:
            assert answer.status_code == status, answer.text
        return answer

    def keep(self, answer: requests.Response) -> dict[str, Any]:
        """Remember the tokens of an answer; what it says."""
        self.tokens = answer.json()
        return self.tokens

    def login(self, email: str, password: str = PASSWORD, device_token: str | None = None) -> requests.Response:
        body = {"login": email, "password": password, "device_token": device_token}
        return self.send("POST", "/api/auth/login", {name: value for name, value in body.items() if value})


@pytest.fixture
def mails_may_be_sent(system: System) -> Callable[[], None]:
    """Lets all mails of before be asked for longer ago: every client here has the same network."""

    def past() -> None:
        system.databases.run("auth", "UPDATE proofs SET created_at = created_at - interval '2 hours'")

    return past


@pytest.fixture
def client(system: System, mails_may_be_sent: Callable[[], None]) -> Iterator[Client]:
    mails_may_be_sent()
    yield Client(system)
    system.databases.run("auth", "DELETE FROM sign_in_failures")


def registered(client: Client, email: str | None = None) -> str:
    """A new user, signed in; their address."""
    email = email or new_address()
    assert client.send("POST", "/api/auth/register", {"email": email, "name": "Ann"}, status=202).json() == {}
    proof = {"token": token_to(client.system, email, "register"), "password": PASSWORD}
    client.keep(client.send("POST", "/api/auth/verify-email", proof, status=201))
    return email


def code(answer: requests.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_people_register_sign_in_order_and_take_their_data_away(system: System, client: Client) -> None:
    email = registered(client)
    user_id = client.tokens["user"]["id"]
    assert client.tokens["user"] == {"id": user_id, "email": email, "name": "Ann", "roles": ["customer"]}
    assert client.login(email, device_token=client.tokens["device_token"]).json()["user"]["id"] == user_id
    assert client.send("GET", "/api/auth/me", status=200).json()["email"] == email
    assert client.send("PATCH", "/api/auth/me", {"name": "Anna"}, status=200).json()["name"] == "Anna"
    assert code(client.send("PATCH", "/api/auth/me", {})) == (422, "validation_failed")

    flow = system.flow()
    flow.stock("own", 10)
    flow._tokens = {**flow._tokens, email: Token(client.tokens["access_token"], math.inf)}
    order = {"currency": "EUR", "items": [{"sku": "own", "quantity": 1, "unit_price": 1000}]}
    orders = []
    for _ in range(3):
        posted = flow.send("POST", "/api/orders", order, email, Idempotency_Key=str(uuid.uuid4()))
        assert posted.status_code == 201, posted.text
        orders.append(posted.json()["order_id"])
    system.wait_quiet()
    answer = client.send("GET", "/api/auth/me/export", status=200)
    exported = answer.json()
    assert exported["account"]["name"] == "Anna"
    assert {one["order_id"] for one in exported["orders"]} == set(orders)
    assert {one["payment"]["status"] for one in exported["orders"]} == {"COMPLETED"}
    assert len(exported["sessions"]) == 2
    assert [event["event"] for event in exported["events"]] == [
        "registered",
        "signed_in",
        "signed_in",
        "profile_changed",
    ]
    assert {event["network"] for event in exported["events"]} == {"127.0.0.1"}
    for secret in ("argon2", "ert_", "password_hash"):
        assert secret not in answer.text


def test_a_forgotten_password_is_set_anew_by_mail_and_a_known_one_is_changed(client: Client) -> None:
    email = registered(client)
    device = client.tokens["device_token"]
    client.send("POST", "/api/auth/password/reset", {"email": email.upper()}, status=202)
    confirmation = {"token": token_to(client.system, email, "reset"), "password": OTHER_PASSWORD}
    refused = client.send("POST", "/api/auth/password/reset/confirm", {**confirmation, "password": "short"})
    assert code(refused) == (422, "password_refused")
    client.keep(client.send("POST", "/api/auth/password/reset/confirm", confirmation, status=200))
    assert client.tokens["device_token"] != device
    assert code(client.send("POST", "/api/auth/password/reset/confirm", confirmation)) == (422, "token_invalid")
    assert code(client.login(email)) == (401, "unauthenticated")
    change = {"current_password": "a wrong password", "new_password": PASSWORD}
    assert code(client.send("POST", "/api/auth/password", change)) == (403, "wrong_password")
    change["current_password"] = OTHER_PASSWORD
    client.keep(client.send("POST", "/api/auth/password", change, status=200))
    assert client.send("GET", "/api/auth/me").status_code == 200
    assert client.login(email).status_code == 200


def test_an_address_changes_once_it_is_proven(client: Client) -> None:
    email, new = registered(client), new_address()
    client.send("POST", "/api/auth/me/email", {"email": new, "password": PASSWORD}, status=202)
    assert client.send("GET", "/api/auth/me").json()["email"] == email
    proof = {"token": token_to(client.system, new, "change_email"), "password": PASSWORD}
    assert client.send("POST", "/api/auth/verify-email", proof, status=201).json()["user"]["email"] == new
    assert client.login(email).status_code == 401
    assert client.login(new).status_code == 200


def test_an_ended_account_comes_back_by_its_mail(client: Client) -> None:
    email = registered(client)
    assert client.send("POST", "/api/auth/me/erase", {"password": None}, status=202).json()["erase_after"]
    client.tokens = {}
    assert client.login(email).status_code == 401
    keeping = {"token": token_to(client.system, email, "keep")}
    client.send("POST", "/api/auth/keep", keeping, status=204)
    assert client.login(email).status_code == 200
    assert code(client.send("POST", "/api/auth/keep", keeping)) == (422, "token_invalid")


def test_a_thousand_guesses_from_fifty_addresses_lock_nobody_out(system: System, client: Client) -> None:
    """The user's known device signs in meanwhile; from a new one the reset mail does."""
    email = registered(client)
    device = client.tokens["device_token"]
    seen: list[int] = []
    devices: list[int] = []
    over = threading.Event()

    def guess(address: int) -> None:
        guesser = Client(system, f"127.0.1.{address + 1}")
        seen.extend(guesser.login(email, f"a wrong password {number}").status_code for number in range(20))

    def sign_in_again() -> None:
        own = Client(system, "127.0.2.1")
        while not over.is_set() or not devices:
            devices.append(own.login(email, device_token=device).status_code)

    own_device = threading.Thread(target=sign_in_again)
    own_device.start()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(guess, range(50)))
    over.set()
    own_device.join()
    assert len(seen) == 1000
    assert set(seen) == {401, 429}
    assert seen.count(401) < 60, "ten, and those that were under way when the pause began"
    assert set(devices) == {200}
    elsewhere = Client(system, "127.0.2.2")
    paused = elsewhere.login(email)
    assert code(paused) == (429, "sign_in_paused")
    assert 0 < int(paused.headers["Retry-After"]) <= 60
    assert paused.json()["error"]["details"] == {"retry_after": int(paused.headers["Retry-After"])}
    elsewhere.send("POST", "/api/auth/password/reset", {"email": email}, status=202)
    confirmation = {"token": token_to(system, email, "reset"), "password": OTHER_PASSWORD}
    answer = elsewhere.send("POST", "/api/auth/password/reset/confirm", confirmation, status=200).json()
    assert elsewhere.login(email, OTHER_PASSWORD, answer["device_token"]).status_code == 200
    assert elsewhere.login(email, OTHER_PASSWORD).status_code == 429


# The samples of each kind in a normal run. With --long there are 200.
SAMPLES = 40
# How many standard errors the medians may differ by. Of two equal distributions they differ by more once in 16,000.
ERRORS = 4
# Differences below are lost in any network.
FLOOR_S = 0.0005


def differs(first: list[float], second: list[float]) -> str:
    """What the medians of two lists of times say, if they differ by more than chance; else nothing.

    The standard error of a median is 1.2533 times that of a mean, and the median absolute deviation times 1.4826
    estimates the deviation without being moved by the few that had to wait.
    """

    def error(times: list[float]) -> float:
        middle = statistics.median(times)
        deviation = 1.4826 * statistics.median(abs(one - middle) for one in times)
        return float(1.2533 * deviation / len(times) ** 0.5)

    difference = abs(statistics.median(first) - statistics.median(second))
    allowed = max(ERRORS * (error(first) ** 2 + error(second) ** 2) ** 0.5, FLOOR_S)
    return f"medians differ by {difference * 1e3:.2f} ms, {allowed * 1e3:.2f} allowed" if difference > allowed else ""


def test_a_difference_of_medians_is_seen_and_chance_is_not() -> None:
    times = [0.03 + 0.001 * (number % 7) for number in range(SAMPLES)]
    assert not differs(times, times[::-1])
    assert differs(times, [one + 0.006 for one in times])


@pytest.mark.parametrize("asks", ["register", "password/reset", "login"])
def test_neither_time_nor_body_tell_whether_an_account_exists(
    system: System, client: Client, mails_may_be_sent: Callable[[], None], asks: str, long: bool
) -> None:
    known = registered(client)
    client.tokens = {}
    times: dict[bool, list[float]] = {True: [], False: []}
    bodies = set()
    for number in range(200 if long else SAMPLES):
        mails_may_be_sent()
        system.databases.run("auth", "DELETE FROM sign_in_failures")
        for exists in (True, False) if number % 2 else (False, True):  # whatever changes with time hits both alike
            email = known if exists else new_address()
            body = {"login": email, "password": "a wrong password"} if asks == "login" else {"email": email}
            began = time.perf_counter()
            answer = client.send("POST", f"/api/auth/{asks}", body)
            times[exists].append(time.perf_counter() - began)
            said = answer.json()
            said.get("error", {}).pop("traceId", None)
            bodies.add((answer.status_code, str(said)))
    assert len(bodies) == 1, bodies
    assert not (why := differs(times[True], times[False])), why
