"""How long a batch waits for more: by how fast work arrives."""

from __future__ import annotations

import pytest

from shared.edge.gathering import ENOUGH, MEMORY_S, Gathering

MOST_S = 0.04


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def arriving(per_s: float, for_s: float, clock: Clock, most_s: float = MOST_S) -> Gathering:
    """A Gathering to which work has come evenly."""
    gathering = Gathering(most_s, clock)
    for _ in range(int(per_s * for_s)):
        clock.now += 1 / per_s
        gathering.note(1)
    return gathering


@pytest.mark.parametrize("per_s", [0.5, 3, 10, 30])
def test_work_that_comes_singly_does_not_wait(per_s: float) -> None:
    assert arriving(per_s, 5, Clock()).wait_s(1, at_once=False) == 0


def test_a_short_burst_does_not_wait() -> None:
    gathering = Gathering(MOST_S, Clock())
    gathering.note(10)  # ten people at once
    assert gathering.wait_s(10, at_once=False) == 0


@pytest.mark.parametrize("per_s", [100, 200])
def test_under_load_a_batch_waits_for_the_longest_time(per_s: float) -> None:
    assert arriving(per_s, 5, Clock()).wait_s(1, at_once=False) == MOST_S


def test_a_batch_waits_no_longer_than_until_it_is_expected_to_hold_enough() -> None:
    gathering = arriving(1000, 5, Clock())
    assert gathering.wait_s(1, at_once=False) == pytest.approx((ENOUGH - 1) / 1000, rel=0.1)
    assert gathering.wait_s(ENOUGH - 5, at_once=False) == pytest.approx(5 / 1000, rel=0.1)
    assert gathering.wait_s(ENOUGH, at_once=False) == 0


def test_soon_after_a_load_has_ended_nothing_waits() -> None:
    clock = Clock()
    gathering = arriving(200, 5, clock)
    clock.now += 4 * MEMORY_S
    assert gathering.wait_s(1, at_once=False) == 0


def test_where_most_batches_find_work_that_waited_for_them_a_batch_waits_although_little_arrives() -> None:
    clock = Clock()
    gathering = Gathering(MOST_S, clock)

    def begin(at_once: bool) -> float:
        clock.now += 1 / 20  # 20 a second, as one of many processes sees them
        gathering.note(1)
        return gathering.wait_s(1, at_once)

    assert [begin(at_once=False) for _ in range(5)] == [0] * 5
    assert [begin(at_once=True) for _ in range(3)] == [0] * 3, "now and then two come at the same time"
    assert [begin(at_once=True) for _ in range(5)][-1] == MOST_S
    assert [begin(at_once=False) for _ in range(5)][-1] == 0


def test_a_longest_wait_of_0_never_waits() -> None:
    assert arriving(1000, 5, Clock(), most_s=0).wait_s(1, at_once=False) == 0
