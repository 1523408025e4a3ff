"""The circuit breaker: whose fault a timeout is, and how long the provider then gets no calls."""

from uuid import UUID, uuid4

import eventlet
import pytest
from eventlet.event import Event
from prometheus_client import REGISTRY

from payment_service.breaker import CUSTOMERS_TO_OPEN, NEUTRAL_KEY, Breaker, Guarded
from payment_service.domain import Answer
from payment_service.provider import Charge, Provider
from shared.errors import CannotWork, ProviderAway, ProviderTimeout

OPEN_S = 30.0
YES = Answer(True, reference="ref")
SILENT = uuid4()  # a key that always times out, whatever the provider does for other keys


def charge(key: UUID | None = None, customer: str = "ann") -> Charge:
    return Charge(key or uuid4(), uuid4(), 100, "EUR", "mock_ok", customer)


class Clock:
    """A clock that a test sets forward."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class FakeProvider(Provider):
    """Answers unless it is down or faulty, or the key is SILENT. Records every key it is asked about."""

    def __init__(self) -> None:
        self.down = False
        self.fault: Exception | None = None
        self.asked: list[UUID] = []
        self.hold: Event | None = None  # the neutral question waits for this event

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


def fail(guarded: Guarded, customers: int) -> None:
    """One call for each of so many customers times out."""
    for number in range(customers):
        with pytest.raises(ProviderTimeout):
            guarded.charge(charge(SILENT, f"customer {number}"))


def outage(guarded: Guarded, provider: FakeProvider) -> None:
    """Take the provider down and let the breaker notice it."""
    provider.down = True
    with pytest.raises(ProviderAway):
        guarded.charge(charge())
    provider.asked.clear()


HOW = pytest.mark.parametrize("how", ["charge", "refund", "find"])


@HOW
def test_an_answered_call_needs_no_neutral_question(guarded: Guarded, provider: FakeProvider, how: str) -> None:
    key = uuid4()

    assert ask(guarded, how, key) == YES
    assert provider.asked == [key]
    assert circuit_open() == 0


@HOW
def test_a_timeout_belongs_to_its_call_if_the_neutral_question_is_answered(
    guarded: Guarded, provider: FakeProvider, how: str
) -> None:
    with pytest.raises(ProviderTimeout):
        ask(guarded, how, SILENT)

    assert provider.asked == [SILENT, NEUTRAL_KEY]
    assert guarded.charge(charge()) == YES


@HOW
def test_the_circuit_opens_at_once_if_the_neutral_question_times_out(
    guarded: Guarded, provider: FakeProvider, how: str
) -> None:
    provider.down = True
    with pytest.raises(ProviderAway):
        ask(guarded, how, uuid4())

    assert provider.asked[1:] == [NEUTRAL_KEY]
    assert circuit_open() == 1


@HOW
def test_an_open_circuit_makes_no_calls(guarded: Guarded, provider: FakeProvider, clock: Clock, how: str) -> None:
    outage(guarded, provider)
    clock.now += OPEN_S - 0.1

    with pytest.raises(ProviderAway):
        ask(guarded, how, uuid4())
    assert provider.asked == []


def test_provider_away_is_not_a_fault_of_the_message() -> None:
    assert issubclass(ProviderAway, CannotWork)
    assert not issubclass(ProviderAway, ProviderTimeout)
    assert ProviderAway.code == "provider_away"


def test_timeouts_of_several_customers_in_a_row_open_the_circuit_even_if_the_neutral_question_is_answered(
    guarded: Guarded, provider: FakeProvider
) -> None:
    fail(guarded, CUSTOMERS_TO_OPEN - 1)
    assert circuit_open() == 0
    with pytest.raises(ProviderTimeout):  # still: the neutral question was answered
        guarded.charge(charge(SILENT, "one more"))

    assert circuit_open() == 1
    with pytest.raises(ProviderAway):
        guarded.charge(charge())


@HOW
def test_the_timeouts_of_one_customer_never_open_the_circuit(guarded: Guarded, how: str) -> None:
    for _ in range(3 * CUSTOMERS_TO_OPEN):
        with pytest.raises(ProviderTimeout):
            ask(guarded, how, SILENT)

    assert circuit_open() == 0


def test_an_answer_between_timeouts_resets_the_count(guarded: Guarded) -> None:
    fail(guarded, CUSTOMERS_TO_OPEN - 1)
    guarded.charge(charge())
    fail(guarded, CUSTOMERS_TO_OPEN - 1)

    assert circuit_open() == 0


def test_timeouts_do_not_count_while_parallel_calls_are_answered(guarded: Guarded, provider: FakeProvider) -> None:
    """In a batch, timeouts finish last and so look consecutive."""

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


def test_an_answered_trial_closes_the_circuit_and_the_call_is_made(
    guarded: Guarded, provider: FakeProvider, clock: Clock
) -> None:
    outage(guarded, provider)
    provider.down = False
    clock.now += OPEN_S
    key = uuid4()

    assert guarded.charge(charge(key)) == YES
    assert provider.asked == [NEUTRAL_KEY, key]
    assert circuit_open() == 0


def test_a_closed_circuit_counts_timeouts_from_zero(guarded: Guarded, provider: FakeProvider, clock: Clock) -> None:
    fail(guarded, CUSTOMERS_TO_OPEN)
    clock.now += OPEN_S
    fail(guarded, CUSTOMERS_TO_OPEN - 1)

    assert circuit_open() == 0


def test_a_failed_trial_blocks_calls_for_another_full_period(
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


@pytest.mark.parametrize("answered", [True, False])
def test_one_caller_makes_the_trial_and_parallel_callers_wait_for_its_result(
    guarded: Guarded, provider: FakeProvider, clock: Clock, answered: bool
) -> None:
    outage(guarded, provider)
    clock.now += OPEN_S
    provider.down, provider.hold = False, Event()
    callers = [eventlet.spawn(guarded.charge, charge()) for _ in range(20)]
    eventlet.sleep(0)
    assert provider.asked == [NEUTRAL_KEY]
    assert circuit_open() == 1

    if answered:
        provider.hold.send()
        assert [caller.wait() for caller in callers] == [YES] * 20
        assert provider.asked.count(NEUTRAL_KEY) == 1
    else:
        provider.hold.send_exception(ProviderTimeout())
        for caller in callers:
            with pytest.raises(ProviderAway):
                caller.wait()
        assert provider.asked == [NEUTRAL_KEY]


def test_the_breaker_lets_calls_run_in_parallel(guarded: Guarded, provider: FakeProvider) -> None:
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


def test_an_error_that_is_not_a_timeout_passes_through_and_is_not_counted(
    guarded: Guarded, provider: FakeProvider, clock: Clock
) -> None:
    provider.fault = ValueError("a bug")
    for _ in range(CUSTOMERS_TO_OPEN):
        with pytest.raises(ValueError, match="a bug"):
            guarded.charge(charge())
    assert circuit_open() == 0


def test_an_error_in_the_trial_leaves_the_trial_to_the_next_caller(
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


def test_a_late_timeout_does_not_keep_the_circuit_open_longer(
    guarded: Guarded, provider: FakeProvider, clock: Clock
) -> None:
    breaker = guarded.breaker
    breaker.open("a test")
    clock.now += OPEN_S - 1
    for number in range(CUSTOMERS_TO_OPEN):
        breaker.failed(breaker.answers, f"customer {number}")
    clock.now += 1

    assert breaker.trial_is_due
