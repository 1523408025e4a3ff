"""One client floods a gateway: it holds its share, and everybody else is served."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
import requests
from requests.adapters import HTTPAdapter

from ops.cli.flow import Flow
from ops.local.server import free_port
from ops.local.supervisor import Child, Supervisor
from shared.config import Settings
from tests.e2e.held import held
from tests.e2e.system import ECOM, ROOT, System

# At full size the limits are the defaults.
FULL = {"idle": 4000, "streams": 4000, "sign_ins": 240}
SMALL = {"idle": 300, "streams": 200, "sign_ins": 40}
SMALL_LIMITS = {"CONNECTIONS_PER_ADDRESS": "60", "WAITS_PER_USER": "10"}
LASTS_S, LASTS_LONG_S = 4.0, 20.0
ANSWERS_WITHIN_S = 1.0
OTHERS_WITHIN_S = 2.0


@pytest.fixture
def gateway(system: System, tmp_path: Path, long: bool) -> Iterator[Child]:
    """One more gateway, with limits."""
    port = free_port()
    child = Child("gateway", 0, port, tmp_path / "gateway.log", probe_port=free_port([port]))
    ports = {"GATEWAY_PORT": str(child.port), "GATEWAY_PROBE_PORT": str(child.probe_port)}
    limits = {} if long else SMALL_LIMITS
    supervisor = Supervisor(
        [child], lambda child: [ECOM, "run", "gateway"], {**os.environ, **limits, **ports}, ROOT, say=print
    )
    supervisor.start()
    try:
        supervisor.wait_ready()
        yield child
    finally:
        supervisor.stop()


class Repeated:
    """Does something again and again in a thread, on a new connection each time, and notes how long it takes."""

    def __init__(self, do: Any) -> None:
        self.do = do
        self.took: list[float] = []
        self.wrong: list[str] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Repeated:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(0.1):
            began = time.monotonic()
            try:
                self.do()
            except requests.RequestException as error:
                self.wrong.append(str(error))
            self.took.append(time.monotonic() - began)


class FromAnotherAddress(HTTPAdapter):
    """Of this machine: the address of the flood has no more than its share."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs, source_address=("127.0.0.2", 0))


def session() -> requests.Session:
    """A client with a connection and an address of its own."""
    client = requests.Session()
    client.mount("http://", FromAnotherAddress())
    return client


def check_health(url: str) -> None:
    with session() as client:
        client.get(f"{url}/healthz", timeout=10).raise_for_status()


def test_a_flood_of_one_client_keeps_neither_probes_nor_others_out(system: System, gateway: Child, long: bool) -> None:
    flooding = Flow(gateway.url)
    flooding.stock("flooded", 100_000)
    system.become("buyer", "customer")

    def post() -> None:
        buyer = Flow(gateway.url)
        buyer.http = session()
        buyer._tokens = system.flow()._tokens
        body = {
            "currency": "EUR",
            "payment_method": "mock_ok",
            "items": [{"sku": "flooded", "quantity": 1, "unit_price": 1000}],
        }
        key = f"flood-{time.monotonic_ns()}"
        buyer.send("POST", "/api/orders", body, "buyer", Idempotency_Key=key).raise_for_status()

    probes, public, posts = (
        Repeated(lambda: check_health(gateway.probe_url)),
        Repeated(lambda: check_health(gateway.url)),
        Repeated(post),
    )
    with held(system.databases, "payment"):  # so that the order does not come to rest, which would end its streams
        order_id = flooding.order("flooded")["order_id"]
        work = {
            **(FULL if long else SMALL),
            "host": urlsplit(gateway.url).hostname,
            "port": gateway.port,
            "token": flooding.token("customer"),
            "path": f"/api/orders/{order_id}/events",
        }
        command = [sys.executable, "-m", "tests.chaos.flood", json.dumps(work)]
        with probes, public, posts:
            flood = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            assert flood.stdout is not None
            assert flood.stdout.readline() == "open\n"
            time.sleep(LASTS_LONG_S if long else LASTS_S)
            outcomes = json.loads(flood.communicate(timeout=60)[0])
    system.databases.run("auth", "DELETE FROM sign_in_failures")  # whose pause would meet the next test
    used = psutil.Process(gateway.popen.pid).cpu_times() if gateway.popen else None
    print(f"\n{outcomes}\nthe gateway used {used}")
    for name, repeated in {"probe port": probes, "public port": public, "another user's POST": posts}.items():
        print(f"{name}: {len(repeated.took)} times, {max(repeated.took):.3f} s at most, {repeated.wrong[:2]}")
    assert not probes.wrong + public.wrong + posts.wrong
    assert max(probes.took) <= ANSWERS_WITHIN_S
    assert max(public.took + posts.took) <= OTHERS_WITHIN_S
    most = Settings.waits_per_user if long else int(SMALL_LIMITS["WAITS_PER_USER"])
    assert 0 < outcomes["stream 200"] <= most
    assert outcomes["stream 429"] > 0
