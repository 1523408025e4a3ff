"""deploy/k8s fits the table of services and the settings. These tests need no cluster.

`rules.faults` lists the faults of an overlay. A test below provokes each of its messages.
"""

import copy

import pytest
from sqlalchemy import make_url

from shared import config
from tests.deploy.overlays import JOBS, OVERLAYS, SECRETS, Workload
from tests.deploy.rules import faults
from topology.services import SERVICES, Service
from topology.users import broker_user


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_fits_the_code(overlays, name):
    assert faults(overlays[name]) == []


def test_the_processes_of_dev_find_their_servers(overlays, tmp_path):
    overlay = overlays["dev"]
    for workload in overlay.workloads():
        settings = config.read(environment(overlay, workload, tmp_path / workload.name), role_of(workload))
        urls = [*settings.database_urls.values(), settings.database_admin_url]
        assert {(make_url(url).host, make_url(url).port) for url in urls if url} <= {("postgres", 5432)}
        assert not settings.production
        if workload.name in config.SERVICES:
            assert settings.amqp_uri.startswith(f"amqp://{broker_user(workload.name)}:")
            assert settings.amqp_uri.endswith("@rabbitmq:5672/ecom")
    assert overlay.find("Service", "rabbitmq")["spec"]["ports"][0]["port"] == 5672
    assert overlay.find("Service", "postgres")["spec"]["ports"][0]["port"] == 5432


def environment(overlay, workload, folder):
    """The environment of a container, with its secrets in a folder."""
    folder.mkdir()
    for name, value in overlay.secrets_of(workload.name).items():
        (folder / name).write_text(value, encoding="utf-8")
    return {name: value.replace(SECRETS, str(folder)) for name, value in workload.environment.items()}


def role_of(workload):
    return JOBS.get(workload.name, workload.name)


def test_a_service_without_a_manifest_is_named(overlays):
    new = Service("kiln", "kiln_service", "burns", start_order=0)
    said = {fault for name in OVERLAYS for fault in faults(overlays[name], (*SERVICES, new))}
    assert said == {
        "deploy/k8s/base/kiln.yaml: there is no Deployment kiln",
        "deploy/k8s/base/kiln.yaml: there is no Rollout kiln",
        "deploy/k8s/base/kiln.yaml: there is no PodDisruptionBudget kiln",
        "deploy/k8s/base/kiln.yaml: there is no ServiceAccount kiln",
        "deploy/k8s/dev/kustomization.yaml: there is no Secret kiln",
        "deploy/k8s/prod/secrets.yaml: there is no ExternalSecret kiln",
        "deploy/k8s/prod/certificates.yaml: there is no Certificate kiln",
    }


# Each rule is broken once.


def broken(kind, name, *path, to=None):
    """A change of one value of one resource. Without `to` the value is removed."""

    def change(overlay):
        at = overlay.find(kind, name)
        if kind in ("Deployment", "Job", "CronJob", "StatefulSet") and path[0] == "pod":
            at, steps = Workload(at).pod, path[1:]
        elif path[0] == "container":
            at, steps = Workload(at).container, path[1:]
        else:
            steps = path
        for step in steps[:-1]:
            at = at[step]
        if to is None:
            del at[steps[-1]]
        else:
            at[steps[-1]] = to

    return change


def removed(kind, name):
    """An overlay without one resource."""
    return lambda overlay: overlay.resources.remove(overlay.find(kind, name))


def variable(kind, workload, name, value=None):
    """One variable of a container has another value, or none."""

    def change(overlay):
        entries = Workload(overlay.find(kind, workload)).container["env"]
        entries[:] = [entry for entry in entries if entry["name"] != name]
        entries += [{"name": name, "value": value}] if value is not None else []

    return change


def longer(kind, name, *path):
    """A list of a container has one item more, which is like its last."""

    def change(overlay):
        at = Workload(overlay.find(kind, name)).container
        for step in path:
            at = at[step]
        at.append({**at[-1], "name": "more"})

    return change


BASE = "deploy/k8s/base/"
MUTATIONS = {
    f"{BASE}order.yaml: there is no Deployment order": removed("Deployment", "order"),
    f"{BASE}order.yaml: there is no PodDisruptionBudget order": removed("PodDisruptionBudget", "order"),
    f"{BASE}order.yaml: there is no ServiceAccount order": removed("ServiceAccount", "order"),
    "deploy/k8s/dev/kustomization.yaml: there is no Secret order": removed("Secret", "order"),
    f"{BASE}migrate.yaml: there is no Job migrate": removed("Job", "migrate"),
    f"{BASE}audit.yaml: there is no CronJob audit": removed("CronJob", "audit"),
    f"{BASE}gateway.yaml: there is no Service gateway": removed("Service", "gateway"),
    f"{BASE}ordering.yaml: ordering is no service": broken("Deployment", "order", "metadata", "name", to="ordering"),
    f"{BASE}order.yaml: order runs ['ecom', 'run', 'payment']": broken(
        "Deployment", "order", "container", "args", to=["ecom", "run", "payment"]
    ),
    f"{BASE}migrate.yaml: migrate runs what ecom refuses": broken(
        "Job", "migrate", "container", "args", to=["ecom", "migrate", "--replica"]
    ),
    f"{BASE}order.yaml: order has the resources": broken(
        "Deployment", "order", "container", "resources", "limits", "cpu", to="250m"
    ),
    f"{BASE}payment.yaml: payment has the resources": broken(
        "Deployment", "payment", "container", "resources", "requests", "memory", to="512Mi"
    ),
    f"{BASE}order.yaml: order has the securityContext": broken("Deployment", "order", "pod", "securityContext"),
    f"{BASE}audit.yaml: audit has the securityContext": broken(
        "CronJob", "audit", "pod", "securityContext", "runAsNonRoot", to=False
    ),
    f"{BASE}order.yaml: order has the container securityContext": broken(
        "Deployment", "order", "container", "securityContext", "readOnlyRootFilesystem"
    ),
    f"{BASE}migrate.yaml: migrate has the container securityContext": broken(
        "Job", "migrate", "container", "securityContext", "capabilities"
    ),
    f"{BASE}order.yaml: order has hostNetwork": broken("Deployment", "order", "pod", "hostNetwork", to=True),
    f"{BASE}order.yaml: order runs as the ServiceAccount auth": broken(
        "Deployment", "order", "pod", "serviceAccountName", to="auth"
    ),
    f"{BASE}order.yaml: order gets a token": broken("ServiceAccount", "order", "automountServiceAccountToken"),
    f"{BASE}auth.yaml: auth gets a token": broken("Deployment", "auth", "pod", "automountServiceAccountToken", to=True),
    f"{BASE}gateway.yaml: gateway has enableServiceLinks": broken("Deployment", "gateway", "pod", "enableServiceLinks"),
    f"{BASE}order.yaml: order has no shareProcessNamespace": broken(
        "Deployment", "order", "pod", "shareProcessNamespace"
    ),
    f"{BASE}order.yaml: order has pods with the name": broken(
        "Deployment", "order", "spec", "template", "metadata", "labels", to={}
    ),
    f"{BASE}ops.yaml: ops has no /tmp of 1Gi": broken("Deployment", "ops", "pod", "volumes", 1, "emptyDir", to={}),
    f"{BASE}order.yaml: order has no /tmp of 64Mi": broken("Deployment", "order", "container", "volumeMounts", 1),
    f"{BASE}order.yaml: order has the secrets": broken(
        "Deployment", "order", "pod", "volumes", 0, "secret", "secretName", to="auth"
    ),
    f"{BASE}auth.yaml: auth has the secrets": broken(
        "Deployment", "auth", "pod", "volumes", 0, "secret", "defaultMode"
    ),
    f"{BASE}order.yaml: order does not see its secrets": broken(
        "Deployment", "order", "container", "volumeMounts", 0, "readOnly"
    ),
    f"{BASE}order.yaml: order sets ORDER_DEADLINE, which is no setting": variable(
        "Deployment", "order", "ORDER_DEADLINE", "900"
    ),
    f"{BASE}migrate.yaml: migrate sets HOST, which migrate does not read": variable(
        "Job", "migrate", "HOST", "0.0.0.0"
    ),
    f"{BASE}payment.yaml: payment sets AUTH_KEYS_FILE, which payment does not read": variable(
        "Deployment", "payment", "AUTH_KEYS_FILE", "/run/secrets/auth_keys"
    ),
    f"{BASE}auth.yaml: auth lacks AUTH_KEYS_FILE": variable("Deployment", "auth", "AUTH_KEYS_FILE"),
    f"{BASE}topology.yaml: topology lacks ORDER_AMQP_URI_FILE": variable("Job", "topology", "ORDER_AMQP_URI_FILE"),
    f"{BASE}gateway.yaml: gateway holds ORDER_DATABASE_URL_FILE": variable(
        "Deployment", "gateway", "ORDER_DATABASE_URL_FILE", "/run/secrets/order_database_url"
    ),
    f"{BASE}ops.yaml: ops holds ORDER_DATABASE_URL_FILE": variable(
        "Deployment", "ops", "ORDER_DATABASE_URL_FILE", "/run/secrets/order_database_url"
    ),
    f"{BASE}ops.yaml: ops lacks ORDER_DATABASE_URL": variable("Deployment", "ops", "ORDER_DATABASE_URL"),
    f"{BASE}audit.yaml: audit lacks INVENTORY_DATABASE_URL": variable("CronJob", "audit", "INVENTORY_DATABASE_URL"),
    f"{BASE}audit.yaml: audit holds OPERATOR_PASSWORD_FILE": variable(
        "CronJob", "audit", "OPERATOR_PASSWORD_FILE", "/run/secrets/operator_password"
    ),
    f"{BASE}order.yaml: order says the secret AMQP_URI": variable(
        "Deployment", "order", "AMQP_URI", "amqp://ecom-order:x@rabbitmq:5672/ecom"
    ),
    f"{BASE}order.yaml: order reads /run/secrets/amqp_uri_order, which its Secret does not hold": variable(
        "Deployment", "order", "AMQP_URI_FILE", "/run/secrets/amqp_uri_order"
    ),
    f"{BASE}order.yaml: order holds /run/secrets/audit_key in its Secret": broken(
        "Secret", "order", "data", "audit_key", to="eA=="
    ),
    f"{BASE}order.yaml: order has 2 to 2 replicas on one machine": broken(
        "Deployment", "order", "spec", "replicas", to=2
    ),
    f"{BASE}gateway.yaml: gateway has the ports": broken(
        "Deployment", "gateway", "container", "ports", 1, "containerPort", to=8000
    ),
    f"{BASE}order.yaml: order has the ports": longer("Deployment", "order", "ports"),
    f"{BASE}order.yaml: order listens on None": variable("Deployment", "order", "HOST"),
    f"{BASE}order.yaml: order has the startupProbe": broken(
        "Deployment", "order", "container", "startupProbe", "failureThreshold"
    ),
    f"{BASE}order.yaml: order has the livenessProbe": broken(
        "Deployment", "order", "container", "livenessProbe", "httpGet", "path", to="/readyz"
    ),
    f"{BASE}gateway.yaml: gateway has the readinessProbe": broken(
        "Deployment", "gateway", "container", "readinessProbe", "httpGet", "port", to="http"
    ),
    f"{BASE}gateway.yaml: gateway sleeps 0 s before it stops": broken(
        "Deployment", "gateway", "container", "lifecycle"
    ),
    f"{BASE}order.yaml: order is killed after 30 s": broken(
        "Deployment", "order", "pod", "terminationGracePeriodSeconds", to=30
    ),
    f"{BASE}order.yaml: order has the strategy": broken(
        "Deployment", "order", "spec", "strategy", "rollingUpdate", "maxUnavailable", to=1
    ),
    f"{BASE}order.yaml: order has minReadySeconds None": broken("Deployment", "order", "spec", "minReadySeconds"),
    f"{BASE}order.yaml: order has progressDeadlineSeconds 600": broken(
        "Deployment", "order", "spec", "progressDeadlineSeconds", to=600
    ),
    f"{BASE}order.yaml: order has the selector": broken(
        "Deployment", "order", "spec", "selector", to={"matchLabels": {"app": "order"}}
    ),
    f"{BASE}order.yaml: order is not spread": broken("Deployment", "order", "pod", "topologySpreadConstraints", 0),
    f"{BASE}order.yaml: order is spread with a maxSkew": broken(
        "Deployment", "order", "pod", "topologySpreadConstraints", 0, "maxSkew", to=2
    ),
    f"{BASE}order.yaml: order has the PodDisruptionBudget": broken(
        "PodDisruptionBudget", "order", "spec", "maxUnavailable", to=0
    ),
    f"{BASE}order.yaml: order is not applied in the step service": broken(
        "Deployment", "order", "metadata", "labels", to={}
    ),
    f"{BASE}topology.yaml: topology is not applied in the step preparation": broken(
        "Job", "topology", "metadata", "labels", to={}
    ),
    f"{BASE}audit.yaml: audit is not applied in the step service": broken("CronJob", "audit", "metadata", "labels"),
    f"{BASE}migrate.yaml: migrate has the restartPolicy": broken("Job", "migrate", "pod", "restartPolicy", to="Always"),
    f"{BASE}audit.yaml: audit may run twice at once": broken("CronJob", "audit", "spec", "concurrencyPolicy"),
    f"{BASE}order.yaml: the Service order leads to what": lambda overlay: overlay.resources.append(
        {"kind": "Service", "metadata": {"name": "order"}, "spec": {"selector": {"app.kubernetes.io/name": "order"}}}
    ),
    f"{BASE}migrate.yaml: migrate gives the role of payment connections for 1 pods": broken(
        "Job", "migrate", "container", "args", to=["ecom", "migrate", "--replicas", "1"]
    ),
    "deploy/k8s/dev/servers.yaml: rabbitmq has the image rabbitmq:3": broken(
        "StatefulSet", "rabbitmq", "container", "image", to="rabbitmq:3"
    ),
    "deploy/k8s/dev/servers.yaml: postgres has the securityContext": broken(
        "StatefulSet", "postgres", "pod", "securityContext", "runAsNonRoot"
    ),
    "deploy/k8s/dev/servers.yaml: postgres has the container securityContext": broken(
        "StatefulSet", "postgres", "container", "securityContext", "capabilities"
    ),
    "deploy/k8s/dev/servers.yaml: rabbitmq gets a token": broken(
        "StatefulSet", "rabbitmq", "pod", "enableServiceLinks"
    ),
    "deploy/k8s/dev/servers.yaml: max_connections is 300": broken(
        "StatefulSet", "postgres", "container", "args", 2, to="max_connections=300"
    ),
}


@pytest.mark.parametrize("message", MUTATIONS)
def test_a_broken_rule_is_named_with_its_file(overlays, message):
    overlay = copy.deepcopy(overlays["dev"])
    MUTATIONS[message](overlay)
    assert any(fault.startswith(message) for fault in faults(overlay)), faults(overlay)


def test_a_service_that_needs_longer_than_the_supervisor_waits_is_named(overlays, monkeypatch):
    from shared.edge import webserver

    monkeypatch.setattr(webserver, "DRAIN_S", 16.0)
    assert any("may need 16.0 s to stop" in fault for fault in faults(overlays["dev"]))
