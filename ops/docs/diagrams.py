"""Makes docs/sagas.md from the rules themselves: the states of an order, and sagas as sequences of messages.

The states come from the table of an order. The sequences come from a simulation, in which each service's rules consume
the events that the topology routes to it. `python -m ops.docs.contracts` writes the file with the contracts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

from inventory_service import domain as inventory
from inventory_service.domain import Reservation, State, Stock
from order_service import domain as order
from order_service.domain import CANCEL, DEADLINE, REFUND_RETRY, Order, Status
from payment_service import domain as payment
from payment_service.domain import Answer, Payment, Refund, RefundStatus, payment_id_of
from shared.events import (
    CATALOGUE,
    CommitRequested,
    Committed,
    OrderCancelled,
    OrderCreated,
    OrderedItem,
    Payload,
    PaymentFailed,
    PaymentSucceeded,
    Refunded,
    RefundFailed,
    RefundRequested,
    Released,
    ReleaseRequested,
    ReservationFailed,
    Reserved,
    type_of,
)
from topology.table import QUEUES, UNHEARD, hears

FILE = Path(__file__).resolve().parents[2] / "docs" / "sagas.md"

ORDER, RESERVATION, FIRST_REFUND, SECOND_REFUND = (UUID(int=number) for number in range(1, 5))
CUSTOMER = "customer"
PAYMENT = payment_id_of(ORDER)
ITEMS = (OrderedItem("lamp", 2, 1999),)
TOTAL, CURRENCY = 3998, "EUR"
COMMANDS = (CANCEL, DEADLINE, REFUND_RETRY)

RESULTS = (
    Reserved(ORDER, RESERVATION, ITEMS, TOTAL, CURRENCY, "mock_ok"),
    ReservationFailed(ORDER, "out_of_stock", ()),
    Released(ORDER, RESERVATION, (), "order_cancelled"),
    Committed(ORDER, RESERVATION, (), "paid"),
    PaymentSucceeded(ORDER, PAYMENT, TOTAL, CURRENCY, "reference"),
    PaymentFailed(ORDER, PAYMENT, "card_declined"),
    Refunded(ORDER, PAYMENT, FIRST_REFUND, TOTAL, CURRENCY),
    RefundFailed(ORDER, PAYMENT, FIRST_REFUND, "refund_declined"),
)


def moves() -> list[tuple[Status, str, Status, tuple[str, ...]]]:
    """Each row of the table in each of its states, as (state before, event or command, state after, events emitted)."""
    payloads: dict[str, Payload | None] = {**{type_of(result): result for result in RESULTS}, **dict.fromkeys(COMMANDS)}
    found = []
    for rule in order.TABLE:
        refund = SECOND_REFUND if rule.older_refund else FIRST_REFUND
        for status in (status for status in Status if status in rule.states):
            before = Order(ORDER, CUSTOMER, status, CURRENCY, TOTAL, payment_id=PAYMENT, refund_id=refund)
            payload = payloads[rule.hears]
            if payload is None:
                step = order.command(before, rule.hears, SECOND_REFUND)
            else:
                step = order.follow(before, payload, SECOND_REFUND)
            words = f"{rule.hears} of an older refund" if rule.older_refund else rule.hears
            found.append((status, words, step.order.status, tuple(type_of(emitted) for emitted in step.emits)))
    return found


def states() -> list[str]:
    """The state diagram: every move that changes the state or emits an event."""
    lines = ["stateDiagram-v2", "    [*] --> PENDING"]
    for before, words, after, emits in moves():
        if before != after or emits:
            suffix = f" / {', '.join(emits)}" if emits else ""
            lines.append(f"    {before} --> {after}: {words}{suffix}")
    return [*lines, *(f"    {status} --> [*]" for status in Status if status not in order.AWAITED)]


def unchanged() -> list[str]:
    """The rows that change nothing and emit nothing: the event, and in which states."""
    where: dict[str, list[str]] = {}
    for before, words, after, emits in moves():
        if before == after and not emits:
            where.setdefault(words, []).append(before)
    return [f"| {words} | {', '.join(at)} |" for words, at in where.items()]


YES, NO = Answer(True, reference="reference"), Answer(False, reason="declined")
CONSUMERS_OF = {type_: [queue.service for queue in QUEUES if hears(queue, type_)] for type_ in CATALOGUE}


class Simulation:
    """One order, simulated through the rules of all three services. `lines` are the lines of its sequence diagram.

    Every message is consumed in the order in which it was emitted: the simplest of the sequences that queues allow.
    """

    def __init__(self, on_hand: int, answers: tuple[Answer, ...] = ()) -> None:
        self.stock = {"lamp": Stock("lamp", on_hand, 0)}
        self.answers = list(answers)
        self.refund_ids = [FIRST_REFUND, SECOND_REFUND]
        self.order = Order(ORDER, CUSTOMER, Status.PENDING, CURRENCY, TOTAL)
        self.reservation: Reservation | None = None
        self.payment: Payment | None = None
        self.refunds: dict[UUID, Refund] = {}
        self.emitted: list[str] = []
        self.lines: list[str] = []
        self._waiting: deque[tuple[str, str, Payload]] = deque()
        self._line("customer", "order", "POST /api/orders")
        self._note("order", Status.PENDING)
        self._emit("order", OrderCreated(ORDER, CURRENCY, TOTAL, ITEMS, "mock_ok"))
        self._run()

    def command(self, who: str, words: str, command: str) -> Simulation:
        """A person gives the order a command. Runs until no message is left."""
        self._line(who, "order", words)
        step = order.command(self.order, command, self._next_refund())
        self._step(step)
        self._run()
        return self

    def _run(self) -> None:
        while self._waiting:
            publisher, consumer, payload = self._waiting.popleft()
            self._line(publisher, consumer, type_of(payload))
            consume: dict[str, Callable[[Payload], None]] = {
                "order": self._order_consumes,
                "inventory": self._inventory_consumes,
                "payment": self._payment_consumes,
            }
            # A service outside the saga is drawn as a consumer. What it does then belongs to other diagrams.
            if consumer in consume:
                consume[consumer](payload)

    def _emit(self, publisher: str, *payloads: Payload) -> None:
        for payload in payloads:
            self.emitted.append(type_of(payload))
            self._waiting += [(publisher, consumer, payload) for consumer in CONSUMERS_OF[type_of(payload)]]
            if type_of(payload) in UNHEARD:
                self.lines.append(f"    Note right of {publisher}: tells {type_of(payload)}")

    def _order_consumes(self, payload: Payload) -> None:
        self._step(order.follow(self.order, payload, self._next_refund()))

    def _next_refund(self) -> UUID:
        return self.refund_ids[0] if self.order.refund_id is None else SECOND_REFUND

    def _step(self, step: order.Step) -> None:
        if step.order.status != self.order.status:
            self._note("order", step.order.status)
        self.order = step.order
        self._emit("order", *step.emits)

    def _inventory_consumes(self, payload: Payload) -> None:
        if isinstance(payload, OrderCreated):
            outcome = inventory.reserve(self.stock, {}, payload, RESERVATION)
        elif isinstance(payload, ReleaseRequested | CommitRequested):
            verb, reason = (
                (inventory.RELEASE, payload.reason)
                if isinstance(payload, ReleaseRequested)
                else (inventory.COMMIT, "paid")
            )
            outcome = inventory.close_reservation(self.stock, self.reservation, verb, ORDER, reason)
        else:
            return  # the message is drawn; a test compares with the handlers whether it emits anything
        self.reservation = outcome.reservation
        self.stock |= {item.sku: item for item in outcome.stock}
        if outcome.changed:
            self._note("inventory", outcome.reservation.state)
        self._emit("inventory", *outcome.emits)

    def _payment_consumes(self, payload: Payload) -> None:
        before = self.payment
        emits: tuple[Payload, ...] = ()
        if isinstance(payload, Reserved):
            pending = Payment(ORDER, PAYMENT, payment.Status.PENDING, payload.total, payload.currency)
            self.payment, emits = payment.charged(pending, self._ask("charge"))
        elif isinstance(payload, RefundRequested):
            refund = self.refunds.get(payload.refund_id) or Refund(payload.refund_id, ORDER, RefundStatus.PENDING)
            answer = self._ask("refund") if payment.is_to_be_refunded(before) else None
            self.payment, refund, emits = payment.refunded(before, ORDER, refund, answer)
            self.refunds[payload.refund_id] = refund
        elif isinstance(payload, OrderCancelled):
            self.payment = payment.cancelled(before) if before else Payment(ORDER, PAYMENT, payment.Status.VOID)
        else:
            return  # the message is drawn; a test compares with the handlers whether it emits anything
        if before is None or before.status != self.payment.status:
            self._note("payment", self.payment.status)
        self._emit("payment", *emits)

    def _ask(self, what: str) -> Answer:
        answer = self.answers.pop(0)
        self._line("payment", "provider", what)
        self.lines.append(f"    provider-->>payment: {'done' if answer.done else 'declined'}")
        return answer

    def _line(self, source: str, target: str, words: str) -> None:
        self.lines.append(f"    {source}->>{target}: {words}")

    def _note(self, service: str, state: Status | State | payment.Status) -> None:
        self.lines.append(f"    Note over {service}: {state}")


def sagas() -> dict[str, Simulation]:
    """Each saga by its title, simulated to its end."""
    cancel = ("customer", "POST /api/orders/{id}/cancel", CANCEL)
    retry = ("operator", "POST /api/orders/{id}/refund/retry", REFUND_RETRY)
    return {
        "Paid": Simulation(10, (YES,)),
        "Out of stock": Simulation(0),
        "Payment failed": Simulation(10, (NO,)),
        "Cancelled after payment": Simulation(10, (YES, YES)).command(*cancel),
        "Refund failed, and retried by an operator": Simulation(10, (YES, NO, YES)).command(*cancel).command(*retry),
    }


def sequence(simulation: Simulation) -> list[str]:
    """A simulated order as a sequence diagram."""
    shown = ("customer", "operator", "order", "inventory", "payment", "provider")
    used = [who for who in shown if any(who in line.partition(": ")[0] for line in simulation.lines)]
    return ["sequenceDiagram", *(f"    participant {who}" for who in used), *simulation.lines]


HEAD = """\
# Sagas
Made by `python -m ops.docs.contracts` from the rules of the services; a test fails when they differ.

## The states of an order
On an arrow: what the order hears / what it tells. `cancel`, `deadline` and `refund.retry` are said by a customer, the
clock and an operator. An order comes to rest in PAID, CANCELLED or REFUND_FAILED; the last waits for an operator.
`order.cancelled` is told once in the life of an order.
"""

UNCHANGED_HEAD = """
Queues give no order between each other, so results also come late or overtake each other. These change nothing:

| heard | in |
|---|---|
"""

UNCHANGED_FOOT = """
A result that was followed already changes nothing in any state. Whatever is not here goes to the DLQ as
`unexpected_event`; no history of these services and a provider that keeps its word comes to that.

## Sagas, message by message
Arrows are events, and calls of people and of the provider; notes are new states. This is one of the many orders in
which the messages can arrive; tests/unit/test_saga_machine.py tries others.
"""


def document() -> str:
    """docs/sagas.md as it should be."""
    parts = [HEAD, *_mermaid(states()), UNCHANGED_HEAD.rstrip("\n"), *unchanged(), UNCHANGED_FOOT.rstrip("\n")]
    for title, simulation in sagas().items():
        parts += ["", f"### {title}", *_mermaid(sequence(simulation))]
    return "\n".join(parts) + "\n"


def _mermaid(lines: list[str]) -> list[str]:
    return ["```mermaid", *lines, "```"]
