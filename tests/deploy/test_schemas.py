"""Every resource of deploy/k8s is one that its API knows, with no field that it does not know.

The schemas of Kubernetes itself come with kubernetes-validate. Those of the operators are CustomResourceDefinitions, in
a folder that K8S_CRDS names; without it their resources are not validated, and a test says so by being skipped.
"""

import copy
import os
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.deploy.overlays import OVERLAYS

KUBERNETES = "1.34"  # the oldest that deploy/k8s/README.md promises
CRDS = "K8S_CRDS"
BUILT_IN = ("v1", "apps/v1", "batch/v1", "policy/v1", "autoscaling/v2", "networking.k8s.io/v1")
# The operators' kinds without a schema among those of the folder.
NO_SCHEMA = {"ObjectStore"}


@pytest.mark.parametrize("name", OVERLAYS)
def test_no_resource_of_kubernetes_has_a_field_that_it_does_not_know(overlays, name):
    for resource in overlays[name].resources:
        if resource["apiVersion"] in BUILT_IN:
            kubernetes_validate.validate(resource, KUBERNETES, strict=True)


def test_a_misspelt_field_is_refused(overlays):
    resource = copy.deepcopy(overlays["dev"].find("Deployment", "order"))
    resource["spec"]["template"]["spec"]["containers"][0]["livenessProb"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="livenessProb"):
        kubernetes_validate.validate(resource, KUBERNETES, strict=True)


@pytest.fixture(scope="module")
def schemas():
    """The schema of each kind, by its API version and name, that refuses unknown fields."""
    folder = os.environ.get(CRDS)
    if not folder:
        pytest.skip(f"{CRDS} names no folder with the CustomResourceDefinitions of the operators")
    found = {}
    for path in sorted(Path(folder).glob("*.yaml")):
        for definition in yaml.load_all(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader):
            spec = definition["spec"]
            for version in spec["versions"]:
                key = f"{spec['group']}/{version['name']}", spec["names"]["kind"]
                found[key] = version["schema"]["openAPIV3Schema"]
    return found


def strict(schema):
    """A schema of the API that refuses what it does not list, as `kubectl apply --validate=strict` does."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    open_to_all = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and not open_to_all:
        made["additionalProperties"] = False
    return made


def whole(schema):
    """The strict schema of a whole resource, which has apiVersion, kind and metadata beside its own fields."""
    made = strict(schema)
    made["properties"] = {"apiVersion": {}, "kind": {}, **made["properties"], "metadata": {"type": "object"}}
    return made


@pytest.fixture(scope="module")
def validators(schemas, overlays):
    """For each kind that prod uses, what validates it."""
    used = {(one["apiVersion"], one["kind"]) for one in overlays["prod"].resources if one["apiVersion"] not in BUILT_IN}
    return {key: jsonschema.Draft202012Validator(whole(schemas[key])) for key in used if key[1] not in NO_SCHEMA}


def test_no_resource_of_an_operator_has_a_field_that_it_does_not_know(validators, overlays):
    seen = 0
    for resource in overlays["prod"].resources:
        if validator := validators.get((resource["apiVersion"], resource["kind"])):
            errors = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(resource)]
            assert not errors, f"{resource['kind']} {resource['metadata']['name']}: {errors}"
            seen += 1
    assert seen > len(validators)


FIELDS = {
    "RabbitmqCluster": ("spec", "tls", "disableNonTLSListener"),
    "Cluster": ("spec", "postgresql", "synchronous", "dataDurabilty"),
    "ScheduledBackup": ("spec", "scedule"),
    "ExternalSecret": ("spec", "secretStore"),
    "Certificate": ("spec", "dnsName"),
    "Gateway": ("spec", "listener"),
    "HTTPRoute": ("spec", "hostname"),
    "Rollout": ("spec", "progressDeadlineSecond"),
    "AnalysisTemplate": ("spec", "metric"),
    "PodMonitor": ("spec", "podTargetLabel"),
    "PrometheusRule": ("spec", "group"),
}


@pytest.mark.parametrize("kind", FIELDS)
def test_a_misspelt_field_of_an_operator_is_refused(validators, overlays, kind):
    resource = copy.deepcopy(next(overlays["prod"].of(kind)))
    *path, field = FIELDS[kind]
    at = resource
    for step in path:
        at = at[step]
    at[field] = "x"
    (error, *_) = validators[resource["apiVersion"], kind].iter_errors(resource)
    assert field in error.message


def test_every_operators_kind_is_misspelt_once(overlays):
    used = {one["kind"] for one in overlays["prod"].resources if one["apiVersion"] not in BUILT_IN}
    assert used == {*FIELDS, *NO_SCHEMA}
