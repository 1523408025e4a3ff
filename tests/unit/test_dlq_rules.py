"""The rules of dead letters: who is meant, who is refused, in what waves and how fast they go back."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops.domain import (
    FASTEST_PER_S,
    MAX_REPLAYS,
    NEVER,
    SLOWEST_PER_S,
    DeadLetter,
    Fate,
    Filter,
    Pace,
    Tally,
    counted,
    dlq_of,
    parse_ramp,
    parse_rate,
    refusal,
    turns,
    waves,
)
from shared.errors import ValidationFailed
from topology.table import BY_NAME

NOW = datetime(2026, 1, 14, 10, 30, tzinfo=UTC)
LETTER = DeadLetter(
    message_id=UUID(int=1),
    reason="exhausted",
    error_class="ProviderTimeout",
    error_message="no answer in 5 s",
    event_type="inventory.reserved",
    order_id=UUID(int=2),
    trace_id="a" * 32,
    attempts=4,
    first_failed_at=NOW,
    last_failed_at=NOW + timedelta(seconds=7),
    born_at=NOW - timedelta(seconds=1),
)
# Each field with a value that means the letter, and one that does not.
FIELDS = {
    "ids": (frozenset({UUID(int=1), UUID(int=9)}), frozenset({UUID(int=9)})),
    "reasons": (frozenset({"exhausted", "crash"}), frozenset({"crash"})),
    "error": ("TIMEOUT: no answer", "no such answer"),
    "types": (frozenset({"inventory.reserved"}), frozenset({"order.created"})),
    "order_id": (UUID(int=2), UUID(int=1)),
    "trace_id": ("a" * 32, "a" * 31),
    "since": (NOW, NOW + timedelta(microseconds=1)),
    "until": (NOW + timedelta(microseconds=1), NOW),
}


def test_an_empty_filter_matches_every_dead_message():
    assert Filter().matches(LETTER)
    assert Filter().matches(DeadLetter(uuid4(), ""))


def test_every_field_of_a_filter_is_tried_here():
    assert FIELDS.keys() == Filter.__dataclass_fields__.keys()


@pytest.mark.parametrize("name", FIELDS)
def test_each_filter_field_matches_its_value_only(name):
    meant, other = FIELDS[name]
    assert Filter(**{name: meant}).matches(LETTER)
    assert not Filter(**{name: other}).matches(LETTER)


@given(st.dictionaries(st.sampled_from(sorted(FIELDS)), st.booleans()))
def test_fields_given_together_must_all_hold(chosen):
    given_together = Filter(**{name: FIELDS[name][0 if meant else 1] for name, meant in chosen.items()})
    assert given_together.matches(LETTER) == all(chosen.values())


def test_the_ledger_records_only_the_filter_fields_that_are_set():
    assert Filter().as_dict() == {}
    told = Filter(ids=frozenset({UUID(int=2), UUID(int=1)}), error="x", since=NOW).as_dict()
    assert told == {"ids": [str(UUID(int=1)), str(UUID(int=2))], "error": "x", "since": str(NOW)}
    assert Pace(10.0, (1, 2)).as_dict() == {"rate": 10.0, "ramp": [1, 2]}


def test_copies_are_counted_in_words():
    assert (counted(3, 3), counted(109, 99)) == ("3", "109 messages of 99 ids")


def test_a_tally_with_copies_says_how_many():
    assert Tally(chosen=2, copies=1).as_dict() == {"chosen": 2, "copies": 1}


@given(st.lists(st.tuples(st.integers(), st.sampled_from([None, "a", "b"]))))
def test_a_turn_has_each_group_once_and_a_group_keeps_its_order(items):
    found = turns(items, lambda item: item[1])
    for turn in found:
        groups = [group for _, group in turn if group is not None]
        assert len(groups) == len(set(groups))
    for group in (None, "a", "b"):
        kept = [item for turn in found for item in turn if item[1] == group]
        assert kept == [item for item in items if item[1] == group]
    assert len(found) == max(
        [sum(item[1] == group for item in items) for group in ("a", "b")]
        + [int(any(item[1] is None for item in items))]
    )


def test_a_tally_shows_only_counts_above_zero():
    tally = Tally(chosen=3)
    assert tally.as_dict() == {"chosen": 3}
    tally.fates[Fate.SENT] += 1
    tally.fates[Fate.SENT] -= 1
    tally.fates[Fate.DEAD_AGAIN] += 1
    tally.reasons["exhausted"] += 1
    assert tally.as_dict() == {"chosen": 3, "dead_again": 1, "reasons": {"exhausted": 1}}


DAYS = 90
LIMIT = timedelta(days=DAYS)
SECOND = timedelta(seconds=1)


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({}, None),
        ({"replays": MAX_REPLAYS - 1}, None),
        ({"replays": MAX_REPLAYS}, "replayed 3 times before"),
        ({"replays": 1_000_000}, "replayed 1000000 times before"),
        ({"born_at": NEVER, "first_failed_at": NEVER}, "of unknown age"),
        ({"born_at": NOW - LIMIT}, None),
        ({"born_at": NOW - LIMIT - SECOND}, "older than the 90 days that the inbox remembers"),
        ({"first_failed_at": NOW - LIMIT - SECOND}, "older than the 90 days that the inbox remembers"),
        ({"born_at": NEVER}, None),
        ({"born_at": NEVER, "first_failed_at": NOW - LIMIT - SECOND}, "older than"),
        ({"first_failed_at": NEVER, "born_at": NOW - LIMIT - SECOND}, "older than"),
        ({"born_at": NOW + LIMIT, "first_failed_at": NEVER}, None),
    ],
)
def test_messages_older_than_the_inbox_or_replayed_too_often_are_refused(changed, word):
    found = refusal(replace(LETTER, **changed), NOW, DAYS)
    assert found is None if word is None else word in found


def test_the_last_wave_of_a_ramp_repeats():
    assert list(islice(waves((1, 2, 5)), 6)) == [1, 2, 5, 5, 5, 5]


def test_an_empty_ramp_has_no_wave():
    assert list(waves(())) == []


@given(st.lists(st.integers(1, 100), min_size=1), st.integers(0, 2000))
def test_waves_cut_to_what_is_left_come_to_all_of_it(ramp, left):
    sent, sizes = 0, waves(ramp)
    while sent < left:
        sent += min(next(sizes), left - sent)
    assert sent == left


@pytest.mark.parametrize(
    ("text", "per_second"),
    [("10/s", 10), ("30/m", 0.5), ("90/min", 1.5), ("36/h", 0.01), ("0.5/s", 0.5), ("max", None), ("1/h", 1 / 3600)],
)
def test_rates_read_as_people_write_them(text, per_second):
    assert parse_rate(text) == per_second


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10",
        "0/s",
        "0.0/h",
        "-1/s",
        "1e3/s",
        "10/d",
        "10 /s",
        "inf/s",
        "nan/s",
        "MAX",
        "9" * 400 + "/s",
        "10/s\n",
        "0." + "0" * 30 + "1/h",
        "1000001/s",
    ],
)
def test_invalid_rates_are_refused(text):
    with pytest.raises(ValidationFailed, match="a rate reads"):
        parse_rate(text)


@given(st.text())
def test_any_other_text_is_a_rate_that_can_be_kept_or_refused(text):
    try:
        rate = parse_rate(text)
    except ValidationFailed:
        return
    assert rate is None or SLOWEST_PER_S <= rate <= FASTEST_PER_S


@given(st.lists(st.integers(1, 1_000_000), min_size=1, max_size=9))
def test_ramps_read_as_they_are_written(sizes):
    assert parse_ramp(", ".join(map(str, sizes))) == tuple(sizes)


@pytest.mark.parametrize("text", ["", ",", "1,", "0", "1,0", "-1", "1.5", "1;2", "x", "²", "1000001", "9" * 5000])
def test_invalid_ramps_are_refused(text):
    with pytest.raises(ValidationFailed, match="a ramp reads"):
        parse_ramp(text)


@pytest.mark.parametrize("queue", BY_NAME)
def test_a_queue_and_its_dlq_are_named_by_either(queue):
    assert dlq_of(queue) == dlq_of(f"{queue}.dlq") == (queue, f"{queue}.dlq")


@pytest.mark.parametrize(
    "queue", ["", ".dlq", "q.nope", "q.order.payment-result.retry", "q.order.payment-result.dlq.dlq"]
)
def test_a_name_that_is_not_in_the_table_is_refused_with_those_that_are(queue):
    with pytest.raises(ValidationFailed, match=r"one of q\.inventory\.order-created, "):
        dlq_of(queue)
