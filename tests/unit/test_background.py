"""Jobs outlive the call that began them; a stop asks them to end and waits; one that raises ends its service."""

import eventlet
import pytest
from nameko.containers import ServiceContainer

from shared.edge.background import Background


class Working:
    name = "working"
    background = Background()


@pytest.fixture
def container():
    container = ServiceContainer(Working, {})
    container.start()
    yield container
    container.kill()


def background_of(container):
    (found,) = container.dependencies
    return found


def test_a_stop_asks_every_job_to_end_and_waits_until_the_last_has(container):
    background, ended = background_of(container), []

    def job(name, seconds):
        while not background.stopping():
            eventlet.sleep(0.01)
        eventlet.sleep(seconds)  # what it has in hand
        ended.append(name)

    background.spawn(lambda: job("quick", 0), "quick")
    background.spawn(lambda: job("slow", 0.3), "slow")
    eventlet.sleep(0.05)
    assert not background.stopping()
    assert ended == []
    with eventlet.Timeout(5):
        container.stop()
    assert ended == ["quick", "slow"]


def test_a_job_that_has_ended_is_not_kept(container):
    background = background_of(container)
    background.spawn(lambda: None, "short")
    eventlet.sleep(0.05)
    assert background._threads == set()
    container.stop()


def test_a_job_that_raises_ends_its_service_with_what_it_raised(container):
    def job():
        raise LookupError("nobody handled this")

    background_of(container).spawn(job, "careless")
    with eventlet.Timeout(5), pytest.raises(LookupError, match="nobody handled this"):
        container.wait()


def test_a_job_that_raises_while_the_service_stops_does_not_pass_unseen(container):
    background = background_of(container)

    def job():
        while not background.stopping():
            eventlet.sleep(0.01)
        raise LookupError("on its way out")

    background.spawn(job, "careless")
    with eventlet.Timeout(5), pytest.raises(LookupError, match="on its way out"):
        container.stop()


def test_jobs_of_a_service_that_is_killed_are_asked_to_end_too(container):
    background = background_of(container)
    container.kill()
    assert background.stopping()
