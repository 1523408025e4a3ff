"""What becomes of a message, by the error that handling it raised and by how often it has failed before."""

import psycopg2
import psycopg2.errors
import pytest
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolIsEmpty

from shared.errors import CannotWork, HeldUp, Poison, ProviderTimeout, UnexpectedEvent
from shared.outcomes import Outcome, outcome_of
from topology.table import RETRY_WAITS_S


class DeadlockDetected(psycopg2.OperationalError):
    pgcode = "40P01"


class LockTimeout(psycopg2.OperationalError):
    pgcode = "55P03"


class StatementTimeout(psycopg2.OperationalError):
    pgcode = "57014"


def of_the_database(error: psycopg2.Error) -> DBAPIError:
    return OperationalError("SELECT 1", {}, error)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, Outcome.DONE),
        (Poison("not JSON"), Outcome.DEAD),
        (UnexpectedEvent("not now"), Outcome.DEAD),
        (of_the_database(DeadlockDetected()), Outcome.REPEAT),
        (of_the_database(LockTimeout()), Outcome.LATER),
        (of_the_database(StatementTimeout()), Outcome.LATER),
        (HeldUp("a lock"), Outcome.LATER),
        (CannotWork("the provider is away"), Outcome.PAUSE),
        (of_the_database(psycopg2.OperationalError("server closed the connection")), Outcome.PAUSE),
        (PoolIsEmpty(), Outcome.PAUSE),
        (ProviderTimeout(), Outcome.RETRY),
        (ValueError("a defect"), Outcome.RETRY),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_each_kind_of_error_has_its_outcome(error: Exception | None, outcome: Outcome) -> None:
    assert outcome_of(error) is outcome


def test_a_message_has_its_first_try_and_one_more_after_each_wait() -> None:
    outcomes = [outcome_of(ValueError(), failures_before) for failures_before in range(len(RETRY_WAITS_S) + 1)]

    assert outcomes == [Outcome.RETRY] * len(RETRY_WAITS_S) + [Outcome.DEAD]


def test_a_lock_is_no_fault_of_the_message_however_often_it_has_failed() -> None:
    assert outcome_of(of_the_database(LockTimeout()), len(RETRY_WAITS_S)) is Outcome.LATER
