"""Whose fault it is when the provider does not answer, and how long it is then left alone."""

from uuid import UUID, uuid4

import eventlet
import pytest
from eventlet.event import Event
from prometheus_client import REGISTRY

from payment_service.breaker import FAILURES_TO_OPEN, NEUTRAL_KEY, Breaker, Guarded
from payment_service.domain import Answer
from payment_service.provider import Charge, Provider
from shared.errors import CannotWork, ProviderAway, ProviderTimeout

OPEN_S = 30.0
YES = Answer(True, reference="ref")
SILENT = uuid4()  # a key to which the provider never answers, whatever it does for others


def charge(key: UUID | None = None) -> Charge:
    return Charge(key or uuid4(), uuid4(), 100, "EUR", "mock_ok")


class Clock:
    """A clock that a test moves on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class FakeProvider(Provider):
    """Answers unless it is down or broken, or the key is SILENT; remembers every key it was asked about."""

    def __init__(self) -> None:
        self.down = False
        self.fault: Exception | None = None
        self.asked: list[UUID] = []
        self.hold: Event | None = None  # what the neutral question waits for

    def charge(self, charge: Charge) -> Answer:
        return self._answer(charge.key)

    def refund(self, refund: Charge) -> Answer:
        return self._answer(refund.key)

    def find(self, key: UUID) -> Answer | None:
        answer = self._answer(key)
        if key != NEUTRAL_KEY:
            return answer
        if self.hold:
            self.hold.wait()
        return None

    def _answer(self, key: UUID) -> Answer:
        self.asked.append(key)
        if self.fault:
            raise self.fault
        if self.down or key == SILENT:
            raise ProviderTimeout()
        return YES


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def provider() -> FakeProvider:
    return FakeProvider()


@pytest.fixture
def guarded(provider: FakeProvider, clock: Clock) -> Guarded:
    return Guarded(provider, Breaker(OPEN_S, clock), "test")


def circuit_open() -> float | None:
    return REGISTRY.get_sample_value("ecom_provider_circuit_open", {"service": "test"})


def ask(guarded: Guarded, how: str, key: UUID) -> Answer | None:
    return guarded.find(key) if how == "find" else getattr(guarded, how)(charge(key))


def fail(guarded: Guarded, times: int) -> None:
    for _ in range(times):
        with pytest.raises(ProviderTimeout):
            guarded.charge(charge(SILENT))


def outage(guarded: Guarded, provider: FakeProvider) -> None:
    """Let the guard find out that the provider is down."""
    provider.down = True
    with pytest.raises(ProviderAway):
        guarded.charge(charge())
    provider.asked.clear()


HOW = pytest.mark.parametrize("how", ["charge", "refund", "find"])


@HOW
def test_an_answer_passes_and_nothing_else_is_asked(guarded: Guarded, provider: FakeProvider, how: str) -> None:
    key = uuid4()

    assert ask(guarded, how, key) == YES
    assert provider.asked == [key]
    assert circuit_open() == 0


@HOW
def test_a_silence_about_one_key_is_its_own_while_the_neutral_question_is_answered(
    guarded: Guarded, provider: FakeProvider, how: str
) -> None:
    with pytest.raises(ProviderTimeout):
        ask(guarded, how, SILENT)

    assert provider.asked == [SILENT, NEUTRAL_KEY]
    assert guarded.charge(charge()) == YES


@HOW
def test_a_provider_that_does_not_answer_the_neutral_question_is_away_at_once(
    guarded: Guarded, provider: FakeProvider, how: str
) -> None:
    provider.down = True
    with pytest.raises(ProviderAway):
        ask(guarded, how, uuid4())

    assert provider.asked[1:] == [NEUTRAL_KEY]
    assert circuit_open() == 1


@HOW
def test_while_the_circuit_is_open_nothing_is_asked(
    guarded: Guarded, provider: FakeProvider, clock: Clock, how: str
) -> None:
    outage(guarded, provider)
    clock.now += OPEN_S - 0.1

    with pytest.raises(ProviderAway):
        ask(guarded, how, uuid4())
    assert provider.asked == []


def test_that_the_provider_is_away_is_no_fault_of_a_message() -> None:
    assert issubclass(ProviderAway, CannotWork)
    assert not issubclass(ProviderAway, ProviderTimeout)
    assert ProviderAway.code == "provider_away"


def test_failures_in_a_row_open_it_though_the_provider_answers_others(guarded: Guarded, provider: FakeProvider) -> None:
    fail(guarded, FAILURES_TO_OPEN - 1)
    assert circuit_open() == 0
    fail(guarded, 1)  # is still its own: the neutral question was answered

    assert circuit_open() == 1
    with pytest.raises(ProviderAway):
        guarded.charge(charge())


def test_an_answer_between_failures_starts_the_count_anew(guarded: Guarded) -> None:
    fail(guarded, FAILURES_TO_OPEN - 1)
    guarded.charge(charge())
    fail(guarded, FAILURES_TO_OPEN - 1)

    assert circuit_open() == 0


def test_failures_beside_calls_that_are_answered_do_not_count(guarded: Guarded, provider: FakeProvider) -> None:
    """Of a batch the silent ones always come last, and so in a row."""

    def slow(charge: Charge) -> Answer:
        if charge.key == SILENT:
            eventlet.sleep(0.01)
        return provider._answer(charge.key)

    provider.charge = slow  # type: ignore[method-assign]
    silent = [eventlet.spawn(guarded.charge, charge(SILENT)) for _ in range(20)]
    answered = [eventlet.spawn(guarded.charge, charge()) for _ in range(2)]
    assert [caller.wait() for caller in answered] == [YES] * 2
    for caller in silent:
        with pytest.raises(ProviderTimeout):
            caller.wait()

    assert circuit_open() == 0


def test_when_the_time_is_over_the_neutral_question_closes_it_and_the_call_is_made(
    guarded: Guarded, provider: FakeProvider, clock: Clock
) -> None:
    outage(guarded, provider)
    provider.down = False
    clock.now += OPEN_S
    key = uuid4()

    assert guarded.charge(charge(key)) == YES
    assert provider.asked == [NEUTRAL_KEY, key]
    assert circuit_open() == 0


def test_a_circuit_that_closed_counts_failures_from_nothing(
    guarded: Guarded, provider: FakeProvider, clock: Clock
) -> None:
    fail(guarded, FAILURES_TO_OPEN)
    clock.now += OPEN_S
    fail(guarded, FAILURES_TO_OPEN - 1)

    assert circuit_open() == 0


def test_a_trial_that_is_not_answered_costs_no_message_anything_and_opens_it_for_as_long_again(
    guarded: Guarded, provider: FakeProvider, clock: Clock
) -> None:
    outage(guarded, provider)
    clock.now += OPEN_S

    with pytest.raises(ProviderAway):
        guarded.charge(charge())
    assert provider.asked == [NEUTRAL_KEY]
    clock.now += OPEN_S - 0.1
    with pytest.raises(ProviderAway):
        guarded.charge(charge())
    assert provider.asked == [NEUTRAL_KEY]


@pytest.mark.parametrize("back", [True, False])
def test_one_caller_makes_the_trial_and_those_beside_it_wait_for_its_outcome(
    guarded: Guarded, provider: FakeProvider, clock: Clock, back: bool
) -> None:
    outage(guarded, provider)
    clock.now += OPEN_S
    provider.down, provider.hold = False, Event()
    callers = [eventlet.spawn(guarded.charge, charge()) for _ in range(20)]
    eventlet.sleep(0)
    assert provider.asked == [NEUTRAL_KEY]
    assert circuit_open() == 1

    if back:
        provider.hold.send()
        assert [caller.wait() for caller in callers] == [YES] * 20
        assert provider.asked.count(NEUTRAL_KEY) == 1
    else:
        provider.hold.send_exception(ProviderTimeout())
        for caller in callers:
            with pytest.raises(ProviderAway):
                caller.wait()
        assert provider.asked == [NEUTRAL_KEY]


def test_calls_side_by_side_are_made_side_by_side(guarded: Guarded, provider: FakeProvider) -> None:
    under_way, most = 0, 0

    def slow(charge: Charge) -> Answer:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        eventlet.sleep(0.01)
        under_way -= 1
        return YES

    provider.charge = slow  # type: ignore[method-assign]
    for caller in [eventlet.spawn(guarded.charge, charge()) for _ in range(20)]:
        caller.wait()

    assert most == 20


def test_a_fault_that_is_no_silence_passes_and_says_nothing_of_the_provider(
    guarded: Guarded, provider: FakeProvider, clock: Clock
) -> None:
    provider.fault = ValueError("a bug")
    for _ in range(FAILURES_TO_OPEN):
        with pytest.raises(ValueError, match="a bug"):
            guarded.charge(charge())
    assert circuit_open() == 0


def test_a_fault_in_the_trial_leaves_it_to_the_next_caller(
    guarded: Guarded, provider: FakeProvider, clock: Clock
) -> None:
    outage(guarded, provider)
    clock.now += OPEN_S
    provider.fault, provider.down = ValueError("a bug"), False
    with pytest.raises(ValueError, match="a bug"):
        guarded.charge(charge())
    provider.fault = None

    assert guarded.charge(charge()) == YES
    assert circuit_open() == 0


def test_a_late_failure_of_a_call_from_before_does_not_keep_it_open_longer(
    guarded: Guarded, provider: FakeProvider, clock: Clock
) -> None:
    breaker = guarded.breaker
    breaker.open("a test")
    clock.now += OPEN_S - 1
    for _ in range(FAILURES_TO_OPEN):
        breaker.failed(breaker.answers)
    clock.now += 1

    assert breaker.trial_is_due
