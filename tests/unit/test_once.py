"""What a service does once at its start, it does until it has succeeded."""

import eventlet
import pytest

from shared import logs
from shared.edge import once
from shared.edge.http import Probes
from shared.errors import CannotWork
from tests.unit.serving import ask, serving


class Starter(Probes):
    name = "starter"
    faults = 0
    runs = 0

    @once.once
    def prepare(self):
        Starter.runs += 1
        if Starter.runs <= Starter.faults:
            raise RuntimeError("not yet")


class Waiter(Probes):
    name = "waiter"
    runs = 0

    @once.once
    def prepare(self):
        Waiter.runs += 1
        raise CannotWork("the database is away")


@pytest.mark.parametrize("faults", [0, 2])
def test_it_runs_until_it_has_succeeded_and_never_again(monkeypatch, faults):
    monkeypatch.setattr(once, "AGAIN_S", 0.01)
    monkeypatch.setattr(Starter, "runs", 0)
    monkeypatch.setattr(Starter, "faults", faults)
    with serving(Starter) as server:
        eventlet.sleep(0.2)
        assert Starter.runs == faults + 1
        assert ask(server, "GET", "/readyz")[0] == 200


def test_until_then_the_service_is_alive_but_not_ready_and_can_be_stopped(monkeypatch):
    monkeypatch.setattr(Starter, "runs", 0)
    monkeypatch.setattr(Starter, "faults", 10**9)
    with serving(Starter) as server, eventlet.Timeout(3):
        eventlet.sleep(0.05)
        assert ask(server, "GET", "/readyz")[2]["reasons"] == ["prepare has not succeeded yet"]
        assert ask(server, "GET", "/healthz")[0] == 200


def test_the_awaited_server_is_logged_once_and_is_no_error(monkeypatch, caplog):
    monkeypatch.setattr(once, "AGAIN_S", 0.01)
    monkeypatch.setattr(Waiter, "runs", 0)
    with serving(Waiter), eventlet.Timeout(3):
        while Waiter.runs < 5:
            eventlet.sleep(0.01)
    said = [record for record in caplog.records if logs._is_a_surprise(record)]
    assert [(record.levelname, record.getMessage()) for record in said] == [
        ("WARNING", "prepare waits: the database is away")
    ]
