"""What NetworkPolicies allow, worked out as a cluster does: each end that has policies must allow a connection."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

from tests.deploy.overlays import Overlay
from topology import flows
from topology.flows import Flow

NAMESPACE = "kubernetes.io/metadata.name"
HERE = "ecom"
STRANGER = "a pod without labels"


@dataclass(frozen=True)
class End:
    """One end of a connection: a pod by its namespace and labels, or an address outside of the cluster."""

    labels: Mapping[str, str] = field(default_factory=dict)
    namespace: str = ""
    address: str = ""
    ports: Mapping[str, int] = field(default_factory=dict)  # of a pod, by name


# Everybody who is no workload of ours. The address of the internet is one that nobody has.
OTHERS = {
    flows.BROKER: End({"app.kubernetes.io/name": "rabbitmq", "app.kubernetes.io/part-of": "rabbitmq"}, HERE),
    flows.DATABASE: End({"cnpg.io/cluster": "postgres", "cnpg.io/podRole": "instance"}, HERE),
    flows.PROXY: End(namespace="gateway-system"),
    flows.PROMETHEUS: End(namespace="monitoring"),
    flows.ROLLOUTS: End(namespace="argo-rollouts"),
    flows.DATABASE_OPERATOR: End(namespace="cnpg-system"),
    flows.DNS: End({"k8s-app": "kube-dns"}, "kube-system"),
    flows.INTERNET: End(address="203.0.113.7"),
    # What nobody has thought of: a pod of the same namespace, and what a cluster has beside us.
    STRANGER: End({}, HERE),
    "another program": End({"app.kubernetes.io/name": "order"}, "other"),
    flows.ANYWHERE: End(address="10.9.8.7"),
    "metadata of the cloud": End(address="169.254.169.254"),
}


def allowed(overlay: Overlay) -> set[Flow]:
    """Every connection that the policies of an overlay allow, tried with every pair and every port that is known."""
    ends = {workload.name: _end(workload) for workload in overlay.workloads()} | OTHERS
    policies = [policy["spec"] for policy in overlay.of("NetworkPolicy")]
    numbers = {flow.port for flow in flows.FLOWS if isinstance(flow.port, int)} | {22, 5672, 15672}
    found = set()
    for source, start in ends.items():
        for target, end in ends.items():
            for port, number in [*((number, number) for number in sorted(numbers)), *end.ports.items()]:
                if HERE in (start.namespace, end.namespace) and _passes(policies, start, end, number):
                    found.add(Flow(source, target, port))
    return found


def _end(workload: Any) -> End:
    ports = {port["name"]: port["containerPort"] for port in workload.container.get("ports", ())}
    return End(workload.labels, HERE, ports=ports)


def _passes(policies: Sequence[Mapping[str, Any]], start: End, end: End, port: int) -> bool:
    out = start.namespace != HERE or _any(policies, "Egress", start, end, end, port)
    return out and (end.namespace != HERE or _any(policies, "Ingress", end, start, end, port))


def _any(policies: Sequence[Mapping[str, Any]], way: str, whose: End, other: End, end: End, port: int) -> bool:
    """Whether the policies of one end let it speak with the other; one that no policy selects speaks with everybody."""
    its = [one for one in policies if _selects(one["podSelector"], whose.labels) and way in one["policyTypes"]]
    peers, rules = ("to", "egress") if way == "Egress" else ("from", "ingress")
    return not its or any(
        _has_port(rule, end, port) and (peers not in rule or any(_matches(peer, other) for peer in rule[peers]))
        for policy in its
        for rule in policy.get(rules, ())
    )


def _has_port(rule: Mapping[str, Any], end: End, port: int) -> bool:
    return "ports" not in rule or port in {end.ports.get(one["port"], one["port"]) for one in rule["ports"]}


def _matches(peer: Mapping[str, Any], other: End) -> bool:
    if block := peer.get("ipBlock"):
        networks = [ip_network(text) for text in block.get("except", ())]
        address = ip_address(other.address or "10.0.0.1")  # pods have private addresses
        return address in ip_network(block["cidr"]) and not any(address in network for network in networks)
    if other.address:
        return False
    if "namespaceSelector" in peer:
        is_there = _selects(peer["namespaceSelector"], {NAMESPACE: other.namespace})
    else:
        is_there = other.namespace == HERE
    return is_there and _selects(peer.get("podSelector", {}), other.labels)


def _selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    unknown = selector.keys() - {"matchLabels"}
    assert not unknown, f"these tests do not know {unknown}"
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


def as_policies_see(known: Sequence[Flow]) -> Iterator[Flow]:
    """FLOWS, where `anywhere` is every end outside of the namespace. Every pod may ask for names."""
    yield Flow(STRANGER, flows.DNS, 53)
    for flow in known:
        if flow.target == flows.ANYWHERE:
            outside = [name for name, end in OTHERS.items() if end.namespace != HERE]
            yield from (Flow(flow.source, name, flow.port) for name in outside)
        else:
            yield flow
