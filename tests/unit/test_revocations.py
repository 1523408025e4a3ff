"""What gateways refuse although its signature is right, and how they hear of it."""

import time
from types import SimpleNamespace

import eventlet
import pytest
from nameko.exceptions import MethodNotFound

from shared import revocations
from shared.edge import revocation_feed
from shared.edge.revocation_feed import HINT, RevocationFeed
from shared.errors import CannotWork, ServiceUnavailable
from shared.revocations import KEPT_S, Revocations


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def of_user(user_id, version):
    return {"user_id": user_id, "version": version, "session_id": None}


def of_session(session_id):
    return {"user_id": None, "version": None, "session_id": session_id}


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def known(clock):
    return Revocations(clock, most=3)


def test_tokens_older_than_the_known_version_are_revoked(known):
    known.take([of_user("ann", 3)])
    assert [known.is_revoked("ann", version, None) for version in (1, 2, 3, 4)] == [True, True, False, False]
    assert not known.is_revoked("bob", 1, None)


def test_an_older_version_that_comes_late_changes_nothing(known):
    known.take([of_user("ann", 3)])
    known.take([of_user("ann", 2)])
    assert known.is_revoked("ann", 2, None)


def test_a_token_without_a_version_lives_on(known):
    known.take([of_user("ann", 3)])
    assert not known.is_revoked("ann", None, None)


def test_tokens_of_a_session_that_ended_are_revoked_whatever_their_version(known):
    known.take([of_session("s-1")])
    assert known.is_revoked("ann", 9, "s-1")
    assert known.is_revoked("ann", None, "s-1")
    assert not known.is_revoked("ann", 9, "s-2")


def test_what_no_token_can_need_any_more_is_forgotten(known, clock):
    known.take([of_user("ann", 3), of_session("s-1")])
    clock.now += KEPT_S
    known.take([])
    assert known.is_revoked("ann", 2, "s-1")
    clock.now += 1
    known.take([])
    assert len(known) == 0
    assert not known.is_revoked("ann", 2, "s-1")


def test_the_same_revocation_again_does_not_live_longer(known, clock):
    known.take([of_user("ann", 3), of_session("s-1")])
    clock.now += KEPT_S
    known.take([of_user("ann", 3), of_session("s-1")])
    clock.now += 1
    known.take([])
    assert len(known) == 0


def test_too_many_push_out_the_oldest_and_it_is_logged(known, caplog):
    known.take([of_user(name, 2) for name in "abcd"] + [of_session(name) for name in "abcd"])
    assert len(known) == 6
    assert [known.is_revoked(name, 1, None) for name in "abcd"] == [False, True, True, True]
    assert [known.is_revoked("x", 1, name) for name in "abcd"] == [False, True, True, True]
    assert "the oldest is forgotten" in caplog.text


class Auth:
    """A fake of auth_service: `pages` by position."""

    def __init__(self):
        self.pages = {None: self.page()}
        self.asked = []
        self.error = None

    @staticmethod
    def page(*items, following=None, since="since"):
        return {"items": list(items), "next": following, "since": since}

    def call(self, method, args, kwargs, context, timeout_s):
        eventlet.sleep(0)
        assert method == "auth_service.revocations"
        assert context == {"user_id": "system:gateway", "roles": ["system"]}
        assert timeout_s < 2, "a lost answer must not cost more than the promise"
        self.asked.append(args[0])
        if self.error:
            raise self.error
        return self.pages.get(args[0]) or self.page()


@pytest.fixture
def auth():
    return Auth()


@pytest.fixture
def feed(auth):
    made = RevocationFeed()
    made.container = SimpleNamespace(service_name="gateway")
    made.replies = auth
    made.hints = SimpleNamespace(callbacks=[])
    made.setup()
    return made


@pytest.fixture
def running(feed):
    thread = eventlet.spawn(feed._run)
    with eventlet.Timeout(10):
        yield feed
        feed.stop()
        thread.wait()


def until(condition):
    with eventlet.Timeout(5):
        while not condition():
            eventlet.sleep(0.005)


def test_it_reads_every_page_and_goes_on_from_the_beginning_of_the_first(feed, auth):
    auth.pages[None] = auth.page(of_user("ann", 2), following="p2", since="from here")
    auth.pages["p2"] = auth.page(of_session("s-1"), following="p3", since="too late")
    auth.pages["p3"] = auth.page(of_user("bob", 2), since="far too late")
    assert feed.ask()
    assert [feed.is_revoked("ann", 1, None), feed.is_revoked("bob", 1, None), feed.is_revoked("x", 1, "s-1")] == [
        True
    ] * 3
    feed.ask()
    assert auth.asked == [None, "p2", "p3", "from here"]


@pytest.mark.parametrize("error", [ServiceUnavailable(), CannotWork("no database"), RuntimeError("a fault of theirs")])
def test_what_is_known_counts_on_while_nobody_answers(feed, auth, error):
    auth.pages[None] = auth.page(of_user("ann", 2))
    feed.ask()
    auth.error = error
    before = feed._heard_at
    assert not feed.ask()
    assert feed.is_revoked("ann", 1, None)
    assert feed._heard_at == before, "the metric must grow"
    auth.error = None
    assert feed.ask()
    assert auth.asked[-1] == "since"


def test_an_auth_service_of_the_version_before_is_waited_for_and_is_no_fault(feed, auth, caplog):
    auth.error = MethodNotFound("revocations")
    assert not feed.ask()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "nobody says what is revoked: revocations" in caplog.text


def test_pages_that_break_off_are_read_again_from_the_beginning(feed, auth):
    auth.pages[None] = auth.page(of_user("ann", 2), following="p2")
    auth.pages["p2"] = None

    def fails(method, args, *rest):
        if args[0] == "p2":
            raise ServiceUnavailable
        return Auth.call(auth, method, args, *rest)

    feed.replies = SimpleNamespace(call=fails)
    assert not feed.ask()
    assert not feed.loaded
    assert feed.is_revoked("ann", 1, None), "what was read counts at once"
    feed.replies = auth
    feed.ask()
    assert auth.asked[-2:] == [None, "p2"]


def test_a_hint_makes_it_ask_at_once(running, auth, monkeypatch):
    monkeypatch.setattr(revocation_feed, "ASK_EVERY_S", 60.0)
    until(lambda: running.loaded)
    eventlet.sleep(0.15)  # the pause after a question is over
    auth.pages["since"] = auth.page(of_user("ann", 2))
    for callback in running.hints.callbacks:
        callback(["something else"])
    eventlet.sleep(0.05)
    assert not running.is_revoked("ann", 1, None)
    for callback in running.hints.callbacks:
        callback(["something else", HINT])
    until(lambda: running.is_revoked("ann", 1, None))


def test_without_hints_it_asks_again_and_again(running, auth, monkeypatch):
    until(lambda: running.loaded)
    auth.pages["since"] = auth.page(of_user("ann", 2))
    began = time.monotonic()
    until(lambda: running.is_revoked("ann", 1, None))
    assert time.monotonic() - began < 2.0


def test_many_hints_are_answered_by_few_questions(running, auth, monkeypatch):
    monkeypatch.setattr(revocation_feed, "ASK_EVERY_S", 60.0)
    until(lambda: running.loaded)
    for _ in range(50):
        running.hints.callbacks[0]([HINT])
        eventlet.sleep(0.005)
    assert len(auth.asked) <= 6


def test_after_an_outage_it_asks_soon(running, auth):
    auth.error = ServiceUnavailable()
    until(lambda: len(auth.asked) > 1)
    auth.error = None
    auth.pages[None] = auth.page(of_user("ann", 2))
    began = time.monotonic()
    until(lambda: running.is_revoked("ann", 1, None))
    assert time.monotonic() - began < 1.0


def test_a_gateway_is_ready_when_it_knows_or_after_ten_seconds_with_a_warning(feed, auth):
    assert feed.not_ready_reason() == "what is revoked is not loaded yet"
    assert feed.warnings() == []
    feed._started_at -= 10.1
    assert feed.not_ready_reason() is None
    assert "has not said yet" in feed.warnings()[0]
    feed.ask()
    assert feed.not_ready_reason() is None
    assert feed.warnings() == []


def test_a_gateway_that_has_not_heard_for_a_minute_says_so_and_stays_ready(feed, auth):
    feed.ask()
    assert feed.age_s() < 5
    feed._heard_at -= 61
    assert feed.age_s() > 60
    assert feed.not_ready_reason() is None
    assert "has not said for 61 s" in feed.warnings()[0]


def test_it_remembers_for_longer_than_any_token_lives():
    from shared import auth

    assert revocations.KEPT_S > auth.MAX_LIFE_S + 2 * auth.SKEW_S
