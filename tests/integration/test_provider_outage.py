"""The provider answers nobody for a while: that is no message's fault, and afterwards everything has its end."""

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
from tests.integration.support import Bench, Mail, deliveries, reserved_event, throughout, told, until

CHARGES = "q.payment.inventory-reserved"
REFUNDS = "q.payment.refund-requested"
VOIDS = "q.payment.order-cancelled"

pytestmark = pytest.mark.usefixtures("restless")

# Several tries: the bench leaves a provider that is away alone for 0.2 s. A guard that does nothing shows at once.
OUTAGE_S = 0.8

Benches = Callable[..., Bench]


@pytest.fixture
def outage(tmp_path: Path) -> Path:
    """A file that does not exist yet; while it does, the provider of `weak` is down."""
    return tmp_path / "provider-is-down"


@pytest.fixture
def weak(bench: Benches, outage: Path) -> Bench:
    """A payment service whose provider can have an outage."""
    payment = bench("payment")
    payment.service.provider = payment.provider(f"down_while:{outage}")
    return payment


def refund_of(event: Envelope) -> Envelope:
    order_id = event.payload.order_id
    return told(RefundRequested(order_id, payment_id_of(order_id), uuid4(), 100, "EUR", "order_cancelled"))


def statuses(database: Databases, table: str = "payments") -> list[str]:
    return [str(row["status"]) for row in database.rows("payment", f"SELECT status FROM {table}")]


def make_old(database: Databases, table: str = "payments") -> None:
    """As if its answer had been unknown for longer than any call takes."""
    age = UNKNOWN_AFTER_S + 30
    database.run("payment", f"UPDATE {table} SET updated_at = now() - make_interval(secs => {age})")


@pytest.mark.parametrize("queue", [CHARGES, REFUNDS])
@pytest.mark.parametrize("count", [1, 50], ids=["alone", "in a full batch"])
def test_messages_wait_out_an_outage_and_none_is_charged_with_it(
    queue: str, count: int, weak: Bench, outage: Path, database: Databases, mail: Mail
) -> None:
    events = [reserved_event() for _ in range(count)]
    if queue == REFUNDS:
        weak.handle_batch(CHARGES, events)
        events = [refund_of(event) for event in events]
    outage.touch()
    batch = weak.batch(queue)
    settling = eventlet.spawn(batch.handle_batch, deliveries(events))

    until(lambda: batch.not_ready_reason == f"{queue} is paused: ProviderAway")
    throughout(lambda: not settling.dead and batch.not_ready_reason is not None, for_s=OUTAGE_S)
    outage.unlink()
    settling.wait()

    table, done = ("payments", "COMPLETED") if queue == CHARGES else ("refunds", "COMPLETED")
    assert statuses(database, table) == [done] * count
    assert batch.not_ready_reason is None
    assert mail.all(f"{queue}.retry") == mail.all(f"{queue}.dlq") == []
    assert database.rows("payment", "SELECT 1 FROM dead_messages") == []


def test_a_message_that_the_provider_alone_never_answers_is_counted_as_before(
    weak: Bench, database: Databases, mail: Mail
) -> None:
    weak.handle_batch(CHARGES, [reserved_event(method="mock_timeout"), reserved_event()])

    assert sorted(statuses(database)) == ["COMPLETED", "PENDING"]
    assert len(mail.all(f"{CHARGES}.retry")) == 1


# --- settle ---------------------------------------------------------------------------------------------------------


class Stubborn(Provider):
    """A provider that says what a test tells it of each key."""

    def __init__(self, says: dict[UUID, Answer | Exception | None]) -> None:
        self.says = says

    def find(self, key: UUID) -> Answer | None:
        answer = self.says[key]
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_settle_keeps_what_was_answered_before_it_says_that_the_provider_is_away(
    weak: Bench, outage: Path, database: Databases, mail: Mail
) -> None:
    paid = [reserved_event() for _ in range(2)]
    weak.handle_batch(CHARGES, paid)
    refunds = [refund_of(event) for event in paid]
    weak.service.provider = weak.provider("timeout")
    events = [reserved_event() for _ in range(4)]
    weak.handle_batch(CHARGES, events)
    weak.handle_batch(REFUNDS, refunds)
    make_old(database)
    make_old(database, "refunds")
    away, silent, heard, unheard = (payment_id_of(event.payload.order_id) for event in events)
    weak.service.provider = Stubborn(
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
        weak.service.recover_unknown()

    of = {row["payment_id"]: row["status"] for row in database.rows("payment", "SELECT * FROM payments")}
    assert [of[key] for key in (away, silent, heard, unheard)] == ["PENDING", "PENDING", "COMPLETED", "PENDING"]
    assert sorted(statuses(database, "refunds")) == ["COMPLETED", "PENDING"]
    told_of = database.rows("payment", "SELECT event_type FROM outbox ORDER BY id DESC LIMIT 2")
    assert {row["event_type"] for row in told_of} == {"payment.succeeded", "payment.refunded"}


def test_settle_says_nothing_of_a_silence_that_is_one_keys_own_and_everything_of_a_fault(
    weak: Bench, database: Databases, mail: Mail
) -> None:
    weak.service.provider = weak.provider("timeout")
    event = reserved_event()
    weak.handle_batch(CHARGES, [event])
    make_old(database)
    key = payment_id_of(event.payload.order_id)

    weak.service.provider = Stubborn({key: ProviderTimeout()})
    weak.service.recover_unknown()
    weak.service.provider = Stubborn({key: ValueError("a bug")})
    with pytest.raises(ValueError, match="a bug"):
        weak.service.recover_unknown()


def test_a_charge_made_while_settle_hears_that_there_is_none_is_not_forgotten(
    weak: Bench, outage: Path, database: Databases, mail: Mail
) -> None:
    """Of a cancelled order, when an outage is over: its paused message and `settle` ask at the same moment."""
    event = reserved_event()
    outage.touch()
    batch = weak.batch(CHARGES)
    settling = eventlet.spawn(batch.handle_batch, deliveries([event]))
    until(lambda: batch.not_ready_reason)
    settling.kill()  # its message went back to the queue
    weak.handle_batch(VOIDS, [told(OrderCancelled(event.payload.order_id, "deadline"))])
    make_old(database)
    outage.unlink()

    class Late(Provider):
        """Says what was true before our charge, when our charge has been made."""

        def find(self, key: UUID) -> Answer | None:
            weak.service.provider = guarded
            answers.update(weak.service.ask_for_charges([event]))
            return None

    guarded, answers = weak.provider("succeed"), {}
    weak.service.provider = Late()
    weak.service.recover_unknown()

    assert answers[event.message_id].done
    weak.handle_batch(CHARGES, [event], ask=lambda batch: answers)
    assert statuses(database) == ["COMPLETED"]
    (last,) = database.rows("payment", "SELECT event_type FROM outbox")
    assert last["event_type"] == "payment.succeeded"


def test_a_cancelled_payment_that_nobody_asks_for_any_more_is_void(
    weak: Bench, outage: Path, database: Databases, mail: Mail
) -> None:
    weak.service.provider = weak.provider("timeout")
    event = reserved_event()
    weak.handle_batch(CHARGES, [event])
    weak.handle_batch(VOIDS, [told(OrderCancelled(event.payload.order_id, "deadline"))])
    make_old(database)
    weak.service.recover_unknown()

    assert statuses(database) == ["VOID"]


def test_a_call_that_was_frozen_until_its_payment_was_written_off_is_made_good(
    bench: Benches, database: Databases, mail: Mail
) -> None:
    """Its process stood still between writing down the charge and asking for it, for longer than any call takes."""
    event = reserved_event()
    payment = bench("payment")
    provider = payment.service.provider

    class Thawed(Provider):
        def charge(self, charge: Charge) -> Answer:
            payment.service.provider = provider
            payment.handle_batch(VOIDS, [told(OrderCancelled(event.payload.order_id, "deadline"))])
            make_old(database)
            payment.service.recover_unknown()
            assert statuses(database) == ["VOID"]
            payment.handle_batch(CHARGES, [event])  # its message was delivered again, and is not asked for
            return provider.charge(charge)

    payment.service.provider = Thawed()
    payment.handle_batch(CHARGES, [event])
    assert database.rows("payment", "SELECT FROM outbox") == []
    make_old(database)
    payment.service.recover_unknown()

    assert statuses(database) == ["COMPLETED"]
    (last,) = database.rows("payment", "SELECT event_type FROM outbox")
    assert last["event_type"] == "payment.succeeded", "of which a cancelled order asks the money back"
