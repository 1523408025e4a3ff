"""Making orders, one or many in one transaction. Each post gets the answer that it would get alone.

First each post is judged by the prices that are known. Those that are taken are made. A post in doubt gets the answer
that is stored under its key, if there is one: a repeat of a good order is never refused for a later price. Otherwise
the catalog must be asked about it, outside of any transaction.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from sqlalchemy.orm import Session

from order_service import domain, judging, new_orders, offers, queries
from order_service.domain import Open
from order_service.judging import Offer, Verdict
from order_service.new_orders import NewOrder, PostedOrder
from shared import idempotency, outbox
from shared.errors import CannotWork, EcomError, IdempotencyKeyReused
from shared.idempotency import Claim, KeyedAnswer, KeyedRequest, KnownAnswer

Outcome = KeyedAnswer | EcomError


class InDoubt(NamedTuple):
    """What the copy of the offers cannot decide about a post: the catalog has to be asked about these skus."""

    skus: frozenset[str]


def post(
    session: Session,
    posted: Sequence[PostedOrder],
    most: Open | None,
    is_full: bool,
    asked: Mapping[str, Offer] | None = None,
) -> list[Outcome | InDoubt]:
    """Judge posts, make the orders that are taken, and return the answer, the error or the doubt of each post.

    `asked` are the offers that the catalog has just named: they refuse, and leave no doubt. For the rest see `make`.
    """
    skus = {line.sku for order in posted for line in order.lines}
    known, at = offers.offers_of(session, skus)
    said = known if asked is None else asked
    verdicts = [judging.judge(order.lines, order.currency, said, at) for order in posted]
    judged: list[NewOrder | EcomError | None] = [
        _taken(order, found) if judging.is_taken(found) else None for order, found in zip(posted, verdicts, strict=True)
    ]
    outcomes = iter(make(session, [order for order in judged if isinstance(order, NewOrder)], most, is_full))
    not_taken = [order.request for order, found in zip(posted, judged, strict=True) if not isinstance(found, NewOrder)]
    answers = _known(session, not_taken) if asked is None else _known_for_ever(session, not_taken)

    def outcome(order: PostedOrder, found: NewOrder | EcomError | None, lines: list[Verdict]) -> Outcome | InDoubt:
        if isinstance(found, NewOrder):
            return next(outcomes)
        if order.request.claim in answers:
            return _answer_to(order.request, answers[order.request.claim])
        if found is not None:
            return found
        if asked is not None:
            return judging.refusal(lines, order.currency, at)
        return InDoubt(frozenset(line.sku for line in order.lines))

    return [outcome(*of_post) for of_post in zip(posted, judged, verdicts, strict=True)]


def _known_for_ever(session: Session, requests: Sequence[KeyedRequest]) -> dict[Claim, KnownAnswer]:
    """The answers of used keys, and the promise that none of the other keys has one until this transaction ends.

    An equal post may be at work: to claim its key waits for it. The claim is given back, for a refusal uses up no key.
    """
    if not requests:
        return {}
    nothing = KeyedAnswer(0, {}, "")
    claimed = idempotency.claim_keys(session, [(request, nothing) for request in requests], new_orders.CLAIMING)
    answers = _known(session, [request for request in requests if request.claim not in claimed])
    if claimed:
        idempotency.give_back(session, [request for request in requests if request.claim in claimed])
    return answers


def _taken(posted: PostedOrder, verdicts: Sequence[Verdict]) -> NewOrder | EcomError:
    try:
        return new_orders.new_order(posted, verdicts)
    except EcomError as error:
        return error


def _answer_to(request: KeyedRequest, known: KnownAnswer) -> Outcome:
    try:
        return known.to(request)
    except IdempotencyKeyReused as error:
        return error


def make(session: Session, posted: Sequence[NewOrder], most: Open | None, is_full: bool) -> list[Outcome]:
    """Make the orders whose keys are free, and return the answer or the error of each post.

    `most` is the most that a user may have open, None for any number. While `is_full`, no order is made: used keys are
    answered, and the other posts get CannotWork. Of several posts with one key the first decides. Raises
    IdempotencyInProgress when another transaction holds one of the keys.
    """
    if not posted:
        return []
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
        return _answer_to(order.request, known[claim])

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
