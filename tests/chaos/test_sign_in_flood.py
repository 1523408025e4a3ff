"""Strangers guess passwords as fast as they can: those who are signed in notice nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from statistics import quantiles
from urllib.parse import urlsplit

import pytest
import requests

from tests.chaos.test_flood import Repeated
from tests.e2e.signed_in import add_user, signed_in
from tests.e2e.system import ROOT, System

pytestmark = pytest.mark.timeout(300)

RATE, ADDRESSES = 200, 50
LASTS_S, LASTS_LONG_S = 5.0, 60.0
POST_P95_S = 0.3
SIGN_IN_ANSWERS = {"401", "429", "503"}


def test_a_flood_of_sign_ins_holds_up_neither_orders_nor_refreshes_nor_tokens(system: System, long: bool) -> None:
    user = f"flooded-{time.monotonic_ns()}"
    add_user(system, user, "customer")
    client = signed_in(system, user)
    shop = system.flow()
    shop.stock("in-a-flood", 100_000)
    refresh_token = [client.refresh_token]

    def post() -> None:
        items = [{"sku": "in-a-flood", "quantity": 1, "unit_price": 1000}]
        body = {"currency": "EUR", "payment_method": "mock_ok", "items": items}
        headers = {**client.headers, "Idempotency-Key": f"flood-{time.monotonic_ns()}"}
        url = f"{system.url('gateway')}/api/orders"
        answer = requests.post(url, json=body, headers=headers, timeout=15)
        answer.raise_for_status()

    def refresh() -> None:
        url = f"{system.url('gateway', 1)}/api/auth/refresh-token"
        answer = requests.post(url, json={"refresh_token": refresh_token[0]}, timeout=15)
        answer.raise_for_status()
        refresh_token[0] = answer.json()["refresh_token"]

    def verify() -> None:
        requests.get(f"{system.url('gateway', 1)}/api/auth/me", headers=client.headers, timeout=15).raise_for_status()

    gateways = [(urlsplit(url).hostname, urlsplit(url).port) for url in (system.url("gateway", n) for n in (0, 1))]
    work = {"gateways": gateways, "rate": RATE, "addresses": ADDRESSES}
    command = [sys.executable, "-m", "tests.chaos.sign_in_flood", json.dumps(work)]
    flood = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert flood.stdout is not None
    assert flood.stdout.readline() == "begun\n"
    with Repeated(post) as posts, Repeated(refresh) as refreshes, Repeated(verify) as verified:
        time.sleep(LASTS_LONG_S if long else LASTS_S)
    said = json.loads(flood.communicate(timeout=60)[0])
    p95_s = quantiles(posts.took, n=20)[-1]
    print(f"\n{said}; {len(posts.took)} posts of orders, p95 {p95_s * 1000:.0f} ms; {len(refreshes.took)} refreshes")
    system.databases.run("auth", "DELETE FROM sign_in_failures")

    assert not posts.wrong + refreshes.wrong + verified.wrong
    assert min(map(len, (posts.took, refreshes.took, verified.took))) >= 5
    assert said["outcomes"].keys() <= SIGN_IN_ANSWERS
    assert sum(said["outcomes"].values()) == said["began"]
    assert said["outcomes"]["429"] > 0
    if long:  # the flood lasts long enough for a percentile
        assert p95_s < POST_P95_S
