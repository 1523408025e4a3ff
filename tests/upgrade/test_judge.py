"""`ecom release judge` beside a fleet that works: each kind of bad version is rolled back, and no good one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from ops.local.supervisor import Child
from ops.release.judge import Verdict, Word
from ops.release.pages import Pages
from ops.release.watch import watch
from tests.upgrade.conftest import StartFleet
from tests.upgrade.customers import Customers, Load
from tests.upgrade.fleet import Fleet
from tests.upgrade.versions import NOW, Version, planted

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

SOME = Load(orders_per_s=8)
WITHIN_S = 180

# By the name of a patch: the service that becomes bad, and the trigger that says so.
BAD = {
    "failing_posts": ("gateway", "error-rate-requests"),
    "slow_calls": ("order", "latency-calls"),
    "never_ready": ("order", "never-ready"),
    "crash_loop": ("order", "crash-loop"),
    "required_field": ("inventory", "dead-letters"),
}

# The services of which every replica gets enough requests, calls or events for a verdict. All are judged at once, and
# more than once.
GOOD = ("gateway", "order", "payment")
ROUNDS = 2


def replica(fleet: Fleet, service: str, version: Version) -> Child:
    """One more replica, of another version. A gateway gets its part of the requests as soon as it is ready."""
    child = fleet.add(service, version)
    if service == "gateway":
        fleet.serve()
    return child


def preferred(version: Version) -> Version:
    """The same version, whose consumers get messages before all others: another draw may leave them idle."""
    file = version.root / "shared" / "edge" / "subscription.py"
    code = file.read_text(encoding="utf-8")
    file.write_text(code.replace("random.randrange(PRIORITIES)", "PRIORITIES"), encoding="utf-8")
    assert file.read_text(encoding="utf-8") != code
    return version


def verdict_on(old: list[Child], new: Child, watch_s: float) -> Verdict:
    """What the judge says of a new replica beside the old ones."""
    pages = Pages([child.probe_url for child in old], [new.probe_url])
    return watch(pages.look, watch_s)


@contextmanager
def started_again(fleet: Fleet) -> Iterator[None]:
    """While the block runs, a process that dies is started again, as an orchestrator does."""
    done = threading.Event()

    def keep() -> None:
        while not done.wait(0.5):
            for child in fleet.supervisor.children:
                child.restarts.start_at = 0.0
            fleet.supervisor.run_once()

    thread = threading.Thread(target=keep)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("change", BAD)
def test_a_bad_version_is_found_within_three_minutes(start_fleet: StartFleet, tmp_path: Path, change: str) -> None:
    service, trigger = BAD[change]
    fleet, bad = start_fleet(NOW), preferred(planted(change, tmp_path / change))
    with Customers(fleet, SOME), started_again(fleet):
        old = fleet.children_of(service)
        began = time.monotonic()
        verdict = verdict_on(old, replica(fleet, service, bad), WITHIN_S)
        took_s = time.monotonic() - began
    assert verdict.word is Word.BAD, verdict
    assert trigger in verdict.reason
    assert took_s <= WITHIN_S
    print(f"{change}: {verdict.reason} after {took_s:.0f} s")


def test_no_good_version_is_rolled_back(start_fleet: StartFleet) -> None:
    fleet = start_fleet(NOW)
    said = []
    with Customers(fleet, SOME) as customers:
        for _ in range(ROUNDS):
            old = {service: fleet.children_of(service) for service in GOOD}
            new = {service: fleet.add(service, NOW) for service in GOOD}
            fleet.serve()
            with ThreadPoolExecutor(len(GOOD)) as pool:
                said += pool.map(lambda name: verdict_on(old[name], new[name], WITHIN_S), GOOD)  # noqa: B023
            for child in new.values():
                fleet.remove(child)
    assert [verdict.word for verdict in said] == [Word.GOOD] * len(GOOD) * ROUNDS, said
    customers.check_posts()
    fleet.check()
