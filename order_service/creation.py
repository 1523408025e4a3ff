"""Making orders, one or many in one transaction. Each post gets the answer that it would get alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from sqlalchemy.orm import Session

from order_service import domain, new_orders, queries
from order_service.domain import Open
from order_service.new_orders import NewOrder
from shared import idempotency, outbox
from shared.errors import CannotWork, EcomError, IdempotencyKeyReused
from shared.idempotency import Claim, KeyedAnswer, KeyedRequest, KnownAnswer

Outcome = KeyedAnswer | EcomError


def make(session: Session, posted: Sequence[NewOrder], most: Open | None, is_full: bool) -> list[Outcome]:
    """Make the orders whose keys are free, and return the answer or the error of each post.

    `most` is the most that a user may have open, None for any number. While `is_full`, no order is made: used keys are
    answered, and the other posts get CannotWork. Of several posts with one key the first decides. Raises
    IdempotencyInProgress when another transaction holds one of the keys.
    """
    firsts: dict[Claim, NewOrder] = {}
    for order in posted:
        firsts.setdefault(order.request.claim, order)
    claimed = set() if is_full else _claim(session, firsts.values())
    known = _known(session, [order.request for claim, order in firsts.items() if claim not in claimed])
    new = [order for claim, order in firsts.items() if claim in claimed]
    refused = _over_limits(session, new, most) if most and new else {}
    if refused:
        idempotency.give_back(session, [firsts[claim].request for claim in refused])
    made = {order.request.claim: order for order in new if order.request.claim not in refused}
    new_orders.add(session, list(made.values()))
    outbox.emit(session, [order.event() for order in made.values()])
    known |= {claim: order.as_known for claim, order in made.items()}

    def outcome(order: NewOrder) -> Outcome:
        claim = order.request.claim
        if made.get(claim) is order:
            return order.answer
        if claim in refused:
            return refused[claim]
        if claim not in known:
            return CannotWork("too many orders are under way")
        try:
            return known[claim].to(order.request)
        except IdempotencyKeyReused as error:
            return error

    return [outcome(order) for order in posted]


def _claim(session: Session, orders: Collection[NewOrder]) -> set[Claim]:
    claims = [(order.request, order.answer) for order in orders]
    return idempotency.claim_keys(session, claims, new_orders.CLAIMING)


def _known(session: Session, requests: Collection[KeyedRequest]) -> dict[Claim, KnownAnswer]:
    """The answers of used keys: as they are stored, or the order as it is now where they were purged."""
    known = idempotency.known_answers(session, requests)
    purged = [request for request in requests if request.claim not in known]
    return known | queries.answers_by_orders(session, purged)


def _over_limits(session: Session, orders: Sequence[NewOrder], most: Open) -> Mapping[Claim, EcomError]:
    """The refusals of those orders that their users may not open beside what they have open."""
    before = new_orders.open_of(session, {order.identity.user_id for order in orders})
    refused: dict[Claim, EcomError] = {}
    for order in orders:
        user_id = order.identity.user_id
        try:
            domain.check_open(before[user_id], order.units, most)
        except EcomError as error:
            refused[order.request.claim] = error
        else:
            before[user_id] = Open(before[user_id].orders + 1, before[user_id].units + order.units)
    return refused
