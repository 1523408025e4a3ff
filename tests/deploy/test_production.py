"""deploy/k8s/prod: servers that lose nothing, releases that are judged, and settings that production accepts."""

import copy
import secrets

import pytest

from shared import config, unsafe
from tests.deploy.overlays import CRON_JOBS, JOBS, SECRETS, Workload
from tests.deploy.production import TLS, production_faults
from tests.deploy.rules import OUTSIDE


def test_production_fits_the_code(overlays):
    assert production_faults(overlays["prod"]) == []


def test_both_overlays_fill_a_secret_from_the_same_files(overlays):
    """What make_secrets.py makes under a name is in the store under that name."""
    values = stored(overlays)
    for workload in overlays["dev"].workloads():
        names = overlays["prod"].secrets_of(workload.name)
        names = {key: name for key, name in names.items() if name not in OUTSIDE.values()}
        assert overlays["dev"].secrets_of(workload.name) == {key: values[name] for key, name in names.items()}


def stored(overlays):
    """What the store of prod holds: the files that deploy/make_secrets.py made for dev, and those of others."""
    found = {"smtp_url": f"smtp://shop:{secrets.token_hex(16)}@mail.example.com", "oidc_providers": "[]"}
    assert found.keys() == set(OUTSIDE.values())
    for name in ("topology", "migrate", *config.SERVICES, *CRON_JOBS):
        source = overlays["prod"].secrets_of(name)
        found |= {source[key]: value for key, value in overlays["dev"].secrets_of(name).items()}
    return found


@pytest.mark.parametrize("role", [*config.SERVICES, *JOBS, *CRON_JOBS])
def test_a_process_accepts_its_settings_in_production(overlays, tmp_path, role):
    workload = next(one for one in overlays["prod"].workloads() if one.name == role)
    folders = {SECRETS: tmp_path / "secrets", "/run/tls": tmp_path / "tls"}
    for folder in folders.values():
        folder.mkdir()
    values = stored(overlays)
    for key, name in overlays["prod"].secrets_of(role).items():
        write(folders[SECRETS] / key, values[name].replace("amqp://", "amqps://").replace(":5672/", ":5671/"))
    for path in TLS.values():
        write(folders["/run/tls"] / path.rpartition("/")[2], "a certificate")
    environ = dict(workload.environment)
    for path, folder in folders.items():
        environ = {name: value.replace(path, str(folder)) for name, value in environ.items()}
    settings = config.read(environ, role)
    assert settings.production
    assert [fault for fault in unsafe.unsafe(settings, role, environ) if not is_of_an_administrator(fault, role)] == []
    hosts = {url.partition("@")[2].partition(":")[0] for url in settings.database_urls.values() if "@" in url}
    assert hosts <= {"postgres"}
    if role in config.SERVICES:
        assert settings.amqp_uri.partition("@")[2].startswith("rabbitmq:5671/ecom")


def is_of_an_administrator(fault, role):
    """In dev migrate is the superuser `postgres`; in prod it is ecom_admin, whom make_secrets.py does not know."""
    return role == "migrate" and "DATABASE_ADMIN_URL" in fault


def write(path, text):
    path.write_text(text, encoding="utf-8")
    path.chmod(0o440)


# Each rule is broken once.


def changed(kind, name, *path, to=None):
    """A change of one value of one resource. Without `to` the value is removed."""

    def change(overlay):
        at = overlay.find(kind, name)
        for step in path[:-1]:
            at = at[step]
        if to is None:
            del at[path[-1]]
        else:
            at[path[-1]] = to

    return change


def without_line(line):
    """The broker's settings lack a line."""

    def change(overlay):
        settings = overlay.find("RabbitmqCluster", "rabbitmq")["spec"]["rabbitmq"]
        assert line in settings["additionalConfig"]
        settings["additionalConfig"] = settings["additionalConfig"].replace(f"{line}\n", "")

    return change


def of_container(kind, name, change_container):
    return lambda overlay: change_container(Workload(overlay.find(kind, name)).container)


P = "deploy/k8s/prod/"
SPEC, CANARY, GREEN = ("spec",), ("spec", "strategy", "canary"), ("spec", "strategy", "blueGreen")
MUTATIONS = {
    "deploy/k8s/base/order.yaml: there is no Rollout order": lambda overlay: overlay.resources.remove(
        overlay.find("Rollout", "order")
    ),
    f"{P}kustomization.yaml: order has the image ecom:1.0": of_container(
        "Rollout", "order", lambda container: container.update(image="ecom:1.0")
    ),
    f"{P}settings.yaml: gateway has RATE_SHARES 3, and 4 replicas": changed(
        "HorizontalPodAutoscaler", "gateway", "spec", "minReplicas", to=4
    ),
    f"{P}scaling.yaml: payment must be scaled": changed(
        "HorizontalPodAutoscaler", "payment", "metadata", "name", to="payments"
    ),
    f"{P}scaling.yaml: order is scaled by": changed(
        "HorizontalPodAutoscaler", "order", "spec", "metrics", 0, "resource", "target", "averageValue", to="200m"
    ),
    f"{P}scaling.yaml: gateway is scaled by": changed(
        "HorizontalPodAutoscaler", "gateway", "spec", "behavior", "scaleDown"
    ),
    f"{P}scaling.yaml: inventory scales": changed(
        "HorizontalPodAutoscaler", "inventory", "spec", "scaleTargetRef", "kind", to="Deployment"
    ),
    "deploy/k8s/base/order.yaml: order has 3 to 6 replicas, not 3 to 5": changed(
        "HorizontalPodAutoscaler", "order", "spec", "maxReplicas", to=6
    ),
    f"{P}kustomization.yaml: the replicas of order": changed("Rollout", "order", "spec", "replicas", to=3),
    f"{P}rollouts.yaml: order keeps a new version": changed("Rollout", "order", "spec", "progressDeadlineAbort"),
    f"{P}rollouts.yaml: order waits for the steps": changed("Rollout", "order", "spec", "rollbackWindow"),
    f"{P}rollouts.yaml: auth is replaced in the steps": changed("Rollout", "auth", *CANARY, "steps", 3),
    f"{P}rollouts.yaml: payment is replaced in the steps": changed(
        "Rollout", "payment", *CANARY, "steps", 1, "analysis", "templates", 2
    ),
    f"{P}rollouts.yaml: order has fewer or more pods": changed("Rollout", "order", *CANARY, "maxUnavailable", to=1),
    f"{P}rollout-of-gateway.yaml: gateway is switched between": changed("Rollout", "gateway", *GREEN, "previewService"),
    f"{P}rollout-of-gateway.yaml: the old gateway is kept 30 s": changed(
        "Rollout", "gateway", *GREEN, "scaleDownDelaySeconds", to=30
    ),
    f"{P}rollout-of-gateway.yaml: the new gateway is not tried": changed(
        "Rollout", "gateway", *GREEN, "prePromotionAnalysis"
    ),
    f"{P}rollout-of-gateway.yaml: the new gateway is not compared": changed(
        "Rollout", "gateway", *GREEN, "postPromotionAnalysis", "args", 2, "value", to="5m"
    ),
    f"{P}rabbitmq.yaml: the broker has 1 nodes": changed("RabbitmqCluster", "rabbitmq", "spec", "replicas", to=1),
    f"{P}rabbitmq.yaml: the broker listens in clear text": changed(
        "RabbitmqCluster", "rabbitmq", "spec", "tls", "disableNonTLSListeners"
    ),
    f"{P}rabbitmq.yaml: the broker's settings lack `cluster_partition_handling": without_line(
        "cluster_partition_handling = pause_minority"
    ),
    f"{P}rabbitmq.yaml: the broker's settings lack `queue_leader_locator": without_line(
        "queue_leader_locator = balanced"
    ),
    f"{P}rabbitmq.yaml: the broker's settings lack `quorum_queue": without_line(
        "quorum_queue.continuous_membership_reconciliation.enabled = true"
    ),
    f"{P}rabbitmq.yaml: the broker's settings lack `ssl_options": without_line(
        "ssl_options.fail_if_no_peer_cert = true"
    ),
    f"{P}rabbitmq.yaml: two nodes of the broker": changed(
        "RabbitmqCluster", "rabbitmq", *SPEC, "override", "statefulSet", "spec", "template", "spec", to={}
    ),
    f"{P}rabbitmq.yaml: a drain may take two": changed(
        "PodDisruptionBudget", "rabbitmq", "spec", "maxUnavailable", to=2
    ),
    f"{P}postgres.yaml: the database has 2 instances": changed("Cluster", "postgres", "spec", "instances", to=2),
    f"{P}postgres.yaml: a commit is answered before": changed(
        "Cluster", "postgres", "spec", "postgresql", "synchronous", "dataDurability", to="preferred"
    ),
    f"{P}postgres.yaml: the database hears": changed("Cluster", "postgres", "spec", "postgresql", "pg_hba", 1),
    f"{P}postgres.yaml: more than five minutes": changed(
        "Cluster", "postgres", "spec", "postgresql", "parameters", "archive_timeout"
    ),
    f"{P}postgres.yaml: two instances of the database": changed(
        "Cluster", "postgres", "spec", "affinity", "podAntiAffinityType", to="preferred"
    ),
    f"{P}postgres.yaml: ecom_admin may do more": changed(
        "Cluster", "postgres", "spec", "managed", "roles", 0, "superuser", to=True
    ),
    f"{P}postgres.yaml: the superuser has a password": changed(
        "Cluster", "postgres", "spec", "enableSuperuserAccess", to=True
    ),
    f"{P}postgres.yaml: there is no backup every day": changed(
        "ScheduledBackup", "postgres", "spec", "schedule", to="0 0 2 * * 0"
    ),
    f"{P}postgres.yaml: backups are not kept": changed("ObjectStore", "backups", "spec", "retentionPolicy", to="7d"),
    f"{P}postgres.yaml: max_connections is 800": changed(
        "Cluster", "postgres", "spec", "postgresql", "parameters", "max_connections", to="800"
    ),
    f"{P}certificates.yaml: order has no client certificate": changed(
        "Certificate", "order", "spec", "commonName", to="auth"
    ),
    f"{P}certificates.yaml: postgres has no certificate": changed(
        "Certificate", "postgres", "spec", "dnsNames", to=["postgres-rw"]
    ),
    f"{P}settings.yaml: order has not its own certificate": changed(
        "Rollout", "order", "spec", "template", "spec", "volumes", 0, "secret", "secretName", to="auth-tls"
    ),
    f"{P}tls.yaml: audit does not use its certificate": of_container(
        "CronJob",
        "audit",
        lambda container: container["env"].remove({"name": "TLS_CA_FILE", "value": "/run/tls/ca.crt"}),
    ),
    f"{P}entry.yaml: clients may come in": changed("Gateway", "entry", "spec", "listeners", 0, "protocol", to="HTTP"),
    f"{P}entry.yaml: /api/orders/1f0c/events is ended after 35s": changed("HTTPRoute", "entry", "spec", "rules", 0),
    f"{P}entry.yaml: /api/orders is ended after 0s": changed(
        "HTTPRoute", "entry", "spec", "rules", 0, "matches", 0, "path", "value", to="/api.*"
    ),
    f"{P}entry.yaml: clients are sent to": changed(
        "HTTPRoute", "entry", "spec", "rules", 1, "backendRefs", 0, "name", to="gateway-preview"
    ),
    f"{P}monitoring.yaml: Prometheus cannot tell": changed("PodMonitor", "ecom", "spec", "podTargetLabels"),
    f"{P}monitoring.yaml: Prometheus does not read": changed(
        "PodMonitor", "ecom", "spec", "podMetricsEndpoints", 0, "port", to="http"
    ),
    f"{P}monitoring.yaml: RequestsFail asks for ecom_requests_total": changed(
        "PrometheusRule", "ecom", "spec", "groups", 0, "rules", 0, "expr", to="rate(ecom_requests_total[5m]) > 1"
    ),
    f"{P}monitoring.yaml: DeadMessages leads to": changed(
        "PrometheusRule",
        "ecom",
        "spec",
        "groups",
        0,
        "rules",
        1,
        "annotations",
        "runbook",
        to="docs/operations.md#gone",
    ),
    f"{P}secrets.yaml: order is filled from another store": changed(
        "ExternalSecret", "order", "spec", "secretStoreRef", "name", to="other"
    ),
    "deploy/k8s/base/order.yaml: order reads /run/secrets/amqp_uri, which its Secret": changed(
        "ExternalSecret", "order", "spec", "data", 0
    ),
}


@pytest.mark.parametrize("message", MUTATIONS)
def test_a_broken_rule_of_production_is_named_with_its_file(overlays, message):
    overlay = copy.deepcopy(overlays["prod"])
    MUTATIONS[message](overlay)
    assert any(fault.startswith(message) for fault in production_faults(overlay)), production_faults(overlay)
