"""Timers run on the leader alone, one run at a time, and a failing one runs again; `@once` runs until it succeeds."""

from collections.abc import Callable, Iterator
from typing import ClassVar

import eventlet
import pytest
from nameko.containers import ServiceContainer

from shared.config import Settings
from shared.edge.database import Database
from shared.edge.once import Once, once
from shared.edge.timer import every
from shared.errors import CannotWork
from shared.relay import Relay
from tests.databases import Databases
from tests.integration.support import Mail, container_of, extension, throughout, until

Start = Callable[[type], ServiceContainer]


class Ticking:
    """A service with a timer."""

    name = "order_service"
    db = Database()
    relay = Relay()
    runs = 0
    side_by_side = 0
    most = 0

    @every(0.05)
    def tick(self) -> None:
        Ticking.runs += 1
        Ticking.side_by_side += 1
        Ticking.most = max(Ticking.most, Ticking.side_by_side)
        eventlet.sleep(0.1)
        Ticking.side_by_side -= 1
        if Ticking.runs == 2:
            raise ValueError("this once")


class Waiting:
    """A service whose timer cannot work, then can, and then cannot again."""

    name = "auth_service"
    runs = 0

    @every(0.02)
    def look(self) -> None:
        Waiting.runs += 1
        if Waiting.runs != 5:
            raise CannotWork("it is away")


class Starting:
    """A service that has something to do when it starts."""

    name = "auth_service"
    tries: ClassVar[list[int]] = []

    @once
    def prepare(self) -> None:
        Starting.tries.append(1)
        if len(Starting.tries) < 2:
            raise ValueError("not yet")


@pytest.fixture
def start(settings: Settings, database: Databases, mail: Mail) -> Iterator[Start]:
    running: list[ServiceContainer] = []

    def start_one(service: type) -> ServiceContainer:
        running.append(container_of(settings, service))
        running[-1].start()
        return running[-1]

    yield start_one
    for container in running:
        container.kill()


def test_a_timer_runs_on_the_leader_alone_again_after_a_failure_and_never_beside_itself(start: Start) -> None:
    Ticking.runs = Ticking.side_by_side = Ticking.most = 0
    replicas = [start(Ticking), start(Ticking)]
    until(lambda: Ticking.runs >= 5)

    assert Ticking.most == 1
    leader = next(container for container in replicas if extension(container, Relay).leading)
    leader.stop()
    assert Ticking.side_by_side == 0, "a stop waits for the run at work"
    before = Ticking.runs
    until(lambda: Ticking.runs > before + 1)  # the other one has taken over
    for container in replicas:
        container.stop()
    before = Ticking.runs
    throughout(lambda: Ticking.runs == before, for_s=0.3)


def test_a_timer_that_cannot_work_says_so_once_in_a_while_and_again_after_it_could(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    Waiting.runs = 0
    start(Waiting)
    until(lambda: Waiting.runs >= 9)
    assert caplog.text.count("look did not finish: it is away") == 2


def test_a_start_up_task_runs_until_it_succeeds(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.edge.once.AGAIN_S", 0.05)
    Starting.tries.clear()
    container = start(Starting)
    not_ready_reason = extension(container, Once).not_ready_reason
    until(lambda: not_ready_reason() is None)

    assert len(Starting.tries) == 2
    throughout(lambda: len(Starting.tries) == 2, for_s=0.2)
