"""The saga in one process: the three services' own handlers, with memory for databases, broker and provider.

What is replaced is what the handlers speak to: `models` and `queries` by dicts, `outbox` by a list, the pool of calls
by one call after the other. A message is handled as `shared.edge.batch` handles a batch of one: asked for, then once,
then kept.
"""

from __future__ import annotations

import inspect
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from random import Random
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

import inventory_service.service
import order_service.service
import payment_service.service
from inventory_service.domain import Kind, Movement, Outcome, Recipes, Reservation, State, Stock
from inventory_service.service import InventoryService
from order_service import models as order_models
from order_service.domain import CANCEL, DEADLINE, REFUND_RETRY, Order, Status, Step
from order_service.service import OrderService
from payment_service import models as payment_models
from payment_service.domain import Answer, Payment, Refund, RefundStatus, payment_id_of
from payment_service.domain import Status as PaymentStatus
from payment_service.provider import Charge, Provider
from payment_service.service import PaymentService
from shared.edge.consumer import Handles
from shared.edge.context import RequestContext
from shared.edge.fair_calls import Call
from shared.edge.tx import Events, Tx
from shared.envelope import Envelope, envelope
from shared.errors import CannotWork, Conflict, ProviderAway, ProviderTimeout
from shared.events import CATALOGUE, Identity, OrderCreated, OrderedItem
from shared.idempotency import KeyedAnswer, KeyedRequest
from shared.ids import uuid7
from shared.order_states import has_ended
from topology.table import BY_NAME, QUEUES, hears

ANN = Identity("ann", ("customer",))
OLGA = Identity("olga", ("operator",))
TRACE = "0" * 32
CURRENCY = "EUR"

# What each event is lied about. A receiver knows these facts whenever the event comes, or does not expect it.
LIED_ABOUT = {
    "inventory.reserved": ("total",),
    "payment.succeeded": ("amount", "currency"),
    "payment.refund.requested": ("amount", "currency", "payment_id"),
    "payment.refunded": ("amount", "currency"),
}
LIES: dict[str, object] = {"currency": "USD", "payment_id": uuid7()}

# The first try and three more; then a message is dead until somebody replays it.
TRIES = 4


@dataclass(frozen=True)
class PaymentRow:
    """A row of payments; `updated_at` counts."""

    order_id: UUID
    payment_id: UUID
    status: str
    amount: int
    currency: str
    method: str
    user_id: str
    roles: tuple[str, ...]
    trace_id: str
    reference: str = ""
    reason: str = ""
    cancelled: bool = False
    updated_at: int = 0


@dataclass(frozen=True)
class RefundRow:
    """A row of refunds."""

    refund_id: UUID
    order_id: UUID
    status: str
    user_id: str
    roles: tuple[str, ...]
    trace_id: str


@dataclass
class Tables:
    """One service's database, and the session on it. Rows are values: a rollback brings the old ones back."""

    inbox: dict[tuple[str, UUID], None] = field(default_factory=dict)
    outbox: dict[int, Envelope] = field(default_factory=dict)
    orders: dict[UUID, Order] = field(default_factory=dict)
    keys: dict[str, KeyedAnswer] = field(default_factory=dict)
    steps: dict[int, tuple[str, Order, Order]] = field(default_factory=dict)
    stock: dict[str, Stock] = field(default_factory=dict)
    reservations: dict[UUID, Reservation] = field(default_factory=dict)
    movements: dict[int, Movement] = field(default_factory=dict)
    releases: dict[tuple[UUID, str], int] = field(default_factory=dict)
    payments: dict[UUID, PaymentRow] = field(default_factory=dict)
    refunds: dict[UUID, RefundRow] = field(default_factory=dict)
    # Not rows: what the clock finds, and keys of calls that may still be under way.
    overdue: list[UUID] = field(default_factory=list)
    under_way: Callable[[], set[UUID]] = set

    @contextmanager
    def begin(self) -> Iterator[Tables]:
        """A transaction."""
        before = {name: dict(value) for name, value in vars(self).items() if isinstance(value, dict)}
        try:
            yield self
        except BaseException:
            vars(self).update(before)
            raise

    @contextmanager
    def read(self) -> Iterator[Tables]:
        """Nothing is written here."""
        yield self

    autocommit = read

    def rows(self) -> dict[str, dict[Any, Any]]:
        """All rows, without the inbox."""
        return {name: dict(value) for name, value in vars(self).items() if isinstance(value, dict) and name != "inbox"}

    def refresh(self, row: object) -> None:
        """Rows are what they were when they were read."""


def tell(session: Tables, envelopes: Iterable[Envelope]) -> None:
    """`shared.outbox.tell`."""
    for event in envelopes:
        session.outbox[len(session.outbox)] = event


class OrderModels:
    """`order_service.models`."""

    heard_of = staticmethod(order_models.heard_of)
    Heard = order_models.Heard

    @staticmethod
    def orders_of(session: Tables, order_ids: Iterable[UUID], lock: bool = False) -> dict[UUID, Order]:
        return {key: session.orders[key] for key in order_ids if key in session.orders}

    @staticmethod
    def save_steps(session: Tables, steps: Sequence[tuple[order_models.Heard, Order, Step]]) -> None:
        for what, before, step in steps:
            session.orders[before.order_id] = step.order
            session.steps[len(session.steps)] = (what.type, before, step.order)

    @staticmethod
    def overdue(session: Tables, deadline_s: float, limit: int) -> list[UUID]:
        return session.overdue


class OrderQueries:
    """`order_service.queries`."""

    @staticmethod
    def visible_order(session: Tables, order_id: str, viewer: Identity) -> SimpleNamespace:
        order = session.orders[UUID(order_id)]
        return SimpleNamespace(order_id=order.order_id, user_id=order.customer_id)

    @staticmethod
    def order_bodies(session: Tables, rows: Sequence[SimpleNamespace]) -> list[dict[str, Any]]:
        return [{"status": session.orders[row.order_id].status} for row in rows]


def claim_key(session: Tables, request: KeyedRequest, answer: KeyedAnswer) -> KeyedAnswer | None:
    """`shared.idempotency.claim_key`."""
    stored = session.keys.get(request.key)
    if stored is None:
        session.keys[request.key] = replace(answer, replayed=True)
    return stored


class InventoryQueries:
    """`inventory_service.queries`."""

    @staticmethod
    def claim_reservations(
        session: Tables,
        ids: Mapping[UUID, UUID],
        state: State,
        kind: Kind = Kind.ORDER,
        asked: Mapping[UUID, UUID] | None = None,
    ) -> set[UUID]:
        new = set(ids) - set(session.reservations)
        for key in new:
            session.reservations[key] = Reservation(key, ids[key], state, kind=kind, asked=(asked or {}).get(key))
        return new

    @staticmethod
    def reservations_of(session: Tables, order_ids: Iterable[UUID], lock: bool = False) -> dict[UUID, Reservation]:
        return {key: session.reservations[key] for key in order_ids if key in session.reservations}

    @staticmethod
    def stock_of(session: Tables, skus: Iterable[str], lock: bool = False) -> dict[str, Stock]:
        return {sku: session.stock[sku] for sku in skus if sku in session.stock}

    @staticmethod
    def save_made(session: Tables, made: Sequence[Outcome]) -> None:
        for outcome in made:
            session.reservations[outcome.reservation.order_id] = outcome.reservation
            session.stock.update({item.sku: item for item in outcome.stock})

    @staticmethod
    def save_closed(session: Tables, closed: Sequence[tuple[Outcome, Identity, str, str]]) -> None:
        for outcome, *_ in closed:
            if not outcome.changed:
                continue
            after = outcome.reservation
            session.reservations[after.order_id] = after
            session.stock.update({item.sku: item for item in outcome.stock})
            for movement in outcome.movements:
                session.movements[len(session.movements)] = movement
            for sku, quantity in after.quantities.items() if outcome.audited else ():
                assert (after.reservation_id, sku) not in session.releases, "audited twice"
                session.releases[after.reservation_id, sku] = quantity


class RecipeQueries:
    """`inventory_service.recipes.queries`, where nothing is made."""

    @staticmethod
    def lock_for(session: Tables, skus: Collection[str]) -> tuple[Recipes, dict[str, Stock]]:
        return {}, InventoryQueries.stock_of(session, skus, lock=True)


class PaymentModels:
    """`payment_service.models`."""

    payment = staticmethod(payment_models.payment)
    PaymentRow = PaymentRow
    RefundRow = RefundRow

    @staticmethod
    def _new(event: Envelope, status: PaymentStatus, amount: int, currency: str, method: str) -> PaymentRow:
        order_id, by = event.payload.order_id, event.identity
        return PaymentRow(
            order_id,
            payment_id_of(order_id),
            status,
            amount,
            currency,
            method,
            by.user_id,
            tuple(by.roles),
            event.trace_id,
        )

    @staticmethod
    def claim_charges(session: Tables, events: Iterable[Envelope]) -> dict[UUID, PaymentRow]:
        events = list(events)
        for event in events:
            asked = event.payload
            row = session.payments.get(asked.order_id)
            if row is None:
                session.payments[asked.order_id] = PaymentModels._new(
                    event, PaymentStatus.PENDING, asked.total, asked.currency, asked.payment_method
                )
            elif row.status == PaymentStatus.PENDING:
                session.payments[asked.order_id] = replace(row, updated_at=row.updated_at + 1)
        rows = PaymentModels.payments_of(session, [event.payload.order_id for event in events])
        return {order_id: row for order_id, row in rows.items() if row.status == PaymentStatus.PENDING}

    @staticmethod
    def reopen(session: Tables, order_id: UUID) -> None:
        row = session.payments[order_id]
        if row.status == PaymentStatus.VOID and row.cancelled:
            session.payments[order_id] = replace(row, status=PaymentStatus.PENDING)

    @staticmethod
    def claim_voids(session: Tables, events: Iterable[Envelope]) -> set[UUID]:
        new = {event.payload.order_id: event for event in events if event.payload.order_id not in session.payments}
        for order_id, event in new.items():
            session.payments[order_id] = PaymentModels._new(event, PaymentStatus.VOID, 0, "", "")
        return set(new)

    @staticmethod
    def payments_of(session: Tables, order_ids: Iterable[UUID], lock: bool = False) -> dict[UUID, PaymentRow]:
        return {key: session.payments[key] for key in order_ids if key in session.payments}

    @staticmethod
    def save_payments(session: Tables, payments: Iterable[Payment]) -> None:
        for item in payments:
            row = session.payments[item.order_id]
            session.payments[item.order_id] = replace(
                row,
                status=item.status,
                reference=item.reference,
                reason=item.reason,
                cancelled=item.cancelled,
                updated_at=row.updated_at + 1,
            )

    @staticmethod
    def claim_refunds(session: Tables, events: Iterable[Envelope]) -> dict[UUID, Refund]:
        events = list(events)
        for event in events:
            asked, by = event.payload, event.identity
            session.refunds.setdefault(
                asked.refund_id,
                RefundRow(
                    asked.refund_id,
                    asked.order_id,
                    RefundStatus.PENDING,
                    by.user_id,
                    tuple(by.roles),
                    event.trace_id,
                ),
            )
        return PaymentModels.refunds(session, [event.payload.refund_id for event in events])

    @staticmethod
    def refunds(session: Tables, refund_ids: Iterable[UUID]) -> dict[UUID, Refund]:
        rows = [session.refunds[key] for key in refund_ids if key in session.refunds]
        return {row.refund_id: Refund(row.refund_id, row.order_id, RefundStatus(row.status)) for row in rows}

    @staticmethod
    def save_refunds(session: Tables, kept: Iterable[Refund]) -> None:
        for item in kept:
            session.refunds[item.refund_id] = replace(session.refunds[item.refund_id], status=item.status)

    @staticmethod
    def unknown(session: Tables, model: type[Any], age_s: float, limit: int) -> list[Any]:
        """What is PENDING, but for what was asked for so lately that a call of ours may still be under way."""
        under_way = session.under_way()
        if model is PaymentRow:
            return [
                row for row in session.payments.values() if row.status == "PENDING" and row.payment_id not in under_way
            ]
        return [row for row in session.refunds.values() if row.status == "PENDING" and row.refund_id not in under_way]


class OneByOne:
    """`FairCalls`, one after the other."""

    def over_share(self, customers: Mapping[UUID, str]) -> dict[UUID, Exception]:
        return {}

    def ask(self, calls: Mapping[UUID, Call]) -> dict[UUID, Any]:
        answers: dict[UUID, Any] = {}
        for key, call in calls.items():
            try:
                answers[key] = call.run()
            except Exception as error:
                answers[key] = error
        return answers


def on_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on the services' handlers speak to memory."""
    for module, models in (
        (order_service.service, OrderModels),
        (payment_service.service, PaymentModels),
    ):
        monkeypatch.setattr(module, "models", models)
    for module in (order_service.service, payment_service.service):
        monkeypatch.setattr(module, "outbox", SimpleNamespace(emit=tell))
    monkeypatch.setattr(order_service.service, "queries", OrderQueries)
    monkeypatch.setattr(inventory_service.service, "queries", InventoryQueries)
    monkeypatch.setattr(inventory_service.service, "recipe_queries", RecipeQueries)
    monkeypatch.setattr(order_service.service, "idempotency", SimpleNamespace(claim_key=claim_key))


WILLING = "willing"
DECLINES = "declines"
YES_LOST, NO_LOST = "says yes, and the answer is lost", "says no, and the answer is lost"
SILENT = "hears nothing"
LATE = "hears it later"  # the call is under way; what it does, it does when it arrives
AWAY = "answers nobody"
FATES = (WILLING, DECLINES, YES_LOST, NO_LOST, SILENT, LATE, AWAY)


class Bank(Provider):
    """A provider with its ledger: it does a key once, and answers it again."""

    def __init__(self) -> None:
        self.fate = WILLING
        self.ledger: dict[UUID, tuple[str, Charge, Answer]] = {}
        self.under_way: list[tuple[str, Charge]] = []
        self.meanwhile: Callable[[], None] = lambda: None

    def charge(self, charge: Charge) -> Answer:
        return self._asked("charge", charge)

    def refund(self, refund: Charge) -> Answer:
        return self._asked("refund", refund)

    def find(self, key: UUID) -> Answer | None:
        """What became of a key, as it was when it was asked: `meanwhile` happens before the asker hears it."""
        if self.fate == AWAY:
            raise ProviderAway
        if self.fate == SILENT:
            raise ProviderTimeout
        found = self.ledger.get(key)
        self.meanwhile()
        return found[2] if found else None

    def _asked(self, kind: str, asked: Charge) -> Answer:
        assert asked.amount, "the provider is asked to move nothing"
        if self.fate == AWAY:
            raise ProviderAway
        if self.fate == LATE:
            self.under_way.append((kind, asked))
        if self.fate in (LATE, SILENT):
            raise ProviderTimeout
        answer = self._do(kind, asked, self.fate in (WILLING, YES_LOST))
        if self.fate in (YES_LOST, NO_LOST):
            raise ProviderTimeout
        return answer

    def _do(self, kind: str, asked: Charge, willing: bool) -> Answer:
        said = Answer(True, reference="reference") if willing else Answer(False, reason="declined")
        return self.ledger.setdefault(asked.key, (kind, asked, said))[2]

    def arrive(self, willing: bool) -> None:
        """What is under way arrives and is done; nobody waits for the answer any more."""
        for kind, asked in self.under_way:
            self._do(kind, asked, willing)
        self.under_way.clear()

    def moved(self, order_id: UUID) -> tuple[list[int], list[int]]:
        """The amounts charged and given back for an order."""
        done = [(kind, asked) for kind, asked, said in self.ledger.values() if said.done and asked.order_id == order_id]
        return [a.amount for kind, a in done if kind == "charge"], [a.amount for kind, a in done if kind == "refund"]


@dataclass
class Message:
    """An event in a queue, and how often it was tried there."""

    queue: str
    event: Envelope
    tries: int = 0


def handlers_of(services: dict[str, Any]) -> dict[str, tuple[Any, Callable[..., None], Callable[..., Any] | None]]:
    """By queue: the service, its handler, and what it asks first."""
    found = {}
    for service in services.values():
        for name, method in inspect.getmembers(type(service), inspect.isfunction):
            for entrypoint in getattr(method, "nameko_entrypoints", ()):
                if isinstance(entrypoint, Handles):
                    ask = getattr(service, entrypoint.ask) if entrypoint.ask else None
                    found[entrypoint.queue] = (service, getattr(service, name), ask)
    return found


SAGA = ("order", "inventory", "payment")  # other services may consume these events too; they are not simulated
HEARERS = {
    type_: [queue.name for queue in QUEUES if queue.service in SAGA and hears(queue, type_)] for type_ in CATALOGUE
}

# The moves that an order may make, written down once more beside the table.
MOVES = {
    (Status.PENDING, Status.RESERVED),
    (Status.PENDING, Status.PAID),
    (Status.PENDING, Status.CANCELLED),
    (Status.RESERVED, Status.PAID),
    (Status.RESERVED, Status.CANCELLED),
    (Status.PAID, Status.REFUND_PENDING),
    (Status.REFUND_PENDING, Status.CANCELLED),
    (Status.REFUND_PENDING, Status.REFUND_FAILED),
    (Status.REFUND_FAILED, Status.REFUND_PENDING),
    (Status.CANCELLED, Status.REFUND_PENDING),
}
UNENDED = (Status.PENDING, Status.RESERVED)
REFUNDING = (Status.REFUND_PENDING, Status.REFUND_FAILED)
# A refund may be asked for and refused again, and a late reservation is released as the first was.
TOLD_ONCE = set(CATALOGUE) - {"payment.refund.requested", "payment.refund_failed", "inventory.release.requested"}
FINAL = (State.RELEASED, State.REFUSED)


class World:
    """Orders on shared stock, the messages between the services, and everything that can happen to them."""

    def __init__(self, stock: Mapping[str, int]) -> None:
        self.put = dict(stock)
        self.bank = Bank()
        self.order, self.inventory, self.payment = Tables(), Tables(), Tables(under_way=self._under_way)
        self.inventory.stock = {sku: Stock(sku, on_hand, 0) for sku, on_hand in stock.items()}
        self.services: dict[str, Any] = {
            "order": OrderService(),
            "inventory": InventoryService(),
            "payment": PaymentService(),
        }
        self.tables = {"order": self.order, "inventory": self.inventory, "payment": self.payment}
        for name, service in self.services.items():
            service.db = self.tables[name]
            service.context = RequestContext(TRACE, ANN)
        self.services["order"].settings = SimpleNamespace(order_deadline_s=900)
        self.services["payment"].provider = self.bank
        for fair_calls in ("charges", "refunds", "questions"):
            setattr(self.services["payment"], fair_calls, OneByOne())
        self.handlers = handlers_of(self.services)

        self.waiting: list[Message] = []
        self.dead: list[Message] = []
        self.frozen: list[tuple[Message, dict[UUID, Any]]] = []
        self.told: list[Envelope] = []
        self.refused: list[tuple[str, str]] = []  # what the rules had no row for
        self.reached: set[tuple[Status, str]] = set()
        self._relayed = dict.fromkeys(self.tables, 0)
        self._final: dict[UUID, Reservation] = {}
        self._steps = 0

    def _under_way(self) -> set[UUID]:
        return {asked.key for _, asked in self.bank.under_way}

    # What happens

    def place(self, quantities: Mapping[str, int], unit_price: int = 100) -> UUID:
        """A customer posts an order."""
        items = tuple(OrderedItem(sku, quantity, unit_price) for sku, quantity in quantities.items())
        total = unit_price * sum(quantities.values())
        payload = OrderCreated(uuid7(), CURRENCY, total, items, "mock_ok")
        self.order.orders[payload.order_id] = Order(
            payload.order_id, ANN.user_id, Status.PENDING, CURRENCY, total, trace_id=TRACE
        )
        tell(self.order, [envelope("order_service", payload, TRACE, ANN)])
        self.relay()
        return payload.order_id

    def relay(self) -> None:
        """What was told goes to every queue that hears it."""
        for name, tables in self.tables.items():
            new = list(tables.outbox.values())[self._relayed[name] :]
            self._relayed[name] += len(new)
            self.told += new
            self.waiting += [Message(queue, event) for event in new for queue in HEARERS[event.type]]

    def ask(self, message: Message, fate: str) -> dict[UUID, Any]:
        """The step before the transaction: what the provider answers to a message."""
        _, _, ask = self.handlers[message.queue]
        self.bank.fate = fate
        return ask(Events([message.event])) if ask else {}

    def deliver(self, message: Message, fate: str = WILLING) -> None:
        """One delivery: the message takes effect, waits to be tried again, or is dead after as many tries as it has."""
        answers = self.ask(message, fate)
        trouble = answers.get(message.event.message_id)
        if isinstance(trouble, CannotWork):
            return  # the consumer is paused
        if isinstance(trouble, Exception):
            message.tries += 1
            if message.tries == TRIES:
                self.bury(message)
            return
        self.waiting.remove(message)
        self.handle(message, answers)

    def handle(self, message: Message, answers: dict[UUID, Any]) -> None:
        """The transaction: once, handle, tell."""
        service, handle, _ = self.handlers[message.queue]
        name, event = BY_NAME[message.queue].service, message.event
        with self.tables[name].begin() as session:
            if (message.queue, event.message_id) in session.inbox:
                return
            session.inbox[message.queue, event.message_id] = None
            tx = Tx(session, service.name, answers)  # type: ignore[arg-type]
            handle(Events([event]), tx)
            tell(session, tx.outgoing_events())
        for error in tx.failed.values():
            self.refused.append((event.type, str(error)))
        self.relay()

    def freeze(self, message: Message, fate: str, survives: bool) -> None:
        """A replica has asked and hangs, or dies; its message waits to be delivered to another."""
        answers = self.ask(message, fate)
        if survives and not isinstance(answers.get(message.event.message_id), Exception):
            self.frozen.append((message, answers))

    def thaw(self, place: int) -> None:
        """The replica that hung goes on where it was."""
        message, answers = self.frozen.pop(place)
        if message in self.waiting:
            self.waiting.remove(message)
        self.handle(message, answers)

    def repeat(self, event: Envelope) -> None:
        """Somebody tells an event again: another message that says the same."""
        again = replace(event, message_id=uuid7())
        self.waiting += [Message(queue, again) for queue in HEARERS[event.type]]

    def lie(self, event: Envelope, fact: str) -> None:
        """Somebody tells an event again with one fact changed: each queue sets it apart, and nothing else happens."""
        told = getattr(event.payload, fact)
        payload = replace(event.payload, **{fact: told + 1 if isinstance(told, int) else LIES[fact]})
        lie = replace(event, message_id=uuid7(), payload=payload)
        for queue in HEARERS[event.type]:
            tables = self.tables[BY_NAME[queue].service]
            before = tables.rows()
            answers = self.ask(message := Message(queue, lie), WILLING)
            assert lie.message_id not in answers, "the provider was asked"
            self.handle(message, answers)
            assert self.refused.pop()[0] == event.type
            assert tables.rows() == before

    def bury(self, message: Message) -> None:
        """The message is in a DLQ."""
        self.waiting.remove(message)
        self.dead.append(message)

    def replay(self, message: Message) -> None:
        """An operator puts it back."""
        self.dead.remove(message)
        self.waiting.append(replace(message, tries=0))

    def cancel(self, order_id: UUID, key: str) -> None:
        """A customer cancels."""
        self.services["order"].context = RequestContext(TRACE, ANN)
        self.reached.add((self.order.orders[order_id].status, CANCEL))
        self.services["order"].cancel_order(str(order_id), f"{order_id} {key}")
        self.relay()

    def retry_refund(self, order_id: UUID) -> None:
        """An operator asks for the refund once more: a conflict unless there is one."""
        self.services["order"].context = RequestContext(TRACE, OLGA)
        status = self.order.orders[order_id].status
        if status in REFUNDING:
            self.reached.add((status, REFUND_RETRY))
            self.services["order"].retry_refund(str(order_id))
        else:
            with pytest.raises(Conflict):
                self.services["order"].retry_refund(str(order_id))
        self.relay()

    def deadline(self, order_ids: list[UUID]) -> None:
        """The clock has found these orders unpaid; they may have gone on since."""
        self.reached |= {(self.order.orders[order_id].status, DEADLINE) for order_id in order_ids}
        self.order.overdue = order_ids
        self.services["order"].cancel_overdue()
        self.relay()

    def recover_unknown(self, fate: str = WILLING, meanwhile: Message | None = None, its_fate: str = WILLING) -> None:
        """Payment asks what became of what is unknown; `meanwhile` is delivered before it hears the answer."""

        def happen() -> None:
            self.bank.meanwhile = lambda: None
            if meanwhile in self.waiting:
                self.deliver(meanwhile, its_fate)
                self.bank.fate = fate

        self.bank.fate, self.bank.meanwhile = fate, happen
        try:
            self.services["payment"].recover_unknown()
        except ProviderAway:
            assert fate == AWAY
        finally:
            self.bank.meanwhile = lambda: None
        self.relay()

    def drain(self, random: Random, late: bool) -> None:
        """Everything that is still to come comes, in any order, and the provider is willing.

        `late`: the clock strikes first for every order.
        """
        if late:
            self.deadline(list(self.order.orders))
        for _ in range(1000):
            orders = self.order.orders.values()
            if self.waiting or self.dead or self.frozen or self.bank.under_way:
                random.choice(self._next(random))()
            elif failed := [order.order_id for order in orders if order.status in REFUNDING]:
                self.recover_unknown()
                self.retry_refund(random.choice(failed))
            elif unended := [order.order_id for order in orders if order.status in UNENDED]:
                self.deadline(unended)
            else:
                self.recover_unknown()
                if not self.waiting:
                    return
            self.check()
        raise AssertionError("the orders do not come to rest")

    def _next(self, random: Random) -> list[Callable[[], None]]:
        """What can happen next while something is still to come."""
        found: list[Callable[[], None]] = [self.recover_unknown]
        if self.bank.under_way:
            found.append(lambda: self.bank.arrive(willing=True))
        if self.frozen:
            found.append(lambda: self.thaw(random.randrange(len(self.frozen))))
        if self.dead:
            found.append(lambda: self.replay(random.choice(self.dead)))
        if self.waiting:
            found += [lambda: self.deliver(random.choice(self.waiting))] * 3
        return found

    # What must hold

    def check(self) -> None:
        """At any time."""
        assert not self.refused, self.refused
        self._check_moves()
        self._check_stock()
        told = Counter((event.type, event.payload.order_id) for event in self.told)
        for order in self.order.orders.values():
            charged, given_back = self.bank.moved(order.order_id)
            assert len(charged) <= 1, "charged twice"
            assert sum(given_back) <= sum(charged), "more was given back than taken"
            assert charged in ([], [order.total])
            if order.status == Status.PAID:
                assert sum(charged) - sum(given_back) == order.total
            payment = self.payment.payments.get(order.order_id)
            if payment and payment.status == PaymentStatus.VOID:
                assert order.status == Status.CANCELLED, "what is not cancelled is not void"
            for type_ in TOLD_ONCE:
                assert told[type_, order.order_id] <= 1, f"{type_} told twice"

    def _check_moves(self) -> None:
        for place in range(self._steps, len(self.order.steps)):
            heard, before, after = self.order.steps[place]
            self.reached.add((before.status, heard))
            assert before.status == after.status or (before.status, after.status) in MOVES, (before, heard, after)
            assert before.reason in (None, after.reason), "the first reason stays"
        self._steps = len(self.order.steps)

    def _check_stock(self) -> None:
        held: dict[State, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        for reservation in self.inventory.reservations.values():
            for sku, quantity in reservation.quantities.items():
                held[reservation.state][sku] += quantity
            final = self._final.get(reservation.order_id)
            assert final is None or reservation == final, "what is final stays"
            if reservation.state in FINAL:
                self._final[reservation.order_id] = reservation
        moved: Counter[str] = Counter()
        for movement in self.inventory.movements.values():
            moved[movement.sku] += movement.change
        for sku, stock in self.inventory.stock.items():
            assert 0 <= stock.reserved <= stock.on_hand
            assert stock.reserved == held[State.RESERVED][sku]
            assert stock.on_hand + held[State.COMMITTED][sku] == self.put[sku]
            assert stock.on_hand == self.put[sku] + moved[sku]
        audited = {key[0] for key in self.inventory.releases}
        for reservation in self.inventory.reservations.values():
            released = reservation.state == State.RELEASED and bool(reservation.quantities)
            assert (reservation.reservation_id in audited) == released, "the audit knows what was released, and no more"

    def heard_by(self, order_id: UUID) -> list[str]:
        """The types of an order's steps."""
        return [type_ for type_, before, _ in self.order.steps.values() if before.order_id == order_id]

    def check_rest(self) -> None:
        """When nothing is left to come: every order has ended, and the three books and the provider's agree."""
        for order in self.order.orders.values():
            assert has_ended(order.status, self.heard_by(order.order_id)), "its stream ends"
            charged, given_back = self.bank.moved(order.order_id)
            net = sum(charged) - sum(given_back)
            reserved = self.inventory.reservations[order.order_id].state
            paid = self.payment.payments[order.order_id].status
            if order.status == Status.PAID:
                assert (net, reserved, paid) == (order.total, State.COMMITTED, PaymentStatus.COMPLETED)
            else:
                assert order.status == Status.CANCELLED
                assert net == 0
                assert reserved in FINAL
                assert paid == (PaymentStatus.REFUNDED if given_back else paid)
                assert paid in (PaymentStatus.REFUNDED, PaymentStatus.FAILED, PaymentStatus.VOID)
                assert [event.type for event in self.told if event.payload.order_id == order.order_id].count(
                    "order.cancelled"
                ) == 1
        assert {row.status for row in self.payment.refunds.values()} <= {"COMPLETED", "FAILED"}
