"""The AnalysisTemplates of prod ask what ops/release/triggers.py says, with the same figures."""

import copy
from collections import Counter

import pytest

from ops.release.triggers import EVERY_S, IN_A_ROW, TRIGGERS, WAIT_S, WINDOW_S

OLD, NEW = 'rollouts_pod_template_hash="{{args.old}}"', 'rollouts_pod_template_hash="{{args.new}}"'
FILE = "deploy/k8s/prod/analysis.yaml"


def faults(overlay):
    """Each difference, as a sentence with the file."""
    templates = {one["metadata"]["name"]: one["spec"] for one in overlay.of("AnalysisTemplate")}
    judging = {name: spec for name, spec in templates.items() if name != "smoke"}
    counted = Counter(metric["name"] for spec in judging.values() for metric in spec["metrics"])
    for name in sorted({trigger.name for trigger in TRIGGERS} ^ counted.keys()):
        yield f"{FILE}: {name} is no trigger, or a trigger that nobody asks"
    for name, spec in judging.items():
        defaults = {arg["name"]: arg.get("value") for arg in spec["args"]}
        wanted = {"old": None, "new": None, "old-window": "5m", "looks": str(WINDOW_S // EVERY_S)}
        if defaults != wanted:
            yield f"{FILE}: {name} has the arguments {defaults}, not {wanted}"
        for metric in spec["metrics"]:
            yield from _metric_faults(metric)


def _metric_faults(metric):
    trigger = next((one for one in TRIGGERS if one.name == metric["name"]), None)
    if trigger is None:
        return
    wanted = {
        "interval": f"{EVERY_S}s",
        "count": WAIT_S // EVERY_S,
        "inconclusiveLimit": WAIT_S // EVERY_S,
        "consecutiveSuccessLimit": "{{args.looks}}",
        "failureLimit": IN_A_ROW - 1,
        "successCondition": f"len(result) > 0 && result[0] <= {trigger.above}",
        "failureCondition": f"len(result) > 0 && result[0] > {trigger.above}",
    }
    for key, value in wanted.items():
        if metric.get(key) != value:
            yield f"{FILE}: {trigger.name} has the {key} {metric.get(key)}, not {value}"
    query = " ".join(metric["provider"]["prometheus"]["query"].split())
    if query != trigger.query(OLD, NEW, f"{WINDOW_S // 60}m", "{{args.old-window}}"):
        yield f"{FILE}: {trigger.name} asks another question than the trigger"


def test_argo_rollouts_asks_what_the_triggers_say(overlays):
    assert list(faults(overlays["prod"])) == []


def metric(overlay, name, template):
    spec = overlay.find("AnalysisTemplate", template)["spec"]
    return next(one for one in spec["metrics"] if one["name"] == name)


def changed(name, template, **values):
    return lambda overlay: metric(overlay, name, template).update(values)


def another_question(overlay):
    asked = metric(overlay, "latency-calls", "calls")["provider"]["prometheus"]
    asked["query"] = asked["query"].replace("0.25", "0.5")


MUTATIONS = {
    "crash-loop is no trigger, or": lambda overlay: overlay.find("AnalysisTemplate", "health")["spec"]["metrics"].pop(
        1
    ),
    "events has the arguments": lambda overlay: overlay.find("AnalysisTemplate", "events")["spec"]["args"].pop(),
    "health has the interval 60s": changed("health", "health", interval="60s"),
    "health has the failureLimit 0": changed("health", "health", failureLimit=0),
    "error-rate-requests has the successCondition": changed(
        "error-rate-requests", "requests", successCondition="len(result) > 0 && result[0] <= 0.1"
    ),
    "error-rate-requests has the failureCondition": changed(
        "error-rate-requests", "requests", failureCondition="result[0] > 0.05"
    ),
    "latency-batches has the count 10": changed("latency-batches", "events", count=10),
    "latency-batches has the inconclusiveLimit None": changed("latency-batches", "events", inconclusiveLimit=None),
    "latency-batches has the consecutiveSuccessLimit 1": changed(
        "latency-batches", "events", consecutiveSuccessLimit=1
    ),
    "latency-calls asks another question": another_question,
}


@pytest.mark.parametrize("message", MUTATIONS)
def test_a_template_that_differs_is_named(overlays, message):
    overlay = copy.deepcopy(overlays["prod"])
    MUTATIONS[message](overlay)
    assert any(fault.startswith(f"{FILE}: {message}") for fault in faults(overlay)), list(faults(overlay))
