"""Cursors, ids and traces."""

import base64
import time
import uuid

import pytest

from shared.errors import InvalidCursor
from shared.ids import uuid7
from shared.paging import decode_cursor, encode_cursor, page_of
from shared.tracing import as_uuid, trace_id_from_correlation, trace_id_of, traceparent

FILTERS = {"sku": "lamp"}


def test_a_cursor_gives_back_the_position_it_was_made_for() -> None:
    assert decode_cursor(encode_cursor(["2026", 17], FILTERS), FILTERS, [str, int]) == ["2026", 17]


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
        base64.urlsafe_b64encode(b"3").decode(),
        base64.urlsafe_b64encode(b"\xff").decode(),
    ],
)
def test_a_cursor_of_other_filters_or_of_other_making_is_refused(cursor: str) -> None:
    with pytest.raises(InvalidCursor):
        decode_cursor(cursor, FILTERS, [str, int])


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
