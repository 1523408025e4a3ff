"""A bad new version is rolled back, and no good one: the triggers, the verdict, and where the figures come from."""

import json
import random
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ops.cli.release import release
from ops.release import prometheus
from ops.release.judge import Verdict, Window, Word, judge
from ops.release.pages import Pages, Pod, figures
from ops.release.prometheus import Prometheus
from ops.release.triggers import EVERY_S, FIGURES, READY_WITHIN_S, TRIGGERS, WAIT_S
from ops.release.watch import watch
from shared import metrics
from shared.errors import CannotWork

GOOD = {
    **dict.fromkeys(FIGURES, 0.0),
    **{"requests": 1000.0, "calls": 1000.0, "events": 1000.0, "ready": 2.0},
    **{"p99_of_requests": 0.2, "p99_of_calls": 0.2, "p99_of_batches": 0.2},
    **{"failed_requests": 10.0, "failed_calls": 10.0, "failed_events": 10.0},
}

# The trigger, what is different in the old version, and in the new one: the least that meets it, and the most that
# does not.
ROWS: list[tuple[str, dict[str, float], dict[str, float], dict[str, float]]] = [
    ("error-rate-requests", {}, {"failed_requests": 61}, {"failed_requests": 60}),
    ("error-rate-calls", {}, {"failed_calls": 61}, {"failed_calls": 60}),
    ("error-rate-events", {}, {"failed_events": 61}, {"failed_events": 60}),
    ("latency-requests", {}, {"p99_of_requests": 0.41}, {"p99_of_requests": 0.4}),
    ("latency-calls", {}, {"p99_of_calls": 0.41}, {"p99_of_calls": 0.4}),
    ("latency-batches", {}, {"p99_of_batches": 0.41}, {"p99_of_batches": 0.4}),
    ("latency-requests", {"p99_of_requests": 0.01}, {"p99_of_requests": 0.26}, {"p99_of_requests": 0.25}),
    ("health", {}, {"failed_probes": 4}, {"failed_probes": 3}),
    ("crash-loop", {}, {"restarts": 2}, {"restarts": 1}),
    ("never-ready", {}, {"never_ready_s": READY_WITHIN_S + 1}, {"never_ready_s": READY_WITHIN_S}),
    ("dead-letters", {}, {"unreadable": 1}, {"unreadable": 0}),
]


@pytest.mark.parametrize(("name", "old", "bad", "good"), ROWS)
def test_a_trigger_rolls_back_at_its_limit_and_not_below(
    name: str, old: dict[str, float], bad: dict[str, float], good: dict[str, float]
) -> None:
    worse, well = Window({**GOOD, **old}, {**GOOD, **bad}), Window({**GOOD, **old}, {**GOOD, **good})

    verdict = judge([worse, worse])
    assert (verdict.word, verdict.reason.split()[0]) == (Word.BAD, name)
    assert judge([well, well]).word is Word.GOOD


def test_every_trigger_has_a_row() -> None:
    assert {name for name, *_ in ROWS} == {trigger.name for trigger in TRIGGERS}


@pytest.mark.parametrize(("name", "old", "bad", "good"), ROWS)
def test_a_trigger_that_is_met_once_is_no_verdict(name: str, old: Any, bad: Any, good: Any) -> None:
    worse, well = Window({**GOOD, **old}, {**GOOD, **bad}), Window({**GOOD, **old}, {**GOOD, **good})

    assert judge([worse]).word is Word.UNKNOWN
    assert judge([well, worse]).word is Word.UNKNOWN
    assert judge([worse, worse, well]).word is Word.GOOD
    assert judge([worse, well, worse]).word is Word.UNKNOWN


@pytest.mark.parametrize(
    "both",
    [
        {"failed_requests": 500.0, "failed_calls": 500.0, "failed_events": 500.0},
        {"p99_of_requests": 9.0, "p99_of_calls": 9.0, "p99_of_batches": 9.0},
        {"failed_probes": 20.0, "ready": 0.0},
        {"failed_probes": 20.0, "fewest_failed_probes": 18.0},
        {"unreadable": 7.0},
    ],
)
def test_what_both_versions_suffer_is_no_fault_of_the_new_one(both: dict[str, float]) -> None:
    window = Window({**GOOD, **both}, {**GOOD, **both})

    assert judge([window, window]) == Verdict(Word.GOOD, "no trigger is met")


@pytest.mark.parametrize("side", ["old", "new"])
def test_under_50_requests_and_events_nothing_is_known(side: str) -> None:
    few = {**GOOD, "requests": 49.0, "calls": 0.0, "events": 0.0, "failed_requests": 49.0, "p99_of_requests": 9.0}
    window = Window(few, GOOD) if side == "old" else Window(GOOD, few)

    verdict = judge([window, window])

    assert verdict.word is Word.UNKNOWN
    assert "49" in verdict.reason


def test_a_crash_loop_needs_no_request() -> None:
    window = Window(dict.fromkeys(FIGURES, 0.0), {**dict.fromkeys(FIGURES, 0.0), "restarts": 2.0})

    assert judge([window, window]).word is Word.BAD


class FakeClock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class FakePod:
    """A process of a service: answers 2 requests, 2 calls and 2 events a second, and is asked whether it is ready."""

    def __init__(self, clock: FakeClock, chance: random.Random, **bad: Any) -> None:
        self.clock, self.chance = clock, chance
        self.errors: float = bad.get("errors", 0.01)
        self.slower: float = bad.get("slower", 1.0)
        self.lives_s: float = bad.get("lives_s", float("inf"))
        self.is_ready: Callable[[float], bool] = bad.get("is_ready", lambda age: True)
        self.poison: bool = bad.get("poison", False)
        self.begin()

    def begin(self) -> None:
        self.started = self.seen = self.clock.now
        self.registry = CollectorRegistry()
        kinds = {"registry": self.registry}
        self.requests = Counter("ecom_http_requests", "", ["route", "status"], **kinds)
        self.calls = Counter("ecom_rpc_calls", "", ["outcome"], **kinds)
        self.events = Counter("ecom_events", "", ["outcome"], **kinds)
        self.seconds = [
            Histogram("ecom_http_request_seconds", "", ["route"], **kinds).labels("/api/orders"),
            Histogram("ecom_rpc_seconds", "", **kinds),
            Histogram("ecom_batch_seconds", "", **kinds),
        ]
        self.dead = Counter("ecom_dead_messages", "", ["reason"], **kinds)
        self.ready, self.was_ready = (Gauge(f"ecom_{name}", "", **kinds) for name in ("ready", "was_ready"))
        self.unready = Counter("ecom_unready", "", **kinds)
        Gauge("process_start_time_seconds", "", **kinds).set(self.started)

    def get(self, path: str) -> str:
        while self.clock.now - self.started > self.lives_s:
            began = self.started + self.lives_s
            self.begin()
            self.started = self.seen = began
            self.registry._names_to_collectors["process_start_time_seconds"].set(began)  # type: ignore[attr-defined]
        ready = self.is_ready(self.clock.now - self.started)
        if path == "/readyz":
            self.ready.set(ready)
            if ready:
                self.was_ready.set(1)
            elif self.was_ready._value.get():
                self.unready.inc()
            return ""
        if ready:
            self.work(int(2 * (self.clock.now - self.seen)))
        self.seen = self.clock.now
        return generate_latest(self.registry).decode()

    def work(self, times: int) -> None:
        for _ in range(times):
            failed = self.chance.random() < self.errors
            self.requests.labels("/api/orders", "500" if failed else "201").inc()
            self.calls.labels("failed" if failed else "done").inc()
            self.events.labels("retry" if failed else "done").inc()
            for one in self.seconds:
                one.observe(self.slower * self.chance.lognormvariate(-2.3, 0.5))
        if times and self.poison:
            self.dead.labels("poison").inc()


def verdict_of(bad: dict[str, Any], chance: random.Random, watch_s: float = 600, **old: Any) -> tuple[Verdict, float]:
    """Watch two good pods of the old version beside one of the new version; the verdict, and after how many seconds."""
    clock = FakeClock()
    pods = {
        "http://old-0": FakePod(clock, chance, **old),
        "http://old-1": FakePod(clock, chance, **old),
    }
    clock.sleep(600)  # they have run for long
    for pod in pods.values():
        pod.get("/readyz")
        pod.get("/metrics")
    pods["http://new-0"] = FakePod(clock, chance, **bad)

    def get(url: str) -> str:
        address, _, path = url.rpartition("/")
        return pods[address].get(f"/{path}")

    pages = Pages(["http://old-0", "http://old-1"], ["http://new-0"], get, clock)
    began = clock.now
    verdict = watch(pages.look, watch_s, clock=clock, sleep=clock.sleep)
    return verdict, clock.now - began


BAD_VERSIONS: dict[str, dict[str, Any]] = {
    "error-rate-requests": {"errors": 0.11},
    "latency-requests": {"slower": 3.0},
    "never-ready": {"is_ready": lambda age: False},
    "health": {"is_ready": lambda age: age < 20},
    "crash-loop": {"lives_s": 40.0},
    "dead-letters": {"poison": True},
}


@pytest.mark.parametrize("trigger", BAD_VERSIONS)
def test_each_bad_version_is_rolled_back_within_three_minutes(trigger: str) -> None:
    verdict, seconds = verdict_of(BAD_VERSIONS[trigger], random.Random(1))

    assert verdict.word is Word.BAD
    assert trigger in verdict.reason
    assert seconds <= 180


@pytest.mark.parametrize("run", range(5))
def test_no_good_version_is_rolled_back(run: int) -> None:
    verdict, seconds = verdict_of({"is_ready": lambda age: age > 10}, random.Random(run))

    assert verdict == Verdict(Word.GOOD, "no trigger is met")
    assert seconds == 600


def test_an_outage_of_both_versions_rolls_nothing_back() -> None:
    verdict, _ = verdict_of(
        {"is_ready": lambda age: not 100 < age < 300, "errors": 0.3},
        random.Random(1),
        is_ready=lambda age: not 700 < age < 900,
        errors=0.3,
    )

    assert verdict.word is Word.GOOD


def test_a_version_without_requests_is_given_to_a_person_after_half_an_hour() -> None:
    nothing = dict.fromkeys(FIGURES, 0.0)
    clock = FakeClock()
    began, said = clock.now, []

    verdict = watch(lambda: Window(nothing, nothing), 300, said.append, clock, clock.sleep)

    assert verdict.word is Word.UNKNOWN
    assert clock.now - began == WAIT_S
    assert [one.word for one in said] == [Word.UNKNOWN] * 2  # one window; then two without a request


def test_a_pod_that_never_answers_was_never_ready() -> None:
    clock = FakeClock()
    pages = Pages(["http://old"], ["http://new"], lambda url: None if "new" in url else "", clock)

    verdict = watch(pages.look, 600, clock=clock, sleep=clock.sleep)

    assert verdict.word is Word.BAD
    assert "never-ready" in verdict.reason


# Where the figures come from.


def calls_of(*pages: tuple[float, float, float]) -> tuple[float, float]:
    """Read one pod at these times, with this start of its process and count of its calls: what it had in the window."""
    pod, window = Pod("http://new"), {}
    for at, started, count in pages:
        text = f'process_start_time_seconds {started}\necom_rpc_calls_total{{outcome="done"}} {count}\n'
        pod.read(lambda url, text=text: text if url.endswith("/metrics") else "", at)
        window = figures([pod])
    return window["calls"], window["restarts"]


def test_the_calls_before_the_first_reading_do_not_count() -> None:
    assert calls_of((100, 1, 70), (130, 1, 75), (160, 1, 81)) == (11, 0)


def test_the_counters_of_a_new_process_begin_at_0() -> None:
    assert calls_of((100, 1, 70), (130, 110, 72), (160, 110, 75)) == (72 + 3, 1)


def test_what_is_older_than_five_minutes_is_forgotten() -> None:
    assert calls_of((100, 1, 10), (130, 120, 20), (425, 120, 50), (430, 120, 60)) == (60 - 20, 0)


def test_every_metric_of_a_figure_is_one_that_the_services_have() -> None:
    known = {
        sample_name
        for metric in vars(metrics).values()
        if isinstance(metric, Counter | Gauge | Histogram)
        for family in metric.describe()
        for sample_name in (family.name, f"{family.name}_total", f"{family.name}_bucket")
    }
    used = set(re.findall(r"(ecom_\w+)\{", " ".join(FIGURES.values())))

    assert len(used) > 8
    assert used <= known


@pytest.mark.parametrize("trigger", TRIGGERS, ids=lambda trigger: trigger.name)
def test_the_query_of_a_trigger_asks_for_old_and_new_pods(trigger: Any) -> None:
    query = trigger.query('hash="a"', 'hash="b"', old_window="1h")

    assert query.count("(") == query.count(")")
    assert 'hash="b"' in query
    assert "$" not in query
    assert ("[1h]" in query) == ('hash="a"' in query)
    assert (">= 50" in query) == bool(trigger.enough)
    assert (trigger.bad, trigger.good) == (
        f"len(result) > 0 && result[0] > {trigger.above:g}",
        f"len(result) > 0 && result[0] <= {trigger.above:g}",
    )


# The answer of each trigger for the series below, which last 5 minutes. Of every kind the old version has
# 1,000 with 1 % failed and a p99 of 0.0995 s, the new one 1,000 with 11 % failed and a p99 of 0.4975 s.
ANSWERS = {
    "error-rate-requests": 0.1,
    "error-rate-calls": 0.1,
    "error-rate-events": 0.1,
    "latency-requests": 0.2475,
    "latency-calls": 0.2475,
    "latency-batches": 0.2475,
    "health": 9,  # 10 in the new version, 1 in the old one
    "crash-loop": 2,
    "never-ready": 200,
    "dead-letters": 10,
}


def series() -> dict[str, str]:
    """Each series with its values, one every 30 s."""
    found = {}
    for pods, failed, slow in (("a", 1, "0.1"), ("b", 11, "0.5")):
        labels = f'hash="{pods}",instance="{pods}"'
        for name, good, bad in (
            ("ecom_http_requests_total", 'route="/api/orders",status="201"', 'route="/api/orders",status="500"'),
            ("ecom_rpc_calls_total", 'outcome="done"', 'outcome="failed"'),
            ("ecom_events_total", 'outcome="done"', 'outcome="retry"'),
        ):
            found[f"{name}{{{labels},{good}}}"] = f"0+{100 - failed}x10"
            found[f"{name}{{{labels},{bad}}}"] = f"0+{failed}x10"
        found[f'ecom_http_requests_total{{{labels},route="/readyz",status="503"}}'] = (
            "0+100x10"  # a probe is no request
        )
        for name in ("ecom_http_request_seconds", "ecom_rpc_seconds", "ecom_batch_seconds"):
            for bound in ("0.05", "0.1", "0.25", "0.5", "+Inf"):
                counted = 0 if float(bound) < float(slow) else 100
                found[f'{name}_bucket{{{labels},le="{bound}"}}'] = f"0+{counted}x10"
        found[f"ecom_ready{{{labels}}}"] = "1x10"
        found[f"ecom_unready_total{{{labels}}}"] = "0+1x10" if pods == "b" else "0 1x9"
        dead = f'ecom_dead_messages_total{{{labels},queue="q",reason="poison"}}'
        found[dead] = "0+1x10" if pods == "b" else "0x10"
    found['process_start_time_seconds{hash="a",instance="a"}'] = "0x10"
    found['process_start_time_seconds{hash="b",instance="b"}'] = "10x3 50x3 100x3"  # two restarts
    found['ecom_was_ready{hash="a",instance="a"}'] = "1x10"
    found['ecom_was_ready{hash="b",instance="b"}'] = "0x10"
    return found


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
def test_prometheus_answers_a_trigger_as_the_judge_does(tmp_path: Path) -> None:
    expected = [
        {
            "expr": trigger.query('hash="a"', 'hash="b"'),
            "eval_time": "5m",
            "exp_samples": [{"labels": "{}", "value": ANSWERS[trigger.name]}],
        }
        for trigger in TRIGGERS
    ] + [
        {"expr": trigger.query('hash="a"', 'hash="nobody"'), "eval_time": "5m", "exp_samples": []}
        for trigger in TRIGGERS
        if trigger.enough
    ]
    tests = {
        "evaluation_interval": "30s",
        "tests": [
            {
                "interval": "30s",
                "input_series": [{"series": name, "values": values} for name, values in series().items()],
                "promql_expr_test": expected,
            }
        ],
    }
    file = tmp_path / "tests.yml"
    file.write_text(json.dumps(tests))  # JSON is YAML

    ended = subprocess.run(["promtool", "test", "rules", file], capture_output=True, text=True, check=False)

    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_prometheus_is_asked_for_each_figure_of_each_version() -> None:
    asked = []

    def ask(query: str) -> Any:
        asked.append(query)
        value = "7" if 'version="2"' in query else "3"
        return {"status": "success", "data": {"result": [{"metric": {}, "value": [0, value]}]}}

    window = Prometheus("http://x", 'version="1"', 'version="2"', "1h", ask).look()

    assert window == Window(dict.fromkeys(FIGURES, 3.0), dict.fromkeys(FIGURES, 7.0))
    assert all(("[1h]" in query) <= ('version="1"' in query) for query in asked)
    assert sum("[300s]" in query for query in asked) == sum("[1h]" in query for query in asked) > 10


def test_a_prometheus_that_refuses_or_is_away_is_a_failure_and_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CannotWork, match="parse error"):
        Prometheus("http://x", "", "", ask=lambda query: {"status": "error", "error": "parse error"}).look()

    def away(*args: Any, **kwargs: Any) -> None:
        raise prometheus.requests.ConnectionError("refused")

    monkeypatch.setattr(prometheus.requests, "get", away)
    with pytest.raises(CannotWork, match="does not answer: refused"):
        Prometheus("http://x", "", "").look()


@pytest.mark.parametrize(
    ("new", "code", "word"),
    [(GOOD, 0, "good"), ({**GOOD, "restarts": 2.0}, 1, "bad"), ({**GOOD, "restarts": 1.0}, 0, "good")],
)
def test_the_command_exits_with_the_verdict(
    monkeypatch: pytest.MonkeyPatch, new: dict[str, float], code: int, word: str
) -> None:
    monkeypatch.setattr(Pages, "look", lambda self: Window(GOOD, new))
    monkeypatch.setattr("ops.release.watch.time.sleep", lambda seconds: None)
    monkeypatch.setattr(watch, "__defaults__", (watch.__defaults__[0], lambda: 0.0, lambda seconds: None))

    result = CliRunner().invoke(release, ["judge", "--old", "http://a", "--new", "http://b", "--watch", "0"])

    assert result.exit_code == code, result.output
    assert result.output.splitlines()[-1].startswith(f"{word}: ")
    assert EVERY_S == 30
