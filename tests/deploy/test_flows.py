"""The NetworkPolicies of prod allow what FLOWS lists, and nothing else."""

import copy

import pytest

from tests.deploy.policies import allowed, as_policies_see
from topology import flows
from topology.flows import FLOWS, Flow
from topology.services import NAMES


def faults(overlay):
    """Each difference, as a sentence with the file that decides."""
    wanted = {named(overlay, flow) for flow in as_policies_see(FLOWS)}
    found = {named(overlay, flow) for flow in allowed(overlay)}
    file = "deploy/k8s/prod/network.yaml"
    said = [f"{file}: {source} must reach {target} at {port}" for source, target, port in sorted(wanted - found)]
    return said + [
        f"{file}: {source} must not reach {target} at {port}" for source, target, port in sorted(found - wanted)
    ]


def named(overlay, flow):
    """A flow with its port as a number."""
    ports = {
        port["name"]: port["containerPort"]
        for workload in overlay.workloads()
        if workload.name == flow.target
        for port in workload.container.get("ports", ())
    }
    return flow.source, flow.target, ports.get(flow.port, flow.port)


def test_the_policies_allow_what_the_list_says_and_nothing_else(overlays):
    assert faults(overlays["prod"]) == []


def test_no_flow_is_listed_twice():
    assert len(set(FLOWS)) == len(FLOWS)


def test_only_payment_and_auth_reach_the_internet_and_only_the_gateway_is_reached_from_it():
    assert {flow.source for flow in FLOWS if flow.target == flows.INTERNET} == {"payment", "auth"}
    assert {flow.target for flow in FLOWS if flow.source == flows.PROXY} == {"gateway"}


def test_every_service_reaches_the_broker_and_only_the_gateway_no_database():
    assert {name for name in NAMES if Flow(name, flows.BROKER, flows.AMQPS) in FLOWS} == set(NAMES)
    assert {name for name in NAMES if Flow(name, flows.DATABASE, flows.POSTGRES) not in FLOWS} == {"gateway"}


def policy(overlay, name):
    return overlay.find("NetworkPolicy", name)["spec"]


def removed(name):
    return lambda overlay: overlay.resources.remove(overlay.find("NetworkPolicy", name))


def relabelled(kind, name, key, value=None):
    """The pods of a workload have another value of a label, or have it no more."""

    def change(overlay):
        labels = overlay.find(kind, name)["spec"]["template"]["metadata"]["labels"]
        if value is None:
            del labels[key]
        else:
            labels[key] = value

    return change


MUTATIONS = {
    "order must not reach internet at 22": lambda overlay: policy(overlay, "dns")["egress"].append({}),
    "prometheus must not reach a pod without labels at 5432": removed("nothing"),
    "order must reach dns at 53": removed("dns"),
    "auth must reach rabbitmq at 5671": removed("broker-clients"),
    "topology must reach rabbitmq at 15671": removed("topology"),
    "rabbitmq must reach rabbitmq at 25672": removed("broker"),
    "order must reach postgres at 5432": removed("database-clients"),
    "postgres must reach postgres at 8000": removed("database"),
    "proxy must reach gateway at 8000": removed("public"),
    "prometheus must reach order at 8001": removed("metrics"),
    "payment must reach internet at 443": removed("payment-provider"),
    "auth must reach internet at 587": removed("mail-and-openid"),
    "payment must not reach metadata of the cloud at 443": lambda overlay: policy(overlay, "payment-provider")[
        "egress"
    ][0]["to"][0]["ipBlock"]["except"].remove("169.254.0.0/16"),
    "payment must not reach anywhere at 443": lambda overlay: policy(overlay, "payment-provider")["egress"][0]["to"][0][
        "ipBlock"
    ].pop("except"),
    "gateway must not reach postgres at 5432": relabelled("Rollout", "gateway", "ecom/database", "client"),
    "inventory must reach postgres at 5432": relabelled("Rollout", "inventory", "ecom/database"),
    "inventory must reach rabbitmq at 5671": relabelled("Rollout", "inventory", "ecom/broker"),
    "topology must not reach postgres at 5432": relabelled("Job", "topology", "ecom/database", "client"),
    "prometheus must not reach gateway at 8000": lambda overlay: policy(overlay, "metrics")["ingress"][0][
        "ports"
    ].append({"port": "http"}),
    "another program must not reach gateway at 8000": lambda overlay: policy(overlay, "public")["ingress"][0][
        "from"
    ].append({"namespaceSelector": {}}),
    "order must not reach rabbitmq at 15671": lambda overlay: (
        policy(overlay, "broker-clients")["egress"][0]["ports"].append({"port": 15671}),
        policy(overlay, "broker")["ingress"][0]["ports"].append({"port": 15671}),
    ),
}


@pytest.mark.parametrize("message", MUTATIONS)
def test_a_policy_that_is_too_strict_or_too_loose_is_named(overlays, message):
    overlay = copy.deepcopy(overlays["prod"])
    MUTATIONS[message](overlay)
    assert f"deploy/k8s/prod/network.yaml: {message}" in faults(overlay)
