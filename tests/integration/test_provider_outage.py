"""An outage of the provider counts against no message, and every payment completes afterwards."""

from collections.abc import Callable
from pathlib import Path
from uuid import UUID, uuid4

import eventlet
import pytest

from payment_service.domain import Answer, payment_id_of
from payment_service.provider import Charge, Provider
from payment_service.service import UNKNOWN_AFTER_S
from shared.envelope import Envelope
from shared.errors import ProviderAway, ProviderTimeout
from shared.events import OrderCancelled, RefundRequested
from tests.databases import Databases
from tests.integration.support import Bench, Mail, deliveries, emitted, reserved_event, throughout, until

CHARGES = "q.payment.inventory-reserved"
REFUNDS = "q.payment.refund-requested"
VOIDS = "q.payment.order-cancelled"

pytestmark = pytest.mark.usefixtures("restless")

# Long enough for several trials, which the breaker of the tests makes every 0.2 s.
OUTAGE_S = 0.8

Benches = Callable[..., Bench]


@pytest.fixture
def outage(tmp_path: Path) -> Path:
    """A file that does not exist yet. The provider of `payment` is down while it exists."""
    return tmp_path / "provider-is-down"


@pytest.fixture
def payment(bench: Benches, outage: Path) -> Bench:
    """A payment service whose provider is down while the file `outage` exists."""
    payment = bench("payment")
    payment.service.provider = payment.provider(f"down_while:{outage}")
    return payment


def refund_of(event: Envelope) -> Envelope:
    order_id = event.payload.order_id
    return emitted(RefundRequested(order_id, payment_id_of(order_id), uuid4(), 100, "EUR", "order_cancelled"))


def statuses(database: Databases, table: str = "payments") -> list[str]:
    return [str(row["status"]) for row in database.rows("payment", f"SELECT status FROM {table}")]


def make_old(database: Databases, table: str = "payments") -> None:
    """Change rows as if their answers had been unknown for longer than any call takes."""
    age = UNKNOWN_AFTER_S + 30
    database.run("payment", f"UPDATE {table} SET updated_at = now() - make_interval(secs => {age})")


@pytest.mark.parametrize("queue", [CHARGES, REFUNDS])
@pytest.mark.parametrize("count", [1, 50], ids=["alone", "in a full batch"])
def test_messages_wait_during_an_outage_and_no_retry_is_counted(
    queue: str, count: int, payment: Bench, outage: Path, database: Databases, mail: Mail
) -> None:
    events = [reserved_event() for _ in range(count)]
    if queue == REFUNDS:
        payment.handle_batch(CHARGES, events)
        events = [refund_of(event) for event in events]
    outage.touch()
    batch = payment.batch(queue)
    handling = eventlet.spawn(batch.handle_batch, deliveries(events))

    until(lambda: batch.pausing.not_ready_reason == f"{queue} is paused: ProviderAway")
    throughout(lambda: not handling.dead and batch.pausing.not_ready_reason is not None, for_s=OUTAGE_S)
    outage.unlink()
    handling.wait()

    table, done = ("payments", "COMPLETED") if queue == CHARGES else ("refunds", "COMPLETED")
    assert statuses(database, table) == [done] * count
    assert batch.pausing.not_ready_reason is None
    assert mail.all(f"{queue}.retry") == mail.all(f"{queue}.dlq") == []
    assert database.rows("payment", "SELECT 1 FROM dead_messages") == []


def test_a_timeout_of_a_single_message_counts_as_a_retry(payment: Bench, database: Databases, mail: Mail) -> None:
    payment.handle_batch(CHARGES, [reserved_event(method="mock_timeout"), reserved_event()])

    assert sorted(statuses(database)) == ["COMPLETED", "PENDING"]
    assert len(mail.all(f"{CHARGES}.retry")) == 1


class FixedAnswers(Provider):
    """A provider that gives a fixed answer for each key."""

    def __init__(self, answers: dict[UUID, Answer | Exception | None]) -> None:
        self.answers = answers

    def find(self, key: UUID) -> Answer | None:
        answer = self.answers[key]
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_recover_unknown_saves_every_answer_before_it_raises_provider_away(
    payment: Bench, outage: Path, database: Databases, mail: Mail
) -> None:
    paid = [reserved_event() for _ in range(2)]
    payment.handle_batch(CHARGES, paid)
    refunds = [refund_of(event) for event in paid]
    payment.service.provider = payment.provider("timeout")
    events = [reserved_event() for _ in range(4)]
    payment.handle_batch(CHARGES, events)
    payment.handle_batch(REFUNDS, refunds)
    make_old(database)
    make_old(database, "refunds")
    away, silent, heard, unheard = (payment_id_of(event.payload.order_id) for event in events)
    payment.service.provider = FixedAnswers(
        {
            away: ProviderAway(),
            silent: ProviderTimeout(),
            heard: Answer(True, reference="ref"),
            unheard: None,
            refunds[0].payload.refund_id: ProviderAway(),
            refunds[1].payload.refund_id: Answer(True, reference="ref"),
        }
    )

    with pytest.raises(ProviderAway):
        payment.service.recover_unknown()

    of = {row["payment_id"]: row["status"] for row in database.rows("payment", "SELECT * FROM payments")}
    assert [of[key] for key in (away, silent, heard, unheard)] == ["PENDING", "PENDING", "COMPLETED", "PENDING"]
    assert sorted(statuses(database, "refunds")) == ["COMPLETED", "PENDING"]
    emitted = database.rows("payment", "SELECT event_type FROM outbox ORDER BY id DESC LIMIT 2")
    assert {row["event_type"] for row in emitted} == {"payment.succeeded", "payment.refunded"}


def test_recover_unknown_ignores_a_timeout_of_one_key_and_raises_other_errors(
    payment: Bench, database: Databases, mail: Mail
) -> None:
    payment.service.provider = payment.provider("timeout")
    event = reserved_event()
    payment.handle_batch(CHARGES, [event])
    make_old(database)
    key = payment_id_of(event.payload.order_id)

    payment.service.provider = FixedAnswers({key: ProviderTimeout()})
    payment.service.recover_unknown()
    payment.service.provider = FixedAnswers({key: ValueError("a bug")})
    with pytest.raises(ValueError, match="a bug"):
        payment.service.recover_unknown()


def test_a_charge_made_while_recover_unknown_finds_none_is_not_lost(
    payment: Bench, outage: Path, database: Databases, mail: Mail
) -> None:
    """After an outage the paused message of a cancelled order and `recover_unknown` ask at the same moment."""
    event = reserved_event()
    outage.touch()
    batch = payment.batch(CHARGES)
    handling = eventlet.spawn(batch.handle_batch, deliveries([event]))
    until(lambda: batch.pausing.not_ready_reason)
    handling.kill()  # the message returns to the queue
    payment.handle_batch(VOIDS, [emitted(OrderCancelled(event.payload.order_id, "deadline"))])
    make_old(database)
    outage.unlink()

    class Late(Provider):
        """Answers that the key is unknown, although a charge was made meanwhile."""

        def find(self, key: UUID) -> Answer | None:
            payment.service.provider = guarded
            answers.update(payment.service.ask_for_charges([event]))
            return None

    guarded, answers = payment.provider("succeed"), {}
    payment.service.provider = Late()
    payment.service.recover_unknown()

    assert answers[event.message_id].done
    payment.handle_batch(CHARGES, [event], ask=lambda batch: answers)
    assert statuses(database) == ["COMPLETED"]
    (last,) = database.rows("payment", "SELECT event_type FROM outbox")
    assert last["event_type"] == "payment.succeeded"


def test_a_cancelled_payment_that_the_provider_does_not_know_is_void(
    payment: Bench, outage: Path, database: Databases, mail: Mail
) -> None:
    payment.service.provider = payment.provider("timeout")
    event = reserved_event()
    payment.handle_batch(CHARGES, [event])
    payment.handle_batch(VOIDS, [emitted(OrderCancelled(event.payload.order_id, "deadline"))])
    make_old(database)
    payment.service.recover_unknown()

    assert statuses(database) == ["VOID"]


def test_a_charge_made_after_its_payment_became_void_is_recovered(
    bench: Benches, database: Databases, mail: Mail, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process froze between recording the payment and the charge, for longer than any call takes."""
    monkeypatch.setattr("payment_service.service.LOOK_AGAIN_AFTER_S", 0.0)
    event = reserved_event()
    payment = bench("payment")
    provider = payment.service.provider

    class Thawed(Provider):
        def charge(self, charge: Charge) -> Answer:
            payment.service.provider = provider
            payment.handle_batch(VOIDS, [emitted(OrderCancelled(event.payload.order_id, "deadline"))])
            make_old(database)
            payment.service.recover_unknown()
            assert statuses(database) == ["VOID"]
            payment.handle_batch(CHARGES, [event])  # the message is redelivered and makes no call
            return provider.charge(charge)

    payment.service.provider = Thawed()
    payment.handle_batch(CHARGES, [event])
    assert database.rows("payment", "SELECT FROM outbox") == []
    make_old(database)
    payment.service.recover_unknown()

    assert statuses(database) == ["COMPLETED"]
    (last,) = database.rows("payment", "SELECT event_type FROM outbox")
    assert last["event_type"] == "payment.succeeded", "of which a cancelled order asks the money back"
