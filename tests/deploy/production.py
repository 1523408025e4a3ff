"""What deploy/k8s/prod must say about its servers, its entry and how a release replaces the one before."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from prometheus_client.metrics import MetricWrapperBase

from shared import metrics
from tests.deploy.overlays import K8S, OURS, ROOT, Overlay
from tests.deploy.rules import faults, replicas_of
from topology.flows import PUBLIC
from topology.services import SERVICES
from topology.table import CONSUMERS

SCALED = ("gateway", "order", "payment", "inventory")
SCALING = {
    "metrics": [
        {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "AverageValue", "averageValue": "600m"}}}
    ],
    "behavior": {
        "scaleUp": {"policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}]},
        "scaleDown": {"policies": [{"type": "Pods", "value": 1, "periodSeconds": 300}]},
    },
}
BROKER_SAYS = (
    "cluster_partition_handling = pause_minority",
    "queue_leader_locator = balanced",
    "quorum_queue.continuous_membership_reconciliation.enabled = true",
    "ssl_options.fail_if_no_peer_cert = true",
    "management.ssl.fail_if_no_peer_cert = true",
)
SYNCHRONOUS = {"method": "any", "number": 1, "dataDurability": "required"}
# The password and a certificate of the private CA, and nobody in clear text.
WHO_CONNECTS = ["hostssl all all all scram-sha-256 clientcert=verify-ca", "hostnossl all all all reject"]
# Streams of orders and the export of the audit have no time limit; every other answer has this one.
STREAMS = (
    "/api/orders/1f0c/events",
    "/api/orders/events",
    "/api/v1/orders/1f0c/events",
    "/api/stocks/release-events/export",
)
ANSWERS = ("/api/orders", "/api/orders/1f0c", "/api/stocks", "/", "/api/orders/1f0c/cancel")
TIMEOUT = "35s"
TLS = {"TLS_CA_FILE": "/run/tls/ca.crt", "TLS_CERT_FILE": "/run/tls/tls.crt", "TLS_KEY_FILE": "/run/tls/tls.key"}

Faults = Iterator[str]


def production_faults(overlay: Overlay) -> list[str]:
    """Every fault of prod, those of `rules` included."""
    return [*faults(overlay), *(fault for rule in RULES for fault in rule(overlay))]


def _file(overlay: Overlay, kind: str, name: str) -> str:
    return overlay.file_of(kind, name)


def _spec(overlay: Overlay, kind: str, name: str) -> dict[str, Any]:
    return (overlay.find(kind, name) or {"spec": {}})["spec"]


def _images(overlay: Overlay) -> Faults:
    for workload in overlay.workloads():
        if not re.fullmatch(r"[a-z0-9./-]+/ecom@sha256:[0-9a-f]{64}", workload.container["image"]):
            yield f"{K8S}/prod/kustomization.yaml: {workload.name} has the image {workload.container['image']}"


def _scaling(overlay: Overlay) -> Faults:
    scalers = {scaler["metadata"]["name"]: scaler["spec"] for scaler in overlay.of("HorizontalPodAutoscaler")}
    for name in sorted(scalers.keys() ^ set(SCALED)):
        yield f"{K8S}/prod/scaling.yaml: {name} must be scaled by its use of processors, or must not"
    for name, spec in scalers.items():
        if {key: spec.get(key) for key in SCALING} != SCALING:
            yield f"{K8S}/prod/scaling.yaml: {name} is scaled by {spec}"
        if spec["scaleTargetRef"] != {"apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout", "name": name}:
            yield f"{K8S}/prod/scaling.yaml: {name} scales {spec['scaleTargetRef']}"
    for workload in overlay.services():
        if (workload.name in scalers) == ("replicas" in workload.spec):
            yield f"{K8S}/prod/kustomization.yaml: the replicas of {workload.name} must be said in one place"


def _rollouts(overlay: Overlay) -> Faults:
    for workload in overlay.services():
        strategy, name = workload.spec["strategy"], workload.name
        wanted = ["health", *(["calls"] if _row(name).has_rpc else []), *(["events"] if name in CONSUMERS else [])]
        if not workload.spec.get("progressDeadlineAbort"):
            yield f"{K8S}/prod/rollouts.yaml: {name} keeps a new version that is not ready within the deadline"
        if workload.spec.get("rollbackWindow") != {"revisions": 1}:
            yield f"{K8S}/prod/rollouts.yaml: {name} waits for the steps of a release when it goes back"
        if name in PUBLIC:
            yield from _blue_green(name, strategy.get("blueGreen", {}))
            continue
        canary = strategy.get("canary", {})
        steps = [step.get("setWeight", _templates(step.get("analysis", {}))) for step in canary.get("steps", ())]
        if steps != [1, wanted, 50, wanted]:
            yield f"{K8S}/prod/rollouts.yaml: {name} is replaced in the steps {steps}, not {[1, wanted, 50, wanted]}"
        if (canary.get("maxSurge"), canary.get("maxUnavailable")) != (1, 0):
            yield f"{K8S}/prod/rollouts.yaml: {name} has fewer or more pods than it should while it is replaced"


def _blue_green(name: str, strategy: dict[str, Any]) -> Faults:
    file = f"{K8S}/prod/rollout-of-gateway.yaml"
    if (strategy.get("activeService"), strategy.get("previewService")) != (name, f"{name}-preview"):
        yield f"{file}: {name} is switched between {strategy.get('activeService')} and {strategy.get('previewService')}"
    if strategy.get("scaleDownDelaySeconds") != 3600:
        yield f"{file}: the old {name} is kept {strategy.get('scaleDownDelaySeconds')} s, not an hour"
    if _templates(strategy.get("prePromotionAnalysis", {})) != ["smoke"]:
        yield f"{file}: the new {name} is not tried before it serves"
    after = strategy.get("postPromotionAnalysis", {})
    given = {one["name"]: one.get("value") for one in after.get("args", ())}
    if _templates(after) != ["health", "requests"] or (given.get("old-window"), given.get("looks")) != ("1h", "20"):
        yield f"{file}: the new {name} is not compared for ten minutes with the last hour of the old one"


def _templates(analysis: dict[str, Any]) -> list[str]:
    return [template["templateName"] for template in analysis.get("templates", ())]


def _row(name: str) -> Any:
    return next(row for row in SERVICES if row.name == name)


def _shares(overlay: Overlay) -> Faults:
    """A client's limits are shared by as many gateways as there are at least."""
    for workload in overlay.services():
        fewest, shares = replicas_of(overlay, workload)[0], workload.environment.get("RATE_SHARES")
        if workload.name in PUBLIC and shares != str(fewest):
            yield f"{K8S}/prod/settings.yaml: {workload.name} has RATE_SHARES {shares}, and {fewest} replicas at least"


def _broker(overlay: Overlay) -> Faults:
    file, spec = _file(overlay, "RabbitmqCluster", "rabbitmq"), _spec(overlay, "RabbitmqCluster", "rabbitmq")
    if spec.get("replicas") != 3 or not str(spec.get("image", "")).startswith("rabbitmq:4.2"):
        yield f"{file}: the broker has {spec.get('replicas')} nodes of {spec.get('image')}"
    if not spec.get("tls", {}).get("disableNonTLSListeners"):
        yield f"{file}: the broker listens in clear text"
    said = spec.get("rabbitmq", {}).get("additionalConfig", "").splitlines()
    yield from (f"{file}: the broker's settings lack `{line}`" for line in BROKER_SAYS if line not in said)
    pod = spec.get("override", {}).get("statefulSet", {}).get("spec", {}).get("template", {}).get("spec", {})
    spread = pod.get("topologySpreadConstraints", ())
    if [one["topologyKey"] for one in spread if one["whenUnsatisfiable"] == "DoNotSchedule"] != [
        "topology.kubernetes.io/zone"
    ]:
        yield f"{file}: two nodes of the broker may be in one zone"
    budget = _spec(overlay, "PodDisruptionBudget", "rabbitmq")
    if budget.get("maxUnavailable") != 1:
        yield f"{file}: a drain may take two nodes of the broker"


def _database(overlay: Overlay) -> Faults:
    file, spec = _file(overlay, "Cluster", "postgres"), _spec(overlay, "Cluster", "postgres")
    if spec.get("instances") != 3:
        yield f"{file}: the database has {spec.get('instances')} instances"
    if spec.get("postgresql", {}).get("synchronous") != SYNCHRONOUS:
        yield f"{file}: a commit is answered before a second instance has it"
    if spec.get("postgresql", {}).get("pg_hba") != WHO_CONNECTS:
        yield f"{file}: the database hears {spec.get('postgresql', {}).get('pg_hba')}"
    if spec.get("postgresql", {}).get("parameters", {}).get("archive_timeout") != "5min":
        yield f"{file}: more than five minutes may be lost"
    where = spec.get("affinity", {})
    if (where.get("podAntiAffinityType"), where.get("topologyKey")) != ("required", "topology.kubernetes.io/zone"):
        yield f"{file}: two instances of the database may be in one zone"
    roles = {role["name"]: role for role in spec.get("managed", {}).get("roles", ())}
    admin = roles.get("ecom_admin", {})
    if not (admin.get("createdb") and admin.get("createrole")) or admin.get("superuser") or len(roles) != 1:
        yield f"{file}: ecom_admin may do more or less than make databases and roles"
    if spec.get("enableSuperuserAccess"):
        yield f"{file}: the superuser has a password"
    backup = _spec(overlay, "ScheduledBackup", "postgres")
    if not backup or backup["schedule"].split()[3:] != ["*", "*", "*"] or backup.get("method") != "plugin":
        yield f"{file}: there is no backup every day"
    if _spec(overlay, "ObjectStore", "backups").get("retentionPolicy") != "14d":
        yield f"{file}: backups are not kept for 14 days"


def _certificates(overlay: Overlay) -> Faults:
    file = f"{K8S}/prod/certificates.yaml"
    made = {one["spec"]["secretName"]: one["spec"] for one in overlay.of("Certificate")}
    for name in OURS:
        spec = made.get(f"{name}-tls", {})
        if spec.get("commonName") != name or "client auth" not in spec.get("usages", ()):
            yield f"{file}: {name} has no client certificate of its own"
    for name in ("rabbitmq", "postgres"):
        spec = made.get(f"{name}-tls", {})
        if name not in spec.get("dnsNames", ()) or "server auth" not in spec.get("usages", ()):
            yield f"{file}: {name} has no certificate for its name"
    for workload in overlay.workloads():
        volumes = {volume["name"]: volume for volume in workload.pod.get("volumes", ())}
        secret = volumes.get("tls", {}).get("secret", {})
        mounts = [mount["mountPath"] for mount in workload.container["volumeMounts"] if mount["name"] == "tls"]
        if (secret.get("secretName"), secret.get("defaultMode"), mounts) != (
            f"{workload.name}-tls",
            0o440,
            ["/run/tls"],
        ):
            yield f"{K8S}/prod/settings.yaml: {workload.name} has not its own certificate"
        if {variable: workload.environment.get(variable) for variable in TLS} != TLS:
            yield f"{K8S}/prod/tls.yaml: {workload.name} does not use its certificate"


def _entry(overlay: Overlay) -> Faults:
    file = f"{K8S}/prod/entry.yaml"
    listeners = _spec(overlay, "Gateway", "entry").get("listeners", ())
    if [listener["protocol"] for listener in listeners] != ["HTTPS"]:
        yield f"{file}: clients may come in by something else than HTTPS"
    rules = _spec(overlay, "HTTPRoute", "entry").get("rules", ())
    for path, wanted in {**dict.fromkeys(STREAMS, "0s"), **dict.fromkeys(ANSWERS, TIMEOUT)}.items():
        found = next((rule["timeouts"]["request"] for rule in rules if _leads(rule, path)), None)
        if found != wanted:
            yield f"{file}: {path} is ended after {found}, not {wanted}"
    for rule in rules:
        if rule["backendRefs"] != [{"name": "gateway", "port": 8000}]:
            yield f"{file}: clients are sent to {rule['backendRefs']}"


def _leads(rule: dict[str, Any], path: str) -> bool:
    ((kind, value),) = [(match["path"]["type"], match["path"]["value"]) for match in rule["matches"]]
    return bool(re.fullmatch(value, path)) if kind == "RegularExpression" else path.startswith(value)


def _monitoring(overlay: Overlay) -> Faults:
    file = f"{K8S}/prod/monitoring.yaml"
    monitor = _spec(overlay, "PodMonitor", "ecom")
    if monitor.get("podTargetLabels") != ["rollouts-pod-template-hash"]:
        yield f"{file}: Prometheus cannot tell new pods from old ones"
    if [one["port"] for one in monitor.get("podMetricsEndpoints", ())] != ["probes"]:
        yield f"{file}: Prometheus does not read the metrics of the services"
    ours = [metric for metric in vars(metrics).values() if isinstance(metric, MetricWrapperBase)]
    known = {sample for metric in ours for sample in _samples(metric)}
    for group in _spec(overlay, "PrometheusRule", "ecom").get("groups", ()):
        for rule in group["rules"]:
            for name in sorted(set(re.findall(r"\becom_\w+", rule["expr"])) - known):
                yield f"{file}: {rule['alert']} asks for {name}, which is no metric"
            page, _, anchor = rule["annotations"]["runbook"].partition("#")
            headings = re.findall(r"^#+ (.*)$", (ROOT / page).read_text(encoding="utf-8"), re.M)
            if anchor and anchor not in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in headings}:
                yield f"{file}: {rule['alert']} leads to {rule['annotations']['runbook']}, which is not there"


def _samples(metric: Any) -> Iterator[str]:
    (described,) = metric.describe()
    endings = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(described.type, [""])
    return (f"{described.name}{ending}" for ending in endings)


def _stores(overlay: Overlay) -> Faults:
    for store in overlay.of("ExternalSecret"):
        if store["spec"]["secretStoreRef"] != {"kind": "SecretStore", "name": "ecom"}:
            yield f"{K8S}/prod/secrets.yaml: {store['metadata']['name']} is filled from another store than `ecom`"


RULES = (
    _images,
    _scaling,
    _rollouts,
    _shares,
    _broker,
    _database,
    _certificates,
    _entry,
    _monitoring,
    _stores,
)
