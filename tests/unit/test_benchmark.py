"""The arithmetic of the benchmark: percentiles, ratios, CPU of processes; its pictures and its page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import page, report
from benchmarks.counters import Counts, Usage, usage_of
from benchmarks.measure import Run, percentiles
from benchmarks.pictures import Line, picture, round_up

RUN = Run(
    contender="ours",
    accepted=100,
    ended_per_s=100.0,
    cpu_ms={"order": 3.0, "postgres": 2.0, "provider": 50.0, "load": 70.0},
    counts={},
    memory_mb={},
    saga_ms={"p95": 20.0},
)


def runs(*rates: float) -> list[Run]:
    return [replace(RUN, ended_per_s=rate) for rate in rates]


def test_so_many_percent_do_not_exceed_a_percentile():
    assert percentiles([n / 1000 for n in range(100, 0, -1)]) == {"p50": 50.0, "p95": 95.0, "p99": 99.0}
    assert percentiles([0.007]) == {"p50": 7.0, "p95": 7.0, "p99": 7.0}
    assert percentiles([]) == {}


def test_a_ratio_is_one_of_medians_over_the_rounds():
    measured = {"ours": runs(300, 10, 200), "faststream": runs(50, 40, 1), "floor": runs(500, 400, 900)}
    assert report.ratios(measured) == {"ours_over_peer": 5.0, "ours_over_floor": 0.4, "cpu_ms_per_order": 5.0}
    assert report.middle(measured["ours"]).ended_per_s == 200


def test_provider_and_load_generator_are_no_part_of_an_order():
    assert RUN.cpu_ms_per_order == 5.0


def test_what_two_readings_differ_by_is_told_for_each_order():
    spent = Counts(50, 20, 10, 400, 60, 60) - Counts(10, 10, 0, 0, 0, 0)
    assert spent.per(10) == {
        "statements": 4.0,
        "transactions": 1.0,
        "wal_syncs": 1.0,
        "wal_bytes": 40.0,
        "published": 6.0,
        "acknowledged": 6.0,
    }
    assert Usage({"order": 3.0, "new": 1.0}, {}).cpu_since(Usage({"order": 1.0}, {})) == {"order": 2.0, "new": 1.0}


def test_a_process_is_counted_with_its_children_that_have_ended():
    """A child of this process works for a while and ends; whoever counts only what runs would miss it."""
    before = usage_of({os.getpid(): "tests"})
    work = "import time\nwhile time.process_time() < 0.3: pass"
    subprocess.run([sys.executable, "-c", work], check=True)
    spent = usage_of({os.getpid(): "tests"}).cpu_since(before)
    assert spent["tests"] >= 0.25  # the kernel counts in ticks, and rounds each figure down
    assert before.memory_mb["tests"] > 1


def test_an_axis_ends_at_a_round_number_that_is_large_enough():
    assert [round_up(value) for value in (1, 1.1, 260, 99, 100.5)] == [1, 1.5, 300, 100, 150]


def test_a_picture_shows_each_line_by_name():
    drawn = picture("title", "x", "y", [Line("a < b", [(1, 10), (2, 1000)]), Line("c", [(1, 1)], True)], log=True)
    assert "a &lt; b" in drawn
    assert drawn.count("<polyline") == 2
    assert drawn.count("<circle") == 2  # a dashed line has none


def measured(**sections: object) -> dict[str, object]:
    return {"cores": 2, **sections}


def test_the_page_shows_the_results_of_the_file():
    text = page.FILE.read_text(encoding="utf-8")
    assert page.with_results(text) == text, "run: make bench"


def test_the_page_names_each_figure_with_what_is_promised(tmp_path: Path):
    counts = {"published": 6.4, "transactions": 1.0, "statements": 2.0, "wal_syncs": 0.5}
    run = replace(
        RUN, counts=counts, post_ms={"p50": 1.0, "p95": 2.0, "p99": 3.0}, memory_mb={"order": 70.0, "load": 9}
    )
    file = tmp_path / "results" / "latest.json"
    report.save(file, measured(hot=report.section({"spread": run}, {"hot_over_spread": 0.9})))
    written = page.with_results(f"before {page.BEGINS}old{page.ENDS} after", file)
    assert "| hot_over_spread | 0.9 | at least 0.7 |" in written
    assert "| spread |  | 100 | 0 | 100 | 1/2/3 | 20 | 5.00 | 6.40 | 1.00 | 2.00 | 0.50 | 70 |" in written
    assert written.startswith("before ")
    assert written.endswith(" after")
    assert "old" not in written


def test_a_result_that_is_measured_again_replaces_its_section_alone(tmp_path: Path):
    file = tmp_path / "latest.json"
    report.save(file, {"hot": 1, "scale": 2})
    report.save(file, {"hot": 3})
    known = json.loads(file.read_text())
    assert (known["hot"], known["scale"]) == (3, 2)


@pytest.mark.parametrize("unmarked", ["", page.BEGINS, page.BEGINS + page.ENDS + page.BEGINS])
def test_a_page_without_one_place_for_the_results_is_refused(unmarked: str):
    with pytest.raises(ValueError, match="once"):
        page.with_results(unmarked)


def test_the_pictures_show_each_contender_against_what_it_was_offered(tmp_path: Path):
    offered = [replace(RUN, offered_per_s=rate, ended_per_s_during_load=rate) for rate in (50.0, 100.0)]
    report.draw({"this project": offered, "a peer": offered[:1]}, tmp_path)
    throughput, latency = ((tmp_path / f"bench-{name}.svg").read_text() for name in ("throughput", "latency"))
    assert [throughput.count(words) for words in ("this project", "a peer", "every order", "<circle")] == [1, 1, 1, 3]
    assert [latency.count(words) for words in ("this project", "a peer", "every order", "<circle")] == [1, 1, 0, 3]
