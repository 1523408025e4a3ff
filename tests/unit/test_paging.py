"""Cursors, ids and traces."""

import base64
import time
import uuid
from datetime import datetime, timedelta, timezone

import pytest

from shared.errors import InvalidCursor
from shared.ids import uuid7
from shared.paging import (
    decode_cursor,
    encode_cursor,
    id_position,
    name_position,
    page_of,
    row_position,
    time_position,
)
from shared.tracing import as_uuid, trace_id_from_correlation, trace_id_of, traceparent

FILTERS = {"sku": "lamp"}


def test_a_cursor_gives_back_the_position_it_was_made_for() -> None:
    some, moment = uuid.uuid4(), datetime(2026, 1, 14, 10, 30, tzinfo=timezone(timedelta(hours=2)))
    cursor = encode_cursor(["lamp", 17, moment.isoformat(), some], FILTERS)

    parsers = [name_position, row_position, time_position, id_position]
    assert decode_cursor(cursor, FILTERS, parsers) == ["lamp", 17, moment, some]


# What PostgreSQL, or its driver, would refuse with an error of its own.
UNFIT = {
    name_position: ["a\0b", "\ud800", 7, None, ["lamp"], {}],
    row_position: [True, 0, -1, 2**63, 1.0, "17", None],
    time_position: [
        *("2026-01-14T10:30:00", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "today", "", "\ud800"),
        *(7, None, []),
    ],
    id_position: ["17", "", "\ud800", 7, None, str(uuid.uuid4()) + "0"],
}


@pytest.mark.parametrize(("parse", "value"), [(parse, value) for parse, values in UNFIT.items() for value in values])
def test_a_position_that_its_column_cannot_hold_is_refused(parse, value) -> None:
    with pytest.raises(InvalidCursor):
        decode_cursor(encode_cursor([value], FILTERS), FILTERS, [parse])


@pytest.mark.parametrize(
    "cursor",
    [
        encode_cursor(["2026", 17], {"sku": "desk"}),
        encode_cursor(["2026"], FILTERS),
        encode_cursor([17, "2026"], FILTERS),
        encode_cursor(["2026", True], FILTERS),
        "",
        "%%%",
        "ü",
        base64.urlsafe_b64encode(b"{}").decode(),
        base64.urlsafe_b64encode(b"[" * 100_000).decode(),
        base64.urlsafe_b64encode(b"3").decode(),
        base64.urlsafe_b64encode(b"\xff").decode(),
    ],
)
def test_a_cursor_of_other_filters_or_of_other_making_is_refused(cursor: str) -> None:
    with pytest.raises(InvalidCursor):
        decode_cursor(cursor, FILTERS, [name_position, row_position])


def test_a_page_knows_whether_there_is_more() -> None:
    assert page_of([1, 2, 3], 2) == ([1, 2], True)
    assert page_of([1, 2], 2) == ([1, 2], False)


def test_new_ids_are_of_version_7_and_grow_with_time() -> None:
    first = uuid7()
    time.sleep(0.002)
    second = uuid7()

    assert (first.version, first.variant) == (7, uuid.RFC_4122)
    assert first < second
    assert abs((first.int >> 80) / 1000 - time.time()) < 5


def test_a_trace_goes_out_as_it_came_in() -> None:
    trace_id = uuid.uuid4().hex

    assert trace_id_of(traceparent(trace_id)) == trace_id
    assert uuid.UUID(as_uuid(trace_id)).hex == trace_id


@pytest.mark.parametrize(
    "header", [None, "", "00-x-y-01", f"00-{'0' * 32}-{'1' * 16}-01", f"01-{'1' * 32}-{'1' * 16}-01"]
)
def test_a_malformed_traceparent_is_no_trace(header: str | None) -> None:
    assert trace_id_of(header) is None


def test_a_correlation_id_is_a_trace_only_when_it_is_a_uuid() -> None:
    some = uuid.uuid4()

    assert trace_id_from_correlation(str(some)) == some.hex
    assert trace_id_from_correlation("order 17") is None
