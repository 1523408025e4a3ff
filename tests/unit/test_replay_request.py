"""Replay requests and list filters are validated by the ops service, for every caller."""

from datetime import UTC, datetime
from uuid import UUID

import pytest

from ops.dlq.replay_request import read_filters, read_replay
from ops.domain import Filter, Pace
from shared.errors import ValidationFailed

ID = "01a1fcf8-0515-7912-9139-7154577473a5"
TRACE = "0af7651916cd43dd8448eb211c80319c"


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
            "trace_id": TRACE.upper(),
            "since": "2026-01-14T12:00:00+02:00",
            "until": "2026-01-14T11:00:00.1239Z",
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
        trace_id=TRACE,
        since=datetime(2026, 1, 14, 10, tzinfo=UTC),
        until=datetime(2026, 1, 14, 11, 0, 0, 123_000, tzinfo=UTC),
    )
    assert (found.most, found.pace, found.why) == (3, Pace(0.5, (1, 2)), "because")
    assert found.force
    assert found.stop_on_redeath


def test_fields_left_out_choose_every_message_at_the_default_rate():
    found = read_replay({"all": True})
    assert (found.chosen, found.most, found.pace) == (Filter(), None, Pace(100.0))
    assert (found.force, found.stop_on_redeath, found.why) == (False, False, "")


@pytest.mark.parametrize("which", [{"ids": [ID]}, {"max": 1}, {"max": 1, "all": False}, {"ids": [ID], "all": True}])
def test_a_replay_chooses_messages_by_ids_a_maximum_or_all(which):
    found = read_replay(which)
    assert (found.chosen.ids, found.most) == (frozenset(map(UUID, which.get("ids", []))), which.get("max"))


@pytest.mark.parametrize(
    "given", [{}, {"all": False}, {"reasons": ["crash"]}, {"order_id": ID}, {"max": 1, "all": True}]
)
def test_a_request_without_ids_a_maximum_or_all_is_refused(given):
    assert problems(read_replay, given) == ["body"]  # the error names no single field


@pytest.mark.parametrize("written", [ID, ID.upper(), ID.replace("-", "")])
def test_a_trace_id_becomes_32_lower_case_hex_digits(written):
    assert read_replay({"all": True, "trace_id": written}).chosen.trace_id == ID.replace("-", "")
    assert read_filters({"trace_id": written}) == {"trace_id": ID.replace("-", "")}


def test_until_before_since_is_refused():
    early, late = "2026-01-14T00:00:00Z", "2026-01-15T00:00:00Z"
    assert read_replay({"all": True, "since": early, "until": early})
    assert problems(read_replay, {"all": True, "since": late, "until": early}) == ["until"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ids", [ID] * 1000),
        ("max", 10**9),
        ("reasons", ["x" * 200] * 50),
        ("types", ["x" * 200] * 50),
        ("error", "x" * 200),
        ("why", "x" * 200),
        ("ramp", ",".join(["999999"] * 20)),
        ("rate", "999999/s"),
        ("rate", "0.125/s"),
    ],
)
def test_the_largest_values_are_accepted(name, value):
    assert read_replay({"ids": [ID], name: value})


def test_the_problems_of_a_list_are_named_by_index():
    with pytest.raises(ValidationFailed) as caught:
        read_replay({"ids": [ID, "7", None], "max": 0})
    assert str(caught.value) == "The body breaks a rule."
    assert sorted(caught.value.details["ids"]) == ["1", "2"]
    assert all(isinstance(texts, list) for texts in (caught.value.details["max"], caught.value.details["ids"]["1"]))


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        *(("ids", bad) for bad in ([], [ID] * 1001, ["7"], [7], [None], [[ID]], ID, None, {})),
        *(
            (name, bad)
            for name in ("reasons", "types")
            for bad in ("crash", [7], [None], [], ["a"] * 51, [""], ["x" * 201], ["a\0"], None)
        ),
        *((name, bad) for name in ("error", "why") for bad in (7, None, [], "", "x" * 201, "a\0b", "\ud800")),
        *(("trace_id", bad) for bad in ("7", "", "a" * 31, "a" * 33, TRACE + "\n", f"{{{ID}}}", "g" * 32, 7, None)),
        *(("order_id", bad) for bad in ("7", "", 7, None, [], ID.replace("-", ""), f"{{{ID}}}", f"urn:uuid:{ID}")),
        ("ids", [ID.replace("-", "")]),
        *(
            (name, bad)
            for name in ("since", "until")
            for bad in ("2026-01-14T12:00:00", "2026-01-14", "2h", "", 7, None, [])
        ),
        ("since", "0001-01-01T00:00:00+14:00"),
        *(("max", bad) for bad in (0, -1, 10**9 + 1, 1e19, "1", 1.0, True, None)),
        *((name, bad) for name in ("all", "force", "stop_on_redeath") for bad in (1, 0, "true", "", None, [])),
        *(("rate", bad) for bad in ("0/s", "0.0/h", "000/m", "1", "1/d", "-1/s", "1e3/s", "1000000/s", "0.0001/s")),
        *(("rate", bad) for bad in (" 1/s", "max/s", "1/s\n", "", "x", "9" * 400 + "/s", 7, None)),
        *(("ramp", bad) for bad in ("0", "1,0", "1,,2", "1,", ",1", "1;2", "1, 2", "1000000", ",".join("1" * 21))),
        *(("ramp", bad) for bad in ("", "x", "9" * 5000, "\N{ARABIC-INDIC DIGIT THREE}", 1, [1], None)),
        ("limit", 1),
    ],
)
def test_a_bad_field_is_refused_by_name(name, bad):
    assert problems(read_replay, {"ids": [ID], name: bad}) == [name]


def test_a_list_accepts_known_filters_with_valid_values_only():
    assert read_filters({"reason": "crash", "event_type": "order.paid", "order_id": ID, "trace_id": TRACE}) == {
        "reason": "crash",
        "event_type": "order.paid",
        "order_id": UUID(ID),
        "trace_id": TRACE,
    }
    for name, bad in (("reason", None), ("order_id", "7"), ("metadata", "x"), ("queue", "x")):
        assert problems(read_filters, {name: bad}) == [name]
