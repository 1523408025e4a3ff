"""Copies of what other services say end in the newest version, whatever becomes of the events on their way."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from uuid import UUID

import eventlet
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ops.dlq.operator_session import Actor, OperatorSession
from ops.dlq.replay import replay
from ops.dlq.replay_request import ReplayRequest
from ops.domain import Filter, Pace
from shared.config import Settings
from shared.envelope import Envelope
from shared.errors import UnexpectedEvent
from shared.events import AvailabilityChanged, OfferChanged, Payload
from shared.failures import Delivery
from shared.prices import Price
from shared.schema import decoder
from tests.databases import Databases
from tests.integration.support import Bench, Mail, deliveries, emitted, until
from topology.table import dead_letter_queue

SKUS, VERSIONS = ("lamp", "desk", "rug"), 4
PRICES = decoder(tuple[Price, ...])


def offer(sku: str, version: int) -> OfferChanged:
    """What the catalog says of a sku in a version: each second one withdraws it."""
    row = {"currency": "EUR", "min_quantity": 1, "unit_price": version, "valid_from": "2026-01-01T00:00:00.000Z"}
    is_sold = version % 2 == 1
    changed = ("price",) if is_sold else ("withdrawn",)
    return OfferChanged(UUID(int=len(sku)), sku, version, sku, None, is_sold, PRICES([row], ""), changed)


def availability(sku: str, version: int) -> AvailabilityChanged:
    """What the inventory service says of a sku in a version."""
    return AvailabilityChanged(sku, version % 2 == 0, version if version % 2 else None, version)


class Copy(NamedTuple):
    """A copy: who keeps it, by which queue, who says what, and what is then in which table."""

    service: str
    queue: str
    source: str
    say: Callable[[str, int], Payload]
    table: str
    fields: tuple[str, ...]


COPIES = [
    Copy("order", "q.order.catalog-offers", "catalog_service", offer, "offers", ("version", "sellable", "prices")),
    Copy(
        "catalog",
        "q.catalog.stock-availability",
        "inventory_service",
        availability,
        "availability",
        ("version", "sold_out", "few"),
    ),
]


def kept(database: Databases, copy: Copy) -> dict[str, dict[str, Any]]:
    """What a copy says of each sku."""
    rows = database.rows(copy.service, f"SELECT sku, {', '.join(copy.fields)} FROM {copy.table}")
    return {row.pop("sku"): row for row in rows}


def as_kept(copy: Copy, said: Payload) -> dict[str, Any]:
    """What a copy must say when this is the newest that it has heard."""
    fields = json.loads(emitted(said, source=copy.source).to_json())["payload"]
    return {name: fields.get(name) for name in copy.fields}


def die(events: Any, tx: Any) -> None:
    """A handler for which nothing is right."""
    for event in events:
        tx.fail(event, UnexpectedEvent("not now"))


@contextmanager
def consuming(bench: Bench, queue: str, mail: Mail) -> Iterator[None]:
    """While the block runs, what comes into a queue is handled as it comes."""

    def run() -> None:
        while True:
            came = mail.all(queue)
            if came:
                bench.batch(queue).handle_batch(
                    [
                        Delivery(tag, bytes(m.body), queue, m.properties["message_id"], m.headers or {})
                        for tag, m in enumerate(came, start=1)
                    ]
                )
            eventlet.sleep(0.02)

    thread = eventlet.spawn(run)
    try:
        yield
    finally:
        thread.kill()


class Heard(NamedTuple):
    """An event that a batch has: of which sku and version, whether it is emitted anew, and is not the same again."""

    sku: str
    version: int
    is_anew: bool


HEARD = st.builds(Heard, st.sampled_from(SKUS), st.integers(1, VERSIONS), st.booleans())
# Batches as they come, each with whether all of it dies.
BATCHES = st.lists(st.tuples(st.lists(HEARD, min_size=1, max_size=6), st.booleans()), min_size=1, max_size=6)


@pytest.mark.parametrize("copy", COPIES, ids=[copy.service for copy in COPIES])
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=[Phase.generate],  # to shrink what fails would take minutes of replays
    max_examples=15,
    deadline=None,
)
@given(batches=BATCHES)
def test_a_copy_never_goes_back_and_ends_in_the_newest_version(
    copy: Copy,
    batches: list[tuple[list[Heard], bool]],
    bench: Callable[..., Bench],
    database: Databases,
    mail: Mail,
    settings: Settings,
) -> None:
    keeper = bench(copy.service)
    mail.empty()
    database.run(copy.service, f"DELETE FROM {copy.table}")
    first: dict[tuple[str, int], Envelope] = {}
    newest: dict[str, int] = {}
    buried: dict[str, int] = {}

    def event_of(heard: Heard) -> Envelope:
        anew = emitted(copy.say(heard.sku, heard.version), source=copy.source)
        return anew if heard.is_anew else first.setdefault((heard.sku, heard.version), anew)

    def expect() -> None:
        assert kept(database, copy) == {sku: as_kept(copy, copy.say(sku, version)) for sku, version in newest.items()}

    for heard, dies in batches:
        events = [event_of(one) for one in heard]
        keeper.batch(copy.queue, **({"handle": die} if dies else {})).handle_batch(deliveries(events))
        for one in heard:
            known = buried if dies else newest
            known[one.sku] = max(known.get(one.sku, 0), one.version)
        expect()

    if buried:
        until(lambda: mail.waiting(dead_letter_queue(copy.queue)), within_s=60)
        operator = OperatorSession(settings, Actor("ann", "the copy was stale"))
        with consuming(keeper, copy.queue, mail):
            run = replay(operator, copy.queue, ReplayRequest(Filter(), None, Pace()))
        operator.close()
        assert mail.waiting(dead_letter_queue(copy.queue)) == 0, run.tally.as_dict()
        for sku, version in buried.items():
            newest[sku] = max(newest.get(sku, 0), version)
        expect()
