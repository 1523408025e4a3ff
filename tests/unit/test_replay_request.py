"""Replay requests and list filters are validated by the ops service, for every caller."""

from datetime import UTC, datetime
from uuid import UUID

import pytest

from ops.dlq.replay_request import read_filters, read_replay
from ops.domain import Filter, Pace
from shared.errors import ValidationFailed

ID = "01a1fcf8-0515-7912-9139-7154577473a5"


def problems(read, given):
    with pytest.raises(ValidationFailed) as caught:
        read(given)
    return sorted(caught.value.details)


def test_every_field_of_a_replay_request_is_read():
    found = read_replay(
        {
            "ids": [ID, ID],
            "reasons": ["crash"],
            "error": "timed out",
            "types": ["order.paid"],
            "order_id": ID,
            "trace_id": "a",
            "since": "2026-01-14T12:00:00+02:00",
            "until": "2026-01-14T11:00:00Z",
            "max": 3,
            "all": False,
            "rate": "30/m",
            "ramp": "1,2",
            "force": True,
            "stop_on_redeath": True,
            "why": "because",
        }
    )
    assert found.chosen == Filter(
        ids=frozenset({UUID(ID)}),
        reasons=frozenset({"crash"}),
        error="timed out",
        types=frozenset({"order.paid"}),
        order_id=UUID(ID),
        trace_id="a",
        since=datetime(2026, 1, 14, 10, tzinfo=UTC),
        until=datetime(2026, 1, 14, 11, tzinfo=UTC),
    )
    assert (found.most, found.pace, found.why) == (3, Pace(0.5, (1, 2)), "because")
    assert found.force
    assert found.stop_on_redeath


def test_fields_left_out_choose_every_message_at_the_default_rate():
    found = read_replay({"all": True})
    assert (found.chosen, found.most, found.pace) == (Filter(), None, Pace(100.0))
    assert (found.force, found.stop_on_redeath, found.why) == (False, False, "")


@pytest.mark.parametrize("given", [{}, {"all": False}, {"reasons": ["crash"]}, {"max": 1, "all": True}])
def test_a_request_without_ids_a_maximum_or_all_is_refused(given):
    assert problems(read_replay, given) == []  # the error names no single field


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        *(("ids", bad) for bad in ([], ["7"], [7], [None], ID, None, {})),
        *(("reasons", bad) for bad in ("crash", [7], [], None)),
        *(("types", bad) for bad in ("order.paid", [None])),
        *((name, bad) for name in ("error", "trace_id", "why") for bad in (7, None, [], "a\0b", "\ud800")),
        *(("order_id", bad) for bad in ("7", "", 7, None)),
        *((name, bad) for name in ("since", "until") for bad in ("2026-01-14T12:00:00", "2h", "", 7, None)),
        ("since", "0001-01-01T00:00:00+14:00"),
        *(("max", bad) for bad in (0, -1, "1", 1.0, True, None)),
        *((name, bad) for name in ("all", "force", "stop_on_redeath") for bad in (1, "true", None)),
        *(("rate", bad) for bad in ("0/s", "x", "9" * 400 + "/s", 7, None, "1/d")),
        *(("ramp", bad) for bad in ("0", "1,,2", "", "9" * 5000, "\N{ARABIC-INDIC DIGIT THREE}", [1], None)),
        ("limit", 1),
    ],
)
def test_a_bad_field_is_refused_by_name(name, bad):
    assert problems(read_replay, {"all": True, name: bad}) == [name]


def test_a_list_accepts_known_filters_with_valid_values_only():
    assert read_filters({"reason": "crash", "event_type": "order.paid", "order_id": ID, "trace_id": "a"}) == {
        "reason": "crash",
        "event_type": "order.paid",
        "order_id": UUID(ID),
        "trace_id": "a",
    }
    for name, bad in (("reason", None), ("order_id", "7"), ("metadata", "x"), ("queue", "x")):
        assert problems(read_filters, {name: bad}) == [name]
