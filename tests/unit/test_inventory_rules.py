"""The rules of reservations and stock: every row of the table."""

from dataclasses import replace
from uuid import UUID, uuid4

import pytest

from inventory_service import domain
from inventory_service.domain import COMMIT, RELEASE, Kind, Movement, Outcome, Reservation, State, Stock
from shared.enumerations import MovementCause as Cause
from shared.errors import BelowReserved, UnexpectedEvent, UnknownOrder, VersionMoved
from shared.events import Committed, Item, OrderCreated, OrderedItem, Released, ReservationFailed, Reserved, Shortage

ORDER, RESERVATION = uuid4(), uuid4()


def order(*items: tuple[str, int], order_id: UUID = ORDER) -> OrderCreated:
    return OrderCreated(order_id, "EUR", 500, tuple(OrderedItem(sku, n, 100) for sku, n in items), "mock_ok")


def stock(on_hand: int = 10, reserved: int = 0, sku: str = "lamp") -> dict[str, Stock]:
    return {sku: Stock(sku, on_hand, reserved, version=7)}


def reservation(state: State, kind: Kind = Kind.ORDER, **quantities: int) -> Reservation:
    return Reservation(ORDER, RESERVATION, state, quantities, kind)


def asking(made: Reservation, **quantities: int) -> Reservation:
    return replace(made, asked=domain.fingerprint(quantities))


def close(verb: str, was: Reservation | None, have: dict[str, Stock] | None = None) -> Outcome:
    return domain.close_reservation(have or {}, was, verb, ORDER, "payment_failed")


def test_a_new_order_reserves_its_stock_and_emits_reserved() -> None:
    outcome = domain.reserve(stock(10, 3), {}, order(("lamp", 5)), RESERVATION)

    assert outcome.reservation == asking(reservation(State.RESERVED, lamp=5), lamp=5)
    assert outcome.stock == (Stock("lamp", 10, 8, version=7),)
    assert outcome.movements == ()
    (event,) = outcome.emits
    assert event == Reserved(ORDER, RESERVATION, order(("lamp", 5)).items, 500, "EUR", "mock_ok")


def test_the_last_unit_can_be_reserved() -> None:
    assert domain.reserve(stock(10, 5), {}, order(("lamp", 5)), RESERVATION).stock == (
        Stock("lamp", 10, 10, version=7),
    )


def test_an_order_with_too_little_stock_is_refused_with_its_shortages() -> None:
    outcome = domain.reserve(stock(10, 6), {}, order(("lamp", 5)), RESERVATION)

    assert outcome.reservation == asking(reservation(State.REFUSED), lamp=5)
    assert outcome.stock == ()
    assert outcome.emits == (ReservationFailed(ORDER, "out_of_stock", (Shortage("lamp", 5, 4),)),)


def test_an_unknown_sku_refuses_the_whole_order() -> None:
    outcome = domain.reserve(stock(), {}, order(("lamp", 1), ("ghost", 2)), RESERVATION)

    assert outcome.reservation.state == State.REFUSED
    assert outcome.stock == ()
    assert outcome.emits == (ReservationFailed(ORDER, "unknown_sku", (Shortage("ghost", 2, 0),)),)


def test_lines_of_one_sku_are_summed_before_the_check() -> None:
    outcome = domain.reserve(stock(10), {}, order(("lamp", 6), ("lamp", 5)), RESERVATION)

    assert outcome.emits == (ReservationFailed(ORDER, "out_of_stock", (Shortage("lamp", 11, 10),)),)


@pytest.mark.parametrize("state", State)
def test_an_order_with_a_reservation_changes_and_emits_nothing(state: State) -> None:
    outcome = domain.repeat_reserve(reservation(state, lamp=1), order(("lamp", 1)))

    assert (outcome.changed, outcome.emits) == (False, ())


def test_an_order_with_a_manual_reservation_is_refused() -> None:
    held = reservation(State.RESERVED, Kind.MANUAL, lamp=1)

    assert domain.repeat_reserve(held, order(("lamp", 1))).emits == (ReservationFailed(ORDER, "held_manually", ()),)


def test_a_commit_turns_a_reservation_into_a_sale() -> None:
    outcome = close(COMMIT, reservation(State.RESERVED, lamp=4), stock(10, 4))

    assert outcome.reservation.state == State.COMMITTED
    assert outcome.stock == (Stock("lamp", 6, 0, version=8),)
    assert outcome.movements == (Movement("lamp", -4, Cause.SALE, 6),)
    assert not outcome.audited
    assert outcome.emits == (Committed(ORDER, RESERVATION, (Item("lamp", 4),), "payment_failed"),)


@pytest.mark.parametrize("state", [State.COMMITTED, State.RELEASED])
def test_a_commit_of_a_committed_or_released_reservation_changes_nothing(state: State) -> None:
    outcome = close(COMMIT, reservation(state, lamp=4), stock())

    assert (outcome.changed, outcome.emits, outcome.stock) == (False, (), ())


def test_a_commit_of_a_refused_reservation_is_unexpected() -> None:
    with pytest.raises(UnexpectedEvent, match="REFUSED"):
        close(COMMIT, reservation(State.REFUSED))


def test_a_commit_without_reservation_raises_unknown_order() -> None:
    with pytest.raises(UnknownOrder, match=str(ORDER)):
        close(COMMIT, None)


def test_a_release_returns_reserved_stock_and_is_audited() -> None:
    outcome = close(RELEASE, reservation(State.RESERVED, lamp=4), stock(10, 4))

    assert outcome.reservation.state == State.RELEASED
    assert outcome.stock == (Stock("lamp", 10, 0, version=7),)
    assert outcome.movements == ()
    assert outcome.audited
    assert outcome.emits == (Released(ORDER, RESERVATION, (Item("lamp", 4),), "payment_failed"),)


def test_a_release_of_sold_stock_returns_it_and_is_audited() -> None:
    outcome = close(RELEASE, reservation(State.COMMITTED, lamp=4), stock(6, 0))

    assert outcome.reservation.state == State.RELEASED
    assert outcome.stock == (Stock("lamp", 10, 0, version=8),)
    assert outcome.movements == (Movement("lamp", 4, Cause.RETURN, 10),)
    assert outcome.audited


@pytest.mark.parametrize("state", [State.RELEASED, State.REFUSED])
def test_a_release_of_a_released_or_refused_reservation_changes_nothing(state: State) -> None:
    outcome = close(RELEASE, reservation(state), stock())

    assert (outcome.changed, outcome.audited, outcome.emits) == (False, False, ())


def test_closing_a_manual_reservation_is_audited_and_emits_nothing() -> None:
    outcome = close(RELEASE, reservation(State.RESERVED, Kind.MANUAL, lamp=4), stock(10, 4))

    assert outcome.audited
    assert outcome.emits == ()


def test_only_commit_of_a_refused_reservation_has_no_row() -> None:
    pairs = {(state, verb) for state in State for verb in (domain.RESERVE, COMMIT, RELEASE)}

    assert pairs - set(domain.TABLE) == {(State.REFUSED, COMMIT)}


def test_a_manual_reservation_succeeds_or_returns_its_shortages() -> None:
    held = domain.hold_manually(stock(10, 8), {}, ORDER, RESERVATION, {"lamp": 2})
    short = domain.hold_manually(stock(10, 8), {}, ORDER, RESERVATION, {"lamp": 3})

    assert isinstance(held, Outcome)
    assert held.stock == (Stock("lamp", 10, 10, version=7),)
    assert short == (Shortage("lamp", 3, 2),)


def test_setting_stock_records_the_difference_as_a_movement() -> None:
    assert domain.put(stock(10, 4)["lamp"], "lamp", 6, None) == (
        Stock("lamp", 6, 4, 8),
        Movement("lamp", -4, Cause.PUT, 6),
    )
    assert domain.put(None, "lamp", 5, None) == (Stock("lamp", 5, 0, 1), Movement("lamp", 5, Cause.PUT, 5))


def test_setting_stock_to_its_present_quantity_records_no_movement() -> None:
    assert domain.put(stock(10)["lamp"], "lamp", 10, 7) == (stock(10)["lamp"], None)


def test_stock_cannot_be_set_below_the_reserved_quantity() -> None:
    with pytest.raises(BelowReserved) as caught:
        domain.put(stock(10, 4)["lamp"], "lamp", 3, None)

    assert caught.value.details == {"sku": "lamp", "reserved": 4}


def test_stock_is_not_set_with_an_old_version() -> None:
    with pytest.raises(VersionMoved) as caught:
        domain.put(stock(10)["lamp"], "lamp", 3, 6)

    assert caught.value.details == {"version": 7}
